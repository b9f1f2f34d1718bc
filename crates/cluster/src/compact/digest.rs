//! Which versions of which members one end of an exchange knows.

use std::net::{IpAddr, SocketAddr};

use crate::incarnation::Incarnation;
use crate::known_members::{MalformedMessage, Reader};

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

/// Which versions of which members one end knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Sorted by id, as chitchat sends them.
    pub(super) entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: Incarnation,
    pub heartbeat: u64,
    pub collected: u64,
    pub version: u64,
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

    pub(super) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Self { entries }
    }

    /// Adds the members of `own` that are missing, in the versions of `own`.
    pub(super) fn complete(&mut self, own: &Self) {
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
    pub(super) fn write(&self, room: usize, Order { own, wanted, from }: Order<'_>, bytes: &mut Vec<u8>) -> usize {
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

    pub fn read(rest: &mut Reader<'_>) -> Result<Self, MalformedMessage> {
        let length = rest.u8()?;
        let node = std::str::from_utf8(rest.take(length.into())?).map_err(|_| MalformedMessage)?.into();
        let generation = rest.varint()?;
        let address = rest.address()?;
        let id = Incarnation { node, generation, address };
        Ok(Self { id, heartbeat: rest.varint()?, collected: rest.varint()?, version: rest.varint()? })
    }
}

pub(super) fn put_address(id: &Incarnation, bytes: &mut Vec<u8>) {
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
