//! What this node's gossip has said about the members: which of them the next message names, and whether one is due.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use banmesh_cluster::compact::{Digest, Message, Order, Part};
use banmesh_cluster::incarnation::Incarnation;
use banmesh_cluster::known_members::{KnownMembers, MalformedMessage};
use banmesh_cluster::rounds::Rounds;

/// The state of this node's exchanges.
pub(super) struct Exchange {
    /// The versions in the last message that this node sent.
    own: Digest,
    /// Whom the next digest names first: see [`Order::from`].
    turn: usize,
    /// How many members a datagram can name.
    capacity: usize,
    /// The members of which the node at an address knows a later version.
    wanted: Option<(SocketAddr, Vec<Incarnation>)>,
    rounds: Rounds,
}

impl Exchange {
    /// Nothing has been said yet.
    pub fn new(gossip_interval: Duration) -> Self {
        let rounds = Rounds::new(gossip_interval);
        Self { own: Digest::default(), turn: 0, capacity: 0, wanted: None, rounds }
    }

    /// Takes apart a message that chitchat wants to send, and notes which versions it names.
    ///
    /// # Errors
    /// [`MalformedMessage`] if it is of a kind without members.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Message, MalformedMessage> {
        let message = Message::parse_after(bytes, &self.own)?;
        if let Some(digest) = message.digest() {
            self.own = digest.clone();
        }
        Ok(message)
    }

    /// Whether another exchange should begin in this round.
    pub fn permit(&mut self, now: Instant) -> bool {
        self.rounds.permit(self.own.len(), self.capacity, now)
    }

    /// The datagrams for `message` to the node at `to`, of at most `room` bytes each. `own` are this node's addresses.
    pub fn cut(&mut self, message: &Message, to: SocketAddr, own: &[SocketAddr], room: usize) -> Vec<Part> {
        let wanted = self.wanted.take().filter(|(from, _)| *from == to).map(|(_, wanted)| wanted);
        let order = Order { own, wanted: wanted.as_deref().unwrap_or_default(), from: self.turn };
        let (parts, named) = message.cut(room, order);
        self.turn = self.turn.wrapping_add(named);
        if let [Part::Compact(body)] = &parts[..]
            && message.begins()
        {
            // This node is named too.
            self.capacity = (named + 1) * room / body.len().max(1);
        }
        parts
    }

    /// Reads the body of a datagram for the cluster `name`. Returns chitchat's message, and how many members that are not `known` were
    /// removed from it.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn read(
        &mut self,
        body: &[u8],
        name: &str,
        from: SocketAddr,
        known: &mut KnownMembers,
        now: Instant,
    ) -> Result<(Vec<u8>, usize), MalformedMessage> {
        let (mut message, whole) = Message::read(body, name)?;
        let refused = message.admit(known, from, now)?;
        if let Some(digest) = message.digest() {
            self.wanted = Some((from, digest.later_than(&self.own)));
        }
        if !whole {
            message = message.complete(&self.own);
        }
        Ok((message.encode(), refused))
    }
}
