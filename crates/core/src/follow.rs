//! Keeps every place where bans hold in step with the table: HAProxy's map, the kernel's firewall, and others.
//!
//! [`Followers`] holds the bans once, and for each follower what was sent to it: a backlog of the targets whose value has changed
//! since, and a [`Digest`] of everything. A follower first receives everything in pages, then changes. When its backlog is full, or its
//! place does not hold what was sent, it is sent everything again. The table is not copied per follower.
//!
//! What a place holds for a ban depends on how it looks clients up: see [`Form`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use banmesh_types::nat64::Nat64;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

mod digest;
mod form;

pub use digest::Digest;
use form::Standing;
pub use form::{Allowlist, Form, holds_ipv4};

/// The most changes that may wait for a follower. With more, it is sent everything again.
pub const MAX_BACKLOG: usize = 65_536;
/// The most changes other than additions that may wait for a slow follower: see [`Traits::slow`].
const MAX_SLOW_BACKLOG: usize = 64;
/// At least this many ended bans stay with a slow follower before it is sent everything again.
const MIN_ENDED: usize = 1024;

/// A change of one entry of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add an entry that the place does not have, with this value: seconds since the epoch, `u32::MAX` for never.
    Add(Target, u32),
    /// Change an entry that the place has to this value.
    Set(Target, u32),
    /// Remove an entry that the place has.
    Remove(Target),
}

/// What a follower's place can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// How the place looks clients up.
    pub form: Form,
    /// Whether changing one entry takes time linear in the number of entries (HAProxy before 2.9). Then ended bans stay, and many
    /// changes are sent as a replacement.
    pub slow: bool,
    /// Whether the place removes an entry by itself when its value has passed.
    pub expires: bool,
}

/// The bans, and what each follower has been sent.
#[derive(Debug, Default)]
pub struct Followers {
    standing: Standing,
    allowlist: Allowlist,
    followers: Vec<Follower>,
    /// Where the next sweep continues.
    swept: Option<Target>,
    /// Ended bans found since the sweep started from the beginning.
    ended: usize,
}

#[derive(Debug, Default)]
struct Follower {
    stage: Stage,
    traits: Traits,
    /// The prefixes in whose form IPv4 targets are also sent; usually none.
    nat64: Nat64,
    /// The targets whose value has changed since it was sent, with the value that was sent, if any.
    backlog: HashMap<Target, Option<u32>, foldhash::fast::RandomState>,
    /// Whether the allowlist has changed since it was taken.
    allowlist_changed: bool,
    /// The digest of what was sent.
    sent: Digest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It must be sent everything, which has not started.
    #[default]
    Unsynced,
    /// It is being sent everything in the order of targets, up to this one so far.
    Syncing(Option<Target>),
    /// It was sent everything and is sent changes.
    Synced,
}

impl Followers {
    /// Creates followers without bans: one for each item, numbered from 0, with the prefixes in whose form IPv4 targets are also sent.
    pub fn new(nat64: impl IntoIterator<Item = Nat64>) -> Self {
        let follower = |nat64| Follower { nat64, ..Follower::default() };
        Self { followers: nat64.into_iter().map(follower).collect(), ..Self::default() }
    }

    /// Replaces the configured allowlist, the one of operators, and the operators' bans that are exceptions from the latter.
    pub fn allow(&mut self, configured: Vec<Target>, operators: Vec<Target>, exceptions: BTreeMap<Target, Expiry>) {
        let covered = |target: &Target| configured.iter().any(|member| member.covers(*target));
        let mut decisions: BTreeMap<Target, bool> = operators.iter().map(|target| (*target, true)).collect();
        decisions.extend(exceptions.keys().map(|target| (*target, false)));
        let usable: BTreeMap<Target, Expiry> =
            exceptions.into_iter().filter(|(target, _)| !covered(target) && !holds_ipv4(*target)).collect();
        let members = configured.iter().copied().chain(operators).filter(|target| !holds_ipv4(*target)).collect();
        let mut configured = configured;
        configured.sort_unstable();
        configured.dedup();
        let allowlist = Allowlist { configured, operators: decisions };
        let values_change = self.standing.allow(members, usable);
        if values_change || allowlist != self.allowlist {
            self.allowlist = allowlist;
            for follower in &mut self.followers {
                follower.allowlist_changed = true;
                if values_change && follower.traits.form == Form::LongestPrefix {
                    follower.invalidate();
                }
            }
        }
    }

