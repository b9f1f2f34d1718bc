//! Converts one expression from Python's syntax with fail2ban's tags to that of the crate `regex`.

use super::dates::DATE;
use super::lookaround::{Fragments, without_backreferences, without_lookaheads};
use super::python::{find_outside_classes, group_length};
use crate::{Detector, Filter, Mode, Rule};

/// Converts one expression to a rule. Returns `None`, and adds a note, if that is not possible.
pub(super) fn rewrite(
    regex: &str,
    prefix: Option<&str>,
    label: &str,
    ignore: bool,
    notes: &mut Vec<String>,
) -> Option<Rule> {
    let mut skip = |why: &str| {
        notes.push(format!("{label}: not imported: {why}: {regex}"));
        None
    };
    if regex.contains("<SKIPLINES>") {
        return skip("it matches several lines");
    }
    if regex.contains("<F-NOFAIL>") || regex.contains("<F-MLFGAINED>") {
        return skip("it is not an offence but joins the lines of one session; banmesh matches each line separately");
    }
    let whole = match prefix.filter(|_| !ignore) {
        Some(prefix) => with_prefix(prefix, regex),
        None => regex.to_owned(),
    };
    let mut changed = Vec::new();
    let text = match translate(&whole, &mut changed) {
        Ok(text) => text,
        Err(why) => return skip(&why),
    };
    for change in changed {
        notes.push(format!("{label}: {change}"));
    }
    let rule = Rule { name: Some(label.to_owned()), ..Rule::new(with_date(&text)) };
    let mut probe = Filter { name: "probe".to_owned(), services: vec!["*".to_owned()], ..Filter::default() };
    probe.definitions.insert("date".to_owned(), format!("(?:{DATE})?"));
    if ignore {
        probe.ignoreregex.push(rule.clone());
        probe.failregex.push(Rule::new("<HOST>"));
    } else {
        probe.failregex.push(rule.clone());
    }
    match Detector::compile([(&probe, Mode::Aggressive)], &[]) {
        Ok(detector) => {
            if !ignore && !detector.warnings().is_empty() {
                notes.push(format!(
                    "{label}: no literal of three letters or more is part of every match, so it runs on every line"
                ));
            }
            if !ignore && !rule.regex.starts_with('^') {
                notes.push(format!("{label}: it is not anchored to the beginning of the message; check what an outsider can write before the match"));
            }
            Some(rule)
        }
        Err(errors) => {
            let why = errors.first().map(|error| error.problem.to_string()).unwrap_or_default();
            notes.push(format!("{label}: not imported: {why}: {regex}"));
            None
        }
    }
}

/// Combines `prefregex`, which finds the content, and `failregex`, which matches within it, into one expression.
fn with_prefix(prefix: &str, regex: &str) -> String {
    let (Some(start), Some(end)) = (prefix.find("<F-CONTENT>"), prefix.find("</F-CONTENT>")) else {
        return regex.to_owned();
    };
    let before = prefix.get(..start).unwrap_or_default();
    let after = prefix.get(end + "</F-CONTENT>".len()..).unwrap_or_default();
    let (lead, body) = match regex.strip_prefix('^') {
        Some(body) => ("", body),
        None => (".*?", regex),
    };
    let (body, tail) = match body.strip_suffix('$').filter(|body| !body.ends_with('\\')) {
        Some(body) => (body, after),
        None => (body, ""),
    };
    format!("{before}{lead}(?:{body}){tail}")
}

/// Inserts `<date>`. fail2ban removes the time from a line before it matches, which leaves the space after it, or empty
/// brackets. Here a line keeps its time, or the syslog header was removed together with the space.
fn with_date(regex: &str) -> String {
    let text = regex.replace(r"\[\]", r"\[<date>\]").replace(r"msg=audit\(:", r"msg=audit\(<date>:");
    match text.strip_prefix('^') {
        Some(rest) => match rest.strip_prefix(' ') {
            Some(rest) => format!("^<date> ?{rest}"),
            None => format!("^<date>{rest}"),
        },
        None => text,
    }
}

