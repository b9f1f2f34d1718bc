//! The texts that an expression matches, if they are few.

use regex_syntax::hir::{Class, Hir, HirKind};

/// The most texts that a sequence may combine to.
const MAX_TEXTS: usize = 64;

/// Returns the texts that a simple expression matches: literals, `(?:a|b)`, `(…)?`. A part that matches any text, such as
/// `\S*`, is returned as `*`. `None` for other expressions, and for too many texts.
pub(super) fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
    texts(&hir)
}

fn texts(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(literal) => Some(vec![String::from_utf8(literal.0.to_vec()).ok()?]),
        HirKind::Class(Class::Bytes(class)) => {
            let bytes: Vec<u8> = class.ranges().iter().take(8).flat_map(|range| range.start()..=range.end()).collect();
            (bytes.len() <= 8).then(|| bytes.iter().map(|byte| char::from(*byte).to_string()).collect())
        }
        HirKind::Capture(capture) => texts(&capture.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(texts(branch)?);
            }
            Some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![String::new()];
            for part in parts {
                let tails = texts(part)?;
                if all.len() * tails.len() > MAX_TEXTS {
                    return None;
                }
                all = all.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect();
            }
            Some(all)
        }
        HirKind::Repetition(repetition) if repetition.min == 0 && repetition.max == Some(1) => {
            let mut all = texts(&repetition.sub)?;
            all.push(String::new());
            Some(all)
        }
        HirKind::Repetition(repetition) if repetition.max.is_none() => Some(vec!["*".to_owned()]),
        _ => None,
    }
}
