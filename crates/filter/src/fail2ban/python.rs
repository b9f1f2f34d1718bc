//! The structure of an expression in Python's syntax: atoms, quantifiers, classes and groups.

/// Splits `text` after its first character or class.
pub(super) fn atom(text: &str) -> Option<(&str, &str)> {
    let length = match text.chars().next()? {
        '\\' => 1 + text.get(1..)?.chars().next()?.len_utf8(),
        '[' => class_length(text)?,
        '(' | ')' | '|' | '*' | '+' | '?' | '^' | '$' => return None,
        c => c.len_utf8(),
    };
    Some(text.split_at(length))
}

/// Splits `text` after the quantifier at its start. The first part is empty if there is none.
pub(super) fn quantifier(text: &str) -> (&str, &str) {
    let length = match text.as_bytes() {
        [b'*' | b'+' | b'?', b'?', ..] => 2,
        [b'*' | b'+' | b'?', ..] => 1,
        [b'{', ..] => text.find('}').map_or(0, |end| end + 1),
        _ => 0,
    };
    text.split_at(length)
}

/// Returns the length of the class `[…]` at the start of `text`. `None` if it is not closed.
pub(super) fn class_length(text: &str) -> Option<usize> {
    let begin = if text.starts_with("[^]") {
        3
    } else if text.starts_with("[]") || text.starts_with("[^") {
        2
    } else {
        1
    };
    let mut escaped = false;
    for (index, c) in text.char_indices().skip_while(|(index, _)| *index < begin) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// Returns the length of the group `(…)` at the start of `text`. `None` if it is not closed.
pub(super) fn group_length(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
        at += match c {
            '\\' => 1 + text.get(at + 1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8),
            '[' => class_length(text.get(at..)?)?,
            _ => c.len_utf8(),
        };
        match c {
            '(' => depth += 1,
            ')' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns the first position of `wanted` in `text` outside of classes and escapes.
pub(super) fn find_outside_classes(text: &str, wanted: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(wanted) {
            return Some(at);
        }
        at += match rest.chars().next()? {
            '\\' => 1 + rest.get(1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8),
            '[' => class_length(rest).unwrap_or(1),
            c => c.len_utf8(),
        };
    }
    None
}

/// Splits the inside of a group at its `|`.
pub(super) fn split_alternatives(inner: &str) -> Vec<&str> {
    let (mut at, mut begin) = (0, 0);
    let mut branches = Vec::new();
    while let Some(c) = inner.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = inner.get(at..).unwrap_or_default();
        if c == '|' {
            branches.push(inner.get(begin..at).unwrap_or_default());
            begin = at + 1;
        }
        at += match c {
            '\\' => 1 + rest.get(1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8),
            '[' => class_length(rest).unwrap_or(1),
            '(' => group_length(rest).unwrap_or(1),
            c => c.len_utf8(),
        };
    }
    branches.push(inner.get(begin..).unwrap_or_default());
    branches
}
