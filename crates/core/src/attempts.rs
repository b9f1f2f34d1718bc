//! Counting offences in a sliding window, in bounded memory, also together with what the other nodes counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// Which offences are counted together: those of all filters under the general policy, or of those that share another one.
///
/// The number is the same on every node: 0 is the general one, others are a hash of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JailId(pub u32);

impl JailId {
    /// The jail of all rules without a policy of their own.
    pub const GENERAL: Self = Self(0);

    /// The jail of all rules with a policy that is written as `policy`.
    pub fn of_policy(policy: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(policy.as_bytes());
        Self(u32::try_from(hash >> 32).unwrap_or_default().max(1))
    }
}

/// What is counted: a target in a jail.
pub type Key = (JailId, Target);

/// Who counts, on another node: a hash of the node's name and of its generation, for a restarted node counts from zero.
pub type Counter = u64;

/// How many slots of a window counts are shared in. Local offences are counted exactly.
pub const SLOTS: u32 = 60;

/// What another node counted, or what this one tells them: an absolute number, so that late and repeated records do no
/// harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCount {
    /// Whose offences.
    pub key: Key,
    /// The number of the slot: time since the epoch, divided by the slot's length.
    pub slot: u64,
    /// Offences in that slot, as seen by its counter.
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

/// What recognised an offence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The filter, by name.
    pub filter: Arc<str>,
    /// The rule of the filter.
    pub rule: Arc<str>,
}

/// The outcome of an offence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Offences within the window now, on all nodes.
    pub attempts: u32,
    /// What to tell the other nodes.
    pub share: SlotCount,
}

/// Windows of all targets, at most `capacity` of them.
///
/// When it is full, a target with a single offence goes first (oldest first), so that a flood of spoofed addresses does
/// not wash out those who keep trying.
#[derive(Debug)]
pub struct Attempts {
    capacity: usize,
    windows: HashMap<Key, Window, foldhash::fast::RandomState>,
    once: VecDeque<(Key, u64)>,
    again: VecDeque<(Key, u64)>,
    sequence: u64,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Window {
    /// When the local offences happened, oldest first, at most `max_attempts` of them.
    local: VecDeque<UnixMillis>,
    /// What other nodes counted: by node and slot.
    remote: Vec<(Counter, u64, u32)>,
    /// What recognised the last local offence.
    by: Option<Recognised>,
    /// Offences up to here have been answered with a ban and no longer count. Of the local ones nothing is left then; this is for
    /// what others tell later of the time before.
    cleared: UnixMillis,
    /// The last place in a queue; older places are void.
    sequence: u64,
    last: UnixMillis,
    /// How long it matters after `last`.
    span: Duration,
}

/// How many slots of other nodes one window holds at most.
const MAX_REMOTE: usize = 1024;

impl Attempts {
    /// No windows yet, and never more than `capacity` (at least 1).
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

    /// The number of targets that are being counted.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether nothing is being counted.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// How many targets were let go before their window was over, for lack of room.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Counts `times` offences at `now`.
    pub fn record(&mut self, key: Key, times: u32, by: &Recognised, rule: Rule, now: UnixMillis) -> Counted {
        let window = self.touch(key, rule, now);
        window.by = Some(by.clone());
        for _ in 0..times.min(rule.max_attempts) {
            if window.local.len() >= rule.max_attempts as usize {
                window.local.pop_front();
            }
            window.local.push_back(now);
        }
        let slot = rule.slot(now);
        let in_slot = window.local.iter().filter(|at| rule.slot(**at) == slot).count();
        let share = SlotCount { key, slot, count: u32::try_from(in_slot).unwrap_or(u32::MAX) };
        Counted { attempts: window.attempts(rule, now), share }
    }

    /// Takes in what another node counted, and returns the offences within the window now.
    pub fn merge(&mut self, from: Counter, share: SlotCount, rule: Rule, now: UnixMillis) -> u32 {
        let (oldest, newest) = (rule.slot(now.minus(rule.time_window)), rule.slot(now.plus(rule.time_window)));
        if share.slot < oldest || share.slot > newest {
            return self.attempts(share.key, rule, now);
        }
        let window = self.touch(share.key, rule, now);
        let known = window.remote.iter_mut().find(|(counter, slot, _)| (*counter, *slot) == (from, share.slot));
        match known {
            Some((_, _, count)) => *count = (*count).max(share.count),
            None => {
                window.remote.retain(|(_, slot, _)| *slot >= oldest);
                if window.remote.len() < MAX_REMOTE {
                    window.remote.push((from, share.slot, share.count));
                }
            }
        }
        window.attempts(rule, now)
    }

    /// The offences of `key` within the window that ends at `now`.
    pub fn attempts(&self, key: Key, rule: Rule, now: UnixMillis) -> u32 {
        self.windows.get(&key).map_or(0, |window| window.attempts(rule, now))
    }

