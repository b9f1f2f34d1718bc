//! `<HOST>`, `<HOSTPORT>`, `<FORWARDED>` and the pieces of a filter's `definitions`, put into an expression.

use std::collections::BTreeMap;

use super::error::Problem;
use super::pieces;

/// Text that can be an address, bare or in brackets, with a zone or a port; [`super::parse_source`] decides.
///
/// It asks for three dots or two colons, so that after a greedy `.*` a port is not taken for an address.
const HOST: &str = r"\[?(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?:[Ii][Pp][Vv]6:)?[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.\-]+)?)\]?(?::[0-9]{1,5})?";
/// Text that can be an IPv4 address.
const IPV4: &str = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}";
/// Text that can be an IPv6 address; where a port always follows it, the last colon is the port's.
const IPV6: &str = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*(?:%[0-9A-Za-z_.\-]+)?";
/// Text that can be a list of addresses; [`super::forwarded_source`] decides. Its right part is addresses and commas alone, so
/// that it does not go on into what stands behind the list; its left part is whatever the client sent, but as little of it as
/// possible, and no quote or bracket.
const FORWARDED: &str = concat!(
    r#"(?:[^'"\[\]]*?, ?)??"#,
    r#"[\["]{0,2}[0-9A-Za-z:.%_\-]+[\]"]{0,2}(?::[0-9]{1,5}"?)?(?: ?, ?[\["]{0,2}[0-9A-Za-z:.%_\-]+[\]"]{0,2}(?::[0-9]{1,5}"?)?)*"#
);
/// What the groups are called into which `<HOST>` and `<FORWARDED>` turn; a number follows.
pub(super) const HOST_GROUP: &str = "banmesh_host_";
pub(super) const FORWARDED_GROUP: &str = "banmesh_forwarded_";

const MAX_DEPTH: usize = 8;

/// Which `<…>` are pieces.
#[derive(Clone, Copy)]
pub(super) enum Pieces<'a> {
    /// `<HOST>`, `<HOSTPORT>`, `<FORWARDED>`, these, and those of [`pieces`]; any other is an error.
    Defined(&'a BTreeMap<String, String>),
    /// `<HOST>`, `<HOSTPORT>` and `<FORWARDED>`; any other is plain text.
    Plain,
}

/// `regex` with every piece put in.
pub(super) fn expand(regex: &str, pieces: Pieces<'_>, limit: usize) -> Result<String, Problem> {
    let mut out = String::with_capacity(regex.len() * 2);
    let mut sources = 0;
    put_in(regex, pieces, &mut out, &mut sources, limit, &mut Vec::new())?;
    Ok(out)
}

fn put_in<'a>(
    text: &'a str,
    pieces: Pieces<'a>,
    out: &mut String,
    sources: &mut usize,
    limit: usize,
    open: &mut Vec<&'a str>,
) -> Result<(), Problem> {
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        // `(?<name>` and `(?P<name>` begin a group.
        let begins_group = before.ends_with("(?") || before.ends_with("(?P");
        let name = if begins_group { None } else { piece_name(from) };
        let Some(name) = name else {
            out.push('<');
            rest = &from[1..];
            continue;
        };
        rest = &from[name.len() + 2..];
        match (name, pieces) {
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
            (_, Pieces::Plain) => {
                out.push('<');
                out.push_str(name);
                out.push('>');
            }
            (_, Pieces::Defined(definitions)) => {
                let definition = match definitions.get(name) {
                    Some(own) => own.as_str(),
                    None => built_in(name).ok_or_else(|| Problem::UndefinedPiece(name.to_owned()))?,
                };
                if open.contains(&name) || open.len() >= MAX_DEPTH {
                    return Err(Problem::CircularPiece(name.to_owned()));
                }
                open.push(name);
                out.push_str("(?:");
                put_in(definition, pieces, out, sources, limit, open)?;
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

/// `name` when `text` begins with `<name>`.
fn piece_name(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('<')?;
    let end = inner.find('>')?;
    let name = inner.get(..end)?;
    let mut bytes = name.bytes();
    let starts_well = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    (starts_well && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')).then_some(name)
}
