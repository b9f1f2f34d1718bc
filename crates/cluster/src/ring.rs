//! The hot ring: a node's latest records, in a few keys of its own chitchat state that are written over and over.
//!
//! Every slot says which records it holds by their sequence numbers, so whoever reads the ring sees when some were written
//! over before it got them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

use banmesh_core::wire::{self, BatchWriter, Dialect, Record, Tally, Versions, WireError};

/// Slots of a ring.
pub(super) const SLOTS: usize = 32;
/// Bytes of records in a slot; in base64 a ring takes 48 KiB at most.
const SLOT_BYTES: usize = 1_140;
/// How many slots one flush writes at most: what was written by the flush before must stay to be read.
const SLOTS_AT_ONCE: usize = SLOTS / 2;

/// The writing end.
#[derive(Debug)]
pub(super) struct Ring {
    prefix: String,
    next_slot: usize,
    sequence: u64,
    writer: BatchWriter,
}

/// What a slot held.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The sequence number of its first record.
    pub first: u64,
    /// How many records it was written with.
    pub count: u64,
    /// The records that were understood.
    pub records: Vec<Record>,
    /// And what else there was.
    pub tally: Tally,
}

/// Why a slot could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SlotError {
    #[error("the slot is no base64, or too short")]
    Malformed,
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Ring {
    /// An empty ring whose slots are keys that begin with `prefix`.
    pub(super) fn new(prefix: &str, dialect: Dialect) -> Self {
        let writer = BatchWriter::speaking(dialect, dialect.versions.newest, SLOT_BYTES);
        Self { prefix: prefix.to_owned(), next_slot: 0, sequence: 0, writer }
    }

    /// Writes this wire version from now on.
    pub(super) const fn set_version(&mut self, version: u8) {
        self.writer.set_version(version);
    }

    /// Leaves out `count` sequence numbers: records that could not be sent, and that readers must repair.
    pub(super) const fn skip(&mut self, count: u64) {
        self.sequence += count;
    }

    /// The number of the next record.
    pub(super) const fn next(&self) -> u64 {
        self.sequence
    }

    /// Takes records from the front of `pending` until a flush is full, and returns the keys to write.
    pub(super) fn flush(&mut self, pending: &mut std::collections::VecDeque<Record>) -> Vec<(String, String)> {
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
            slots.push((format!("{}{:02}", self.prefix, self.next_slot), BASE64.encode(bytes)));
            self.sequence += count;
            self.next_slot = (self.next_slot + 1) % SLOTS;
        }
        slots
    }
}

/// Reads the value of a slot that must be of one of `versions`.
pub(super) fn read_slot(versions: Versions, value: &str) -> Result<Slot, SlotError> {
    let bytes = BASE64.decode(value).map_err(|_| SlotError::Malformed)?;
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
    fn slots_are_numbered_in_turn_and_bounded() {
        let mut ring = Ring::new("h:", Dialect::default());
        let mut pending: VecDeque<Record> = (0..2000).map(|n| record(n, 500)).collect();
        let slots = ring.flush(&mut pending);
        assert_eq!(slots.len(), SLOTS_AT_ONCE);
        assert!(!pending.is_empty());
        let bytes: usize = slots.iter().map(|(_, value)| value.len()).sum();
        assert!(bytes * SLOTS / SLOTS_AT_ONCE <= 48 * 1024 + 4096, "{bytes}");
        ring.skip(100);
        let next = ring.flush(&mut pending);
        let before = read_slot(Versions::default(), &slots.last().unwrap().1).unwrap();
        let after = read_slot(Versions::default(), &next[0].1).unwrap();
        assert_eq!(after.first, before.first + before.count + 100);
        assert_eq!((slots[0].0.as_str(), next[0].0.as_str()), ("h:00", "h:16"));
        assert!(ring.flush(&mut VecDeque::new()).is_empty());
    }

    proptest! {
        #[test]
        fn every_record_comes_out_once_and_in_order(lengths in proptest::collection::vec(0usize..=500, 0..100)) {
            let mut ring = Ring::new("h:", Dialect::default());
            let records: Vec<Record> = (0..).zip(lengths).map(|(n, length)| record(n, length)).collect();
            let mut pending: VecDeque<Record> = records.iter().cloned().collect();
            let mut read = Vec::new();
            while !pending.is_empty() {
                for (_, value) in ring.flush(&mut pending) {
                    let slot = read_slot(Versions::default(), &value).unwrap();
                    prop_assert_eq!(slot.first, read.len() as u64);
                    prop_assert_eq!(slot.count, slot.records.len() as u64);
                    read.extend(slot.records);
                }
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_text_panics(text in ".{0,100}", bytes: Vec<u8>) {
            let _ = read_slot(Versions::default(), &text);
            let _ = read_slot(Versions::default(), &BASE64.encode(bytes));
        }
    }
}
