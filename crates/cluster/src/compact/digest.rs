//! Which versions of which members one end of an exchange knows.

use std::net::{IpAddr, SocketAddr};

use crate::incarnation::Incarnation;
use crate::known_members::{MalformedMessage, Reader};

/// The digest names all members that its sender knows. Builds before short entries set no other flag.
const WHOLE: u8 = 1;
/// The sender reads short entries.
const READS_SHORT: u8 = 2;
/// Short entries follow, and the short ids of members that the sender asks for.
const HAS_SHORT: u8 = 4;

/// How a digest names members.
#[derive(Clone, Copy, Debug, Default)]
pub struct Naming<'a> {
    /// Members with these addresses come first.
    pub own: &'a [SocketAddr],
    /// Then these.
    pub wanted: &'a [Incarnation],
    /// Then the others, beginning with this one.
    pub from: usize,
    /// `None` if the receiver does not read short entries.
    pub short: Option<Short<'a>>,
}

/// What is said by short ids to a receiver that reads short entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Short<'a> {
    /// Members that the receiver has asked for. They are named by whole entries, before all but this node: chitchat takes nothing about
    /// a member that no digest has named.
    pub introduce: &'a [u32],
    /// Members that the receiver is asked for.
    pub ask: &'a [u32],
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
    /// [`Incarnation::short_id`].
    pub short_id: u32,
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

    /// Adds the members of `own` that are missing, in the versions of `own`, unless their short id is among `unknown`.
    pub(super) fn complete(&mut self, own: &Self, unknown: &[u32]) {
        let mut named = self.entries.drain(..).peekable();
        let mut all = Vec::with_capacity(own.entries.len().max(named.len()));
        for entry in &own.entries {
            while let Some(before) = named.next_if(|named| named.id < entry.id) {
                all.push(before);
            }
            if named.peek().is_none_or(|named| named.id != entry.id) && !unknown.contains(&entry.short_id) {
                all.push(entry.clone());
            }
        }
        all.extend(named);
        self.entries = all;
    }

    /// Adds what short entries say of members that `own` names, unless this digest names them already. Returns the short ids of the
    /// others.
    pub(super) fn resolve(&mut self, mut short: Vec<ShortEntry>, own: &Self) -> Vec<u32> {
        short.sort_unstable_by_key(|entry| entry.short_id);
        short.dedup_by_key(|entry| entry.short_id);
        let mut known: Vec<Option<&Entry>> = vec![None; short.len()];
        let mut is_known = vec![false; short.len()];
        for entry in &own.entries {
            if let Ok(index) = short.binary_search_by_key(&entry.short_id, |short| short.short_id) {
                // Of two members with the same short id, either could be meant.
                known[index] = (!is_known[index]).then_some(entry);
                is_known[index] = true;
            }
        }
        let named = std::mem::take(&mut self.entries);
        let resolved = short.iter().zip(&known).filter_map(|(short, known)| {
            let id = known.map(|entry| entry.id.clone())?;
            let is_named = named.binary_search_by(|entry| entry.id.cmp(&id)).is_ok();
            let ShortEntry { short_id, heartbeat, collected, version } = *short;
            (!is_named).then_some(Entry { id, short_id, heartbeat, collected, version })
        });
        let resolved: Vec<Entry> = resolved.collect();
        *self = Self::new(named.into_iter().chain(resolved).collect());
        short.iter().zip(is_known).filter(|(_, is_known)| !is_known).map(|(short, _)| short.short_id).collect()
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

    /// Writes as many entries as fit into `room`, together with what `bytes` has already. Returns how many were named in turn.
    pub(super) fn write(&self, room: usize, naming: Naming<'_>, bytes: &mut Vec<u8>) -> usize {
        const IN_TURN: u8 = 3;
        let Short { introduce, ask } = naming.short.unwrap_or_default();
        let is_own = |entry: &Entry| naming.own.contains(&entry.id.address);
        // The order of the groups.
        let group = |entry: &Entry| match entry {
            entry if is_own(entry) => 0,
            entry if introduce.contains(&entry.short_id) => 1,
            entry if naming.wanted.contains(&entry.id) => 2,
            _ => IN_TURN,
        };
        let length = self.entries.len();
        let in_turn = self.entries.iter().cycle().skip(naming.from % length.max(1)).take(length);
        let first = (0..IN_TURN).flat_map(|number| self.entries.iter().filter(move |entry| group(entry) == number));
        let all = first.map(|entry| (entry, false));
        let all = all.chain(in_turn.filter(|entry| group(entry) == IN_TURN).map(|entry| (entry, true)));

        let ambiguous = if naming.short.is_some() { self.ambiguous() } else { Vec::new() };
        // The flags, two counts, and the members that are asked for.
        let fixed = bytes.len() + 1 + 2 + naming.short.map_or(0, |_| 2 + 1 + 4 * ask.len());
        let (mut long, mut short) = (Section::default(), Section::default());
        let mut named = 0;
        for (entry, turn) in all {
            let is_long = is_own(entry) || introduce.contains(&entry.short_id) || ambiguous.contains(&entry.short_id);
            let fits = if naming.short.is_some() && !is_long {
                let room = room.saturating_sub(fixed + long.entries.len());
                short.add(room, |bytes| entry.write_short(bytes))
            } else {
                let room = room.saturating_sub(fixed + short.entries.len());
                long.add(room, |bytes| entry.write(bytes))
            };
            if !fits {
                break;
            }
            named += usize::from(turn);
        }
        let is_whole = usize::from(long.count) + usize::from(short.count) == length;
        bytes.push(flag(is_whole, WHOLE) | READS_SHORT | flag(naming.short.is_some(), HAS_SHORT));
        long.write(bytes);
        if naming.short.is_some() {
            short.write(bytes);
            bytes.push(u8::try_from(ask.len()).unwrap_or(u8::MAX));
            bytes.extend(ask.iter().take(usize::from(u8::MAX)).flat_map(|short_id| short_id.to_le_bytes()));
        }
        named
    }

    /// The short ids that more than one member has, which no short entry can name.
    fn ambiguous(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.entries.iter().map(|entry| entry.short_id).collect();
        ids.sort_unstable();
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect()
    }
}

