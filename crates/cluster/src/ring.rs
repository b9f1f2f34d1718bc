//! The recent-changes log of a node: its latest records, in a few keys of its own gossip state.
//!
//! The log is a ring: it has a fixed number of slots, which are written in turn, so a new slot overwrites the oldest. Each slot
//! holds the sequence number of its first record. A reader therefore notices when slots were overwritten before it received
//! them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use banmesh_core::wire::{self, BatchWriter, Dialect, ReadCounts, Record, Versions, WireError};

/// Slots in a ring.
const SLOTS: usize = 32;
/// Bytes of records in a slot at most. A ring takes up to 48 KiB in base64. A single record may take more.
const SLOT_BYTES: usize = 1_140;
/// Bytes before the records of a slot.
const HEAD_LEN: usize = 8 + 2;
/// Slots that one flush may write. The slots of the flush before must remain readable.
const SLOTS_AT_ONCE: usize = SLOTS / 2;

/// The writing side of a log.
#[derive(Debug)]
pub struct Ring {
    prefix: String,
    next_slot: usize,
    sequence: u64,
    writer: BatchWriter,
}

/// A slot that was just written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenSlot {
    /// Its key in the gossip state.
    pub key: String,
    /// The sequence number after its last record.
    pub end: u64,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl WrittenSlot {
    /// Its value in the gossip state.
    pub fn value(&self) -> String {
        BASE64.encode(&self.bytes)
    }
}

/// The contents of a slot.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// The sequence number of its first record.
    pub first: u64,
    /// How many records its author wrote into it.
    pub count: u64,
    /// The records that this build understands.
    pub records: Vec<Record>,
    /// How many records this build does not understand.
    pub tally: ReadCounts,
}

/// Why a slot could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Invalid base64, or too short.
    #[error("the slot is not valid base64, or too short")]
    Malformed,
    /// Its records cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Slot {
    /// The sequence number after its last record.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

impl Ring {
    /// An empty ring. The keys of its slots begin with `prefix`, and a slot with more than one record has at most `slot_len` bytes.
    pub fn new(prefix: &str, dialect: Dialect, slot_len: usize) -> Self {
        let addition = dialect.addition.map_or(0, |(_, body)| 3 + body.len());
        let limit = slot_len.saturating_sub(HEAD_LEN + addition).min(SLOT_BYTES);
        let writer = BatchWriter::speaking(dialect, dialect.versions.newest, limit);
        Self { prefix: prefix.to_owned(), next_slot: 0, sequence: 0, writer }
    }

    /// Sets the wire version of all later slots.
    pub const fn set_version(&mut self, version: u8) {
        self.writer.set_version(version);
    }

    /// Skips `count` sequence numbers, for records that are not sent. Readers see the gap and repair.
    pub const fn skip(&mut self, count: u64) {
        self.sequence += count;
    }

    /// The sequence number of the next record.
    pub const fn next(&self) -> u64 {
        self.sequence
    }

    /// Takes records from the front of `pending` until it is empty or the flush is full. Returns the slots.
    pub fn flush(&mut self, pending: &mut std::collections::VecDeque<Record>) -> Vec<WrittenSlot> {
        let mut slots = Vec::new();
        while !pending.is_empty() && slots.len() < SLOTS_AT_ONCE {
            while let Some(record) = pending.front() {
                if !self.writer.push(record) {
                    break;
                }
                pending.pop_front();
            }
            let count = self.writer.count() as u64;
            let mut bytes = self.sequence.to_le_bytes().to_vec();
            bytes.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend_from_slice(&self.writer.take());
            self.sequence += count;
            slots.push(WrittenSlot { key: format!("{}{:02}", self.prefix, self.next_slot), end: self.sequence, bytes });
            self.next_slot = (self.next_slot + 1) % SLOTS;
        }
        slots
    }
}

