//! Waits until the other nodes have this node's last changes: the async part of [`banmesh_cluster::farewell`].

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::membership::Membership;
use super::repair::Caller;
use banmesh_cluster::farewell::{Farewell, Step, Unacknowledged};
use banmesh_cluster::timers::Timers;

/// How often acknowledgements are requested and checked.
const CHECK_EVERY: Duration = Duration::from_millis(25);

/// Returns when the other nodes have acknowledged all changes before `end`, or when the time since `began` is up.
pub(super) async fn wait(membership: &Membership, caller: &Caller, timers: &Timers, end: u64, began: Instant) {
    let mut farewell = Farewell::new(end, began, timers.gossip_interval * 5, timers.farewell);
    let mut repairs = JoinSet::new();
    loop {
        match farewell.next(&membership.progress().await, Instant::now()) {
            Step::Done => break,
            Step::GiveUp(unacknowledged) => {
                warn(&unacknowledged);
                break;
            }
            Step::Wait(to_repair) => {
                for (node, address) in to_repair {
                    let caller = caller.clone();
                    repairs.spawn(async move {
                        let repaired = caller.repair(&node, address, "farewell", || ()).await;
                        (node, repaired.is_some())
                    });
                }
            }
        }
        membership.gossip_with_all();
        tokio::select! {
            Some(ended) = repairs.join_next() => if let Ok((node, succeeded)) = ended {
                farewell.repaired(node, succeeded, Instant::now());
            },
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
}

fn warn(unacknowledged: &Unacknowledged) {
    let changes = unacknowledged.nodes.iter().map(|(_, changes)| *changes).max().unwrap_or_default();
    if unacknowledged.elsewhere {
        tracing::warn!(
            changes, not_acknowledged_by = %unacknowledged,
            "leaving before all nodes have acknowledged this node's last changes: those that have them pass them on by repair; \
             check with `banmesh cluster status` that the tables become equal"
        );
    } else {
        tracing::warn!(
            changes, not_acknowledged_by = %unacknowledged,
            "leaving although no other node has acknowledged this node's last changes: they are in its journal, and the others \
             get them when it starts again"
        );
    }
}
