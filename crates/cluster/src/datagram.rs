//! The datagrams that nodes send each other directly.
//!
//! ```text
//! envelope 24 | receiver 18 | kind 1 | body …
//! ```
//!
//! | kind | body |
//! |---|---|
//! | 1 | gossip: see [`crate::compact`] |
//! | 2 | one slot of the author's recent-changes log: see [`SlotMessage`] |
//! | 3 | what a peer has received: see [`Acknowledgement`] |
//! | 4 | what a HAProxy of the author has counted: see [`States`] |
//!
//! Numbers are little-endian. A text is its length in one byte, and its bytes. Every datagram stands for itself, so losing one loses
//! no other. docs/protocol.md has the whole format.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use banmesh_core::node::NodeId;
use banmesh_core::seal::OVERHEAD;
use banmesh_core::seal::replay::ENVELOPE_LEN;
use banmesh_types::time::UnixMillis;

/// `cluster.max_datagram` by default: fits into the smallest packet that every IPv6 path carries, with room for a tunnel's header.
pub const DEFAULT_MAX_DATAGRAM: usize = 1_200;
/// The smallest `cluster.max_datagram`: every IPv4 path carries it.
pub const LEAST_MAX_DATAGRAM: usize = 508;
/// The largest `cluster.max_datagram`: fits into a jumbo frame of 9,000 bytes.
pub const MOST_MAX_DATAGRAM: usize = 8_900;

/// Bytes before the body that are not part of the envelope.
const HEAD_LEN: usize = 16 + 2 + 1;
const KIND_GOSSIP: u8 = 1;
const KIND_SLOT: u8 = 2;
const KIND_ACKNOWLEDGEMENT: u8 = 3;
const KIND_STATES: u8 = 4;

/// The longest body of a datagram of at most `max_datagram` bytes.
pub const fn room(max_datagram: usize) -> usize {
    max_datagram.saturating_sub(OVERHEAD + ENVELOPE_LEN + HEAD_LEN)
}

/// The longest slot that fits into a datagram of at most `max_datagram` bytes from `author`.
pub fn slot_room(max_datagram: usize, author: &NodeId) -> usize {
    room(max_datagram).saturating_sub(1 + author.as_str().len() + SLOT_HEAD_LEN)
}

/// Bytes of encoded [`SlotMessage`], without the author's id and the slot.
const SLOT_HEAD_LEN: usize = 8 + 8 + 1;

/// What a datagram is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message of the membership.
    Gossip,
    /// A slot of the recent-changes log.
    Slot,
    /// What has been received.
    Acknowledgement,
    /// What a HAProxy has counted.
    States,
}

/// The bytes between the envelope and the body.
pub fn head(to: SocketAddr, kind: Kind) -> [u8; HEAD_LEN] {
    let ip = match to.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; HEAD_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..18].copy_from_slice(&to.port().to_le_bytes());
    bytes[18] = match kind {
        Kind::Gossip => KIND_GOSSIP,
        Kind::Slot => KIND_SLOT,
        Kind::Acknowledgement => KIND_ACKNOWLEDGEMENT,
        Kind::States => KIND_STATES,
    };
    bytes
}

/// Splits what follows the envelope into the receiver, the kind (`None` if this build does not know it) and the body. `None` if it is
/// too short.
pub fn split(bytes: &[u8]) -> Option<(SocketAddr, Option<Kind>, &[u8])> {
    let (ip, rest) = bytes.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (kind, body) = rest.split_first()?;
    let kind = match *kind {
        KIND_GOSSIP => Some(Kind::Gossip),
        KIND_SLOT => Some(Kind::Slot),
        KIND_ACKNOWLEDGEMENT => Some(Kind::Acknowledgement),
        KIND_STATES => Some(Kind::States),
        _ => None,
    };
    Some((SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), u16::from_le_bytes(*port)), kind, body))
}

/// One slot of the recent-changes log of a node.
///
/// ```text
/// author text | oldest 8 | number 8 | log 1 | slot …
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMessage<'a> {
    /// The node whose log it is.
    pub author: NodeId,
    /// The author sends the receiver no slot before this one any more.
    pub oldest: u64,
    /// The number of the slot. The author's process numbers its slots from 0.
    pub number: u64,
    /// The log: [`BANS`](crate::outbox::BANS) or [`ATTEMPTS`](crate::outbox::ATTEMPTS). Builds skip a log that they do not know.
    pub log: char,
    /// The slot: see [`crate::ring`]. Empty where the author has lost track of its own changes, so that the receiver must repair.
    pub slot: &'a [u8],
}

