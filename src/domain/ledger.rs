//! Every decision that changes the ban table: new bans with their escalation, unbans, allowlist entries, and what other nodes wrote.
//!
//! One owner calls it, one change after the other; it returns the changes for the shells to publish, to journal and to
//! send on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ban::{BanEntry, By, Cause, Decision, Effective, Register, Registers, State};
use super::exemptions::{Exempt, Exemptions, MAX_ALLOWED};
use super::hlc::{Clock, Hlc, Stamp};
use super::node::NodeId;
use super::policy::BanPolicy;
use super::table::{Merged, Table};
use super::target::Target;
use super::time::{Expiry, UnixMillis};

mod clock_steps;
mod refused;

pub use refused::Refused;

/// What bounds a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At this many entries new automatic bans are refused; nothing is ever evicted.
    pub max_bans: usize,
    /// A stamp further ahead of our clock waits until the clock reaches it.
    pub max_clock_drift: Duration,
    /// An unban is kept at least this long (`ban.max_ban_time`), because it must win over every late copy of the ban.
    pub max_ban_time: Duration,
}

/// An entry that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose entry.
    pub target: Target,
    /// What the table held before.
    pub before: Option<BanEntry>,
    /// What it holds now.
    pub after: BanEntry,
}

impl Change {
    /// What the change means at `now` to those who follow the table: the target is banned, allowed or free in another way than
    /// before. `None` when only the retention moved, or when what arrived decides nothing.
    pub fn news(&self, now: UnixMillis) -> Option<Effective<'_>> {
        let after = self.after.effective(now);
        let known = self.before.as_ref().is_some_and(|before| before.effective(now) == after);
        (!known && !matches!(after.state, State::Expired { .. })).then_some(after)
    }
}

/// What became of an entry that another node wrote.
#[allow(
    clippy::large_enum_variant,
    reason = "one exists at a time, and a box would cost an allocation per merged entry"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It changed the table.
    Changed(Change),
    /// It was known.
    Known,
    /// Its time to be remembered was over.
    Forgotten,
    /// Its stamp lies further ahead of our clock than is allowed: it waits.
    Early,
    /// As above, and the place to wait is full: repair brings it again.
    Dropped,
}

/// The table with the clock that stamps its writes.
#[derive(Debug)]
pub struct Ledger {
    node: NodeId,
    limits: Limits,
    clock: Clock,
    table: Table,
    exemptions: Exemptions,
    early: BTreeMap<(Hlc, Target), BanEntry>,
}

/// How many early entries may wait.
const MAX_EARLY: usize = 65_536;

/// What a write puts into one of the two registers.
enum Write {
    Operator(Decision),
    Filter(Expiry),
}

impl Write {
    /// The cause with the kind of author that belongs to the register: replicas derive one from the other.
    fn cause_of(&self, cause: Arc<Cause>) -> Arc<Cause> {
        let by = match (self, &cause.by) {
            (Self::Operator(_), By::Filter(name)) => By::Operator(name.clone()),
            (Self::Filter(_), By::Operator(name)) => By::Filter(name.clone()),
            _ => return cause,
        };
        Arc::new(Cause { by, reason: cause.reason.clone() })
    }
}

impl From<Decision> for Write {
    fn from(decision: Decision) -> Self {
        Self::Operator(decision)
    }
}

/// What an operator asks for with a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanTerms {
    /// The end of the ban.
    pub until: Expiry,
    /// For how long after the ban begins the history of the target counts.
    pub remember: Duration,
    /// Whether the ban may end before one that is in force.
    pub replace: bool,
}

impl BanTerms {
    /// A ban until then that does not replace a longer one; the history counts for `remember`.
    pub const fn new(until: Expiry, remember: Duration) -> Self {
        Self { until, remember, replace: false }
    }
}

