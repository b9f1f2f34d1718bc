//! The sending side of the recent-changes log: changes and counts that wait for their slots.

use std::collections::{HashMap, VecDeque};

use banmesh_core::attempts::{Key, SlotCount};
use banmesh_core::ban::BanEntry;
use banmesh_core::evidence::EvidenceRecord;
use banmesh_core::wire::{Attempts, Dialect, Record};
use banmesh_types::target::Target;

use crate::ring::{Ring, WrittenSlot};

/// The prefix of the keys of recent-changes logs in a node's gossip state.
pub const KEY_PREFIX: &str = "h:";
/// The letter after the prefix in the names of slots with bans.
pub const BANS: char = 'b';
/// The letter after the prefix in the names of slots with attempts.
pub const ATTEMPTS: char = 'a';

/// Records that wait at most. If there are more, all are dropped, and the other nodes get them by repair.
const MAX_PENDING: usize = 50_000;

/// What this node publishes: a log of bans, and one of attempt counts.
#[derive(Debug)]
pub struct Outbox {
    generation: u64,
    bans: Ring,
    attempts: Ring,
    pending: VecDeque<Record>,
    /// The latest count of each slot of a window; an older one need not be sent.
    counts: HashMap<(Key, u64), u32, foldhash::fast::RandomState>,
    /// Evidence that waits. It is sent in the log of attempts, because nothing is repaired when it is lost there.
    evidence: VecDeque<Record>,
}

/// What one flush writes.
#[derive(Debug)]
pub struct Flush {
    /// Slots of the log of bans.
    pub bans: Vec<WrittenSlot>,
    /// Slots of the log of attempts.
    pub attempts: Vec<WrittenSlot>,
    /// How many ban entries are in them.
    pub entries: usize,
}

impl Outbox {
    /// An empty outbox of a node that was started for the `generation`th time. A slot should have at most `slot_len` bytes.
    pub fn new(generation: u64, dialect: Dialect, slot_len: usize) -> Self {
        Self {
            generation,
            bans: Ring::new(&format!("{KEY_PREFIX}{BANS}"), dialect, slot_len),
            attempts: Ring::new(&format!("{KEY_PREFIX}{ATTEMPTS}"), dialect, slot_len),
            pending: VecDeque::new(),
            counts: HashMap::default(),
            evidence: VecDeque::new(),
        }
    }

    /// Queues changes. Returns false if that made the queue too long: it is then emptied, and the sequence numbers of its
    /// records are skipped.
    #[must_use]
    pub fn queue(&mut self, changes: impl IntoIterator<Item = (Target, BanEntry)>) -> bool {
        self.pending.extend(changes.into_iter().map(|(target, entry)| Record::Ban { target, entry }));
        let fits = self.pending.len() <= MAX_PENDING;
        if !fits {
            let dropped = self.pending.len() as u64;
            self.pending.clear();
            self.skip(dropped);
        }
        fits
    }

    /// Skips the sequence numbers of `count` changes that will not be sent. The other nodes see the gap and repair.
    pub const fn skip(&mut self, count: u64) {
        self.bans.skip(count);
    }

    /// Queues an attempt count. It is dropped while too many wait: that only delays a ban.
    pub fn count(&mut self, SlotCount { key, slot, count }: SlotCount) {
        if self.counts.len() < MAX_PENDING {
            self.counts.insert((key, slot), count);
        }
    }

    /// Queues evidence. Returns `false` if too much waits: it is then dropped, and a comparison of digests brings it later.
    pub fn add_evidence(&mut self, evidence: EvidenceRecord) -> bool {
        let fits = self.evidence.len() < MAX_PENDING;
        if fits {
            self.evidence.push_back(Record::Evidence(evidence));
        }
        fits
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.counts.is_empty() && self.evidence.is_empty()
    }

    /// How many changes wait.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The sequence number after the last change that was flushed.
    pub const fn flushed(&self) -> u64 {
        self.bans.next()
    }

    /// The sequence number after the last change, flushed or not.
    pub fn end(&self) -> u64 {
        self.bans.next() + self.pending.len() as u64
    }

    /// Takes what fits into one flush, in wire version `version`.
    pub fn flush(&mut self, version: u8) -> Flush {
        self.bans.set_version(version);
        self.attempts.set_version(version);
        let before = self.pending.len();
        let bans = self.bans.flush(&mut self.pending);
        let generation = self.generation;
        let attempt =
            |((key, slot), count)| Record::Attempts(Attempts { generation, share: SlotCount { key, slot, count } });
        let mut waiting: VecDeque<Record> = self.counts.drain().map(attempt).collect();
        waiting.append(&mut self.evidence);
        let attempts = self.attempts.flush(&mut waiting);
        for record in waiting {
            match record {
                Record::Attempts(Attempts { share, .. }) => self.count(share),
                Record::Evidence(_) => self.evidence.push_back(record),
                Record::Ban { .. } => {}
            }
        }
        Flush { bans, attempts, entries: before - self.pending.len() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ring::read_slot;
    use banmesh_core::attempts::JailId;
    use banmesh_core::ban::{By, Cause};
    use banmesh_core::hlc::{Hlc, Stamp};
    use banmesh_core::wire::Versions;
    use banmesh_types::time::Expiry;

    fn change(n: u32) -> (Target, BanEntry) {
        let stamp = Stamp { hlc: Hlc(u64::from(n)), node: "n".parse().unwrap() };
        let cause = Arc::new(Cause::new(By::Filter("f".into()), "r"));
        let entry = BanEntry::by_filter(stamp, Expiry::NEVER, cause, 1, Expiry::from_seconds(60));
        (Target::host(n.to_be_bytes().into()), entry)
    }

    #[test]
    fn dropped_changes_leave_a_gap_in_the_sequence() {
        let (dialect, version) = (Dialect::default(), Dialect::default().versions.newest);
        let mut outbox = Outbox::new(1, dialect, 1_000);
        assert!(outbox.queue((0..3).map(change)));
        assert_eq!((outbox.flushed(), outbox.end()), (0, 3));
        assert_eq!(outbox.flush(version).entries, 3);
        let too_many = u32::try_from(MAX_PENDING).unwrap() + 1;
        assert!(!outbox.queue((0..too_many).map(change)));
        assert!(outbox.is_empty());
        assert!(outbox.queue([change(1)]));
        let flush = outbox.flush(version);
        assert!(flush.bans[0].key.starts_with("h:b"));
        let slot = read_slot(Versions::default(), &flush.bans[0].value()).unwrap();
        assert_eq!((slot.first, slot.count), (3 + u64::from(too_many), 1));
    }

    #[test]
    fn only_the_latest_count_of_a_slot_is_sent() {
        let mut outbox = Outbox::new(7, Dialect::default(), 1_000);
        let key = (JailId::of_policy("p"), Target::host([192, 0, 2, 1].into()));
        for count in 1..=5 {
            outbox.count(SlotCount { key, slot: 9, count });
        }
        let flush = outbox.flush(Dialect::default().versions.newest);
        assert_eq!((flush.entries, flush.bans.len(), flush.attempts.len()), (0, 0, 1));
        assert!(flush.attempts[0].key.starts_with("h:a"));
        let slot = read_slot(Versions::default(), &flush.attempts[0].value()).unwrap();
        let share = SlotCount { key, slot: 9, count: 5 };
        assert_eq!(slot.records, [Record::Attempts(Attempts { generation: 7, share })]);
        assert!(outbox.is_empty());
    }
}