    /// Removes all bans, after changes were missed. The caller must [`Followers::apply`] all of them again, and every follower must be
    /// sent everything.
    pub fn reset(&mut self) {
        self.standing.clear();
        self.ended = 0;
        self.followers.iter_mut().for_each(Follower::invalidate);
    }

    /// Sets the end of the ban of `target`, or removes the ban if `until` is `None`.
    pub fn apply(&mut self, target: Target, until: Option<Expiry>) {
        let own = self.standing.bans.get(&target).copied();
        if own == until {
            return;
        }
        let by_prefix = self.followers.iter().any(|follower| follower.traits.form == Form::LongestPrefix);
        let value = |standing: &Standing, held| standing.value(Form::LongestPrefix, held);
        let before: Vec<(Target, Option<u32>)> = if by_prefix {
            let depending = self.standing.depending(Form::LongestPrefix, target);
            depending.map(|held| (held, value(&self.standing, held))).collect()
        } else {
            Vec::new()
        };
        self.standing.set(target, until);
        self.note(Form::Own, target, own.map(Expiry::seconds));
        if by_prefix && own.is_none() {
            self.note(Form::LongestPrefix, target, None);
        }
        for (held, before) in before {
            if value(&self.standing, held) != before {
                self.note(Form::LongestPrefix, held, before);
            }
        }
    }

    /// Examines up to `budget` bans, starting where the last call stopped, and removes those that have ended at `now`.
    ///
    /// If a follower is slow, ended bans stay, which is harmless, until a quarter of all bans has ended. Then they are removed together, and
    /// the slow followers must be sent everything.
    pub fn sweep(&mut self, now: UnixMillis, budget: usize) {
        let from = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
        let seen: Vec<(Target, bool)> = self
            .standing
            .bans
            .range((from, Bound::Unbounded))
            .take(budget)
            .map(|(target, until)| (*target, until.has_passed(now)))
            .collect();
        let ended = seen.iter().filter(|(_, ended)| *ended).map(|(target, _)| *target);
        if self.followers.iter().any(|follower| follower.traits.slow) {
            self.ended += ended.count();
        } else {
            for target in ended.collect::<Vec<_>>() {
                self.end(target);
            }
        }
        self.swept = if seen.len() < budget { None } else { seen.last().map(|(target, _)| *target) };
        if self.swept.is_none() {
            if self.ended > MIN_ENDED.max(self.standing.bans.len() / 4) {
                self.followers.iter_mut().filter(|follower| follower.traits.slow).for_each(Follower::invalidate);
                let bans = self.standing.bans.iter();
                let ended: Vec<Target> =
                    bans.filter(|(_, until)| until.has_passed(now)).map(|(target, _)| *target).collect();
                for target in ended {
                    self.end(target);
                }
            }
            self.ended = 0;
        }
    }

    /// Starts to send everything to `follower`, whose place has these `traits`.
    pub fn begin(&mut self, follower: usize, traits: Traits) {
        if let Some(follower) = self.followers.get_mut(follower) {
            let nat64 = std::mem::take(&mut follower.nat64);
            *follower = Follower { stage: Stage::Syncing(None), traits, nat64, ..Follower::default() };
        }
    }

    /// Marks `follower` to be sent everything, because its place does not hold what was sent.
    pub fn invalidate(&mut self, follower: usize) {
        if let Some(follower) = self.followers.get_mut(follower) {
            follower.invalidate();
        }
    }

