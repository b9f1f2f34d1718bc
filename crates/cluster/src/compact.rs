//! chitchat's messages in datagrams of bounded length.
//!
//! chitchat fills its messages up to 64 KiB: each names all members (the digest), and carries all that the other end lacks (the delta).
//! Here, one message becomes one or a few datagrams, each of which is useful alone:
//!
//! ```text
//! type 1 | digest (Syn and SynAck): whole 1 | count 2 | entries … | operations of the delta …
//! entry: node text | generation varint | IP version 1 | IP 4 or 16 | port 2 | heartbeat varint | collected varint | version varint
//! ```
//!
//! - The digest names as many members as fit: this node, then those that the other end seems to know better, then the others in turn.
//!   The receiver takes a member that is not named for one whose version both ends know, so its own version is filled in
//!   (`Digest::complete`). Otherwise chitchat would send the whole state of every member that was left out.
//! - The delta is cut into parts that can be applied one by one, of which all but the first follow in datagrams of type Ack.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::incarnation::Incarnation;
use crate::known_members::{KnownMembers, MalformedMessage, Reader, write_blocks};

/// The first bytes of every message: a magic number and a version.
const START: [u8; 3] = [0x53, 0xb0, 0];
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
/// Datagrams per message at most. What is left out comes with the next exchange.
const MAX_PARTS: usize = 16;

/// Which versions of which members one end knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Sorted by id, as chitchat sends them.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: Incarnation,
    heartbeat: u64,
    collected: u64,
    version: u64,
}

/// A message of chitchat, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: u8,
    digest: Digest,
    operations: Vec<u8>,
    /// What follows, such as the cluster's name in a Syn.
    rest: Vec<u8>,
}

/// In which order a digest names members.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Members whose address this accepts come first.
    pub own: &'a [SocketAddr],
    /// Then these.
    pub wanted: &'a [Incarnation],
    /// Then the others, beginning with this one.
    pub from: usize,
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
                let id = rest.incarnation_like(last.entries.get(usize::from(index)).map(|entry| &entry.id))?;
                let (heartbeat, collected, version) = (rest.u64()?, rest.u64()?, rest.u64()?);
                entries.push(Entry { id, heartbeat, collected, version });
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
            for Entry { id, heartbeat, collected, version } in self.digest.entries.iter().take(usize::from(u16::MAX)) {
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

    /// Fills in what a digest that is not whole leaves out.
    #[must_use]
    pub fn complete(mut self, own: &Digest) -> Self {
        if self.has_digest() {
            self.digest.complete(own);
        }
        self
    }

    /// The datagrams that carry this message, of at most `room` bytes each. Also returns how many members the digest names, not
    /// counting those that always come first.
    pub fn cut(&self, room: usize, order: Order<'_>) -> (Vec<Part>, usize) {
        let mut first = vec![self.kind];
        let mut named = 0;
        if self.has_digest() {
            named = self.digest.write(room, order, &mut first);
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

    /// Reads the body of a datagram for the cluster `name`. Also returns whether its digest is whole.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn read(body: &[u8], name: &str) -> Result<(Self, bool), MalformedMessage> {
        let mut rest = Reader(body);
        let kind = rest.u8()?;
        let (mut entries, mut whole) = (Vec::new(), true);
        if kind == SYN || kind == SYN_ACK {
            whole = rest.u8()? == 1;
            for _ in 0..rest.u16()? {
                entries.push(Entry::read(&mut rest)?);
            }
        }
        let mut name_text = Vec::new();
        if kind == SYN {
            name_text.extend(u16::try_from(name.len()).map_err(|_| MalformedMessage)?.to_le_bytes());
            name_text.extend_from_slice(name.as_bytes());
        }
        Ok((Self { kind, digest: Digest::new(entries), operations: rest.0.to_vec(), rest: name_text }, whole))
    }

    const fn has_digest(&self) -> bool {
        self.kind == SYN || self.kind == SYN_ACK
    }
}

impl Digest {
    /// How many members it names.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it names none.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Self { entries }
    }

    /// Adds the members of `own` that are missing, in the versions of `own`.
    fn complete(&mut self, own: &Self) {
        let mut named = self.entries.drain(..).peekable();
        let mut all = Vec::with_capacity(own.entries.len().max(named.len()));
        for entry in &own.entries {
            while let Some(before) = named.next_if(|named| named.id < entry.id) {
                all.push(before);
            }
            if named.peek().is_none_or(|named| named.id != entry.id) {
                all.push(entry.clone());
            }
        }
        all.extend(named);
        self.entries = all;
    }

    /// The members of which this digest knows a later version than `own`.
    pub fn later_than(&self, own: &Self) -> Vec<Incarnation> {
        let known = |entry: &Entry| {
            let index = own.entries.binary_search_by(|own| own.id.cmp(&entry.id)).ok()?;
            own.entries.get(index).map(|own| own.version)
        };
        let later = |entry: &&Entry| known(entry).is_none_or(|version| version < entry.version);
        self.entries.iter().filter(later).map(|entry| entry.id.clone()).collect()
    }

    /// Writes as many entries as fit. Returns how many were named in turn.
    fn write(&self, room: usize, Order { own, wanted, from }: Order<'_>, bytes: &mut Vec<u8>) -> usize {
        let start = bytes.len();
        bytes.extend([0, 0, 0]);
        let (mut count, mut named) = (0u16, 0);
        let is_own = |entry: &Entry| own.contains(&entry.id.address);
        let is_wanted = |entry: &Entry| wanted.contains(&entry.id);
        let length = self.entries.len();
        let in_turn = self.entries.iter().cycle().skip(from % length.max(1)).take(length);
        let all = self.entries.iter().filter(|entry| is_own(entry)).map(|entry| (entry, false));
        let all = all
            .chain(self.entries.iter().filter(|entry| !is_own(entry) && is_wanted(entry)).map(|entry| (entry, false)));
        let all = all.chain(in_turn.filter(|entry| !is_own(entry) && !is_wanted(entry)).map(|entry| (entry, true)));
        for (entry, turn) in all {
            let before = bytes.len();
            entry.write(bytes);
            if bytes.len() > room || count == u16::MAX {
                bytes.truncate(before);
                break;
            }
            count += 1;
            named += usize::from(turn);
        }
        let whole = usize::from(count) == length;
        let [low, high] = count.to_le_bytes();
        bytes[start..start + 3].copy_from_slice(&[u8::from(whole), low, high]);
        named
    }
}

