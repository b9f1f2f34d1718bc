//! What the nodes tell each other: batches of records, the same in the hot ring and in repair.
//!
//! ```text
//! batch   version 1 | number of texts 2 | texts: length 2, UTF-8 … | records …
//! record  kind 1 | length 2 | body (bincode, variable-length integers)
//! ```
//!
//! Numbers outside bodies are little-endian. Texts (node ids, names, reasons) are kept once a batch, and bodies refer to them by
//! position: a million bans by few filters take 30 bytes each.
//!
//! The layout above is what version 1 means. Anything new is a new kind: a reader skips the kinds that it does not know,
//! by their length, and counts them. A body that has more in it than the reader knows is refused whole and counted: taken in part
//! it would differ from what its author holds. A batch of a newer version is refused whole. Nodes publish the versions that
//! they read, and both ends of a repair session agree on the highest that both read. Version 1 is the only one that this build
//! writes: one that writes a newer one must do so only while all live nodes read it.

mod versions;

use std::collections::HashMap;
use std::sync::Arc;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

pub use versions::{Dialect, Versions, VersionsError};

use crate::domain::attempts::{JailId, SlotCount};
use crate::domain::ban::{BanEntry, By, Cause, State};
use crate::domain::hlc::{Hlc, Stamp};
use crate::domain::node::NodeId;
use crate::domain::target::Target;
use crate::domain::time::Expiry;

/// The oldest version that this build reads.
pub const MIN_VERSION: u8 = 1;
/// The newest version that this build reads and writes.
pub const VERSION: u8 = 1;
/// The longest text in a batch, in bytes.
pub const MAX_TEXT: usize = Cause::MAX_REASON;
/// How many different texts a batch may hold.
pub const MAX_TEXTS: usize = 4096;
/// What one record adds to a batch at most, its texts included: a [`BatchWriter`] needs room for one.
pub const MAX_RECORD: usize = RECORD_HEADER + MAX_BODY + 3 * 2 + 63 + Cause::MAX_NAME + Cause::MAX_REASON;

const RECORD_HEADER: usize = 3;
const BATCH_HEADER: usize = 3;
const MAX_BODY: usize = 96;
const KIND_BAN: u8 = 1;
const KIND_ATTEMPTS: u8 = 2;
/// A ban's body whose `until` is the end of an allowance. A kind of its own, so that a node that knows no allowances passes it
/// over instead of taking it for a ban.
const KIND_ALLOWANCE: u8 = 3;
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_BODY>> =
    bincode::config::standard().with_limit::<MAX_BODY>();

/// One thing that a node tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// What it holds of a target: a ban, a lift or an allowance.
    Ban {
        /// Whose entry.
        target: Target,
        /// The entry.
        entry: BanEntry,
    },
    /// How many failures it has seen.
    Attempts(Attempts),
}

/// The failures of one target that one node has seen in one slot of a jail's window: an absolute number, so that it may be
/// told twice and out of order; the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The start of the teller: a node that was restarted counts from zero, and its counts add up.
    pub generation: u64,
    /// Who failed, where, when and how often.
    pub share: SlotCount,
}

/// Why a batch was refused whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    /// It ends too early.
    #[error("the batch is truncated")]
    Truncated,
    /// It is of a version that this build does not read.
    #[error("the batch is of wire version {0}, which is none of those that are read here")]
    Version(u8),
    /// It has too many texts, or one that is too long or no UTF-8.
    #[error("the batch holds a text that is out of bounds")]
    Text,
}

/// What a batch held beside the records that were understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that were understood.
    pub records: usize,
    /// Records of a kind that this build does not know.
    pub unknown: usize,
    /// Records of a known kind that hold more than this build knows, or what no record may hold.
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

