//! A HAProxy process as its source says it counts: a table that it tracks, and the table of sums that a peer writes.

use std::collections::{BTreeMap, BTreeSet};

use banmesh_peers::{Rate, Value};

use super::PERIOD;

/// What HAProxy shows for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub count: u64,
    pub rate: u64,
    pub connections: u64,
}

/// An entry. Times are those of the host's clock, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    count: u64,
    connections: u64,
    /// The beginning of the window, and what is in it and in the one before. `None`: never counted.
    window: Option<i64>,
    curr: u64,
    prev: u64,
}

impl Entry {
    /// `update_freq_ctr_period_slow` of HAProxy.
    fn count(&mut self, now: i64) {
        let period = PERIOD as i64;
        self.count += 1;
        let mut window = self.window.unwrap_or(now);
        if now - window >= period {
            (self.prev, self.curr) = (self.curr, 0);
            window += period;
            if now - window >= period {
                (self.prev, window) = (0, now);
            }
        }
        self.curr += 1;
        self.window = Some(window);
    }

    /// `freq_ctr_total` of HAProxy, over a period.
    fn shown(&self, now: i64) -> Shown {
        let period = PERIOD as i64;
        let age = self.window.map_or(i64::MAX, |window| now - window);
        let (curr, prev, age) = match age {
            age if age < period => (self.curr, self.prev, age),
            age if age < 2 * period => (0, self.curr, age - period),
            _ => (0, 0, 0),
        };
        let rate = curr + prev * u64::try_from(period - age).unwrap() / PERIOD;
        Shown { count: self.count, rate, connections: self.connections }
    }

    fn values(&self, now: i64) -> [Value; 3] {
        let age = self.window.map_or(u64::from(u32::MAX), |window| u64::try_from(now - window).unwrap());
        let rate = Rate { age, curr: self.curr, prev: self.prev };
        [Value::Number(self.connections), Value::Number(self.count), Value::Rate(rate)]
    }

    fn set(&mut self, connections: Option<Value>, count: Value, rate: Value, now: i64) {
        let (Value::Number(count), Value::Rate(rate)) = (count, rate) else { panic!("{count:?} {rate:?}") };
        if let Some(Value::Number(connections)) = connections {
            self.connections = connections;
        }
        (self.count, self.curr, self.prev) = (count, rate.curr, rate.prev);
        self.window = Some(now - i64::try_from(rate.age).unwrap());
    }
}

#[derive(Debug, Default)]
pub struct HaProxy {
    counted: BTreeMap<u32, Entry>,
    others: BTreeMap<u32, Entry>,
    /// The keys that changed since they were sent.
    changed: BTreeSet<u32>,
}

impl HaProxy {
    pub fn count(&mut self, key: u32, connections: u64, now: i64) {
        let entry = self.counted.entry(key).or_default();
        entry.count(now);
        entry.connections = connections;
        self.changed.insert(key);
    }

    pub fn shown(&self, key: u32, now: i64) -> Shown {
        self.counted.get(&key).copied().unwrap_or_default().shown(now)
    }

    pub fn others(&self, key: u32, now: i64) -> Shown {
        self.others.get(&key).copied().unwrap_or_default().shown(now)
    }

    pub fn connections(&self, key: u32) -> u64 {
        self.counted.get(&key).map_or(0, |entry| entry.connections)
    }

    /// Another process, with what the old one taught it: its entries without open connections.
    pub fn reload(&mut self) {
        self.counted.values_mut().for_each(|entry| entry.connections = 0);
        self.others.clear();
        self.everything_changed();
    }

    /// In a resync all entries are sent.
    pub fn everything_changed(&mut self) {
        self.changed = self.counted.keys().copied().collect();
    }

    /// The entries that changed.
    pub fn sent(&mut self, now: i64) -> Vec<(u32, [Value; 3])> {
        std::mem::take(&mut self.changed).into_iter().map(|key| (key, self.counted[&key].values(now))).collect()
    }

    /// Is given back what an earlier process counted. HAProxy learns no connections.
    pub fn give_back(&mut self, key: u32, values: &[Value], now: i64) {
        self.counted.entry(key).or_default().set(None, values[1], values[2], now);
    }

    /// Is sent a sum.
    pub fn set_others(&mut self, key: u32, values: &[Value], now: i64) {
        self.others.entry(key).or_default().set(Some(values[0]), values[1], values[2], now);
    }
}
