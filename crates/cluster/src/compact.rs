//! chitchat's messages in datagrams of bounded length.
//!
//! chitchat fills its messages up to 64 KiB: each names all members (the digest), and carries all that the other end lacks (the delta).
//! Here, one message becomes one or a few datagrams, each of which is useful alone:
//!
//! ```text
//! type 1 | digest (Syn and SynAck) | operations of the delta …
//! digest: flags 1 | count 2 | entries … | with flag 4: count 2 | short entries … | count 1 | short ids 4 …
//! entry: node text | generation varint | IP version 1 | IP 4 or 16 | port 2 | heartbeat varint | collected varint | version varint
//! short entry: short id 4 | heartbeat varint | collected varint | version varint
//! ```
//!
//! - The digest names as many members as fit: this node, then those that the other end seems to know better, then the others in turn.
//!   The receiver takes a member that is not named for one whose version both ends know, so its own version is filled in
//!   ([`LeftOut::complete`]). Otherwise chitchat would send the whole state of every member that was left out.
//! - All but this node are named by short entries, if the receiver reads them. It asks for members that it does not know by their
//!   short ids. They are then named by entries, and their whole state is sent.
//! - The delta is cut into parts that can be applied one by one, of which all but the first follow in datagrams of type Ack.

mod delta;
mod digest;

use std::net::SocketAddr;
use std::time::Instant;

use self::delta::cut_operations;
pub use self::digest::{Digest, Naming, Short};
use self::digest::{Entry, Named, put_address};
use crate::known_members::{KnownMembers, MalformedMessage, Reader, write_blocks};

/// The first bytes of every message: a magic number and a version.
const START: [u8; 3] = [0x53, 0xb0, 0];
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
/// Datagrams per message at most. What is left out comes with the next exchange.
const MAX_PARTS: usize = 16;

/// A message of chitchat, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: u8,
    digest: Digest,
    operations: Vec<u8>,
    /// What follows, such as the cluster's name in a Syn.
    rest: Vec<u8>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The body of a datagram.
    Compact(Vec<u8>),
    /// A whole message of chitchat, with a value that is too long for a datagram.
    Long(Vec<u8>),
}

impl Message {
    /// Takes a message apart.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedMessage> {
        Self::parse_after(bytes, &Digest::default())
    }

    /// As [`Message::parse`], for a node's own message after one with the digest `last`, whose names it shares.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn parse_after(bytes: &[u8], last: &Digest) -> Result<Self, MalformedMessage> {
        let mut rest = Reader(bytes);
        let start = rest.array::<4>()?;
        let kind = start[3];
        if start[..3] != START {
            return Err(MalformedMessage);
        }
        let mut entries = Vec::new();
        if kind == SYN || kind == SYN_ACK {
            for index in 0..rest.u16()? {
                let like = last.entries.get(usize::from(index));
                let id = rest.incarnation_like(like.map(|entry| &entry.id))?;
                entries.push(Entry::new(id, like, rest.u64()?, rest.u64()?, rest.u64()?));
            }
        }
        let operations = if kind == SYN_ACK || kind == ACK { rest.blocks()? } else { Vec::new() };
        Ok(Self { kind, digest: Digest::new(entries), operations, rest: rest.0.to_vec() })
    }

    /// The inverse of [`Message::parse`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = START.to_vec();
        bytes.push(self.kind);
        if self.has_digest() {
            bytes.extend(u16::try_from(self.digest.entries.len()).unwrap_or(u16::MAX).to_le_bytes());
            for Entry { id, short_id: _, heartbeat, collected, version } in
                self.digest.entries.iter().take(usize::from(u16::MAX))
            {
                bytes.extend(u16::try_from(id.node.len()).unwrap_or(0).to_le_bytes());
                bytes.extend_from_slice(id.node.as_bytes());
                bytes.extend(id.generation.to_le_bytes());
                put_address(id, &mut bytes);
                for number in [heartbeat, collected, version] {
                    bytes.extend(number.to_le_bytes());
                }
            }
        }
        if self.kind == SYN_ACK || self.kind == ACK {
            write_blocks(&self.operations, &mut bytes);
        }
        bytes.extend_from_slice(&self.rest);
        bytes
    }

    /// The digest; `None` in a message without one.
    pub fn digest(&self) -> Option<&Digest> {
        self.has_digest().then_some(&self.digest)
    }

    /// Whether it begins an exchange.
    pub const fn begins(&self) -> bool {
        self.kind == SYN
    }

    /// Whether its receiver would learn nothing from it.
    pub const fn says_nothing(&self) -> bool {
        self.kind == ACK && self.operations.is_empty()
    }

    /// Removes members that are not admitted from a message that was sent from `from`. Returns how many.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn admit(
        &mut self,
        known: &mut KnownMembers,
        from: SocketAddr,
        now: Instant,
    ) -> Result<usize, MalformedMessage> {
        let named = self.digest.entries.len();
        self.digest.entries.retain(|entry| known.admits(&entry.id, from, now));
        let (admitted, removed) = known.filter_delta(&self.operations, from, now)?;
        if removed > 0 {
            self.operations = admitted;
        }
        Ok(named - self.digest.entries.len() + removed)
    }

    /// The datagrams that carry this message, of at most `room` bytes each. Also returns how many members the digest names, not
    /// counting those that always come first.
    pub fn cut(&self, room: usize, naming: Naming<'_>) -> (Vec<Part>, usize) {
        let mut first = vec![self.kind];
        let mut named = 0;
        if self.has_digest() {
            named = self.digest.write(room, naming, &mut first);
        }
        let parts = cut_operations(&self.operations, room.saturating_sub(first.len()), room.saturating_sub(1));
        let mut parts = parts.into_iter();
        let mut all = Vec::new();
        let mut first = Some(first);
        for (operations, fits) in parts.by_ref().take(MAX_PARTS) {
            if fits {
                let mut body = first.take().unwrap_or_else(|| vec![ACK]);
                body.extend_from_slice(&operations);
                all.push(Part::Compact(body));
            } else {
                let message = Self { kind: ACK, digest: Digest::default(), operations, rest: Vec::new() };
                all.push(Part::Long(message.encode()));
            }
        }
        if let Some(first) = first
            && (self.kind != ACK || all.is_empty())
        {
            // A reply is due even if there is nothing to tell, and should not wait for the long parts.
            all.insert(0, Part::Compact(first));
        }
        (all, named)
    }

    /// The messages of chitchat that carry this one to a build that reads no compact ones. All but the first have at most `room` bytes,
    /// unless a single value is longer. The first names all members, so it may be longer.
    pub fn cut_for_earlier_builds(&self, room: usize) -> Vec<Vec<u8>> {
        let empty = Self { operations: Vec::new(), ..self.clone() };
        // Each block adds three bytes, and the end one.
        let block = START.len() + 1 + 3 + 1;
        let parts =
            cut_operations(&self.operations, room.saturating_sub(empty.encode().len() + 3), room.saturating_sub(block));
        let mut messages = Vec::new();
        for (operations, _) in parts.into_iter().take(MAX_PARTS) {
            let message = if messages.is_empty() {
                Self { operations, ..empty.clone() }
            } else {
                Self { kind: ACK, digest: Digest::default(), operations, rest: Vec::new() }
            };
            messages.push(message.encode());
        }
        if messages.is_empty() {
            messages.push(empty.encode());
        }
        messages
    }

    const fn has_digest(&self) -> bool {
        self.kind == SYN || self.kind == SYN_ACK
    }
}

