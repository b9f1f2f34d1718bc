//! Rewrites negative look-ahead and back-references as expressions that run in linear time.
//!
//! `(?!text)` before a repeated character or class (`\S+`, `.*`, `[^,]*`) excludes some beginnings. The rewritten expression
//! lists the others: a different first character, or the same first character and a different second one, and so on.
//! `(?:(?!text).)*` is any text that does not contain `text`. Where no exact expression is possible, the result matches less
//! than fail2ban's, never more, so that it never finds an address that fail2ban would not.

use regex_syntax::hir::{Class, HirKind};

use super::alternatives::alternatives;
use super::python::{atom, find_outside_classes, group_length, quantifier, split_alternatives};

/// The most rewriting steps per expression. Each step moves or replaces one look-ahead.
const MAX_STEPS: usize = 128;
/// The longest rewritten expression in bytes.
const MAX_LENGTH: usize = 16 * 1024;
/// The longest text in bytes that a look-ahead may exclude. [`avoid`] recurses once per byte.
const MAX_EXCLUDED: usize = 256;
/// These characters enclose the number of a fragment.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';

/// Parts of an expression that are already in the syntax of the crate `regex`. In the expression itself numbers stand for
/// them, so that `translate` does not change them.
#[derive(Debug, Default)]
pub(super) struct Fragments(Vec<String>);

impl Fragments {
    /// Stores `fragment` and returns its number, as it is written in the expression.
    fn store(&mut self, fragment: String) -> String {
        self.0.push(fragment);
        format!("{OPEN}{}{CLOSE}", self.0.len() - 1)
    }

    /// Returns `text` with the numbers replaced by the fragments.
    pub(super) fn insert(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (number, fragment) in self.0.iter().enumerate() {
            out = out.replace(&format!("{OPEN}{number}{CLOSE}"), fragment);
        }
        out
    }
}

/// Rewrites `text`, in Python's syntax, without negative look-ahead. `None` if that is not possible.
pub(super) fn without_lookaheads(text: &str, fragments: &mut Fragments) -> Option<String> {
    if text.contains([OPEN, CLOSE]) {
        return None;
    }
    let mut text = text.to_owned();
    for _ in 0..MAX_STEPS {
        let Some(at) = find_outside_classes(&text, "(?!") else { return Some(text) };
        let length = group_length(text.get(at..)?)?;
        let inner = text.get(at + 3..at + length - 1)?.trim_end_matches(r"\b").to_owned();
        let excluded = literals(&inner)?;
        let (before, tail) = (text.get(..at)?, text.get(at + length..)?);
        text = match without_text(before, tail, &excluded, fragments) {
            Some(text) => text,
            None => format!("{before}{}", advance(tail, &excluded, fragments)?),
        };
        if text.len() > MAX_LENGTH {
            return None;
        }
    }
    None
}

/// Rewrites `(?:(?!text).)*`, where `before` ends with `(?:` and `tail` starts with `.)`.
fn without_text(before: &str, tail: &str, excluded: &[String], fragments: &mut Fragments) -> Option<String> {
    let before = before.strip_suffix("(?:")?;
    let tail = tail.strip_prefix(".)")?;
    let (quantifier, rest) = quantifier(tail);
    let count = match quantifier {
        "*" | "*?" | "+" | "+?" => quantifier,
        _ => return None,
    };
    let [one] = excluded else { return None };
    let mut bytes = one.bytes();
    let first = bytes.next()?;
    // If the first character of the text occurs in it again, an occurrence could start within another.
    let last = bytes.next_back();
    if bytes.any(|byte| byte == first) || (one.len() == 2 && last == Some(first)) {
        return None;
    }
    // After a beginning of the text, the next character must neither continue nor restart it.
    let mut nested = String::new();
    for byte in one.bytes().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let other = format!("[^{}{}]", in_class(first), in_class(byte));
        nested = if nested.is_empty() { other } else { format!("(?:{other}|{}{nested})", escaped(byte)) };
    }
    let piece = match one.len() {
        1 => format!("[^{}]{count}", in_class(first)),
        _ => format!("(?:[^{}]|{}+{nested}){count}", in_class(first), escaped(first)),
    };
    Some(format!("{before}{}{rest}", fragments.store(piece)))
}

