//! Metrics and warnings about the members: wrong clocks, duplicate ids, builds without a shared wire version.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cluster::metrics::Metrics;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::members::Member;
use banmesh_cluster::members::Members;
use banmesh_cluster::roster::{MembershipChange, Presence, Roster};
use banmesh_core::node::NodeId;
use banmesh_core::wire::Versions;

/// The most changes of the membership that are logged at a time.
const LOGGED_AT_ONCE: usize = 16;

/// Checks the members, and logs each kind of problem once a minute.
pub(super) struct Health {
    metrics: Metrics,
    max_clock_drift: Duration,
    ours: Versions,
    problems: LogThrottle,
    incompatible: LogThrottle,
    /// The incompatible nodes at the last check, so that a further one is logged at once.
    known_incompatible: Mutex<BTreeSet<NodeId>>,
    roster: Mutex<Roster>,
}

impl Health {
    pub(super) fn new(metrics: Metrics, max_clock_drift: Duration, ours: Versions) -> Self {
        let throttle = || LogThrottle::new(Duration::from_secs(60));
        Self {
            metrics,
            max_clock_drift,
            ours,
            problems: throttle(),
            incompatible: throttle(),
            known_incompatible: Mutex::default(),
            roster: Mutex::default(),
        }
    }

    pub(super) fn check(&self, members: &Members) {
        let nodes = &members.nodes;
        self.log_changes(members);
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

    /// Logs nodes that joined, left, were lost or came back.
    fn log_changes(&self, members: &Members) {
        let changes = self.roster.lock().look(members);
        let alive = members.nodes.iter().filter(|member| member.live || member.is_self).count();
        for MembershipChange { node, presence, silent } in changes.iter().take(LOGGED_AT_ONCE) {
            let silent = silent.map(|silent| format!("{} s", silent.as_secs()));
            match (presence, silent) {
                (Presence::Lost, silent) => {
                    let silent = silent.unwrap_or_default();
                    tracing::warn!(%node, silent, alive, "a node is lost: it sends no heartbeats and has not left the cluster");
                }
                (Presence::Joined, Some(silent)) => tracing::info!(%node, silent, alive, "a lost node is back"),
                (Presence::Joined, None) => tracing::info!(%node, alive, "a node has joined the cluster"),
                (Presence::Left, _) => tracing::info!(%node, alive, "a node has left the cluster"),
            }
        }
        let more = changes.len().saturating_sub(LOGGED_AT_ONCE);
        if more > 0 {
            tracing::warn!(more, alive, "more nodes have joined, left, were lost or came back");
        }
    }

    fn warn_of_incompatible(&self, nodes: &[Member]) {
        let incompatible: Vec<&Member> = nodes.iter().filter(|node| node.live && !node.shares_wire_version).collect();
        let names = incompatible.iter().map(|node| node.node.clone()).collect();
        let before = std::mem::replace(&mut *self.known_incompatible.lock(), names);
        let is_due = !incompatible.is_empty() && self.incompatible.permit(Instant::now()).is_some();
        for node in incompatible.into_iter().filter(|node| is_due || !before.contains(&node.node)).take(LOGGED_AT_ONCE)
        {
            tracing::error!(
                node = %node.node, address = %node.address, build = node.version, its_wire_versions = %node.wire,
                our_wire_versions = %self.ours,
                "a node shares no wire version with this one, so bans do not replicate between them: upgrade the node with the \
                 older build"
            );
        }
    }
}