impl Ledger {
    /// An empty ledger of `node`, whose clock continues after `last` (the journal's, or the default).
    pub fn new(node: NodeId, limits: Limits, last: Hlc) -> Self {
        Self {
            node,
            limits,
            clock: Clock::resume(last),
            table: Table::default(),
            exemptions: Exemptions::default(),
            early: BTreeMap::new(),
        }
    }

    /// The author of local writes.
    pub const fn node(&self) -> &NodeId {
        &self.node
    }

    /// The table.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// The allowlist entries of operators.
    pub const fn exemptions(&self) -> &Exemptions {
        &self.exemptions
    }

    /// Drops allowlist entries that have expired, and returns what operators exempt if that has changed since the last call.
    pub fn take_exempt(&mut self, now: UnixMillis) -> Option<Exempt> {
        self.settle_exemptions(now);
        self.exemptions.take_changed()
    }

    /// The greatest stamp so far: what the journal keeps.
    pub const fn last_stamp(&self) -> Hlc {
        self.clock.last()
    }

    /// The limits in force.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// New limits, after a reload.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Entries that wait for our clock.
    pub fn early(&self) -> usize {
        self.early.len()
    }

    /// The number of bans in force.
    pub fn active(&mut self, now: UnixMillis) -> usize {
        self.table.active(now)
    }

    /// Bans an offender automatically: for longer every time, and not at all while it is banned.
    ///
    /// # Errors
    /// [`Refused::AlreadyBanned`], [`Refused::Allowed`], [`Refused::Full`] and those of every write: [`Refused::Clock`], [`Refused::Unchanged`].
    pub fn ban_offender(
        &mut self,
        target: Target,
        cause: Cause,
        policy: &BanPolicy,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let known = self.known(target, now);
        if let Some(State::Banned { until }) = known.as_ref().map(|entry| entry.state(now)) {
            return Err(Refused::AlreadyBanned { target, until });
        }
        self.settle_exemptions(now);
        if let Some(by) = self.exemptions.exempt().covering(target) {
            return Err(Refused::Allowed { target, by });
        }
        self.room_for(target, known.as_ref())?;
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let until = Expiry::at(now.plus(policy.ban_time(bans)));
        let keep = keep_for(until, now.plus(policy.max_memory_ttl));
        self.write(target, Write::Filter(until), bans.saturating_add(1), keep, cause, now)
    }

    /// Bans as an operator says. A ban in force that ends later stands, unless the terms say `replace`; one that ends later by no more
    /// than `max_clock_drift` counts as the same request to a node whose clock is ahead, and keeps its end. An allowlist entry of
    /// exactly `target` ends. Repeating a ban, or extending one in force, does not raise the step of the escalation.
    ///
    /// # Errors
    /// [`Refused::BannedLonger`], [`Refused::Full`] and those of every write: [`Refused::Clock`], [`Refused::Unchanged`].
    pub fn ban(
        &mut self,
        target: Target,
        terms: BanTerms,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let known = self.known(target, now);
        let in_force = known.as_ref().map(|entry| entry.effective(now));
        let in_force = in_force.and_then(|effective| match effective.state {
            State::Banned { until } => Some((until, effective.cause)),
            _ => None,
        });
        let until = match in_force {
            Some((until, cause)) if until > terms.until && !terms.replace => {
                if !self.repeats(until, terms.until) {
                    return Err(Refused::BannedLonger { target, until, cause: Arc::clone(cause) });
                }
                until
            }
            _ => terms.until,
        };
        self.room_for(target, known.as_ref())?;
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let bans = if in_force.is_some() { bans } else { bans.saturating_add(1) };
        let keep = keep_for(until, now.plus(terms.remember));
        self.write(target, Write::Operator(Decision::Banned { until }), bans, keep, cause, now)
    }

    /// Whether a ban in force until `known` may be the same request, made on a node whose clock is ahead of ours.
    fn repeats(&self, known: Expiry, asked: Expiry) -> bool {
        let ahead = u64::from(known.seconds().saturating_sub(asked.seconds()));
        known != Expiry::NEVER && ahead <= self.limits.max_clock_drift.as_secs()
    }

