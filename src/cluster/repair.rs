//! Repair: makes certain what gossip carries quickly.
//!
//! A node compares its table with another's when it joins, when it sees that it missed something, when a node comes back
//! or holds another table for longer than a moment, and every now and then with a random one. What differs goes both ways.
//! [`plan`] decides with whom and when; this is its shell.

mod call;
mod exchange;
mod frame;
mod listen;
mod plan;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub(super) use call::Caller;
pub use call::LastRepair;
pub use exchange::Outcome;
pub(super) use frame::Greeter;
pub(super) use listen::Listener;
pub(super) use plan::Reason;
use plan::{Ended, Pace, Peer, Plan};

use super::cover::random;
use super::members::{Members, Phase};
use super::membership::Membership;
use super::settings::Timers;
use banmesh_core::node::NodeId;

/// Asks for a repair.
#[derive(Debug)]
pub(super) struct Request {
    /// With whom, if it matters.
    pub with: Option<String>,
    /// Why.
    pub reason: Reason,
}

/// Requests that may wait to be taken into the plan, which happens at once: more than there are slots taken in together.
pub(super) const QUEUE: usize = 1024;

/// When nothing else is due, this is.
const SOON: Duration = Duration::from_millis(100);

/// Begins the repairs that the plan wants.
pub(super) struct Repairer {
    membership: Arc<Membership>,
    caller: Caller,
    plan: Plan,
    running: JoinSet<(NodeId, Ended)>,
    /// Whose peers have answered.
    answered: (mpsc::Sender<NodeId>, mpsc::Receiver<NodeId>),
    began: Instant,
}

impl Repairer {
    pub(super) fn new(membership: Arc<Membership>, caller: Caller, timers: Timers) -> Self {
        let Timers { gossip_interval, differ_for, repair_interval, .. } = timers;
        let pace = Pace { gossip_interval, differ_for, repair_interval };
        let began = Instant::now();
        let plan = Plan::new(pace, began, draw());
        Self { membership, caller, plan, running: JoinSet::new(), answered: mpsc::channel(QUEUE), began }
    }

    /// Fetches the table from another node, unless there is none within `join_timeout`; and repairs whatever comes up, until
    /// `shutdown`.
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
            let wake = self.plan.wake(now).into_iter().chain(joining).min().unwrap_or(now + SOON);
            tokio::select! {
                () = shutdown.cancelled() => return,
                request = requests.recv() => match request {
                    Some(request) => self.ask(request),
                    None => return,
                },
                Some(node) = self.answered.1.recv() => self.plan.greeted(&node),
                Some(ended) = self.running.join_next() => self.ended(ended).await,
                // The membership looks once in a gossip interval; its sender lives as long as it does.
                _ = members.changed() => {
                    let seen = Arc::clone(&members.borrow_and_update());
                    self.look(&seen);
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    fn ask(&mut self, Request { with, reason }: Request) {
        // What is no id names nobody.
        let with = with.and_then(|node| node.parse().ok());
        self.plan.ask(with, reason, Instant::now());
    }

    fn look(&mut self, members: &Members) {
        let peers: Vec<Peer> = members
            .live_peers()
            .map(|member| Peer {
                node: member.node.clone(),
                generation: member.generation,
                ready: member.phase == Some(Phase::Ready),
                equal: member.equal,
                understands: member.shares_wire_version,
            })
            .collect();
        self.plan.look(&peers, Instant::now());
    }

    fn begin(&mut self, node: NodeId, reason: Reason) {
        let Some(address) = self.membership.members().borrow().live(node.as_str()).map(|member| member.address) else {
            return self.plan.ended(&node, Ended::Failed, Instant::now(), draw());
        };
        let (caller, answered) = (self.caller.clone(), self.answered.0.clone());
        self.running.spawn(async move {
            let start = Instant::now();
            let has_answered = node.clone();
            let answered = move || {
                // Every repair says so once, and there are fewer of them than places.
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
            // None is ever cancelled: it panicked, and so must this.
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
            tracing::warn!("no other node of the cluster was found: going on alone, and looking further");
        } else if !members.live_peers().any(|member| member.shares_wire_version) {
            tracing::error!(
                "no node of the cluster shares a wire version with this one: going on with what this one has; update the older build"
            );
        } else {
            tracing::error!("no node of the cluster gave its table: going on with what this one has");
        }
        self.membership.enter(Phase::Ready).await;
    }
}

fn draw() -> u32 {
    random().map_or(0, u32::from_le_bytes)
}