impl<'a> SlotMessage<'a> {
    /// The bytes before the slot.
    pub fn encode_head(author: &NodeId, oldest: u64, number: u64, log: char) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + author.as_str().len() + SLOT_HEAD_LEN);
        put_node(author, &mut bytes);
        bytes.extend_from_slice(&oldest.to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.push(u8::try_from(log).unwrap_or(b'?'));
        bytes
    }

    /// Decodes a body; `None` if it is malformed.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (author, rest) = take_node(bytes)?;
        let (oldest, rest) = take_u64(rest)?;
        let (number, rest) = take_u64(rest)?;
        let (log, slot) = rest.split_first()?;
        Some(Self { author, oldest, number, log: char::from(*log), slot })
    }
}

/// What a node has received of another node's log.
///
/// ```text
/// node text | author's process 8 | next 8 | later 8 | missed 8 | at 8
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The node that acknowledges.
    pub node: NodeId,
    /// The process of the author: its number in the envelope.
    pub author: u64,
    /// All slots before this one have arrived or were missed.
    pub next: u64,
    /// Bit `i`: slot `next + 1 + i` has arrived.
    pub later: u64,
    /// Some slots before this one were missed; 0 if none.
    pub missed: u64,
    /// When `next` was reached, by the clock of `node`.
    pub at: UnixMillis,
}

impl Acknowledgement {
    /// The body of a datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.node.as_str().len());
        put_node(&self.node, &mut bytes);
        for number in [self.author, self.next, self.later, self.missed, self.at.0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`Acknowledgement::encode`]. Ignores what follows, which a later build may add.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (node, rest) = take_node(bytes)?;
        let (author, rest) = take_u64(rest)?;
        let (next, rest) = take_u64(rest)?;
        let (later, rest) = take_u64(rest)?;
        let (missed, rest) = take_u64(rest)?;
        let (at, _) = take_u64(rest)?;
        Some(Self { node, author, next, later, missed, at: UnixMillis(at) })
    }
}

/// What a HAProxy of a node has counted. Only the latest counts, so these datagrams are neither acknowledged nor stored.
///
/// ```text
/// author text | generation 8 | sequence 8 | states …
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct States<'a> {
    /// The node.
    pub author: NodeId,
    /// Greater after every start of the author.
    pub generation: u64,
    /// Greater in every datagram of this generation.
    pub sequence: u64,
    /// What was counted: see `banmesh_peers::exchange`.
    pub states: &'a [u8],
}

impl<'a> States<'a> {
    /// The bytes before the states.
    pub fn encode_head(author: &NodeId, generation: u64, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(17 + author.as_str().len());
        put_node(author, &mut bytes);
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes
    }

    /// Decodes a body; `None` if it is malformed.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (author, rest) = take_node(bytes)?;
        let (generation, rest) = take_u64(rest)?;
        let (sequence, states) = take_u64(rest)?;
        Some(Self { author, generation, sequence, states })
    }

    /// The most bytes of states in a datagram of at most `max_datagram` bytes from `author`.
    pub fn room(max_datagram: usize, author: &NodeId) -> usize {
        room(max_datagram).saturating_sub(17 + author.as_str().len())
    }
}

fn put_node(node: &NodeId, bytes: &mut Vec<u8>) {
    let text = node.as_str().as_bytes();
    // An id has at most 63 bytes.
    bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(text);
}

fn take_node(bytes: &[u8]) -> Option<(NodeId, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(text).ok()?.parse().ok()?, rest))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> NodeId {
        "edge-1".parse().unwrap()
    }

    #[test]
    fn bodies_are_read_as_written() {
        let head = SlotMessage::encode_head(&node(), 3, 9, 'b');
        let bytes = [&head[..], b"slot"].concat();
        let message = SlotMessage { author: node(), oldest: 3, number: 9, log: 'b', slot: b"slot" };
        assert_eq!(SlotMessage::decode(&bytes), Some(message));
        assert_eq!(bytes.len(), 4 + room(1200) - slot_room(1200, &node()));
        let ack = Acknowledgement { node: node(), author: 7, next: 4, later: 5, missed: 2, at: UnixMillis(99) };
        assert_eq!(Acknowledgement::decode(&[&ack.encode()[..], b"of a later build"].concat()), Some(ack));
        let bytes = [&States::encode_head(&node(), 5, 6)[..], b"states"].concat();
        assert_eq!(
            States::decode(&bytes),
            Some(States { author: node(), generation: 5, sequence: 6, states: b"states" })
        );
    }

    #[test]
    fn heads_are_read_as_written() {
        for to in ["192.0.2.1:12350", "[2001:db8::1]:7"] {
            let to: SocketAddr = to.parse().unwrap();
            let bytes = [&head(to, Kind::Slot)[..], b"body"].concat();
            assert_eq!(split(&bytes), Some((to, Some(Kind::Slot), &b"body"[..])));
        }
        let mut later = head("192.0.2.1:1".parse().unwrap(), Kind::Gossip);
        later[18] = 77;
        assert_eq!(split(&later).map(|(_, kind, _)| kind), Some(None));
        assert_eq!(split(&later[..18]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = (SlotMessage::decode(&bytes), Acknowledgement::decode(&bytes), States::decode(&bytes), split(&bytes));
        }
    }
}
