//! The ledger makes every change to the ban table: bans and their escalation, unbans, allowlist entries, and merges of entries from
//! other nodes.
//!
//! It has one owner, which applies one change after the other. Each call returns the changes, for the caller to publish to readers, to
//! write to the journal and to replicate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ban::{BanEntry, By, Cause, Decision, Effective, State};
use crate::exemptions::{Exempt, Exemptions, MAX_ALLOWED};
use crate::hlc::{Clock, Hlc, Stamp};
use crate::node::NodeId;
use crate::policy::BanPolicy;
use crate::table::{Merged, Table};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

mod clock_steps;
mod merge;
mod programs;
mod refused;
mod room;
mod together;

pub use merge::MAX_AHEAD;
pub use programs::Author;
pub use refused::Refused;
use room::Writer;
pub use room::{ALLOCATION_LIMIT, CUSTOMER_LIMIT, Limit};
pub use together::Bulk;
use together::{Ahead, Planned};

/// The limits of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most entries in the table (`ban.max_bans`). A sixteenth is reserved for operators and for other nodes: [`Limits::reserve`].
    /// When the rest is used, expired bans are dropped: [`Ledger::make_room`]. No ban in force ever is.
    pub max_bans: usize,
    /// An entry whose stamp is further ahead of this node's clock is held back until the clock catches up (`cluster.max_clock_drift`).
    pub max_clock_drift: Duration,
    /// A tombstone is kept at least this long, because it must win over every late copy of the ban (`ban.max_ban_time`).
    pub max_ban_time: Duration,
}

/// An entry that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The target of the entry.
    pub target: Target,
    /// The entry before, if the table had one.
    pub before: Option<BanEntry>,
    /// The entry after.
    pub after: BanEntry,
}

impl Change {
    /// Returns the state at `now` if the change altered it: the target is now banned, allowed or unbanned in a different way. Returns `None`
    /// if only the retention changed, or if the entry has expired.
    pub fn announcement(&self, now: UnixMillis) -> Option<Effective<'_>> {
        let after = self.after.effective(now);
        let known = self.before.as_ref().is_some_and(|before| before.effective(now) == after);
        (!known && !matches!(after.state, State::Expired { .. })).then_some(after)
    }
}

/// The outcome of merging an entry from another node.
#[allow(
    clippy::large_enum_variant,
    reason = "one exists at a time, and a box would cost an allocation per merged entry"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It changed the table.
    Changed(Change),
    /// The table already had it, or a later one.
    Known,
    /// Its retention has passed: it was ignored.
    PastRetention,
    /// Its stamp is ahead of this node's clock by more than [`Limits::max_clock_drift`]: it is held back.
    Early,
    /// Like [`Arrival::Early`], but too many entries are held back already: repair will send it again.
    Dropped,
    /// It exceeds a limit that applies to every node: it was ignored.
    Refused(Limit),
}

/// The ban table of one node, with the clock that stamps its writes.
#[derive(Debug)]
pub struct Ledger {
    node: NodeId,
    limits: Limits,
    clock: Clock,
    table: Table,
    exemptions: Exemptions,
    /// Entries held back because of their stamps, earliest first.
    early: BTreeMap<(Hlc, Target), BanEntry>,
    /// Until when [`Ledger::make_room`] does not search the table again.
    searched_until: UnixMillis,
}

/// A write to one of the two registers.
enum Write {
    Operator(Decision),
    Filter(Expiry),
}

impl Write {
    /// Returns `cause` with the kind of author that matches the register: replicas derive the kind from the register.
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

/// The terms of a ban by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanTerms {
    /// The end of the ban.
    pub until: Expiry,
    /// How long after the start of the ban the history of the target counts.
    pub remember: Duration,
    /// Whether the ban may replace one in force that ends later.
    pub replace: bool,
}

impl BanTerms {
    /// Creates the terms of a ban that does not replace a longer one.
    pub const fn new(until: Expiry, remember: Duration) -> Self {
        Self { until, remember, replace: false }
    }
}

