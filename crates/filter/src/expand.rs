//! Inserts `<HOST>`, `<HOSTPORT>`, `<FORWARDED>` and the pieces of a filter's `definitions` into an expression.

use std::collections::BTreeMap;

use crate::error::Problem;
use crate::pieces;
use crate::rule::OTHER_USER_GROUP;

/// Matches text that may be an address, bare or in brackets, with a zone or a port. [`crate::parse_source`] validates it.
///
/// It requires three dots or two colons, so that after a greedy `.*` a port is not read as an address.
const HOST: &str = r"\[?(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?:[Ii][Pp][Vv]6:)?[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.\-]+)?)\]?(?::[0-9]{1,5})?";
/// Matches text that may be an IPv4 address.
const IPV4: &str = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}";
/// Matches text that may be an IPv6 address. A port must follow, so the last colon belongs to the port.
const IPV6: &str = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.\-]+)?";
/// Matches text that may be a list of addresses. [`crate::forwarded_source`] validates it.
///
/// The right part consists of addresses and commas only, so that the match does not extend beyond the list. The left part is
/// what the client sent: as little of it as possible, without quotes and brackets.
const FORWARDED: &str = concat!(
    r#"(?:[^'"\[\]]*?, ?)??"#,
    r#"[\["]{0,2}[0-9A-Za-z:.%_\-]+[\]"]{0,2}(?::[0-9]{1,5}"?)?(?: ?, ?[\["]{0,2}[0-9A-Za-z:.%_\-]+[\]"]{0,2}(?::[0-9]{1,5}"?)?)*"#
);
/// The prefixes of the group names that replace `<HOST>` and `<FORWARDED>`. A number follows.
pub(super) const HOST_GROUP: &str = "banmesh_host_";
pub(super) const FORWARDED_GROUP: &str = "banmesh_forwarded_";

/// How deeply definitions may be nested.
const MAX_DEPTH: usize = 8;

/// Which placeholders `<…>` are replaced.
#[derive(Clone, Copy)]
pub(super) enum Placeholders<'a> {
    /// `<HOST>`, `<HOSTPORT>`, `<FORWARDED>`, these definitions, and [`pieces::BUILT_IN`]. Any other name is an error.
    Defined(&'a BTreeMap<String, String>),
    /// `<HOST>`, `<HOSTPORT>` and `<FORWARDED>`. Any other name is plain text.
    AddressOnly,
}

/// Returns `regex` with all placeholders replaced.
pub(super) fn expand(regex: &str, placeholders: Placeholders<'_>, limit: usize) -> Result<String, Problem> {
    let mut out = String::with_capacity(regex.len() * 2);
    let mut sources = 0;
    insert(regex, placeholders, &mut out, &mut sources, limit, &mut Vec::new())?;
    Ok(with_distinct_accounts(&out))
}

/// Renames all groups `user` but the first, because a piece that has this group may occur several times.
fn with_distinct_accounts(regex: &str) -> String {
    const GROUP: &str = "(?P<user>";
    let mut parts = regex.split(GROUP);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (number, part) in parts.enumerate() {
        match number {
            0 => out.push_str(GROUP),
            _ => out.push_str(&format!("(?P<{OTHER_USER_GROUP}_{number}>")),
        }
        out.push_str(part);
    }
    out
}

fn insert<'a>(
    text: &'a str,
    placeholders: Placeholders<'a>,
    out: &mut String,
    sources: &mut usize,
    limit: usize,
    open: &mut Vec<&'a str>,
) -> Result<(), Problem> {
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        // `(?<name>` and `(?P<name>` start a group.
        let begins_group = before.ends_with("(?") || before.ends_with("(?P");
        let name = if begins_group { None } else { piece_name(from) };
        let Some(name) = name else {
            out.push('<');
            rest = from.get(1..).unwrap_or_default();
            continue;
        };
        rest = from.get(name.len() + 2..).unwrap_or_default();
        match (name, placeholders) {
            ("HOST" | "ADDR", _) => {
                *sources += 1;
                out.push_str(&format!("(?P<{HOST_GROUP}{sources}>{HOST})"));
            }
            ("HOSTPORT", _) => {
                *sources += 1;
                let (v4, v6) = (format!("{HOST_GROUP}{sources}v4"), format!("{HOST_GROUP}{sources}v6"));
                out.push_str(&format!(r"(?:(?P<{v4}>{IPV4})(?::[0-9]{{1,5}})?|\[?(?P<{v6}>{IPV6})\]?:[0-9]{{1,5}})"));
            }
            ("FORWARDED", _) => {
                *sources += 1;
                out.push_str(&format!("(?P<{FORWARDED_GROUP}{sources}>{FORWARDED})"));
            }
            (_, Placeholders::AddressOnly) => {
                out.push('<');
                out.push_str(name);
                out.push('>');
            }
            (_, Placeholders::Defined(definitions)) => {
                let definition = match definitions.get(name) {
                    Some(own) => own.as_str(),
                    None => built_in(name).ok_or_else(|| Problem::UndefinedPiece(name.to_owned()))?,
                };
                if open.contains(&name) || open.len() >= MAX_DEPTH {
                    return Err(Problem::CircularPiece(name.to_owned()));
                }
                open.push(name);
                out.push_str("(?:");
                insert(definition, placeholders, out, sources, limit, open)?;
                out.push(')');
                open.pop();
            }
        }
        if out.len() > limit {
            return Err(Problem::TooLong { length: out.len(), limit });
        }
    }
    out.push_str(rest);
    if out.len() > limit {
        return Err(Problem::TooLong { length: out.len(), limit });
    }
    Ok(())
}

fn built_in(name: &str) -> Option<&'static str> {
    pieces::BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, piece)| *piece)
}

/// Returns `name` if `text` starts with `<name>`.
fn piece_name(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('<')?;
    let end = inner.find('>')?;
    let name = inner.get(..end)?;
    let mut bytes = name.bytes();
    let starts_well = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    (starts_well && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')).then_some(name)
}
