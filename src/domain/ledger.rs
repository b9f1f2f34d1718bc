//! Every decision that changes the ban table: new bans with their escalation, lifts, and what other nodes wrote.
//!
//! One owner calls it, one change after the other; it returns the changes for the shells to publish, to journal and to
//! send on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::allowances::{Allowances, MAX_ALLOWANCES};
use super::ban::{BanEntry, By, Cause, State};
use super::hlc::{Clock, ClockExhausted, Hlc, Stamp};
use super::node::NodeId;
use super::policy::BanPolicy;
use super::table::{Merged, Table};
use super::target::Target;
use super::time::{Expiry, UnixMillis};

/// What bounds a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At this many entries new automatic bans are refused; nothing is ever evicted.
    pub max_bans: usize,
    /// A stamp further ahead of our clock waits until the clock reaches it.
    pub max_clock_drift: Duration,
    /// A lifted ban is remembered at least this long (`ban.max_ban_time`), for it must beat every late copy of the ban.
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

/// Why nothing was written, or not for certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An automatic ban met a ban that is in force: the offence changes nothing.
    #[error("{target} is banned already, until {until}")]
    AlreadyBanned {
        /// The target.
        target: Target,
        /// Until when.
        until: Expiry,
    },
    /// The table is full.
    #[error("the ban table is full: {max} entries (ban.max_bans); {target} was not banned")]
    Full {
        /// The target.
        target: Target,
        /// The limit.
        max: usize,
    },
    /// An automatic ban met an allowance.
    #[error("{target} is not banned: an operator has allowed {by}")]
    Allowed {
        /// The target.
        target: Target,
        /// What is allowed: the target itself or a network that holds it.
        by: Target,
    },
    /// There are as many allowances as there may be.
    #[error("there are {MAX_ALLOWANCES} allowances: {target} was not added")]
    TooManyAllowed {
        /// The target.
        target: Target,
    },
    /// There is no allowance to take back.
    #[error("no operator has allowed {target}")]
    NotAllowed {
        /// The target.
        target: Target,
    },
    /// There is no ban to lift.
    #[error("{target} is not banned")]
    NotBanned {
        /// The target.
        target: Target,
    },
    /// No stamp is left for the write.
    #[error(transparent)]
    Clock(#[from] ClockExhausted),
    /// It was written and is in force, here and on the nodes that hear of it, but the disk did not take it. Never from the
    /// ledger itself: who keeps the journal answers so.
    #[error(
        "the change of {target} is in force, but could not be saved: this node loses it if it ends before its disk works \
         again (its log says what is wrong)"
    )]
    NotSaved {
        /// The target.
        target: Target,
    },
}

/// What became of an entry that another node wrote.
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
    allowances: Allowances,
    early: BTreeMap<(Hlc, Target), BanEntry>,
}

/// How many early entries may wait.
const MAX_EARLY: usize = 65_536;