impl Ledger {
    /// Creates an empty ledger of `node`. Its clock continues after `last`: the value from the journal, or the default.
    pub fn new(node: NodeId, limits: Limits, last: Hlc) -> Self {
        Self {
            node,
            limits,
            clock: Clock::resume(last),
            table: Table::default(),
            exemptions: Exemptions::default(),
            early: BTreeMap::new(),
            searched_until: UnixMillis(0),
        }
    }

    /// Begins the process with this `generation`; see [`Clock::begin_process`].
    pub fn begin_process(&mut self, generation: u64) {
        self.clock.begin_process(generation);
    }

    /// Returns the author of local writes.
    pub const fn node(&self) -> &NodeId {
        &self.node
    }

    /// Returns the ban table.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Returns the allowlist entries of operators.
    pub const fn exemptions(&self) -> &Exemptions {
        &self.exemptions
    }

    /// Removes expired allowlist entries, and returns a copy of the allowlist for lookups if it has changed since the last call.
    pub fn take_exempt(&mut self, now: UnixMillis) -> Option<Exempt> {
        self.settle_exemptions(now);
        self.exemptions.take_changed()
    }

    /// Returns the latest reading of the logical clock, which the journal keeps.
    pub const fn last_stamp(&self) -> Hlc {
        self.clock.last()
    }

    /// Returns the limits in force.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Replaces the limits, after a reload.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns the number of entries that are held back until this node's clock catches up.
    pub fn early(&self) -> usize {
        self.early.len()
    }

    /// Returns the number of bans in force.
    pub fn active(&mut self, now: UnixMillis) -> usize {
        self.table.active(now)
    }

