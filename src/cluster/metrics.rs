//! What a cluster counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::members::Member;

/// Why something was dropped or begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// In a word or two.
    pub reason: &'static str,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Peer {
    /// Its name.
    pub peer: String,
}

/// The counters of a cluster; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Datagrams received and opened.
    pub datagrams_received: Counter,
    /// Datagrams dropped before anything believed them, by reason.
    pub datagrams_dropped: Family<Reason, Counter>,
    /// Datagrams that the kernel refused to send.
    pub send_errors: Counter,
    /// Live nodes, this one included.
    pub live_nodes: Gauge,
    /// Live nodes whose table differs from ours.
    pub differing_nodes: Gauge,
    /// Live nodes whose clock is off by more than `cluster.max_clock_drift`.
    pub skewed_nodes: Gauge,
    /// Nodes that share an id with another.
    pub duplicate_nodes: Gauge,
    /// Live nodes that share no wire version with this one.
    pub incompatible_nodes: Gauge,
    /// Times that the membership had to be started anew.
    pub membership_restarts: Counter,
    /// Entries sent in the hot ring.
    pub hot_sent: Counter,
    /// Entries received from hot rings.
    pub hot_received: Counter,
    /// Entries that wait for their place in the hot ring.
    pub hot_waiting: Gauge,
    /// How long batches took until all peers had them, by their acknowledgement.
    pub spread_seconds: Histogram,
    /// Batches whose spread could not be measured, by reason.
    pub spread_unmeasured: Family<Reason, Counter>,
    /// By how much each live peer's clock is ahead of ours, in seconds.
    pub clock_offset_seconds: Family<Peer, Gauge<f64, AtomicU64>>,
    /// Batches of the hot ring that were sent.
    pub hot_flushes: Counter,
    /// Gaps seen in hot rings, by reason; each leads to a repair.
    pub hot_gaps: Family<Reason, Counter>,
    /// Records refused, by reason; a batch that cannot be read counts as one.
    pub records_refused: Family<Reason, Counter>,
    /// Repairs begun by this node, by reason.
    pub repairs: Family<Reason, Counter>,
    /// Repairs that failed, by reason.
    pub repairs_failed: Family<Reason, Counter>,
    /// Repairs that another node began and that ended well.
    pub repairs_served: Counter,
    /// Entries sent in repairs.
    pub repair_sent: Counter,
    /// Entries received in repairs.
    pub repair_received: Counter,
    /// Connections dropped before they were a session, by reason.
    pub connections_dropped: Family<Reason, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From the millisecond of a LAN to the minute after which nobody waits any more.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
        Self {
            datagrams_sent: Counter::default(),
            datagrams_received: Counter::default(),
            datagrams_dropped: Family::default(),
            send_errors: Counter::default(),
            live_nodes: Gauge::default(),
            differing_nodes: Gauge::default(),
            skewed_nodes: Gauge::default(),
            duplicate_nodes: Gauge::default(),
            incompatible_nodes: Gauge::default(),
            membership_restarts: Counter::default(),
            hot_sent: Counter::default(),
            hot_received: Counter::default(),
            hot_waiting: Gauge::default(),
            spread_seconds: Histogram::new(buckets),
            spread_unmeasured: Family::default(),
            clock_offset_seconds: Family::default(),
            hot_flushes: Counter::default(),
            hot_gaps: Family::default(),
            records_refused: Family::default(),
            repairs: Family::default(),
            repairs_failed: Family::default(),
            repairs_served: Counter::default(),
            repair_sent: Counter::default(),
            repair_received: Counter::default(),
            connections_dropped: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds all of them to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("banmesh_cluster_datagrams_sent", "Gossip datagrams sent", &self.datagrams_sent);
        counter("banmesh_cluster_datagrams_received", "Gossip datagrams received", &self.datagrams_received);
        counter("banmesh_cluster_send_errors", "Gossip datagrams that the kernel refused to send", &self.send_errors);
        counter("banmesh_cluster_membership_restarts", "Restarts of the gossip membership", &self.membership_restarts);
        counter("banmesh_cluster_hot_sent", "Entries sent in recent-changes logs", &self.hot_sent);
        counter("banmesh_cluster_hot_received", "Entries received in recent-changes logs", &self.hot_received);
        counter("banmesh_cluster_hot_flushes", "Batches sent in recent-changes logs", &self.hot_flushes);
        counter("banmesh_cluster_repairs_served", "Repairs started by other nodes", &self.repairs_served);
        counter("banmesh_cluster_repair_sent", "Entries sent in repairs", &self.repair_sent);
        counter("banmesh_cluster_repair_received", "Entries received in repairs", &self.repair_received);
        registry.register(
            "banmesh_cluster_spread_seconds",
            "Time until all live peers acknowledged a batch of changes",
            self.spread_seconds.clone(),
        );
        registry.register(
            "banmesh_cluster_clock_offset_seconds",
            "How far the clock of a live peer is ahead of this node",
            self.clock_offset_seconds.clone(),
        );
        let mut family = |name: &str, help: &str, family: &Family<Reason, Counter>| {
            registry.register(name, help, family.clone());
        };
        family("banmesh_cluster_datagrams_dropped", "Datagrams dropped, by reason", &self.datagrams_dropped);
        family(
            "banmesh_cluster_spread_unmeasured",
            "Batches whose spread was not measured, by reason",
            &self.spread_unmeasured,
        );
        family("banmesh_cluster_hot_gaps", "Gaps in received recent-changes logs, by reason", &self.hot_gaps);
        family("banmesh_cluster_records_refused", "Records refused, by reason", &self.records_refused);
        family("banmesh_cluster_repairs", "Repairs started by this node, by reason", &self.repairs);
        family("banmesh_cluster_repairs_failed", "Repairs that failed, by reason", &self.repairs_failed);
        family("banmesh_cluster_connections_dropped", "Repair connections dropped", &self.connections_dropped);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("banmesh_cluster_live_nodes", "Live nodes, including this one", &self.live_nodes);
        gauge("banmesh_cluster_differing_nodes", "Live nodes with a different ban table", &self.differing_nodes);
        gauge("banmesh_cluster_hot_waiting", "Entries waiting for the recent-changes log", &self.hot_waiting);
        gauge("banmesh_cluster_skewed_nodes", "Live nodes with a wrong clock", &self.skewed_nodes);
        gauge("banmesh_cluster_duplicate_nodes", "Nodes that share an id", &self.duplicate_nodes);
        gauge(
            "banmesh_cluster_incompatible_nodes",
            "Live nodes without a common wire version",
            &self.incompatible_nodes,
        );
    }

    /// The offsets of the live peers; those of others go.
    pub(super) fn clock_offsets(&self, nodes: &[Member]) {
        self.clock_offset_seconds.clear();
        for node in nodes.iter().filter(|node| node.live && !node.is_self) {
            if let Some(ahead) = node.clock_ahead_ms {
                let peer = Peer { peer: node.node.to_string() };
                self.clock_offset_seconds.get_or_create(&peer).set(ahead as f64 / 1000.0);
            }
        }
    }

    /// Counts one more of `family` for `reason`.
    pub(super) fn count(family: &Family<Reason, Counter>, reason: &'static str) {
        family.get_or_create(&Reason { reason }).inc();
    }

    /// Counts `many` more of `family` for `reason`.
    pub(super) fn count_many(family: &Family<Reason, Counter>, reason: &'static str, many: u64) {
        family.get_or_create(&Reason { reason }).inc_by(many);
    }

    /// How many of `family` were counted for `reason`.
    pub fn counted(family: &Family<Reason, Counter>, reason: &'static str) -> u64 {
        family.get_or_create(&Reason { reason }).get()
    }
}
