//! What the firewall does with its socket. Every call blocks for the time that the kernel needs.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::metrics::Metrics;
use super::socket::{Denied, FirewallError, Socket};
use crate::enforcement::follower::Comparison;
use banmesh_core::follow::{Allowlist, Change};
use banmesh_nftables::batch::{Batch, Element, Hook, OWNER, PERSIST, Question};
use banmesh_nftables::reply::{ElementFacts, Reply, RuleFacts, TableFacts};
use banmesh_nftables::ruleset::{Kind, Ruleset, SetName};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Elements in one transaction: it must fit into the socket's send buffer.
const ELEMENTS: usize = 1000;
/// How far an end in the kernel may be from the one in the table, in milliseconds.
const TOLERANCE_MS: u64 = 2000;

/// The firewall of this network namespace.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Socket,
    /// Kept open so that no second node on this host uses a table that cannot have an owner.
    _lock: Option<Socket>,
    rules: Ruleset,
    flags: u32,
    /// The handle of the table.
    table: Option<u64>,
    /// The sets that are being filled.
    next: BTreeSet<SetName>,
    generation: u8,
    metrics: Metrics,
}

/// Entries that the kernel must have, and targets that it must not have.
#[derive(Debug, Default)]
pub(super) struct Audit {
    pub(super) present: Vec<(Target, u32)>,
    pub(super) absent: Vec<Target>,
}

impl Kernel {
    /// Opens the socket, and finds out what the kernel can do.
    pub(super) fn open(rules: Ruleset, metrics: Metrics) -> Result<Self, FirewallError> {
        let mut socket = Socket::open()?;
        let persists = match probe(&mut socket, OWNER | PERSIST)? {
            Ok(()) => true,
            Err(Denied { position: 0, .. }) => return Err(FirewallError::NotPermitted),
            Err(_) => match probe(&mut socket, 0)? {
                Ok(()) => false,
                Err(denied) => return Err(FirewallError::Unsupported(denied.errno)),
            },
        };
        let lock = if persists {
            None
        } else {
            Some(Socket::lock()?.ok_or_else(|| FirewallError::Taken(rules.table.clone()))?)
        };
        let flags = if persists { OWNER | PERSIST } else { 0 };
        Ok(Self { socket, _lock: lock, rules, flags, table: None, next: BTreeSet::new(), generation: 0, metrics })
    }

    /// Makes the table, or takes it over, and begins to fill new sets. Those in force stay.
    pub(super) fn begin(&mut self, allowlist: &Allowlist) -> Result<(), FirewallError> {
        let (rules, flags) = (self.rules.clone(), self.flags);
        // A table that outlived its owner is taken over in a transaction of its own: the kernel takes no chains in the same one.
        let taken = match self.socket.commit(|batch| batch.table(&rules.table, flags))? {
            Ok(()) => self.socket.commit(|batch| rules.create(batch, flags))?,
            denied => denied,
        };
        match taken {
            Ok(()) => {}
            // Made by somebody else, without an owner or with another chain: it is replaced as a whole.
            Err(Denied { errno: Errno::EOPNOTSUPP | Errno::EEXIST, .. }) => {
                let replaced = self.socket.commit(|batch| {
                    batch.delete_table(&rules.table);
                    rules.create(batch, flags);
                })?;
                replaced.map_err(|denied| self.refused("replace the table", denied))?;
            }
            Err(denied) => return Err(self.refused("make the table", denied)),
        }
        self.table = self.facts()?.map(|table| table.handle);
        let used: BTreeSet<u8> = self.sets()?.iter().map(|set| set.generation).collect();
        self.generation = (0..SetName::GENERATIONS).find(|generation| !used.contains(generation)).unwrap_or_default();
        // Only possible if all of them are left from replacements that failed.
        if used.contains(&self.generation) {
            self.remove_unused()?;
        }
        self.next.clear();
        self.fill_allowlist(allowlist, self.generation)
    }

