//! The ban table: every entry a node knows, by target, in about 60 bytes each, with digests that tell two replicas where
//! they differ.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::HashTable;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::ban::{BanEntry, Cause, State};
use super::hlc::{Hlc, Stamp};
use super::node::NodeId;
use super::target::Target;
use super::time::{Expiry, UnixMillis};

/// How many buckets the digests divide the targets into.
pub const BUCKETS: usize = 4096;

/// What [`Table::merge`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The table knew it already, or better.
    Unchanged,
    /// The entry's time to be remembered is over: it was refused.
    Forgotten,
    /// The table holds something new.
    Changed {
        /// What it held before.
        before: Option<BanEntry>,
        /// What it holds now.
        after: BanEntry,
    },
}

/// All entries by target. Rows lie densely in a vector, in no order, beside an index of their positions.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    origins: Origins,
    digests: Box<[u64; BUCKETS]>,
    /// How many active rows end at a second, for all ends later than `counted_to`.
    ends: BTreeMap<Expiry, u32>,
    active: usize,
    counted_to: UnixMillis,
    sweep_from: usize,
}

#[derive(Debug)]
struct Row {
    bits: u128,
    hlc: Hlc,
    origin: Arc<Origin>,
    /// The end of the ban, or of the allowance; [`Expiry::PAST`] stands for lifted.
    until: Expiry,
    keep: Expiry,
    bans: u32,
    prefix: u8,
    /// Whether `until` is the end of an allowance.
    allowed: bool,
}

/// Author and cause, shared by all rows that have them in common.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Origin {
    node: NodeId,
    cause: Arc<Cause>,
    digest: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            origins: Origins::default(),
            digests: Box::new([0; BUCKETS]),
            ends: BTreeMap::new(),
            active: 0,
            counted_to: UnixMillis(0),
            sweep_from: 0,
        }
    }
}

impl Table {
    /// The number of entries, lifted and expired ones included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The entry of `target`.
    pub fn entry(&self, target: Target) -> Option<BanEntry> {
        self.find(target).and_then(|at| self.rows.get(at)).map(Row::entry)
    }

    /// Joins `entry` into what is known of `target`. An entry that should have been forgotten at `now` is refused, and one that is
    /// in the table and was not swept yet is as good as gone: when a node sweeps must not decide what it holds.
    pub fn merge(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Merged {
        if entry.keep.has_passed(now) {
            return Merged::Forgotten;
        }
        let Some(at) = self.find(target) else {
            self.insert(target, entry);
            return Merged::Changed { before: None, after: entry.clone() };
        };
        let before = Some(self.rows[at].entry()).filter(|before| !before.keep.has_passed(now));
        let after = before.as_ref().map_or_else(|| entry.clone(), |before| before.join(entry));
        if before.as_ref() == Some(&after) {
            return Merged::Unchanged;
        }
        self.discount(at);
        let origin = self.origins.intern(&after);
        let row = &mut self.rows[at];
        row.write(&after, origin);
        self.count(at);
        Merged::Changed { before, after }
    }

    /// Looks at up to `budget` rows, goes on where the last call ended, and drops those whose time to be remembered is
    /// over. Returns what it dropped.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) -> Vec<Target> {
        let mut dropped = Vec::new();
        for _ in 0..budget.min(self.rows.len()) {
            // Downwards, for removing a row moves the last one into its place, and that has been looked at already.
            if self.sweep_from == 0 || self.sweep_from > self.rows.len() {
                self.sweep_from = self.rows.len();
            }
            let Some(at) = self.sweep_from.checked_sub(1) else { break };
            self.sweep_from = at;
            if self.rows[at].keep.has_passed(now) {
                dropped.push(self.remove(at));
            }
        }
        dropped
    }

    /// One digest for every bucket: equal digests mean equal entries.
    pub fn digests(&self) -> &[u64; BUCKETS] {
        &self.digests
    }

    /// One digest of the whole table.
    pub fn digest(&self) -> u64 {
        let mut hasher = Xxh3::new();
        for digest in self.digests.iter() {
            hasher.update(&digest.to_le_bytes());
        }
        hasher.digest()
    }