/// Rewrites `(?!…)` and the `tail` after it: moves the look-ahead past a character or into a group, or replaces it.
fn advance(tail: &str, excluded: &[String], fragments: &mut Fragments) -> Option<String> {
    // At the end of the expression, the rest of the line must not start with an excluded text.
    if tail.trim_start_matches(')').trim_start_matches('$').is_empty() {
        let any = avoid(excluded, &any_byte()?, ".", Next::End, true)?;
        return Some(format!("{}{tail}", fragments.store(format!("{any}$"))));
    }
    if tail.starts_with('(') {
        return into_group(tail, excluded);
    }
    let (atom, rest) = atom(tail)?;
    let (count, rest) = quantifier(rest);
    if let Some(literal) = literal_of(atom) {
        if !count.is_empty() {
            return None;
        }
        let left: Vec<String> =
            excluded.iter().filter_map(|text| text.strip_prefix(literal)).map(str::to_owned).collect();
        if left.iter().any(String::is_empty) {
            return None;
        }
        let ahead = if left.is_empty() { String::new() } else { format!("(?!{})", choice(&left)) };
        return Some(format!("{atom}{ahead}{rest}"));
    }
    let star = match count {
        "*" | "*?" => true,
        "+" | "+?" => false,
        _ => return None,
    };
    let class = class_of(atom)?;
    let next = next_byte(rest);
    let ours = if atom == "." { ".".to_owned() } else { ours(atom) };
    Some(format!("{}{rest}", fragments.store(avoid(excluded, &class, &ours, next, star)?)))
}

/// Rewrites `(?!x)(?:a|b)` as `(?:(?!x)a|(?!x)b)`.
fn into_group(tail: &str, excluded: &[String]) -> Option<String> {
    let length = group_length(tail)?;
    let (group, rest) = (tail.get(..length)?, tail.get(length..)?);
    let head = if group.starts_with("(?:") {
        "(?:".len()
    } else if group.starts_with("(?P<") {
        group.find('>')? + 1
    } else if group.starts_with("(?") {
        return None;
    } else {
        1
    };
    let inner = group.get(head..length - 1)?;
    let ahead = format!("(?!{})", choice(excluded));
    let first: Vec<String> = split_alternatives(inner).iter().map(|branch| format!("{ahead}{branch}")).collect();
    let first = format!("{}{})", group.get(..head)?, first.join("|"));
    let (count, rest) = quantifier(rest);
    match count {
        "" => Some(format!("{first}{rest}")),
        "+" => Some(format!("{first}(?:{inner})*{rest}")),
        _ => None,
    }
}

/// What follows a repetition in the expression.
#[derive(Clone, Copy)]
enum Next {
    Byte(u8),
    End,
    Unknown,
}

/// Returns what `rest`, the end of an expression, matches first.
fn next_byte(mut rest: &str) -> Next {
    while let Some(after) = rest.strip_prefix(')') {
        if !quantifier(after).0.is_empty() {
            return Next::Unknown;
        }
        rest = after;
    }
    if rest == "$" {
        return Next::End;
    }
    let literal = atom(rest).filter(|(_, after)| quantifier(after).0.is_empty()).and_then(|(atom, _)| literal_of(atom));
    literal.and_then(|literal| literal.bytes().next()).map_or(Next::Unknown, Next::Byte)
}

/// Returns an expression for text of the characters in `class` that starts with none of `excluded`. `ours` is the class in the
/// syntax of the crate `regex`. The text ends within the beginning of an excluded one only if `next` cannot continue it.
fn avoid(excluded: &[String], class: &Class, ours: &str, next: Next, may_end: bool) -> Option<String> {
    let heads: std::collections::BTreeSet<u8> = excluded.iter().filter_map(|text| text.bytes().next()).collect();
    let (inside, outside): (Vec<u8>, Vec<u8>) = heads.iter().partition(|byte| contains(class, **byte));
    let members: String = inside.iter().map(|byte| in_class(*byte)).collect();
    let another = match (members.is_empty(), ours) {
        (true, _) => ours.to_owned(),
        (false, ".") => format!("[^{members}]"),
        (false, _) => format!("[{ours}--[{members}]]"),
    };
    let mut branches = vec![format!("{another}{ours}*")];
    let ends = match next {
        Next::Byte(next) => outside.is_empty() && !heads.contains(&next),
        Next::End => true,
        Next::Unknown => false,
    };
    if may_end && ends {
        branches.push(String::new());
    }
    for byte in inside {
        let rest: Vec<String> = excluded
            .iter()
            .filter(|text| text.bytes().next() == Some(byte))
            .filter_map(|text| text.get(1..).map(str::to_owned))
            .collect();
        if !rest.iter().any(String::is_empty) {
            branches.push(format!("{}{}", escaped(byte), avoid(&rest, class, ours, next, true)?));
        }
    }
    Some(format!("(?:{})", branches.join("|")))
}