/// Reads the value of a slot in the gossip state.
///
/// # Errors
/// As [`read_bytes`], and when it is not base64.
pub fn read_slot(versions: Versions, value: &str) -> Result<Slot, SlotError> {
    read_bytes(versions, &BASE64.decode(value).map_err(|_| SlotError::Malformed)?)
}

/// Reads the content of a slot.
///
/// # Errors
/// When it is malformed, or its wire version is not one of `versions`.
pub fn read_bytes(versions: Versions, bytes: &[u8]) -> Result<Slot, SlotError> {
    let (first, rest) = bytes.split_first_chunk().ok_or(SlotError::Malformed)?;
    let (count, batch) = rest.split_first_chunk().ok_or(SlotError::Malformed)?;
    let mut records = Vec::new();
    let tally = wire::read_of(versions, batch, &mut records)?;
    let count = u64::from(u16::from_le_bytes(*count));
    Ok(Slot { first: u64::from_le_bytes(*first), count, records, tally })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use banmesh_core::ban::{BanEntry, By, Cause};
    use banmesh_core::hlc::{Hlc, Stamp};
    use banmesh_types::target::Target;
    use banmesh_types::time::Expiry;

    fn record(n: u32, reason_len: usize) -> Record {
        let stamp = Stamp { hlc: Hlc(u64::from(n)), node: "n".parse().unwrap() };
        let cause = Arc::new(Cause::new(By::Filter("f".into()), &"r".repeat(reason_len)));
        let entry = BanEntry::by_filter(stamp, Expiry::NEVER, cause, 1, Expiry::from_seconds(60));
        Record::Ban { target: Target::host(n.to_be_bytes().into()), entry }
    }

    #[test]
    fn slots_are_written_in_turn_and_bounded() {
        let mut ring = Ring::new("h:", Dialect::default(), 1_200);
        let mut pending: VecDeque<Record> = (0..2000).map(|n| record(n, 500)).collect();
        let slots = ring.flush(&mut pending);
        assert_eq!(slots.len(), SLOTS_AT_ONCE);
        assert!(!pending.is_empty());
        let bytes: usize = slots.iter().map(|slot| slot.value().len()).sum();
        assert!(bytes * SLOTS / SLOTS_AT_ONCE <= 48 * 1024 + 4096, "{bytes}");
        ring.skip(100);
        let next = ring.flush(&mut pending);
        let before = read_slot(Versions::default(), &slots.last().unwrap().value()).unwrap();
        let after = read_slot(Versions::default(), &next[0].value()).unwrap();
        assert_eq!(after.first, before.first + before.count + 100);
        assert_eq!((slots[0].key.as_str(), next[0].key.as_str()), ("h:00", "h:16"));
        assert!(ring.flush(&mut VecDeque::new()).is_empty());
    }

    proptest! {
        #[test]
        fn every_record_is_read_once_and_in_order(lengths in proptest::collection::vec(0usize..=500, 0..100)) {
            let mut ring = Ring::new("h:", Dialect::default(), 1_200);
            let records: Vec<Record> = (0..).zip(lengths).map(|(n, length)| record(n, length)).collect();
            let mut pending: VecDeque<Record> = records.iter().cloned().collect();
            let mut read = Vec::new();
            while !pending.is_empty() {
                for written in ring.flush(&mut pending) {
                    let slot = read_slot(Versions::default(), &written.value()).unwrap();
                    prop_assert_eq!(slot.end(), written.end);
                    prop_assert!(slot.count == 1 || written.bytes.len() <= 1_200);
                    prop_assert_eq!(slot.first, read.len() as u64);
                    prop_assert_eq!(slot.count, slot.records.len() as u64);
                    read.extend(slot.records);
                }
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_slot_value_panics(text in ".{0,100}", bytes: Vec<u8>) {
            let _ = read_slot(Versions::default(), &text);
            let _ = read_slot(Versions::default(), &BASE64.encode(bytes));
        }
    }
}
