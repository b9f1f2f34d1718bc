//! Computes the contents of the map in HAProxy's memory, which maps each banned address or network to the end of its ban.
//!
//! HAProxy looks up the longest prefix that contains the client and compares its value, in seconds since the epoch, with its own clock. So
//! a ban ends on time even if no node is running. Because only the longest prefix counts:
//!
//! - The value of a target is the latest end of all bans that cover it: its own and those of wider networks.
//! - Members of the allowlist have the value 0, which has always passed, and targets inside them have no entry.
//! - The exception is a ban of an operator inside an allowed network: its value is the end of that ban.
//!
//! A [`Mirror`] holds the bans, and for each HAProxy (a follower) what was sent to it: a backlog of the targets whose value has changed
//! since, and a [`MapDigest`] of the whole map. It does not need a copy of the table per follower.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use xxhash_rust::xxh3::xxh3_64;

use banmesh_types::netset::NetSet;
use banmesh_types::target::{Target, mask};
use banmesh_types::time::{Expiry, UnixMillis};

/// The most changes that may wait for a follower. With more, it is sent everything again.
pub const MAX_BACKLOG: usize = 65_536;
/// The most changes other than additions that may wait for a slow follower: see [`Mirror::begin`].
const MAX_SLOW_BACKLOG: usize = 64;
/// At least this many ended bans stay in the map of a slow follower before it is sent everything again.
const MIN_ENDED: usize = 1024;

/// A change of one entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Add an entry that is not in the map, with this value.
    Add(Target, u32),
    /// Change an entry that is in the map to this value.
    Set(Target, u32),
    /// Remove an entry that is in the map.
    Remove(Target),
}

/// A digest of the contents of a map, independent of the order of its entries. Equal digests mean equal contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapDigest {
    /// The number of entries.
    pub entries: u64,
    /// The sum of the hashes of all entries.
    sum: u64,
}

impl MapDigest {
    /// Adds an entry.
    pub fn add(&mut self, target: Target, value: u32) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(target, value));
    }

    /// Removes an entry that was added.
    fn remove(&mut self, target: Target, value: u32) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(target, value));
    }

    /// Adds an entry that banmesh never writes. From then on the digest differs from that of every map that banmesh sent.
    pub fn add_foreign(&mut self) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

fn hash(target: Target, value: u32) -> u64 {
    let mut bytes = [0; 21];
    bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
    bytes[16] = target.prefix128();
    bytes[17..].copy_from_slice(&value.to_be_bytes());
    xxh3_64(&bytes)
}

/// The bans that belong in the map, and what each follower has been sent.
#[derive(Debug, Default)]
pub struct Mirror {
    /// All bans with their own ends.
    bans: BTreeMap<Target, Expiry>,
    /// The number of bans by family (`true` is IPv4) and prefix length within 128 bits.
    lengths: BTreeMap<(bool, u8), usize>,
    /// The members of the allowlist, sorted.
    allowed: Vec<Target>,
    allowlist: NetSet,
    /// The bans of operators inside allowed networks.
    exceptions: BTreeMap<Target, Expiry>,
    exception_set: NetSet,
    followers: Vec<Follower>,
    /// Where the next sweep continues.
    swept: Option<Target>,
    /// Ended bans found since the sweep started from the beginning.
    ended: usize,
}

#[derive(Debug, Default)]
struct Follower {
    stage: Stage,
    /// Whether changing one entry takes time linear in the size of the map (HAProxy before 2.9).
    slow: bool,
    /// The targets whose value has changed since it was sent, with the value that was sent, if any.
    backlog: HashMap<Target, Option<u32>, foldhash::fast::RandomState>,
    /// The digest of what was sent.
    sent: MapDigest,
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

impl Mirror {
    /// Creates a mirror without bans, for this many followers, which are numbered from 0.
    pub fn new(followers: usize) -> Self {
        Self { followers: (0..followers).map(|_| Follower::default()).collect(), ..Self::default() }
    }

