//! The ban table: every entry a node knows, by target, in 48 bytes each and a place in an index, with digests that show where
//! two replicas differ.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::ban::{BanEntry, By, Cause, Decision, Register, Registers};
use super::hlc::{Hlc, Stamp};
use super::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

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
    /// The filters' registers of the rows whose own register is an operator's.
    filters: HashMap<Target, Filtered, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    origins: Origins,
    digests: Box<[u64; BUCKETS]>,
    /// By how much the number of bans in force changes at a second, for all seconds later than `counted_to`.
    turns: BTreeMap<Expiry, isize>,
    active: usize,
    counted_to: UnixMillis,
    operator_bans: usize,
    sweep_from: usize,
}

/// One register with what belongs to the whole entry. An entry with two registers keeps the operator's here and the filter's in
/// [`Table::filters`]: that is rare, and the usual row stays small.
#[derive(Debug)]
struct Row {
    bits: u128,
    hlc: Hlc,
    origin: Arc<Origin>,
    /// The end of the ban or the exemption; [`Expiry::PAST`] for an unban.
    until: Expiry,
    keep: Expiry,
    bans: u32,
    prefix: u8,
    kind: Kind,
    /// Whether there is a filter's register besides.
    both: bool,
}

/// Which register a row holds, and what an operator decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Filter,
    Unbanned,
    Banned,
    Allowed,
}

/// A filter's register apart from its row.
#[derive(Debug)]
struct Filtered {
    hlc: Hlc,
    origin: Arc<Origin>,
    until: Expiry,
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
            filters: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            origins: Origins::default(),
            digests: Box::new([0; BUCKETS]),
            turns: BTreeMap::new(),
            active: 0,
            counted_to: UnixMillis(0),
            operator_bans: 0,
            sweep_from: 0,
        }
    }
}

impl Table {
    /// The number of entries, tombstones and expired ones included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The entry of `target`.
    pub fn entry(&self, target: Target) -> Option<BanEntry> {
        self.find(target).and_then(|at| self.rows.get(at)).map(|row| self.entry_of(row))
    }

    /// Joins `entry` into what is known of `target`. An entry whose retention has passed at `now` is refused, and one in the table
    /// counts as absent even if it was not swept yet: when a node sweeps must not decide what it holds.
    pub fn merge(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Merged {
        if entry.keep.has_passed(now) {
            return Merged::Forgotten;
        }
        let Some(at) = self.find(target) else {
            self.insert(target, entry);
            return Merged::Changed { before: None, after: entry.clone() };
        };
        let before = Some(self.entry_of(&self.rows[at])).filter(|before| !before.keep.has_passed(now));
        let after = before.as_ref().map_or_else(|| entry.clone(), |before| before.join(entry));
        if before.as_ref() == Some(&after) {
            return Merged::Unchanged;
        }
        self.discount(at);
        let row = self.row(target, &after);
        if !row.both {
            self.filters.remove(&target);
        }
        self.rows[at] = row;
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
        let latest = |row: &Row| self.filtered(row).map_or(row.hlc, |filter| row.hlc.max(filter.hlc));
        let rows = self.rows[start..end].iter().rev().filter(move |row| wanted(row.target(), latest(row)));
        (rows.map(|row| (row.target(), self.entry_of(row))), start)
    }

    /// How many targets are banned at `now`, exemptions of networks around them left out of account. Calls with a `now` that goes
    /// back see the later one, until [`Table::recount`].
    pub fn active(&mut self, now: UnixMillis) -> usize {
        self.counted_to = self.counted_to.max(now);
        while let Some(first) = self.turns.first_entry() {
            if !first.key().has_passed(self.counted_to) {
                break;
            }
            self.active = self.active.saturating_add_signed(first.remove());
        }
        self.active
    }

    /// Counts the bans in force at `now` anew, after the clock was set back.
    pub fn recount(&mut self, now: UnixMillis) {
        self.turns.clear();
        (self.active, self.counted_to) = (0, now);
        for at in 0..self.rows.len() {
            self.turn(at, 1);
        }
    }

    /// The targets that operators have banned, with the ends of these bans, also of those that have ended.
    pub fn operator_bans(&self) -> impl Iterator<Item = (Target, Expiry)> + '_ {
        let rows = if self.operator_bans == 0 { &[][..] } else { &self.rows };
        rows.iter().filter(|row| row.kind == Kind::Banned).map(|row| (row.target(), row.until))
    }

