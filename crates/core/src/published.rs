//! The bans as clients that poll see them: CrowdSec's bouncers, and appliances that fetch lists.
//!
//! Such a client cannot apply an allowlist, so [`Published`] turns bans into *values*: the targets that a client must block. A ban of a
//! network that contains an exempt address becomes the networks around that address ([`Exempt`]).
//!
//! A client that asks for changes gets the present state of every value that changed in a window of time, never an event. So repeated
//! and overlapping answers do no harm, and answers of different nodes can be mixed. [`Published`] logs which values changed, with the
//! time on this node's steady clock, in the order in which the changes arrived here. [`Clients`] decides the window of each client.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use banmesh_types::target::{Target, mask};
use banmesh_types::time::{Expiry, UnixMillis};

use crate::follow::Allowlist;

mod clients;
mod exempt;

pub use clients::{Clients, Identity, MAX_CLIENTS, Polled, Window};
pub use exempt::{Exempt, MAX_PIECES, Status};

/// The most changes that are remembered. A client whose window holds more gets everything.
pub const MAX_LOG: usize = 262_144;
/// A ban that lasts longer is announced again after this time, because ipset ends entries after 24.8 days.
const ANNOUNCE: Duration = Duration::from_secs(20 * 86_400);
/// Reminders that may wait for each ban, and in addition to that.
const REMINDERS: (usize, usize) = (4, 65_536);

/// A point in time on the steady clock of this node, in milliseconds since any fixed moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Steady(pub u64);

/// A value, and until when clients must block it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// What to block, or no longer.
    pub value: Target,
    /// The end; `None` to stop blocking it.
    pub until: Option<Expiry>,
}

/// The bans, and which values changed when.
#[derive(Debug, Default)]
pub struct Published {
    bans: BTreeMap<Target, Expiry>,
    /// The number of bans by family (`true` is IPv4) and prefix length within 128 bits.
    lengths: BTreeMap<(bool, u8), usize>,
    exempt: Exempt,
    log: VecDeque<(Steady, Target)>,
    /// Changes up to this moment are no longer in the log. `None` before the first [`Published::replace`].
    horizon: Option<Steady>,
    /// When to look at a ban again: at its end, and at every earlier end that clients may have been told.
    agenda: BTreeSet<(u32, Target)>,
    /// Counts all changes, so that equal numbers mean equal values.
    version: u64,
    /// For each family (IPv4, IPv6): the sum of the hashes of all bans.
    sums: [u64; 2],
    reminders_dropped: u64,
}

impl Published {
    /// Whether the bans are complete. Until then, nothing must be answered.
    pub const fn is_complete(&self) -> bool {
        self.horizon.is_some()
    }