/// Replaces every `(?P=name)` in `text` by the expression of its group. Also returns the names of the groups.
///
/// `None` if the result could match a different address: a back-reference before the address must match at most one
/// character, such as a quote.
pub(super) fn without_backreferences(text: &str) -> Option<(String, Vec<String>)> {
    let mut text = text.to_owned();
    let mut loosened = Vec::new();
    for _ in 0..MAX_STEPS {
        let Some(at) = text.find("(?P=") else { return Some((text, loosened)) };
        let end = at + text.get(at..)?.find(')')?;
        let name = text.get(at + 4..end)?;
        let group = text.find(&format!("(?P<{name}>"))?;
        let length = group_length(text.get(group..)?)?;
        let inner = text.get(group + name.len() + 5..group + length - 1)?;
        if inner.contains("(?P<") || inner.contains("<HOST") || group + length > at {
            return None;
        }
        let short = parsed(inner).and_then(|hir| hir.properties().maximum_len()).is_some_and(|most| most <= 1);
        if !short && !text.get(..at)?.contains("<HOST") {
            return None;
        }
        loosened.push(name.to_owned());
        let inner = format!("(?:{inner})");
        text.replace_range(at..=end, &inner);
        if text.len() > MAX_LENGTH {
            return None;
        }
    }
    None
}

/// Returns the texts that `pattern` matches. `None` if they are too many or too long.
fn literals(pattern: &str) -> Option<Vec<String>> {
    if pattern.contains(['*', '+', '{']) {
        return None;
    }
    let texts = alternatives(pattern)?;
    (!texts.is_empty()
        && texts.len() <= 16
        && texts.iter().all(|text| (1..=MAX_EXCLUDED).contains(&text.len()) && text.is_ascii()))
    .then_some(texts)
}

fn choice(texts: &[String]) -> String {
    texts.iter().map(|text| text.bytes().map(escaped).collect::<String>()).collect::<Vec<_>>().join("|")
}

fn escaped(byte: u8) -> String {
    let c = char::from(byte);
    if c.is_ascii_alphanumeric() || matches!(c, ' ' | '=' | '/' | ':' | '"' | '\'' | '`' | ',') {
        c.to_string()
    } else {
        format!("\\{c}")
    }
}

fn in_class(byte: u8) -> String {
    let c = char::from(byte);
    if c.is_ascii_alphanumeric() || c == ' ' { c.to_string() } else { format!("\\{c}") }
}

/// Returns the character that an atom matches. `None` if it is a class.
fn literal_of(atom: &str) -> Option<&str> {
    match atom.strip_prefix('\\') {
        Some(c) => (!c.starts_with(|c: char| c.is_ascii_alphanumeric())).then_some(c),
        None => (atom != "." && !atom.starts_with('[')).then_some(atom),
    }
}

fn class_of(atom: &str) -> Option<Class> {
    if atom == "." {
        return any_byte();
    }
    match parsed(&ours(atom))?.into_kind() {
        HirKind::Class(class) => Some(class),
        _ => None,
    }
}

fn any_byte() -> Option<Class> {
    match parsed(r"[\x00-\xff]")?.into_kind() {
        HirKind::Class(class) => Some(class),
        _ => None,
    }
}

/// Converts a class from Python's syntax, in which brackets and doubled signs within it are literal.
fn ours(atom: &str) -> String {
    let Some(inner) = atom.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return atom.to_owned() };
    let mut out = String::from("[");
    let mut previous = ' ';
    for c in inner.chars() {
        if matches!(c, '[' | '&' | '~') && previous != '\\' {
            out.push('\\');
        }
        previous = if previous == '\\' { ' ' } else { c };
        out.push(c);
    }
    out.push(']');
    out
}

fn parsed(pattern: &str) -> Option<regex_syntax::hir::Hir> {
    regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()
}

