//! Counts of what happened in a run: faults, checks, and rare situations.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Situations that many runs together must produce. A batch of runs in which one of them never occurs has failed, because either the
/// simulator no longer reaches it, or the node no longer does what the situation needs.
pub const SOMETIMES: [&str; 16] = [
    "a late ban lost against an unban",
    "an unban of another node ended a ban",
    "ban by a filter",
    "check: an operator's decision stands against a filter",
    "connection not answered",
    "datagram in fragments",
    "datagram lost: fragments dropped",
    "datagram to a closed port",
    "decision made but not saved",
    "fault: torn write",
    "sometimes: a gap is repaired",
    "sometimes: a nudge is lost and a repair brings the change",
    "sometimes: a replay is refused",
    "sometimes: a repair fails",
    "sometimes: a stamp waits",
    "sometimes: tables that differ are repaired",
];

/// The counts of a run. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<BTreeMap<String, u64>>>);

impl Counts {
    /// Counts one occurrence.
    pub fn add(&self, what: &str) {
        self.add_many(what, 1);
    }

    /// Counts occurrences.
    pub fn add_many(&self, what: &str, count: u64) {
        let mut counts = self.0.lock();
        if let Some(known) = counts.get_mut(what) {
            *known += count;
        } else if count > 0 {
            counts.insert(what.to_owned(), count);
        }
    }

    /// All counts.
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().clone()
    }
}
