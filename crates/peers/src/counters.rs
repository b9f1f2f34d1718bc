//! What several HAProxy processes counted for the same keys, and the sums.
//!
//! For every key and process the latest state is kept, not events: a state that arrives twice, late or not at all never makes a sum
//! exceed what was counted. Rates decay here as they do in HAProxy, so the share of a process that is cut off ends by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{Equivalent, HashMap};

use crate::rate::Rate;
use crate::table::{CONN_CUR, Cell, CellKind, Definition, GPC0};
use crate::update::Value;

mod pending;
mod process;
mod row;
mod rows;
mod sums;

pub use pending::Waiting;
use pending::{Pending, Why};
use process::Process;
use row::{Row, Share};
pub use rows::Place;
use rows::Rows;
pub use sums::{Ranked, Sum};

/// The most tables.
pub const MAX_TABLES: usize = 128;
/// The most processes.
pub const MAX_ORIGINS: usize = 1024;
/// A process of another node from which nothing arrived for this long has no open connections any more.
pub const SILENT: Duration = Duration::from_secs(10);
/// A state is sent this many times again, after 1 s, 2 s, 4 s and so on, since datagrams can be lost. One with numbers, which do not fall by
/// themselves, is sent again until a quarter of its life has passed.
const REPEATS: u8 = 2;
/// How many keys are compared to find one to drop when there is no room.
const SAMPLE: usize = 8;

/// A HAProxy process that counts, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(u32);

/// A reader of changes, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader(u64);

/// A key of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name of the table, without `/`.
    pub table: Arc<str>,
    /// The key, as in updates.
    pub key: Arc<[u8]>,
}

#[derive(Hash)]
struct KeyRef<'a> {
    table: &'a str,
    key: &'a [u8],
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.key == *key.key && *self.table == *key.table
    }
}

/// Which changes a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Those of the processes of this node, to send them to other nodes.
    Local,
    /// Those of all processes but this one.
    Others(Origin),
    /// All.
    All,
}

/// A state of a key in one process.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The process.
    pub origin: Origin,
    /// The table in which it was counted.
    pub table: &'a Arc<Definition>,
    /// The key.
    pub key: &'a [u8],
    /// The values in the order of the cells of `table`.
    pub values: &'a [Value],
    /// The order of states of one process: greater is later.
    pub version: (u64, u64),
}

/// The states, and who must be sent what changed.
#[derive(Debug)]
pub struct Counters {
    limit: usize,
    rows: Rows,
    index: HashMap<Key, Place, foldhash::fast::RandomState>,
    tables: BTreeMap<Arc<str>, Arc<Definition>>,
    origins: Vec<Process>,
    readers: BTreeMap<Reader, Pending>,
    next_reader: u64,
    /// The number of the place that is examined next.
    swept: usize,
    /// States that were not kept because there was no room.
    dropped: u64,
    /// States that arrived after a later one.
    late: u64,
}

impl Wants {
    fn includes(self, origin: Origin, is_local: bool) -> bool {
        match self {
            Self::Local => is_local,
            Self::Others(own) => own != origin,
            Self::All => true,
        }
    }
}

