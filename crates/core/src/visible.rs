//! Makes hostile text safe to display: what an attacker writes into a log line must not control a terminal or a page.

use std::fmt::Write as _;

/// Returns `bytes` as text in which every character is visible. Control characters, and characters that hide or reorder others
/// (Unicode TR #36 §2.10, CVE-2021-42574), are escaped as `\x1b` or `\u{202e}`. Invalid UTF-8 becomes U+FFFD.
pub fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            // Writing to a `String` cannot fail.
            _ if c.is_control() => drop(write!(text, "\\x{:02x}", u32::from(c))),
            _ if hides(c) => drop(write!(text, "\\u{{{:x}}}", u32::from(c))),
            _ => text.push(c),
        }
    }
    text
}

/// Returns `true` for a control character, and for one that hides or reorders others: without a width, or with a direction of its own.
pub fn deceives(c: char) -> bool {
    c.is_control() || hides(c)
}

const fn hides(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        assert_eq!(visible(b"user=\x1b[2J\x07 \xff\t\r\n"), "user=\\x1b[2J\\x07 \u{fffd}\\t\\x0d\\n");
        assert_eq!(visible("a\u{202e}b\u{9b}c ü".as_bytes()), "a\\u{202e}b\\x9bc ü");
    }

    proptest! {
        #[test]
        fn the_result_has_no_control_or_hidden_characters(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in "\\PC{0,40}") {
            for shown in [visible(&bytes), visible(text.as_bytes())] {
                prop_assert!(!shown.chars().any(|c| c.is_control() || hides(c)));
            }
        }
    }
}