    /// The number of bans.
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Whether there are no bans.
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }

    /// Changes with every change of a value.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Reminders about earlier ends that were dropped because too many were waiting.
    pub const fn reminders_dropped(&self) -> u64 {
        self.reminders_dropped
    }

    /// A digest of the values of one family. Nodes with the same bans and allowlists have the same digest. Ends do not matter.
    pub fn digest(&self, ipv4: bool) -> u64 {
        self.sums[usize::from(!ipv4)] ^ self.exempt.digest().rotate_left(17)
    }

    /// Replaces all bans and the allowlist. What differs is logged, so that clients that have the earlier bans get the difference.
    pub fn replace(
        &mut self,
        bans: impl IntoIterator<Item = (Target, Expiry)>,
        allowlist: &Allowlist,
        now: UnixMillis,
        at: Steady,
    ) {
        self.allow(allowlist, at);
        let next: BTreeMap<Target, Expiry> = bans.into_iter().filter(|(_, until)| !until.has_passed(now)).collect();
        if self.horizon.is_none() {
            // No client has received anything, so nothing needs to be logged.
            self.horizon = Some(at);
            for (target, until) in next {
                self.set(target, Some(until), now);
            }
            self.version += 1;
            return;
        }
        let gone: Vec<Target> = self.bans.keys().filter(|target| !next.contains_key(target)).copied().collect();
        for target in gone {
            self.apply(target, None, now, at);
        }
        for (target, until) in next {
            self.apply(target, Some(until), now, at);
        }
    }

    /// Sets the end of the ban of `target`, or removes the ban if `until` is `None`.
    pub fn apply(&mut self, target: Target, until: Option<Expiry>, now: UnixMillis, at: Steady) {
        let until = until.filter(|until| !until.has_passed(now));
        if self.bans.get(&target).copied() == until {
            return;
        }
        self.set(target, until, now);
        self.note(target, at);
    }

    /// Replaces the allowlist.
    pub fn allow(&mut self, allowlist: &Allowlist, at: Steady) {
        let next = Exempt::new(allowlist);
        let differing = self.exempt.differences(&next);
        if differing.is_empty() {
            return;
        }
        let affected: BTreeSet<Target> = differing.into_iter().flat_map(|member| self.touching(member)).collect();
        for target in &affected {
            self.note(*target, at);
        }
        self.exempt = next;
        for target in affected {
            self.note(target, at);
        }
        self.version += 1;
    }

    /// Ends bans that have passed, and reminds clients of bans that were extended or last very long. Must be called before an answer,
    /// and every second.
    pub fn tick(&mut self, now: UnixMillis, at: Steady) {
        while let Some(&(second, target)) = self.agenda.first() {
            if u64::from(second) * 1000 > now.0 {
                return;
            }
            self.agenda.pop_first();
            let Some(until) = self.bans.get(&target).copied() else { continue };
            if until.has_passed(now) {
                self.set(target, None, now);
            } else {
                self.plan_announcement(target, until, now);
            }
            self.note(target, at);
        }
    }

    /// The present state of every value that changed after `from`. `None` if some of these changes are no longer known, so that
    /// the client must get everything.
    pub fn since(&self, from: Steady, now: UnixMillis) -> Option<Vec<Decision>> {
        if self.horizon.is_none_or(|horizon| from < horizon) {
            return None;
        }
        let first = self.log.partition_point(|(at, _)| *at < from);
        let mut seen = HashSet::with_hasher(foldhash::fast::RandomState::default());
        let values = self.log.range(first..).map(|(_, value)| *value).filter(|value| seen.insert(*value));
        let states = values.map(|value| Decision { value, until: self.state(value) });
        Some(states.filter(|decision| !is_ending(*decision, now)).map(|one| ended(one, now)).collect())
    }

    /// All values in force, sorted and without repetitions.
    pub fn snapshot(&self, now: UnixMillis) -> Vec<Decision> {
        let mut all = Vec::with_capacity(self.bans.len());
        let mut cut = false;
        for (target, until) in &self.bans {
            match self.exempt.status(*target) {
                Status::Exempt => {}
                Status::Clean => all.push(Decision { value: *target, until: Some(*until) }),
                Status::Mixed => {
                    cut = true;
                    let pieces = self.exempt.pieces(*target);
                    all.extend(pieces.into_iter().map(|value| Decision { value, until: Some(*until) }));
                }
            }
        }
        if cut {
            // Of equal values, the latest end comes first.
            all.sort_unstable_by(|one, other| one.value.cmp(&other.value).then(other.until.cmp(&one.until)));
            all.dedup_by_key(|decision| decision.value);
        }
        all.retain(|decision| !is_ending(*decision, now) && decision.until.is_some_and(|until| !until.has_passed(now)));
        all
    }

    /// Until when clients must block exactly `value`; `None` if they must not.
    pub fn state(&self, value: Target) -> Option<Expiry> {
        if self.exempt.status(value) != Status::Clean {
            return None;
        }
        let own = self.bans.get(&value).copied();
        let is_piece = parent(value).is_some_and(|parent| self.exempt.status(parent) == Status::Mixed);
        if !is_piece {
            return own;
        }
        // Every ban around a piece contains its parent, so it is cut into pieces too, and this is one of them.
        self.around(value).filter(|(ban, _)| self.is_cut(*ban)).map(|(_, until)| until).chain(own).max()
    }

    /// What clients that block single addresses must know about `target`: the bans of it and around it that are not exempt.
    pub fn covering(&self, target: Target, now: UnixMillis) -> Vec<Decision> {
        if self.exempt.status(target) != Status::Clean {
            return Vec::new();
        }
        let own = self.bans.get(&target).map(|until| (target, *until));
        let value = |(ban, until): (Target, Expiry)| {
            // Part of the ban is exempt: only the asked target is sure to be banned.
            let value = if self.exempt.status(ban) == Status::Clean { ban } else { target };
            Decision { value, until: Some(until) }
        };
        let found = self.around(target).chain(own).filter(|(_, until)| !until.has_passed(now)).map(value);
        found.filter(|decision| !is_ending(*decision, now)).collect()
    }

    /// Up to `limit` values inside `target`.
    pub fn within(&self, target: Target, limit: usize, now: UnixMillis) -> Vec<Decision> {
        let inside = self.inside(target).filter(|ban| self.exempt.status(*ban) == Status::Clean);
        let states = inside.map(|value| Decision { value, until: self.bans.get(&value).copied() });
        states
            .filter(|one| one.until.is_some_and(|until| !until.has_passed(now)) && !is_ending(*one, now))
            .take(limit)
            .collect()
    }

    /// What a client with unknown contents may hold because of a ban of `target`, and must not hold by itself.
    pub fn values_to_delete(&self, target: Target, in_force: bool) -> Vec<Target> {
        match self.exempt.status(target) {
            Status::Clean if in_force => Vec::new(),
            Status::Clean | Status::Exempt => vec![target],
            Status::Mixed => {
                let mut values = vec![target];
                values.extend(self.exempt.pieces(target).into_iter().filter(|_| !in_force));
                values
            }
        }
    }

    /// The values that changed lately and are not blocked any longer.
    pub fn recent_without_ban(&self) -> Vec<Target> {
        let mut seen = HashSet::with_hasher(foldhash::fast::RandomState::default());
        let values = self.log.iter().map(|(_, value)| *value).filter(|value| seen.insert(*value));
        values.filter(|value| self.state(*value).is_none()).collect()
    }

    /// Stores or removes a ban, without logging it.
    fn set(&mut self, target: Target, until: Option<Expiry>, now: UnixMillis) {
        let length = (target.is_ipv4(), target.prefix128());
        let before = match until {
            Some(until) => self.bans.insert(target, until),
            None => self.bans.remove(&target),
        };
        match (before, until) {
            (None, Some(_)) => {
                *self.lengths.entry(length).or_default() += 1;
                self.count(target, u64::wrapping_add);
            }
            (Some(_), None) => {
                if let Some(count) = self.lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&length);
                    }
                }
                self.count(target, u64::wrapping_sub);
            }
            _ => {}
        }
        if let Some(until) = until {
            if until != Expiry::NEVER {
                self.agenda.insert((until.seconds(), target));
            }
            self.plan_announcement(target, until, now);
        }
        if let Some(before) = before {
            self.keep_reminder(target, before, until);
        }
    }

    /// Clients may have been told the end `before`, and many of them ignore a later one until then. So `target` is announced again at
    /// that time if it was extended.
    fn keep_reminder(&mut self, target: Target, before: Expiry, until: Option<Expiry>) {
        let extended = until.is_some_and(|until| until > before);
        let full = self.agenda.len() > self.bans.len().saturating_mul(REMINDERS.0).saturating_add(REMINDERS.1);
        if !extended || full {
            self.agenda.remove(&(before.seconds(), target));
            self.reminders_dropped += u64::from(extended);
        }
    }

    fn plan_announcement(&mut self, target: Target, until: Expiry, now: UnixMillis) {
        let next = Expiry::at(now.plus(ANNOUNCE));
        if until > next {
            self.agenda.insert((next.seconds(), target));
        }
    }

    fn count(&mut self, target: Target, by: fn(u64, u64) -> u64) {
        if let Some(sum) = self.sums.get_mut(usize::from(!target.is_ipv4())) {
            *sum = by(*sum, exempt::hash(target, 0));
        }
    }

    /// Logs that the values of the ban of `target` may have changed.
    fn note(&mut self, target: Target, at: Steady) {
        self.version += 1;
        match self.exempt.status(target) {
            Status::Exempt => {}
            Status::Clean => self.log(target, at),
            Status::Mixed => {
                for piece in self.exempt.pieces(target) {
                    self.log(piece, at);
                }
            }
        }
    }

    fn log(&mut self, value: Target, at: Steady) {
        // Windows are searched by time, which must not go back.
        let at = self.log.back().map_or(at, |(last, _)| at.max(*last));
        if self.log.len() >= MAX_LOG
            && let Some((dropped, _)) = self.log.pop_front()
        {
            // A window must begin after everything that was dropped.
            self.horizon = self.horizon.max(Some(Steady(dropped.0.saturating_add(1))));
        }
        self.log.push_back((at, value));
    }

    /// The wider bans that cover `target`.
    fn around(&self, target: Target) -> impl Iterator<Item = (Target, Expiry)> + '_ {
        let family = target.is_ipv4();
        self.lengths.range((family, 0)..(family, target.prefix128())).filter_map(move |((_, prefix), _)| {
            let around = Target::from_bits(target.bits() & mask(*prefix), *prefix);
            self.bans.get(&around).map(|until| (around, *until))
        })
    }

    /// The bans inside `target`, and of it.
    fn inside(&self, target: Target) -> impl Iterator<Item = Target> + '_ {
        let last = Target::from_bits(target.bits() | !mask(target.prefix128()), 128);
        self.bans.range(target..=last).map(|(ban, _)| *ban).filter(move |ban| target.covers(*ban))
    }

    /// The bans whose values an allowlist entry of `member` may change.
    fn touching(&self, member: Target) -> Vec<Target> {
        self.around(member).map(|(ban, _)| ban).chain(self.inside(member)).collect()
    }

    /// Whether the ban of `target` is published as pieces: it is left out if there would be too many.
    fn is_cut(&self, target: Target) -> bool {
        self.exempt.status(target) == Status::Mixed && !self.exempt.pieces(target).is_empty()
    }
}

/// Whether less than a second is left. Such a value is not announced: clients count in whole seconds, and some read 0 as forever.
fn is_ending(decision: Decision, now: UnixMillis) -> bool {
    let left = decision.until.and_then(|until| until.remaining(now));
    left.is_some_and(|left| !left.is_zero() && left < Duration::from_secs(1))
}

/// `decision`, with `None` for an end that has passed.
fn ended(decision: Decision, now: UnixMillis) -> Decision {
    Decision { until: decision.until.filter(|until| !until.has_passed(now)), ..decision }
}

/// The network of twice the size around `target`; `None` if that would be more than its family.
fn parent(target: Target) -> Option<Target> {
    let least = if target.is_ipv4() { 96 } else { 0 };
    let prefix = target.prefix128().checked_sub(1).filter(|prefix| *prefix >= least)?;
    Some(Target::from_bits(target.bits(), prefix))
}

#[cfg(test)]
mod tests;