    /// Returns the next entries to send, about `budget` of them. Returns `None` after the last, or if sending must start again
    /// ([`Followers::needs_full_sync`]). The entries count as sent.
    pub fn page(&mut self, follower: usize, budget: usize) -> Option<Vec<(Target, u32)>> {
        let standing = &self.standing;
        let follower = self.followers.get_mut(follower)?;
        let Stage::Syncing(at) = follower.stage else { return None };
        let form = follower.traits.form;
        let from = at.map_or(Bound::Unbounded, Bound::Excluded);
        let bans = standing.bans.range((from, Bound::Unbounded)).take(budget.max(1));
        let mut last = None;
        let mut page = Vec::new();
        for (target, _) in bans {
            last = Some(*target);
            let Some(value) = standing.value(form, *target) else { continue };
            page.extend(follower.forms(*target).map(|target| (target, value)));
        }
        if at.is_none() && form == Form::LongestPrefix {
            let allowed = standing.allowed.iter();
            page.extend(allowed.flat_map(|target| follower.forms(*target)).map(|target| (target, 0)));
        }
        follower.stage = last.map_or(Stage::Synced, |last| Stage::Syncing(Some(last)));
        for (target, value) in &page {
            follower.sent.add(*target, *value);
        }
        (!page.is_empty() || last.is_some()).then_some(page)
    }

    /// Returns up to `budget` changes to send to `follower`, or a few more. They count as sent.
    pub fn changes(&mut self, follower: usize, budget: usize) -> Vec<Change> {
        let standing = &self.standing;
        let Some(state) = self.followers.get_mut(follower) else { return Vec::new() };
        if state.stage != Stage::Synced {
            return Vec::new();
        }
        let taken: Vec<(Target, Option<u32>)> = if state.backlog.len() <= budget {
            state.backlog.drain().collect()
        } else {
            let some: Vec<Target> = state.backlog.keys().take(budget).copied().collect();
            some.into_iter().filter_map(|target| state.backlog.remove_entry(&target)).collect()
        };
        let mut changes = Vec::with_capacity(taken.len());
        for (target, was) in taken {
            let is = standing.value(state.traits.form, target);
            if was == is {
                continue;
            }
            for target in state.nat64.twins(target).chain([target]) {
                if let Some(was) = was {
                    state.sent.remove(target, was);
                }
                if let Some(is) = is {
                    state.sent.add(target, is);
                }
                changes.push(match (was, is) {
                    (None, Some(is)) => Change::Add(target, is),
                    (Some(_), Some(is)) => Change::Set(target, is),
                    (_, None) => Change::Remove(target),
                });
            }
        }
        changes
    }

    /// Returns who is exempt if that has changed since the last call for `follower`, or since it was begun.
    pub fn take_allowlist(&mut self, follower: usize) -> Option<Allowlist> {
        let state = self.followers.get_mut(follower)?;
        std::mem::take(&mut state.allowlist_changed).then(|| self.allowlist.clone())
    }

    /// Who is exempt.
    pub const fn allowlist(&self) -> &Allowlist {
        &self.allowlist
    }

