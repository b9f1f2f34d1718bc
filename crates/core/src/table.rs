//! The ban table: all entries of a node by target, in rows of 48 bytes plus an index, with digests that show where two replicas differ.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::ban::{BanEntry, Decision, Register, Registers};
use crate::hlc::{Hlc, Stamp};
use crate::retention::Cut;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

mod allocations;
mod origins;

use allocations::{ALLOCATION_MEMBERS, Allocations};
use origins::{Origin, Origins};

/// The number of buckets into which the targets are divided for [`Table::digests`].
pub const BUCKETS: usize = 4096;

/// The outcome of [`Table::merge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The table already had it, or a later one.
    Unchanged,
    /// The retention of the entry has passed: it was refused.
    PastRetention,
    /// The table has changed.
    Changed {
        /// The entry before, if the table had one.
        before: Option<BanEntry>,
        /// The entry after.
        after: BanEntry,
    },
}

/// All entries by target: rows in a dense, unordered vector, and an index of their positions.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    index: HashTable<u32>,
    /// The filter's register of each row that has both: see [`Row::both`].
    filters: HashMap<Target, FilterRegister, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    origins: Origins,
    digests: Box<[u64; BUCKETS]>,
    /// For each second after `counted_to`, by how much the number of bans in force changes then.
    changes: BTreeMap<Expiry, isize>,
    /// The number of bans in force at `counted_to`.
    active: usize,
    counted_to: UnixMillis,
    /// The number of rows with a ban by an operator, including ended ones.
    operator_bans: usize,
    /// The next sweep examines the rows below this position.
    sweep_from: usize,
    cut: Cut,
    allocations: Allocations,
}

/// One register, and the fields of the whole entry. An entry with two registers has the operator's here and the filter's in
/// [`Table::filters`]. Such entries are rare, so the usual row stays small.
#[derive(Debug)]
struct Row {
    bits: u128,
    hlc: Hlc,
    origin: Arc<Origin>,
    /// The end of the ban or the allowlist entry; [`Expiry::PAST`] for a tombstone.
    until: Expiry,
    keep: Expiry,
    bans: u32,
    prefix: u8,
    kind: Kind,
    /// Whether the entry also has a filter's register, in [`Table::filters`].
    both: bool,
}

/// The register in a row, with the decision if it is an operator's. The numbers are part of the digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Filter,
    Unbanned,
    Banned,
    Allowed,
}

/// A filter's register that is stored outside its row.
#[derive(Debug)]
struct FilterRegister {
    hlc: Hlc,
    origin: Arc<Origin>,
    until: Expiry,
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
            changes: BTreeMap::new(),
            active: 0,
            counted_to: UnixMillis(0),
            operator_bans: 0,
            sweep_from: 0,
            cut: Cut::default(),
            allocations: Allocations::default(),
        }
    }
}

impl Table {
    /// Returns the number of entries, including tombstones and expired ones.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns `true` if the table has no entries.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns which entries without effect count as absent before their retention has passed.
    pub const fn cut(&self) -> Cut {
        self.cut
    }

    /// Replaces the cut. The entries that it removes count as absent immediately, and are removed by [`Table::sweep`].
    pub const fn set_cut(&mut self, cut: Cut) {
        self.cut = cut;
    }

    /// Returns `true` if the table has an entry of `target`, even if its retention has passed.
    pub fn contains(&self, target: Target) -> bool {
        self.find(target).is_some()
    }

    /// Returns `true` if a filter has banned `target`, even if that ban has ended.
    pub fn is_banned_by_filter(&self, target: Target) -> bool {
        let row = self.find(target).and_then(|at| self.rows.get(at));
        row.is_some_and(|row| row.kind == Kind::Filter || row.both)
    }

    /// Returns how many IPv6 networks of /49 to /64 in the /48 around `target` filters have banned, including bans that have ended.
    pub fn banned_in_allocation(&self, target: Target) -> usize {
        self.allocations.count(target, &self.hasher)
    }

    /// Counts the entries that a full table may drop at `now`, by `keep`: see [`BanEntry::is_droppable`].
    pub fn droppable(&self, now: UnixMillis) -> BTreeMap<Expiry, usize> {
        let mut found = BTreeMap::new();
        // Most rows have only a filter's register, which needs no copy.
        let ended = |row: &Row| row.until.has_passed(now) && self.entry_of(row).is_droppable(now);
        for row in self.rows.iter().filter(|row| ended(row)) {
            *found.entry(row.keep).or_default() += 1;
        }
        found
    }

    /// Returns the entry of `target`, even if its retention has passed.
    pub fn entry(&self, target: Target) -> Option<BanEntry> {
        self.find(target).and_then(|at| self.rows.get(at)).map(|row| self.entry_of(row))
    }