/// Converts the syntax and the tags. Describes in `changed` how the result differs.
fn translate(regex: &str, changed: &mut Vec<String>) -> Result<String, String> {
    let mut text = regex.to_owned();
    for (tag, value) in [
        ("<ADDR>", "<HOST>"),
        ("<IP4>", "<HOST>"),
        ("<IP6>", "<HOST>"),
        ("<SUBNET>", "<HOST>"),
        ("<CIDR>", "<HOST>"),
        ("\\Z", "\\z"),
        ("(?iu)", "(?i)"),
        ("(?u)", ""),
    ] {
        text = text.replace(tag, value);
    }
    if text.contains("<DNS>") {
        return Err("<DNS> requires a name to be resolved".to_owned());
    }
    text = account(&text);
    text = tags(&text);
    if find_outside_classes(&text, "(?(").is_some() {
        return Err("a condition on another group, (?(…)…), cannot run in linear time".to_owned());
    }
    // An address followed by a port.
    for port in [r":\d+", r":\d{1,5}", r":\d{,5}"] {
        text = text.replace(&format!("<HOST>{port}"), "<HOSTPORT>");
    }
    // Any other `<…>` is literal.
    text = literal_angles(&text);
    if text.contains("(?P=") {
        let (loose, names) =
            without_backreferences(&text).ok_or("a back-reference before the address cannot run in linear time")?;
        text = loose;
        for name in names {
            changed.push(format!("the back-reference (?P={name}) was loosened; the rule matches more than fail2ban's"));
        }
    }
    let mut fragments = Fragments::default();
    if text.contains("(?!") {
        text = without_lookaheads(&text, &mut fragments)
            .ok_or("its negative look-ahead cannot run in linear time; write the exception under `ignoreregex`")?;
        changed
            .push("its negative look-ahead was rewritten; the rule may match slightly less than fail2ban's".to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    let mut class = false;
    while let Some(c) = rest.chars().next() {
        let length = c.len_utf8();
        if c == '\\' {
            let next = rest.get(length..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
            out.push_str(rest.get(..length + next).unwrap_or(rest));
            rest = rest.get(length + next..).unwrap_or_default();
            continue;
        }
        if class {
            match c {
                ']' => class = false,
                // In `regex` these start a nested class or a set operation.
                '[' | '&' | '~' => out.push('\\'),
                _ => {}
            }
        } else if c == '[' {
            class = true;
            let lead = if rest.starts_with("[^]") {
                3
            } else if rest.starts_with("[]") || rest.starts_with("[^") {
                2
            } else {
                1
            };
            let lead = rest.get(..lead).unwrap_or("[");
            match lead.strip_suffix(']') {
                // A `]` at the start is a member of the class.
                Some(open) => {
                    out.push_str(open);
                    out.push_str("\\]");
                }
                None => out.push_str(lead),
            }
            rest = rest.get(lead.len()..).unwrap_or_default();
            continue;
        } else if rest.starts_with("(?!") || rest.starts_with("(?<!") || rest.starts_with("(?<=") {
            return Err("look-around cannot run in linear time; write the exception under `ignoreregex`".to_owned());
        } else if rest.starts_with("(?=") {
            let length = group_length(rest).ok_or("a parenthesis is not closed")?;
            changed.push(format!(
                "the look-ahead {} was omitted; the rule matches more than fail2ban's",
                rest.get(..length).unwrap_or(rest)
            ));
            rest = rest.get(length..).unwrap_or_default();
            continue;
        } else if rest.starts_with("(?#") {
            let length = group_length(rest).ok_or("a parenthesis is not closed")?;
            rest = rest.get(length..).unwrap_or_default();
            continue;
        } else if rest.starts_with("{,") {
            out.push_str("{0,");
            rest = rest.get(2..).unwrap_or_default();
            continue;
        } else if c == '{' && !is_repetition(rest) {
            // In Python a brace that is not a repetition is literal.
            out.push('\\');
        }
        out.push(c);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(fragments.insert(&out))
}

/// Whether `text` starts with `{2}`, `{2,}` or `{2,5}`.
fn is_repetition(text: &str) -> bool {
    let inner = text.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inner, _)| inner);
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    !least.is_empty() && [least, most].iter().all(|count| count.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Makes `<F-USER>` and fail2ban's further tags for the account the group `user`.
fn account(text: &str) -> String {
    let tags = ["USER", "ALT_USER", "ALT_USER1", "ALT_USER2"];
    tags.iter().fold(text.to_owned(), |text, tag| {
        text.replace(&format!("<F-{tag}>"), "(?P<user>").replace(&format!("</F-{tag}>"), ")")
    })
}

/// Replaces `<F-ID>…</F-ID>` and similar tags, which mark a part for fail2ban's actions, by an unnamed group.
fn tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let end = from.find('>').unwrap_or(from.len().saturating_sub(1));
        let tag = from.get(..=end).unwrap_or(from);
        if tag.starts_with("</F-") {
            out.push(')');
        } else if tag.ends_with("/>") && tag.starts_with("<F-") {
            // A tag without content is dropped.
        } else if tag.starts_with("<F-") {
            out.push_str("(?:");
        } else {
            out.push('<');
            rest = from.get(1..).unwrap_or_default();
            continue;
        }
        rest = from.get(tag.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Escapes a literal `<`, as in `<NOSRV>`, so that it does not start a piece.
fn literal_angles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let group = before.ends_with("(?P") || before.ends_with("(?");
        out.push_str(if group || from.starts_with("<HOST>") || from.starts_with("<HOSTPORT>") { "<" } else { "\\x3C" });
        rest = from.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARTS: [&str; 44] = [
        "^",
        "$",
        "(",
        ")",
        "(?:",
        "(?!",
        "(?=",
        "(?<!",
        "(?P<a>",
        "(?P=a)",
        "(?(a)",
        "(?#",
        "[",
        "]",
        "[^",
        "[^]",
        "[]",
        "{",
        "}",
        "{,",
        "{2,3}",
        "*",
        "+",
        "?",
        "|",
        ".",
        "\\",
        "\\S",
        "\\b",
        "<HOST>",
        "<ADDR>",
        "<F-USER>",
        "</F-USER>",
        "<F-ID/>",
        "<F-CONTENT>",
        "</F-CONTENT>",
        "<",
        ">",
        "&&",
        "~",
        "ä",
        "abc",
        " ",
        "\u{e000}0\u{e001}",
    ];

    proptest! {
        #[test]
        fn arbitrary_expressions_do_not_panic(
            regex in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..24),
            prefix in prop::option::of(prop::collection::vec(prop::sample::select(&PARTS[..]), 0..12)),
            ignore: bool,
        ) {
            let prefix = prefix.map(|parts| parts.concat());
            let _ = rewrite(&regex.concat(), prefix.as_deref(), "failregex-1", ignore, &mut Vec::new());
            let _ = crate::fail2ban::dates::of_pattern(&regex.concat());
        }
    }
}
