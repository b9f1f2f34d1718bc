//! The journal's metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The journal's metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) commits: Counter,
    pub(super) errors: Counter,
    pub(super) commit_seconds: Histogram,
    pub(super) entries: Gauge,
    pub(super) bytes: Gauge,
    pub(super) waiting: Gauge,
    pub(super) unsaved: Gauge,
    pub(super) lag_seconds: Gauge<f64, AtomicU64>,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// What is wrong with the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The error, with what to do about it.
    pub error: String,
    /// Where the damaged file is now, if a new one has replaced it.
    pub set_aside: Option<PathBuf>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From half a millisecond, which a good SSD needs, to the seconds of a stalled disk.
        let buckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
        Self {
            commits: Counter::default(),
            errors: Counter::default(),
            commit_seconds: Histogram::new(buckets),
            entries: Gauge::default(),
            bytes: Gauge::default(),
            waiting: Gauge::default(),
            unsaved: Gauge::default(),
            lag_seconds: Gauge::default(),
            trouble: Arc::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_journal_commits", "Transactions committed to disk", self.commits.clone());
        registry.register("banmesh_journal_errors", "Transactions that failed and are retried", self.errors.clone());
        registry.register(
            "banmesh_journal_commit_seconds",
            "Time to commit a transaction to disk",
            self.commit_seconds.clone(),
        );
        registry.register("banmesh_journal_entries", "Entries in the journal", self.entries.clone());
        registry.register("banmesh_journal_bytes", "Size of the journal on disk", self.bytes.clone());
        registry.register(
            "banmesh_journal_waiting_changes",
            "Changes waiting to be written to disk",
            self.waiting.clone(),
        );
        registry.register(
            "banmesh_journal_unsaved_entries",
            "Entries not written because of disk errors; lost if the node stops before the disk recovers",
            self.unsaved.clone(),
        );
        registry.register(
            "banmesh_journal_lag_seconds",
            "Age of the oldest change in the last transaction at its commit, or of the oldest unsaved change",
            self.lag_seconds.clone(),
        );
    }

    /// The size of the journal on disk, in bytes.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.bytes.get()).unwrap_or(0)
    }

    /// Changes that wait to be written.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.waiting.get()).unwrap_or(0)
    }

    /// Entries that could not be written so far.
    pub fn unsaved(&self) -> u64 {
        u64::try_from(self.unsaved.get()).unwrap_or(0)
    }

    /// What is wrong with the journal: it cannot be written at the moment, or it was damaged when the node started.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.trouble.lock() = trouble;
    }

    pub(super) fn lag(&self, lag: Duration) {
        self.lag_seconds.set(lag.as_secs_f64());
    }
}

/// A count as a gauge's value.
pub(super) fn level(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
