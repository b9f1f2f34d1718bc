//! Counts of what happened in a run: faults, checks, and rare situations.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// So many runs together must produce all situations.
pub const ENOUGH: u64 = 500;

/// Situations that many runs together must produce. A batch of runs in which one of them never occurs has failed, because either the
/// simulator no longer reaches it, or the node no longer does what the situation needs.
pub const SOMETIMES: [&str; 25] = [
    "a late ban lost against an unban",
    "an operator exempts a source while a filter bans it",
    "an unban of another node ended a ban",
    "ban by a filter",
    "check: HAProxies have their counters back",
    "check: a gap is followed by a repair",
    "check: a node joins while another answers no connections",
    "check: an operator's decision stands against a filter",
    "check: evidence is equal",
    "check: sums are what was counted",
    "connection not answered",
    "datagram to a closed port",
    "decision made but not saved",
    "fault: torn write",
    "sometimes: a counter that was lost is sent again",
    "sometimes: a decision of another site is passed on",
    "sometimes: a gap is repaired",
    "sometimes: a late counter is ignored",
    "sometimes: a nudge is lost and a repair brings the change",
    "sometimes: a replay is refused",
    "sometimes: a repair fails",
    "sometimes: a restarted HAProxy gets its counters back",
    "sometimes: a stamp waits",
    "sometimes: evidence that differs is repaired",
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

    /// How often something was counted.
    pub fn of(&self, what: &str) -> u64 {
        self.0.lock().get(what).copied().unwrap_or_default()
    }

    /// All counts.
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().clone()
    }
}
