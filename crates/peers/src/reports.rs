//! Offences that HAProxy counts in a table: how many events are new when an entry arrives.
//!
//! An entry says how high its counter is, not what happened. The value before is kept for every key, and the difference is new. When it
//! is not certain that events are new, they are not: an event that is missed delays a ban, but one that counts twice bans wrongly.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::table::{Cell, Definition, GPC, GPC0, KeyKind};
use crate::update::Value;

/// The most processes.
pub const MAX_PROCESSES: usize = 64;
/// The most tables of a process.
pub const MAX_TABLES: usize = 16;
/// HAProxy's clock for the life of an entry and ours for when it was received differ by less than this.
const MARGIN: Duration = Duration::from_secs(1);
/// An entry of a table without `expire` is remembered this long.
const NO_EXPIRE: Duration = Duration::from_secs(86_400);

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This many events are new; may be 0.
    New(u32),
    /// Not known, because too many keys, tables or processes are remembered.
    Dropped,
}

/// The counters of all processes as they were last.
#[derive(Debug)]
pub struct Reports {
    limit: usize,
    keys: usize,
    processes: BTreeMap<Box<str>, Process>,
    /// When expired keys were last removed because there was no room.
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Process {
    /// Whether it has once sent everything that it had. Before, an unknown entry may be an old one.
    is_known: bool,
    /// Whether every change of its entries arrives.
    is_open: bool,
    tables: BTreeMap<Box<str>, Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    last: HashMap<[u8; 16], Last, foldhash::fast::RandomState>,
    /// Until then, entries may exist that were dropped.
    uncertain: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    count: u64,
    at: Instant,
}

impl Reports {
    /// Remembers at most `limit` keys of all tables together. A key takes about 60 bytes.
    pub const fn new(limit: usize) -> Self {
        Self { limit, keys: 0, processes: BTreeMap::new(), swept: None }
    }

    /// Whether the entries of `table` can be read: its keys are addresses, and it has a column `gpc0` or an array `gpc`.
    pub fn is_usable(table: &Definition) -> bool {
        matches!(table.key, KeyKind::Ipv4 | KeyKind::Ipv6) && table.cells.iter().any(is_counter)
    }

    /// Takes an entry of the table `table` in the process `process`. `in_lesson` says that the process is sending everything that it has.
    pub fn take(
        &mut self,
        process: &str,
        table: &Definition,
        key: &[u8],
        values: &[Value],
        in_lesson: bool,
        now: Instant,
    ) -> Outcome {
        let cell = table.cells.iter().zip(values).find(|(cell, _)| is_counter(cell)).map(|(_, value)| *value);
        let (Some(Value::Number(count)), Some(address)) = (cell, address(key)) else { return Outcome::New(0) };
        let life = life(table);
        if self.keys >= self.limit && self.swept.is_none_or(|at| now >= at + MARGIN) {
            self.swept = Some(now);
            self.sweep(table.short_name(), life, now);
        }
        let is_full = self.keys >= self.limit;
        let Some(process) = entry(&mut self.processes, process, MAX_PROCESSES) else { return Outcome::Dropped };
        let is_known = process.is_known || !in_lesson;
        let Some(counted) = entry(&mut process.tables, table.short_name(), MAX_TABLES) else { return Outcome::Dropped };
        let key = address.octets();
        match counted.last.get_mut(&key) {
            Some(last) => {
                // What is in a lesson may have changed while there was no session.
                let has_ended = !in_lesson && now.saturating_duration_since(last.at) >= life + MARGIN;
                // A lower count is one of a new entry.
                let new = if has_ended { count } else { count.checked_sub(last.count).unwrap_or(count) };
                *last = Last { count, at: now };
                outcome(new)
            }
            None if is_full => {
                counted.uncertain = Some(now + life + MARGIN);
                Outcome::Dropped
            }
            None => {
                counted.last.insert(key, Last { count, at: now });
                self.keys += 1;
                let is_certain = is_known && counted.uncertain.is_none_or(|until| now >= until);
                outcome(if is_certain { count } else { 0 })
            }
        }
    }

    /// The process has sent everything that it had.
    pub fn taught(&mut self, process: &str) {
        if let Some(process) = entry(&mut self.processes, process, MAX_PROCESSES) {
            (process.is_known, process.is_open) = (true, true);
        }
    }

    /// The session with the process has ended, or another one begins. Until it has sent everything, changes may be missing.
    pub fn interrupted(&mut self, process: &str) {
        if let Some(process) = self.processes.get_mut(process) {
            process.is_open = false;
        }
    }

    /// The number of keys that are remembered.
    pub const fn len(&self) -> usize {
        self.keys
    }

    /// Whether no key is remembered.
    pub const fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Removes the keys of the table `name` that HAProxy has removed as well.
    fn sweep(&mut self, name: &str, life: Duration, now: Instant) {
        for process in self.processes.values_mut() {
            let Some(counted) = process.tables.get_mut(name) else { continue };
            let before = counted.last.len();
            counted.last.retain(|_, last| now.saturating_duration_since(last.at) < life + MARGIN);
            // Without a session, a removed entry may have lived on.
            process.is_known &= process.is_open || counted.last.len() == before;
        }
        let tables = self.processes.values().flat_map(|process| process.tables.values());
        self.keys = tables.map(|counted| counted.last.len()).sum();
    }
}

/// The address that a key of a table of addresses stands for; `None` for another key. IPv4 addresses are those of IPv6 that map them.
fn address(key: &[u8]) -> Option<Ipv6Addr> {
    if let Ok(octets) = <[u8; 4]>::try_from(key) {
        return Some(Ipv4Addr::from(octets).to_ipv6_mapped());
    }
    <[u8; 16]>::try_from(key).ok().map(Ipv6Addr::from)
}

/// The client that a key of a table of addresses stands for; `None` for another key.
pub fn client(key: &[u8]) -> Option<IpAddr> {
    address(key).map(|address| IpAddr::V6(address).to_canonical())
}

/// Whether a cell counts events: `gpc0`, or the first element of `gpc`, which HAProxy reads as `gpc0`.
const fn is_counter(cell: &Cell) -> bool {
    cell.bit == GPC0 || (cell.bit == GPC && cell.element == 0)
}

fn life(table: &Definition) -> Duration {
    if table.expire == 0 { NO_EXPIRE } else { Duration::from_millis(table.expire).min(NO_EXPIRE * 30) }
}

fn outcome(new: u64) -> Outcome {
    Outcome::New(u32::try_from(new).unwrap_or(u32::MAX))
}

/// The value of `name`, which is made if there is room for it.
fn entry<'a, V: Default>(all: &'a mut BTreeMap<Box<str>, V>, name: &str, most: usize) -> Option<&'a mut V> {
    if !all.contains_key(name) {
        if all.len() >= most {
            return None;
        }
        all.insert(name.into(), V::default());
    }
    all.get_mut(name)
}

#[cfg(test)]
mod tests;
