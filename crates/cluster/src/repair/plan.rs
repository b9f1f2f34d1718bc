//! Whom to repair with next, and when.
//!
//! Each peer is paced separately. After a successful repair the peer is left alone for a multiple of the time that the repair
//! took. After a failed repair it is left alone for longer every time, and other peers are not delayed: repairs with different
//! peers run in parallel, and a repair whose peer has not answered within a second no longer counts towards the limit. A
//! requested repair stays requested until it succeeds. Several requests for one peer are merged, with the strongest reason.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;
use banmesh_core::planted::{Fault, is_planted};

use crate::timers::Timers;

/// Repairs that run at a time, not counting those whose peer does not answer.
const MAX_AT_ONCE: usize = 4;
/// Repairs that run at a time, including those whose peer does not answer.
const MAX_OPEN: usize = 16;
/// After this time without an answer, a peer no longer delays others.
const STALLED: Duration = Duration::from_secs(1);
/// The shortest pause between two repairs with one peer. Usually it is at least five times as long as the repair took.
const MIN_REST: Duration = Duration::from_millis(100);
/// Requests for particular peers that are stored at most. Further ones become requests for any peer.
const MAX_REQUESTS: usize = 1024;
/// Gossip intervals after which a request for a peer that is not live becomes a request for any peer.
const ABSENT_ROUNDS: u32 = 10;
/// Gossip intervals after which a node may join through a peer that is not ready. When a whole cluster starts, none is ready.
const JOIN_ROUNDS: u32 = 5;

/// Why a repair runs, the weakest reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No repair ran for [`PlanTimers::repair_interval`].
    Periodic,
    /// The tables have differed for [`PlanTimers::differ_for`].
    Differs,
    /// The peer is back after it was unreachable or restarted.
    Returned,
    /// Records of its recent-changes log were missed.
    Gap,
    /// This node joins.
    Join,
}

impl Reason {
    /// The metric label under which it is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Periodic => "periodic",
            Self::Differs => "differs",
            Self::Returned => "returned",
            Self::Gap => "gap",
            Self::Join => "join",
        }
    }
}

/// A live peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Greater after every start of the node.
    pub generation: u64,
    /// Whether it has joined.
    pub ready: bool,
    /// Whether its table equals ours.
    pub equal: bool,
    /// A peer that shares no wire version with this node always has a different table. Only periodic repairs are tried with it,
    /// which count why they fail.
    pub shares_wire_version: bool,
}

/// How a repair ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The tables were compared.
    Repaired {
        /// How long the repair ran.
        took: Duration,
        /// Whether it changed either table.
        changed: bool,
    },
    /// It did not finish.
    Failed,
}

/// The timers of a plan: see [`Timers`] for their meaning.
#[derive(Clone, Copy, Debug)]
pub struct PlanTimers {
    /// [`Timers::gossip_interval`].
    pub gossip_interval: Duration,
    /// [`Timers::differ_for`].
    pub differ_for: Duration,
    /// [`Timers::repair_interval`].
    pub repair_interval: Duration,
}

impl From<Timers> for PlanTimers {
    fn from(Timers { gossip_interval, differ_for, repair_interval, .. }: Timers) -> Self {
        Self { gossip_interval, differ_for, repair_interval }
    }
}

#[derive(Debug)]
struct Known {
    peer: Peer,
    /// The next repair begins at this time at the earliest.
    earliest: Instant,
    /// Repairs that failed since the last success.
    failures: u32,
    differs_since: Option<Instant>,
    /// When its table was last compared with ours. For [`Self::differ_pause`] after that, a difference alone causes no repair.
    /// The pause grows while repairs change nothing.
    compared: Option<Instant>,
    differ_pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    reason: Reason,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    reason: Reason,
    since: Instant,
    /// When this peer was requested; `None` if any peer was.
    requested: Option<Instant>,
    answered: bool,
}

