//! Counts offences per source in a sliding window, in bounded memory, and adds the counts of other nodes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::planted::{Fault, is_planted};
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// Identifies a jail: the offences that are counted together because they share a policy.
///
/// The number is the same on every node: 0 is the general policy, others are a hash of the policy. The highest bit is set for a jail in
/// shadow mode, so that a node without that jail knows that its counts never lead to a ban.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailId(pub u32);

impl JailId {
    /// The jail of all rules that use the general policy.
    pub const GENERAL: Self = Self(0);

    /// The bit of a jail in shadow mode.
    const SHADOW: u32 = 1 << 31;

    /// Returns the jail of all rules whose policy has the text `policy`.
    pub fn of_policy(policy: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(policy.as_bytes());
        Self((u32::try_from(hash >> 32).unwrap_or_default() & !Self::SHADOW).max(1))
    }

    /// Returns the same jail in shadow mode: it counts, but never bans.
    #[must_use]
    pub const fn shadowed(self) -> Self {
        Self(self.0 | Self::SHADOW)
    }

    /// Returns `true` if the jail is in shadow mode.
    pub const fn is_shadow(self) -> bool {
        self.0 & Self::SHADOW != 0
    }
}

/// What offences are counted by: a target in a jail.
pub type Key = (JailId, Target);

/// Identifies the process on another node that counted: a hash of the node's name and generation, because a restarted node counts from zero.
pub type Counter = u64;

/// Into how many slots a window is divided for the counts that nodes exchange. Local offences are counted by their exact times.
pub const SLOTS: u32 = 60;

/// The count that one node publishes for one slot: an absolute number, so late and repeated records do no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCount {
    /// The target and the jail.
    pub key: Key,
    /// The number of the slot: the time since the epoch divided by the length of a slot.
    pub slot: u64,
    /// The offences in that slot that the node itself recognised.
    pub count: u32,
}

/// A count that another node published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteCount {
    /// Which start of which node counted.
    pub from: Counter,
    /// What it counted.
    pub share: SlotCount,
}

/// The filter and the rule that recognised an offence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The name of the filter.
    pub filter: Arc<str>,
    /// The name of the rule within the filter.
    pub rule: Arc<str>,
}

/// The counts after an offence was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The offences within the window, on all nodes.
    pub attempts: u32,
    /// The count to publish to the other nodes.
    pub share: SlotCount,
}