impl Entry {
    fn write(&self, bytes: &mut Vec<u8>) {
        let Self { id, heartbeat, collected, version } = self;
        let name = &id.node.as_bytes()[..id.node.len().min(usize::from(u8::MAX))];
        bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(name);
        put_varint(id.generation, bytes);
        put_address(id, bytes);
        for number in [*heartbeat, *collected, *version] {
            put_varint(number, bytes);
        }
    }

    fn read(rest: &mut Reader<'_>) -> Result<Self, MalformedMessage> {
        let length = rest.u8()?;
        let node = std::str::from_utf8(rest.take(length.into())?).map_err(|_| MalformedMessage)?.into();
        let generation = rest.varint()?;
        let address = rest.address()?;
        let id = Incarnation { node, generation, address };
        Ok(Self { id, heartbeat: rest.varint()?, collected: rest.varint()?, version: rest.varint()? })
    }
}

fn put_address(id: &Incarnation, bytes: &mut Vec<u8>) {
    match id.address.ip() {
        IpAddr::V4(v4) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
    bytes.extend(id.address.port().to_le_bytes());
}

/// Seven bits per byte, the lowest first. All bytes but the last have the highest bit set.
fn put_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Cuts a delta into parts that can be applied one by one, the first of at most `first` bytes and the others of at most `room`. A part
/// with a single operation that is longer is marked with `false`.
fn cut_operations(operations: &[u8], first: usize, room: usize) -> Vec<(Vec<u8>, bool)> {
    let mut parts: Vec<(Vec<u8>, bool)> = Vec::new();
    let mut part = Vec::new();
    let mut limit = first;
    // The member that the next operations are about, what it starts with, and the version that they follow.
    let mut member: Option<(Vec<u8>, u64)> = None;
    let mut is_open = false;
    let mut rest = Reader(operations);
    while let Ok(Some(operation)) = Operation::next(&mut rest) {
        let (bytes, version) = match operation {
            Operation::Member { head, from } => {
                member = Some((head.to_vec(), from));
                is_open = false;
                continue;
            }
            Operation::Value { bytes, version } => (bytes, Some(version)),
            Operation::Version { bytes } => (bytes, None),
        };
        let Some((head, from)) = &mut member else { break };
        let opening = head.len() + 8;
        if !part.is_empty() && part.len() + bytes.len() + if is_open { 0 } else { opening } > limit {
            parts.push((std::mem::take(&mut part), true));
            limit = room;
            is_open = false;
        }
        if part.is_empty() && parts.is_empty() && bytes.len() + opening > limit {
            // The digest leaves no room in the first datagram.
            parts.push((Vec::new(), true));
            limit = room;
        }
        if !is_open {
            part.extend_from_slice(head);
            part.extend(from.to_le_bytes());
            is_open = true;
        }
        part.extend_from_slice(bytes);
        *from = version.unwrap_or(*from);
        if part.len() > limit {
            parts.push((std::mem::take(&mut part), false));
            limit = room;
            is_open = false;
        }
    }
    if !part.is_empty() {
        parts.push((part, true));
    }
    parts
}

/// One operation of a delta.
enum Operation<'a> {
    /// The operations that follow are about this member. `head` is followed by the version after which they apply.
    Member { head: &'a [u8], from: u64 },
    /// A key, its value and its version.
    Value { bytes: &'a [u8], version: u64 },
    /// The member's version, if it has no values.
    Version { bytes: &'a [u8] },
}

impl<'a> Operation<'a> {
    fn next(rest: &mut Reader<'a>) -> Result<Option<Self>, MalformedMessage> {
        let start = rest.0;
        let Some(kind) = start.first() else { return Ok(None) };
        rest.take(1)?;
        let since = |rest: &Reader<'a>| &start[..start.len() - rest.0.len()];
        let operation = match kind {
            0 => {
                rest.incarnation()?;
                rest.take(8)?;
                let head = since(rest);
                Self::Member { head, from: rest.u64()? }
            }
            1 => {
                rest.text()?;
                rest.text()?;
                let version = rest.u64()?;
                rest.take(1)?;
                Self::Value { bytes: since(rest), version }
            }
            2 => {
                rest.take(8)?;
                Self::Version { bytes: since(rest) }
            }
            _ => return Err(MalformedMessage),
        };
        Ok(Some(operation))
    }
}

#[cfg(test)]
mod tests;