    /// Ends the ban of exactly `target`, everywhere.
    ///
    /// # Errors
    /// [`Refused::NotBanned`] and [`Refused::BannedWithNetwork`] when exactly this target is not banned; [`Refused::Unchanged`].
    pub fn unban(&mut self, target: Target, cause: impl Into<Arc<Cause>>, now: UnixMillis) -> Result<Change, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_banned(now)) else {
            self.settle_exemptions(now);
            return Err(match self.banned_network(target, now) {
                Some((network, until)) => Refused::BannedWithNetwork { target, network, until },
                None => Refused::NotBanned { target },
            });
        };
        self.write(target, Write::Operator(Decision::Unbanned), known.bans, self.keep_tombstone(now), cause, now)
    }

    /// Allows `target` until then: a ban of exactly it ends; automatic bans of it and of what lies in it are refused, and those
    /// that exist have no effect while the exemption lasts.
    ///
    /// # Errors
    /// [`Refused::TooManyAllowed`], [`Refused::Full`] and those of every write: [`Refused::Clock`], [`Refused::Unchanged`].
    pub fn allow(
        &mut self,
        target: Target,
        until: Expiry,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        // Finding exceptions walks the table: that waits until somebody asks who is exempt, for many may be allowed in a row.
        self.exemptions.expire(now);
        let known = self.known(target, now);
        if self.exemptions.len() >= MAX_ALLOWED && !known.as_ref().is_some_and(|entry| entry.is_allowed(now)) {
            return Err(Refused::TooManyAllowed { target });
        }
        self.room_for(target, known.as_ref())?;
        // Like an unban, it has to win over every late copy of a ban.
        let keep = keep_for(until, now.plus(self.limits.max_ban_time));
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        self.write(target, Write::Operator(Decision::Allowed { until }), bans, keep, cause, now)
    }

    /// Removes the allowlist entry of exactly `target`, everywhere.
    ///
    /// # Errors
    /// [`Refused::NotAllowed`] when exactly this target is not allowed; [`Refused::Unchanged`].
    pub fn disallow(&mut self, target: Target, cause: Cause, now: UnixMillis) -> Result<Change, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_allowed(now)) else {
            return Err(Refused::NotAllowed { target });
        };
        self.write(target, Write::Operator(Decision::Unbanned), known.bans, self.keep_tombstone(now), cause, now)
    }

    /// Extends the retention of an offender that was seen again: its history counts for `remember` from `now` on.
    ///
    /// Returns a change only when it moves the end by a twenty-fourth of `remember`, so that an offender who keeps on
    /// does not make every node write for every line.
    pub fn seen_again(&mut self, target: Target, remember: Duration, now: UnixMillis) -> Option<Change> {
        let before = self.known(target, now)?;
        let keep = Expiry::at_minute(now.plus(remember));
        let step = u32::try_from(remember.as_secs() / 24).unwrap_or(u32::MAX).max(60);
        if keep.seconds() <= before.keep.seconds().saturating_add(step) {
            return None;
        }
        match self.table.merge(target, &BanEntry { keep, ..before }, now) {
            Merged::Changed { before, after } => Some(Change { target, before, after }),
            Merged::Unchanged | Merged::Forgotten => None,
        }
    }

    /// Takes in what another node wrote. A register whose stamp is too far ahead of our clock waits alone.
    pub fn merge(&mut self, target: Target, entry: BanEntry, now: UnixMillis) -> Arrival {
        let drift = self.limits.max_clock_drift;
        if entry.latest().hlc.ahead_of(now) <= drift {
            self.clock.observe(entry.latest().hlc);
            return self.restore(target, &entry, now);
        }
        if entry.keep.has_passed(now) {
            return Arrival::Forgotten;
        }
        let known = self.known(target, now);
        if known.as_ref().is_some_and(|known| known.join(&entry) == *known) {
            return Arrival::Known;
        }
        // All clocks were set back, and this answers what was written before: an unban must not wait for the ban's time.
        let answered = known.map_or(now, |known| known.latest().hlc.millis().max(now));
        let (ripe, early) = split(entry, |stamp| stamp.hlc.ahead_of(answered) <= drift);
        let arrived = ripe.map(|ripe| {
            let stamp = ripe.latest().hlc;
            if stamp.ahead_of(now) <= drift {
                self.clock.observe(stamp);
            }
            self.restore(target, &ripe, now)
        });
        let held = early.map(|early| self.hold(target, early));
        match (arrived, held) {
            (Some(changed @ Arrival::Changed(_)), _) => changed,
            (_, Some(held)) => held,
            (Some(arrived), None) => arrived,
            (None, None) => Arrival::Known,
        }
    }

    /// Takes in what this node knew before: as [`Ledger::merge`], without doubts about its clock.
    pub fn restore(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Arrival {
        match self.table.merge(target, entry, now) {
            Merged::Unchanged => Arrival::Known,
            Merged::Forgotten => Arrival::Forgotten,
            Merged::Changed { before, after } => {
                self.exempt(target, before.as_ref(), &after, now);
                Arrival::Changed(Change { target, before, after })
            }
        }
    }

    /// Takes in the early entries whose time has come.
    pub fn ripen(&mut self, now: UnixMillis) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(first) = self.early.first_entry() {
            if first.key().0.ahead_of(now) > self.limits.max_clock_drift {
                break;
            }
            let ((_, target), entry) = first.remove_entry();
            if let Arrival::Changed(change) = self.merge(target, entry, now) {
                changes.push(change);
            }
        }
        changes
    }

    /// Removes entries whose retention has passed; looks at up to `budget` of them. Returns the targets.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) -> Vec<Target> {
        let removed = self.table.sweep(now, budget);
        for target in &removed {
            self.exemptions.update(*target, None, now);
        }
        removed
    }

    /// What is known of `target`. Returns `None` for entries whose retention has passed, even if not yet swept.
    fn known(&self, target: Target, now: UnixMillis) -> Option<BanEntry> {
        self.table.entry(target).filter(|entry| !entry.keep.has_passed(now))
    }

    fn room_for(&self, target: Target, known: Option<&BanEntry>) -> Result<(), Refused> {
        if known.is_none() && self.table.len() >= self.limits.max_bans {
            return Err(Refused::Full { target, max: self.limits.max_bans });
        }
        Ok(())
    }

    /// The narrowest network around `target` that is banned, unless an exemption makes that ban void for `target`.
    fn banned_network(&self, target: Target, now: UnixMillis) -> Option<(Target, Expiry)> {
        if self.exemptions.exempt().covering(target).is_some() {
            return None;
        }
        let widest = if target.is_ipv4() { 96 } else { 0 };
        let networks = (widest..target.prefix128()).rev().map(|prefix| Target::from_bits(target.bits(), prefix));
        networks.into_iter().find_map(|network| match self.known(network, now)?.state(now) {
            State::Banned { until } => Some((network, until)),
            _ => None,
        })
    }

    /// Until when a tombstone written at `now` must be kept.
    fn keep_tombstone(&self, now: UnixMillis) -> Expiry {
        Expiry::at_minute(now.plus(self.limits.max_ban_time))
    }

    /// Lets an early entry wait for our clock.
    fn hold(&mut self, target: Target, entry: BanEntry) -> Arrival {
        let key = (entry.latest().hlc, target);
        if self.early.len() >= MAX_EARLY && !self.early.contains_key(&key) {
            return Arrival::Dropped;
        }
        let waiting = self.early.entry(key).or_insert_with(|| entry.clone());
        *waiting = waiting.join(&entry);
        Arrival::Early
    }

    /// Writes one register, stamped after everything that this node has seen in either register, and keeps the entry until `keep`
    /// at least.
    fn write(
        &mut self,
        target: Target,
        write: Write,
        bans: u32,
        keep: Expiry,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        // A peer with a slower clock may still hold an entry that has expired here, so the new stamp must exceed that one's, too.
        let stored = self.table.entry(target);
        let seen = stored.as_ref().map(|entry| entry.latest().hlc);
        let stamp = Stamp { hlc: self.clock.tick(now, seen, self.limits.max_clock_drift)?, node: self.node.clone() };
        let cause = write.cause_of(cause.into());
        let entry = match write {
            Write::Operator(decision) => BanEntry::by_operator(stamp, decision, cause, bans, keep),
            Write::Filter(until) => BanEntry::by_filter(stamp, until, cause, bans, keep),
        };
        match self.table.merge(target, &entry, now) {
            Merged::Changed { before, after } => {
                self.exempt(target, before.as_ref(), &after, now);
                Ok(Change { target, before, after })
            }
            Merged::Unchanged | Merged::Forgotten => Err(Refused::Unchanged { target }),
        }
    }

    /// Keeps the allowlist in step with an entry that changed.
    fn exempt(&mut self, target: Target, before: Option<&BanEntry>, after: &BanEntry, now: UnixMillis) {
        if after.operator().is_some() || before.is_some_and(|before| before.operator().is_some()) {
            self.exemptions.update(target, Some(after), now);
        }
    }

    /// Drops expired allowlist entries, and finds the exceptions from new ones.
    fn settle_exemptions(&mut self, now: UnixMillis) {
        self.exemptions.expire(now);
        if self.exemptions.take_incomplete() {
            for (target, until) in self.table.operator_bans() {
                self.exemptions.except(target, Some(until), now);
            }
        }
    }
}