/// The windows of all targets, at most `capacity` of them.
///
/// When all are in use, targets with a single offence are evicted first, oldest first. So a flood of spoofed addresses does not
/// evict sources that keep trying.
#[derive(Debug)]
pub struct Attempts {
    capacity: usize,
    windows: HashMap<Key, Window, foldhash::fast::RandomState>,
    /// Keys that were touched once, in order, with the sequence number of the touch.
    once: VecDeque<(Key, u64)>,
    /// The same for keys that were touched again.
    again: VecDeque<(Key, u64)>,
    sequence: u64,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Window {
    /// The times of the local offences, oldest first, at most `max_attempts` of them.
    local: VecDeque<UnixMillis>,
    /// The counts of other nodes, by node and slot.
    remote: Vec<(Counter, u64, u32)>,
    /// The filter and rule of the last local offence.
    by: Option<Recognised>,
    /// Offences up to this time no longer count, because a ban or a success cleared them. Local offences are deleted when that happens;
    /// this is for counts of other nodes that arrive later.
    cleared: UnixMillis,
    /// The sequence number of the last touch. Queue entries with an older number are stale.
    sequence: u64,
    last: UnixMillis,
    /// How long the window counts after `last`.
    span: Duration,
}

/// The most slots of other nodes in one window.
const MAX_REMOTE: usize = 1024;

impl Attempts {
    /// Creates an empty set of windows that never holds more than `capacity` (at least 1).
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            windows: HashMap::default(),
            once: VecDeque::new(),
            again: VecDeque::new(),
            sequence: 0,
            evicted: 0,
        }
    }

    /// Returns the number of windows.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Returns `true` if there are no windows.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Returns how many windows were evicted before they ended, because `capacity` was reached.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Records `times` offences at `now`.
    pub fn record(&mut self, key: Key, times: u32, by: &Recognised, threshold: Threshold, now: UnixMillis) -> Counted {
        let window = self.touch(key, threshold, now);
        window.by = Some(by.clone());
        for _ in 0..times.min(threshold.max_attempts) {
            if window.local.len() >= threshold.max_attempts as usize {
                window.local.pop_front();
            }
            window.local.push_back(now);
        }
        let slot = threshold.slot(now);
        let in_slot = window.local.iter().filter(|at| threshold.slot(**at) == slot).count();
        let share = SlotCount { key, slot, count: u32::try_from(in_slot).unwrap_or(u32::MAX) };
        Counted { attempts: window.attempts(threshold, now), share }
    }

    /// Merges the count of another node, and returns the offences within the window. Counts from slots that are too old, or too far in the
    /// future, are ignored.
    pub fn merge(&mut self, from: Counter, share: SlotCount, threshold: Threshold, now: UnixMillis) -> u32 {
        let (oldest, newest) =
            (threshold.slot(now.minus(threshold.time_window)), threshold.slot(now.plus(threshold.time_window)));
        if share.slot < oldest || share.slot > newest {
            return self.attempts(share.key, threshold, now);
        }
        let window = self.touch(share.key, threshold, now);
        let count = if is_planted(Fault::CountTwice) { share.count.saturating_mul(2) } else { share.count };
        let known = window.remote.iter_mut().find(|(counter, slot, _)| (*counter, *slot) == (from, share.slot));
        match known {
            Some((_, _, known)) => *known = (*known).max(count),
            None => {
                window.remote.retain(|(_, slot, _)| *slot >= oldest);
                if window.remote.len() < MAX_REMOTE {
                    window.remote.push((from, share.slot, count));
                }
            }
        }
        window.attempts(threshold, now)
    }

    /// Returns the offences of `key` within the window that ends at `now`, on all nodes.
    pub fn attempts(&self, key: Key, threshold: Threshold, now: UnixMillis) -> u32 {
        self.windows.get(&key).map_or(0, |window| window.attempts(threshold, now))
    }

    /// Returns the offences of `key` within the window that ends at `now`, by node.
    pub fn counts(&self, key: Key, threshold: Threshold, now: UnixMillis) -> Counts {
        self.windows.get(&key).map_or_else(Counts::default, |window| window.counts(threshold, now))
    }

    /// Returns the filter and rule of the last offence of `key` that this node itself recognised, if it is within the window.
    pub fn last_local(&self, key: Key, threshold: Threshold, now: UnixMillis) -> Option<&Recognised> {
        let window = self.windows.get(&key)?;
        let since = now.minus(threshold.time_window);
        window.local.back().filter(|at| **at > since).and(window.by.as_ref())
    }

    /// Removes the offences up to `now`, after a ban or a success. Counts of other nodes for that time that arrive later do not count
    /// either.
    pub fn clear(&mut self, key: Key, now: UnixMillis) {
        if let Some(window) = self.windows.get_mut(&key) {
            window.local.clear();
            window.remote.clear();
            window.cleared = window.cleared.max(now);
        }
    }

    fn touch(&mut self, key: Key, threshold: Threshold, now: UnixMillis) -> &mut Window {
        self.expire(now);
        if self.windows.len() >= self.capacity && !self.windows.contains_key(&key) {
            self.evict();
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let window = self.windows.entry(key).or_default();
        if window.is_from_the_future(now) {
            // The window would count in full, or hide the counts of others, until the clock reaches that time again.
            *window = Window { sequence: window.sequence, ..Window::default() };
        }
        let first = window.sequence == 0;
        window.sequence = sequence;
        window.last = window.last.max(now);
        window.span = threshold.time_window;
        let queue = if first { &mut self.once } else { &mut self.again };
        queue.push_back((key, sequence));
        // Stale entries are removed once they outnumber the valid ones, so the length of a queue stays proportional to the map.
        for queue in [&mut self.once, &mut self.again] {
            if queue.len() > 2 * self.windows.len() + 64 {
                queue
                    .retain(|(key, sequence)| self.windows.get(key).is_some_and(|window| window.sequence == *sequence));
            }
        }
        self.windows.entry(key).or_default()
    }

    /// Removes up to four ended windows per queue, oldest first.
    fn expire(&mut self, now: UnixMillis) {
        for queue in [&mut self.once, &mut self.again] {
            for _ in 0..4 {
                let Some((key, sequence)) = queue.front() else { break };
                match self.windows.get(key) {
                    Some(window) if window.sequence == *sequence => {
                        if !window.has_ended(now) {
                            break;
                        }
                        self.windows.remove(key);
                    }
                    _ => {}
                }
                queue.pop_front();
            }
        }
    }

    fn evict(&mut self) {
        for queue in [&mut self.once, &mut self.again] {
            while let Some((key, sequence)) = queue.pop_front() {
                if self.windows.get(&key).is_some_and(|window| window.sequence == sequence) {
                    self.windows.remove(&key);
                    self.evicted += 1;
                    return;
                }
            }
        }
    }
}

