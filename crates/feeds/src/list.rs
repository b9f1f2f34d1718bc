//! Reads a list. It counts as a whole or not at all: a cut list would drop bans, and a page of HTML or a list of another kind would
//! replace good entries by wrong ones.

mod entry;

use std::fmt;

use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;
use banmesh_types::special::special_range;
use banmesh_types::target::{Target, mask};

use crate::ranges::merged;

/// The longest list, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// The most entries of a list.
pub const MAX_ENTRIES: usize = 2_000_000;
/// A list may change by this many entries, whatever share of it they are.
const FREE_CHANGE: usize = 100;
/// The share by which a list may change, in percent.
const MAX_CHANGE: usize = 30;
/// The widest networks that are believed: a /8 of IPv4 and a /19 of IPv6, as prefixes in 128 bits.
const WIDEST: (u8, u8) = (96 + 8, 19);
/// The share of all IPv4 addresses, or of all of IPv6, that a list may have, in percent.
const MAX_SHARE: u64 = 10;

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One address, network or range `a-b` per line; anything after it is ignored. `#`, `;` and `//` begin a comment.
    Plain,
    /// Spamhaus: one JSON object per line with `cidr`. The last line has the number of records.
    Spamhaus,
    /// DShield: tab-separated first address, last address, and prefix length or netmask.
    Dshield,
    /// Tor: one address per line, or blocks with lines `ExitAddress ADDRESS TIME`.
    Tor,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Spamhaus, Self::Dshield, Self::Tor];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Spamhaus => "spamhaus",
            Self::Dshield => "dshield",
            Self::Tor => "tor",
        }
    }
}

/// A list that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// First and last addresses, sorted and apart from each other.
    pub(crate) v4: Vec<(u32, u32)>,
    pub(crate) v6: Vec<(u128, u128)>,
    /// How many entries were understood and kept.
    pub entries: usize,
    /// How many entries were left out, because no feed may ever have them: private ranges and others that are not public,
    /// documentation, and networks wider than /8 (IPv6: /19).
    pub left_out: usize,
    /// How many lines were not understood: at most one in a hundred.
    pub unknown: usize,
}

/// Why a list does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no line at all.
    #[error("the file is empty")]
    Empty,
    /// It is a web page.
    #[error("it is a web page (HTML) and not a list; check the URL, and whether the publisher wants a login or a key")]
    Html,
    /// It is longer than [`MAX_BYTES`].
    #[error("it is longer than {} MiB", MAX_BYTES >> 20)]
    TooLong,
    /// It has more than [`MAX_ENTRIES`].
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// It has a large part of the internet.
    #[error(
        "it has {percent} % of all IPv4 or IPv6 addresses, more than the {MAX_SHARE} % that a list may have; to treat countries or networks as a whole, use `geo.rules`"
    )]
    TooWide {
        /// The share of all addresses of IPv4 or IPv6, the greater one.
        percent: u64,
    },
    /// Too many lines are not entries.
    #[error(
        "{unknown} of {lines} lines are not entries of the format `{format}`, the first of them in line {first}; check `format` and the URL"
    )]
    NotUnderstood {
        /// How many lines were not understood.
        unknown: usize,
        /// How many lines there are, without comments.
        lines: usize,
        /// The number of the first line that was not understood.
        first: usize,
        /// The format.
        format: &'static str,
    },
    /// The last line has no end.
    #[error("its last line has no line feed, so it may be cut off")]
    Unfinished,
    /// The line with the number of records is missing.
    #[error("its last line is not the one with the number of records, so it is cut off")]
    NoRecords,
    /// It has another number of records than its last line says.
    #[error("it has {found} records, but says that it has {announced}, so it is incomplete")]
    Records {
        /// The number in the last line.
        announced: usize,
        /// The number of records found.
        found: usize,
    },
    /// It shrank or grew too much at once.
    #[error(
        "it changed from {before} to {after} entries at once, so it is held back; look at it, and use `banmesh feeds update NAME --accept` if it is right"
    )]
    Changed {
        /// Entries of the list in use.
        before: usize,
        /// Entries of the new one.
        after: usize,
    },
}

/// Whether the end of the bytes is known to be the end of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// The server announced the length, and that many bytes arrived.
    Announced,
    /// Nothing was announced, so the last line must have an end.
    Unknown,
}

/// Reads a list.
///
/// # Errors
/// When it does not count.
pub fn read(bytes: &[u8], format: Format, length: Length) -> Result<List, Refusal> {
    if bytes.len() > MAX_BYTES {
        return Err(Refusal::TooLong);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let Some(first) = bytes.iter().position(|byte| !byte.is_ascii_whitespace()) else { return Err(Refusal::Empty) };
    if bytes[first] == b'<' {
        return Err(Refusal::Html);
    }
    if length == Length::Unknown && format != Format::Spamhaus && bytes.last() != Some(&b'\n') {
        return Err(Refusal::Unfinished);
    }
    let mut reading = Reading::default();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        reading.line(number + 1, line, format)?;
    }
    reading.list(format)
}