/// The requested repairs, the running repairs, and the state of each peer.
#[derive(Debug)]
pub struct Plan {
    timers: PlanTimers,
    peers: HashMap<NodeId, Known>,
    requests: BTreeMap<NodeId, Request>,
    /// The strongest reason for a repair with any peer.
    any_peer: Option<Reason>,
    running: HashMap<NodeId, Running>,
    joining: bool,
    /// When the first live peer was seen.
    met: Option<Instant>,
    /// Whether [`Plan::update_peers`] was called before.
    updated: bool,
    /// When tables were last compared, with any peer.
    compared: Option<Instant>,
    /// When the next periodic repair is due.
    periodic: Instant,
}

impl Plan {
    /// The plan of a node that joins. `draw` is a random number, here and in the other methods.
    pub fn new(timers: PlanTimers, now: Instant, draw: u32) -> Self {
        Self {
            timers,
            peers: HashMap::new(),
            requests: BTreeMap::new(),
            any_peer: None,
            running: HashMap::new(),
            joining: true,
            met: None,
            updated: false,
            compared: None,
            periodic: now + jittered(timers.repair_interval, draw),
        }
    }

    /// Whether the node is still joining. While it is, no other repairs run.
    pub const fn is_joining(&self) -> bool {
        self.joining
    }

    /// Whether this node is receiving the table of a peer in order to join.
    pub fn is_fetching(&self) -> bool {
        self.running.values().any(|run| run.reason == Reason::Join && run.answered)
    }

    /// Gives up joining.
    pub const fn stop_joining(&mut self) {
        self.joining = false;
    }

