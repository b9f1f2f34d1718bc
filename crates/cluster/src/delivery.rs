//! The sending side of the recent-changes log, as it is sent directly: which slots are sent to which peer, how, and when again.
//!
//! Every slot is one datagram to each peer, and every peer acknowledges. What a peer does not acknowledge in time is sent again; what is
//! lost then too goes by TCP, and so does everything later until the peer acknowledges a datagram. So losing a datagram costs one round
//! trip of waiting for one slot, and a path that carries no datagrams costs one short wait.
//!
//! The log is bounded. A peer that is so slow that slots are dropped before it has them learns their number, and repairs.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;

use crate::datagram::Acknowledgement;
use crate::follower::WINDOW;

/// Slots that are kept for peers that have not acknowledged them.
const MAX_LOG: usize = 256;
/// Slots that a new peer gets, so that what was published while it joined is not missed.
const MAX_REPLAY: u64 = 32;
/// Datagrams of one slot that a peer may fail to acknowledge before the slot goes by TCP.
const TRIES: u32 = 2;
/// How often a peer that is served by TCP gets a datagram anyway, to notice when datagrams arrive again.
const PROBE: Duration = Duration::from_secs(1);
/// Slots that a peer may be behind before the author waits for it.
const MAX_BEHIND: u64 = MAX_LOG as u64 / 2;

/// One slot of the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    /// Counted from 0 in this process.
    pub number: u64,
    /// The log: [`BANS`](crate::outbox::BANS) or [`ATTEMPTS`](crate::outbox::ATTEMPTS).
    pub log: char,
    /// The sequence number after the last ban in this slot and those before it.
    pub end: u64,
    /// Empty where changes were lost, so that peers must repair.
    pub bytes: Vec<u8>,
    /// Whether it is too long for a datagram.
    pub too_long: bool,
}

/// A live peer that takes slots directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// The number of its process in envelopes.
    pub process: u64,
    /// Its address.
    pub address: SocketAddr,
}

/// How a slot is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// As a datagram.
    Datagram,
    /// Over a connection.
    Stream,
}

/// One slot to send to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// The peer's id.
    pub node: NodeId,
    /// The peer's address.
    pub address: SocketAddr,
    /// The oldest slot that this peer is still sent.
    pub oldest: u64,
    /// The slot.
    pub slot: Arc<Slot>,
    /// How.
    pub channel: Channel,
}

/// A live peer that gets no datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfollowed {
    /// Its id.
    pub node: NodeId,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it acknowledges what it gets by TCP.
    pub by_tcp: bool,
    /// For how long.
    pub since: Instant,
}

/// What a peer has of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The sequence number of the next ban that it expects.
    pub next: u64,
    /// It missed some bans before this one; 0 if none.
    pub missed: u64,
}

/// The log, and what every peer has of it.
#[derive(Debug)]
pub struct Delivery {
    log: VecDeque<Arc<Slot>>,
    next_number: u64,
    /// The end of the slot before the first in the log.
    first_end: u64,
    peers: BTreeMap<NodeId, PeerState>,
    wait: Duration,
    report_after: Duration,
}

#[derive(Debug)]
struct PeerState {
    peer: Peer,
    /// All slots before this one are acknowledged or dropped.
    next: u64,
    /// The slots from here on have not been sent.
    unsent: u64,
    on_the_way: BTreeMap<u64, Sent>,
    /// Since when it is served by TCP.
    by_stream: Option<Instant>,
    stream_works: bool,
    probed: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    tries: u32,
}

impl Delivery {
    /// An empty log. A peer should acknowledge within `wait`. That it gets no datagrams is reported after `report_after`, in which time
    /// the death of a node must be noticed.
    pub const fn new(wait: Duration, report_after: Duration) -> Self {
        Self { log: VecDeque::new(), next_number: 0, first_end: 0, peers: BTreeMap::new(), wait, report_after }
    }

    /// The number of the next slot.
    pub const fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Adds a slot to the log. `end` is the sequence number after its last ban, or after that of the slots before it.
    pub fn publish(&mut self, log: char, bytes: Vec<u8>, end: u64, too_long: bool) {
        if self.log.len() >= MAX_LOG
            && let Some(dropped) = self.log.pop_front()
        {
            self.first_end = dropped.end;
            for state in self.peers.values_mut() {
                state.drop_before(dropped.number + 1);
            }
        }
        self.log.push_back(Arc::new(Slot { number: self.next_number, log, end, bytes, too_long }));
        self.next_number += 1;
    }

