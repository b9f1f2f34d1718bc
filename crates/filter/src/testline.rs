//! Test lines, in which text that an outsider can choose is marked: `{{field:example}}`.

use std::fmt::Write as _;

/// A test line, split at its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedLine<'a>(Vec<Piece<'a>>);

/// A part of a test line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text that the service itself writes.
    Fixed(&'a str),
    /// Text that an outsider can choose.
    Free {
        /// The name of the field: `user`, `helo`, `url`.
        field: &'a str,
        /// An example of the text.
        example: &'a str,
    },
}

impl<'a> MarkedLine<'a> {
    /// Splits a test line. Incomplete marks are plain text.
    pub fn parse(line: &'a str) -> Self {
        let mut pieces = Vec::new();
        let (mut fixed_from, mut search_from) = (0, 0);
        while let Some(start) = line.get(search_from..).and_then(|rest| rest.find("{{")).map(|at| at + search_from) {
            let inner = line.get(start + 2..).unwrap_or_default();
            let mark = inner.split_once("}}").and_then(|(inner, _)| inner.split_once(':')).filter(|(field, _)| {
                !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            });
            let Some((field, example)) = mark else {
                search_from = start + 1;
                continue;
            };
            if start > fixed_from {
                pieces.push(Piece::Fixed(line.get(fixed_from..start).unwrap_or_default()));
            }
            pieces.push(Piece::Free { field, example });
            fixed_from = start + 2 + field.len() + 1 + example.len() + 2;
            search_from = fixed_from;
        }
        if fixed_from < line.len() {
            pieces.push(Piece::Fixed(line.get(fixed_from..).unwrap_or_default()));
        }
        Self(pieces)
    }

    /// Returns the parts, from left to right.
    pub fn pieces(&self) -> &[Piece<'a>] {
        &self.0
    }

    /// Returns the examples of the marks that hold the account.
    pub fn accounts(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Free { field, example } if is_account(field) => Some(*example),
            Piece::Free { .. } | Piece::Fixed(_) => None,
        })
    }

    /// Returns the line with each mark replaced by its example.
    pub fn example(&self) -> String {
        self.filled(|_, example| example)
    }

    /// Returns the line with each mark replaced by `text(index, example)`. The index of the first mark is 0.
    pub fn filled<'t>(&'t self, mut text: impl FnMut(usize, &'t str) -> &'t str) -> String {
        let mut line = String::new();
        let mut index = 0;
        for piece in &self.0 {
            match piece {
                Piece::Fixed(fixed) => line.push_str(fixed),
                Piece::Free { example, .. } => {
                    let _ = write!(line, "{}", text(index, example));
                    index += 1;
                }
            }
        }
        line
    }
}

/// Whether a mark with this name holds the account.
pub(crate) fn is_account(field: &str) -> bool {
    field.strip_prefix("word_").or_else(|| field.strip_prefix("quoted_")).unwrap_or(field) == "user"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_and_filled() {
        let line = MarkedLine::parse("Invalid user {{user:bob}} from {\"a\":{\"b\":1}} {{x}} {{ua:a:b}}.");
        assert_eq!(line.example(), "Invalid user bob from {\"a\":{\"b\":1}} {{x}} a:b.");
        assert_eq!(
            line.filled(|place, example| if place == 0 { "" } else { example }),
            "Invalid user  from {\"a\":{\"b\":1}} {{x}} a:b."
        );
        assert_eq!(line.pieces().iter().filter(|piece| matches!(piece, Piece::Free { .. })).count(), 2);
    }
}