    /// Who has seen how many offences of `key` within the window that ends at `now`.
    pub fn counts(&self, key: Key, rule: Rule, now: UnixMillis) -> Counts {
        self.windows.get(&key).map_or_else(Counts::default, |window| window.counts(rule, now))
    }

    /// What recognised the last offence of `key` that this node saw itself within the window.
    pub fn last_local(&self, key: Key, rule: Rule, now: UnixMillis) -> Option<&Recognised> {
        let window = self.windows.get(&key)?;
        let since = now.minus(rule.time_window);
        window.local.back().filter(|at| **at > since).and(window.by.as_ref())
    }

    /// Forgets the offences up to `now`: they were answered with a ban, or a success cleared them. Late records of other
    /// nodes about that time do not count either.
    pub fn clear(&mut self, key: Key, now: UnixMillis) {
        if let Some(window) = self.windows.get_mut(&key) {
            window.local.clear();
            window.remote.clear();
            window.cleared = window.cleared.max(now);
        }
    }

    fn touch(&mut self, key: Key, rule: Rule, now: UnixMillis) -> &mut Window {
        self.expire(now);
        if self.windows.len() >= self.capacity && !self.windows.contains_key(&key) {
            self.evict();
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let window = self.windows.entry(key).or_default();
        if window.is_from_the_future(now) {
            // All of it would count, or hide what others count, until the clock is there again.
            *window = Window { sequence: window.sequence, ..Window::default() };
        }
        let first = window.sequence == 0;
        window.sequence = sequence;
        window.last = window.last.max(now);
        window.span = rule.time_window;
        let queue = if first { &mut self.once } else { &mut self.again };
        queue.push_back((key, sequence));
        // Void places are dropped once they outnumber the valid ones, so queues stay as short as the map.
        for queue in [&mut self.once, &mut self.again] {
            if queue.len() > 2 * self.windows.len() + 64 {
                queue
                    .retain(|(key, sequence)| self.windows.get(key).is_some_and(|window| window.sequence == *sequence));
            }
        }
        self.windows.entry(key).or_default()
    }

    /// Drops a few windows that are over, oldest first.
    fn expire(&mut self, now: UnixMillis) {
        for queue in [&mut self.once, &mut self.again] {
            for _ in 0..4 {
                let Some((key, sequence)) = queue.front() else { break };
                match self.windows.get(key) {
                    Some(window) if window.sequence == *sequence => {
                        if !window.is_over(now) {
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

/// Offences within a window, by who has seen them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// This node.
    pub own: u32,
    /// Others.
    pub others: Vec<(Counter, u32)>,
}

impl Counts {
    /// Those of all nodes.
    pub fn total(&self) -> u32 {
        self.others.iter().fold(self.own, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// How offences are counted: the part of a ban policy that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Offences that make a ban; at least 1.
    pub max_attempts: u32,
    /// The window in which they count.
    pub time_window: Duration,
}

impl Rule {
    /// The number of the slot in which `at` lies.
    pub fn slot(self, at: UnixMillis) -> u64 {
        at.0 / self.slot_millis()
    }

    fn slot_millis(self) -> u64 {
        u64::try_from(self.time_window.as_millis()).unwrap_or(u64::MAX).div_ceil(u64::from(SLOTS)).max(1)
    }
}

impl Window {
    /// Whether it matters no more.
    fn is_over(&self, now: UnixMillis) -> bool {
        now.since(self.last) > self.span || self.is_from_the_future(now)
    }

    /// Whether the clock was set back by more than the window since it was touched.
    fn is_from_the_future(&self, now: UnixMillis) -> bool {
        self.last.since(now) > self.span
    }

    fn attempts(&self, rule: Rule, now: UnixMillis) -> u32 {
        self.told(rule, now).fold(self.seen(rule, now), |sum, (_, count)| sum.saturating_add(count))
    }

    /// As [`Window::attempts`], by who has seen them.
    fn counts(&self, rule: Rule, now: UnixMillis) -> Counts {
        let mut others: Vec<(Counter, u32)> = Vec::new();
        for (counter, count) in self.told(rule, now) {
            match others.iter_mut().find(|(known, _)| *known == counter) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => others.push((counter, count)),
            }
        }
        Counts { own: self.seen(rule, now), others }
    }

    /// The offences that this node has seen.
    fn seen(&self, rule: Rule, now: UnixMillis) -> u32 {
        let since = now.minus(rule.time_window);
        let local = self.local.iter().filter(|at| **at > since).count();
        u32::try_from(local).unwrap_or(u32::MAX)
    }

    /// Those that others have told of.
    fn told(&self, rule: Rule, now: UnixMillis) -> impl Iterator<Item = (Counter, u32)> + '_ {
        let since = now.minus(rule.time_window);
        self.remote
            .iter()
            // A slot counts while all of it lies within the window: never does an offence count longer than the window.
            .filter(move |(_, slot, _)| {
                let start = slot.saturating_mul(rule.slot_millis());
                start > since.0 && start > self.cleared.0
            })
            .map(|(counter, _, count)| (*counter, *count))
    }
}

#[cfg(test)]
mod tests;