/// Divides an entry into the registers whose stamps fit and the others.
fn split(entry: BanEntry, fits: impl Fn(&Stamp) -> bool) -> (Option<BanEntry>, Option<BanEntry>) {
    let (bans, keep) = (entry.bans, entry.keep);
    let (operator, filter) = match entry.registers {
        Registers::Filter(filter) => (None, Some(filter)),
        Registers::Operator(operator) => (Some(operator), None),
        Registers::Both { operator, filter } => (Some(operator), Some(filter)),
    };
    fn part<T>(register: Option<Register<T>>, fits: bool) -> (Option<Register<T>>, Option<Register<T>>) {
        if fits { (register, None) } else { (None, register) }
    }
    let (operator, early_operator) = {
        let fit = operator.as_ref().is_some_and(|register| fits(&register.stamp));
        part(operator, fit)
    };
    let (filter, early_filter) = {
        let fit = filter.as_ref().is_some_and(|register| fits(&register.stamp));
        part(filter, fit)
    };
    (BanEntry::of(operator, filter, bans, keep), BanEntry::of(early_operator, early_filter, bans, keep))
}

/// The retention of a ban that ends at `until`: as long as it lasts and as long as the offender's history counts.
fn keep_for(until: Expiry, remember: UnixMillis) -> Expiry {
    if until == Expiry::NEVER {
        return Expiry::NEVER;
    }
    Expiry::at_minute(UnixMillis(u64::from(until.seconds()) * 1000)).max(Expiry::at_minute(remember))
}

/// Whether a change makes, ends or replaces an allowlist entry.
pub fn is_about_allowlist(change: &Change) -> bool {
    let allowed = |entry: &BanEntry| entry.allowed_until();
    let before = change.before.as_ref();
    let (was, is) = (before.and_then(allowed), allowed(&change.after));
    (was.is_some() || is.is_some()) && before.and_then(BanEntry::operator) != change.after.operator()
}

/// The cause of a ban by `filter` for what its `rule` saw.
pub fn cause_of_offence(filter: &str, rule: &str) -> Cause {
    // No counts and no line in it: a cause is shared by all entries that have it, and that is what keeps them small.
    Cause::new(By::Filter(filter.into()), rule)
}

#[cfg(test)]
mod tests;
