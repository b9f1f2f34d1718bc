//! One line of a list.

use std::net::{IpAddr, Ipv4Addr};

use super::Format;
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing: an empty line, a comment, a heading.
    Nothing,
    /// An entry.
    Network(Target),
    /// An entry: first and last address, of one family.
    Range(Address, Address),
    /// The number of records in the list.
    Records(usize),
    /// Something that the format does not have.
    Unknown,
}

/// Reads a line without white space around it.
pub(super) fn read(line: &str, format: Format) -> Line {
    if line.is_empty() || line.starts_with('#') || line.starts_with(';') || line.starts_with("//") {
        return Line::Nothing;
    }
    match format {
        Format::Plain => plain(line),
        Format::Spamhaus => spamhaus(line),
        Format::Dshield => dshield(line),
        Format::Tor => tor(line),
    }
}

fn plain(line: &str) -> Line {
    let line = line.split(['#', ';']).next().unwrap_or_default();
    // `a - b` is a range as well.
    if let Some((first, last)) = line.split_once(" - ") {
        return range(first.trim(), word(last));
    }
    let word = word(line);
    match word.split_once('-') {
        Some((first, last)) => range(first, last),
        None => network(word),
    }
}

/// The first word of a line, or its first cell if it has several.
fn word(text: &str) -> &str {
    text.trim().split([' ', '\t', ',', '|']).next().unwrap_or_default().trim_matches('"')
}

/// An address, or a network with or without bits beyond its prefix.
fn network(text: &str) -> Line {
    let Some((address, prefix)) = text.split_once('/') else {
        return text.parse().map_or(Line::Unknown, |address| Line::Network(Target::host(address)));
    };
    let (Ok(address), Ok(prefix)) = (address.parse::<IpAddr>(), prefix.parse::<u8>()) else { return Line::Unknown };
    Target::network(address, prefix).map_or(Line::Unknown, Line::Network)
}

fn range(first: &str, last: &str) -> Line {
    let (Ok(first), Ok(last)) = (first.parse::<Address>(), last.parse::<Address>()) else { return Line::Unknown };
    let ordered = first.is_ipv4() == last.is_ipv4() && first.bits() <= last.bits();
    if ordered { Line::Range(first, last) } else { Line::Unknown }
}

#[derive(serde::Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    cidr: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<std::borrow::Cow<'a, str>>,
    records: Option<usize>,
}

fn spamhaus(line: &str) -> Line {
    let Ok(record) = serde_json::from_str::<Record<'_>>(line) else { return Line::Unknown };
    match (record.cidr, record.kind.as_deref(), record.records) {
        (Some(cidr), _, _) => network(&cidr),
        (None, Some("metadata"), Some(records)) => Line::Records(records),
        _ => Line::Unknown,
    }
}

/// First address, last address, and what was a netmask once and is a prefix length now. The first two say everything.
fn dshield(line: &str) -> Line {
    let mut cells = line.split('\t');
    match (cells.next(), cells.next()) {
        (Some("Start"), _) => Line::Nothing,
        (Some(first), Some(last)) => range(first.trim(), last.trim()),
        _ => Line::Unknown,
    }
}

fn tor(line: &str) -> Line {
    let mut words = line.split(' ');
    match words.next() {
        Some("ExitAddress") => network(words.next().unwrap_or_default()),
        Some("ExitNode" | "Published" | "LastStatus") => Line::Nothing,
        Some(word) => network(word),
        None => Line::Unknown,
    }
}

/// The networks that make up the range from `first` to `last`, at most 252 of them.
pub(super) fn networks(first: Address, last: Address) -> impl Iterator<Item = Target> {
    let mut next = Some(first.bits());
    let last = last.bits();
    std::iter::from_fn(move || {
        let start = next?;
        // The widest network that begins here and ends in the range.
        let room = (last - start).checked_add(1).map_or(128, |count| 127 - count.leading_zeros());
        let size = start.trailing_zeros().min(room);
        let prefix = u8::try_from(128 - size).unwrap_or(128);
        let end = start | !banmesh_types::target::mask(prefix);
        next = end.checked_add(1).filter(|_| end < last);
        Some(Target::from_bits(start, prefix))
    })
}

/// The IPv4 address in the lower 32 of 128 bits.
pub(super) fn low_word(bits: u128) -> u32 {
    let [.., a, b, c, d] = bits.to_be_bytes();
    Ipv4Addr::new(a, b, c, d).to_bits()
}
