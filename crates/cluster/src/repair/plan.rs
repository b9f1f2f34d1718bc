//! Whom to repair with next, and when: decided without sockets and clocks.
//!
//! Every peer is paced for itself. After a repair that succeeded it rests in proportion to what the repair took. After one that
//! failed it is left alone for longer every time, and nobody else waits for it: repairs with different peers run side by side,
//! and one whose peer has not answered for a second no longer counts against the bound. A request waits until its repair has
//! succeeded. Several for one peer are one, with the strongest reason.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;

/// Repairs that move data at a time.
const MAX_AT_ONCE: usize = 4;
/// Connections at a time, those included whose peers do not answer.
const MAX_OPEN: usize = 16;
/// A peer that has not answered after so long no longer keeps others waiting.
const STALLED: Duration = Duration::from_secs(1);
/// A peer rests at least so long after a repair, and five times as long as the repair took.
const MIN_REST: Duration = Duration::from_millis(100);
/// Peers that are asked for by name; further ones are asked for as "anyone".
const MAX_WANTED: usize = 1024;
/// Gossip intervals after which a peer that is asked for by name and not there is given up, and anyone is asked.
const ABSENT_ROUNDS: u32 = 10;
/// Gossip intervals after which a node joins by one that is not ready itself: when a whole cluster starts, nobody is.
const JOIN_ROUNDS: u32 = 5;

/// Why a repair is made, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Reason {
    /// It was time.
    Periodic,
    /// The tables have differed for longer than a moment.
    Differs,
    /// The peer came back.
    Returned,
    /// Something was missed.
    Gap,
    /// This node joins.
    Join,
}

impl Reason {
    /// The label under which it is counted.
    pub(in super::super) const fn as_str(self) -> &'static str {
        match self {
            Self::Periodic => "periodic",
            Self::Differs => "differs",
            Self::Returned => "returned",
            Self::Gap => "gap",
            Self::Join => "join",
        }
    }
}

/// A live peer, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// Which start of it.
    pub(super) generation: u64,
    /// Whether it has joined.
    pub(super) ready: bool,
    /// Whether its table is ours.
    pub(super) equal: bool,
    /// Whether we share a wire version. The table of one with which we share none differs for good, so it is left to the
    /// periodic repairs, which count why they fail.
    pub(super) understands: bool,
}

/// How a repair ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The tables were compared, and `changed` says whether that changed one of them.
    Repaired { took: Duration, changed: bool },
    /// It broke off.
    Failed,
}

/// The timers that matter here: see [`crate::cluster::settings::Timers`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) gossip_interval: Duration,
    pub(super) differ_for: Duration,
    pub(super) repair_interval: Duration,
}

#[derive(Debug)]
struct Known {
    peer: Peer,
    /// No repair before this.
    earliest: Instant,
    /// Repairs that failed in a row.
    failures: u32,
    differs_since: Option<Instant>,
    /// When its table was last compared with ours, and how long not to do so again because it differs: grows while that
    /// changes nothing.
    compared: Option<Instant>,
    differ_pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    reason: Reason,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    reason: Reason,
    since: Instant,
    /// Whether this peer was asked for, and since when.
    named: Option<Instant>,
    greeted: bool,
}

/// What is wanted, what runs, and what is known about the peers.
#[derive(Debug)]
pub(super) struct Plan {
    pace: Pace,
    peers: HashMap<NodeId, Known>,
    wanted: BTreeMap<NodeId, Wanted>,
    anyone: Option<Reason>,
    running: HashMap<NodeId, Running>,
    joining: bool,
    /// When the first peer was met.
    met: Option<Instant>,
    looked: bool,
    /// When tables were last compared, with whomever.
    compared: Option<Instant>,
    periodic: Instant,
}

impl Plan {
    /// A plan of a node that joins. `draw` is random, here and below.
    pub(super) fn new(pace: Pace, now: Instant, draw: u32) -> Self {
        Self {
            pace,
            peers: HashMap::new(),
            wanted: BTreeMap::new(),
            anyone: None,
            running: HashMap::new(),
            joining: true,
            met: None,
            looked: false,
            compared: None,
            periodic: now + jittered(pace.repair_interval, draw),
        }
    }

    /// Whether the node still joins: until then nothing else is repaired.
    pub(super) const fn is_joining(&self) -> bool {
        self.joining
    }

    /// Whether a peer that has answered is giving its table to this node, which joins.
    pub(super) fn is_fetching(&self) -> bool {
        self.running.values().any(|run| run.reason == Reason::Join && run.greeted)
    }

    /// Gives up joining.
    pub(super) const fn stop_joining(&mut self) {
        self.joining = false;
    }