/// Whether `list` may replace one with `before` entries, or is held back because it changed too much at once.
///
/// # Errors
/// When it is held back.
pub fn plausible(list: &List, before: usize) -> Result<(), Refusal> {
    let after = list.entries;
    let change = before.abs_diff(after);
    // Of the larger one: a list that loses 30 % may get them back.
    if change > FREE_CHANGE && change.saturating_mul(100) > before.max(after).saturating_mul(MAX_CHANGE) {
        return Err(Refusal::Changed { before, after });
    }
    Ok(())
}

#[derive(Default)]
struct Reading {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    entries: usize,
    left_out: usize,
    lines: usize,
    unknown: usize,
    first_unknown: usize,
    /// The number of records that the list says it has. Nothing may follow it.
    records: Option<usize>,
}

impl Reading {
    fn line(&mut self, number: usize, line: &[u8], format: Format) -> Result<(), Refusal> {
        let found = match std::str::from_utf8(line) {
            Ok(line) => entry::read(line.trim(), format),
            Err(_) => entry::Line::Unknown,
        };
        match found {
            entry::Line::Nothing => return Ok(()),
            entry::Line::Records(records) if self.records.is_none() => {
                self.records = Some(records);
                return Ok(());
            }
            entry::Line::Records(_) | entry::Line::Unknown => {
                self.unknown += 1;
                if self.unknown == 1 {
                    self.first_unknown = number;
                }
            }
            entry::Line::Network(target) => self.keep(target),
            // Its parts would be narrow enough.
            entry::Line::Range(first, last) if is_too_wide(first, last) => self.left_out += 1,
            entry::Line::Range(first, last) => entry::networks(first, last).for_each(|target| self.keep(target)),
        }
        self.lines += 1;
        if self.entries + self.left_out > MAX_ENTRIES {
            return Err(Refusal::TooMany);
        }
        Ok(())
    }

    fn keep(&mut self, target: Target) {
        if is_never_listed(target) {
            self.left_out += 1;
            return;
        }
        self.entries += 1;
        let (first, last) = (target.bits(), target.bits() | !mask(target.prefix128()));
        if target.is_ipv4() {
            self.v4.push((entry::low_word(first), entry::low_word(last)));
        } else {
            self.v6.push((first, last));
        }
    }

    fn list(self, format: Format) -> Result<List, Refusal> {
        if self.unknown * 100 > self.lines {
            return Err(Refusal::NotUnderstood {
                unknown: self.unknown,
                lines: self.lines,
                first: self.first_unknown,
                format: format.as_str(),
            });
        }
        if format == Format::Spamhaus {
            let announced = self.records.ok_or(Refusal::NoRecords)?;
            if announced != self.lines {
                return Err(Refusal::Records { announced, found: self.lines });
            }
        }
        let Self { v4, v6, entries, left_out, unknown, .. } = self;
        let list = List { v4: merged(v4), v6: merged(v6), entries, left_out, unknown };
        let addresses: u64 = list.v4.iter().map(|(first, last)| u64::from(last - first) + 1).sum();
        // Of IPv6, in /64 networks, of the 2^61 in 2000::/3.
        let networks: u128 = list.v6.iter().map(|(first, last)| ((last - first) >> 64) + 1).sum();
        let of_ipv6 = u64::try_from(networks.saturating_mul(100) >> 61).unwrap_or(u64::MAX);
        let percent = (addresses.saturating_mul(100) >> 32).max(of_ipv6);
        if percent >= MAX_SHARE { Err(Refusal::TooWide { percent }) } else { Ok(list) }
    }
}

/// Whether a range has more addresses than the widest network that is believed.
fn is_too_wide(first: Address, last: Address) -> bool {
    let widest = if first.is_ipv4() { WIDEST.0 } else { WIDEST.1 };
    last.bits() - first.bits() > !mask(widest)
}

/// Whether no feed may have `target`, whatever it says.
fn is_never_listed(target: Target) -> bool {
    let widest = if target.is_ipv4() { WIDEST.0 } else { WIDEST.1 };
    target.prefix128() < widest || special_range(target).is_some() || documentation(target)
}

/// Whether `target` shares addresses with the ranges for documentation. No client has one, so a list with them is for tests or wrong.
fn documentation(target: Target) -> bool {
    const RANGES: [(u128, u8); 5] = [
        (0xffff_c000_0200, 120),
        (0xffff_c633_6400, 120),
        (0xffff_cb00_7100, 120),
        (0x2001_0db8 << 96, 32),
        (0x3fff << 112, 20),
    ];
    RANGES.iter().any(|(bits, prefix)| {
        let range = Target::from_bits(*bits, *prefix);
        range.covers(target) || target.covers(range)
    })
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl List {
    /// The list of these targets, without any check; for measurements.
    pub fn of(targets: &NetSet) -> Self {
        let mut reading = Reading::default();
        targets.members().for_each(|target| reading.keep(target));
        let Reading { v4, v6, entries, left_out, .. } = reading;
        Self { v4: merged(v4), v6: merged(v6), entries, left_out, unknown: 0 }
    }
}

#[cfg(test)]
mod tests;