    /// Bytes of memory that the table holds on to, without what the allocator adds.
    pub fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
            + self.index.allocation_size()
            + self.filters.allocation_size()
            + size_of_val(&*self.digests)
            + self.origins.bytes()
    }

    fn find(&self, target: Target) -> Option<usize> {
        let hash = hash_of(&self.hasher, target);
        self.index.find(hash, |&at| self.rows.get(at as usize).is_some_and(|row| row.is(target))).map(|&at| at as usize)
    }

    fn insert(&mut self, target: Target, entry: &BanEntry) {
        // More than 4 billion rows do not fit in memory; refusing them keeps the index sound anyway.
        let Ok(position) = u32::try_from(self.rows.len()) else { return };
        let row = self.row(target, entry);
        self.rows.push(row);
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hash_of(hasher, target), position, |&at| hash_of(hasher, rows[at as usize].target()));
        self.count(position as usize);
    }

    /// The row of `entry`; its second register goes to where these are kept.
    fn row(&mut self, target: Target, entry: &BanEntry) -> Row {
        let both = matches!(entry.registers, Registers::Both { .. });
        let (kind, hlc, until, origin) = match &entry.registers {
            Registers::Filter(filter) => {
                (Kind::Filter, filter.stamp.hlc, filter.value, self.origins.intern(&filter.stamp.node, &filter.cause))
            }
            Registers::Operator(operator) | Registers::Both { operator, .. } => {
                let (kind, until) = match operator.value {
                    Decision::Unbanned => (Kind::Unbanned, Expiry::PAST),
                    Decision::Banned { until } => (Kind::Banned, until),
                    Decision::Allowed { until } => (Kind::Allowed, until),
                };
                (kind, operator.stamp.hlc, until, self.origins.intern(&operator.stamp.node, &operator.cause))
            }
        };
        if let Registers::Both { filter, .. } = &entry.registers {
            let origin = self.origins.intern(&filter.stamp.node, &filter.cause);
            self.filters.insert(target, Filtered { hlc: filter.stamp.hlc, origin, until: filter.value });
        }
        let (bits, prefix) = (target.bits(), target.prefix128());
        Row { bits, hlc, origin, until, keep: entry.keep, bans: entry.bans, prefix, kind, both }
    }

    fn entry_of(&self, row: &Row) -> BanEntry {
        let filter = |hlc, origin: &Origin, until| Register {
            stamp: Stamp { hlc, node: origin.node.clone() },
            value: until,
            cause: Arc::clone(&origin.cause),
        };
        let decision = match row.kind {
            Kind::Filter => {
                let registers = Registers::Filter(filter(row.hlc, &row.origin, row.until));
                return BanEntry { registers, bans: row.bans, keep: row.keep };
            }
            Kind::Unbanned => Decision::Unbanned,
            Kind::Banned => Decision::Banned { until: row.until },
            Kind::Allowed => Decision::Allowed { until: row.until },
        };
        let stamp = Stamp { hlc: row.hlc, node: row.origin.node.clone() };
        let operator = Register { stamp, value: decision, cause: Arc::clone(&row.origin.cause) };
        let registers = match self.filtered(row) {
            Some(Filtered { hlc, origin, until }) => Registers::Both { operator, filter: filter(*hlc, origin, *until) },
            None => Registers::Operator(operator),
        };
        BanEntry { registers, bans: row.bans, keep: row.keep }
    }

    /// The filter's register that `row` does not hold itself.
    fn filtered(&self, row: &Row) -> Option<&Filtered> {
        if row.both { self.filters.get(&row.target()) } else { None }
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
        if self.rows.swap_remove(at).both {
            self.filters.remove(&target);
        }
        target
    }

    /// Counts the row at `at` into the digests and the bans in force.
    fn count(&mut self, at: usize) {
        self.digests[bucket_of(self.rows[at].target())] ^= self.digest_of(&self.rows[at]);
        self.operator_bans += usize::from(self.rows[at].kind == Kind::Banned);
        self.turn(at, 1);
    }

    /// Reverts [`Table::count`].
    fn discount(&mut self, at: usize) {
        self.digests[bucket_of(self.rows[at].target())] ^= self.digest_of(&self.rows[at]);
        self.operator_bans -= usize::from(self.rows[at].kind == Kind::Banned);
        self.turn(at, -1);
    }

    /// Adds `sign` to the number of bans in force for as long as the row's is.
    fn turn(&mut self, at: usize, sign: isize) {
        let row = &self.rows[at];
        let (from, to) = match self.filtered(row) {
            None if row.kind == Kind::Allowed => return,
            None => (Expiry::PAST, row.until),
            Some(_) => {
                let entry = self.entry_of(row);
                let Some(end) = entry.ban_end() else { return };
                (entry.allowed_until().unwrap_or(Expiry::PAST), end)
            }
        };
        if to <= from || to.has_passed(self.counted_to) {
            return;
        }
        if from.has_passed(self.counted_to) {
            self.active = self.active.saturating_add_signed(sign);
        } else {
            self.turn_at(from, sign);
        }
        self.turn_at(to, -sign);
    }

    fn turn_at(&mut self, at: Expiry, by: isize) {
        let turn = self.turns.entry(at).or_default();
        *turn += by;
        if *turn == 0 {
            self.turns.remove(&at);
        }
    }

    /// The digest of one entry, the same on every node and in every layout of rows.
    fn digest_of(&self, row: &Row) -> u64 {
        let mut bytes = [0; 67];
        bytes[..16].copy_from_slice(&row.bits.to_be_bytes());
        bytes[16] = row.prefix;
        bytes[17..21].copy_from_slice(&row.keep.seconds().to_be_bytes());
        bytes[21..25].copy_from_slice(&row.bans.to_be_bytes());
        let mut register = |at: usize, kind: Kind, hlc: Hlc, origin: &Origin, until: Expiry| {
            bytes[at] = kind as u8;
            bytes[at + 1..at + 9].copy_from_slice(&hlc.0.to_be_bytes());
            bytes[at + 9..at + 17].copy_from_slice(&origin.digest.to_be_bytes());
            bytes[at + 17..at + 21].copy_from_slice(&until.seconds().to_be_bytes());
        };
        register(25, row.kind, row.hlc, &row.origin, row.until);
        let Some(Filtered { hlc, origin, until }) = self.filtered(row) else { return xxh3_64(&bytes[..46]) };
        register(46, Kind::Filter, *hlc, origin, *until);
        xxh3_64(&bytes)
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
    fn target(&self) -> Target {
        Target::from_bits(self.bits, self.prefix)
    }

    fn is(&self, target: Target) -> bool {
        self.bits == target.bits() && self.prefix == target.prefix128()
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
    fn intern(&mut self, node: &NodeId, cause: &Arc<Cause>) -> Arc<Origin> {
        let origin = Origin { node: node.clone(), cause: Arc::clone(cause), digest: digest_of(node, cause) };
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
        By::Filter(name) => (b"f", name),
        By::Operator(name) => (b"o", name),
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
