//! The layout of the file.
//!
//! ```text
//! table meta      "format" 4 | "created" 8 | "node" text | "generation" 8 | "clock" 8
//! table entries   prefix 1, address 16 (big-endian)
//!              -> version 1 | registers 1 | keep 4 | bans 4 | register … | check 4
//!                 register  kind 1 | stamp 8 | until 4 | origin 4
//! table origins   number
//!              -> version 1 | kind 1 | length 1, node | length 1, name | length 2, reason | check 4
//! ```
//!
//! An entry has one register or two: an operator's first, then a filter's. The kind of a register is 0 (a ban by a filter), or what an
//! operator decided: 1 (unbanned), 2 (banned), 3 (allowed).
//!
//! Numbers are little-endian. The layout differs from that of the wire, where a batch of thousands of entries shares its texts. Here
//! every entry is written alone. With its author's id and its cause, an entry would take three times the space and the time to load. So
//! author and cause are stored once, as an origin, while any entry refers to them. The check (the first 4 bytes of
//! XXH3 over key and value) detects changes of the file by others while the node runs. The checksums of the database would hide those,
//! because every write to a page renews them.

use std::sync::Arc;

use redb::TableDefinition;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use banmesh_core::ban::{BanEntry, By, Cause, Decision, Register};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// The format of the whole file: its tables, their keys, and the parts of an entry. Format 1 had one register
/// per entry.
pub(super) const FORMAT: u32 = 2;
/// The version of the layout of an entry or origin.
const VERSION: u8 = 1;

pub(super) type Key = [u8; 17];

pub(super) const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
pub(super) const ENTRIES: TableDefinition<'static, &'static Key, &'static [u8]> = TableDefinition::new("entries");
pub(super) const ORIGINS: TableDefinition<'static, u32, &'static [u8]> = TableDefinition::new("origins");

/// Why a value cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    #[error("it is of version {0}, which a newer build wrote")]
    Newer(u8),
    #[error("{0}")]
    Damaged(&'static str),
}

/// The author and cause of a register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) node: NodeId,
    pub(super) cause: Arc<Cause>,
}

/// An entry whose registers refer to their origins by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) keep: Expiry,
    pub(super) bans: u32,
    pub(super) operator: Option<RowRegister>,
    pub(super) filter: Option<RowRegister>,
}

/// A register that refers to its origin by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRegister {
    kind: u8,
    hlc: Hlc,
    until: Expiry,
    pub(super) origin: u32,
}

/// The kind of a filter's register.
const FILTER: u8 = 0;
const UNBANNED: u8 = 1;
const BANNED: u8 = 2;
const ALLOWED: u8 = 3;

pub(super) fn key_of(target: Target) -> Key {
    let mut key = [0; 17];
    let (prefix, bits) = key.split_at_mut(1);
    prefix.fill(target.prefix128());
    bits.copy_from_slice(&target.bits().to_be_bytes());
    key
}

/// The target of `key`, which must be in canonical form.
pub(super) fn target_of(key: &Key) -> Result<Target, FormatError> {
    let [prefix, bits @ ..] = *key;
    let target = Target::from_bits(u128::from_be_bytes(bits), prefix);
    if key_of(target) == *key { Ok(target) } else { Err(FormatError::Damaged("its key is not a target")) }
}

/// The length of the longest entry, which has two registers.
const MAX_ROW: usize = 10 + 2 * REGISTER + 4;
const REGISTER: usize = 17;

impl Row {
    /// The row of `entry`; `number` finds the number of each origin.
    pub(super) fn new(entry: &BanEntry, mut number: impl FnMut(Origin) -> u32) -> Self {
        let operator = entry.operator().map(|operator| {
            let (kind, until) = match operator.value {
                Decision::Unbanned => (UNBANNED, Expiry::PAST),
                Decision::Banned { until } => (BANNED, until),
                Decision::Allowed { until } => (ALLOWED, until),
            };
            RowRegister { kind, hlc: operator.stamp.hlc, until, origin: number(Origin::of(operator)) }
        });
        let filter = entry.filter().map(|filter| RowRegister {
            kind: FILTER,
            hlc: filter.stamp.hlc,
            until: filter.value,
            origin: number(Origin::of(filter)),
        });
        Self { keep: entry.keep, bans: entry.bans, operator, filter }
    }

    /// The origins that the row refers to.
    pub(super) fn origins(&self) -> impl Iterator<Item = u32> + use<> {
        self.operator.into_iter().chain(self.filter).map(|register| register.origin)
    }

