//! The bans as entries of a stick-table, and the place that follows the ban table.
//!
//! A stick-table finds exact keys only. HAProxy looks up `src,ipmask(32,64)`, so the table has single IPv4 addresses and IPv6 networks
//! of /64. The value is the second at which the ban ends, which HAProxy compares with its own clock: bans end on time on every version,
//! also while this node is down.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::metrics::Metrics;
use crate::clock;
use crate::enforcement::follower::{Comparison, Place, Sent};
use banmesh_core::follow::{Allowlist, Change, Form, Traits};
#[cfg(test)]
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// The most changes that are remembered for sessions that are behind. A session that misses some is opened again.
const MAX_LOG: usize = 262_144;

/// A key: an IPv6 address, mapped for IPv4.
pub type Key = [u8; 16];

/// The bans as entries; clones share them.
#[derive(Clone, Debug)]
pub struct Bans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// The number of the next change; changes with every change. `None` until all bans are known.
    version: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Table {
    /// The second at which the ban of a key ends.
    entries: BTreeMap<Key, u32>,
    /// The keys that changed last, with consecutive numbers that end before `next`.
    log: VecDeque<Key>,
    next: u64,
    /// Bans of networks, which the table cannot hold.
    left_out: BTreeMap<Target, u32>,
}

/// Changes are no longer remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed;

impl Default for Bans {
    fn default() -> Self {
        Self(Arc::new(Shared { table: Mutex::default(), version: watch::Sender::new(None) }))
    }
}

impl Bans {
    /// The number of the next change. `None` until all bans are known.
    pub fn version(&self) -> watch::Receiver<Option<u64>> {
        self.0.version.subscribe()
    }

    /// Whether all bans are known.
    pub fn is_complete(&self) -> bool {
        self.0.version.borrow().is_some()
    }

    /// The second at which the ban of `key` ends; 0 if it is not banned.
    pub fn until(&self, key: &Key) -> u32 {
        self.0.table.lock().entries.get(key).copied().unwrap_or(0)
    }

    /// Up to `most` entries after `after`, in the order of keys.
    pub fn page(&self, after: Option<Key>, most: usize) -> Vec<(Key, u32)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0
            .table
            .lock()
            .entries
            .range((from, Bound::Unbounded))
            .take(most)
            .map(|(key, until)| (*key, *until))
            .collect()
    }

    /// Up to `most` keys that changed from change number `from` on, with their present value, and the number after them.
    ///
    /// # Errors
    /// When change number `from` is no longer remembered.
    pub fn changes(&self, from: u64, most: usize) -> Result<(Vec<(Key, u32)>, u64), Missed> {
        let table = self.0.table.lock();
        let waiting = usize::try_from(table.next.saturating_sub(from)).unwrap_or(usize::MAX);
        let first = table.log.len().checked_sub(waiting).ok_or(Missed)?;
        let value = |key: &Key| (*key, table.entries.get(key).copied().unwrap_or(0));
        let changes: Vec<(Key, u32)> = table.log.range(first..).take(most).map(value).collect();
        let next = from + changes.len() as u64;
        Ok((changes, next))
    }

    /// The number of the next change.
    pub fn next(&self) -> u64 {
        self.0.table.lock().next
    }

    /// The number of entries.
    pub fn entries(&self) -> usize {
        self.0.table.lock().entries.len()
    }

    fn publish(&self, next: u64) {
        self.0.version.send_replace(Some(next));
    }
}

impl Table {
    fn set(&mut self, target: Target, until: Option<u32>) {
        let Some(key) = key(target) else {
            match until {
                Some(until) if until != 0 => drop(self.left_out.insert(target, until)),
                _ => drop(self.left_out.remove(&target)),
            }
            return;
        };
        // A member of the allowlist has the value 0, which the table says by having no ban.
        let before = match until.filter(|until| *until != 0) {
            Some(until) => self.entries.insert(key, until),
            None => self.entries.remove(&key),
        };
        if before.unwrap_or(0) != until.unwrap_or(0) {
            self.note(key);
        }
    }

    fn note(&mut self, key: Key) {
        if self.log.len() >= MAX_LOG {
            self.log.pop_front();
        }
        self.log.push_back(key);
        self.next += 1;
    }
}

/// The key that HAProxy looks up for the clients of `target`; `None` if it looks up several.
fn key(target: Target) -> Option<Key> {
    let is_one = if target.is_ipv4() { target.prefix128() == 128 } else { target.prefix128() == 64 };
    // Targets store IPv4 as mapped addresses, as the table does.
    is_one.then(|| target.bits().to_be_bytes())
}

/// The key under which HAProxy looks a client up.
#[cfg(test)]
pub(super) fn key_of(client: Address) -> Key {
    Target::of_source(client, 32, 64).bits().to_be_bytes()
}

/// Keeps [`Bans`] in step with the ban table.
#[derive(Debug)]
pub struct BanPlace {
    bans: Bans,
    metrics: Metrics,
    filling: BTreeMap<Target, u32>,
}

