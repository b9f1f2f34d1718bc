//! One expression of fail2ban's: Python's syntax, with tags, into ours.

use super::dates::DATE;
use super::lookaround::{Pieces, find_outside_classes, group_length, without_backreferences, without_lookaheads};
use crate::{Detector, Filter, Mode, Rule};

/// One rule of ours from one of fail2ban's; `None` with a note when it cannot be.
pub(super) fn rewrite(
    regex: &str,
    prefix: Option<&str>,
    label: &str,
    ignore: bool,
    notes: &mut Vec<String>,
) -> Option<Rule> {
    let mut skip = |why: &str| {
        notes.push(format!("{label}: not taken over: {why}: {regex}"));
        None
    };
    if regex.contains("<SKIPLINES>") {
        return skip("it goes over several lines");
    }
    if regex.contains("<F-NOFAIL>") || regex.contains("<F-MLFGAINED>") {
        return skip("it is no offence by itself but joins lines of one session, and ours judge each line alone");
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
                notes.push(format!("{label}: it requires no text of three letters, so it runs on every line"));
            }
            if !ignore && !rule.regex.starts_with('^') {
                notes.push(format!("{label}: it is not tied to the beginning of the message: check what an outsider can write before its match"));
            }
            Some(rule)
        }
        Err(errors) => {
            let why = errors.first().map(|error| error.problem.to_string()).unwrap_or_default();
            notes.push(format!("{label}: not taken over: {why}: {regex}"));
            None
        }
    }
}

/// `prefregex` finds the content, `failregex` is matched within it: here as one expression.
fn with_prefix(prefix: &str, regex: &str) -> String {
    let (Some(start), Some(end)) = (prefix.find("<F-CONTENT>"), prefix.find("</F-CONTENT>")) else {
        return regex.to_owned();
    };
    let (before, after) = (&prefix[..start], &prefix[end + "</F-CONTENT>".len()..]);
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

/// fail2ban cuts the time out of a line before it looks at it, and what is left begins with the blank behind it, or has empty
/// brackets. Our lines have their time, or a syslog header was taken off with the blank.
fn with_date(regex: &str) -> String {
    let text = regex.replace(r"\[\]", r"\[<date>\]").replace(r"msg=audit\(:", r"msg=audit\(<date>:");
    match text.strip_prefix('^') {
        Some(rest) if rest.starts_with(' ') => format!("^<date> ?{}", &rest[1..]),
        Some(rest) => format!("^<date>{rest}"),
        None => text,
    }
}

/// Python's expression with fail2ban's tags, in the syntax of the crate `regex`.
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
        return Err("<DNS> would need a name to be resolved".to_owned());
    }
    if text.contains("(?P=user)") && !text.contains("(?P<user>") {
        text = text.replacen("<F-USER>", "(?P<user>", 1).replacen("</F-USER>", ")", 1);
    }
    text = tags(&text);
    if find_outside_classes(&text, "(?(").is_some() {
        return Err("a condition on another group, (?(…)…), cannot run in linear time".to_owned());
    }
    // An address with a port behind it.
    for port in [r":\d+", r":\d{1,5}", r":\d{,5}"] {
        text = text.replace(&format!("<HOST>{port}"), "<HOSTPORT>");
    }
    // What is left in `<…>` and is no tag stands for itself.
    text = literal_angles(&text);
    if text.contains("(?P=") {
        let (loose, names) = without_backreferences(&text)
            .ok_or("a back-reference in front of the address cannot run in linear time, nor be left out")?;
        text = loose;
        for name in names {
            changed.push(format!("the back-reference (?P={name}) was loosened: the rule matches more than fail2ban's"));
        }
    }
    let mut pieces = Pieces::default();
    if text.contains("(?!") {
        text = without_lookaheads(&text, &mut pieces)
            .ok_or("this look-ahead cannot run in linear time; write the exception under `ignoreregex`")?;
        changed.push(
            "its negative look-ahead was spelled out: the rule may match a little less than fail2ban's".to_owned(),
        );
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
                // In ours these begin a nested class or a set operation.
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
                // A `]` that comes first is a member.
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
            let length = group_length(rest).ok_or("a bracket is not closed")?;
            changed.push(format!(
                "the look-ahead {} was left out: the rule matches more than fail2ban's",
                &rest[..length]
            ));
            rest = rest.get(length..).unwrap_or_default();
            continue;
        } else if rest.starts_with("(?#") {
            let length = group_length(rest).ok_or("a bracket is not closed")?;
            rest = rest.get(length..).unwrap_or_default();
            continue;
        } else if rest.starts_with("{,") {
            out.push_str("{0,");
            rest = rest.get(2..).unwrap_or_default();
            continue;
        } else if c == '{' && !is_repetition(rest) {
            // In Python a brace that counts nothing is a brace.
            out.push('\\');
        }
        out.push(c);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(pieces.put_back(&out))
}

/// Whether `text` begins with `{2}`, `{2,}` or `{2,5}`.
fn is_repetition(text: &str) -> bool {
    let inner = text.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inner, _)| inner);
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    !least.is_empty() && [least, most].iter().all(|count| count.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `<F-USER>…</F-USER>` marks a part for fail2ban's actions: here it is only a group.
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
            // A mark without content.
        } else if tag.starts_with("<F-") {
            out.push_str("(?:");
        } else {
            out.push('<');
            rest = &from[1..];
            continue;
        }
        rest = from.get(tag.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// `<NOSRV>` in a form that is not taken for a piece.
fn literal_angles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let group = before.ends_with("(?P") || before.ends_with("(?");
        out.push_str(if group || from.starts_with("<HOST>") || from.starts_with("<HOSTPORT>") { "<" } else { "\\x3C" });
        rest = &from[1..];
    }
    out.push_str(rest);
    out
}
