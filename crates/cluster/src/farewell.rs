//! The farewell: before a node leaves, the others confirm its last changes, or it says what they did not confirm.
//!
//! The last changes go out by gossip, as all do, and are acknowledged there. Peers that do not acknowledge them soon, or that
//! missed some, are called: a repair makes it certain. After [`super::Timers::farewell`] the node leaves anyway, with a warning.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::membership::Membership;
use super::repair::Caller;
use super::settings::Timers;
use banmesh_core::node::NodeId;

/// Peers that are called at a time.
const MAX_CALLS: usize = 4;
/// Between two calls of the same peer.
const CALL_AGAIN: Duration = Duration::from_millis(250);
/// So often the acknowledgements are looked at, and asked for.
const LOOK: Duration = Duration::from_millis(25);

/// How far another node has followed this node's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    /// Whether it lives and stays. Others are not waited for.
    pub(super) here: bool,
    /// The number of the next change that it expects.
    pub(super) next: u64,
    /// Whether it missed some before that: a repair may not have brought them yet.
    pub(super) missed: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Call these, and look again in a moment.
    Wait(Vec<(NodeId, SocketAddr)>),
    /// Everybody here has confirmed everything.
    Done,
    /// The time is over, or nobody is here.
    GiveUp(Unconfirmed),
}

/// Who has not confirmed what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    /// Each with the number of changes that it has not acknowledged; 0 where it missed some of those before.
    pub(super) nodes: Vec<(NodeId, u64)>,
    /// Whether another node has confirmed everything.
    pub(super) elsewhere: bool,
}

/// Decides whom to call, and when to go.
#[derive(Debug)]
pub(super) struct Farewell {
    /// The number after the last change.
    end: u64,
    began: Instant,
    patience: Duration,
    deadline: Duration,
    calls: BTreeMap<NodeId, Call>,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Running,
    Failed { again: Instant },
    Succeeded,
}

impl Farewell {
    /// A farewell after `end` changes. Acknowledgements are waited for until `patience` has passed, and nothing after `deadline`.
    pub(super) const fn new(end: u64, began: Instant, patience: Duration, deadline: Duration) -> Self {
        Self { end, began, patience, deadline, calls: BTreeMap::new() }
    }

    /// What to do now, seeing how far the other nodes are.
    pub(super) fn next(&mut self, others: &[Progress], now: Instant) -> Step {
        let open: Vec<&Progress> = others.iter().filter(|other| !self.confirmed(other)).collect();
        let elsewhere = others.iter().any(|other| self.confirmed(other));
        let here = open.iter().any(|other| other.here);
        if self.end == 0 || !here && (elsewhere || open.is_empty()) {
            return Step::Done;
        }
        let passed = now.saturating_duration_since(self.began);
        if !here || passed >= self.deadline {
            let changes = |other: &&Progress| (other.node.clone(), self.end.saturating_sub(other.next));
            return Step::GiveUp(Unconfirmed { nodes: open.iter().map(changes).collect(), elsewhere });
        }
        let mut running = self.calls.values().filter(|call| matches!(call, Call::Running)).count();
        let mut to_call = Vec::new();
        for other in open.iter().filter(|other| other.here) {
            let due = match self.calls.get(&other.node) {
                None => other.missed && other.next >= self.end || passed >= self.patience,
                Some(Call::Failed { again }) => now >= *again,
                Some(Call::Running | Call::Succeeded) => false,
            };
            if due && running < MAX_CALLS {
                running += 1;
                self.calls.insert(other.node.clone(), Call::Running);
                to_call.push((other.node.clone(), other.address));
            }
        }
        Step::Wait(to_call)
    }

    /// A call has ended.
    pub(super) fn called(&mut self, node: NodeId, succeeded: bool, now: Instant) {
        let call = if succeeded { Call::Succeeded } else { Call::Failed { again: now + CALL_AGAIN } };
        self.calls.insert(node, call);
    }

    fn confirmed(&self, other: &Progress) -> bool {
        let acknowledged = other.next >= self.end && !other.missed;
        acknowledged || matches!(self.calls.get(&other.node), Some(Call::Succeeded))
    }
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (node, changes)) in self.nodes.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            match changes {
                0 => write!(f, "{comma}{node} (some that it missed)")?,
                changes => write!(f, "{comma}{node} ({changes})")?,
            }
        }
        Ok(())
    }
}

/// Returns when the others have confirmed the changes before `end`, or the time since `began` is over.
pub(super) async fn say(membership: &Membership, caller: &Caller, timers: &Timers, end: u64, began: Instant) {
    let mut farewell = Farewell::new(end, began, timers.gossip_interval * 5, timers.farewell);
    let mut calls = JoinSet::new();
    loop {
        match farewell.next(&membership.progress().await, Instant::now()) {
            Step::Done => break,
            Step::GiveUp(unconfirmed) => {
                warn(&unconfirmed);
                break;
            }
            Step::Wait(to_call) => {
                for (node, address) in to_call {
                    let caller = caller.clone();
                    calls.spawn(async move {
                        let repaired = caller.repair(&node, address, "farewell", || ()).await;
                        (node, repaired.is_some())
                    });
                }
            }
        }
        membership.nudge_all();
        tokio::select! {
            Some(ended) = calls.join_next() => if let Ok((node, succeeded)) = ended {
                farewell.called(node, succeeded, Instant::now());
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn warn(unconfirmed: &Unconfirmed) {
    let changes = unconfirmed.nodes.iter().map(|(_, changes)| *changes).max().unwrap_or_default();
    if unconfirmed.elsewhere {
        tracing::warn!(
            changes, not_confirmed_by = %unconfirmed,
            "leaving before all nodes have confirmed this node's last changes: the nodes that have will pass them on by \
             repair; check `banmesh cluster status` there for nodes that differ"
        );
    } else {
        tracing::warn!(
            changes, not_confirmed_by = %unconfirmed,
            "leaving although no other node has confirmed this node's last changes: they are in its journal, and the others get \
             them when it is started again"
        );
    }
}

#[cfg(test)]
mod tests;
