//! The store's metrics.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::failure::Failure;
use super::{Summary, WideBans};
use crate::decisions::batch::{Batch, Source};
use crate::decisions::view::ViewWriter;
use banmesh_core::ban::State;
use banmesh_core::breadth::Share;
use banmesh_core::clock_step::Step;
use banmesh_core::ledger::{Arrival, Ledger, Limit};
use banmesh_types::time::UnixMillis;

/// The store's metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    bans: Family<FilterLabel, Counter>,
    refused_full: Counter<u64, AtomicU64>,
    dropped: Counter<u64, AtomicU64>,
    refused_records: Family<LimitLabel, Counter>,
    clock_steps: Counter<u64, AtomicU64>,
    clock_step: Gauge<f64, AtomicU64>,
    refused_allowed: Counter<u64, AtomicU64>,
    failed: Family<ReasonLabel, Counter>,
    allowlist_entries: Gauge<i64, AtomicI64>,
    merged: Family<OutcomeLabel, Counter>,
    changes: Family<ChangeLabel, Counter>,
    active: Gauge<i64, AtomicI64>,
    entries: Gauge<i64, AtomicI64>,
    limit: Gauge<i64, AtomicI64>,
    early: Gauge<i64, AtomicI64>,
    bytes: Gauge<i64, AtomicI64>,
    banned_share: Gauge<f64, AtomicU64>,
    banned_share_limit: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FilterLabel {
    filter: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabel {
    change: &'static str,
    origin: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_bans", "Automatic bans by this node, by filter", self.bans.clone());
        registry.register(
            "banmesh_bans_refused_full",
            "Bans refused because the table is full (ban.max_bans)",
            self.refused_full.clone(),
        );
        registry.register(
            "banmesh_table_dropped",
            "Expired bans dropped before ban.max_memory_ttl because the table was nearly full",
            self.dropped.clone(),
        );
        for limit in [Limit::Full, Limit::Allowlist, Limit::Width] {
            self.refused_records.get_or_create(&LimitLabel { limit: label_of(limit) }).inc_by(0);
        }
        registry.register(
            "banmesh_store_refused",
            "Entries of other nodes refused, by the limit that they exceed: full, allowlist or width",
            self.refused_records.clone(),
        );
        registry.register(
            "banmesh_bans_refused_allowed",
            "Automatic bans refused because an operator has allowed the target",
            self.refused_allowed.clone(),
        );
        // Alerts need the value 0 before the first failure.
        for reason in Failure::REASONS {
            self.failed.get_or_create(&ReasonLabel { reason }).inc_by(0);
        }
        registry.register(
            "banmesh_bans_failed",
            "Automatic bans that failed, by reason; banmesh_bans_refused_full counts those refused by a full table",
            self.failed.clone(),
        );
        registry.register(
            "banmesh_allowlist_entries",
            "Allowlist entries of operators in force",
            self.allowlist_entries.clone(),
        );
        registry.register("banmesh_store_merged", "Entries received from other nodes, by outcome", self.merged.clone());
        registry.register(
            "banmesh_changes",
            "Bans and unbans that took effect here, by change and origin",
            self.changes.clone(),
        );
        registry.register("banmesh_active_bans", "Bans in force", self.active.clone());
        registry.register(
            "banmesh_table_entries",
            "Entries in the ban table, including those that are not in force",
            self.entries.clone(),
        );
        registry.register(
            "banmesh_table_limit",
            "The most entries in the ban table (ban.max_bans); a sixteenth is reserved for operators and for other nodes",
            self.limit.clone(),
        );
        registry.register(
            "banmesh_table_early_entries",
            "Entries from nodes with a faster clock that wait for this node's clock",
            self.early.clone(),
        );
        registry.register("banmesh_table_bytes", "Memory used by the ban table and its view", self.bytes.clone());
        registry.register(
            "banmesh_banned_ipv4_ratio",
            "Share of all IPv4 addresses that is banned, from 0 to 1",
            self.banned_share.clone(),
        );
        registry.register(
            "banmesh_banned_ipv4_limit_ratio",
            "Share of all IPv4 addresses from which an alarm is raised (ban.alarm_ipv4_percent)",
            self.banned_share_limit.clone(),
        );
        registry.register(
            "banmesh_clock_steps",
            "Steps of this node's clock by more than two seconds",
            self.clock_steps.clone(),
        );
        registry.register(
            "banmesh_clock_step_seconds",
            "Size of the last step of this node's clock; negative if it was set back",
            self.clock_step.clone(),
        );
    }

    /// The number of entries in the table, updated every second.
    pub fn entries(&self) -> u64 {
        u64::try_from(self.entries.get()).unwrap_or(0)
    }

    /// Bans that took effect here, made by any node.
    pub fn all_bans(&self) -> u64 {
        self.all("banned")
    }

    /// Unbans that took effect here, from every node.
    pub fn all_unbans(&self) -> u64 {
        self.all("unbanned")
    }

    fn all(&self, change: &'static str) -> u64 {
        let of = |origin| self.changes.get_or_create(&ChangeLabel { change, origin }).get();
        of("local") + of("remote")
    }

    pub(super) fn changed(&self, batch: &Batch, now: UnixMillis) {
        let (mut banned, mut unbanned) = (0, 0);
        for entry in batch.changes.iter().filter_map(|change| change.announcement(now)) {
            banned += u64::from(matches!(entry.state, State::Banned { .. }));
            unbanned += u64::from(matches!(entry.state, State::Unbanned));
        }
        let origin = match batch.source {
            Source::Local => "local",
            Source::Remote | Source::OtherSite(_) => "remote",
        };
        for (change, times) in [("banned", banned), ("unbanned", unbanned)] {
            if times > 0 {
                self.changes.get_or_create(&ChangeLabel { change, origin }).inc_by(times);
            }
        }
    }

    /// Automatic bans by this node for offences of `filter`, since the start.
    pub fn bans_by(&self, filter: &str) -> u64 {
        self.bans.get(&FilterLabel { filter: filter.to_owned() }).map_or(0, |count| count.get())
    }

    pub(super) fn banned(&self, filter: &str) {
        self.bans.get_or_create(&FilterLabel { filter: filter.to_owned() }).inc();
    }

    pub(super) fn clock_was_set(&self, step: Step) {
        self.clock_steps.inc();
        self.clock_step.set(step.by_ms as f64 / 1000.0);
    }

    pub(super) fn breadth(&self, share: Share, limit: Option<Share>) {
        self.banned_share.set(share.percent() / 100.0);
        self.banned_share_limit.set(limit.map_or(1.0, |limit| limit.percent() / 100.0));
    }

    /// The alarm about too many banned addresses, if there is one; updated about once a minute.
    pub fn wide_bans(&self) -> Option<WideBans> {
        let share = |gauge: &Gauge<f64, AtomicU64>| Share::of_percent(gauge.get() * 100.0);
        let (share, limit) = (share(&self.banned_share), share(&self.banned_share_limit));
        (share > limit).then_some(WideBans { share, limit })
    }

    pub(super) fn refused_full(&self) {
        self.refused_full.inc();
    }

    pub(super) fn dropped(&self, entries: usize) {
        self.dropped.inc_by(entries as u64);
    }

    /// Expired bans that a full table dropped since the start.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Automatic bans and records of other nodes that were refused because the table or the allowlist was full, since the start.
    pub fn all_refused(&self) -> u64 {
        let records = |limit| self.refused_records.get_or_create(&LimitLabel { limit: label_of(limit) }).get();
        self.refused_full.get() + [Limit::Full, Limit::Allowlist, Limit::Width].map(records).iter().sum::<u64>()
    }

    pub(super) fn failed(&self, reason: &'static str) {
        self.failed.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn refused_allowed(&self) {
        self.refused_allowed.inc();
    }

    pub(super) fn arrived(&self, arrival: &Arrival) {
        let outcome = match arrival {
            Arrival::Changed(_) => "changed",
            Arrival::Known => "known",
            Arrival::PastRetention => "forgotten",
            Arrival::Early => "early",
            Arrival::Dropped => "dropped",
            Arrival::Refused(limit) => {
                self.refused_records.get_or_create(&LimitLabel { limit: label_of(*limit) }).inc();
                "refused"
            }
        };
        self.merged.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn table(&self, ledger: &mut Ledger, view: &ViewWriter, now: UnixMillis) {
        let summary = Summary::of(ledger, view, now);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(count(summary.active));
        self.entries.set(count(summary.entries));
        self.limit.set(count(ledger.limits().max_bans));
        self.early.set(count(summary.early));
        self.bytes.set(count(summary.bytes));
        self.allowlist_entries.set(count(ledger.exemptions().len()));
    }
}

const fn label_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Full => "full",
        Limit::Allowlist => "allowlist",
        Limit::Width => "width",
    }
}
