//! Finds literals without which an expression cannot match.

use regex_syntax::hir::{Class, Hir, HirKind};

/// The shortest literal of use. Shorter ones occur in nearly every line.
const MIN_LENGTH: usize = 3;
/// Literals are cut to this length. Longer ones would only make the automaton larger.
const MAX_LENGTH: usize = 32;
/// The most alternatives in a set. Larger sets exclude too few lines.
const MAX_ALTERNATIVES: usize = 256;

/// The most sets per expression.
pub(super) const MAX_SETS: usize = 7;

/// Returns sets of literals, in lower case. Every match of `hir` contains at least one literal from each set, in any ASCII
/// case. The most selective sets come first. The result is empty if the expression has no useful literal.
pub(super) fn required(hir: &Hir) -> Vec<Vec<Vec<u8>>> {
    let mut sets = Vec::new();
    collect(hir, &mut sets);
    sets.retain(|set| !set.is_empty() && set.iter().all(|literal| literal.len() >= MIN_LENGTH));
    sets.sort_by_key(|set| std::cmp::Reverse(selectivity(set)));
    sets.dedup();
    sets.truncate(MAX_SETS);
    sets
}

/// Adds a set for each part of the expression that every match needs.
fn collect(hir: &Hir, sets: &mut Vec<Vec<Vec<u8>>>) {
    match hir.kind() {
        HirKind::Capture(capture) => collect(&capture.sub, sets),
        HirKind::Repetition(repetition) if repetition.min > 0 => collect(&repetition.sub, sets),
        HirKind::Concat(parts) => {
            let mut run = Vec::new();
            for part in parts {
                match part.kind() {
                    HirKind::Literal(literal) => run.extend(literal.0.to_ascii_lowercase()),
                    // An assertion matches no text.
                    HirKind::Look(_) => {}
                    HirKind::Class(class) if folded_byte(class).is_some() => run.extend(folded_byte(class)),
                    _ => {
                        if !run.is_empty() {
                            sets.push(vec![cut(std::mem::take(&mut run))]);
                        }
                        collect(part, sets);
                    }
                }
            }
            if !run.is_empty() {
                sets.push(vec![cut(run)]);
            }
        }
        _ => sets.extend(best_of(hir)),
    }
}

/// Returns the most selective set of `hir`. `None` if there is none.
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
        if best.as_ref().is_none_or(|best| selectivity(&set) > selectivity(best)) {
            best = Some(set);
        }
    };
    let mut run = Vec::new();
    for part in parts {
        match part.kind() {
            HirKind::Literal(literal) => run.extend(literal.0.to_ascii_lowercase()),
            // An assertion matches no text.
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

/// Returns the letter, in lower case, of a class that consists of one letter in both cases, as `(?i)` produces.
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

/// Ranks a set: first whether it is useful at all, then longer literals before shorter ones, and fewer before more.
fn selectivity(set: &[Vec<u8>]) -> (bool, isize) {
    let shortest = set.iter().map(Vec::len).min().unwrap_or(0);
    let score = isize::try_from(shortest * 4).unwrap_or(0) - isize::try_from(set.len()).unwrap_or(isize::MAX / 2);
    (shortest >= MIN_LENGTH, score)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pattern: &str) -> Vec<Vec<String>> {
        let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).unwrap();
        let text = |set: Vec<Vec<u8>>| set.into_iter().map(|literal| String::from_utf8(literal).unwrap()).collect();
        required(&hir).into_iter().map(text).collect()
    }

    fn sets(expected: &[&[&str]]) -> Vec<Vec<String>> {
        expected.iter().map(|set| set.iter().map(|&literal| literal.to_owned()).collect()).collect()
    }

    #[test]
    fn every_required_part_of_an_expression_gives_a_set() {
        assert_eq!(of("^Failed password for .* from"), sets(&[&["failed password for "], &[" from"]]));
        assert_eq!(of("(?i)Invalid USER .*"), sets(&[&["invalid user "]]));
        assert_eq!(
            of("(?:imap|pop3)-login: .*auth failed"),
            sets(&[&["auth failed"], &["-login: "], &["imap", "pop3"]])
        );
        assert_eq!(of("^(?:unknown user|no such login)$"), sets(&[&["no such login", "unknown user"]]));
        assert_eq!(of("x(?:error)?y"), sets(&[]));
        assert_eq!(of(r"\d+"), sets(&[]));
        assert_eq!(of("(?:abc|.*)"), sets(&[]));
        assert_eq!(of("(?:abcd)+"), sets(&[&["abcd"]]));
        // Literals of useful length are preferred to a single shorter one.
        assert_eq!(
            of("(?:x-(?:abc|def|ghi|jkl|mno|pqr):|stu)"),
            sets(&[&["abc", "def", "ghi", "jkl", "mno", "pqr", "stu"]])
        );
    }
}