    /// Returns about `count` entries that `follower`'s place should hold, after `after` in the order of targets and from the start
    /// again after the last, and the last target that was looked at. Entries with waiting changes are left out.
    pub fn sample(&self, follower: usize, after: Option<Target>, count: usize) -> (Vec<(Target, u32)>, Option<Target>) {
        let Some(state) = self.followers.get(follower).filter(|state| state.stage == Stage::Synced) else {
            return (Vec::new(), None);
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let mut sample = Vec::new();
        for (target, _) in self.standing.bans.range((from, Bound::Unbounded)).take(count) {
            last = Some(*target);
            if state.backlog.contains_key(target) {
                continue;
            }
            if let Some(value) = self.standing.value(state.traits.form, *target) {
                sample.extend(state.forms(*target).map(|target| (target, value)));
            }
        }
        (sample, last)
    }

    /// Returns `true` if some followers have no entry for `target`, because their place would match other clients with it.
    pub fn is_left_out(&self, target: Target) -> bool {
        holds_ipv4(target) && self.followers.iter().any(|follower| follower.traits.form == Form::LongestPrefix)
    }

    /// Returns `true` if exactly `target` is banned, or a change of it waits for `follower`, so its place may hold it.
    pub fn may_hold(&self, follower: usize, target: Target) -> bool {
        let waits = |state: &Follower| state.stage != Stage::Synced || state.backlog.contains_key(&target);
        self.standing.bans.contains_key(&target) || self.followers.get(follower).is_none_or(waits)
    }

    /// Returns `true` if `follower` must be sent everything: it never was, or too many changes are waiting.
    pub fn needs_full_sync(&self, follower: usize) -> bool {
        self.followers.get(follower).is_some_and(|follower| {
            follower.stage == Stage::Unsynced
                || (follower.traits.slow
                    && follower.backlog.values().filter(|was| was.is_some()).count() > MAX_SLOW_BACKLOG)
        })
    }

    /// Returns the number of changes that wait for `follower`.
    pub fn waiting(&self, follower: usize) -> usize {
        self.followers.get(follower).map_or(0, |state| state.backlog.len() + usize::from(state.allowlist_changed))
    }

    /// Returns the digest of what `follower`'s place holds, provided that nothing else has changed it.
    pub fn sent(&self, follower: usize) -> Digest {
        self.followers.get(follower).map(|follower| follower.sent).unwrap_or_default()
    }

    /// Returns the number of bans, including ended ones that were not swept yet.
    pub fn len(&self) -> usize {
        self.standing.bans.len()
    }

    /// Returns `true` if there are no bans.
    pub fn is_empty(&self) -> bool {
        self.standing.bans.is_empty()
    }

    /// Removes the ban of `target`, which has ended. Places that remove ended entries by themselves need no instruction.
    fn end(&mut self, target: Target) {
        let was = self.standing.bans.get(&target).map(|until| until.seconds());
        let before: Vec<bool> = self.followers.iter().map(|follower| follower.backlog.contains_key(&target)).collect();
        self.apply(target, None);
        for (follower, waited) in self.followers.iter_mut().zip(before) {
            // With an earlier change still waiting, the place may hold a later end.
            let by_itself = follower.traits.expires && follower.traits.form == Form::Own && !waited;
            let Some(was) = was.filter(|_| by_itself) else { continue };
            if let Some(Some(_)) = follower.backlog.remove(&target) {
                for target in follower.nat64.twins(target).chain([target]) {
                    follower.sent.remove(target, was);
                }
            }
        }
    }

    /// Records for every follower of this form that the value of `target` has changed from `before`.
    fn note(&mut self, form: Form, target: Target, before: Option<u32>) {
        for follower in self.followers.iter_mut().filter(|follower| follower.traits.form == form) {
            let sent = match follower.stage {
                Stage::Unsynced => false,
                // Targets later in the order will be sent with the value that they have then.
                Stage::Syncing(up_to) => up_to.is_some_and(|up_to| target <= up_to),
                Stage::Synced => true,
            };
            if sent {
                follower.note(target, before);
            }
        }
    }
}

impl Follower {
    fn invalidate(&mut self) {
        self.stage = Stage::Unsynced;
        self.backlog = HashMap::default();
    }

    /// The targets to send for `target`: itself, and its forms behind translators.
    fn forms(&self, target: Target) -> impl Iterator<Item = Target> + '_ {
        self.nat64.twins(target).chain([target])
    }

    fn note(&mut self, target: Target, before: Option<u32>) {
        if self.backlog.len() >= MAX_BACKLOG && !self.backlog.contains_key(&target) {
            self.invalidate();
        } else {
            self.backlog.entry(target).or_insert(before);
        }
    }
}

#[cfg(test)]
mod tests;