    /// Updates the live peers. The failures of a peer are reset when it comes back or was restarted.
    pub fn update_peers(&mut self, peers: &[Peer], now: Instant) {
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let known = before.remove(&peer.node).filter(|known| known.peer.generation == peer.generation);
            // A node that joins starts its own repair. A node that comes back ready was unreachable, or this one was.
            if known.is_none() && self.updated && peer.ready && !peer.equal && peer.shares_wire_version {
                self.request(Some(peer.node.clone()), Reason::Returned, now);
            }
            let mut known = known.unwrap_or_else(|| Known {
                peer: peer.clone(),
                earliest: now,
                failures: 0,
                differs_since: None,
                compared: None,
                differ_pause: self.timers.differ_for,
            });
            // A node that joins differs until it has joined. It fetches what it lacks, so sending it the same is wasted.
            known.differs_since = if peer.equal || !peer.ready { None } else { known.differs_since.or(Some(now)) };
            known.peer = peer.clone();
            self.peers.insert(peer.node.clone(), known);
        }
        self.updated = true;
        if !self.peers.is_empty() {
            self.met.get_or_insert(now);
        }
    }

    /// Requests a repair with `with`, or with any peer.
    pub fn request(&mut self, with: Option<NodeId>, reason: Reason, now: Instant) {
        self.add_request(with, Request { reason, since: now });
    }

    /// The next repair to begin now, and why. Call this until it returns `None`, and again after every other call that changes
    /// the plan and at [`Plan::next_wakeup`].
    pub fn next(&mut self, now: Instant, draw: u32) -> Option<(NodeId, Reason)> {
        if now >= self.periodic {
            self.periodic = now + jittered(self.timers.repair_interval, draw);
            self.any_peer = self.any_peer.max(Some(Reason::Periodic));
        }
        self.redirect_absent(now);
        if is_planted(Fault::PaceTogether) && !self.running.is_empty() {
            return None;
        }
        if self.running.len() >= MAX_OPEN
            || self.running.values().filter(|run| !run.stalled(now)).count() >= MAX_AT_ONCE
        {
            return None;
        }
        let (node, reason, requested) =
            if self.joining { self.choose_to_join(now, draw) } else { self.choose_to_repair(now, draw) }?;
        self.running.insert(node.clone(), Running { reason, since: now, requested, answered: false });
        Some((node, reason))
    }

    /// The peer of a running repair has answered.
    pub fn answered(&mut self, node: &NodeId) {
        if let Some(running) = self.running.get_mut(node) {
            running.answered = true;
        }
    }

    /// A repair has ended.
    pub fn ended(&mut self, node: &NodeId, ended: Ended, now: Instant, draw: u32) {
        let Some(running) = self.running.remove(node) else { return };
        let (timers, peers) = (self.timers, u32::try_from(self.peers.len()).unwrap_or(u32::MAX));
        let known = self.peers.get_mut(node);
        match ended {
            Ended::Repaired { took, changed } => {
                if running.reason == Reason::Join {
                    self.joining = false;
                }
                self.compared = Some(now);
                self.periodic = now + jittered(timers.repair_interval, draw);
                let Some(known) = known else { return };
                known.failures = 0;
                known.compared = Some(now);
                // Repairs with all peers together occupy at most half of the time of one connection.
                let rest = took.saturating_mul(peers.saturating_mul(2).max(5));
                known.earliest = now + rest.clamp(MIN_REST, timers.repair_interval.max(MIN_REST));
                known.differ_pause = match running.reason {
                    Reason::Differs if !changed => (known.differ_pause * 2).min(timers.repair_interval),
                    _ => timers.differ_for,
                };
            }
            Ended::Failed => {
                if let Some(known) = known {
                    let doublings = known.failures.min(16);
                    let pause = timers.gossip_interval.saturating_mul(1 << doublings).min(timers.repair_interval);
                    known.earliest = now + jittered(pause, draw);
                    known.failures = known.failures.saturating_add(1);
                }
                match (running.reason, running.requested) {
                    // The cause of these is still there, and is found again.
                    (Reason::Join | Reason::Differs, _) => {}
                    (reason, Some(since)) => self.add_request(Some(node.clone()), Request { reason, since }),
                    (reason, None) => self.add_request(None, Request { reason, since: now }),
                }
            }
        }
    }

    /// When to call [`Plan::next`] if nothing else happens before. Differing tables need no wakeup: they are found after
    /// [`Plan::update_peers`].
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        let stalled = self.running.values().filter(|run| !run.answered).map(|run| run.since + STALLED);
        let free = |node: &NodeId| self.peers.get(node).filter(|_| !self.running.contains_key(node));
        let requested = self.requests.iter().map(|(node, request)| match free(node) {
            Some(known) => known.earliest,
            None => request.since + self.timers.gossip_interval * ABSENT_ROUNDS,
        });
        let any = self.joining || self.any_peer.is_some();
        let any_peer =
            self.peers.iter().filter(|(node, _)| any && free(node).is_some()).map(|(_, known)| known.earliest);
        let joining =
            self.joining.then_some(self.met).flatten().map(|met| met + self.timers.gossip_interval * JOIN_ROUNDS);
        stalled.chain(requested).chain(any_peer).chain(joining).chain([self.periodic]).filter(|at| *at > now).min()
    }

    fn add_request(&mut self, with: Option<NodeId>, request: Request) {
        match with {
            Some(node) if self.requests.contains_key(&node) || self.requests.len() < MAX_REQUESTS => {
                let known = self.requests.entry(node).or_insert(request);
                known.reason = known.reason.max(request.reason);
                known.since = known.since.min(request.since);
            }
            _ => self.any_peer = self.any_peer.max(Some(request.reason)),
        }
    }

    /// Turns requests for peers that are not live into a request for any peer, which may have the same entries.
    fn redirect_absent(&mut self, now: Instant) {
        let limit = self.timers.gossip_interval * ABSENT_ROUNDS;
        let absent = |node: &NodeId, request: &Request| {
            !self.peers.contains_key(node) && now.saturating_duration_since(request.since) >= limit
        };
        let given_up =
            self.requests.extract_if(.., |node, request| absent(node, request)).map(|(_, request)| request.reason);
        self.any_peer = self.any_peer.max(given_up.max());
    }

    fn choose_to_join(&self, now: Instant, draw: u32) -> Option<(NodeId, Reason, Option<Instant>)> {
        // A second repair only while the first peer does not answer.
        if self.running.values().any(|run| !run.stalled(now)) {
            return None;
        }
        let alone =
            self.met.is_none_or(|met| now.saturating_duration_since(met) < self.timers.gossip_interval * JOIN_ROUNDS);
        let free = || self.free(now).filter(|known| known.peer.shares_wire_version);
        let ready = pick(free().filter(|known| known.peer.ready), draw);
        let silent = |known: &Known| known.failures > 0 || self.running.contains_key(&known.peer.node);
        let nobody_ready = self.peers.values().all(|known| !known.peer.ready || silent(known));
        let chosen = ready.or_else(|| pick(free(), draw).filter(|_| !alone && nobody_ready))?;
        Some((chosen.peer.node.clone(), Reason::Join, None))
    }

    fn choose_to_repair(&mut self, now: Instant, draw: u32) -> Option<(NodeId, Reason, Option<Instant>)> {
        let requested = self.free(now).filter_map(|known| self.requests.get_key_value(&known.peer.node));
        // The strongest reason first, then the oldest request.
        let first = requested.min_by_key(|(node, request)| (std::cmp::Reverse(request.reason), request.since, *node));
        if let Some((node, request)) = first.map(|(node, request)| (node.clone(), *request)) {
            self.requests.remove(&node);
            return Some((node, request.reason, Some(request.since)));
        }
        if let Some(reason) = self.any_peer {
            let understood =
                self.free(now).filter(|known| known.peer.shares_wire_version || reason == Reason::Periodic);
            if let Some(node) = pick(understood, draw).map(|known| known.peer.node.clone()) {
                self.any_peer = None;
                return Some((node, reason, None));
            }
        }
        let node = self.differing(now)?;
        Some((node, Reason::Differs, None))
    }

    /// The peer whose table has differed for longest. `None` while a repair runs or has just ended: it may remove the difference.
    fn differing(&self, now: Instant) -> Option<NodeId> {
        let lately = |at: Option<Instant>, pause| at.is_some_and(|at| now.saturating_duration_since(at) < pause);
        if self.running.values().any(|run| !run.stalled(now)) || lately(self.compared, self.timers.differ_for) {
            return None;
        }
        let differ = self
            .free(now)
            .filter(|known| known.peer.shares_wire_version && !lately(known.compared, known.differ_pause));
        let since = differ.filter_map(|known| Some((known.differs_since?, &known.peer.node)));
        let (since, node) = since.min()?;
        (now.saturating_duration_since(since) >= self.timers.differ_for).then(|| node.clone())
    }

    /// The peers with which a repair may begin.
    fn free(&self, now: Instant) -> impl Iterator<Item = &Known> {
        self.peers.values().filter(move |known| known.earliest <= now && !self.running.contains_key(&known.peer.node))
    }
}

impl Running {
    /// Whether its peer has not answered for [`STALLED`].
    fn stalled(&self, now: Instant) -> bool {
        !self.answered && now.saturating_duration_since(self.since) >= STALLED
    }
}

/// One of `peers`, chosen by `draw`.
fn pick<'a>(peers: impl Iterator<Item = &'a Known>, draw: u32) -> Option<&'a Known> {
    let mut peers: Vec<&Known> = peers.collect();
    peers.sort_unstable_by(|a, b| a.peer.node.cmp(&b.peer.node));
    peers.get(draw as usize % peers.len().max(1)).copied()
}

/// Between 75 % and 125 % of `period`, so that nodes that start together do not repair at the same time.
fn jittered(period: Duration, draw: u32) -> Duration {
    period * 3 / 4 + period / 512 * (draw >> 24)
}

#[cfg(test)]
mod tests;
