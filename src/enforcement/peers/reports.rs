//! Offences that HAProxy counts in a table: what is new goes to the judge.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::metrics::Metrics;
use banmesh_peers::reports::{Outcome, client};
use banmesh_peers::{Definition, Value, reports};
use banmesh_types::address::Address;

/// The most keys of which the last count is kept.
const MAX_KEYS: usize = 262_144;

/// Offences of one client that HAProxy counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedOffences {
    /// The client.
    pub source: Address,
    /// The table.
    pub table: Arc<str>,
    /// How many.
    pub times: u32,
}

/// Takes offences. Returns whether they were taken.
pub type Sink = Arc<dyn Fn(CountedOffences) -> bool + Send + Sync>;

/// The tables whose `gpc0` counts offences.
pub(super) struct Reports {
    tables: Vec<Arc<str>>,
    seen: Mutex<reports::Reports>,
    sink: Sink,
    metrics: Metrics,
}

impl Reports {
    pub(super) fn new(tables: &[String], sink: Sink, metrics: Metrics) -> Self {
        let tables = tables.iter().map(|name| Arc::from(name.as_str())).collect();
        Self { tables, seen: Mutex::new(reports::Reports::new(MAX_KEYS)), sink, metrics }
    }

    /// Whether the counter of this table counts offences.
    pub(super) fn has(&self, table: &str) -> bool {
        self.tables.iter().any(|name| **name == *table)
    }

    /// Why the table of a HAProxy cannot be used; `None` if it can, or counts no offences.
    pub(super) fn unusable(&self, table: &Definition, haproxy: &str) -> Option<String> {
        let name = table.short_name();
        (self.has(name) && !reports::Reports::is_usable(table)).then(|| {
            format!(
                "the table `{name}` of HAProxy {haproxy} is in haproxy.peers.report_tables, so it must be `type ipv6` and `store gpc0`"
            )
        })
    }

    /// Takes an entry that `haproxy` sent.
    pub(super) fn take(
        &self,
        haproxy: &str,
        table: &Definition,
        (key, values): (&[u8], &[Value]),
        in_lesson: bool,
        now: Instant,
    ) {
        let Some(name) = self.tables.iter().find(|name| ***name == *table.short_name()) else { return };
        // A table that cannot be used is in the status.
        let Some(source) = client(key).filter(|_| reports::Reports::is_usable(table)) else { return };
        match self.seen.lock().take(haproxy, table, key, values, in_lesson, now) {
            Outcome::New(0) => {}
            Outcome::New(times) => {
                let taken = (self.sink)(CountedOffences { source: source.into(), table: Arc::clone(name), times });
                self.metrics.reports(if taken { "taken" } else { "queue full" }, times);
            }
            Outcome::Dropped => self.metrics.reports("too many clients", 1),
        }
    }

    /// `haproxy` has sent everything that it had.
    pub(super) fn taught(&self, haproxy: &str) {
        if !self.tables.is_empty() {
            self.seen.lock().taught(haproxy);
        }
    }

    /// A session of `haproxy` begins or ends.
    pub(super) fn interrupted(&self, haproxy: &str) {
        self.seen.lock().interrupted(haproxy);
    }
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").field("tables", &self.tables).finish_non_exhaustive()
    }
}
