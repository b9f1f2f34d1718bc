//! Metrics and warnings about the members: wrong clocks, duplicate ids, builds without a shared wire version.

use std::time::{Duration, Instant};

use crate::cluster::metrics::Metrics;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::members::Member;
use banmesh_core::wire::Versions;

/// Checks the members, and logs each kind of problem once a minute.
pub(super) struct Health {
    metrics: Metrics,
    max_clock_drift: Duration,
    ours: Versions,
    problems: LogThrottle,
    incompatible: LogThrottle,
}

impl Health {
    pub(super) fn new(metrics: Metrics, max_clock_drift: Duration, ours: Versions) -> Self {
        let throttle = || LogThrottle::new(Duration::from_secs(60));
        Self { metrics, max_clock_drift, ours, problems: throttle(), incompatible: throttle() }
    }

    pub(super) fn check(&self, nodes: &[Member]) {
        let count = |test: &dyn Fn(&Member) -> bool| {
            i64::try_from(nodes.iter().filter(|node| node.live && test(node)).count()).unwrap_or(i64::MAX)
        };
        self.metrics.clock_offsets(nodes);
        let drift = self.max_clock_drift.as_millis();
        let skewed = |node: &Member| node.clock_ahead_ms.is_some_and(|ahead| u128::from(ahead.unsigned_abs()) > drift);
        self.metrics.live_nodes.set(count(&|_| true));
        self.metrics.differing_nodes.set(count(&|node| !node.agrees));
        self.metrics.skewed_nodes.set(count(&skewed));
        self.metrics.duplicate_nodes.set(count(&|node| node.duplicate));
        self.metrics.incompatible_nodes.set(count(&|node| !node.shares_wire_version));
        self.warn_of_incompatible(nodes);
        let wrong = nodes.iter().find(|node| node.live && (node.duplicate || skewed(node)));
        let Some(wrong) = wrong else { return };
        if self.problems.permit(Instant::now()).is_none() {
            return;
        }
        for node in nodes.iter().filter(|node| node.duplicate) {
            tracing::error!(
                node = %node.node, address = %node.address,
                "two running nodes have the same id: give each node its own node.id"
            );
        }
        if skewed(wrong) {
            tracing::error!(
                node = %wrong.node, ahead_ms = wrong.clock_ahead_ms,
                "a node's clock differs by more than cluster.max_clock_drift: check NTP on both nodes"
            );
        }
    }

    fn warn_of_incompatible(&self, nodes: &[Member]) {
        let incompatible: Vec<&Member> = nodes.iter().filter(|node| node.live && !node.shares_wire_version).collect();
        if incompatible.is_empty() || self.incompatible.permit(Instant::now()).is_none() {
            return;
        }
        for node in incompatible {
            tracing::error!(
                node = %node.node, address = %node.address, build = node.version, its_wire_versions = %node.wire,
                our_wire_versions = %self.ours,
                "a node shares no wire version with this one, so bans do not replicate between them: upgrade the node with the \
                 older build"
            );
        }
    }
}
