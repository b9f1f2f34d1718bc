//! Repair: makes certain what gossip carries quickly.
//!
//! A node compares its table with another's when it joins, when it sees that it missed something, when a node comes back
//! or holds another table for longer than a moment, and every now and then with a random one. What differs goes both ways.

mod exchange;
mod frame;
mod listen;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use exchange::Outcome;
pub(super) use frame::Greeter;
use frame::{SessionError, within};
pub(super) use listen::Listener;

use super::cover::random;
use super::members::{Member, Phase};
use super::membership::Membership;
use super::metrics::Metrics;
use super::settings::Timers;
use crate::domain::node::NodeId;
use crate::domain::time::UnixMillis;
use crate::service::clock;
use crate::service::store::StoreHandle;

/// Asks for a repair.
#[derive(Debug)]
pub(super) struct Request {
    /// With whom, if it matters.
    pub with: Option<String>,
    /// Why: the label under which it is counted.
    pub reason: &'static str,
}

/// Requests that may wait: one repair answers all of them.
pub(super) const QUEUE: usize = 64;
/// Two repairs are at least this far apart, and five times as far as the last one took.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// However long a table takes, a repair that takes longer than this is hung.
const MAX_SESSION: Duration = Duration::from_secs(30 * 60);

/// How the last repair went.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LastRepair {
    /// With whom.
    pub with: NodeId,
    /// Why.
    pub reason: &'static str,
    /// When it ended, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it took.
    pub took: Duration,
    /// What it did; `None` when it failed.
    pub outcome: Option<Outcome>,
}

/// The calling end.
pub(super) struct Repairer {
    membership: Arc<Membership>,
    store: StoreHandle,
    metrics: Metrics,
    greeter: Greeter,
    timers: Timers,
    last: watch::Sender<Option<LastRepair>>,
    earliest: Instant,
    /// How long to wait before differing tables are compared again; grows while that finds nothing.
    differ_pause: Duration,
}

impl Repairer {
    pub(super) fn new(
        membership: Arc<Membership>,
        store: StoreHandle,
        metrics: Metrics,
        greeter: Greeter,
        timers: Timers,
        last: watch::Sender<Option<LastRepair>>,
    ) -> Self {
        let (earliest, differ_pause) = (Instant::now(), timers.differ_for);
        Self { membership, store, metrics, greeter, timers, last, earliest, differ_pause }
    }

    /// Fetches the table from another node, unless there is none within `join_timeout`; then repairs whatever comes up,
    /// until `shutdown`.
    pub(super) async fn serve(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        join_timeout: Duration,
        shutdown: CancellationToken,
    ) {
        if shutdown.run_until_cancelled(self.join(join_timeout)).await.is_none() {
            return;
        }
        let _ = shutdown.run_until_cancelled(self.keep(&mut requests)).await;
    }

    async fn join(&mut self, timeout: Duration) {
        let start = Instant::now();
        let mut members = self.membership.members();
        let mut met = None;
        loop {
            let peers: Vec<Member> = members.borrow_and_update().live_peers().cloned().collect();
            let ready = pick(peers.iter().filter(|peer| peer.phase == Some(Phase::Ready)));
            // When a whole cluster starts, nobody is ready: then any will do.
            let patience = self.timers.gossip_interval * 5;
            let met_at = if peers.is_empty() { None } else { Some(*met.get_or_insert_with(Instant::now)) };
            let any = pick(peers.iter()).filter(|_| met_at.is_some_and(|at| at.elapsed() >= patience));
            if let Some(peer) = ready.or(any)
                && self.repair(peer, "join").await.is_some()
            {
                tracing::info!(with = %peer.node, took = ?start.elapsed(), "joined the cluster");
                break;
            }
            if start.elapsed() >= timeout {
                if peers.is_empty() {
                    tracing::warn!("no other node of the cluster was found: going on alone, and looking further");
                } else {
                    tracing::error!("no node of the cluster gave its table: going on with what this one has");
                }
                break;
            }
            let pause = self.timers.gossip_interval.min(timeout.saturating_sub(start.elapsed())).max(MIN_PAUSE / 4);
            let _ = tokio::time::timeout(pause, members.changed()).await;
        }
        self.membership.enter(Phase::Ready).await;
    }

