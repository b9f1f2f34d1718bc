//! The farewell: when a node that stops may leave.
//!
//! The last changes are sent by gossip like all others, and acknowledged there. With peers that do not acknowledge them soon, or
//! that missed some, the node repairs. After [`Timers::farewell`](crate::timers::Timers::farewell) it leaves anyway, and reports
//! which peers have not acknowledged what.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;

/// Repairs that run at a time.
const MAX_REPAIRS: usize = 4;
/// The pause after a failed repair with the same peer.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// How far another node has received this node's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its id.
    pub node: NodeId,
    /// Where it answers repairs.
    pub address: SocketAddr,
    /// Whether it is live and not leaving. The node does not wait for others.
    pub live: bool,
    /// The sequence number of the next change that it expects.
    pub next: u64,
    /// Whether it missed changes before `next`. They may not have arrived by repair yet.
    pub missed: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Repair with these peers, and call [`Farewell::next`] again in a moment.
    Wait(Vec<(NodeId, SocketAddr)>),
    /// All live peers have acknowledged everything.
    Done,
    /// The time is up, or no peer is live.
    GiveUp(Unacknowledged),
}

/// The nodes that have not acknowledged all changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unacknowledged {
    /// Each with the number of changes after the last one that it acknowledged; 0 if it only missed earlier ones.
    pub nodes: Vec<(NodeId, u64)>,
    /// Whether another node has acknowledged everything.
    pub elsewhere: bool,
}

/// Decides with whom to repair, and when to leave.
#[derive(Debug)]
pub struct Farewell {
    /// The sequence number after the last change.
    end: u64,
    began: Instant,
    patience: Duration,
    deadline: Duration,
    repairs: BTreeMap<NodeId, FinalRepair>,
}

#[derive(Clone, Copy, Debug)]
enum FinalRepair {
    Running,
    Failed { again: Instant },
    Succeeded,
}

impl Farewell {
    /// The farewell of a node whose last change has the sequence number `end` - 1. After `patience` without an acknowledgement it
    /// repairs with a peer, and after `deadline` it gives up.
    pub const fn new(end: u64, began: Instant, patience: Duration, deadline: Duration) -> Self {
        Self { end, began, patience, deadline, repairs: BTreeMap::new() }
    }

    /// What to do now, given how far the other nodes are.
    pub fn next(&mut self, others: &[Progress], now: Instant) -> Step {
        let behind: Vec<&Progress> = others.iter().filter(|other| !self.has_all(other)).collect();
        let elsewhere = others.iter().any(|other| self.has_all(other));
        let any_live = behind.iter().any(|other| other.live);
        if self.end == 0 || !any_live && (elsewhere || behind.is_empty()) {
            return Step::Done;
        }
        let passed = now.saturating_duration_since(self.began);
        if !any_live || passed >= self.deadline {
            let changes = |other: &&Progress| (other.node.clone(), self.end.saturating_sub(other.next));
            return Step::GiveUp(Unacknowledged { nodes: behind.iter().map(changes).collect(), elsewhere });
        }
        let mut running = self.repairs.values().filter(|repair| matches!(repair, FinalRepair::Running)).count();
        let mut to_repair = Vec::new();
        for other in behind.iter().filter(|other| other.live) {
            let due = match self.repairs.get(&other.node) {
                None => other.missed && other.next >= self.end || passed >= self.patience,
                Some(FinalRepair::Failed { again }) => now >= *again,
                Some(FinalRepair::Running | FinalRepair::Succeeded) => false,
            };
            if due && running < MAX_REPAIRS {
                running += 1;
                self.repairs.insert(other.node.clone(), FinalRepair::Running);
                to_repair.push((other.node.clone(), other.address));
            }
        }
        Step::Wait(to_repair)
    }

    /// A repair has ended.
    pub fn repaired(&mut self, node: NodeId, succeeded: bool, now: Instant) {
        let repair = if succeeded { FinalRepair::Succeeded } else { FinalRepair::Failed { again: now + RETRY_AFTER } };
        self.repairs.insert(node, repair);
    }

    fn has_all(&self, other: &Progress) -> bool {
        let acknowledged = other.next >= self.end && !other.missed;
        acknowledged || matches!(self.repairs.get(&other.node), Some(FinalRepair::Succeeded))
    }
}

impl fmt::Display for Unacknowledged {
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

#[cfg(test)]
mod tests;
