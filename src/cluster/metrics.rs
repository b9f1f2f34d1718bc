//! The metrics of the cluster.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use banmesh_cluster::members::Member;
use banmesh_cluster::repair::exchange::RepairOutcome;

/// The label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A few words from a fixed set.
    pub reason: &'static str,
}

/// The label `peer`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabel {
    /// The id of another node.
    pub peer: String,
}

/// The label `method`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabel {
    /// How a repair found what to exchange.
    pub method: &'static str,
}

/// The metrics of the cluster. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Their bytes, without the headers of UDP and IP.
    pub datagram_bytes_sent: Counter,
    /// Slots of the recent-changes log that were sent over TCP.
    pub slots_by_tcp: Counter,
    /// Live nodes that this node's datagrams do not reach.
    pub unfollowed_nodes: Gauge,
    /// Datagrams received and authenticated.
    pub datagrams_received: Counter,
    /// Datagrams dropped before chitchat received them, by reason.
    pub datagrams_dropped: Family<ReasonLabel, Counter>,
    /// Datagrams that the kernel refused to send.
    pub send_errors: Counter,
    /// Live nodes, including this one.
    pub live_nodes: Gauge,
    /// Live nodes whose table differs from ours.
    pub differing_nodes: Gauge,
    /// Live nodes whose clock differs by more than `cluster.max_clock_drift`.
    pub skewed_nodes: Gauge,
    /// Nodes that share an id with another.
    pub duplicate_nodes: Gauge,
    /// Live nodes that share no wire version with this one.
    pub incompatible_nodes: Gauge,
    /// Restarts of the membership.
    pub membership_restarts: Counter,
    /// Entries written to the recent-changes log.
    pub recent_changes_sent: Counter,
    /// Entries received from recent-changes logs.
    pub recent_changes_received: Counter,
    /// Entries that wait to be written to the recent-changes log.
    pub recent_changes_waiting: Gauge,
    /// Replication lag: the time until all live peers acknowledged a batch.
    pub spread_seconds: Histogram,
    /// Batches whose replication lag could not be measured, by reason.
    pub spread_unmeasured: Family<ReasonLabel, Counter>,
    /// By how much each live peer's clock is ahead of ours, in seconds.
    pub clock_offset_seconds: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    /// Batches written to the recent-changes log.
    pub recent_changes_flushes: Counter,
    /// Gaps in recent-changes logs, by reason. Each causes a repair.
    pub recent_changes_gaps: Family<ReasonLabel, Counter>,
    /// Records refused, by reason. A batch that cannot be read counts as one.
    pub records_refused: Family<ReasonLabel, Counter>,
    /// Repairs begun by this node, by reason.
    pub repairs: Family<ReasonLabel, Counter>,
    /// Repairs that failed, by reason.
    pub repairs_failed: Family<ReasonLabel, Counter>,
    /// Repairs that another node began and that succeeded.
    pub repairs_served: Counter,
    /// Entries sent in repairs.
    pub repair_sent: Counter,
    /// Entries received in repairs.
    pub repair_received: Counter,
    /// Bytes sent in repairs.
    pub repair_sent_bytes: Counter,
    /// Bytes received in repairs.
    pub repair_received_bytes: Counter,
    /// Successful repairs, begun by any node, by how they found what to exchange.
    pub repair_methods: Family<MethodLabel, Counter>,
    /// Repair connections of other nodes that failed, by reason.
    pub connections_dropped: Family<ReasonLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond, as on a LAN, to the minute after which batches count as not acknowledged.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
        Self {
            datagrams_sent: Counter::default(),
            datagram_bytes_sent: Counter::default(),
            slots_by_tcp: Counter::default(),
            unfollowed_nodes: Gauge::default(),
            datagrams_received: Counter::default(),
            datagrams_dropped: Family::default(),
            send_errors: Counter::default(),
            live_nodes: Gauge::default(),
            differing_nodes: Gauge::default(),
            skewed_nodes: Gauge::default(),
            duplicate_nodes: Gauge::default(),
            incompatible_nodes: Gauge::default(),
            membership_restarts: Counter::default(),
            recent_changes_sent: Counter::default(),
            recent_changes_received: Counter::default(),
            recent_changes_waiting: Gauge::default(),
            spread_seconds: Histogram::new(buckets),
            spread_unmeasured: Family::default(),
            clock_offset_seconds: Family::default(),
            recent_changes_flushes: Counter::default(),
            recent_changes_gaps: Family::default(),
            records_refused: Family::default(),
            repairs: Family::default(),
            repairs_failed: Family::default(),
            repairs_served: Counter::default(),
            repair_sent: Counter::default(),
            repair_received: Counter::default(),
            repair_sent_bytes: Counter::default(),
            repair_received_bytes: Counter::default(),
            repair_methods: Family::default(),
            connections_dropped: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("banmesh_cluster_datagrams_sent", "Gossip datagrams sent", &self.datagrams_sent);
        counter("banmesh_cluster_datagram_bytes_sent", "Bytes of datagrams sent", &self.datagram_bytes_sent);
        counter(
            "banmesh_cluster_slots_by_tcp",
            "Slots of the recent-changes log that were sent over TCP",
            &self.slots_by_tcp,
        );
        counter("banmesh_cluster_datagrams_received", "Gossip datagrams received", &self.datagrams_received);
        counter("banmesh_cluster_send_errors", "Datagrams that the kernel refused to send", &self.send_errors);
        counter("banmesh_cluster_membership_restarts", "Restarts of the membership", &self.membership_restarts);
        counter(
            "banmesh_cluster_recent_changes_sent",
            "Entries written to the recent-changes log",
            &self.recent_changes_sent,
        );
        counter(
            "banmesh_cluster_recent_changes_received",
            "Entries received from recent-changes logs",
            &self.recent_changes_received,
        );
        counter(
            "banmesh_cluster_recent_changes_flushes",
            "Batches written to the recent-changes log",
            &self.recent_changes_flushes,
        );
        counter("banmesh_cluster_repairs_served", "Successful repairs that other nodes began", &self.repairs_served);
        counter("banmesh_cluster_repair_sent", "Entries sent in repairs", &self.repair_sent);
        counter("banmesh_cluster_repair_received", "Entries received in repairs", &self.repair_received);
        counter("banmesh_cluster_repair_sent_bytes", "Bytes sent in repairs", &self.repair_sent_bytes);
        counter("banmesh_cluster_repair_received_bytes", "Bytes received in repairs", &self.repair_received_bytes);
        registry.register(
            "banmesh_cluster_repair_methods",
            "Successful repairs, begun by any node, by how they found what to exchange",
            self.repair_methods.clone(),
        );
        registry.register(
            "banmesh_cluster_spread_seconds",
            "Time until all live peers acknowledged a batch of changes",
            self.spread_seconds.clone(),
        );
        registry.register(
            "banmesh_cluster_clock_offset_seconds",
            "How far a live peer's clock is ahead of this node's",
            self.clock_offset_seconds.clone(),
        );
        let mut family = |name: &str, help: &str, family: &Family<ReasonLabel, Counter>| {
            registry.register(name, help, family.clone());
        };
        family("banmesh_cluster_datagrams_dropped", "Datagrams dropped, by reason", &self.datagrams_dropped);
        family(
            "banmesh_cluster_spread_unmeasured",
            "Batches whose replication lag was not measured, by reason",
            &self.spread_unmeasured,
        );
        family(
            "banmesh_cluster_recent_changes_gaps",
            "Gaps in recent-changes logs, by reason",
            &self.recent_changes_gaps,
        );
        family("banmesh_cluster_records_refused", "Records refused, by reason", &self.records_refused);
        family("banmesh_cluster_repairs", "Repairs that this node began, by reason", &self.repairs);
        family(
            "banmesh_cluster_repairs_failed",
            "Repairs that this node began and that failed, by reason",
            &self.repairs_failed,
        );
        family(
            "banmesh_cluster_connections_dropped",
            "Repair connections of other nodes that failed, by reason",
            &self.connections_dropped,
        );
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("banmesh_cluster_live_nodes", "Live nodes, including this one", &self.live_nodes);
        gauge(
            "banmesh_cluster_unfollowed_nodes",
            "Live nodes that this node's datagrams do not reach",
            &self.unfollowed_nodes,
        );
        gauge(
            "banmesh_cluster_differing_nodes",
            "Live nodes whose table differs from this node's",
            &self.differing_nodes,
        );
        gauge(
            "banmesh_cluster_recent_changes_waiting",
            "Entries that wait to be written to the recent-changes log",
            &self.recent_changes_waiting,
        );
        gauge(
            "banmesh_cluster_skewed_nodes",
            "Live nodes whose clock differs by more than cluster.max_clock_drift",
            &self.skewed_nodes,
        );
        gauge("banmesh_cluster_duplicate_nodes", "Nodes whose id another live node has too", &self.duplicate_nodes);
        gauge(
            "banmesh_cluster_incompatible_nodes",
            "Live nodes that share no wire version with this one",
            &self.incompatible_nodes,
        );
    }

    /// Sets the clock offsets of the live peers, and removes all others.
    pub(super) fn clock_offsets(&self, nodes: &[Member]) {
        self.clock_offset_seconds.clear();
        for node in nodes.iter().filter(|node| node.live && !node.is_self) {
            if let Some(ahead) = node.clock_ahead_ms {
                let peer = PeerLabel { peer: node.node.to_string() };
                self.clock_offset_seconds.get_or_create(&peer).set(ahead as f64 / 1000.0);
            }
        }
    }

    /// Counts what a successful repair exchanged.
    pub(super) fn exchanged(&self, outcome: &RepairOutcome) {
        self.repair_sent.inc_by(outcome.sent);
        self.repair_received.inc_by(outcome.received);
        self.repair_sent_bytes.inc_by(outcome.sent_bytes);
        self.repair_received_bytes.inc_by(outcome.received_bytes);
        self.repair_methods.get_or_create(&MethodLabel { method: outcome.method.as_str() }).inc();
    }

    /// Adds one to the counter of `reason`.
    pub(super) fn count(family: &Family<ReasonLabel, Counter>, reason: &'static str) {
        family.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The counter of `family` for `reason`.
    pub(super) fn counter(family: &Family<ReasonLabel, Counter>, reason: &'static str) -> Counter {
        family.get_or_create_owned(&ReasonLabel { reason })
    }

    /// Adds `many` to the counter of `reason`.
    pub(super) fn count_many(family: &Family<ReasonLabel, Counter>, reason: &'static str, many: u64) {
        family.get_or_create(&ReasonLabel { reason }).inc_by(many);
    }

    /// The counter of `reason`.
    pub fn counted(family: &Family<ReasonLabel, Counter>, reason: &'static str) -> u64 {
        family.get_or_create(&ReasonLabel { reason }).get()
    }
}
