//! Look-ahead and back-references, put into words that run in linear time.
//!
//! `(?!text)` in front of something that is made of single characters (`\S+`, `.*`, `[^,]*`) says how it may not begin, and that can
//! be spelled out: a first character that is another, or the same one and then a second that is another. `(?:(?!text).)*` is
//! any text without `text`. Where it cannot be said exactly, less is matched than by fail2ban, never more: an address that
//! fail2ban would not take is not taken.

use regex_syntax::hir::{Class, HirKind};

/// How often an expression is looked through: each step moves one look-ahead on.
const MAX_STEPS: usize = 128;
const MAX_LENGTH: usize = 16 * 1024;
/// Stand around the number of a piece that is written in our syntax already; `translate` leaves them alone.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';

/// Pieces that are in our syntax.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<String>);

impl Pieces {
    fn keep(&mut self, piece: String) -> String {
        self.0.push(piece);
        format!("{OPEN}{}{CLOSE}", self.0.len() - 1)
    }

    /// `text` with the pieces in their places.
    pub(super) fn put_back(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (number, piece) in self.0.iter().enumerate() {
            out = out.replace(&format!("{OPEN}{number}{CLOSE}"), piece);
        }
        out
    }
}

/// `text`, an expression of Python's, without its negative look-aheads; `None` when one of them cannot be put otherwise.
pub(super) fn without_lookaheads(text: &str, pieces: &mut Pieces) -> Option<String> {
    let mut text = text.to_owned();
    for _ in 0..MAX_STEPS {
        let Some(at) = find_outside_classes(&text, "(?!") else { return Some(text) };
        let length = group_length(text.get(at..)?)?;
        let inner = text.get(at + 3..at + length - 1)?.trim_end_matches(r"\b").to_owned();
        let banned = literals(&inner)?;
        let (before, tail) = (text.get(..at)?, text.get(at + length..)?);
        text = match without_text(before, tail, &banned, pieces) {
            Some(text) => text,
            None => format!("{before}{}", moved_on(tail, &banned, pieces)?),
        };
        if text.len() > MAX_LENGTH {
            return None;
        }
    }
    None
}

/// `(?:(?!text).)*`.
fn without_text(before: &str, tail: &str, banned: &[String], pieces: &mut Pieces) -> Option<String> {
    let before = before.strip_suffix("(?:")?;
    let tail = tail.strip_prefix(".)")?;
    let (quantifier, rest) = quantifier(tail);
    let count = match quantifier {
        "*" | "*?" | "+" | "+?" => quantifier,
        _ => return None,
    };
    let [one] = banned else { return None };
    let mut bytes = one.bytes();
    let first = bytes.next()?;
    // A text whose first character comes again within it could begin within itself.
    let last = bytes.next_back();
    if bytes.any(|byte| byte == first) || (one.len() == 2 && last == Some(first)) {
        return None;
    }
    // After a part of the text something must come that neither goes on with it nor begins it anew.
    let mut nested = String::new();
    for byte in one.bytes().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let other = format!("[^{}{}]", in_class(first), in_class(byte));
        nested = if nested.is_empty() { other } else { format!("(?:{other}|{}{nested})", escaped(byte)) };
    }
    let piece = match one.len() {
        1 => format!("[^{}]{count}", in_class(first)),
        _ => format!("(?:[^{}]|{}+{nested}){count}", in_class(first), escaped(first)),
    };
    Some(format!("{before}{}{rest}", pieces.keep(piece)))
}

