//! The conditions that raise alarms, for the webhooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::{self, ClusterHandle};
use crate::decisions::journal;
use crate::decisions::judge;
use crate::decisions::store;
use crate::inputs::{detect, files};
use crate::operation::webhooks::Conditions;
use banmesh_core::alarm::Condition;

/// The share of `ban.max_bans` from which the table counts as nearly full, in percent.
const NEARLY_FULL: u64 = 90;
/// How long tables may differ, clocks be wrong or a node be alone before it raises an alarm.
const PATIENCE: Duration = Duration::from_secs(30);

/// The parts whose counters show the conditions.
pub struct AlarmSources {
    /// The journal's counters.
    pub journal: journal::Metrics,
    /// The store's counters.
    pub store: store::Metrics,
    /// `ban.max_bans`.
    pub max_bans: usize,
    /// The judge's counters.
    pub judge: judge::Metrics,
    /// The counters of detection.
    pub detection: detect::Metrics,
    /// The counters of followed files, if there are any.
    pub files: Option<files::Metrics>,
    /// The cluster, with its counters.
    pub cluster: Option<(ClusterHandle, cluster::Metrics)>,
}

/// Reads the current conditions from `parts`.
pub fn conditions(parts: AlarmSources) -> Conditions {
    let dropped_before = AtomicU64::new(0);
    let max_bans = u64::try_from(parts.max_bans).unwrap_or(u64::MAX);
    Arc::new(move || {
        let mut wrong = Vec::new();
        let mut add = |name, message: String, patience| wrong.push(Condition { name, message, patience });
        let unsaved = parts.journal.unsaved();
        if unsaved > 0 {
            let message = format!("{unsaved} changes are not on disk; check the log, and whether the disk is full");
            add("journal", message, Duration::ZERO);
        }
        let entries = parts.store.entries();
        if entries.saturating_mul(100) >= max_bans.saturating_mul(NEARLY_FULL) {
            let message = format!("the ban table holds {entries} of {max_bans} entries; raise ban.max_bans");
            add("table", message, Duration::ZERO);
        }
        let dropped = parts.judge.dropped();
        if dropped > dropped_before.swap(dropped, Ordering::Relaxed) {
            let message = "offences arrive faster than they are judged, so some are dropped".to_owned();
            add("overload", message, Duration::ZERO);
        }
        if let Some(message) = parts.detection.late().problem() {
            add("late_lines", message, Duration::ZERO);
        }
        if let Some(message) = parts.files.as_ref().and_then(files::Metrics::problem) {
            add("files", message, PATIENCE);
        }
        if let Some((handle, metrics)) = &parts.cluster {
            let peers = handle.members().live_peers().count();
            if peers == 0 {
                add("alone", "no other node of the cluster is reachable".to_owned(), PATIENCE);
            }
            for (name, count, what) in [
                ("disagreement", metrics.differing_nodes.get(), "nodes have a different ban table"),
                (
                    "clock",
                    metrics.skewed_nodes.get(),
                    "nodes have a clock that differs by more than cluster.max_clock_drift",
                ),
                ("duplicate", metrics.duplicate_nodes.get(), "nodes share their id with another node; set node.id"),
            ] {
                if count > 0 {
                    add(name, format!("{count} {what}; see `banmesh cluster status`"), PATIENCE);
                }
            }
        }
        wrong
    })
}
