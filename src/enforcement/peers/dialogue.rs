//! What a session sends to HAProxy, and what it does with what arrives. Without I/O: the time is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::bans::{Key, Missed};
use super::connection::Closed;
use banmesh_core::planted::{Fault, is_planted};
use banmesh_peers::counters::{self, Counters, Origin, Reader, State, Wants};
use banmesh_peers::hello::Hello;
use banmesh_peers::session::WINDOW;
use banmesh_peers::table::{GPT, GPT0};
use banmesh_peers::{Cell, Definition, Event, KeyKind, Session, Value};
use banmesh_types::time::UnixMillis;

/// The entry that says that the table has all bans and that this node lives: `ff00::1`, which is no client's address.
pub const SENTINEL: Key = [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// How often the sentinel is sent, and how long it holds.
const SENTINEL_EVERY: Duration = Duration::from_secs(3);
const SENTINEL_HOLDS: u32 = 10;
/// What changed in this time of a session is sent again: an old HAProxy process that teaches the new one could overwrite it.
const UNSETTLED: Duration = Duration::from_secs(10);
/// A session whose updates are not acknowledged for this long does not hold the bans.
const PATIENCE: Duration = Duration::from_secs(5);
/// The bans are sent again at least this often, since HAProxy removes entries at the end of their life.
const MAX_REFRESH: Duration = Duration::from_secs(86_400);
/// Entries that are read at once.
const PAGE: usize = 256;
/// The most entries of HAProxy's that must be ended.
const MAX_FOREIGN: usize = 262_144;
/// The suffixes of the tables of sums.
const OTHERS: &str = ".others";
const AGGREGATE: &str = ".agg";

/// The number of a table, a key of it, and its sums.
type SumEntry = (u64, Arc<[u8]>, Vec<Value>);

/// One session.
#[derive(Debug)]
pub(super) struct Dialogue {
    shared: Arc<Shared>,
    session: Session,
    heard: PeerState,
    bans: BanCursor,
    /// When sums may be sent again.
    sums_due: Instant,
    /// Since when updates wait for an acknowledgement.
    waiting_since: Option<Instant>,
}

/// What is known of HAProxy.
#[derive(Debug, Default)]
struct PeerState {
    name: String,
    number: u64,
    origin: Option<Origin>,
    /// Whether a new process must be given back what the one before counted, once it has sent what it has.
    gives_back: bool,
    tables: HashMap<u64, Arc<Definition>>,
    bans: Option<Arc<Definition>>,
    /// Why a table cannot be used, by its number.
    unusable: BTreeMap<u64, String>,
    taught: bool,
    others: Option<Reader>,
    aggregate: Option<Reader>,
    lost: VecDeque<counters::Key>,
    /// Entries of the table of bans that are not banned.
    foreign: VecDeque<Key>,
}

/// How far the bans have been sent.
#[derive(Debug, Default)]
struct BanCursor {
    started: bool,
    /// The last key of the walk over all bans; `None` if it has ended.
    walk: Option<Option<Key>>,
    /// The next change to send.
    position: u64,
    /// When to return to this change.
    again: Option<(Instant, u64)>,
    refresh: Option<Instant>,
    sentinel: Option<Instant>,
}

impl Dialogue {
    pub(super) fn new(shared: Arc<Shared>, now: Instant) -> Self {
        Self {
            shared,
            session: Session::new(now),
            heard: PeerState::default(),
            bans: BanCursor::default(),
            sums_due: now,
            waiting_since: None,
        }
    }

    /// The name of HAProxy; empty before its hello.
    pub(super) fn name(&self) -> &str {
        &self.heard.name
    }

    /// Takes what HAProxy sent, and returns how much was read.
    pub(super) fn receive(
        &mut self,
        input: &[u8],
        now: Instant,
        wall: UnixMillis,
        output: &mut Vec<u8>,
    ) -> Result<usize, Closed> {
        let Self { shared, session, heard, .. } = self;
        let mut learned = 0;
        let read = {
            let mut counters = shared.counters();
            session.receive(input, now, output, &mut |event| {
                learned += u64::from(heard.take(shared, &mut counters, event, now, wall));
            })
        };
        if learned > 0 {
            shared.metrics.received.inc_by(learned);
            shared.wake();
        }
        Ok(read?)
    }

    /// Appends what is due to `output`, as far as HAProxy's acknowledgements allow.
    pub(super) fn fill(&mut self, now: Instant, wall: UnixMillis, output: &mut Vec<u8>) -> Result<(), Closed> {
        self.session.tick(now, output)?;
        if self.session.hello().is_none() {
            return Ok(());
        }
        self.fill_bans(now, wall, output)?;
        self.give_back(now, output);
        // With a full window, acknowledgements set the pace.
        if now >= self.sums_due && self.fill_sums(now, output) && self.session.room() > 0 {
            self.sums_due = now + self.shared.config.interval;
        }
        self.report(now);
        Ok(())
    }

    /// When [`Dialogue::fill`] has something to do, if nothing changes until then.
    pub(super) fn next_wakeup(&self) -> Instant {
        let bans = &self.bans;
        // While HAProxy must acknowledge first, its acknowledgement wakes this session.
        let sentinel = bans.sentinel.filter(|_| self.session.room() > 0);
        let timers = [bans.again.map(|(at, _)| at), bans.refresh, sentinel, self.sums_wakeup()];
        timers.into_iter().flatten().fold(self.session.next_wakeup(), Instant::min)
    }

    /// When the sums that wait may be sent.
    fn sums_wakeup(&self) -> Option<Instant> {
        let readers = [self.heard.others, self.heard.aggregate];
        if self.session.room() == 0 || readers == [None, None] {
            return None;
        }
        let counters = self.shared.counters();
        let waits = readers.into_iter().flatten().any(|reader| !counters.waiting(reader).is_empty());
        waits.then_some(self.sums_due)
    }

    fn fill_bans(&mut self, now: Instant, wall: UnixMillis, output: &mut Vec<u8>) -> Result<(), Closed> {
        let Some(table) = self.heard.bans.clone() else { return Ok(()) };
        let bans = self.shared.bans.clone();
        let cursor = &mut self.bans;
        if !cursor.started {
            let position = bans.next();
            let refresh = refresh(&table).map(|after| now + after);
            let (walk, again) = (Some(None), Some((now + UNSETTLED, position)));
            *cursor = BanCursor { started: true, walk, position, again, refresh, sentinel: None };
        }
        if let Some((_, position)) = cursor.again.take_if(|(at, _)| now >= *at) {
            cursor.position = position.min(cursor.position);
        }
        if cursor.refresh.is_some_and(|at| now >= at) {
            cursor.refresh = refresh(&table).map(|after| now + after);
            cursor.walk = Some(None);
        }
        while self.session.room() > 0
            && let Some(key) = self.heard.foreign.pop_front()
        {
            let until = bans.until(&key);
            self.push_ban(&table, &key, until, now, wall, output);
        }
        loop {
            let room = page(self.session.room());
            let (changes, next) = bans.changes(self.bans.position, room).map_err(|Missed| Closed::Behind)?;
            self.bans.position = next;
            for (key, until) in &changes {
                self.push_ban(&table, key, *until, now, wall, output);
            }
            let room = page(self.session.room());
            if room == 0 {
                return Ok(());
            }
            if !changes.is_empty() {
                continue;
            }
            let Some(after) = self.bans.walk else { break };
            let entries = bans.page(after, room);
            self.bans.walk = entries.last().map(|(key, _)| Some(*key));
            for (key, until) in entries {
                if until > wall.second() {
                    self.push_ban(&table, &key, until, now, wall, output);
                }
            }
        }
        // Only once all bans are on their way, and behind them.
        if self.bans.sentinel.is_none_or(|at| now >= at) {
            self.bans.sentinel = Some(now + SENTINEL_EVERY);
            let until = wall.second().saturating_add(SENTINEL_HOLDS);
            self.push_ban(&table, &SENTINEL, until, now, wall, output);
        }
        Ok(())
    }

    fn push_ban(
        &mut self,
        table: &Definition,
        key: &Key,
        until: u32,
        now: Instant,
        wall: UnixMillis,
        output: &mut Vec<u8>,
    ) {
        let values: Vec<Value> = table
            .cells
            .iter()
            .map(|cell| if is_end(cell) { Value::Number(u64::from(until)) } else { Value::zero(cell.kind) })
            .collect();
        // HAProxy from 3.2 on removes the entry then. An entry that ends a ban lives as long as the table says.
        let left = u64::from(until.saturating_sub(wall.second())).saturating_mul(1000);
        let left = if table.expire == 0 { left } else { left.min(table.expire) };
        let expire = u32::try_from(left).ok().filter(|left| *left > 0);
        self.push(table.id, expire, key, &values, now, output);
    }

    fn push(
        &mut self,
        table: u64,
        expire: Option<u32>,
        key: &[u8],
        values: &[Value],
        now: Instant,
        output: &mut Vec<u8>,
    ) {
        if self.session.push(table, expire, key, values, now, output) {
            self.shared.metrics.sent.inc();
            self.waiting_since.get_or_insert(now);
        }
    }

    /// Gives back what an earlier process of this HAProxy counted.
    fn give_back(&mut self, now: Instant, output: &mut Vec<u8>) {
        let Some(origin) = self.heard.origin else { return };
        while self.session.room() > 0
            && let Some(key) = self.heard.lost.pop_front()
        {
            let Some((counted, values)) = self.shared.counters().given_back(&key, origin, now) else { continue };
            let Some(table) = self.session.table(&key.table) else { continue };
            if table.cells == counted.cells && table.key == counted.key {
                let id = table.id;
                self.push(id, None, &key.key, &values, now, output);
            }
        }
    }

    /// Sends sums that changed. Returns whether there were any.
    fn fill_sums(&mut self, now: Instant, output: &mut Vec<u8>) -> bool {
        let mut any = false;
        let readers = [(self.heard.others, OTHERS), (self.heard.aggregate, AGGREGATE)];
        for (reader, suffix) in readers {
            let (Some(reader), Some(origin)) = (reader, self.heard.origin) else { continue };
            let wants = if suffix == OTHERS { Wants::Others(origin) } else { Wants::All };
            while self.session.room() > 0 {
                let sums = self.sums(reader, suffix, wants, now);
                let Some(sums) = sums else { break };
                any = true;
                for (table, key, values) in sums {
                    self.push(table, None, &key, &values, now, output);
                }
            }
        }
        any
    }

    /// Some sums that changed, with the number of their table. `None` if there are no more.
    fn sums(&self, reader: Reader, suffix: &str, wants: Wants, now: Instant) -> Option<Vec<SumEntry>> {
        let mut counters = self.shared.counters();
        let places = counters.take(reader, page(self.session.room()));
        if places.is_empty() {
            return None;
        }
        // The table of the last key, which is mostly that of the next one.
        let mut last: Option<(Arc<str>, Option<Arc<Definition>>)> = None;
        let mut sums = Vec::with_capacity(places.len());
        for place in places {
            let Some(key) = counters.key(place) else { continue };
            let table = match &last {
                Some((name, table)) if *name == key.table => table.clone(),
                _ => last.insert((Arc::clone(&key.table), self.heard.sums(&key.table, suffix))).1.clone(),
            };
            let Some(table) = table else { continue };
            let sum = counters.sum_at(place, wants, &table.cells, now).filter(|sum| sum.processes > 0);
            sums.extend(sum.map(|sum| (table.id, Arc::clone(&key.key), sum.values)));
        }
        Some(sums)
    }

    /// Notes how this session is.
    fn report(&mut self, now: Instant) {
        let waiting = WINDOW.saturating_sub(self.session.room());
        let acknowledged = if waiting == 0 { self.waiting_since.take() } else { None };
        let late = self.waiting_since.filter(|since| now >= *since + PATIENCE);
        let heard = &self.heard;
        let wants_bans = !self.shared.config.bans_table.is_empty();
        let has_all = self.bans.started && self.bans.walk.is_none() && self.bans.position == self.shared.bans.next();
        let error = match heard.unusable.values().next() {
            Some(why) => Some(why.clone()),
            None if wants_bans && heard.taught && heard.bans.is_none() => Some(format!(
                "HAProxy {} has no table `{}` in its peers section; add it as `banmesh haproxy config --peers` prints it",
                heard.name, self.shared.config.bans_table
            )),
            None => None,
        };
        let entries = if wants_bans { self.shared.bans.entries() as u64 } else { 0 };
        self.shared.sessions.update(&heard.name, heard.number, |session| {
            session.waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
            if let Some(since) = acknowledged {
                session.lag = now.saturating_duration_since(since);
            }
            session.entries = entries;
            session.error = error;
            if late.is_some() {
                session.stale_since = session.stale_since.or(late);
                session
                    .error
                    .get_or_insert_with(|| "HAProxy does not acknowledge updates; is it overloaded?".to_owned());
            } else if has_all || !wants_bans {
                session.stale_since = None;
            } else if session.error.is_some() || (wants_bans && !self.bans.started) {
                session.stale_since.get_or_insert(now);
            }
        });
    }

    /// Notes that the session has ended.
    pub(super) fn end(&mut self, now: Instant) {
        let heard = &self.heard;
        let mut counters = self.shared.counters();
        for reader in [heard.others, heard.aggregate].into_iter().flatten() {
            counters.unsubscribe(reader);
        }
        if self.shared.sessions.is_latest(&heard.name, heard.number) {
            self.shared.reports.interrupted(&heard.name);
            if let Some(origin) = heard.origin {
                counters.ended(origin);
            }
        }
        drop(counters);
        self.shared.wake();
        self.shared.sessions.update(&heard.name, heard.number, |session| session.ended = Some(now));
    }
}

impl PeerState {
    /// Takes one event. Returns whether it is an entry.
    fn take(
        &mut self,
        shared: &Shared,
        counters: &mut Counters,
        event: Event<'_>,
        now: Instant,
        wall: UnixMillis,
    ) -> bool {
        match event {
            Event::Opened(Hello { caller, pid, .. }) => {
                self.name.clone_from(caller);
                let (number, is_new) = shared.sessions.open(caller, *pid, now);
                self.number = number;
                shared.reports.interrupted(caller);
                self.origin = counters.origin(caller, true, now);
                if let Some(origin) = self.origin {
                    if is_new {
                        counters.restarted(origin);
                    }
                    counters.heard(origin, now);
                }
                self.gives_back = is_new && !is_planted(Fault::KeepCounters);
                tracing::info!(haproxy = caller, pid, "a HAProxy is connected as a peer");
                false
            }
            Event::Defined(table) => {
                self.define(shared, counters, table);
                false
            }
            Event::Updated { table, update } => {
                let name = table.short_name();
                if name == shared.config.bans_table {
                    self.foreign(shared, table, update.key, update.values, wall);
                } else if is_sum(name) {
                    // Its own sums, which HAProxy teaches back.
                } else if !shared.sessions.is_latest(&self.name, self.number) {
                    // An old process that still runs after a reload, or another HAProxy with the same name.
                    shared.metrics.refused("superseded");
                } else if let (Some(origin), Some(table)) = (self.origin, self.tables.get(&table.id)) {
                    let entry = (update.key, update.values);
                    shared.reports.take(&self.name, table, entry, !self.taught, now);
                    let version = shared.version();
                    counters.learn(&State { origin, table, key: update.key, values: update.values, version }, now);
                }
                true
            }
            Event::Taught { .. } => {
                self.taught = true;
                if shared.sessions.is_latest(&self.name, self.number) {
                    shared.reports.taught(&self.name);
                }
                if let Some(origin) = self.origin.filter(|_| std::mem::take(&mut self.gives_back)) {
                    // Offences would count again when the present process counts on from what it is given back.
                    let lost = counters.lost(origin).into_iter().filter(|key| !shared.reports.has(&key.table));
                    self.lost = lost.collect();
                }
                false
            }
        }
    }

    /// The table that has the sums of `table`. A table with other keys cannot have them.
    fn sums(&self, table: &str, suffix: &str) -> Option<Arc<Definition>> {
        let of = |name: &str| self.tables.values().find(|known| known.short_name() == name);
        let sums = of(&format!("{table}{suffix}"))?;
        of(table).filter(|counted| counted.key == sums.key).map(|_| Arc::clone(sums))
    }

    fn define(&mut self, shared: &Shared, counters: &mut Counters, table: &Definition) {
        let name = table.short_name();
        self.unusable.remove(&table.id);
        let shared_table = Arc::new(table.clone());
        if name == shared.config.bans_table {
            let usable = table.key == KeyKind::Ipv6 && table.cells.iter().any(is_end);
            if !usable {
                let why = format!(
                    "the table `{name}` of HAProxy {} must be `type ipv6` and `store gpt0`; write it as `banmesh haproxy config --peers` \
                     prints it",
                    self.name
                );
                self.unusable.insert(table.id, why);
            }
            self.bans = usable.then_some(shared_table);
            return;
        }
        if let Some(why) = shared.reports.unusable(table, &self.name) {
            self.unusable.insert(table.id, why);
        }
        if let Some(origin) = self.origin {
            if name.ends_with(OTHERS) && self.others.is_none() {
                self.others = Some(counters.subscribe(Wants::Others(origin)));
            }
            if name.ends_with(AGGREGATE) && self.aggregate.is_none() {
                self.aggregate = Some(counters.subscribe(Wants::All));
            }
        }
        self.tables.insert(table.id, shared_table);
    }

    /// Notes an entry of the table of bans that HAProxy still has although it is not banned.
    fn foreign(&mut self, shared: &Shared, table: &Definition, key: &[u8], values: &[Value], wall: UnixMillis) {
        let until = table.cells.iter().zip(values).find(|(cell, _)| is_end(cell)).map(|(_, value)| *value);
        let (Some(Value::Number(until)), Ok(key)) = (until, Key::try_from(key)) else { return };
        let is_banned = until > u64::from(wall.second()) && key != SENTINEL;
        if is_banned && shared.bans.until(&key) == 0 && self.foreign.len() < MAX_FOREIGN {
            self.foreign.push_back(key);
        }
    }
}

/// Whether a cell holds the end of a ban: `gpt0`, or the first element of `gpt`, which HAProxy reads as `gpt0`.
const fn is_end(cell: &Cell) -> bool {
    cell.bit == GPT0 || (cell.bit == GPT && cell.element == 0)
}

/// Whether a table holds sums that this node writes.
pub(super) fn is_sum(name: &str) -> bool {
    name.ends_with(OTHERS) || name.ends_with(AGGREGATE)
}

fn page(room: u32) -> usize {
    usize::try_from(room).unwrap_or(usize::MAX).min(PAGE)
}

/// After which time all entries are sent again; never if the table keeps them.
fn refresh(table: &Definition) -> Option<Duration> {
    (table.expire > 0).then(|| Duration::from_millis(table.expire / 3).clamp(Duration::from_secs(1), MAX_REFRESH))
}

#[cfg(test)]
mod tests;
