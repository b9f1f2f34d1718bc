//! The judge's metrics.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use banmesh_core::evidence::Size;
use banmesh_core::judge::Mechanism;

/// The judge's metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) offences: Family<FilterLabel, Count>,
    pub(super) successes: Family<FilterLabel, Count>,
    pub(super) all_offences: Count,
    pub(super) verdicts: Family<VerdictLabel, Count>,
    pub(super) shadow_bans: Family<FilterLabel, Count>,
    pub(super) dropped: Count,
    pub(super) tracked: Gauge<i64, AtomicI64>,
    pub(super) evicted: Gauge<i64, AtomicI64>,
    pub(super) would: Family<MechanismLabel, Count>,
    pub(super) evidence: Family<TableLabel, Gauge<i64, AtomicI64>>,
    pub(super) evidence_bytes: Gauge<i64, AtomicI64>,
    pub(super) evidence_removed: Gauge<i64, AtomicI64>,
    pub(super) evidence_unsaved: Gauge<i64, AtomicI64>,
    pub(super) evidence_lost: Count,
    pub(super) accounts_attacked: Gauge<i64, AtomicI64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MechanismLabel {
    pub(super) mechanism: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TableLabel {
    pub(super) table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FilterLabel {
    pub(super) filter: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerdictLabel {
    pub(super) verdict: &'static str,
}

impl Metrics {
    /// Offences dropped because the judge's queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_offences", "Offences recognised, by filter", self.offences.clone());
        registry.register("banmesh_successes", "Successful logins recognised, by filter", self.successes.clone());
        registry.register("banmesh_verdicts", "Offences by outcome", self.verdicts.clone());
        registry.register(
            "banmesh_shadow_bans",
            "Bans that filters and rules in shadow mode would have made, by filter",
            self.shadow_bans.clone(),
        );
        registry.register(
            "banmesh_offences_dropped",
            "Offences not counted because too many were waiting",
            self.dropped.clone(),
        );
        registry.register("banmesh_tracked_targets", "Targets whose attempts are being counted", self.tracked.clone());
        registry.register(
            "banmesh_tracked_targets_evicted",
            "Targets no longer counted because ban.max_tracked was reached",
            self.evicted.clone(),
        );
        registry.register(
            "banmesh_evidence_observed",
            "Bans that a mechanism set to observe would have ordered, or prevented (known), by mechanism",
            self.would.clone(),
        );
        registry.register("banmesh_evidence_entries", "Entries of evidence, by table", self.evidence.clone());
        registry.register("banmesh_evidence_bytes", "Memory of the evidence", self.evidence_bytes.clone());
        registry.register(
            "banmesh_evidence_removed",
            "Entries of evidence removed early, or not written to disk, because there were too many",
            self.evidence_removed.clone(),
        );
        registry.register(
            "banmesh_evidence_unsaved",
            "1 while evidence cannot be written to the disk",
            self.evidence_unsaved.clone(),
        );
        registry.register(
            "banmesh_evidence_records_lost",
            "Records of evidence not sent because too many were waiting",
            self.evidence_lost.clone(),
        );
        registry.register(
            "banmesh_accounts_attacked",
            "Accounts in use that strangers from at least 8 networks tried within an hour, by the lines of this node",
            self.accounts_attacked.clone(),
        );
    }

    pub(super) fn attacked(&self, accounts: usize) {
        self.accounts_attacked.set(i64::try_from(accounts).unwrap_or(i64::MAX));
    }

    /// Whether evidence cannot be written to the disk.
    pub fn evidence_unsaved(&self) -> bool {
        self.evidence_unsaved.get() > 0
    }

    pub(super) fn would(&self, mechanism: Mechanism) {
        self.would.get_or_create(&MechanismLabel { mechanism: mechanism.as_str() }).inc();
    }

    pub(super) fn evidence(&self, size: &Size) {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for (table, entries) in [
            ("sources", size.sources),
            ("residents", size.residents),
            ("accounts", size.accounts),
            ("names", size.names),
            ("tried", size.tried),
            ("networks", size.bad),
        ] {
            self.evidence.get_or_create(&TableLabel { table }).set(number(entries));
        }
        self.evidence_bytes.set(number(size.bytes));
        self.evidence_removed.set(i64::try_from(size.removed.saturating_add(size.lost)).unwrap_or(i64::MAX));
    }

    /// Offences recognised by all filters since the start.
    pub fn all_offences(&self) -> u64 {
        self.all_offences.get()
    }

    /// Offences and successes recognised by `filter` since the start.
    pub fn recognised(&self, filter: &str) -> (u64, u64) {
        let label = FilterLabel { filter: filter.to_owned() };
        let counted = |family: &Family<FilterLabel, Count>| family.get(&label).map_or(0, |count| count.get());
        (counted(&self.offences), counted(&self.successes))
    }

    /// Bans that `filter` would have made in shadow mode since the start.
    pub fn shadow_bans(&self, filter: &str) -> u64 {
        let label = FilterLabel { filter: filter.to_owned() };
        self.shadow_bans.get(&label).map_or(0, |count| count.get())
    }

    pub(super) fn shadow_ban(&self, filter: &str) {
        self.shadow_bans.get_or_create(&FilterLabel { filter: filter.to_owned() }).inc();
    }

    pub(super) fn verdict(&self, verdict: &'static str) {
        self.verdicts.get_or_create(&VerdictLabel { verdict }).inc();
    }
}
