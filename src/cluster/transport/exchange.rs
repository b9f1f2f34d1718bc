//! What this node's gossip has said about the members: which of them the next message names, and whether one is due.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use banmesh_cluster::compact::{Digest, Message, Naming, Part, Received, Short};
use banmesh_cluster::incarnation::Incarnation;
use banmesh_cluster::known_members::{KnownMembers, MAX_MEMBERS, MalformedMessage};
use banmesh_cluster::rounds::Rounds;

/// Members that a message asks for at most.
const MAX_ASKED: usize = 32;

/// The state of this node's exchanges.
pub(super) struct Exchange {
    /// The versions in the last message that this node sent.
    own: Digest,
    /// Whom the next digest names first: see [`Naming::from`].
    turn: usize,
    /// How many members a datagram can name.
    capacity: usize,
    /// For the answer to the last message.
    answer: Option<Answer>,
    /// Addresses whose builds read short entries.
    reads_short: HashSet<SocketAddr>,
    /// The short ids of members that others have named, and this node does not know.
    unknown: Vec<u32>,
    rounds: Rounds,
}

/// What the answer to a node says first.
struct Answer {
    to: SocketAddr,
    /// The members of which it knows a later version.
    wanted: Vec<Incarnation>,
    /// The short ids of the members that it has asked for.
    asked: Vec<u32>,
}