    /// The entries at positions below `below` (first `usize::MAX`, then what the last call returned), up to `budget` of
    /// them, and where to go on: at 0 it is done.
    ///
    /// Between two calls the table may change: an entry that was there all the time is seen at least once.
    pub fn scan(&self, below: usize, budget: usize) -> (impl Iterator<Item = (Target, BanEntry)> + '_, usize) {
        self.scan_where(below, budget, |_, _| true)
    }

    /// As [`Table::scan`], but only the entries whose target and latest write are `wanted`: the others are not copied.
    pub fn scan_where<'a>(
        &'a self,
        below: usize,
        budget: usize,
        wanted: impl Fn(Target, Hlc) -> bool + 'a,
    ) -> (impl Iterator<Item = (Target, BanEntry)> + 'a, usize) {
        let end = below.min(self.rows.len());
        let start = end.saturating_sub(budget);
        let rows = self.rows[start..end].iter().rev().filter(move |row| wanted(row.target(), row.hlc));
        (rows.map(|row| (row.target(), row.entry())), start)
    }

    /// How many targets are banned at `now`. Calls with a `now` that goes back see the later one.
    pub fn active(&mut self, now: UnixMillis) -> usize {
        self.counted_to = self.counted_to.max(now);
        while let Some(first) = self.ends.first_entry() {
            if !first.key().has_passed(self.counted_to) {
                break;
            }
            self.active -= first.remove() as usize;
        }
        self.active
    }

    /// Bytes of memory that the table holds on to, without what the allocator adds.
    pub fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
            + self.index.allocation_size()
            + size_of_val(&*self.digests)
            + self.origins.bytes()
    }

    fn find(&self, target: Target) -> Option<usize> {
        let hash = hash_of(&self.hasher, target);
        self.index.find(hash, |&at| self.rows.get(at as usize).is_some_and(|row| row.is(target))).map(|&at| at as usize)
    }

    fn insert(&mut self, target: Target, entry: &BanEntry) {
        let origin = self.origins.intern(entry);
        // More than 4 billion rows cannot be reached in memory; refusing keeps the index sound all the same.
        let Ok(position) = u32::try_from(self.rows.len()) else { return };
        self.rows.push(Row::new(target, entry, origin));
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hash_of(hasher, target), position, |&at| hash_of(hasher, rows[at as usize].target()));
        self.count(position as usize);
    }

    fn remove(&mut self, at: usize) -> Target {
        self.discount(at);
        let target = self.rows[at].target();
        if let Ok(found) = self.index.find_entry(hash_of(&self.hasher, target), |&found| found as usize == at) {
            found.remove();
        }
        let last = self.rows.len() - 1;
        if at != last {
            let moved = hash_of(&self.hasher, self.rows[last].target());
            if let Some(position) = self.index.find_mut(moved, |&found| found as usize == last) {
                *position = u32::try_from(at).unwrap_or(u32::MAX);
            }
        }
        self.rows.swap_remove(at);
        target
    }

    /// Counts the row at `at` into the digests and the active bans.
    fn count(&mut self, at: usize) {
        let row = &self.rows[at];
        self.digests[bucket_of(row.target())] ^= row.digest();
        if row.is_ban() && !row.until.has_passed(self.counted_to) {
            *self.ends.entry(row.until).or_default() += 1;
            self.active += 1;
        }
    }

    /// Takes back what [`Table::count`] did.
    fn discount(&mut self, at: usize) {
        let row = &self.rows[at];
        self.digests[bucket_of(row.target())] ^= row.digest();
        if row.is_ban() && !row.until.has_passed(self.counted_to) {
            self.active -= 1;
            if let Some(ends) = self.ends.get_mut(&row.until) {
                *ends -= 1;
                if *ends == 0 {
                    self.ends.remove(&row.until);
                }
            }
        }
    }
}

/// The bucket of `target`, the same on every node: less than [`BUCKETS`].
pub fn bucket_of(target: Target) -> usize {
    let mut bytes = [0; 17];
    bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
    bytes[16] = target.prefix128();
    // The remainder fits: it is less than a length.
    usize::try_from(xxh3_64(&bytes) % BUCKETS as u64).unwrap_or_default()
}