    /// Adds bans to the sets that are being filled.
    pub(super) fn fill(&mut self, page: &[(Target, u32)], now: UnixMillis) -> Result<(), FirewallError> {
        for chunk in page.chunks(ELEMENTS) {
            let (table, generation) = (self.rules.table.clone(), self.generation);
            let sets =
                by_set(chunk.iter().filter_map(|(target, until)| Some((*target, left(*until, now)?))), generation);
            let new: Vec<SetName> = sets.keys().filter(|set| !self.next.contains(set)).copied().collect();
            self.change_rules("add bans", |batch| {
                new.iter().for_each(|set| batch.set(&table, set));
                sets.iter().for_each(|(set, elements)| batch.add(&table, set, elements.iter().copied()));
            })?;
            self.next.extend(new);
        }
        Ok(())
    }

    /// Puts the filled sets in force and removes all others, in one transaction.
    pub(super) fn commit(&mut self) -> Result<(), FirewallError> {
        self.count()?;
        let old = self.sets()?;
        self.rules.sets = std::mem::take(&mut self.next);
        self.apply_rules(&old, |_| ())
    }

    /// Applies changes in one transaction.
    pub(super) fn change(&mut self, changes: &[Change], now: UnixMillis) -> Result<(), FirewallError> {
        let (mut put, mut removed) = (Vec::new(), Vec::new());
        for change in changes {
            match *change {
                Change::Add(target, until) | Change::Set(target, until) => match left(until, now) {
                    Some(left) => put.push((target, left)),
                    None => removed.push((target, None)),
                },
                Change::Remove(target) => removed.push((target, None)),
            }
        }
        let put = by_set(put.into_iter(), self.generation);
        let removed = by_set(removed.into_iter(), self.generation);
        let new: Vec<SetName> = put.keys().filter(|set| !self.rules.sets.contains(set)).copied().collect();
        let (table, known) = (self.rules.table.clone(), self.rules.sets.clone());
        let write = |batch: &mut Batch| {
            new.iter().for_each(|set| batch.set(&table, set));
            put.iter().for_each(|(set, elements)| batch.put(&table, set, elements));
            for (set, elements) in removed.iter().filter(|(set, _)| known.contains(set)) {
                batch.take(&table, set, elements.iter().map(|(target, _)| *target));
            }
        };
        if new.is_empty() {
            self.change_rules("change bans", write)
        } else {
            self.count()?;
            self.rules.sets.extend(new.iter().copied());
            self.apply_rules(&BTreeSet::new(), write)
        }
    }

    /// Replaces the allowlist.
    pub(super) fn allow(&mut self, allowlist: &Allowlist) -> Result<(), FirewallError> {
        let old: BTreeSet<SetName> = self.sets()?.into_iter().filter(|set| set.kind != Kind::Ban).collect();
        let used: BTreeSet<u8> = old.iter().map(|set| set.generation).collect();
        let generation = (0..SetName::GENERATIONS).find(|generation| !used.contains(generation)).unwrap_or_default();
        self.next.clear();
        self.fill_allowlist(allowlist, generation)?;
        self.count()?;
        let new = std::mem::take(&mut self.next);
        self.rules.sets.retain(|set| set.kind == Kind::Ban);
        self.rules.sets.extend(new);
        self.apply_rules(&old, |_| ())
    }