    /// Merges `entry` into the entry of `target`. Refuses an entry whose retention has passed at `now`. An entry in the table whose retention
    /// has passed counts as absent, even if it has not been swept yet: the result must not depend on when a node sweeps.
    pub fn merge(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Merged {
        if entry.retention(self.cut).has_passed(now) {
            return Merged::PastRetention;
        }
        let Some(at) = self.find(target) else {
            self.insert(target, entry);
            return Merged::Changed { before: None, after: entry.clone() };
        };
        let before = Some(self.entry_of(&self.rows[at])).filter(|before| !before.retention(self.cut).has_passed(now));
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

    /// Examines up to `budget` rows, starting where the last call stopped, removes those whose retention has passed, and returns their
    /// targets.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) -> Vec<Target> {
        let mut dropped = Vec::new();
        for _ in 0..budget.min(self.rows.len()) {
            // Go downwards: removing a row moves the last one into its place, and that one has been examined already.
            if self.sweep_from == 0 {
                self.sweep_from = self.rows.len();
            }
            let Some(at) = self.sweep_from.checked_sub(1) else { break };
            self.sweep_from = at;
            if self.is_past_retention(&self.rows[at], now) {
                dropped.push(self.remove(at));
            }
        }
        dropped
    }

    /// Returns one digest per bucket. Equal digests mean equal entries.
    pub fn digests(&self) -> &[u64; BUCKETS] {
        &self.digests
    }

    /// Returns the digest of the whole table.
    pub fn digest(&self) -> u64 {
        // Hashing 8 bytes at a time would take ten times as long, and every node does this several times a second.
        const STEP: usize = 128;
        let mut hasher = Xxh3::new();
        for digests in self.digests.chunks(STEP) {
            let mut bytes = [[0; 8]; STEP];
            for (bytes, digest) in bytes.iter_mut().zip(digests) {
                *bytes = digest.to_le_bytes();
            }
            hasher.update(bytes[..digests.len()].as_flattened());
        }
        hasher.digest()
    }

    /// Scans the table in steps. Returns up to `budget` entries at positions below `below`, and the `below` of the next step. Start with
    /// `usize::MAX`, and stop at 0.
    ///
    /// The table may change between two steps. An entry that exists throughout is returned at least once.
    pub fn scan(&self, below: usize, budget: usize) -> (impl Iterator<Item = (Target, BanEntry)> + '_, usize) {
        self.scan_where(below, budget, |_, _| true)
    }

    /// Like [`Table::scan`], but returns only the entries whose target and latest reading are `wanted`. Others are not copied.
    pub fn scan_where<'a>(
        &'a self,
        below: usize,
        budget: usize,
        wanted: impl Fn(Target, Hlc) -> bool + 'a,
    ) -> (impl Iterator<Item = (Target, BanEntry)> + 'a, usize) {
        let end = below.min(self.rows.len());
        let start = end.saturating_sub(budget);
        let latest = |row: &Row| self.filter_register(row).map_or(row.hlc, |filter| row.hlc.max(filter.hlc));
        let rows = self.rows[start..end].iter().rev().filter(move |row| wanted(row.target(), latest(row)));
        (rows.map(|row| (row.target(), self.entry_of(row))), start)
    }

