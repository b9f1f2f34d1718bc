//! Merges entries from other nodes and from the journal into a ledger.

use std::time::Duration;

use super::{Arrival, Change, Ledger};
use crate::ban::{BanEntry, Decision, Register, Registers};
use crate::hlc::{Hlc, Stamp};
use crate::planted::{Fault, is_planted};
use crate::table::Merged;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// The most entries that may be held back.
const MAX_EARLY: usize = 65_536;

/// How many readings after the stamp of an entry from the future an answer to it may be stamped: those of one millisecond.
const ANSWERS: u64 = 1 << 16;

/// The furthest that a stamp may be ahead of this node's clock, even in an answer to an entry that is ahead as well.
pub const MAX_AHEAD: Duration = Duration::from_secs(86_400);

impl Ledger {
    /// Merges an entry from another node. If only one of its registers has a stamp too far ahead of this node's clock, only that register is
    /// held back.
    pub fn merge(&mut self, target: Target, entry: BanEntry, now: UnixMillis) -> Arrival {
        if is_planted(Fault::ForgetTombstone) && entry.operator().is_some_and(|o| o.value == Decision::Unbanned) {
            return Arrival::Known;
        }
        if is_planted(Fault::ClampStamp) && entry.latest().hlc.ahead_of(now) > self.limits.max_clock_drift {
            return self.restore(target, &clamped(entry, now), now);
        }
        if let Some(limit) = self.exceeded(target, &entry, now) {
            return Arrival::Refused(limit);
        }
        let drift = self.limits.max_clock_drift;
        if entry.latest().hlc.ahead_of(now) <= drift {
            self.clock.observe(entry.latest().hlc);
            return self.restore(target, &entry, now);
        }
        if entry.retention(self.table.cut()).has_passed(now) {
            return Arrival::PastRetention;
        }
        let known = self.known(target, now);
        if known.as_ref().is_some_and(|known| known.join(&entry) == *known) {
            return Arrival::Known;
        }
        // If all clocks were set back, an unban is stamped just after a ban from the future. It must not wait until the ban's time. Answers to
        // answers advance by single readings. A larger step would let one node move the stamps of a target ahead without limit.
        let answered = known.map_or(Hlc::default(), |known| known.latest().hlc);
        let answers =
            |stamp: &Stamp| stamp.hlc.0 <= answered.0.saturating_add(ANSWERS) && stamp.hlc.ahead_of(now) <= MAX_AHEAD;
        let (due, early) = split(entry, |stamp| stamp.hlc.ahead_of(now) <= drift || answers(stamp));
        let arrived = due.map(|due| {
            let stamp = due.latest().hlc;
            if stamp.ahead_of(now) <= drift {
                self.clock.observe(stamp);
            }
            self.restore(target, &due, now)
        });
        let held = early.map(|early| self.hold(target, early));
        match (arrived, held) {
            (Some(changed @ Arrival::Changed(_)), _) => changed,
            (_, Some(held)) => held,
            (Some(arrived), None) => arrived,
            (None, None) => Arrival::Known,
        }
    }

    /// Merges an entry that this node had before, for example from its journal. Unlike [`Ledger::merge`], it accepts every stamp.
    pub fn restore(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Arrival {
        match self.table.merge(target, entry, now) {
            Merged::Unchanged => Arrival::Known,
            Merged::PastRetention => Arrival::PastRetention,
            Merged::Changed { before, after } => {
                self.exempt(target, before.as_ref(), &after, now);
                Arrival::Changed(Change { target, before, after })
            }
        }
    }

    /// Merges the entries that were held back and whose stamps this node's clock has reached.
    pub fn merge_due(&mut self, now: UnixMillis) -> Vec<Change> {
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

    /// Holds an entry back until this node's clock catches up.
    fn hold(&mut self, target: Target, entry: BanEntry) -> Arrival {
        let key = (entry.latest().hlc, target);
        if self.early.len() >= MAX_EARLY && !self.early.contains_key(&key) {
            return Arrival::Dropped;
        }
        let waiting = self.early.entry(key).or_insert_with(|| entry.clone());
        *waiting = waiting.join(&entry);
        Arrival::Early
    }
}

/// For [`Fault::ClampStamp`].
fn clamped(mut entry: BanEntry, now: UnixMillis) -> BanEntry {
    let (Registers::Filter(Register { stamp, .. }) | Registers::Operator(Register { stamp, .. })) =
        &mut entry.registers
    else {
        return entry;
    };
    stamp.hlc = stamp.hlc.min(Hlc::first_of(now));
    entry
}

/// Splits an entry into the registers whose stamps satisfy `fits` and the others.
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