fn hash_of(hasher: &foldhash::fast::RandomState, target: Target) -> u64 {
    hasher.hash_one(target)
}

impl Row {
    fn new(target: Target, entry: &BanEntry, origin: Arc<Origin>) -> Self {
        let mut row = Self {
            bits: target.bits(),
            prefix: target.prefix128(),
            hlc: entry.stamp.hlc,
            origin: Arc::clone(&origin),
            until: Expiry::PAST,
            keep: entry.keep,
            bans: entry.bans,
            allowed: false,
        };
        row.write(entry, origin);
        row
    }

    fn write(&mut self, entry: &BanEntry, origin: Arc<Origin>) {
        self.hlc = entry.stamp.hlc;
        self.origin = origin;
        let allowed = entry.allowed_until();
        self.until = entry.until().or(allowed).unwrap_or(Expiry::PAST);
        self.allowed = allowed.is_some();
        self.keep = entry.keep;
        self.bans = entry.bans;
    }

    const fn is_ban(&self) -> bool {
        !self.allowed
    }

    fn target(&self) -> Target {
        Target::from_bits(self.bits, self.prefix)
    }

    fn is(&self, target: Target) -> bool {
        self.bits == target.bits() && self.prefix == target.prefix128()
    }

    fn entry(&self) -> BanEntry {
        BanEntry {
            stamp: Stamp { hlc: self.hlc, node: self.origin.node.clone() },
            state: match (self.allowed, self.until) {
                (true, until) => State::Allowed { until },
                (false, Expiry::PAST) => State::Lifted,
                (false, until) => State::Active { until },
            },
            bans: self.bans,
            keep: self.keep,
            cause: Arc::clone(&self.origin.cause),
        }
    }

    fn digest(&self) -> u64 {
        let mut bytes = [0; 46];
        bytes[..16].copy_from_slice(&self.bits.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.hlc.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.origin.digest.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.until.seconds().to_be_bytes());
        bytes[36..40].copy_from_slice(&self.keep.seconds().to_be_bytes());
        bytes[40..44].copy_from_slice(&self.bans.to_be_bytes());
        bytes[44] = self.prefix;
        // An allowance has a byte more: the digests of bans stay what nodes that know no allowances make of them.
        bytes[45] = 1;
        xxh3_64(if self.allowed { &bytes } else { &bytes[..45] })
    }
}

/// The origins in use, so that a million bans by one filter of one node share one.
#[derive(Debug, Default)]
struct Origins {
    known: HashSet<Arc<Origin>, foldhash::fast::RandomState>,
    /// At this many the unused ones are dropped.
    purge_at: usize,
}

impl Origins {
    fn intern(&mut self, entry: &BanEntry) -> Arc<Origin> {
        let origin = Origin {
            node: entry.stamp.node.clone(),
            cause: Arc::clone(&entry.cause),
            digest: digest_of(&entry.stamp.node, &entry.cause),
        };
        if let Some(known) = self.known.get(&origin) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.purge_at {
            self.known.retain(|origin| Arc::strong_count(origin) > 1);
            self.purge_at = (self.known.len() * 2).max(1024);
        }
        let origin = Arc::new(origin);
        self.known.insert(Arc::clone(&origin));
        origin
    }

    fn bytes(&self) -> usize {
        let texts: usize = self.known.iter().map(|origin| origin.cause.reason.len() + 100).sum();
        texts + self.known.capacity() * size_of::<Arc<Origin>>()
    }
}

/// The same on every node and in every version: [`Hash`] of the standard library promises neither.
fn digest_of(node: &NodeId, cause: &Cause) -> u64 {
    let (kind, name) = match &cause.by {
        super::ban::By::Filter(name) => (b"f", name),
        super::ban::By::Operator(name) => (b"o", name),
    };
    let mut hasher = Xxh3::new();
    for part in [node.as_str().as_bytes(), kind, name.as_bytes(), cause.reason.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests;
