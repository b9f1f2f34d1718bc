//! Substrings without which an expression cannot match.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Shorter substrings occur in nearly every line.
const MIN_LENGTH: usize = 3;
/// More of a substring would only make the automaton bigger.
const MAX_LENGTH: usize = 32;
/// More alternatives are no help over another part of the expression.
const MAX_ALTERNATIVES: usize = 64;

/// Substrings, in lower case, one of which (up to ASCII case) is part of every match of `hir`; `None` when none of use is
/// known.
pub(super) fn required(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    best_of(hir).filter(|set| set.iter().all(|literal| literal.len() >= MIN_LENGTH))
}

fn best_of(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(vec![cut(literal.0.to_ascii_lowercase())]),
        HirKind::Capture(capture) => best_of(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => best_of(&repetition.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(best_of(branch)?);
            }
            all.sort_unstable();
            all.dedup();
            (all.len() <= MAX_ALTERNATIVES).then_some(all)
        }
        HirKind::Concat(parts) => best_of_parts(parts),
        HirKind::Class(class) => folded_byte(class).map(|byte| vec![vec![byte]]),
        HirKind::Repetition(_) | HirKind::Empty | HirKind::Look(_) => None,
    }
}

fn best_of_parts(parts: &[Hir]) -> Option<Vec<Vec<u8>>> {
    let mut best: Option<Vec<Vec<u8>>> = None;
    let mut offer = |set: Vec<Vec<u8>>| {
        if best.as_ref().is_none_or(|best| worth(&set) > worth(best)) {
            best = Some(set);
        }
    };
    let mut run = Vec::new();
    for part in parts {
        match part.kind() {
            HirKind::Literal(literal) => run.extend(literal.0.to_ascii_lowercase()),
            // An assertion takes up no text.
            HirKind::Look(_) => {}
            HirKind::Class(class) if folded_byte(class).is_some() => run.extend(folded_byte(class)),
            _ => {
                if !run.is_empty() {
                    offer(vec![cut(std::mem::take(&mut run))]);
                }
                if let Some(set) = best_of(part) {
                    offer(set);
                }
            }
        }
    }
    if !run.is_empty() {
        offer(vec![cut(run)]);
    }
    best
}

/// The letter in lower case that a class stands for when it is one letter in both cases, as `(?i)` makes it.
fn folded_byte(class: &Class) -> Option<u8> {
    let (mut letters, count) = match class {
        Class::Bytes(class) => {
            let all: Vec<u8> = class.ranges().iter().take(3).flat_map(|range| [range.start(), range.end()]).collect();
            (all, class.ranges().len())
        }
        Class::Unicode(class) => {
            let all: Option<Vec<u8>> = class
                .ranges()
                .iter()
                .take(3)
                .flat_map(|range| [range.start(), range.end()])
                .map(|letter| u8::try_from(letter).ok().filter(u8::is_ascii))
                .collect();
            (all?, class.ranges().len())
        }
    };
    letters.dedup();
    match (letters.as_slice(), count) {
        ([one], 1) => Some(one.to_ascii_lowercase()),
        ([upper, lower], 2) if upper != lower && upper.to_ascii_lowercase() == *lower => Some(*lower),
        _ => None,
    }
}

fn cut(mut literal: Vec<u8>) -> Vec<u8> {
    literal.truncate(MAX_LENGTH);
    literal
}

/// Longer is rarer; few are better than many.
fn worth(set: &[Vec<u8>]) -> isize {
    let shortest = set.iter().map(Vec::len).min().unwrap_or(0).min(14);
    isize::try_from(shortest * 4).unwrap_or(0) - isize::try_from(set.len()).unwrap_or(isize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Option<Vec<String>> {
        let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).unwrap();
        required(&hir).map(|set| set.into_iter().map(|literal| String::from_utf8(literal).unwrap()).collect())
    }

    fn set(literals: &[&str]) -> Option<Vec<String>> {
        Some(literals.iter().map(|&literal| literal.to_owned()).collect())
    }

    #[test]
    fn the_most_telling_part_is_taken() {
        assert_eq!(of("^Failed password for .* from"), set(&["failed password for "]));
        assert_eq!(of("(?i)Invalid USER .*"), set(&["invalid user "]));
        assert_eq!(of("(?:imap|pop3)-login: .*auth failed"), set(&["auth failed"]));
        assert_eq!(of("^(?:unknown user|no such login)$"), set(&["no such login", "unknown user"]));
        assert_eq!(of("x(?:error)?y"), None);
        assert_eq!(of(r"\d+"), None);
        assert_eq!(of("(?:abc|.*)"), None);
        assert_eq!(of("(?:abcd)+"), set(&["abcd"]));
    }
}
