//! The wire format of the records that nodes exchange: batches of records, the same in the recent-changes log and in repair.
//!
//! ```text
//! batch   version 1 | number of texts 2 | texts: length 2, UTF-8 … | records …
//! record  kind 1 | length 2 | body (bincode, variable-length integers)
//! ```
//!
//! Numbers outside bodies are little-endian. Texts (node ids, names, reasons) occur once per batch, and bodies refer to them by
//! position. So a million bans by a few filters take about 30 bytes each.
//!
//! Versions 2 and 3 are this layout with the kinds of bodies below. (Version 1 had one register per entry. From version 3 on, repairs
//! exchange the entries that differ instead of whole buckets; batches are the same.) Additions are new kinds: a reader
//! skips a kind that it does not know, by its length, and counts it. A body with more fields than the reader knows is refused and
//! counted; accepted in part, it would differ from its author's entry. A batch of a newer version is refused.
//!
//! Nodes publish the versions that they read, and both ends of a repair session use the highest that both read. This build reads and
//! writes versions 2 and 3. A build that writes a newer version must do so only while all live nodes read it.

mod read;
mod versions;

use std::collections::HashMap;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

pub use read::{read, read_of};
pub use versions::{Dialect, Versions, VersionsError};

use crate::attempts::{JailId, SlotCount};
use crate::ban::{BanEntry, By, Cause, Decision, Register, Registers};
use crate::evidence::EvidenceRecord;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// The oldest version that this build reads.
pub const MIN_VERSION: u8 = 2;
/// The newest version that this build reads and writes.
pub const VERSION: u8 = 3;
/// The longest text in a batch, in bytes.
pub const MAX_TEXT: usize = Cause::MAX_REASON;
/// The most texts in a batch.
pub const MAX_TEXTS: usize = 4096;
/// The most bytes that one record adds to a batch, including its texts. A [`BatchWriter`] needs room for one.
pub const MAX_RECORD: usize = RECORD_HEADER + MAX_BODY + 2 * MAX_ORIGIN;

const RECORD_HEADER: usize = 3;
const BATCH_HEADER: usize = 3;
/// The most bytes that the texts of one register add.
const MAX_ORIGIN: usize = 3 * 2 + 63 + Cause::MAX_NAME + Cause::MAX_REASON;
const MAX_BODY: usize = 96;
/// An entry with a filter's register only.
const KIND_FILTER: u8 = 1;
const KIND_ATTEMPTS: u8 = 2;
/// An entry with an operator's register only.
const KIND_OPERATOR: u8 = 3;
/// An entry with both registers.
const KIND_BOTH: u8 = 4;
/// An account logged in from a target.
const KIND_SUCCEEDED: u8 = 5;
/// A stranger failed.
const KIND_TRIED: u8 = 6;
/// An entry of an evidence table.
const KIND_FACT: u8 = 7;
/// Digests of the evidence tables.
const KIND_EVIDENCE_DIGESTS: u8 = 8;
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_BODY>> =
    bincode::config::standard().with_limit::<MAX_BODY>();

/// One record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The entry of a target.
    Ban {
        /// The target of the entry.
        target: Target,
        /// The entry.
        entry: BanEntry,
    },
    /// A count of attempts.
    Attempts(Attempts),
    /// Evidence about accounts, names and networks.
    Evidence(EvidenceRecord),
}

/// The offences of one target that one node recognised in one slot of a jail's window. The count is an absolute number and the greatest
/// wins, so records may arrive twice and out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The generation of the node. A restarted node counts from zero, so counts of different generations add up.
    pub generation: u64,
    /// The target, the jail, the slot and the count.
    pub share: SlotCount,
}

/// Why a whole batch was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    /// It ends too early.
    #[error("the batch is truncated")]
    Truncated,
    /// This build does not read its version.
    #[error("the batch has wire version {0}, which this build does not read")]
    Version(u8),
    /// It has too many texts, or a text that is too long or not UTF-8.
    #[error("the batch has too many texts, or a text that is too long or not UTF-8")]
    Text,
}

/// How many records of a batch were read, skipped and refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Records that were read.
    pub records: usize,
    /// Records of a kind that this build does not know.
    pub unknown: usize,
    /// Records of a known kind with extra fields or invalid values.
    pub refused: usize,
}

#[derive(Encode, Decode)]
enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

#[derive(Encode, Decode)]
struct Place {
    address: Address,
    prefix: u8,
}

/// The body of an entry with one register.
#[derive(Encode, Decode)]
struct EntryBody {
    place: Place,
    bans: u32,
    /// The retention, in seconds since the epoch.
    keep: u32,
    register: RegisterBody,
}