/// The offences within a window, by the node that recognised them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The offences that this node recognised.
    pub own: u32,
    /// The offences that other nodes recognised.
    pub others: Vec<(Counter, u32)>,
}

impl Counts {
    /// Returns the sum over all nodes.
    pub fn total(&self) -> u32 {
        self.others.iter().fold(self.own, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// How many offences in which time lead to a ban: the part of a policy that counting needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// How many offences lead to a ban; at least 1.
    pub max_attempts: u32,
    /// The length of the sliding window.
    pub time_window: Duration,
}

impl Threshold {
    /// Returns the number of the slot that contains `at`.
    pub fn slot(self, at: UnixMillis) -> u64 {
        at.0 / self.slot_millis()
    }

    fn slot_millis(self) -> u64 {
        u64::try_from(self.time_window.as_millis()).unwrap_or(u64::MAX).div_ceil(u64::from(SLOTS)).max(1)
    }
}

impl Window {
    /// Returns `true` if nothing in the window can count any more.
    fn has_ended(&self, now: UnixMillis) -> bool {
        now.since(self.last) > self.span || self.is_from_the_future(now)
    }

    /// Returns `true` if the clock was set back by more than the length of the window since the last offence.
    fn is_from_the_future(&self, now: UnixMillis) -> bool {
        self.last.since(now) > self.span
    }

    fn attempts(&self, threshold: Threshold, now: UnixMillis) -> u32 {
        self.peer_counts(threshold, now)
            .fold(self.own_count(threshold, now), |sum, (_, count)| sum.saturating_add(count))
    }

    /// Returns the same as [`Window::attempts`], by node.
    fn counts(&self, threshold: Threshold, now: UnixMillis) -> Counts {
        let mut others: Vec<(Counter, u32)> = Vec::new();
        for (counter, count) in self.peer_counts(threshold, now) {
            match others.iter_mut().find(|(known, _)| *known == counter) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => others.push((counter, count)),
            }
        }
        Counts { own: self.own_count(threshold, now), others }
    }

    /// Returns the offences that this node recognised.
    fn own_count(&self, threshold: Threshold, now: UnixMillis) -> u32 {
        let since = now.minus(threshold.time_window);
        let local = self.local.iter().filter(|at| **at > since).count();
        u32::try_from(local).unwrap_or(u32::MAX)
    }

    /// Iterates over the counts of other nodes that lie within the window.
    fn peer_counts(&self, threshold: Threshold, now: UnixMillis) -> impl Iterator<Item = (Counter, u32)> + '_ {
        let since = now.minus(threshold.time_window);
        self.remote
            .iter()
            // A slot counts only while all of it lies within the window, so no offence counts for longer than the window.
            .filter(move |(_, slot, _)| {
                let start = slot.saturating_mul(threshold.slot_millis());
                start > since.0 && start > self.cleared.0
            })
            .map(|(counter, _, count)| (*counter, *count))
    }
}

#[cfg(test)]
mod tests;