impl Counters {
    /// Keeps at most `limit` keys of all tables together.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            rows: Rows::default(),
            index: HashMap::default(),
            tables: BTreeMap::new(),
            origins: Vec::new(),
            readers: BTreeMap::new(),
            next_reader: 0,
            swept: 0,
            dropped: 0,
            late: 0,
        }
    }

    /// The number of the process with this name; `None` if there are too many processes.
    pub fn origin(&mut self, name: &str, is_local: bool, now: Instant) -> Option<Origin> {
        let found = self.origins.iter().position(|process| &*process.name == name);
        let at = match found {
            Some(at) => at,
            None if self.origins.len() >= MAX_ORIGINS => self.reuse(name, is_local, now)?,
            None => {
                self.origins.push(Process {
                    name: name.into(),
                    is_local,
                    is_live: true,
                    heard: now,
                    epoch: 0,
                    tables: Vec::new(),
                    last: None,
                });
                self.origins.len() - 1
            }
        };
        u32::try_from(at).ok().map(Origin)
    }

    /// Gives the place of the process that has been gone longest to another one. `None` if all are there.
    fn reuse(&mut self, name: &str, is_local: bool, now: Instant) -> Option<usize> {
        let gone = self.origins.iter().enumerate().filter(|(_, one)| !one.is_live).min_by_key(|(_, one)| one.heard);
        let at = gone.map(|(at, _)| at)?;
        let origin = Origin(u32::try_from(at).ok()?);
        self.rows.iter_mut().for_each(|(_, row)| row.shares.retain(|share| share.origin != origin));
        let process = self.origins.get_mut(at)?;
        let epoch = process.epoch.wrapping_add(1);
        *process =
            Process { name: name.into(), is_local, is_live: true, heard: now, epoch, tables: Vec::new(), last: None };
        Some(at)
    }

    /// Notes that something arrived from this process.
    pub fn heard(&mut self, origin: Origin, now: Instant) {
        if let Some(process) = self.process(origin) {
            process.heard = now;
            process.is_live = true;
        }
    }

    /// A new process counts under this name, with empty tables. What the one before counted is kept until
    /// [`Counters::lost`] returns it.
    pub fn restarted(&mut self, origin: Origin) {
        if let Some(process) = self.process(origin) {
            process.epoch = process.epoch.wrapping_add(1);
        }
        self.ended(origin);
    }

    /// The session of this process has ended: it has no open connections any more.
    pub fn ended(&mut self, origin: Origin) {
        if let Some(process) = self.process(origin).filter(|process| process.is_live) {
            process.is_live = false;
            self.mark_connections(origin);
        }
    }

    /// The states of `origin` that its present process has not sent: an earlier one counted them. They count as sent from now on.
    pub fn lost(&mut self, origin: Origin) -> Vec<Key> {
        let Some(epoch) = self.process(origin).map(|process| process.epoch) else { return Vec::new() };
        let mut lost = Vec::new();
        for (_, row) in self.rows.iter_mut() {
            if let Some(share) = row.share_mut(origin).filter(|share| share.epoch != epoch || share.gives_back) {
                (share.epoch, share.gives_back) = (epoch, false);
                share.close_connections();
                lost.push(row.key.clone());
            }
        }
        lost
    }

    /// Takes a state. Returns false if a later one is known, or there is no room.
    pub fn learn(&mut self, state: &State<'_>, now: Instant) -> bool {
        let State { origin, table, key, values, version } = *state;
        let Some(process) = self.process(origin) else { return false };
        let (is_local, epoch) = (process.is_local, process.epoch);
        let Some(table) = self.table(origin, table) else {
            self.dropped += 1;
            return false;
        };
        let name = table.short_name();
        let known = self.index.get(&KeyRef { table: name, key }).copied();
        let Some(place) = known.or_else(|| self.insert(name, key, row::weight(values), now)) else {
            self.dropped += 1;
            return false;
        };
        let Some(row) = self.rows.get_mut(place) else { return false };
        let repeats = is_local.then_some(0);
        let new = || Share {
            origin,
            table: Arc::clone(&table),
            values: values.into(),
            version,
            at: now,
            epoch,
            gives_back: false,
            repeats,
        };
        match row.share_mut(origin) {
            Some(share) if share.version > version => {
                self.late += 1;
                return false;
            }
            Some(share) if share.epoch == epoch && share.values.len() == values.len() => {
                share.values.copy_from_slice(values);
                share.table = table;
                (share.version, share.at, share.gives_back, share.repeats) = (version, now, false, repeats);
            }
            Some(share) => share.replace(new(), now),
            None => row.shares.push(new()),
        }
        row.changed = now;
        self.mark(place, origin, is_local);
        true
    }

    /// Adds a reader of changes. It is sent all present keys first.
    pub fn subscribe(&mut self, wants: Wants) -> Reader {
        let reader = Reader(self.next_reader);
        self.next_reader += 1;
        self.readers.insert(reader, Pending::new(wants));
        self.send_everything(reader);
        reader
    }

    /// All present keys are sent to `reader` again.
    pub fn send_everything(&mut self, reader: Reader) {
        let Some(pending) = self.readers.get_mut(&reader) else { return };
        for (place, row) in self.rows.iter() {
            let is_wanted = |share: &Share| {
                let is_local = origin_of(&self.origins, share.origin).is_some_and(|process| process.is_local);
                pending.wants.includes(share.origin, is_local)
            };
            if row.shares.iter().any(is_wanted) {
                pending.add(place, Why::Repeated);
            }
        }
    }

    /// Removes a reader.
    pub fn unsubscribe(&mut self, reader: Reader) {
        self.readers.remove(&reader);
    }

    /// Takes up to `most` keys for `reader`: those that changed before those that are sent again, and of either the one that waits longest
    /// first. While both wait, a few are of the latter, so that no change is lost for good. The places are those of the keys until the next
    /// call that can remove one.
    pub fn take(&mut self, reader: Reader, most: usize) -> Vec<Place> {
        self.readers.get_mut(&reader).map_or_else(Vec::new, |pending| pending.take(most))
    }

    /// As [`Counters::take`], but the keys themselves.
    pub fn changed(&mut self, reader: Reader, most: usize) -> Vec<Key> {
        self.take(reader, most).into_iter().filter_map(|place| self.key(place).cloned()).collect()
    }

    /// The key at `place`.
    pub fn key(&self, place: Place) -> Option<&Key> {
        self.rows.get(place).map(|row| &row.key)
    }

    /// Nothing waits for `reader` any more.
    pub fn discard(&mut self, reader: Reader) {
        if let Some(pending) = self.readers.get_mut(&reader) {
            *pending = Pending::new(pending.wants);
        }
    }

    /// How many keys wait for `reader`.
    pub fn waiting(&self, reader: Reader) -> Waiting {
        self.readers.get(&reader).map_or_else(Waiting::default, Pending::waiting)
    }

    /// Examines up to `budget` keys, from where the last call stopped: removes what has expired, and has those sent again whose
    /// state may not have arrived or whose sum may have drifted from its parts while it fell.
    pub fn sweep(&mut self, now: Instant, budget: usize) {
        let silent: Vec<Origin> = (0u32..)
            .zip(&self.origins)
            .filter(|(_, process)| process.is_live && !process.is_local && now >= process.heard + SILENT)
            .map(|(at, _)| Origin(at))
            .collect();
        for origin in silent {
            self.ended(origin);
        }
        for _ in 0..budget.min(self.rows.places()) {
            if self.swept >= self.rows.places() {
                self.swept = 0;
            }
            let place = self.rows.place(self.swept);
            self.swept += 1;
            if let Some(place) = place {
                self.examine(place, now);
            }
        }
    }

    fn examine(&mut self, place: Place, now: Instant) {
        let Some(row) = self.rows.get_mut(place) else { return };
        row.shares.retain(|share| !share.has_expired(now));
        if row.shares.is_empty() {
            self.remove(place);
            return;
        }
        // All, since one datagram has the states of all processes of this node.
        let mut again = false;
        for share in &mut row.shares {
            again |= share.repeat(now);
        }
        let falls = row.shares.len() > 1 && now < row.changed + row.settles();
        for pending in self.readers.values_mut() {
            let is_due = match pending.wants {
                Wants::Local => again,
                Wants::Others(_) | Wants::All => falls,
            };
            if is_due {
                pending.add(place, Why::Repeated);
            }
        }
    }

    /// The number of keys.
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no keys.
    pub const fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// How many states were not kept because there was no room for their key, or that of a lighter one was used.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many states arrived after a later one of the same process, and were ignored.
    pub const fn late(&self) -> u64 {
        self.late
    }

    /// The tables, with their latest definition.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.tables.values()
    }

    /// The processes of other nodes: their names, and how long nothing arrived from them.
    pub fn remote(&self, now: Instant) -> impl Iterator<Item = (&str, Duration)> {
        let remote = self.origins.iter().filter(|process| !process.is_local);
        remote.map(move |process| (&*process.name, now.saturating_duration_since(process.heard)))
    }

    fn process(&mut self, origin: Origin) -> Option<&mut Process> {
        self.origins.get_mut(usize::try_from(origin.0).ok()?)
    }

    /// The definition that equals `table` and that all states of `origin` share. `None` if there are too many tables.
    fn table(&mut self, origin: Origin, table: &Arc<Definition>) -> Option<Arc<Definition>> {
        let process = self.process(origin)?;
        if let Some((_, known)) = process.last.as_ref().filter(|(last, _)| Arc::ptr_eq(last, table)) {
            return Some(Arc::clone(known));
        }
        let (known, is_local) = (process.intern(table), process.is_local);
        if !self.define(&known, is_local) {
            return None;
        }
        self.process(origin)?.last = Some((Arc::clone(table), Arc::clone(&known)));
        Some(known)
    }

    /// Notes the definition of a table. Returns false if there are too many tables.
    fn define(&mut self, table: &Arc<Definition>, is_local: bool) -> bool {
        if let Some(known) = self.tables.get_mut(table.short_name()) {
            if is_local && !Arc::ptr_eq(known, table) {
                *known = Arc::clone(table);
            }
            return true;
        }
        if self.tables.len() >= MAX_TABLES {
            return false;
        }
        self.tables.insert(table.short_name().into(), Arc::clone(table));
        true
    }

    /// Makes a row, and drops a lighter one if there is no room. `None`: the others are heavier.
    fn insert(&mut self, table: &str, key: &[u8], weight: u64, now: Instant) -> Option<Place> {
        if self.rows.len() >= self.limit {
            // When it is full, hardly a place is free.
            let (from, places) = (self.swept, self.rows.places());
            let sample = (0..SAMPLE.min(places)).filter_map(|step| self.rows.place((from + step) % places));
            let lightest = sample.min_by_key(|place| self.rows.get(*place).map_or(0, Row::weight))?;
            self.swept = from.wrapping_add(SAMPLE) % places;
            if self.rows.get(lightest)?.weight() > weight {
                return None;
            }
            self.remove(lightest);
            self.dropped += 1;
        }
        let table = self.tables.get_key_value(table).map(|(name, _)| Arc::clone(name))?;
        let key = Key { table, key: key.into() };
        let place = self.rows.insert(Row::new(key.clone(), now))?;
        self.index.insert(key, place);
        Some(place)
    }

    fn remove(&mut self, place: Place) {
        if let Some(removed) = self.rows.remove(place) {
            self.index.remove(&removed.key);
            self.readers.values_mut().for_each(|pending| pending.forget(place));
        }
    }

    fn mark(&mut self, place: Place, origin: Origin, is_local: bool) {
        for pending in self.readers.values_mut() {
            if pending.wants.includes(origin, is_local) {
                pending.add(place, Why::Changed);
            }
        }
    }

    /// The open connections of `origin` count no more.
    fn mark_connections(&mut self, origin: Origin) {
        let has_connections = |share: &Share| {
            share.origin == origin
                && share.table.position(CONN_CUR).is_some_and(|at| share.values.get(at) != Some(&Value::Number(0)))
        };
        let rows = self.rows.iter().filter(|(_, row)| row.shares.iter().any(has_connections));
        let places: Vec<Place> = rows.map(|(place, _)| place).collect();
        let is_local = self.process(origin).is_some_and(|process| process.is_local);
        for place in places {
            self.mark(place, origin, is_local);
        }
    }
}

fn origin_of(origins: &[Process], origin: Origin) -> Option<&Process> {
    origins.get(usize::try_from(origin.0).ok()?)
}

#[cfg(test)]
mod tests;
