//! Test lines: a message in which what an outsider can choose freely is marked, `{{field:example}}`.

use std::fmt::Write as _;

/// A test line, taken apart at its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedLine<'a>(Vec<Piece<'a>>);

/// A stretch of a test line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// What the service itself writes.
    Fixed(&'a str),
    /// What an outsider can choose.
    Free {
        /// What it is: `user`, `helo`, `url`.
        field: &'a str,
        /// An example of it.
        example: &'a str,
    },
}

impl<'a> MarkedLine<'a> {
    /// Takes a test line apart. What is no complete mark is plain text.
    pub fn parse(line: &'a str) -> Self {
        let mut pieces = Vec::new();
        let (mut fixed_from, mut search_from) = (0, 0);
        while let Some(start) = line.get(search_from..).and_then(|rest| rest.find("{{")).map(|at| at + search_from) {
            let inner = &line[start + 2..];
            let mark = inner.split_once("}}").and_then(|(inner, _)| inner.split_once(':')).filter(|(field, _)| {
                !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            });
            let Some((field, example)) = mark else {
                search_from = start + 1;
                continue;
            };
            if start > fixed_from {
                pieces.push(Piece::Fixed(&line[fixed_from..start]));
            }
            pieces.push(Piece::Free { field, example });
            fixed_from = start + 2 + field.len() + 1 + example.len() + 2;
            search_from = fixed_from;
        }
        if fixed_from < line.len() {
            pieces.push(Piece::Fixed(&line[fixed_from..]));
        }
        Self(pieces)
    }

    /// The pieces, from left to right.
    pub fn pieces(&self) -> &[Piece<'a>] {
        &self.0
    }

    /// The line with the examples in their places.
    pub fn example(&self) -> String {
        self.filled(|_, example| example)
    }

    /// The line with `text(place, example)` in the place of every mark; places are counted from 0.
    pub fn filled<'t>(&'t self, mut text: impl FnMut(usize, &'t str) -> &'t str) -> String {
        let mut line = String::new();
        let mut place = 0;
        for piece in &self.0 {
            match piece {
                Piece::Fixed(fixed) => line.push_str(fixed),
                Piece::Free { example, .. } => {
                    let _ = write!(line, "{}", text(place, example));
                    place += 1;
                }
            }
        }
        line
    }
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