    async fn keep(&mut self, requests: &mut mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval(self.timers.gossip_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut periodic = Instant::now() + self.jittered(self.timers.repair_interval);
        let mut watched = Watched::default();
        loop {
            let request = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                _ = tick.tick() => {
                    let members = Arc::clone(&self.membership.members().borrow());
                    // A table of another wire version differs for good: repairs that can help must not wait behind it.
                    // Such peers are left to the periodic repairs, which count and log why they fail.
                    let peers: Vec<&Member> = members.live_peers().filter(|peer| peer.shares_wire_version()).collect();
                    watched.look(&peers, self.timers.differ_for, self.differ_pause).or_else(|| {
                        (Instant::now() >= periodic).then_some(Request { with: None, reason: "periodic" })
                    })
                }
            };
            let Some(request) = request else { continue };
            tokio::time::sleep_until(self.earliest).await;
            // What was asked for meanwhile is answered by the same repair.
            while requests.try_recv().is_ok() {}
            let members = Arc::clone(&self.membership.members().borrow());
            let named = request.with.as_deref().and_then(|node| members.live(node));
            let Some(peer) = named.or_else(|| pick(members.live_peers())) else { continue };
            let outcome = self.repair(peer, request.reason).await;
            periodic = Instant::now() + self.jittered(self.timers.repair_interval);
            let useless = outcome.is_none_or(|outcome| outcome.changed_here + outcome.changed_there == 0);
            self.differ_pause = if useless && request.reason == "differs" {
                (self.differ_pause * 2).min(self.timers.repair_interval)
            } else {
                self.timers.differ_for
            };
            watched.repaired();
        }
    }

    async fn repair(&mut self, peer: &Member, reason: &'static str) -> Option<Outcome> {
        Metrics::count(&self.metrics.repairs, reason);
        let start = Instant::now();
        let result = within(MAX_SESSION, self.call(peer.address)).await;
        let took = start.elapsed();
        self.earliest = Instant::now() + (took * 5).max(MIN_PAUSE);
        let outcome = match result {
            Ok(outcome) => {
                self.metrics.repair_sent.inc_by(outcome.sent);
                self.metrics.repair_received.inc_by(outcome.received);
                tracing::debug!(with = %peer.node, reason, ?took, ?outcome, "repaired");
                if outcome.refused > 0 {
                    Metrics::count_many(&self.metrics.records_refused, "repair", outcome.refused);
                }
                Some(outcome)
            }
            Err(error) => {
                Metrics::count(&self.metrics.repairs_failed, error.reason());
                tracing::warn!(with = %peer.node, address = %peer.address, reason, %error, "a repair failed; it is tried again");
                None
            }
        };
        let UnixMillis(at_ms) = clock::now();
        self.last.send_replace(Some(LastRepair { with: peer.node.clone(), reason, at_ms, took, outcome }));
        outcome
    }

    async fn call(&self, address: SocketAddr) -> Result<Outcome, SessionError> {
        let mut stream = within(self.timers.repair_timeout, async { Ok(TcpStream::connect(address).await?) }).await?;
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.split();
        let session = self.greeter.call(reader, writer).await?;
        exchange::call(&self.store, session).await
    }

    /// Between 75% and 125% of `period`, so that nodes that started together do not repair together.
    fn jittered(&self, period: Duration) -> Duration {
        period * 3 / 4 + period / 512 * u32::from(random::<1>().map_or(0, |[byte]| byte))
    }
}

/// One of `peers`, at random.
fn pick<'a>(peers: impl Iterator<Item = &'a Member>) -> Option<&'a Member> {
    let peers: Vec<&Member> = peers.collect();
    let draw = random().map_or(0, u32::from_le_bytes) as usize;
    peers.get(draw % peers.len().max(1)).copied()
}

/// What is noticed about the peers from one look to the next.
#[derive(Debug, Default)]
struct Watched {
    live: HashSet<NodeId>,
    differ_since: HashMap<NodeId, Instant>,
    compared: Option<Instant>,
    looked: bool,
}

impl Watched {
    /// A peer that came back, or whose table has differed for long, is a reason to repair.
    fn look(&mut self, peers: &[&Member], differ_for: Duration, pause: Duration) -> Option<Request> {
        let now = Instant::now();
        let live: HashSet<NodeId> = peers.iter().map(|peer| peer.node.clone()).collect();
        // A node that joins repairs by itself. One that comes back as it was, was cut off, or we were.
        let back = pick(peers.iter().copied().filter(|peer| {
            self.looked && peer.phase == Some(Phase::Ready) && !peer.equal && !self.live.contains(&peer.node)
        }));
        self.differ_since.retain(|node, _| live.contains(node));
        for peer in peers {
            if peer.equal {
                self.differ_since.remove(&peer.node);
            } else {
                self.differ_since.entry(peer.node.clone()).or_insert(now);
            }
        }
        (self.live, self.looked) = (live, true);
        if let Some(peer) = back {
            return Some(Request { with: Some(peer.node.to_string()), reason: "returned" });
        }
        if self.compared.is_some_and(|compared| now.duration_since(compared) < pause) {
            return None;
        }
        let (node, _) = self.differ_since.iter().find(|(_, since)| now.duration_since(**since) >= differ_for)?;
        Some(Request { with: Some(node.to_string()), reason: "differs" })
    }

    /// A repair was made: what differs now is judged afresh.
    fn repaired(&mut self) {
        self.compared = Some(Instant::now());
    }
}