fn contains(class: &Class, byte: u8) -> bool {
    match class {
        Class::Bytes(class) => class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&byte)),
        Class::Unicode(class) => {
            class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&char::from(byte)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the rewritten expression matches.
    fn matches(pattern: &str, text: &str) -> bool {
        let mut fragments = Fragments::default();
        let rewritten = without_lookaheads(pattern, &mut fragments).unwrap_or_else(|| panic!("{pattern}"));
        let rewritten = fragments.insert(&rewritten);
        let regex = regex::bytes::RegexBuilder::new(&rewritten).unicode(false).build();
        regex.unwrap_or_else(|error| panic!("{rewritten}: {error}")).is_match(text.as_bytes())
    }

    #[test]
    fn a_rewritten_look_ahead_excludes_the_same_texts() {
        for (pattern, good, bad) in [
            (r"^a (?!- )\S+ \[", &["a bob [", "a b [", "a -x ["][..], &["a - ["][..]),
            (
                r"^\[(?!evasive)\S*:error\]",
                &["[:error]", "[core:error]", "[evil:error]", "[e:error]"],
                &["[evasive20:error]"],
            ),
            (
                r"^(?!error|info)[\w-]+: x",
                &["client: x", "er: x", "i: x", "security: x"],
                &["error: x", "info: x", "information: x"],
            ),
            (
                r"^(?:(?!ip=)(?:user=[^,]*|\w+=[^,]*), )*ip=1",
                &["user=a, x=b, ip=1", "i=2, ip=1", "ipx=2, ip=1", "ip=1"],
                &["ip=2, ip=1"],
            ),
            (
                r"^for (?:(?! from ).)* from x$",
                &["for bob from x", "for a  b from x", "for fromage from x"],
                &["for a from b from x"],
            ),
            (
                r"^failed:(?! Connection lost| Invalid)",
                &["failed: UGFz", "failed:", "failed: Conn"],
                &["failed: Connection lost to x", "failed: Invalid x"],
            ),
            (r"^after(?! DATA) [A-Z]+$", &["after AUTH", "after D", "after DAT"], &["after DATA", "after DATAX"]),
            (
                r"^user (?!`)(?:\S*|.*?) not found\b",
                &["user bob not found", "user a b not found"],
                &["user `bob' not found"],
            ),
            (
                r"^NOTICE \[(?!recidive\])(?:.*)\] Ban",
                &["NOTICE [sshd] Ban", "NOTICE [record] Ban"],
                &["NOTICE [recidive] Ban"],
            ),
            (
                r"^\w+(?:,(?!Remote=)\w+=\d)*,Remote=\d$",
                &["a,x=1,Remote=2", "a,Remote=2", "a,Rem=1,Remote=2"],
                &["a,Remote=1,Remote=2"],
            ),
        ] {
            for text in good {
                assert!(matches(pattern, text), "{pattern} on {text}");
            }
            for text in bad {
                assert!(!matches(pattern, text), "{pattern} on {text}");
            }
        }
    }

    #[test]
    fn look_ahead_that_cannot_be_rewritten_is_rejected() {
        for pattern in [r"x(?!a+)\S+", r"x(?!a)\d{2}", r"x(?!a)b?c", r"(?!(?=b))a", r"x(?:(?!aab).)*", r"x(?:(?!aa).)*"]
        {
            let mut fragments = Fragments::default();
            assert_eq!(without_lookaheads(pattern, &mut fragments), None, "{pattern}");
        }
    }

    #[test]
    fn long_look_ahead_is_rejected() {
        for pattern in [format!(r"x(?!{})\S+", "a".repeat(4_000)), format!(r"x(?!a)\S+{}", ")".repeat(4_000))] {
            let _ = without_lookaheads(&pattern, &mut Fragments::default());
        }
        let pattern = format!(r"x(?!{})\S+", "a".repeat(MAX_EXCLUDED + 1));
        assert_eq!(without_lookaheads(&pattern, &mut Fragments::default()), None);
    }

    #[test]
    fn a_back_reference_is_loosened_only_if_the_address_stays_the_same() {
        let (text, loosened) = without_backreferences(r"^<HOST> (?P<user>\S+) user=(?P=user)$").unwrap();
        assert_eq!(
            (text.as_str(), loosened.as_slice()),
            (r"^<HOST> (?P<user>\S+) user=(?:\S+)$", &["user".to_owned()][..])
        );
        assert!(without_backreferences(r#"^acct=(?P<q>"?)\S+(?P=q) addr=<HOST>$"#).is_some());
        assert!(without_backreferences(r"^(?P<user>\S+) (?P=user) <HOST>$").is_none());
        assert!(without_backreferences(r"^<HOSTPORT> (?P<c>\d+) (?P=c)$").is_some());
        assert!(without_backreferences(r"^<HOST> (?P=nobody)$").is_none());
    }
}