#[derive(Encode, Decode)]
struct BothBody {
    place: Place,
    bans: u32,
    keep: u32,
    operator: RegisterBody,
    filter: RegisterBody,
}

#[derive(Encode, Decode)]
struct RegisterBody {
    hlc: u64,
    node: u16,
    /// The decision. Ends are in seconds since the epoch, and never 0.
    value: Value,
    by: u16,
    reason: u16,
}

#[derive(Clone, Copy, Encode, Decode)]
enum Value {
    Banned(u32),
    Allowed(u32),
    Unbanned,
}

#[derive(Encode, Decode)]
struct AttemptsBody {
    jail: u32,
    place: Place,
    generation: u64,
    slot: u64,
    count: u32,
}

impl From<Target> for Place {
    fn from(target: Target) -> Self {
        if target.is_ipv4() {
            let [.., a, b, c, d] = target.bits().to_be_bytes();
            Self { address: Address::V4([a, b, c, d]), prefix: target.prefix() }
        } else {
            Self { address: Address::V6(target.bits().to_be_bytes()), prefix: target.prefix128() }
        }
    }
}

impl Place {
    /// Returns the target, or `None` if it is not in canonical form.
    fn target(&self) -> Option<Target> {
        let target = match self.address {
            Address::V4(octets) => Target::network(octets.into(), self.prefix).ok()?,
            Address::V6(octets) if self.prefix <= 128 => Target::from_bits(u128::from_be_bytes(octets), self.prefix),
            Address::V6(_) => return None,
        };
        let canonical = Self::from(target);
        let same = match (&canonical.address, &self.address) {
            (Address::V4(ours), Address::V4(theirs)) => ours == theirs,
            (Address::V6(ours), Address::V6(theirs)) => ours == theirs,
            _ => false,
        };
        (same && canonical.prefix == self.prefix).then_some(target)
    }
}

/// Collects records into a batch of bounded size.
#[derive(Debug)]
pub struct BatchWriter {
    version: u8,
    addition: Option<(u8, &'static [u8])>,
    limit: usize,
    texts: Vec<u8>,
    positions: HashMap<Box<str>, u16, foldhash::fast::RandomState>,
    records: Vec<u8>,
    count: usize,
}

/// The texts that a register refers to.
fn texts_of<T>(register: &Register<T>) -> [&str; 3] {
    let (By::Filter(name) | By::Operator(name)) = &register.cause.by;
    [register.stamp.node.as_str(), name, &register.cause.reason]
}

impl BatchWriter {
    /// Creates a writer of batches of at most `limit` bytes. A single record is accepted whatever its size.
    pub fn new(limit: usize) -> Self {
        Self::speaking(Dialect::default(), VERSION, limit)
    }

    /// Like [`BatchWriter::new`], for the dialect of another build and another version.
    pub fn speaking(Dialect { addition, .. }: Dialect, version: u8, limit: usize) -> Self {
        Self {
            version,
            addition,
            limit,
            texts: Vec::new(),
            positions: HashMap::default(),
            records: Vec::new(),
            count: 0,
        }
    }

    /// Sets the version of the present batch and of later ones.
    pub const fn set_version(&mut self, version: u8) {
        self.version = version;
    }

    /// Returns the length of the batch so far, in bytes, without the record that a dialect adds.
    pub fn len(&self) -> usize {
        BATCH_HEADER + self.texts.len() + self.records.len()
    }

