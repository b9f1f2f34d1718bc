//! What a cluster counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why something was dropped or begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// In a word or two.
    pub reason: &'static str,
}

/// The counters of a cluster; clones share them.
#[derive(Clone, Debug, Default)]
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
    /// Times that the membership had to be started anew.
    pub membership_restarts: Counter,
    /// Entries sent in the hot ring.
    pub hot_sent: Counter,
    /// Entries received from hot rings.
    pub hot_received: Counter,
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

impl Metrics {
    /// Adds all of them to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("banmesh_cluster_datagrams_sent", "Gossip datagrams sent", &self.datagrams_sent);
        counter("banmesh_cluster_datagrams_received", "Gossip datagrams received", &self.datagrams_received);
        counter("banmesh_cluster_send_errors", "Datagrams the kernel refused to send", &self.send_errors);
        counter("banmesh_cluster_membership_restarts", "Restarts of the membership", &self.membership_restarts);
        counter("banmesh_cluster_hot_sent", "Entries sent in the hot ring", &self.hot_sent);
        counter("banmesh_cluster_hot_received", "Entries received from hot rings", &self.hot_received);
        counter("banmesh_cluster_hot_flushes", "Batches sent in the hot ring", &self.hot_flushes);
        counter("banmesh_cluster_repairs_served", "Repairs that others began", &self.repairs_served);
        counter("banmesh_cluster_repair_sent", "Entries sent in repairs", &self.repair_sent);
        counter("banmesh_cluster_repair_received", "Entries received in repairs", &self.repair_received);
        let mut family = |name: &str, help: &str, family: &Family<Reason, Counter>| {
            registry.register(name, help, family.clone());
        };
        family("banmesh_cluster_datagrams_dropped", "Datagrams dropped, by reason", &self.datagrams_dropped);
        family("banmesh_cluster_hot_gaps", "Gaps in hot rings, by reason", &self.hot_gaps);
        family("banmesh_cluster_records_refused", "Records refused, by reason", &self.records_refused);
        family("banmesh_cluster_repairs", "Repairs begun here, by reason", &self.repairs);
        family("banmesh_cluster_repairs_failed", "Repairs that failed, by reason", &self.repairs_failed);
        family("banmesh_cluster_connections_dropped", "Repair connections dropped", &self.connections_dropped);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("banmesh_cluster_live_nodes", "Live nodes, this one included", &self.live_nodes);
        gauge("banmesh_cluster_differing_nodes", "Live nodes with another table", &self.differing_nodes);
        gauge("banmesh_cluster_skewed_nodes", "Live nodes with a wrong clock", &self.skewed_nodes);
        gauge("banmesh_cluster_duplicate_nodes", "Nodes that share an id", &self.duplicate_nodes);
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
