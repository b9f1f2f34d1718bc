//! Counts of what happened in a run: faults, checks, and rare situations.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Situations that many runs together must produce. A batch of runs in which one of them never occurs has failed, because either the
/// simulator no longer reaches it, or the node no longer does what the situation needs.
pub const SOMETIMES: [&str; 0] = [];

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