    /// Returns `true` if the batch has no records.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the number of records in the batch.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Adds `record`. Returns `false` if it does not fit; it is then not added.
    #[must_use]
    pub fn push(&mut self, record: &Record) -> bool {
        let new_texts = |texts: [&str; 3]| -> usize {
            texts.iter().filter(|text| !self.positions.contains_key(**text)).map(|text| 2 + text.len()).sum()
        };
        let (texts, most_texts) = match record {
            Record::Ban { entry, .. } => match &entry.registers {
                Registers::Filter(filter) => (new_texts(texts_of(filter)), 3),
                Registers::Operator(operator) => (new_texts(texts_of(operator)), 3),
                Registers::Both { operator, filter } => {
                    (new_texts(texts_of(operator)) + new_texts(texts_of(filter)), 6)
                }
            },
            Record::Attempts(_) | Record::Evidence(_) => (0, 0),
        };
        let most = RECORD_HEADER + MAX_BODY + texts;
        if !self.is_empty() && (self.len() + most > self.limit || self.positions.len() + most_texts > MAX_TEXTS) {
            return false;
        }
        let mut body = [0; MAX_BODY];
        let (kind, written) = match record {
            Record::Ban { target, entry } => {
                let (place, bans, keep) = (Place::from(*target), entry.bans, entry.keep.seconds());
                match &entry.registers {
                    Registers::Filter(filter) => {
                        let register = self.register(filter, Value::Banned(filter.value.seconds()));
                        let body_of = EntryBody { place, bans, keep, register };
                        (KIND_FILTER, bincode::encode_into_slice(body_of, &mut body, CONFIG))
                    }
                    Registers::Operator(operator) => {
                        let register = self.register(operator, Value::of(operator.value));
                        let body_of = EntryBody { place, bans, keep, register };
                        (KIND_OPERATOR, bincode::encode_into_slice(body_of, &mut body, CONFIG))
                    }
                    Registers::Both { operator, filter } => {
                        let operator = self.register(operator, Value::of(operator.value));
                        let filter = self.register(filter, Value::Banned(filter.value.seconds()));
                        let body_of = BothBody { place, bans, keep, operator, filter };
                        (KIND_BOTH, bincode::encode_into_slice(body_of, &mut body, CONFIG))
                    }
                }
            }
            Record::Attempts(attempts) => {
                let Attempts { generation, share: SlotCount { key: (JailId(jail), target), slot, count } } = *attempts;
                let place = Place::from(target);
                let body_of = AttemptsBody { jail, place, generation, slot, count };
                (KIND_ATTEMPTS, bincode::encode_into_slice(body_of, &mut body, CONFIG))
            }
            Record::Evidence(record) => {
                let kind = match record {
                    EvidenceRecord::Succeeded { .. } => KIND_SUCCEEDED,
                    EvidenceRecord::Tried { .. } => KIND_TRIED,
                    EvidenceRecord::Fact(_) => KIND_FACT,
                    EvidenceRecord::Digests { .. } => KIND_EVIDENCE_DIGESTS,
                };
                let bytes = record.encode();
                body.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
                (kind, Ok(bytes.len()))
            }
        };
        // MAX_BODY has room for the longest body of any kind.
        let length = written.unwrap_or(0);
        self.records.push(kind);
        self.records.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
        self.records.extend_from_slice(&body[..length]);
        self.count += 1;
        true
    }

    /// Returns the finished batch and empties the writer.
    pub fn take(&mut self) -> Vec<u8> {
        let mut batch = Vec::with_capacity(self.len());
        batch.push(self.version);
        batch.extend_from_slice(&u16::try_from(self.positions.len()).unwrap_or(0).to_le_bytes());
        batch.append(&mut self.texts);
        batch.append(&mut self.records);
        if let Some((kind, body)) = self.addition {
            batch.push(kind);
            batch.extend_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_le_bytes());
            batch.extend_from_slice(body);
        }
        self.positions.clear();
        self.count = 0;
        batch
    }

    fn register<T>(&mut self, register: &Register<T>, value: Value) -> RegisterBody {
        let [node, by, reason] = texts_of(register).map(|text| self.text(text));
        RegisterBody { hlc: register.stamp.hlc.0, node, value, by, reason }
    }

    /// Returns the position of `text`, and adds it if it is new. Its length is within bounds because of the types of a record.
    fn text(&mut self, text: &str) -> u16 {
        if let Some(position) = self.positions.get(text) {
            return *position;
        }
        let position = u16::try_from(self.positions.len()).unwrap_or(u16::MAX);
        self.texts.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.texts.extend_from_slice(text.as_bytes());
        self.positions.insert(text.into(), position);
        position
    }
}

impl Value {
    const fn of(decision: Decision) -> Self {
        match decision {
            Decision::Unbanned => Self::Unbanned,
            Decision::Banned { until } => Self::Banned(until.seconds()),
            Decision::Allowed { until } => Self::Allowed(until.seconds()),
        }
    }

    /// Returns the value as a decision of an operator, or `None` if its end is 0, which no node writes.
    fn decision(self) -> Option<Decision> {
        match self {
            Self::Unbanned => Some(Decision::Unbanned),
            Self::Banned(0) | Self::Allowed(0) => None,
            Self::Banned(until) => Some(Decision::Banned { until: Expiry::from_seconds(until) }),
            Self::Allowed(until) => Some(Decision::Allowed { until: Expiry::from_seconds(until) }),
        }
    }

    /// Returns the value as the end of a ban by a filter, or `None` if it is something else: filters only ban.
    fn ban(self) -> Option<Expiry> {
        match self {
            Self::Banned(until) if until != 0 => Some(Expiry::from_seconds(until)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