    /// Sets the live peers. A peer that is new gets the last slots.
    pub fn update_peers(&mut self, peers: Vec<Peer>, now: Instant) {
        let oldest = self.oldest().max(self.next_number.saturating_sub(MAX_REPLAY));
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let kept = before.remove(&peer.node).filter(|state| state.peer.process == peer.process);
            let state = match kept {
                Some(state) => PeerState { peer, ..state },
                None => PeerState {
                    peer,
                    next: oldest,
                    unsent: oldest,
                    on_the_way: BTreeMap::new(),
                    by_stream: None,
                    stream_works: false,
                    probed: now,
                },
            };
            self.peers.insert(state.peer.node.clone(), state);
        }
    }

    /// Takes an acknowledgement of `process`, if that is known, which arrived by `channel`. Returns what the peer has, or `None` if it is
    /// not from a peer.
    pub fn acknowledged(&mut self, process: Option<u64>, ack: &Acknowledgement, channel: Channel) -> Option<Received> {
        let (next_number, received) = (self.next_number, self.received(ack));
        let same = |state: &&mut PeerState| process.is_none_or(|process| state.peer.process == process);
        let state = self.peers.get_mut(&ack.node).filter(same)?;
        if ack.next > next_number {
            return None;
        }
        state.drop_before(ack.next);
        let arrived = |number: &u64| {
            number.checked_sub(ack.next + 1).is_some_and(|bit| bit < WINDOW && ack.later >> bit & 1 == 1)
        };
        state.on_the_way.retain(|number, _| !arrived(number));
        match channel {
            Channel::Datagram => state.by_stream = None,
            Channel::Stream => state.stream_works = true,
        }
        Some(received)
    }

    /// The connection to `node` has failed. What was sent over it is sent again.
    pub fn stream_failed(&mut self, node: &NodeId) {
        if let Some(state) = self.peers.get_mut(node) {
            state.stream_works = false;
        }
    }

    /// What is to be sent now.
    pub fn due(&mut self, now: Instant) -> Vec<Send> {
        let mut sends = Vec::new();
        let (oldest, wait) = (self.oldest(), self.wait);
        for state in self.peers.values_mut() {
            state.again(now, wait);
            let mut numbers = state.overdue(now, wait);
            while state.unsent < self.next_number && state.unsent < state.next + WINDOW {
                numbers.push((state.unsent, 0));
                state.unsent += 1;
            }
            let (by_stream, mut probe) = (state.by_stream.is_some(), now >= state.probed + PROBE);
            for (number, tries) in numbers {
                let at = number.checked_sub(oldest).and_then(|at| usize::try_from(at).ok());
                let Some(slot) = at.and_then(|at| self.log.get(at)) else { continue };
                state.on_the_way.insert(number, Sent { at: now, tries: tries + 1 });
                let send = |channel| Send {
                    node: state.peer.node.clone(),
                    address: state.peer.address,
                    oldest: state.next.min(number),
                    slot: Arc::clone(slot),
                    channel,
                };
                if by_stream || slot.too_long {
                    sends.push(send(Channel::Stream));
                }
                if !slot.too_long && (!by_stream || std::mem::take(&mut probe)) {
                    state.probed = now;
                    sends.push(send(Channel::Datagram));
                }
            }
        }
        sends
    }

    /// When [`Delivery::due`] has something to send again, if nothing arrives until then.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let sent = self.peers.values().flat_map(|state| state.on_the_way.values().map(|sent| sent.again_at(self.wait)));
        sent.min()
    }

    /// The peers that get no datagrams, and have not for a while.
    pub fn unfollowed(&self, now: Instant) -> Vec<Unfollowed> {
        let long = |since: &Instant| now.saturating_duration_since(*since) >= self.report_after;
        let unfollowed = |state: &PeerState| {
            let since = state.by_stream.filter(long)?;
            let Peer { node, address, .. } = state.peer.clone();
            Some(Unfollowed { node, address, by_tcp: state.stream_works, since })
        };
        self.peers.values().filter_map(unfollowed).collect()
    }

    /// Whether a peer that gets datagrams is so far behind that the author should wait for it before it adds slots. A peer that acknowledges
    /// nothing soon is served by TCP, and is not waited for.
    pub fn is_congested(&self) -> bool {
        self.peers.values().any(|state| state.by_stream.is_none() && self.next_number - state.next > MAX_BEHIND)
    }

    /// How many peers there are.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Whether a peer could be sent more slots.
    pub fn has_unsent(&self) -> bool {
        let more = |state: &PeerState| state.unsent < self.next_number && state.unsent < state.next + WINDOW;
        self.peers.values().any(more)
    }

    /// Whether `node` gets slots directly.
    pub fn serves(&self, node: &NodeId) -> bool {
        self.peers.contains_key(node)
    }

    fn oldest(&self) -> u64 {
        self.log.front().map_or(self.next_number, |slot| slot.number)
    }

    /// An acknowledgement in sequence numbers of bans.
    fn received(&self, ack: &Acknowledgement) -> Received {
        let missed = match ack.missed {
            0 => 0,
            // How many bans the slots before the log had is no longer known. It must not look like none: a node that stops repairs with
            // whoever missed some.
            missed => self.end_before(missed.max(self.oldest())).max(1),
        };
        Received { next: self.end_before(ack.next), missed }
    }

    /// The sequence number after the last ban before slot `number`.
    fn end_before(&self, number: u64) -> u64 {
        let Some(at) = number.checked_sub(self.oldest() + 1).and_then(|at| usize::try_from(at).ok()) else {
            return if number == self.oldest() { self.first_end } else { 0 };
        };
        self.log.get(at).map_or(0, |slot| slot.end)
    }
}

impl Sent {
    fn again_at(&self, wait: Duration) -> Instant {
        self.at + wait.saturating_mul(1 << self.tries.min(6).saturating_sub(1))
    }
}

impl PeerState {
    fn drop_before(&mut self, number: u64) {
        self.next = self.next.max(number);
        self.unsent = self.unsent.max(number);
        self.on_the_way = self.on_the_way.split_off(&self.next);
    }

    /// Changes to TCP when datagrams do not arrive.
    fn again(&mut self, now: Instant, wait: Duration) {
        let lost = |sent: &Sent| sent.tries >= TRIES && now >= sent.again_at(wait);
        if self.by_stream.is_none() && self.on_the_way.values().any(lost) {
            self.by_stream = Some(now);
            // Everything that is on the way goes by TCP at once.
            for sent in self.on_the_way.values_mut() {
                *sent = Sent { at: now.checked_sub(wait).unwrap_or(now), tries: 1 };
            }
        }
    }

    /// The slots to send again, with how often each has been sent.
    fn overdue(&self, now: Instant, wait: Duration) -> Vec<(u64, u32)> {
        let due = self.on_the_way.iter().filter(|(_, sent)| now >= sent.again_at(wait));
        due.map(|(number, sent)| (*number, sent.tries)).collect()
    }
}

#[cfg(test)]
mod tests;