    /// Replaces the allowlist, and the operators' bans that are exceptions from it. If either differs, every follower must be sent
    /// everything.
    pub fn allow(&mut self, mut allowlist: Vec<Target>, mut exceptions: BTreeMap<Target, Expiry>) {
        allowlist.retain(|target| !holds_ipv4(*target));
        allowlist.sort_unstable();
        allowlist.dedup();
        exceptions.retain(|target, _| !holds_ipv4(*target));
        if allowlist != self.allowed || exceptions != self.exceptions {
            self.allowlist = allowlist.iter().copied().collect();
            self.allowed = allowlist;
            self.exception_set = exceptions.keys().copied().collect();
            self.exceptions = exceptions;
            self.followers.iter_mut().for_each(Follower::invalidate);
        }
    }

    /// Removes all bans, after changes were missed. The caller must [`Mirror::apply`] all of them again, and every follower must be sent
    /// everything.
    pub fn reset(&mut self) {
        self.bans.clear();
        self.lengths.clear();
        self.ended = 0;
        self.followers.iter_mut().for_each(Follower::invalidate);
    }

    /// Sets the end of the ban of `target`, or removes the ban if `until` is `None`.
    pub fn apply(&mut self, target: Target, until: Option<Expiry>) {
        if self.bans.get(&target).copied() == until {
            return;
        }
        let before: Vec<(Target, Option<u32>)> = self.within(target).map(|held| (held, self.value(held))).collect();
        let length = (target.is_ipv4(), target.prefix128());
        let had = match until {
            Some(until) => self.bans.insert(target, until).is_some(),
            None => self.bans.remove(&target).is_some(),
        };
        match (had, until) {
            (false, Some(_)) => *self.lengths.entry(length).or_default() += 1,
            (true, None) => {
                if let Some(count) = self.lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&length);
                    }
                }
            }
            _ => {}
        }
        if !had {
            self.note(target, None);
        }
        for (held, before) in before {
            if self.value(held) != before {
                self.note(held, before);
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
            .bans
            .range((from, Bound::Unbounded))
            .take(budget)
            .map(|(target, until)| (*target, until.has_passed(now)))
            .collect();
        let ended = seen.iter().filter(|(_, ended)| *ended).map(|(target, _)| *target);
        if self.followers.iter().any(|follower| follower.slow) {
            self.ended += ended.count();
        } else {
            for target in ended.collect::<Vec<_>>() {
                self.apply(target, None);
            }
        }
        self.swept = if seen.len() < budget { None } else { seen.last().map(|(target, _)| *target) };
        if self.swept.is_none() {
            if self.ended > MIN_ENDED.max(self.bans.len() / 4) {
                self.followers.iter_mut().filter(|follower| follower.slow).for_each(Follower::invalidate);
                let ended: Vec<Target> =
                    self.bans.iter().filter(|(_, until)| until.has_passed(now)).map(|(target, _)| *target).collect();
                for target in ended {
                    self.apply(target, None);
                }
            }
            self.ended = 0;
        }
    }

    /// Starts to send everything to `follower`. `slow` means that changing one entry of its map takes time linear in the size of the map, as
    /// in HAProxy before 2.9.
    pub fn begin(&mut self, follower: usize, slow: bool) {
        if let Some(follower) = self.followers.get_mut(follower) {
            *follower = Follower { stage: Stage::Syncing(None), slow, ..Follower::default() };
        }
    }

    /// Marks `follower` to be sent everything, because its map does not have the expected contents.
    pub fn invalidate(&mut self, follower: usize) {
        if let Some(follower) = self.followers.get_mut(follower) {
            follower.invalidate();
        }
    }

    /// Returns the next entries to send, about `budget` of them. Returns `None` after the last, or if sending must start again
    /// ([`Mirror::needs_full_sync`]). The entries count as sent.
    pub fn page(&mut self, follower: usize, budget: usize) -> Option<Vec<(Target, u32)>> {
        let Stage::Syncing(at) = self.followers.get(follower)?.stage else { return None };
        let from = at.map_or(Bound::Unbounded, Bound::Excluded);
        let targets: Vec<Target> =
            self.bans.range((from, Bound::Unbounded)).take(budget.max(1)).map(|(target, _)| *target).collect();
        let mut page: Vec<(Target, u32)> =
            targets.iter().filter_map(|target| Some((*target, self.value(*target)?))).collect();
        let begins = at.is_none();
        if begins {
            page.extend(self.allowed.iter().map(|target| (*target, 0)));
        }
        let follower = self.followers.get_mut(follower)?;
        follower.stage = targets.last().map_or(Stage::Synced, |last| Stage::Syncing(Some(*last)));
        for (target, value) in &page {
            follower.sent.add(*target, *value);
        }
        (!page.is_empty() || !targets.is_empty()).then_some(page)
    }

    /// Returns up to `budget` changes to send to `follower`. They count as sent.
    pub fn changes(&mut self, follower: usize, budget: usize) -> Vec<Instruction> {
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
        let valued: Vec<_> = taken.into_iter().map(|(target, was)| (target, was, self.value(target))).collect();
        let Some(state) = self.followers.get_mut(follower) else { return Vec::new() };
        let mut instructions = Vec::with_capacity(valued.len());
        for (target, was, is) in valued {
            if was == is {
                continue;
            }
            if let Some(was) = was {
                state.sent.remove(target, was);
            }
            if let Some(is) = is {
                state.sent.add(target, is);
            }
            instructions.push(match (was, is) {
                (None, Some(is)) => Instruction::Add(target, is),
                (Some(_), Some(is)) => Instruction::Set(target, is),
                (_, None) => Instruction::Remove(target),
            });
        }
        instructions
    }

    /// Returns `true` if `follower` must be sent everything: it never was, or too many changes are waiting.
    pub fn needs_full_sync(&self, follower: usize) -> bool {
        self.followers.get(follower).is_some_and(|follower| {
            follower.stage == Stage::Unsynced
                || (follower.slow && follower.backlog.values().filter(|was| was.is_some()).count() > MAX_SLOW_BACKLOG)
        })
    }

    /// Returns `true` if changes are waiting for `follower`.
    pub fn has_changes(&self, follower: usize) -> bool {
        self.followers.get(follower).is_some_and(|follower| !follower.backlog.is_empty())
    }

    /// Returns the digest of `follower`'s map, provided that nothing else has written to it.
    pub fn sent(&self, follower: usize) -> MapDigest {
        self.followers.get(follower).map(|follower| follower.sent).unwrap_or_default()
    }

    /// Returns the number of bans, including ended ones that were not swept yet.
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Returns `true` if there are no bans.
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }

    /// Returns the value of `target` in the map, or `None` if it has no entry.
    pub fn value(&self, target: Target) -> Option<u32> {
        let own = self.bans.get(&target)?;
        if holds_ipv4(target) {
            return None;
        }
        if let Some(allowed) = self.allowlist.narrowest(target) {
            let exception = self.exception_set.narrowest(target)?;
            // Inside an exception, only its own end counts: after it, the allowlist entry of the wider network applies again.
            let decides = exception == target && exception.prefix128() > allowed.prefix128();
            return self.exceptions.get(&target).filter(|_| decides).map(|until| until.seconds());
        }
        let family = target.is_ipv4();
        let wider = self.lengths.range((family, 0)..(family, target.prefix128())).filter_map(|((_, prefix), _)| {
            let around = Target::from_bits(target.bits() & mask(*prefix), *prefix);
            self.bans.get(&around).filter(|_| !holds_ipv4(around))
        });
        wider.chain([own]).max().map(|until| until.seconds())
    }

    /// Iterates over the banned targets inside `target`, including `target` itself.
    fn within(&self, target: Target) -> impl Iterator<Item = Target> + '_ {
        let last = Target::from_bits(target.bits() | !mask(target.prefix128()), 128);
        self.bans.range(target..=last).map(|(held, _)| *held).filter(move |held| target.covers(*held))
    }

    /// Records for every follower that the value of `target` has changed from `before`.
    fn note(&mut self, target: Target, before: Option<u32>) {
        for follower in &mut self.followers {
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

    fn note(&mut self, target: Target, before: Option<u32>) {
        if self.backlog.len() >= MAX_BACKLOG && !self.backlog.contains_key(&target) {
            self.invalidate();
        } else {
            self.backlog.entry(target).or_insert(before);
        }
    }
}

/// Returns `true` if `target` is an IPv6 network that contains `::ffff:0:0/96`. HAProxy would match IPv4 clients with it, so it is never
/// sent.
pub fn holds_ipv4(target: Target) -> bool {
    !target.is_ipv4() && 0xffff_0000_0000 & mask(target.prefix128()) == target.bits() && target.prefix128() < 96
}

#[cfg(test)]
mod tests;