/// What `(?!…)` and the `tail` behind it come to: the look-ahead moved past a character or into a group, or spelled out.
fn moved_on(tail: &str, banned: &[String], pieces: &mut Pieces) -> Option<String> {
    // At the end of the expression whatever follows must not begin with it.
    if tail.trim_start_matches(')').trim_start_matches('$').is_empty() {
        let any = avoid(banned, &any_byte()?, ".", Next::End, true)?;
        return Some(format!("{}{tail}", pieces.keep(format!("{any}$"))));
    }
    if tail.starts_with('(') {
        return into_group(tail, banned);
    }
    let (atom, rest) = atom(tail)?;
    let (count, rest) = quantifier(rest);
    if let Some(literal) = literal_of(atom) {
        if !count.is_empty() {
            return None;
        }
        let left: Vec<String> =
            banned.iter().filter_map(|text| text.strip_prefix(literal)).map(str::to_owned).collect();
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
    Some(format!("{}{rest}", pieces.keep(avoid(banned, &class, &ours, next, star)?)))
}

/// `(?!x)(?:a|b)` is `(?:(?!x)a|(?!x)b)`.
fn into_group(tail: &str, banned: &[String]) -> Option<String> {
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
    let ahead = format!("(?!{})", choice(banned));
    let first: Vec<String> = split_alternatives(inner).iter().map(|branch| format!("{ahead}{branch}")).collect();
    let first = format!("{}{})", group.get(..head)?, first.join("|"));
    let (count, rest) = quantifier(rest);
    match count {
        "" => Some(format!("{first}{rest}")),
        "+" => Some(format!("{first}(?:{inner})*{rest}")),
        _ => None,
    }
}

/// What follows a run of characters.
#[derive(Clone, Copy)]
enum Next {
    Byte(u8),
    End,
    Unknown,
}

/// What the rest of an expression begins with.
fn next_byte(rest: &str) -> Next {
    if let Some(after) = rest.strip_prefix(')') {
        return if quantifier(after).0.is_empty() { next_byte(after) } else { Next::Unknown };
    }
    if rest == "$" {
        return Next::End;
    }
    let literal = atom(rest).filter(|(_, after)| quantifier(after).0.is_empty()).and_then(|(atom, _)| literal_of(atom));
    literal.and_then(|literal| literal.bytes().next()).map_or(Next::Unknown, Next::Byte)
}

/// Text of the class's characters that begins with none of `banned`. Within a beginning of a banned text it ends only where
/// what follows is known not to go on with it.
fn avoid(banned: &[String], class: &Class, ours: &str, next: Next, may_end: bool) -> Option<String> {
    let heads: std::collections::BTreeSet<u8> = banned.iter().filter_map(|text| text.bytes().next()).collect();
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
        let rest: Vec<String> = banned
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

/// `text` with every `(?P=name)` replaced by what its group stands for, and what was loosened; `None` when that could let
/// somebody else choose the address: a back-reference that stands before it must be no more than a mark of punctuation.
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

/// The texts for which `pattern` stands, where they are few.
fn literals(pattern: &str) -> Option<Vec<String>> {
    if pattern.contains(['*', '+', '{']) {
        return None;
    }
    let texts = super::alternatives(pattern)?;
    (!texts.is_empty() && texts.len() <= 16 && texts.iter().all(|text| !text.is_empty() && text.is_ascii()))
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

/// The first character or class of `text`, and what follows it.
fn atom(text: &str) -> Option<(&str, &str)> {
    let length = match text.chars().next()? {
        '\\' => 1 + text.get(1..)?.chars().next()?.len_utf8(),
        '[' => class_length(text)?,
        '(' | ')' | '|' | '*' | '+' | '?' | '^' | '$' => return None,
        c => c.len_utf8(),
    };
    Some(text.split_at(length))
}

fn quantifier(text: &str) -> (&str, &str) {
    let length = match text.as_bytes() {
        [b'*' | b'+' | b'?', b'?', ..] => 2,
        [b'*' | b'+' | b'?', ..] => 1,
        [b'{', ..] => text.find('}').map_or(0, |end| end + 1),
        _ => 0,
    };
    text.split_at(length)
}

/// The character that an atom stands for, when it is one.
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

/// A class of Python's in our syntax: there a bracket or a doubled sign within it is plain.
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

/// The length of the class that `text` begins with.
fn class_length(text: &str) -> Option<usize> {
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

/// The length of the group that `text` begins with.
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

fn split_alternatives(inner: &str) -> Vec<&str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the rewritten expression matches.
    fn is(pattern: &str, text: &str) -> bool {
        let mut pieces = Pieces::default();
        let rewritten = without_lookaheads(pattern, &mut pieces).unwrap_or_else(|| panic!("{pattern}"));
        let rewritten = pieces.put_back(&rewritten);
        let regex = regex::bytes::RegexBuilder::new(&rewritten).unicode(false).build();
        regex.unwrap_or_else(|error| panic!("{rewritten}: {error}")).is_match(text.as_bytes())
    }

    #[test]
    fn what_must_not_come_does_not() {
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
                assert!(is(pattern, text), "{pattern} on {text}");
            }
            for text in bad {
                assert!(!is(pattern, text), "{pattern} on {text}");
            }
        }
    }

    #[test]
    fn what_cannot_be_spelled_out_is_left() {
        for pattern in [r"x(?!a+)\S+", r"x(?!a)\d{2}", r"x(?!a)b?c", r"(?!(?=b))a", r"x(?:(?!aab).)*", r"x(?:(?!aa).)*"]
        {
            let mut pieces = Pieces::default();
            assert_eq!(without_lookaheads(pattern, &mut pieces), None, "{pattern}");
        }
    }

    #[test]
    fn a_back_reference_is_loosened_where_it_cannot_move_the_address() {
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