impl Ledger {
    /// An empty ledger of `node`, whose clock goes on after `last` (the journal's, or the default).
    pub fn new(node: NodeId, limits: Limits, last: Hlc) -> Self {
        Self {
            node,
            limits,
            clock: Clock::resume(last),
            table: Table::default(),
            allowances: Allowances::default(),
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

    /// Who is never banned by an operator's decision.
    pub const fn allowances(&self) -> &Allowances {
        &self.allowances
    }

    /// As [`Ledger::allowances`], to take what changed and to let those go that are over.
    pub const fn allowances_mut(&mut self) -> &mut Allowances {
        &mut self.allowances
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
    /// [`Refused::AlreadyBanned`], [`Refused::Allowed`] and [`Refused::Full`].
    pub fn ban_offender(
        &mut self,
        target: Target,
        cause: Cause,
        policy: &BanPolicy,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let known = self.known(target, now);
        if let Some(until) = known.as_ref().filter(|entry| entry.is_active(now)).and_then(BanEntry::until) {
            return Err(Refused::AlreadyBanned { target, until });
        }
        self.allowances.expire(now);
        if let Some(by) = self.allowances.covering(target) {
            return Err(Refused::Allowed { target, by });
        }
        if known.is_none() && self.table.len() >= self.limits.max_bans {
            return Err(Refused::Full { target, max: self.limits.max_bans });
        }
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let until = Expiry::at(now.plus(policy.ban_time(bans)));
        let keep = keep_for(until, now.plus(policy.max_memory_ttl));
        self.write(target, known, State::Active { until }, bans.saturating_add(1), keep, cause, now)
    }

    /// Bans as an operator says: `until` replaces whatever there was, an allowance of exactly `target` too, and `remember` says for how long after `now` the
    /// offender's history counts.
    ///
    /// # Errors
    /// [`Refused::Full`].
    pub fn ban(
        &mut self,
        target: Target,
        until: Expiry,
        remember: Duration,
        cause: Cause,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let known = self.known(target, now);
        if known.is_none() && self.table.len() >= self.limits.max_bans {
            return Err(Refused::Full { target, max: self.limits.max_bans });
        }
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let keep = keep_for(until, now.plus(remember));
        self.write(target, known, State::Active { until }, bans.saturating_add(1), keep, cause, now)
    }

    /// Takes a ban back, everywhere.
    ///
    /// # Errors
    /// [`Refused::NotBanned`] when no ban of exactly this target is in force.
    pub fn lift(&mut self, target: Target, cause: Cause, now: UnixMillis) -> Result<Change, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_active(now)) else {
            return Err(Refused::NotBanned { target });
        };
        let keep = known.keep.max(Expiry::at_minute(now.plus(self.limits.max_ban_time)));
        let bans = known.bans;
        self.write(target, Some(known), State::Lifted, bans, keep, cause, now)
    }

    /// Allows `target` until then: a ban of exactly it ends, automatic bans of it and of what lies in it are refused, and those
    /// that there are count for nothing while it holds.
    ///
    /// # Errors
    /// [`Refused::TooManyAllowed`] and [`Refused::Full`].
    pub fn allow(&mut self, target: Target, until: Expiry, cause: Cause, now: UnixMillis) -> Result<Change, Refused> {
        self.allowances.expire(now);
        let known = self.known(target, now);
        if self.allowances.len() >= MAX_ALLOWANCES && !known.as_ref().is_some_and(|entry| entry.is_allowed(now)) {
            return Err(Refused::TooManyAllowed { target });
        }
        if known.is_none() && self.table.len() >= self.limits.max_bans {
            return Err(Refused::Full { target, max: self.limits.max_bans });
        }
        // As with a lift: it has to beat every late copy of a ban.
        let keep = keep_for(until, now.plus(self.limits.max_ban_time));
        let keep = known.as_ref().map_or(keep, |entry| entry.keep.max(keep));
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        self.write(target, known, State::Allowed { until }, bans, keep, cause, now)
    }

    /// Takes an allowance back, everywhere.
    ///
    /// # Errors
    /// [`Refused::NotAllowed`] when no allowance of exactly this target is in force.
    pub fn disallow(&mut self, target: Target, cause: Cause, now: UnixMillis) -> Result<Change, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_allowed(now)) else {
            return Err(Refused::NotAllowed { target });
        };
        let keep = known.keep.max(Expiry::at_minute(now.plus(self.limits.max_ban_time)));
        let bans = known.bans;
        self.write(target, Some(known), State::Lifted, bans, keep, cause, now)
    }

    /// Writes an allowance again that `change` (another node's, just merged) has put an automatic ban in the place of: that node
    /// had not heard of the allowance, and no filter may overrule an operator. Every node that held the allowance does so; the
    /// writes say the same, so the join of them does too. To be called when all is merged that came together: what an operator
    /// decided after that ban stands.
    pub fn uphold(&mut self, change: &Change, now: UnixMillis) -> Option<Change> {
        let before = change.before.as_ref().filter(|before| before.is_allowed(now))?;
        let ban = self.known(change.target, now)?;
        if !matches!((ban.state, &ban.cause.by), (State::Active { .. }, By::Filter(_))) {
            return None;
        }
        let (bans, keep, cause) = (ban.bans, ban.keep, Cause::clone(&before.cause));
        self.write(change.target, Some(ban), before.state, bans, keep, cause, now).ok()
    }

    /// Remembers an offender that was seen again: its history counts for `remember` from `now` on.
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
        let after = BanEntry { keep, ..before };
        match self.table.merge(target, &after, now) {
            Merged::Changed { before, after } => Some(Change { target, before, after }),
            Merged::Unchanged | Merged::Forgotten => None,
        }
    }

    /// Takes in what another node wrote.
    pub fn merge(&mut self, target: Target, entry: BanEntry, now: UnixMillis) -> Arrival {
        let (hlc, drift) = (entry.stamp.hlc, self.limits.max_clock_drift);
        if hlc.ahead_of(now) > drift {
            if entry.keep.has_passed(now) {
                return Arrival::Forgotten;
            }
            let known = self.known(target, now);
            if known.as_ref().is_some_and(|known| known.join(&entry) == *known) {
                return Arrival::Known;
            }
            // All clocks were set back, and this answers what was written before: a lift must not wait for the ban's time.
            if known.is_some_and(|known| hlc.ahead_of(known.stamp.hlc.millis()) <= drift) {
                return self.restore(target, &entry, now);
            }
            if self.early.len() >= MAX_EARLY {
                return Arrival::Dropped;
            }
            let waiting = self.early.entry((hlc, target)).or_insert_with(|| entry.clone());
            *waiting = waiting.join(&entry);
            return Arrival::Early;
        }
        self.clock.observe(hlc);
        self.restore(target, &entry, now)
    }

    /// Takes in what this node knew before: as [`Ledger::merge`], without doubts about its clock.
    pub fn restore(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Arrival {
        match self.table.merge(target, entry, now) {
            Merged::Unchanged => Arrival::Known,
            Merged::Forgotten => Arrival::Forgotten,
            Merged::Changed { before, after } => {
                self.allowances.set(target, after.allowed_until(), now);
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

    /// Forgets entries whose time is over; looks at up to `budget` of them. Returns the targets.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) -> Vec<Target> {
        let forgotten = self.table.sweep(now, budget);
        for target in &forgotten {
            self.allowances.set(*target, None, now);
        }
        forgotten
    }

    /// What is to be remembered of `target`: nothing of what is over, whether it was swept already or not.
    fn known(&self, target: Target, now: UnixMillis) -> Option<BanEntry> {
        self.table.entry(target).filter(|entry| !entry.keep.has_passed(now))
    }

    #[expect(clippy::too_many_arguments, reason = "private: the fields of one entry, each with a type of its own")]
    fn write(
        &mut self,
        target: Target,
        before: Option<BanEntry>,
        state: State,
        bans: u32,
        keep: Expiry,
        cause: Cause,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        // What is over here may not be on a node whose clock is behind: it must be beaten all the same.
        let stored = self.table.entry(target).map(|entry| entry.stamp.hlc);
        let hlc = self.clock.tick(now, stored, self.limits.max_clock_drift)?;
        let cause = match &before {
            // One cause in memory for as long as it stays the same.
            Some(entry) if *entry.cause == cause => Arc::clone(&entry.cause),
            _ => Arc::new(cause),
        };
        let entry = BanEntry { stamp: Stamp { hlc, node: self.node.clone() }, state, bans, keep, cause };
        match self.table.merge(target, &entry, now) {
            Merged::Changed { before, after } => {
                self.allowances.set(target, after.allowed_until(), now);
                Ok(Change { target, before, after })
            }
            Merged::Unchanged | Merged::Forgotten => Ok(Change { target, before, after: entry }),
        }
    }
}

/// Until when a ban that ends at `until` is remembered: as long as it lasts and as long as the offender's history counts.
fn keep_for(until: Expiry, remember: UnixMillis) -> Expiry {
    if until == Expiry::NEVER {
        return Expiry::NEVER;
    }
    Expiry::at_minute(UnixMillis(u64::from(until.seconds()) * 1000)).max(Expiry::at_minute(remember))
}

/// Whether a change is about an allowance: one was made, taken back, or overruled.
pub fn is_about_allowance(change: &Change) -> bool {
    let allowed = |entry: &BanEntry| entry.allowed_until().is_some();
    allowed(&change.after) || change.before.as_ref().is_some_and(allowed)
}

/// The cause of a ban by `filter` for what its `rule` saw.
pub fn cause_of_offence(filter: &str, rule: &str) -> Cause {
    // No counts and no line in it: a cause is shared by all entries that have it, and that is what keeps them small.
    Cause::new(By::Filter(filter.into()), rule)
}

#[cfg(test)]
mod tests;