#[derive(Encode, Decode)]
struct BanBody {
    place: Place,
    hlc: u64,
    node: u16,
    /// The second of its end; 0 is lifted. Of an allowance it is never 0.
    until: u32,
    bans: u32,
    /// The minute of its end.
    keep: u32,
    operator: bool,
    by: u16,
    reason: u16,
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
    /// The target, unless it was not written in its one canonical form.
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

impl BatchWriter {
    /// A batch of at most `limit` bytes, or of one record.
    pub fn new(limit: usize) -> Self {
        Self::speaking(Dialect::default(), VERSION, limit)
    }

    /// As [`BatchWriter::new`], of another build and of another version.
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

    /// Writes this version from the next batch on.
    pub const fn set_version(&mut self, version: u8) {
        self.version = version;
    }

    /// The bytes that the batch takes so far.
    pub fn len(&self) -> usize {
        BATCH_HEADER + self.texts.len() + self.records.len()
    }

    /// Whether nothing was added.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of records added.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Adds `record`; `false` when it does not fit any more and was not added.
    #[must_use]
    pub fn push(&mut self, record: &Record) -> bool {
        if !self.is_empty() && (self.len() + MAX_RECORD > self.limit || self.positions.len() + 3 > MAX_TEXTS) {
            return false;
        }
        let kind = match record {
            Record::Ban { entry, .. } if entry.allowed_until().is_some() => KIND_ALLOWANCE,
            Record::Ban { .. } => KIND_BAN,
            Record::Attempts(_) => KIND_ATTEMPTS,
        };
        let mut body = [0; MAX_BODY];
        let written = match record {
            Record::Ban { target, entry } => {
                let (operator, name) = match &entry.cause.by {
                    By::Filter(name) => (false, name),
                    By::Operator(name) => (true, name),
                };
                let ban = BanBody {
                    place: Place::from(*target),
                    hlc: entry.stamp.hlc.0,
                    node: self.text(entry.stamp.node.as_str()),
                    until: entry.until().or(entry.allowed_until()).map_or(0, Expiry::seconds),
                    bans: entry.bans,
                    keep: entry.keep.seconds(),
                    operator,
                    by: self.text(name),
                    reason: self.text(&entry.cause.reason),
                };
                bincode::encode_into_slice(ban, &mut body, CONFIG)
            }
            Record::Attempts(attempts) => {
                let Attempts { generation, share: SlotCount { key: (JailId(jail), target), slot, count } } = *attempts;
                let place = Place::from(target);
                bincode::encode_into_slice(AttemptsBody { jail, place, generation, slot, count }, &mut body, CONFIG)
            }
        };
        // A body of 96 bytes has room for the longest of both kinds.
        let length = written.unwrap_or(0);
        self.records.push(kind);
        self.records.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_le_bytes());
        self.records.extend_from_slice(&body[..length]);
        self.count += 1;
        true
    }

    /// The finished batch; the writer is empty afterwards.
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

