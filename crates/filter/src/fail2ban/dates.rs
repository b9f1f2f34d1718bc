//! Expressions for the time in a line. fail2ban removes the time before it matches a line; here the line keeps it, and the
//! imported expressions match it.

/// Matches the usual formats, for filters without a `datepattern`.
pub(super) const DATE: &str = concat!(
    r"\[?(?:(?:[A-Z][a-z]{2},? )?[A-Z][a-z]{2} {1,2}[0-9]{1,2} [0-9:.,]{7,15}(?: [0-9]{4})?",
    r"|[0-9]{4}[\-/.:][0-9]{2}[\-/.:][0-9]{2}[T \-:][0-9:.,]{7,15}(?: ?(?:Z|[+\-][0-9]{2}:?[0-9]{2}|[A-Z]{3,4}))?",
    r"|[0-9]{1,2}[\-/](?:[0-9]{2}|[A-Z][a-z]{2})[\-/][0-9]{4}[ :][0-9:.,]{7,15}(?: ?[+\-][0-9]{4}| GMT)?",
    r"|[0-9]{6} {1,2}[0-9:]{7,8}|@[0-9a-f]{24}|[0-9]{10}(?:\.[0-9]{3,6})?)\]?"
);

/// Expressions for the fields `%Y` and so on of a `datepattern`. The modifiers `E` and `O` are ignored.
const FIELDS: [(char, &str); 17] = [
    ('Y', "[0-9]{4}"),
    ('y', "[0-9]{2}"),
    ('m', "[0-9]{1,2}"),
    ('d', "[0-9]{1,2}"),
    ('H', "[0-9]{1,2}"),
    ('I', "[0-9]{1,2}"),
    ('k', "[0-9 ]{1,2}"),
    ('l', "[0-9 ]{1,2}"),
    ('M', "[0-9]{1,2}"),
    ('S', "[0-9]{1,2}"),
    ('f', "[0-9]{1,6}"),
    ('b', "[A-Za-z]{3}"),
    ('B', "[A-Za-z]{3,9}"),
    ('a', "[A-Za-z]{3}"),
    ('A', "[A-Za-z]{6,9}"),
    ('p', "[AaPp][Mm]"),
    ('z', "(?:Z|[+\\-][0-9]{2}:?[0-9]{2})"),
];

/// Converts a `datepattern` to an expression for the time, without what may come before it. `None` if the pattern is not
/// supported.
pub(super) fn of_pattern(pattern: &str) -> Option<String> {
    let pattern = pattern.trim();
    let (anchored, pattern) = match pattern.strip_prefix("{^LN-BEG}").or_else(|| pattern.strip_prefix('^')) {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    // In a pattern with a group only the group is the time.
    if pattern.contains("({DATE}") || pattern.contains("(\\[{DATE}") || pattern.is_empty() {
        return Some(DATE.to_owned());
    }
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        if let Some((name, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            out.push_str(named(name)?);
            rest = after;
        } else if c == '%' {
            let after = rest.trim_start_matches('%').trim_start_matches(['E', 'O']).trim_start_matches('x');
            let field = after.chars().next()?;
            out.push_str(FIELDS.iter().find(|(known, _)| *known == field).map(|(_, text)| *text)?);
            rest = after.get(field.len_utf8()..)?;
        } else if let Some(after) = rest.strip_prefix("(?P<_sep>[-/.])").or_else(|| rest.strip_prefix("(?P=_sep)")) {
            out.push_str("[\\-/.]");
            rest = after;
        } else {
            // An unescaped `<` would start a piece.
            match c {
                '<' if !out.ends_with("(?P") => out.push_str("\\x3C"),
                c => out.push(c),
            }
            rest = rest.get(c.len_utf8()..)?;
        }
    }
    if let Some(known) = named(&out) {
        out = known.to_owned();
    }
    let valid = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(&out).is_ok();
    // A pattern that starts with any text would match everywhere.
    (valid && (anchored || !out.starts_with(".*"))).then_some(out)
}

fn named(name: &str) -> Option<&'static str> {
    match name {
        "DATE" | "NONE" => Some(DATE),
        "EPOCH" | "Epoch" | "LEPOCH" => Some(r"\[?[0-9]{10}(?:\.[0-9]{3,6})?\]?"),
        "TAI64N" => Some("@[0-9a-f]{24}"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_patterns_are_converted() {
        for (pattern, time) in [
            (r"^t=%%Y-%%m-%%dT%%H:%%M:%%S%%z", "t=2020-10-19T17:44:33+0200"),
            (r"^\[%%d/%%b/%%Y %%H:%%M:%%S\]", "[17/Jun/2011 17:00:45]"),
            (r"{^LN-BEG}%%b-%%d-%%Exy %%H:%%M:%%S", "Apr-07-13 07:08:36"),
            (r"^<W>{DATE}", "<W>2015-11-29 16:38:01.818"),
            (r"{^LN-BEG}Epoch", "[1387288694]"),
            (r"{^LN-BEG}TAI64N", "@400000005c9b0d3c2a3b4c5d"),
            (r"^%%b %%d, %%ExY %%I:%%M:%%S %%p", "Apr 15, 2013 8:34:08 PM"),
            (
                r"{^LN-BEG}%%ExY(?P<_sep>[-/.])%%m(?P=_sep)%%d[T ]%%H:%%M:%%S(?:[.,]%%f)?(?:\s*%%z)?",
                "2013/04/15 20:34:08",
            ),
            (r"^[^\[]*\[({DATE})", "15/Apr/2013:20:34:08 +0200"),
            ("", "Nov 22 20:00:00"),
        ] {
            let expression = of_pattern(pattern).unwrap_or_else(|| panic!("{pattern}"));
            let regex = regex::bytes::RegexBuilder::new(&format!("^(?:{expression})$")).unicode(false).build().unwrap();
            assert!(regex.is_match(time.as_bytes()), "{pattern}: {expression} on {time}");
        }
        for pattern in ["{NOSUCH}", "^%%Q", "^(%%Y"] {
            assert_eq!(of_pattern(pattern), None, "{pattern}");
        }
    }
}
