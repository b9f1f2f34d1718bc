//! Repair: compares tables with other nodes over TCP, and exchanges what gossip missed.
//!
//! [`banmesh_cluster::repair::plan`] decides with whom and when. The modules here run the sessions.

mod caller;
mod compare;
mod exchange;
mod listener;
mod session;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub(super) use caller::Caller;
pub(super) use caller::Contact;
pub use caller::LastRepair;
pub(super) use listener::Listener;
pub(super) use session::{FrameWriter, Handshake, Session, SessionError, key_memory, within};

use super::cipher::random;
use super::membership::Membership;
use banmesh_cluster::members::{Members, Phase};
use banmesh_cluster::repair::plan::{Ended, Peer, Plan, Reason};
use banmesh_cluster::timers::Timers;
use banmesh_core::node::NodeId;

/// A request for a repair.
#[derive(Debug)]
pub(super) struct Request {
    /// The id of a node, not yet validated. `None`: any node.
    pub with: Option<String>,
    pub reason: Reason,
}

/// Requests that may wait. The plan takes them at once; this is more than one round of received slots can cause.
pub(super) const QUEUE: usize = 1024;

/// The longest wait when nothing else is due.
const SOON: Duration = Duration::from_millis(100);

/// Runs the repairs that the plan asks for.
pub(super) struct Repairer {
    membership: Arc<Membership>,
    caller: Caller,
    plan: Plan,
    running: JoinSet<(NodeId, Ended)>,
    /// The peers that have answered.
    answered: (mpsc::Sender<NodeId>, mpsc::Receiver<NodeId>),
    began: Instant,
}

impl Repairer {
    pub(super) fn new(membership: Arc<Membership>, caller: Caller, timers: Timers) -> Self {
        let began = Instant::now();
        let plan = Plan::new(timers.into(), began, draw());
        Self { membership, caller, plan, running: JoinSet::new(), answered: mpsc::channel(QUEUE), began }
    }

    /// Joins: fetches the table from another node. Gives up after `join_timeout` without one. Then repairs until `shutdown`.
    pub(super) async fn serve(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        join_timeout: Duration,
        shutdown: CancellationToken,
    ) {
        let deadline = Instant::now() + join_timeout;
        let mut members = self.membership.members();
        loop {
            if self.plan.is_joining() && Instant::now() >= deadline && !self.plan.is_fetching() {
                self.give_up_joining().await;
            }
            while let Some((node, reason)) = self.plan.next(Instant::now(), draw()) {
                self.begin(node, reason);
            }
            let now = Instant::now();
            let joining = Some(deadline).filter(|_| self.plan.is_joining()).map(|deadline| deadline.max(now + SOON));
            let wake = self.plan.next_wakeup(now).into_iter().chain(joining).min().unwrap_or(now + SOON);
            tokio::select! {
                () = shutdown.cancelled() => return,
                request = requests.recv() => match request {
                    Some(request) => self.request(request),
                    None => return,
                },
                Some(node) = self.answered.1.recv() => self.plan.answered(&node),
                Some(ended) = self.running.join_next() => self.ended(ended).await,
                // Once per gossip interval. This task holds the membership, so its sender exists.
                _ = members.changed() => {
                    let seen = Arc::clone(&members.borrow_and_update());
                    self.update_peers(&seen);
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    fn request(&mut self, Request { with, reason }: Request) {
        // An invalid id is not the id of any peer.
        let with = with.and_then(|node| node.parse().ok());
        self.plan.request(with, reason, Instant::now());
    }

    fn update_peers(&mut self, members: &Members) {
        let peers: Vec<Peer> = members
            .live_peers()
            .map(|member| Peer {
                node: member.node.clone(),
                generation: member.generation,
                ready: member.phase == Some(Phase::Ready),
                equal: member.equal,
                shares_wire_version: member.shares_wire_version,
            })
            .collect();
        self.plan.update_peers(&peers, Instant::now());
    }

    fn begin(&mut self, node: NodeId, reason: Reason) {
        let Some(address) = self.membership.members().borrow().live_peer(node.as_str()).map(|member| member.address)
        else {
            return self.plan.ended(&node, Ended::Failed, Instant::now(), draw());
        };
        let (caller, answered) = (self.caller.clone(), self.answered.0.clone());
        self.running.spawn(async move {
            let start = Instant::now();
            let has_answered = node.clone();
            let answered = move || {
                // Sent once per repair, and the channel has room for more repairs than can run.
                let _ = answered.try_send(has_answered);
            };
            let outcome = caller.repair(&node, address, reason.as_str(), answered).await;
            let ended = outcome.map_or(Ended::Failed, |outcome| Ended::Repaired {
                took: start.elapsed(),
                changed: outcome.changed_here + outcome.changed_there > 0,
            });
            (node, ended)
        });
    }

    async fn ended(&mut self, ended: Result<(NodeId, Ended), JoinError>) {
        let (node, ended) = match ended {
            Ok(ended) => ended,
            // Repairs are never cancelled, so this one panicked. This task must panic too.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        let joining = self.plan.is_joining();
        self.plan.ended(&node, ended, Instant::now(), draw());
        if joining && !self.plan.is_joining() {
            tracing::info!(with = %node, took = ?self.began.elapsed(), "joined the cluster");
            self.membership.enter(Phase::Ready).await;
        }
    }

    async fn give_up_joining(&mut self) {
        self.plan.stop_joining();
        let members = Arc::clone(&self.membership.members().borrow());
        if members.live_peers().next().is_none() {
            tracing::warn!("found no other node of the cluster; ready alone, and still looking");
        } else if !members.live_peers().any(|member| member.shares_wire_version) {
            tracing::error!(
                "no node of the cluster shares a wire version with this one; ready without their bans: upgrade the nodes with the older build"
            );
        } else {
            tracing::error!(
                "no node of the cluster sent its table within cluster.join_timeout; ready without it, and trying again"
            );
        }
        self.membership.enter(Phase::Ready).await;
    }
}

fn draw() -> u32 {
    random().map_or(0, u32::from_le_bytes)
}