    /// The position of `text`, which is within bounds by the types of a record.
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

/// Reads a batch of a version that this build reads, appends its records to `out`, and says what else was in it.
///
/// # Errors
/// When the batch is no batch; records that were read before the fault was met stay in `out`.
pub fn read(batch: &[u8], out: &mut Vec<Record>) -> Result<Tally, WireError> {
    read_of(Versions::default(), batch, out)
}

/// As [`read`], of a batch that must be of one of `versions`.
///
/// # Errors
/// As [`read`].
pub fn read_of(versions: Versions, batch: &[u8], out: &mut Vec<Record>) -> Result<Tally, WireError> {
    let (&version, rest) = batch.split_first().ok_or(WireError::Truncated)?;
    if !versions.contain(version) {
        return Err(WireError::Version(version));
    }
    let (texts, mut rest) = read_texts(rest)?;
    let mut origins = Origins { texts, nodes: HashMap::default(), causes: HashMap::default() };
    let mut tally = Tally::default();
    while let Some((&kind, after)) = rest.split_first() {
        let (body, after) = read_counted(after)?;
        rest = after;
        let record = match kind {
            KIND_BAN => origins.ban(body, false),
            KIND_ALLOWANCE => origins.ban(body, true),
            KIND_ATTEMPTS => attempts(body),
            _ => {
                tally.unknown += 1;
                continue;
            }
        };
        match record {
            Some(record) => {
                tally.records += 1;
                out.push(record);
            }
            None => tally.refused += 1,
        }
    }
    Ok(tally)
}

fn read_texts(rest: &[u8]) -> Result<(Vec<&str>, &[u8]), WireError> {
    let (count, mut rest) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
    let count = usize::from(u16::from_le_bytes(*count));
    if count > MAX_TEXTS {
        return Err(WireError::Text);
    }
    let mut texts = Vec::with_capacity(count.min(rest.len() / 2));
    for _ in 0..count {
        let (text, after) = read_counted(rest)?;
        if text.len() > MAX_TEXT {
            return Err(WireError::Text);
        }
        texts.push(std::str::from_utf8(text).map_err(|_| WireError::Text)?);
        rest = after;
    }
    Ok((texts, rest))
}

fn read_counted(rest: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let (length, rest) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(WireError::Truncated)
}

/// The one value that `body` holds; `None` when it holds anything else, or anything more.
fn whole<T: Decode<()>>(body: &[u8]) -> Option<T> {
    let (value, used) = bincode::decode_from_slice(body, CONFIG).ok()?;
    (used == body.len()).then_some(value)
}

fn attempts(body: &[u8]) -> Option<Record> {
    let AttemptsBody { jail, place, generation, slot, count } = whole(body)?;
    let share = SlotCount { key: (JailId(jail), place.target()?), slot, count };
    Some(Record::Attempts(Attempts { generation, share }))
}

/// Node ids and causes of a batch: each is made once, and its records share it.
struct Origins<'a> {
    texts: Vec<&'a str>,
    nodes: HashMap<u16, NodeId, foldhash::fast::RandomState>,
    causes: HashMap<(bool, u16, u16), Arc<Cause>, foldhash::fast::RandomState>,
}

impl Origins<'_> {
    fn ban(&mut self, body: &[u8], allowance: bool) -> Option<Record> {
        let ban: BanBody = whole(body)?;
        let target = ban.place.target()?;
        let until = Expiry::from_seconds(ban.until);
        let state = match (allowance, ban.until) {
            (false, 0) => State::Lifted,
            (false, _) => State::Active { until },
            (true, 0) => return None,
            (true, _) => State::Allowed { until },
        };
        let node = self.node(ban.node)?;
        let cause = self.cause(ban.operator, ban.by, ban.reason)?;
        let stamp = Stamp { hlc: Hlc(ban.hlc), node };
        let entry = BanEntry { stamp, state, bans: ban.bans, keep: Expiry::from_seconds(ban.keep), cause };
        Some(Record::Ban { target, entry })
    }

    fn text(&self, position: u16) -> Option<&str> {
        self.texts.get(usize::from(position)).copied()
    }

    fn node(&mut self, position: u16) -> Option<NodeId> {
        if let Some(node) = self.nodes.get(&position) {
            return Some(node.clone());
        }
        let node: NodeId = self.text(position)?.parse().ok()?;
        self.nodes.insert(position, node.clone());
        Some(node)
    }

    fn cause(&mut self, operator: bool, by: u16, reason: u16) -> Option<Arc<Cause>> {
        if let Some(cause) = self.causes.get(&(operator, by, reason)) {
            return Some(Arc::clone(cause));
        }
        let (name, reason_text) = (self.text(by)?, self.text(reason)?);
        let written = Cause {
            by: if operator { By::Operator(name.into()) } else { By::Filter(name.into()) },
            reason: reason_text.into(),
        };
        // A cause that no node of ours would write is refused: tidied up, it would differ from what others hold.
        if Cause::new(written.by.clone(), &written.reason) != written {
            return None;
        }
        let cause = Arc::new(written);
        self.causes.insert((operator, by, reason), Arc::clone(&cause));
        Some(cause)
    }
}

#[cfg(test)]
mod tests;
