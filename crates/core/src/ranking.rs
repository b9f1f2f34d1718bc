//! The most frequent keys of the last hour, in bounded memory.
//!
//! A window of five minutes counts at most `capacity` keys, by the algorithm of Misra and Gries: when a new key finds no room, all counts
//! are lowered together until one is free. A count is therefore never too high, and too low by at most [`Top::short_by`].

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// The time that a ranking covers, at most. It is up to one window shorter.
pub const COVERED: Duration = Duration::from_secs(3600);
/// The length of a window.
const WINDOW: Duration = Duration::from_secs(300);
/// The number of windows.
const WINDOWS: usize = 12;

/// The most frequent keys of the last hour.
#[derive(Debug)]
pub struct Ranking<K> {
    windows: VecDeque<Window<K>>,
    capacity: usize,
}

#[derive(Debug)]
struct Window<K> {
    number: u64,
    counts: HashMap<K, u64>,
    total: u64,
    lowered: u64,
}

/// The most frequent keys, and what they are the most frequent of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top<K> {
    /// Keys with their counts, the highest count first.
    pub rows: Vec<(K, u64)>,
    /// The number of keys that are counted.
    pub keys: usize,
    /// The sum of everything that was counted, for all keys.
    pub total: u64,
    /// How much too low a count may be; 0 while every key had room.
    pub short_by: u64,
}

impl<K: Clone + Eq + Hash + Ord> Ranking<K> {
    /// An empty ranking that counts up to `capacity` keys per window.
    pub fn new(capacity: usize) -> Self {
        Self { windows: VecDeque::new(), capacity: capacity.max(1) }
    }

    /// Counts `key` `times` more at `now`.
    pub fn count(&mut self, key: &K, times: u64, now: UnixMillis) {
        let number = number_of(now);
        // A clock that was set back counts into the latest window, so that windows stay in order.
        if self.windows.back().is_none_or(|last| last.number < number) {
            self.windows.push_back(Window { number, counts: HashMap::new(), total: 0, lowered: 0 });
        }
        while self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
        if let Some(window) = self.windows.back_mut() {
            window.count(key, times, self.capacity);
        }
    }

    /// The `limit` most frequent keys of the hour before `now`.
    pub fn top(&self, now: UnixMillis, limit: usize) -> Top<K> {
        let number = number_of(now);
        let oldest = number.saturating_sub(WINDOWS as u64 - 1);
        let mut sums: HashMap<&K, u64> = HashMap::new();
        let (mut total, mut short_by) = (0, 0);
        // Windows from before the clock was set back are later than `now`. They are in the way of nothing and end by themselves.
        for window in self.windows.iter().filter(|window| window.number >= oldest) {
            for (key, count) in &window.counts {
                *sums.entry(key).or_default() += count;
            }
            total += window.total;
            short_by += window.lowered;
        }
        let keys = sums.len();
        let mut rows: Vec<(K, u64)> = sums.into_iter().map(|(key, count)| (key.clone(), count)).collect();
        rows.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        rows.truncate(limit);
        Top { rows, keys, total, short_by }
    }
}

impl<K: Clone + Eq + Hash> Window<K> {
    fn count(&mut self, key: &K, mut times: u64, capacity: usize) {
        self.total = self.total.saturating_add(times);
        if let Some(count) = self.counts.get_mut(key) {
            *count = count.saturating_add(times);
            return;
        }
        while times > 0 {
            if self.counts.len() < capacity {
                self.counts.insert(key.clone(), times);
                return;
            }
            // Each round costs one pass and uses up as many counts as there are keys, so the mean cost of a count is constant.
            let least = self.counts.values().copied().min().unwrap_or(times).min(times);
            self.counts.retain(|_, count| {
                *count -= least;
                *count > 0
            });
            self.lowered += least;
            times -= least;
        }
    }
}

const fn number_of(now: UnixMillis) -> u64 {
    now.0 / (WINDOW.as_secs() * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_000);

    fn after(seconds: u64) -> UnixMillis {
        START.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn the_most_frequent_come_first_and_an_hour_later_are_gone() {
        let mut ranking = Ranking::new(10);
        for (key, times, at) in [("a", 2, 0), ("b", 5, 10), ("a", 4, 400), ("c", 1, 3000)] {
            ranking.count(&key, times, after(at));
        }
        let top = ranking.top(after(3000), 2);
        assert_eq!(top, Top { rows: vec![("a", 6), ("b", 5)], keys: 3, total: 12, short_by: 0 });
        assert_eq!(ranking.top(after(3700), 9).rows, [("a", 4), ("c", 1)]);
        assert_eq!(ranking.top(after(9000), 9).rows, []);
    }

    #[test]
    fn frequent_keys_survive_a_flood_of_others_in_bounded_memory() {
        let mut ranking = Ranking::new(100);
        for n in 0..100_000_u32 {
            ranking.count(&(1000 + n), 1, START);
            if n % 20 == 0 {
                ranking.count(&7, 1, START);
            }
        }
        let top = ranking.top(START, 3);
        assert_eq!(top.rows[0].0, 7);
        assert!(top.rows[0].1 <= 5000 && top.rows[0].1 + top.short_by >= 5000, "{top:?}");
        assert!(top.keys <= 100 && top.total == 105_000);
        assert!(top.short_by <= top.total / 100, "{top:?}");
    }

    #[test]
    fn a_clock_that_is_set_back_loses_no_count_and_grows_nothing() {
        let mut ranking = Ranking::new(10);
        ranking.count(&"a", 1, after(9000));
        ranking.count(&"a", 1, START);
        assert_eq!(ranking.top(after(9000), 1).rows, [("a", 2)]);
        for hour in 0..100 {
            ranking.count(&"a", 1, after(10_000 + hour * 3600));
        }
        assert!(ranking.windows.len() <= WINDOWS);
    }

    #[test]
    fn the_last_twelve_windows_count() {
        let mut ranking = Ranking::new(10);
        for window in 0..20 {
            ranking.count(&window, 1, after(window * WINDOW.as_secs()));
        }
        let mut keys: Vec<u64> = ranking.top(after(19 * WINDOW.as_secs()), 20).rows.iter().map(|row| row.0).collect();
        keys.sort_unstable();
        assert_eq!(keys, (8..20).collect::<Vec<u64>>());
    }

    #[test]
    fn a_new_key_lowers_all_counts_when_there_is_no_room() {
        let mut ranking = Ranking::new(2);
        for (key, times) in [("a", 5), ("b", 1), ("c", 3)] {
            ranking.count(&key, times, START);
        }
        let top = ranking.top(START, 9);
        assert_eq!((top.rows, top.total, top.short_by), (vec![("a", 4), ("c", 2)], 9, 1));
    }
}