    /// Looks whether the table is there, with its rules and with the elements of `audit`. Also reads the counters.
    pub(super) fn look(&mut self, audit: &Audit, now: UnixMillis) -> Result<Comparison, FirewallError> {
        let name = self.rules.table.clone();
        match self.facts()? {
            None => return Ok(Comparison::Differs(format!("somebody removed the table inet {name}"))),
            Some(table) if Some(table.handle) != self.table => {
                return Ok(Comparison::Differs(format!("somebody removed the table inet {name} and made it again")));
            }
            Some(_) => {}
        }
        let (found, expected) = (self.count()?, self.rules.rules().len() * self.rules.hooks.len());
        if found != expected {
            return Ok(Comparison::Differs(format!(
                "somebody changed the rules of the table inet {}: {found} are there instead of {expected}",
                self.rules.table
            )));
        }
        for (target, until) in &audit.present {
            let expected = left(*until, now);
            // It may end while this looks.
            if expected.is_none_or(|left| left.is_some_and(|left| left < TOLERANCE_MS)) {
                continue;
            }
            let Some(expected) = expected else { continue };
            let found = self.element(*target)?;
            let right = found.as_ref().is_some_and(|found| match (found.left, expected) {
                (None, None) => true,
                (Some(found), Some(expected)) => found.abs_diff(expected) <= TOLERANCE_MS,
                _ => false,
            });
            if !right {
                let found = found.map_or_else(
                    || "it is not there".to_owned(),
                    |found| match found.left {
                        Some(left) => format!("it ends in {} s", left / 1000),
                        None => "it never ends".to_owned(),
                    },
                );
                return Ok(Comparison::Differs(format!("{target} does not have the end that it was given: {found}")));
            }
        }
        for target in &audit.absent {
            let found = self.element(*target)?;
            if found.is_some_and(|found| found.left.is_none_or(|left| left > TOLERANCE_MS)) {
                return Ok(Comparison::Differs(format!("{target} is in the firewall, but not banned")));
            }
        }
        Ok(if audit.present.is_empty() { Comparison::Unchanged } else { Comparison::Verified })
    }

    fn fill_allowlist(&mut self, allowlist: &Allowlist, generation: u8) -> Result<(), FirewallError> {
        let configured = allowlist.configured.iter().map(|target| (Kind::Allow, *target));
        let operators = allowlist
            .operators
            .iter()
            .map(|(target, allowed)| (if *allowed { Kind::Permit } else { Kind::Except }, *target));
        let members: Vec<(SetName, Target)> =
            configured.chain(operators).map(|(kind, target)| (SetName::of(kind, target, generation), target)).collect();
        for chunk in members.chunks(ELEMENTS) {
            let mut sets: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
            for (set, target) in chunk {
                sets.entry(*set).or_default().push((*target, None));
            }
            let new: Vec<SetName> = sets.keys().filter(|set| !self.next.contains(set)).copied().collect();
            let table = self.rules.table.clone();
            self.change_rules("add the allowlist", |batch| {
                new.iter().for_each(|set| batch.set(&table, set));
                sets.iter().for_each(|(set, elements)| batch.add(&table, set, elements.iter().copied()));
            })?;
            self.next.extend(new);
        }
        Ok(())
    }

    /// Carries out `write` together with the replacement of all rules, and with the removal of those of `old` that are not in use.
    fn apply_rules(&mut self, old: &BTreeSet<SetName>, write: impl FnOnce(&mut Batch)) -> Result<(), FirewallError> {
        let rules = self.rules.clone();
        self.change_rules("change the rules", |batch| {
            write(batch);
            rules.replace_rules(batch);
            old.difference(&rules.sets).for_each(|set| batch.delete_set(&rules.table, set));
        })?;
        self.metrics.restarted();
        Ok(())
    }

    fn remove_unused(&mut self) -> Result<(), FirewallError> {
        let old = self.sets()?;
        let used: BTreeSet<SetName> =
            self.read_rules()?.iter().filter_map(|rule| rule.set.as_deref()?.parse::<SetName>().ok()).collect();
        let table = self.rules.table.clone();
        let kept: BTreeSet<u8> = used.iter().map(|set| set.generation).collect();
        self.generation = (0..SetName::GENERATIONS).find(|generation| !kept.contains(generation)).unwrap_or_default();
        let generation = self.generation;
        self.change_rules("remove unused sets", |batch| {
            old.iter().filter(|set| set.generation == generation).for_each(|set| batch.delete_set(&table, set));
        })
    }

    /// Reads the counters of all rules. Returns the number of rules.
    fn count(&mut self) -> Result<usize, FirewallError> {
        let rules = self.read_rules()?;
        self.metrics.count(&rules);
        Ok(rules.len())
    }

    fn read_rules(&mut self) -> Result<Vec<RuleFacts>, FirewallError> {
        let mut all = Vec::new();
        for hook in self.rules.hooks.clone() {
            all.extend(rules(&mut self.socket, &self.rules.table, hook)?);
        }
        Ok(all)
    }

