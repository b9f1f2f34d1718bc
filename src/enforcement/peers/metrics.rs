//! The metrics of HAProxy's peers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of all sessions; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Open sessions.
    pub sessions: Gauge,
    /// Bans of networks, which no table can hold.
    pub left_out: Gauge,
    /// Updates from HAProxy.
    pub received: Counter,
    /// Updates to HAProxy.
    pub sent: Counter,
    /// Keys of counters in memory.
    pub keys: Gauge,
    /// States that were not kept.
    pub dropped: Counter,
    /// Datagrams of counters to other nodes.
    pub datagrams_sent: Counter,
    /// Datagrams of counters from other nodes.
    pub datagrams_received: Counter,
    /// HAProxies of other nodes whose counters are out of date.
    pub stale: Gauge,
    refused: Family<Reason, Counter>,
    reports: Family<Outcome, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let peers = registry.sub_registry_with_prefix("banmesh_peers");
        peers.register("sessions", "HAProxy processes that are connected as peers", self.sessions.clone());
        peers.register(
            "left_out",
            "Bans of networks, which HAProxy's table of bans cannot hold",
            self.left_out.clone(),
        );
        peers.register("updates_received", "Entries that HAProxy sent", self.received.clone());
        peers.register("updates_sent", "Entries that were sent to HAProxy", self.sent.clone());
        peers.register("keys", "Keys of counters in memory", self.keys.clone());
        peers.register("dropped", "Counters that were not kept, because there was no room", self.dropped.clone());
        peers.register("datagrams_sent", "Datagrams of counters sent to other nodes", self.datagrams_sent.clone());
        peers.register("datagrams_received", "Datagrams of counters from other nodes", self.datagrams_received.clone());
        peers.register("stale", "HAProxy processes of other nodes whose counters are out of date", self.stale.clone());
        peers.register("reports", "Offences that HAProxy counted in a table, by outcome", self.reports.clone());
        peers.register("refused", "Connections and datagrams that were refused, by reason", self.refused.clone());
    }

    pub(super) fn reports(&self, outcome: &'static str, times: u32) {
        self.reports.get_or_create(&Outcome { outcome }).inc_by(u64::from(times));
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}