impl Exchange {
    /// Nothing has been said yet.
    pub fn new(gossip_interval: Duration) -> Self {
        let rounds = Rounds::new(gossip_interval);
        Self {
            own: Digest::default(),
            turn: 0,
            capacity: 0,
            answer: None,
            reads_short: HashSet::new(),
            unknown: Vec::new(),
            rounds,
        }
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

    /// Whether another exchange should begin in this round, with the node at `to`.
    pub fn permit(&mut self, to: SocketAddr, now: Instant) -> bool {
        self.rounds.permit(to, self.own.len(), self.capacity, now)
    }

    /// The datagrams for `message` to the node at `to`, of at most `room` bytes each. `own` are this node's addresses.
    pub fn cut(&mut self, message: &Message, to: SocketAddr, own: &[SocketAddr], room: usize) -> Vec<Part> {
        let answer = self.answer.take().filter(|answer| answer.to == to);
        let (wanted, introduce) = answer.map(|answer| (answer.wanted, answer.asked)).unwrap_or_default();
        let reads_short = self.reads_short.contains(&to);
        // Only a Syn is answered with a digest. Each member is asked for once: if it stays unknown, others name it again.
        let ask = if reads_short && message.begins() { std::mem::take(&mut self.unknown) } else { Vec::new() };
        let short = reads_short.then_some(Short { introduce: &introduce, ask: &ask });
        let naming = Naming { own, wanted: &wanted, from: self.turn, short };
        let (parts, named) = message.cut(room, naming);
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
        let received = Received::read(body, name)?;
        self.note(from, received.reads_short());
        let (mut message, left_out, unknown) = received.resolve(&self.own);
        let refused = message.admit(known, from, now)?;
        for short_id in unknown {
            if self.unknown.len() < MAX_ASKED && !self.unknown.contains(&short_id) {
                self.unknown.push(short_id);
            }
        }
        if let Some(digest) = message.digest() {
            let (wanted, asked) = (digest.later_than(&self.own), left_out.asked().to_vec());
            self.answer = Some(Answer { to: from, wanted, asked });
        }
        let message = left_out.complete(message, &self.own);
        Ok((message.encode(), refused))
    }

    fn note(&mut self, address: SocketAddr, reads_short: Option<bool>) {
        match reads_short {
            Some(true) => {
                if self.reads_short.len() >= 2 * MAX_MEMBERS {
                    // Members are noted again with their next message.
                    self.reads_short.clear();
                }
                self.reads_short.insert(address);
            }
            Some(false) => drop(self.reads_short.remove(&address)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "c";
    const ROOM: usize = 1_090;

    fn at(node: u8) -> SocketAddr {
        ([192, 0, 2, node], 12_350).into()
    }

    /// chitchat's Syn of a node that knows `nodes`.
    fn syn(nodes: impl ExactSizeIterator<Item = u8>) -> Vec<u8> {
        let mut bytes = vec![0x53, 0xb0, 0, 0];
        bytes.extend(u16::try_from(nodes.len()).unwrap().to_le_bytes());
        for node in nodes {
            let name = format!("edge-{node:03}");
            bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend((1_790_000_000_000u64 << 16).to_le_bytes());
            bytes.extend([4, 192, 0, 2, node]);
            bytes.extend(12_350u16.to_le_bytes());
            bytes.extend([900u64, 0, 4].map(u64::to_le_bytes).concat());
        }
        bytes.extend([1, 0]);
        bytes.extend(NAME.as_bytes());
        bytes
    }

    /// A node that knows `nodes` begins an exchange with `to`.
    fn begin(exchange: &mut Exchange, nodes: std::ops::RangeInclusive<u8>, to: u8) -> Vec<u8> {
        let message = exchange.parse(&syn(nodes.into_iter())).unwrap();
        match exchange.cut(&message, at(to), &[at(1)], ROOM).remove(0) {
            Part::Compact(body) => body,
            Part::Long(_) => panic!("not in one datagram"),
        }
    }

    fn read(exchange: &mut Exchange, body: &[u8], from: u8) {
        let mut known = KnownMembers::default();
        assert_eq!(exchange.read(body, NAME, at(from), &mut known, Instant::now()).map(|read| read.1), Ok(0));
    }

    #[test]
    fn only_nodes_that_read_short_entries_get_them() {
        let mut one = Exchange::new(Duration::from_secs(1));
        let mut two = Exchange::new(Duration::from_secs(1));
        let first = begin(&mut one, 1..=200, 2);
        assert!(one.capacity < 50, "whether node 2 reads short entries is not known yet");
        read(&mut two, &first, 1);
        let answer = begin(&mut two, 1..=200, 1);
        assert!(two.capacity > 80, "{}", two.capacity);
        read(&mut one, &answer, 2);
        assert!(begin(&mut one, 1..=200, 2) != first && one.capacity > 80);
        // An earlier build runs there now: it sets no flag but that its digest is whole.
        let mut earlier = begin(&mut Exchange::new(Duration::from_secs(1)), 1..=3, 1);
        earlier[1] &= 1;
        read(&mut one, &earlier, 2);
        begin(&mut one, 1..=200, 2);
        assert!(one.capacity < 50);
    }

    #[test]
    fn a_node_asks_once_for_each_member_that_it_does_not_know_and_never_for_too_many() {
        let mut one = Exchange::new(Duration::from_secs(1));
        let mut two = Exchange::new(Duration::from_secs(1));
        let first = begin(&mut two, 1..=2, 1);
        read(&mut one, &first, 2);
        let named = begin(&mut one, 1..=100, 2);
        read(&mut two, &named, 1);
        // It knows none but itself, node 1, and those that the datagram has no room for.
        assert_eq!(two.unknown.len(), MAX_ASKED);
        let asking = begin(&mut two, 1..=2, 1);
        assert!(two.unknown.is_empty());
        read(&mut one, &asking, 2);
        let answer = begin(&mut one, 1..=100, 2);
        let (named, _, _) = Received::read(&answer, NAME).unwrap().resolve(&Digest::default());
        assert_eq!(named.digest().map(Digest::len), Some(1 + MAX_ASKED), "those it asked for, by entries");
        let (named, _, _) = Received::read(&begin(&mut one, 1..=100, 2), NAME).unwrap().resolve(&Digest::default());
        assert_eq!(named.digest().map(Digest::len), Some(1));
    }
}