/// A message as its first datagram carries it: the digest may leave out members, and may name them by short ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    message: Message,
    named: Option<Named>,
}

impl Received {
    /// Reads the body of a datagram for the cluster `name`.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn read(body: &[u8], name: &str) -> Result<Self, MalformedMessage> {
        let mut rest = Reader(body);
        let kind = rest.u8()?;
        let named = if kind == SYN || kind == SYN_ACK { Some(Named::read(&mut rest)?) } else { None };
        let mut name_text = Vec::new();
        if kind == SYN {
            name_text.extend(u16::try_from(name.len()).map_err(|_| MalformedMessage)?.to_le_bytes());
            name_text.extend_from_slice(name.as_bytes());
        }
        let message = Message { kind, digest: Digest::default(), operations: rest.0.to_vec(), rest: name_text };
        Ok(Self { message, named })
    }

    /// Whether its sender reads short entries; `None` if the message does not say.
    pub fn reads_short(&self) -> Option<bool> {
        self.named.as_ref().map(|named| named.reads_short)
    }

    /// Finds the members that short entries mean among those that `own` names. Returns the message, what is needed to complete its
    /// digest, and the short ids that `own` does not know.
    pub fn resolve(self, own: &Digest) -> (Message, LeftOut, Vec<u32>) {
        let Self { mut message, named } = self;
        let Some(Named { long, short, whole, reads_short: _, asked }) = named else {
            return (message, LeftOut { whole: true, asked: Vec::new() }, Vec::new());
        };
        message.digest = Digest::new(long);
        let unknown = message.digest.resolve(short, own);
        (message, LeftOut { whole, asked }, unknown)
    }
}

/// What a digest in a datagram leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    whole: bool,
    asked: Vec<u32>,
}

impl LeftOut {
    /// The short ids of members that the sender asks for.
    pub fn asked(&self) -> &[u32] {
        &self.asked
    }

    /// Fills it in. Members that the sender asks for stay out, so that chitchat sends their whole state.
    #[must_use]
    pub fn complete(&self, mut message: Message, own: &Digest) -> Message {
        if !self.whole {
            message.digest.complete(own, &self.asked);
        }
        message
    }
}

#[cfg(test)]
mod tests;