impl BanPlace {
    pub(super) fn new(bans: Bans, metrics: Metrics) -> Self {
        Self { bans, metrics, filling: BTreeMap::new() }
    }

    fn write(&self, write: impl FnOnce(&mut Table)) {
        let (next, left_out) = {
            let mut table = self.bans.0.table.lock();
            write(&mut table);
            (table.next, table.left_out.len())
        };
        self.metrics.left_out.set(i64::try_from(left_out).unwrap_or(i64::MAX));
        self.bans.publish(next);
    }
}

impl Place for BanPlace {
    // Memory does not fail.
    type Error = Infallible;

    async fn open(&mut self) -> Result<Traits, Infallible> {
        // The lookup of one key must find the latest end of all bans that cover it, and nothing for exempt clients.
        Ok(Traits { form: Form::LongestPrefix, slow: false, expires: false })
    }

    async fn begin(&mut self, _: &Allowlist) -> Result<(), Infallible> {
        self.filling.clear();
        Ok(())
    }

    async fn fill(&mut self, page: Vec<(Target, u32)>) -> Result<(), Infallible> {
        self.filling.extend(page);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Infallible> {
        let new = std::mem::take(&mut self.filling);
        self.write(|table| {
            let kept: std::collections::BTreeSet<Key> = new.keys().filter_map(|target| key(*target)).collect();
            let gone: Vec<Key> = table.entries.keys().filter(|key| !kept.contains(*key)).copied().collect();
            table.left_out.clear();
            for key in gone {
                table.entries.remove(&key);
                table.note(key);
            }
            for (target, until) in new {
                table.set(target, Some(until));
            }
        });
        Ok(())
    }

    async fn change(&mut self, changes: Vec<Change>) -> Result<(), Infallible> {
        let now = clock::now().second();
        self.write(|table| {
            for change in changes {
                match change {
                    Change::Add(target, until) | Change::Set(target, until) => table.set(target, Some(until)),
                    Change::Remove(target) => {
                        // An ended ban needs no update.
                        let ended = key(target).filter(|key| table.entries.get(key).is_some_and(|until| *until <= now));
                        match ended {
                            Some(key) => drop(table.entries.remove(&key)),
                            None => table.set(target, None),
                        }
                    }
                }
            }
        });
        Ok(())
    }

    async fn look(&mut self, _: Sent<'_>) -> Result<Comparison, Infallible> {
        Ok(Comparison::Unchanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn addresses_and_64s_are_entries_and_networks_are_counted() {
        let bans = Bans::default();
        let mut place = BanPlace::new(bans.clone(), Metrics::default());
        let page = vec![(target("192.0.2.1/32"), 9), (target("2001:db8::/64"), 8), (target("198.51.100.0/24"), 7)];
        place.fill(page).await.unwrap();
        assert!(!bans.is_complete());
        place.commit().await.unwrap();
        assert!(bans.is_complete());
        assert_eq!(bans.until(&key_of(Address::new("192.0.2.1".parse().unwrap()))), 9);
        assert_eq!(bans.until(&key_of(Address::new("2001:db8::7".parse().unwrap()))), 8);
        assert_eq!((bans.entries(), place.metrics.left_out.get()), (2, 1));
    }

    #[tokio::test]
    async fn changes_are_numbered_and_a_session_that_is_too_far_behind_misses_some() {
        let bans = Bans::default();
        let mut place = BanPlace::new(bans.clone(), Metrics::default());
        place.commit().await.unwrap();
        place.change(vec![Change::Add(target("192.0.2.1/32"), u32::MAX)]).await.unwrap();
        place.change(vec![Change::Remove(target("192.0.2.1/32"))]).await.unwrap();
        let key = key_of(Address::new("192.0.2.1".parse().unwrap()));
        assert_eq!(bans.changes(0, 9), Ok((vec![(key, 0), (key, 0)], 2)));
        assert_eq!(bans.changes(1, 9), Ok((vec![(key, 0)], 2)));
        let many = |number: u32| Change::Add(Target::host(std::net::IpAddr::V4(number.into()).into()), u32::MAX);
        place
            .change((0..=u32::try_from(MAX_LOG).unwrap()).map(|number| many(0x0b00_0000 + number)).collect())
            .await
            .unwrap();
        assert_eq!(bans.changes(2, 9), Err(Missed));
    }

    #[tokio::test]
    async fn a_replacement_lifts_what_is_no_longer_banned() {
        let bans = Bans::default();
        let mut place = BanPlace::new(bans.clone(), Metrics::default());
        place.fill(vec![(target("192.0.2.1/32"), 9), (target("192.0.2.2/32"), 9)]).await.unwrap();
        place.commit().await.unwrap();
        let from = bans.next();
        place.fill(vec![(target("192.0.2.1/32"), 9)]).await.unwrap();
        place.commit().await.unwrap();
        let key = key_of(Address::new("192.0.2.2".parse().unwrap()));
        assert_eq!(bans.changes(from, 9).unwrap().0, [(key, 0)]);
    }
}