    /// Bans an offender automatically. Each further ban is longer; a target that is already banned is not banned again. If
    /// too many networks of one IPv6 allocation are in the table ([`CUSTOMER_LIMIT`], [`ALLOCATION_LIMIT`]), the allocation is banned instead.
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
        self.settle_exemptions(now);
        if let Some(by) = self.exemptions.exempt().covering(target) {
            return Err(Refused::Allowed { target, by });
        }
        let mut known = self.known(target, now);
        let banned = known.as_ref().is_some_and(|entry| entry.is_banned(now));
        let aggregate = if banned { target } else { self.aggregate(target) };
        if aggregate != target {
            known = self.known(aggregate, now);
        }
        let target = aggregate;
        if let Some(State::Banned { until }) = known.as_ref().map(|entry| entry.state(now)) {
            return Err(Refused::AlreadyBanned { target, until });
        }
        self.room_for(target, Writer::Filter, 0)?;
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let until = Expiry::at(now.plus(policy.ban_time(bans)));
        let keep = keep_for(until, now.plus(policy.max_memory_ttl));
        self.write(target, Write::Filter(until), bans.saturating_add(1), keep, cause, now)
    }

    /// Bans `target` for an operator, and removes an allowlist entry of exactly `target`.
    ///
    /// A ban in force that ends later is kept and this one refused, unless the terms say `replace`. If it ends later by at most
    /// `max_clock_drift`, it counts as the same request made on a node whose clock is ahead: the write succeeds and keeps that end.
    /// Repeating or extending a ban in force does not raise the step of the escalation.
    ///
    /// # Errors
    /// [`Refused::BannedLonger`], [`Refused::TooWide`], [`Refused::Full`] and those of every write: [`Refused::Clock`],
    /// [`Refused::Unchanged`].
    pub fn ban(
        &mut self,
        target: Target,
        terms: BanTerms,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let planned = self.plan_ban(target, terms, Ahead::default(), now)?;
        self.carry_out(target, planned, cause, now)
    }

    fn plan_ban(&self, target: Target, terms: BanTerms, ahead: Ahead, now: UnixMillis) -> Result<Planned, Refused> {
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
        self.may_add(target, Writer::Operator, ahead)?;
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let bans = if in_force.is_some() { bans } else { bans.saturating_add(1) };
        // Whatever ended a longer ban must win over late copies of it, and must not be dropped as history: see `retention`.
        let ended = known.as_ref().is_some_and(|known| !known.is_history() || known.end() > until);
        let keep = if ended { Expiry::NEVER } else { keep_for(until, now.plus(terms.remember)) };
        Ok(Planned::new(Write::Operator(Decision::Banned { until }), bans, keep))
    }

    /// Returns `true` if a ban in force until `known` may be the same request, made on a node whose clock is ahead of this one's.
    fn repeats(&self, known: Expiry, asked: Expiry) -> bool {
        let ahead = u64::from(known.seconds().saturating_sub(asked.seconds()));
        known != Expiry::NEVER && ahead <= self.limits.max_clock_drift.as_secs()
    }

    /// Removes the ban of exactly `target` on all nodes.
    ///
    /// # Errors
    /// [`Refused::NotBanned`] and [`Refused::BannedWithNetwork`] when exactly this target is not banned; [`Refused::Unchanged`].
    pub fn unban(&mut self, target: Target, cause: impl Into<Arc<Cause>>, now: UnixMillis) -> Result<Change, Refused> {
        let planned = self.plan_unban(target, now)?;
        self.carry_out(target, planned, cause, now)
    }

    fn plan_unban(&mut self, target: Target, now: UnixMillis) -> Result<Planned, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_banned(now)) else {
            self.settle_exemptions(now);
            return Err(match self.banned_network(target, now) {
                Some((network, until)) => Refused::BannedWithNetwork { target, network, until },
                None => Refused::NotBanned { target },
            });
        };
        Ok(Planned::new(Write::Operator(Decision::Unbanned), known.bans, self.keep_tombstone(now)))
    }

    /// Adds an allowlist entry for `target`, and removes a ban of exactly `target`. While the entry lasts, automatic bans of `target` and of
    /// targets inside it are refused, and existing ones have no effect.
    ///
    /// # Errors
    /// [`Refused::TooManyAllowed`], [`Refused::TooWide`], [`Refused::Full`] and those of every write: [`Refused::Clock`], [`Refused::Unchanged`].
    pub fn allow(
        &mut self,
        target: Target,
        until: Expiry,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let planned = self.plan_allow(target, until, Ahead::default(), now)?;
        self.carry_out(target, planned, cause, now)
    }

    fn plan_allow(&mut self, target: Target, until: Expiry, ahead: Ahead, now: UnixMillis) -> Result<Planned, Refused> {
        // Finding the exceptions scans the table, so it is deferred until the allowlist is read: many entries may be added in a row.
        self.exemptions.expire(now);
        let known = self.known(target, now);
        let listed = self.exemptions.len().saturating_add(ahead.allowed);
        if listed >= MAX_ALLOWED && !known.as_ref().is_some_and(|entry| entry.is_allowed(now)) {
            return Err(Refused::TooManyAllowed { target });
        }
        self.may_add(target, Writer::Operator, ahead)?;
        // Like a tombstone, the entry must win over every late copy of a ban.
        let keep = keep_for(until, now.plus(self.limits.max_ban_time));
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        Ok(Planned::new(Write::Operator(Decision::Allowed { until }), bans, keep))
    }

    /// Removes the allowlist entry of exactly `target` on all nodes.
    ///
    /// # Errors
    /// [`Refused::NotAllowed`] when exactly this target is not allowed; [`Refused::Unchanged`].
    pub fn disallow(&mut self, target: Target, cause: Cause, now: UnixMillis) -> Result<Change, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_allowed(now)) else {
            return Err(Refused::NotAllowed { target });
        };
        self.write(target, Write::Operator(Decision::Unbanned), known.bans, self.keep_tombstone(now), cause, now)
    }

    /// Extends the retention of an offender that offended again: its history counts for `remember` from `now` on.
    ///
    /// The retention changes only if that extends it by more than one twenty-fourth of `remember`, so a persistent offender does not
    /// cause a write on every node for every line.
    pub fn seen_again(&mut self, target: Target, remember: Duration, now: UnixMillis) -> Option<Change> {
        let before = self.known(target, now)?;
        let keep = Expiry::at_minute(now.plus(remember));
        let step = u32::try_from(remember.as_secs() / 24).unwrap_or(u32::MAX).max(60);
        if keep.seconds() <= before.keep.seconds().saturating_add(step) {
            return None;
        }
        match self.table.merge(target, &BanEntry { keep, ..before }, now) {
            Merged::Changed { before, after } => Some(Change { target, before, after }),
            Merged::Unchanged | Merged::PastRetention => None,
        }
    }

    /// Examines up to `budget` entries, removes those whose retention has passed, and returns their targets.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) -> Vec<Target> {
        let removed = self.table.sweep(now, budget);
        for target in &removed {
            self.exemptions.update(*target, None, now);
        }
        removed
    }

    /// Returns the entry of `target`, or `None` if its retention has passed, even if it has not been swept yet.
    fn known(&self, target: Target, now: UnixMillis) -> Option<BanEntry> {
        self.table.entry(target).filter(|entry| !entry.retention(self.table.cut()).has_passed(now))
    }

    /// Returns the narrowest banned network that contains `target` and the end of its ban, or `None` if `target` is exempt from it.
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

    /// Returns the retention of a tombstone written at `now`.
    fn keep_tombstone(&self, now: UnixMillis) -> Expiry {
        Expiry::at_minute(now.plus(self.limits.max_ban_time))
    }

    /// Writes one register, with a stamp after those of both registers of the entry, and extends the retention to `keep` if that is later.
    fn write(
        &mut self,
        target: Target,
        write: Write,
        bans: u32,
        keep: Expiry,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        // A peer with a slower clock may still have an entry that has expired here, so the new stamp must be greater than that one's.
        let stored = self.table.entry(target);
        let seen = stored.as_ref().map(|entry| entry.latest().hlc);
        let hlc = self.clock.tick(now, seen, self.limits.max_clock_drift)?;
        self.write_at(hlc, target, write, (bans, keep), cause.into(), now)
    }

    /// Writes one register with the reading `hlc`, which must be greater than those of both registers of the entry.
    fn write_at(
        &mut self,
        hlc: Hlc,
        target: Target,
        write: Write,
        (bans, keep): (u32, Expiry),
        cause: Arc<Cause>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let stamp = Stamp { hlc, node: self.node.clone() };
        let cause = write.cause_of(cause);
        let entry = match write {
            Write::Operator(decision) => BanEntry::by_operator(stamp, decision, cause, bans, keep),
            Write::Filter(until) => BanEntry::by_filter(stamp, until, cause, bans, keep),
        };
        match self.table.merge(target, &entry, now) {
            Merged::Changed { before, after } => {
                self.exempt(target, before.as_ref(), &after, now);
                Ok(Change { target, before, after })
            }
            Merged::Unchanged | Merged::PastRetention => Err(Refused::Unchanged { target }),
        }
    }

    /// Updates the allowlist after an entry has changed.
    fn exempt(&mut self, target: Target, before: Option<&BanEntry>, after: &BanEntry, now: UnixMillis) {
        if after.operator().is_some() || before.is_some_and(|before| before.operator().is_some()) {
            self.exemptions.update(target, Some(after), now);
        }
    }

    /// Removes expired allowlist entries, and finds the exceptions from new ones.
    fn settle_exemptions(&mut self, now: UnixMillis) {
        self.exemptions.expire(now);
        if self.exemptions.take_incomplete() {
            for (target, until) in self.table.operator_bans() {
                self.exemptions.except(target, Some(until), now);
            }
        }
    }
}

/// Returns the retention of a ban that ends at `until`: the later of its end and of the time until which the offender's history counts.
fn keep_for(until: Expiry, remember: UnixMillis) -> Expiry {
    if until == Expiry::NEVER {
        return Expiry::NEVER;
    }
    Expiry::at_minute(UnixMillis(u64::from(until.seconds()) * 1000)).max(Expiry::at_minute(remember))
}

/// Returns `true` if a change adds, removes or replaces an allowlist entry.
pub fn is_about_allowlist(change: &Change) -> bool {
    let allowed = |entry: &BanEntry| entry.allowed_until();
    let before = change.before.as_ref();
    let (was, is) = (before.and_then(allowed), allowed(&change.after));
    (was.is_some() || is.is_some()) && before.and_then(BanEntry::operator) != change.after.operator()
}

/// Returns the cause of a ban for an offence that `rule` of `filter` recognised.
pub fn cause_of_offence(filter: &str, rule: &str) -> Cause {
    // It contains no counts and no log line: entries with equal causes share one, which keeps them small.
    Cause::new(By::Filter(filter.into()), rule)
}

#[cfg(test)]
mod tests;