/// Entries of one form.
#[derive(Default)]
struct Section {
    count: u16,
    entries: Vec<u8>,
}

impl Section {
    /// Adds an entry unless the section would then be longer than `room`. Returns whether it was added.
    fn add(&mut self, room: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.entries.len();
        write(&mut self.entries);
        let fits = self.entries.len() <= room && self.count < u16::MAX;
        if fits {
            self.count += 1;
        } else {
            self.entries.truncate(before);
        }
        fits
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.count.to_le_bytes());
        bytes.extend_from_slice(&self.entries);
    }
}

impl Entry {
    /// The entry of `id`, which has the short id of `like` if it equals it.
    pub fn new(id: Incarnation, like: Option<&Self>, heartbeat: u64, collected: u64, version: u64) -> Self {
        let short_id = like.filter(|like| like.id == id).map_or_else(|| id.short_id(), |like| like.short_id);
        Self { id, short_id, heartbeat, collected, version }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let Self { id, short_id: _, heartbeat, collected, version } = self;
        let name = &id.node.as_bytes()[..id.node.len().min(usize::from(u8::MAX))];
        bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(name);
        put_varint(id.generation, bytes);
        put_address(id, bytes);
        for number in [*heartbeat, *collected, *version] {
            put_varint(number, bytes);
        }
    }

    fn write_short(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.short_id.to_le_bytes());
        for number in [self.heartbeat, self.collected, self.version] {
            put_varint(number, bytes);
        }
    }

    pub fn read(rest: &mut Reader<'_>) -> Result<Self, MalformedMessage> {
        let length = rest.u8()?;
        let node = std::str::from_utf8(rest.take(length.into())?).map_err(|_| MalformedMessage)?.into();
        let generation = rest.varint()?;
        let address = rest.address()?;
        let id = Incarnation { node, generation, address };
        Ok(Self::new(id, None, rest.varint()?, rest.varint()?, rest.varint()?))
    }
}

/// What a digest says of a member that the receiver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortEntry {
    short_id: u32,
    heartbeat: u64,
    collected: u64,
    version: u64,
}

/// A digest as a datagram carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub long: Vec<Entry>,
    pub short: Vec<ShortEntry>,
    /// Whether it names all members that its sender knows.
    pub whole: bool,
    /// Whether its sender reads short entries.
    pub reads_short: bool,
    /// The short ids of members that its sender asks for.
    pub asked: Vec<u32>,
}

impl Named {
    /// Reads what [`Digest::write`] has written.
    pub fn read(rest: &mut Reader<'_>) -> Result<Self, MalformedMessage> {
        let flags = rest.u8()?;
        let is_set = |flag: u8| flags & flag != 0;
        let mut named = Self { whole: is_set(WHOLE), reads_short: is_set(READS_SHORT), ..Self::default() };
        for _ in 0..rest.u16()? {
            named.long.push(Entry::read(rest)?);
        }
        if is_set(HAS_SHORT) {
            for _ in 0..rest.u16()? {
                let short_id = u32::from_le_bytes(rest.array()?);
                let (heartbeat, collected, version) = (rest.varint()?, rest.varint()?, rest.varint()?);
                named.short.push(ShortEntry { short_id, heartbeat, collected, version });
            }
            for _ in 0..rest.u8()? {
                named.asked.push(u32::from_le_bytes(rest.array()?));
            }
        }
        Ok(named)
    }
}

const fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
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