    /// The entry; `origin` finds the origin of a number. `None` if an origin is missing.
    pub(super) fn entry<'a>(&self, mut origin: impl FnMut(u32) -> Option<&'a Origin>) -> Option<BanEntry> {
        let operator = match &self.operator {
            Some(register) => Some(register.of(origin(register.origin)?, register.decision())),
            None => None,
        };
        let filter = match &self.filter {
            Some(register) => Some(register.of(origin(register.origin)?, register.until)),
            None => None,
        };
        BanEntry::of(operator, filter, self.bans, self.keep)
    }

    pub(super) fn encode(&self, key: &Key) -> Vec<u8> {
        let mut value = Vec::with_capacity(MAX_ROW);
        let registers = u8::from(self.operator.is_some()) + u8::from(self.filter.is_some());
        value.extend_from_slice(&[VERSION, registers]);
        value.extend_from_slice(&self.keep.seconds().to_le_bytes());
        value.extend_from_slice(&self.bans.to_le_bytes());
        for register in self.operator.iter().chain(&self.filter) {
            value.push(register.kind);
            value.extend_from_slice(&register.hlc.0.to_le_bytes());
            value.extend_from_slice(&register.until.seconds().to_le_bytes());
            value.extend_from_slice(&register.origin.to_le_bytes());
        }
        let check = check(&key[..], &value);
        value.extend_from_slice(&check);
        value
    }

    pub(super) fn decode(key: &Key, value: &[u8]) -> Result<Self, FormatError> {
        let mut body = Reader(verified(&key[..], value, VERSION)?);
        let [registers] = body.array()?;
        let mut row = Self {
            keep: Expiry::from_seconds(u32::from_le_bytes(body.array()?)),
            bans: u32::from_le_bytes(body.array()?),
            operator: None,
            filter: None,
        };
        for _ in 0..registers {
            let register = RowRegister::decode(&mut body)?;
            let place = if register.kind == FILTER { &mut row.filter } else { &mut row.operator };
            if place.replace(register).is_some() {
                return Err(FormatError::Damaged("it has two registers of one kind"));
            }
        }
        if registers == 0 {
            return Err(FormatError::Damaged("it has no register"));
        }
        body.end()?;
        Ok(row)
    }
}

impl RowRegister {
    fn decode(body: &mut Reader<'_>) -> Result<Self, FormatError> {
        let [kind] = body.array()?;
        let register = Self {
            kind,
            hlc: Hlc(u64::from_le_bytes(body.array()?)),
            until: Expiry::from_seconds(u32::from_le_bytes(body.array()?)),
            origin: u32::from_le_bytes(body.array()?),
        };
        match (kind, register.until) {
            (UNBANNED, Expiry::PAST) => Ok(register),
            (FILTER | BANNED | ALLOWED, until) if until != Expiry::PAST => Ok(register),
            _ => Err(FormatError::Damaged("one of its registers has an unknown kind")),
        }
    }

    fn decision(&self) -> Decision {
        match self.kind {
            BANNED => Decision::Banned { until: self.until },
            ALLOWED => Decision::Allowed { until: self.until },
            _ => Decision::Unbanned,
        }
    }

    fn of<T>(&self, origin: &Origin, value: T) -> Register<T> {
        let stamp = Stamp { hlc: self.hlc, node: origin.node.clone() };
        Register { stamp, value, cause: Arc::clone(&origin.cause) }
    }
}

impl Origin {
    fn of<T>(register: &Register<T>) -> Self {
        Self { node: register.stamp.node.clone(), cause: Arc::clone(&register.cause) }
    }

    pub(super) fn encode(&self, number: u32) -> Vec<u8> {
        let (kind, name) = match &self.cause.by {
            By::Filter(name) => (0, name),
            By::Operator(name) => (1, name),
        };
        let mut value = vec![VERSION, kind];
        // By their types node and name have at most 64 bytes, a reason at most 500.
        for text in [self.node.as_str(), name] {
            value.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            value.extend_from_slice(text.as_bytes());
        }
        value.extend_from_slice(&u16::try_from(self.cause.reason.len()).unwrap_or(u16::MAX).to_le_bytes());
        value.extend_from_slice(self.cause.reason.as_bytes());
        let check = check(&number.to_le_bytes(), &value);
        value.extend_from_slice(&check);
        value
    }

    pub(super) fn decode(number: u32, value: &[u8]) -> Result<Self, FormatError> {
        let mut body = Reader(verified(&number.to_le_bytes(), value, VERSION)?);
        let [kind] = body.array()?;
        let [length] = body.array()?;
        let node = body.text(length.into())?.parse().map_err(|_| FormatError::Damaged("its node id is invalid"))?;
        let [length] = body.array()?;
        let name = body.text(length.into())?;
        let by = match kind {
            0 => By::Filter(name.into()),
            1 => By::Operator(name.into()),
            _ => return Err(FormatError::Damaged("its author is neither a filter nor an operator")),
        };
        let length = u16::from_le_bytes(body.array()?);
        let cause = Cause { by, reason: body.text(length.into())?.into() };
        body.end()?;
        Ok(Self { node, cause: Arc::new(cause) })
    }
}