    /// Like [`Table::scan`], but returns the digests of the entries in `buckets` and copies no entries.
    pub fn scan_digests<'a>(
        &'a self,
        below: usize,
        budget: usize,
        buckets: &'a [bool; BUCKETS],
    ) -> (impl Iterator<Item = (Target, u64)> + 'a, usize) {
        let end = below.min(self.rows.len());
        let start = end.saturating_sub(budget);
        let rows = self.rows[start..end].iter().rev().filter(|row| buckets[bucket_of(row.target())]);
        (rows.map(|row| (row.target(), self.digest_of(row))), start)
    }

    /// Returns the number of targets that are banned at `now`, ignoring allowlist entries of wider networks. If `now` is before that of an
    /// earlier call, the number is that of the earlier call, until [`Table::recount`].
    pub fn active(&mut self, now: UnixMillis) -> usize {
        self.counted_to = self.counted_to.max(now);
        while let Some(first) = self.changes.first_entry() {
            if !first.key().has_passed(self.counted_to) {
                break;
            }
            self.active = self.active.saturating_add_signed(first.remove());
        }
        self.active
    }

    /// Recounts the bans in force at `now`, after the clock was set back.
    pub fn recount(&mut self, now: UnixMillis) {
        self.changes.clear();
        (self.active, self.counted_to) = (0, now);
        for at in 0..self.rows.len() {
            self.count_active(at, 1);
        }
    }

    /// Iterates over the targets that operators have banned and the ends of these bans, including bans that have ended.
    pub fn operator_bans(&self) -> impl Iterator<Item = (Target, Expiry)> + '_ {
        let rows = if self.operator_bans == 0 { &[][..] } else { &self.rows };
        rows.iter().filter(|row| row.kind == Kind::Banned).map(|row| (row.target(), row.until))
    }

    /// Returns the memory in use, in bytes, without the overhead of the allocator.
    pub fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
            + self.index.allocation_size()
            + self.filters.allocation_size()
            + size_of_val(&*self.digests)
            + self.allocations.bytes()
            + self.origins.bytes()
    }

    fn is_past_retention(&self, row: &Row, now: UnixMillis) -> bool {
        // Only an operator's decision or the cut ends a retention before `keep`. The usual row needs no copy.
        let plain = row.kind == Kind::Filter && row.hlc >= self.cut.written && row.keep > self.cut.retention;
        row.keep.has_passed(now) || (!plain && self.entry_of(row).retention(self.cut).has_passed(now))
    }

    fn find(&self, target: Target) -> Option<usize> {
        let hash = hash_of(&self.hasher, target);
        self.index.find(hash, |&at| self.rows.get(at as usize).is_some_and(|row| row.is(target))).map(|&at| at as usize)
    }

    fn insert(&mut self, target: Target, entry: &BanEntry) {
        // 2^32 rows would not fit in memory anyway. Refusing more keeps the index correct.
        let Ok(position) = u32::try_from(self.rows.len()) else { return };
        let row = self.row(target, entry);
        self.rows.push(row);
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hash_of(hasher, target), position, |&at| hash_of(hasher, rows[at as usize].target()));
        self.count(position as usize);
    }

    /// Creates the row of `entry`. If it has both registers, stores the filter's in [`Table::filters`].
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
            self.filters.insert(target, FilterRegister { hlc: filter.stamp.hlc, origin, until: filter.value });
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
        let registers = match self.filter_register(row) {
            Some(FilterRegister { hlc, origin, until }) => {
                Registers::Both { operator, filter: filter(*hlc, origin, *until) }
            }
            None => Registers::Operator(operator),
        };
        BanEntry { registers, bans: row.bans, keep: row.keep }
    }

    /// Returns the filter's register of `row` if the entry has both registers.
    fn filter_register(&self, row: &Row) -> Option<&FilterRegister> {
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

    /// Adds the row at `at` to the digests and to the counts.
    fn count(&mut self, at: usize) {
        self.digests[bucket_of(self.rows[at].target())] ^= self.digest_of(&self.rows[at]);
        self.operator_bans += usize::from(self.rows[at].kind == Kind::Banned);
        if let Some(target) = self.rows[at].in_allocation() {
            self.allocations.add(target, &self.hasher);
        }
        self.count_active(at, 1);
    }

    /// Reverts [`Table::count`].
    fn discount(&mut self, at: usize) {
        self.digests[bucket_of(self.rows[at].target())] ^= self.digest_of(&self.rows[at]);
        self.operator_bans -= usize::from(self.rows[at].kind == Kind::Banned);
        if let Some(target) = self.rows[at].in_allocation() {
            self.allocations.remove(target, &self.hasher);
        }
        self.count_active(at, -1);
    }

    /// Adds `sign` to the number of bans in force, for the time during which the ban of the row is in force.
    fn count_active(&mut self, at: usize, sign: isize) {
        let row = &self.rows[at];
        let (from, to) = match self.filter_register(row) {
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
            self.change_at(from, sign);
        }
        self.change_at(to, -sign);
    }

    fn change_at(&mut self, at: Expiry, by: isize) {
        let change = self.changes.entry(at).or_default();
        *change += by;
        if *change == 0 {
            self.changes.remove(&at);
        }
    }

    /// Returns the digest of one entry. It is the same on every node, whatever the layout of its rows.
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
        let Some(FilterRegister { hlc, origin, until }) = self.filter_register(row) else {
            return xxh3_64(&bytes[..46]);
        };
        register(46, Kind::Filter, *hlc, origin, *until);
        xxh3_64(&bytes)
    }
}

/// Returns the bucket of `target`: less than [`BUCKETS`], and the same on every node.
pub fn bucket_of(target: Target) -> usize {
    let mut bytes = [0; 17];
    bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
    bytes[16] = target.prefix128();
    // The remainder fits: it is less than BUCKETS.
    usize::try_from(xxh3_64(&bytes) % BUCKETS as u64).unwrap_or_default()
}

fn hash_of(hasher: &foldhash::fast::RandomState, target: Target) -> u64 {
    hasher.hash_one(target)
}

impl Row {
    fn target(&self) -> Target {
        Target::from_bits(self.bits, self.prefix)
    }

    /// Returns the target if [`Allocations`] counts it.
    fn in_allocation(&self) -> Option<Target> {
        let counted = (self.kind == Kind::Filter || self.both) && ALLOCATION_MEMBERS.contains(&self.prefix);
        counted.then(|| self.target()).filter(|target| !target.is_ipv4())
    }

    fn is(&self, target: Target) -> bool {
        self.bits == target.bits() && self.prefix == target.prefix128()
    }
}

#[cfg(test)]
mod tests;