    fn facts(&mut self) -> Result<Option<TableFacts>, FirewallError> {
        table(&mut self.socket, &self.rules.table)
    }

    /// The sets in the table that this crate makes.
    fn sets(&mut self) -> Result<BTreeSet<SetName>, FirewallError> {
        let found = self.socket.ask(|number| Question::sets(number, &self.rules.table))?.unwrap_or_default();
        let name = |reply| match reply {
            Reply::Set(set) => set.name.parse().ok(),
            _ => None,
        };
        Ok(found.into_iter().filter_map(name).collect())
    }

    fn element(&mut self, target: Target) -> Result<Option<ElementFacts>, FirewallError> {
        let set = SetName::of(Kind::Ban, target, self.generation);
        if !self.rules.sets.contains(&set) {
            return Ok(None);
        }
        let found = self.socket.ask(|number| Question::element(number, &self.rules.table, &set, target))?;
        Ok(found.unwrap_or_default().into_iter().find_map(|reply| match reply {
            Reply::Element(element) => Some(element),
            _ => None,
        }))
    }

    fn change_rules(&mut self, what: &'static str, write: impl FnOnce(&mut Batch)) -> Result<(), FirewallError> {
        self.metrics.transaction();
        self.socket.commit(write)?.map_err(|denied| self.refused(what, denied))
    }

    fn refused(&self, what: &'static str, denied: Denied) -> FirewallError {
        match denied {
            Denied { position: 0, errno: Errno::EPERM } => FirewallError::NotPermitted,
            Denied { errno: Errno::EPERM, .. } => FirewallError::Taken(self.rules.table.clone()),
            Denied { errno, .. } => FirewallError::Refused { what, errno, table: self.rules.table.clone() },
        }
    }
}

/// The table with this name; `None` if there is none.
pub(super) fn table(socket: &mut Socket, name: &str) -> Result<Option<TableFacts>, FirewallError> {
    let found = socket.ask(|number| Question::table(number, name))?.unwrap_or_default();
    Ok(found.into_iter().find_map(|reply| match reply {
        Reply::Table(table) => Some(table),
        _ => None,
    }))
}

/// The rules of a chain.
pub(super) fn rules(socket: &mut Socket, table: &str, hook: Hook) -> Result<Vec<RuleFacts>, FirewallError> {
    let found = socket.ask(|number| Question::rules(number, table, hook))?.unwrap_or_default();
    let rule = |reply| match reply {
        Reply::Rule(rule) => Some(rule),
        _ => None,
    };
    Ok(found.into_iter().filter_map(rule).collect())
}

/// Whether the kernel can make what is needed, with these flags of the table. Everything is undone in the same transaction.
pub(super) fn probe(socket: &mut Socket, flags: u32) -> Result<Result<(), Denied>, FirewallError> {
    let table = format!("banmesh_probe_{}", std::process::id());
    let set = SetName { kind: Kind::Ban, ipv4: false, prefix: 64, generation: 0 };
    let hooks = vec![Hook::Prerouting];
    let rules = Ruleset { table: table.clone(), hooks, priority: 0, reject: false, sets: BTreeSet::from([set]) };
    socket.commit(|batch| {
        batch.table(&table, flags);
        batch.set(&table, &set);
        batch.chain(&table, Hook::Prerouting, 0);
        rules.replace_rules(batch);
        batch.delete_table(&table);
    })
}

/// How long a ban with this end still lasts, in milliseconds: `None` if it has ended, `Some(None)` if it never ends.
fn left(until: u32, now: UnixMillis) -> Option<Option<u64>> {
    match Expiry::from_seconds(until).remaining(now) {
        None => Some(None),
        Some(left) if left.is_zero() => None,
        Some(left) => Some(Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))),
    }
}

fn by_set(elements: impl Iterator<Item = Element>, generation: u8) -> BTreeMap<SetName, Vec<Element>> {
    let mut sets: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
    for (target, left) in elements {
        sets.entry(SetName::of(Kind::Ban, target, generation)).or_default().push((target, left));
    }
    sets
}