fn check(key: &[u8], body: &[u8]) -> [u8; 4] {
    let [first @ .., _, _, _, _] = xxh3_64_with_seed(body, xxh3_64_with_seed(key, 0)).to_le_bytes();
    first
}

/// What stands between version and check of `value`. The version comes first: nobody knows where a newer one keeps its check.
fn verified<'a>(key: &[u8], value: &'a [u8], newest: u8) -> Result<&'a [u8], FormatError> {
    match value.first() {
        Some(0) | None => return Err(FormatError::Damaged("it has no version")),
        Some(&newer) if newer > newest => return Err(FormatError::Newer(newer)),
        Some(_) => {}
    }
    let (body, end) = value.split_last_chunk::<4>().ok_or(FormatError::Damaged("it is too short"))?;
    if check(key, body) != *end {
        return Err(FormatError::Damaged("its checksum is wrong"));
    }
    Ok(body.get(1..).unwrap_or_default())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(FormatError::Damaged("it is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, FormatError> {
        let (text, rest) = self.0.split_at_checked(length).ok_or(FormatError::Damaged("it is too short"))?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| FormatError::Damaged("one of its texts is not UTF-8"))
    }

    fn end(&self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Damaged("it is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        let cause = Cause::new(By::Operator("ann".into()), "scans us");
        Origin { node: "node-1".parse().unwrap(), cause: Arc::new(cause) }
    }

    fn row() -> Row {
        let filter = RowRegister {
            kind: FILTER,
            hlc: Hlc(1_790_000_000_000 << 16 | 3),
            until: Expiry::from_seconds(1_800_000_000),
            origin: 7,
        };
        Row { keep: Expiry::NEVER, bans: 2, operator: None, filter: Some(filter) }
    }

    /// As above, with an unban by an operator.
    fn both() -> Row {
        let operator = RowRegister { kind: UNBANNED, hlc: Hlc(9), until: Expiry::PAST, origin: 8 };
        Row { operator: Some(operator), ..row() }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn format_2_stays_as_it_is() {
        // Newer builds must read files of older ones. If you change these bytes, raise the version.
        let key = key_of("192.0.2.7".parse().unwrap());
        assert_eq!(hex(&key), "8000000000000000000000ffffc0000207");
        assert_eq!(hex(&row().encode(&key)), "0101ffffffff02000000000300006c50c4a00100d2496b0700000072880596");
        assert_eq!(
            hex(&both().encode(&key)),
            "0102ffffffff020000000109000000000000000000000008000000000300006c50c4a00100d2496b070000004c1b51bf"
        );
        assert_eq!(hex(&origin().encode(7)), "0101066e6f64652d3103616e6e08007363616e73207573d9622b01");
    }

    #[test]
    fn a_newer_version_is_named_and_damage_is_found() {
        let key = key_of("192.0.2.7".parse().unwrap());
        let mut value = row().encode(&key);
        assert_eq!(Row::decode(&key, &value), Ok(row()));
        assert_eq!(Row::decode(&key, &both().encode(&key)), Ok(both()));
        value[0] = 3;
        assert_eq!(Row::decode(&key, &value), Err(FormatError::Newer(3)));
        let twice = Row { operator: row().filter, ..row() };
        let fault = FormatError::Damaged("it has two registers of one kind");
        assert_eq!(Row::decode(&key, &twice.encode(&key)), Err(fault));
        let none = Row { filter: None, ..row() };
        assert_eq!(Row::decode(&key, &none.encode(&key)), Err(FormatError::Damaged("it has no register")));
        assert_eq!(Origin::decode(7, &[9]), Err(FormatError::Newer(9)));
        let value = row().encode(&key);
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Row::decode(&key, &damaged).is_err(), "{bit}");
        }
        // An entry under another's key is damage too.
        assert!(Row::decode(&key_of("192.0.2.8".parse().unwrap()), &value).is_err());
        assert!(target_of(&[129; 17]).is_err());
        assert!(Origin::decode(8, &origin().encode(7)).is_err());
    }

    proptest! {
        #[test]
        fn origins_round_trip(node in "[A-Za-z0-9._-]{1,63}", name in "\\PC{0,64}", reason in "\\PC{0,500}", operator: bool, number: u32) {
            let by = if operator { By::Operator(name.into()) } else { By::Filter(name.into()) };
            let origin = Origin { node: node.parse().unwrap(), cause: Arc::new(Cause::new(by, &reason)) };
            prop_assert_eq!(Origin::decode(number, &origin.encode(number)), Ok(origin));
        }

        #[test]
        fn whatever_is_read_it_does_not_panic(key: [u8; 17], value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (target_of(&key), Row::decode(&key, &value), Origin::decode(1, &value));
        }
    }
}