    /// Takes note of the peers that live. One that came back, or was started anew, begins with a clean record.
    pub(super) fn look(&mut self, peers: &[Peer], now: Instant) {
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let known = before.remove(&peer.node).filter(|known| known.peer.generation == peer.generation);
            // A node that joins repairs by itself. One that comes back as it was, was cut off, or we were.
            if known.is_none() && self.looked && peer.ready && !peer.equal && peer.understands {
                self.ask(Some(peer.node.clone()), Reason::Returned, now);
            }
            let mut known = known.unwrap_or_else(|| Known {
                peer: peer.clone(),
                earliest: now,
                failures: 0,
                differs_since: None,
                compared: None,
                differ_pause: self.pace.differ_for,
            });
            // One that joins differs until it has joined, and fetches what it lacks: to send it the same would double it.
            known.differs_since = if peer.equal || !peer.ready { None } else { known.differs_since.or(Some(now)) };
            known.peer = peer.clone();
            self.peers.insert(peer.node.clone(), known);
        }
        self.looked = true;
        if !self.peers.is_empty() {
            self.met.get_or_insert(now);
        }
    }

    /// Asks for a repair, with `with` if it matters.
    pub(super) fn ask(&mut self, with: Option<NodeId>, reason: Reason, now: Instant) {
        self.want(with, Wanted { reason, since: now });
    }

    /// The next repair to begin now, and why. To be called until it returns `None`, and again when a repair has ended, something
    /// was asked for, after every look, and at [`Plan::wake`].
    pub(super) fn next(&mut self, now: Instant, draw: u32) -> Option<(NodeId, Reason)> {
        if now >= self.periodic {
            self.periodic = now + jittered(self.pace.repair_interval, draw);
            self.anyone = self.anyone.max(Some(Reason::Periodic));
        }
        self.give_up_absent(now);
        if self.running.len() >= MAX_OPEN
            || self.running.values().filter(|run| !run.stalled(now)).count() >= MAX_AT_ONCE
        {
            return None;
        }
        let (node, reason, named) =
            if self.joining { self.choose_to_join(now, draw) } else { self.choose_to_repair(now, draw) }?;
        self.running.insert(node.clone(), Running { reason, since: now, named, greeted: false });
        Some((node, reason))
    }

    /// The peer has answered.
    pub(super) fn greeted(&mut self, node: &NodeId) {
        if let Some(running) = self.running.get_mut(node) {
            running.greeted = true;
        }
    }

    /// A repair has ended.
    pub(super) fn ended(&mut self, node: &NodeId, ended: Ended, now: Instant, draw: u32) {
        let Some(running) = self.running.remove(node) else { return };
        let (pace, peers) = (self.pace, u32::try_from(self.peers.len()).unwrap_or(u32::MAX));
        let known = self.peers.get_mut(node);
        match ended {
            Ended::Repaired { took, changed } => {
                if running.reason == Reason::Join {
                    self.joining = false;
                }
                self.compared = Some(now);
                self.periodic = now + jittered(pace.repair_interval, draw);
                let Some(known) = known else { return };
                known.failures = 0;
                known.compared = Some(now);
                // With all peers together, repairs take half the time of one connection at most.
                let rest = took.saturating_mul(peers.saturating_mul(2).max(5));
                known.earliest = now + rest.clamp(MIN_REST, pace.repair_interval.max(MIN_REST));
                known.differ_pause = match running.reason {
                    Reason::Differs if !changed => (known.differ_pause * 2).min(pace.repair_interval),
                    _ => pace.differ_for,
                };
            }
            Ended::Failed => {
                if let Some(known) = known {
                    let doublings = known.failures.min(16);
                    let pause = pace.gossip_interval.saturating_mul(1 << doublings).min(pace.repair_interval);
                    known.earliest = now + jittered(pause, draw);
                    known.failures = known.failures.saturating_add(1);
                }
                match (running.reason, running.named) {
                    // These follow from what is seen, and are seen again.
                    (Reason::Join | Reason::Differs, _) => {}
                    (reason, Some(since)) => self.want(Some(node.clone()), Wanted { reason, since }),
                    (reason, None) => self.want(None, Wanted { reason, since: now }),
                }
            }
        }
    }

    /// When to ask again at the latest, if nothing happens before. What follows from differing tables follows from a look.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let stalled = self.running.values().filter(|run| !run.greeted).map(|run| run.since + STALLED);
        let free = |node: &NodeId| self.peers.get(node).filter(|_| !self.running.contains_key(node));
        let wanted = self.wanted.iter().map(|(node, wanted)| match free(node) {
            Some(known) => known.earliest,
            None => wanted.since + self.pace.gossip_interval * ABSENT_ROUNDS,
        });
        let any = self.joining || self.anyone.is_some();
        let anyone = self.peers.iter().filter(|(node, _)| any && free(node).is_some()).map(|(_, known)| known.earliest);
        let joining =
            self.joining.then_some(self.met).flatten().map(|met| met + self.pace.gossip_interval * JOIN_ROUNDS);
        stalled.chain(wanted).chain(anyone).chain(joining).chain([self.periodic]).filter(|at| *at > now).min()
    }

    fn want(&mut self, with: Option<NodeId>, wanted: Wanted) {
        match with {
            Some(node) if self.wanted.contains_key(&node) || self.wanted.len() < MAX_WANTED => {
                let known = self.wanted.entry(node).or_insert(wanted);
                known.reason = known.reason.max(wanted.reason);
                known.since = known.since.min(wanted.since);
            }
            _ => self.anyone = self.anyone.max(Some(wanted.reason)),
        }
    }

    /// What was missed of a peer that is gone, others may have.
    fn give_up_absent(&mut self, now: Instant) {
        let patience = self.pace.gossip_interval * ABSENT_ROUNDS;
        let absent = |node: &NodeId, wanted: &Wanted| {
            !self.peers.contains_key(node) && now.saturating_duration_since(wanted.since) >= patience
        };
        let given_up = self.wanted.extract_if(.., |node, wanted| absent(node, wanted)).map(|(_, wanted)| wanted.reason);
        self.anyone = self.anyone.max(given_up.max());
    }

    fn choose_to_join(&self, now: Instant, draw: u32) -> Option<(NodeId, Reason, Option<Instant>)> {
        // Another one while the first does not answer, and only then.
        if self.running.values().any(|run| !run.stalled(now)) {
            return None;
        }
        let alone =
            self.met.is_none_or(|met| now.saturating_duration_since(met) < self.pace.gossip_interval * JOIN_ROUNDS);
        let free = || self.free(now).filter(|known| known.peer.understands);
        let ready = pick(free().filter(|known| known.peer.ready), draw);
        let silent = |known: &Known| known.failures > 0 || self.running.contains_key(&known.peer.node);
        let nobody_ready = self.peers.values().all(|known| !known.peer.ready || silent(known));
        let chosen = ready.or_else(|| pick(free(), draw).filter(|_| !alone && nobody_ready))?;
        Some((chosen.peer.node.clone(), Reason::Join, None))
    }

    fn choose_to_repair(&mut self, now: Instant, draw: u32) -> Option<(NodeId, Reason, Option<Instant>)> {
        let wanted = self.free(now).filter_map(|known| self.wanted.get_key_value(&known.peer.node));
        // The strongest reason first; for the same one, who has waited for longest.
        let first = wanted.min_by_key(|(node, wanted)| (std::cmp::Reverse(wanted.reason), wanted.since, *node));
        if let Some((node, wanted)) = first.map(|(node, wanted)| (node.clone(), *wanted)) {
            self.wanted.remove(&node);
            return Some((node, wanted.reason, Some(wanted.since)));
        }
        if let Some(reason) = self.anyone {
            let understood = self.free(now).filter(|known| known.peer.understands || reason == Reason::Periodic);
            if let Some(node) = pick(understood, draw).map(|known| known.peer.node.clone()) {
                self.anyone = None;
                return Some((node, reason, None));
            }
        }
        let node = self.differing(now)?;
        Some((node, Reason::Differs, None))
    }

    /// The peer whose table has differed for longest, unless a repair that runs or has just ended may have mended that.
    fn differing(&self, now: Instant) -> Option<NodeId> {
        let lately = |at: Option<Instant>, pause| at.is_some_and(|at| now.saturating_duration_since(at) < pause);
        if self.running.values().any(|run| !run.stalled(now)) || lately(self.compared, self.pace.differ_for) {
            return None;
        }
        let differ =
            self.free(now).filter(|known| known.peer.understands && !lately(known.compared, known.differ_pause));
        let since = differ.filter_map(|known| Some((known.differs_since?, &known.peer.node)));
        let (since, node) = since.min()?;
        (now.saturating_duration_since(since) >= self.pace.differ_for).then(|| node.clone())
    }

    /// The peers with whom a repair may begin.
    fn free(&self, now: Instant) -> impl Iterator<Item = &Known> {
        self.peers.values().filter(move |known| known.earliest <= now && !self.running.contains_key(&known.peer.node))
    }
}

impl Running {
    /// Whether its peer has not answered for longer than anybody should wait for it.
    fn stalled(&self, now: Instant) -> bool {
        !self.greeted && now.saturating_duration_since(self.since) >= STALLED
    }
}

/// One of `peers`, at random.
fn pick<'a>(peers: impl Iterator<Item = &'a Known>, draw: u32) -> Option<&'a Known> {
    let mut peers: Vec<&Known> = peers.collect();
    peers.sort_unstable_by(|a, b| a.peer.node.cmp(&b.peer.node));
    peers.get(draw as usize % peers.len().max(1)).copied()
}

/// Between 75% and 125% of `period`, so that nodes that started together do not repair together.
fn jittered(period: Duration, draw: u32) -> Duration {
    period * 3 / 4 + period / 512 * (draw >> 24)
}

#[cfg(test)]
mod tests;
