//! What arrives from other nodes directly, and waits for the parts that use it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::mpsc;

use banmesh_cluster::datagram::{Acknowledgement, SlotMessage, States};
use banmesh_cluster::delivery::Channel;
use banmesh_core::node::NodeId;

/// Slots and acknowledgements that may wait. If there are more, they are dropped, and sent again.
const QUEUE: usize = 4096;
/// Addresses that are remembered besides those of members.
const MAX_ADDRESSES: usize = 1024;
/// How long an address is remembered.
const REMEMBER: Duration = Duration::from_secs(15 * 60);

/// A slot of another node's recent-changes log.
#[derive(Debug)]
pub(super) struct DirectSlot {
    /// The author's process.
    pub process: u64,
    pub author: NodeId,
    pub oldest: u64,
    pub number: u64,
    pub log: char,
    pub slot: Vec<u8>,
    pub reply: Reply,
}

/// Where an acknowledgement goes.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Datagram(SocketAddr),
    Stream(mpsc::Sender<Vec<u8>>),
}

/// An acknowledgement of this node's log.
#[derive(Debug)]
pub(super) struct ReceivedAck {
    /// The process of the node that acknowledges; `None` over a connection.
    pub process: Option<u64>,
    pub ack: Acknowledgement,
    pub channel: Channel,
}

/// What a HAProxy of another node has counted.
#[derive(Debug)]
pub struct ReceivedStates {
    /// The node.
    pub author: NodeId,
    /// The number of its process.
    pub process: u64,
    /// The generation of the process, and the order of what it sends: greater is later.
    pub version: (u64, u64),
    /// See `banmesh_peers::exchange`.
    pub states: Vec<u8>,
}

/// Takes what arrives. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    slots: mpsc::Sender<DirectSlot>,
    acknowledgements: mpsc::Sender<ReceivedAck>,
    states: mpsc::Sender<ReceivedStates>,
}

/// What has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub slots: mpsc::Receiver<DirectSlot>,
    pub acknowledgements: mpsc::Receiver<ReceivedAck>,
    pub states: Option<mpsc::Receiver<ReceivedStates>>,
}

/// An empty inbox.
pub(super) fn inbox() -> (Inbox, Arrived) {
    let (slots, arrived_slots) = mpsc::channel(QUEUE);
    let (acknowledgements, arrived_acknowledgements) = mpsc::channel(QUEUE);
    let (states, arrived_states) = mpsc::channel(QUEUE);
    let arrived =
        Arrived { slots: arrived_slots, acknowledgements: arrived_acknowledgements, states: Some(arrived_states) };
    (Inbox { slots, acknowledgements, states }, arrived)
}

impl Inbox {
    /// Returns whether the slot has been taken.
    pub(super) fn slot(&self, process: u64, message: &SlotMessage<'_>, reply: Reply) -> bool {
        self.slots.try_send(received(process, message, reply)).is_ok()
    }

    /// Waits until there is room. Returns false when nobody takes slots any more.
    pub(super) async fn wait_for_slot(&self, process: u64, message: &SlotMessage<'_>, reply: Reply) -> bool {
        self.slots.send(received(process, message, reply)).await.is_ok()
    }

    /// Returns whether the acknowledgement has been taken.
    pub(super) fn acknowledgement(&self, ack: ReceivedAck) -> bool {
        self.acknowledgements.try_send(ack).is_ok()
    }

    /// Returns whether the states have been taken. A node without a listener for HAProxy's peers takes and ignores them.
    pub(super) fn states(&self, process: u64, states: States<'_>) -> bool {
        let States { author, generation, sequence, states } = states;
        let received = ReceivedStates { author, process, version: (generation, sequence), states: states.to_vec() };
        !matches!(self.states.try_send(received), Err(mpsc::error::TrySendError::Full(_)))
    }
}

fn received(process: u64, message: &SlotMessage<'_>, reply: Reply) -> DirectSlot {
    let SlotMessage { author, oldest, number, log, slot } = message.clone();
    DirectSlot { process, author, oldest, number, log, slot: slot.to_vec(), reply }
}

/// The addresses whose builds read datagrams of every kind.
#[derive(Debug, Default)]
pub(super) struct Readers {
    members: RwLock<HashSet<SocketAddr>>,
    learned: RwLock<HashMap<SocketAddr, Instant>>,
    /// Whether the socket has an IPv6 address.
    pub(super) dual_stack: OnceLock<bool>,
}

impl Readers {
    /// Sets the addresses of the members that say so.
    pub(super) fn set_members(&self, members: HashSet<SocketAddr>) {
        if *self.members.read() != members {
            *self.members.write() = members;
        }
    }

    /// Notes what a datagram from `address` says about its build.
    pub(super) fn note(&self, address: SocketAddr, reads: bool) {
        let now = Instant::now();
        let known = self.learned.read().get(&address).copied();
        let is_current = known.is_some_and(|since| now.saturating_duration_since(since) < REMEMBER / 2);
        if is_current == reads && reads == known.is_some() {
            return;
        }
        let mut learned = self.learned.write();
        if !reads {
            learned.remove(&address);
            return;
        }
        if learned.len() >= MAX_ADDRESSES && !learned.contains_key(&address) {
            let oldest = learned.iter().min_by_key(|(_, since)| **since).map(|(address, _)| *address);
            oldest.map(|address| learned.remove(&address));
        }
        learned.insert(address, now);
    }

    /// Whether `address` is that of a live member which says so.
    pub(super) fn is_member(&self, address: SocketAddr) -> bool {
        self.members.read().contains(&address)
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        let recent = |since: &Instant| since.elapsed() < REMEMBER;
        self.is_member(address) || self.learned.read().get(&address).is_some_and(recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_learned_unlearned_and_bounded() {
        let readers = Readers::default();
        let address = |number: u16| SocketAddr::from(([192, 0, 2, 1], number));
        assert!(!readers.contains(address(1)));
        readers.note(address(1), true);
        assert!(readers.contains(address(1)));
        readers.note(address(1), false);
        assert!(!readers.contains(address(1)), "an earlier build runs there now");
        readers.set_members(HashSet::from([address(2)]));
        assert!(readers.contains(address(2)));
        for number in 0..5_000 {
            readers.note(address(number), true);
        }
        assert_eq!(readers.learned.read().len(), MAX_ADDRESSES);
    }
}
