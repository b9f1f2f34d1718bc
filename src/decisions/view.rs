//! The view of the ban table for lookups: until when an address is banned, found without a lock.
//!
//! For every prefix length in use, the one writer (the store) keeps an open-addressing hash table of atomics. The key of a slot is
//! written once and never changes. Only its expiry changes, which is one atomic word. A table that fills up is copied to a larger one, which
//! then replaces it. So a reader never waits for the writer. A lookup costs one hash lookup per prefix length in use.

mod atomic;
#[cfg(test)]
#[allow(clippy::duplicate_mod, reason = "compiles `slots` again with the atomics of loom")]
mod model;
mod slots;

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use banmesh_types::address::Address;
use banmesh_types::target::{Target, mask};
use banmesh_types::time::{Expiry, UnixMillis};

use slots::{Narrow, Slot, Slots, Wide};

/// The shared tables. [`View::reader`] makes readers.
#[derive(Clone, Debug, Default)]
pub struct View {
    published: Arc<ArcSwap<Lengths>>,
}

/// A reader with its own cached reference to the current tables.
#[derive(Clone, Debug)]
pub struct Reader {
    cache: Cache<Arc<ArcSwap<Lengths>>, Arc<Lengths>>,
}

/// The only writer.
#[derive(Debug)]
pub struct ViewWriter {
    published: Arc<ArcSwap<Lengths>>,
    lengths: Lengths,
}

#[derive(Clone, Debug, Default)]
struct Lengths {
    v4: Vec<(u8, Arc<Slots<Narrow>>)>,
    v6: Vec<(u8, Arc<Slots<Wide>>)>,
}

impl View {
    /// An empty view and its writer.
    pub fn new() -> (Self, ViewWriter) {
        let view = Self::default();
        let writer = ViewWriter { published: Arc::clone(&view.published), lengths: Lengths::default() };
        (view, writer)
    }

    /// A new reader. Every connection has its own.
    pub fn reader(&self) -> Reader {
        Reader { cache: Cache::new(Arc::clone(&self.published)) }
    }
}

impl Reader {
    /// Until when `address` is banned at `now`, itself or as part of a network; the longest ban counts. `None` if it is not banned.
    pub fn banned_until(&mut self, address: Address, now: UnixMillis) -> Option<Expiry> {
        let lengths = self.cache.load();
        let bits = address.bits();
        let until = if address.is_ipv4() {
            lengths.v4.iter().map(|(prefix, slots)| slots.until(bits & mask(*prefix))).max()
        } else {
            lengths.v6.iter().map(|(prefix, slots)| slots.until(bits & mask(*prefix))).max()
        };
        until.filter(|until| !until.has_passed(now))
    }

    /// Whether `target` itself is banned at `now`. Bans of networks around it do not count.
    pub fn is_banned(&mut self, target: Target, now: UnixMillis) -> bool {
        let lengths = self.cache.load();
        let (bits, prefix) = (target.bits(), target.prefix128());
        let until = if target.is_ipv4() {
            lengths.v4.iter().find(|(length, _)| *length == prefix).map(|(_, slots)| slots.until(bits))
        } else {
            lengths.v6.iter().find(|(length, _)| *length == prefix).map(|(_, slots)| slots.until(bits))
        };
        until.is_some_and(|until| !until.has_passed(now))
    }
}

impl ViewWriter {
    /// Bans `target` until `until`; [`Expiry::PAST`] unbans it. A table that must grow at `now` drops the bans that have expired by then.
    pub fn set(&mut self, target: Target, until: Expiry, now: UnixMillis) {
        let changed = if target.is_ipv4() {
            set(&mut self.lengths.v4, target, until, now)
        } else {
            set(&mut self.lengths.v6, target, until, now)
        };
        if changed {
            self.published.store(Arc::new(self.lengths.clone()));
        }
    }

    /// The memory of the tables in bytes.
    pub fn bytes(&self) -> usize {
        let v4: usize = self.lengths.v4.iter().map(|(_, slots)| slots.bytes()).sum();
        let v6: usize = self.lengths.v6.iter().map(|(_, slots)| slots.bytes()).sum();
        v4 + v6
    }
}

/// Writes to the table of the target's prefix length. Returns whether there is a new table to publish.
fn set<S: Slot>(lengths: &mut Vec<(u8, Arc<Slots<S>>)>, target: Target, until: Expiry, now: UnixMillis) -> bool {
    let prefix = target.prefix128();
    let at = lengths.partition_point(|(length, _)| *length > prefix);
    let mut changed = false;
    if lengths.get(at).is_none_or(|(length, _)| *length != prefix) {
        if until == Expiry::PAST {
            return false;
        }
        lengths.insert(at, (prefix, Arc::new(Slots::with_capacity(0))));
        changed = true;
    }
    let Some((_, slots)) = lengths.get_mut(at) else { return false };
    if slots.is_full() {
        *slots = Arc::new(slots.rebuilt(now));
        changed = true;
    }
    slots.set(target.bits(), until);
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn until(seconds: u64) -> Expiry {
        Expiry::at(UnixMillis(NOW.0 + seconds * 1000))
    }

    fn ip(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_around_a_target_does_not_ban_the_target_itself() {
        let (view, mut writer) = View::new();
        let mut reader = view.reader();
        let [network, inside, other, v6] =
            ["192.0.2.0/24", "192.0.2.7", "192.0.2.8", "2001:db8:0:1::/64"].map(|text| text.parse::<Target>().unwrap());
        writer.set(network, until(60), NOW);
        writer.set(inside, until(30), NOW);
        writer.set(v6, until(30), NOW);
        let later = UnixMillis(NOW.0 + 45_000);
        for (target, now, expected) in [
            (network, NOW, true),
            (inside, NOW, true),
            (other, NOW, false),
            (v6, NOW, true),
            (network, later, true),
            (inside, later, false),
            (v6, later, false),
        ] {
            assert_eq!(reader.is_banned(target, now), expected, "{target} at {now:?}");
        }
    }

    #[test]
    fn hosts_and_networks_of_both_families() {
        let (view, mut writer) = View::new();
        let mut reader = view.reader();
        for (target, seconds) in
            [("192.0.2.1", 10), ("198.51.100.0/24", 20), ("2001:db8::/64", 30), ("2001:db8:1::1", 40), ("0.0.0.0", 5)]
        {
            writer.set(target.parse().unwrap(), until(seconds), NOW);
        }
        for (address, expected) in [
            ("192.0.2.1", Some(10)),
            ("192.0.2.2", None),
            ("198.51.100.77", Some(20)),
            ("2001:db8::77", Some(30)),
            ("2001:db8:1::1", Some(40)),
            ("2001:db8:1::2", None),
            ("0.0.0.0", Some(5)),
            ("::", None),
        ] {
            assert_eq!(reader.banned_until(ip(address), NOW), expected.map(until), "{address}");
        }
        // The longest ban counts; a removed or expired ban does not.
        writer.set("192.0.2.0/24".parse().unwrap(), until(60), NOW);
        assert_eq!(reader.banned_until(ip("192.0.2.1"), NOW), Some(until(60)));
        writer.set("192.0.2.0/24".parse().unwrap(), Expiry::PAST, NOW);
        assert_eq!(reader.banned_until(ip("192.0.2.1"), NOW), Some(until(10)));
        assert_eq!(reader.banned_until(ip("192.0.2.1"), UnixMillis(NOW.0 + 10_000)), None);
        writer.set("0.0.0.0".parse().unwrap(), Expiry::NEVER, NOW);
        assert_eq!(reader.banned_until(ip("0.0.0.0"), UnixMillis(u64::MAX)), Some(Expiry::NEVER));
    }

    #[test]
    fn readers_never_miss_existing_bans_while_the_writer_adds_others() {
        let (view, mut writer) = View::new();
        let fixed: Vec<Address> = (0..500u32)
            .flat_map(|n| {
                [
                    Address::new(std::net::IpAddr::V4(n.into())),
                    Address::new(std::net::IpAddr::V6(u128::from(n + 7).into())),
                ]
            })
            .collect();
        for address in &fixed {
            writer.set(Target::host(*address), Expiry::NEVER, NOW);
        }
        std::thread::scope(|scope| {
            let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let (mut reader, fixed, done) = (view.reader(), &fixed, Arc::clone(&done));
                    scope.spawn(move || {
                        while !done.load(Ordering::Relaxed) {
                            assert!(fixed.iter().all(|address| reader.banned_until(*address, NOW).is_some()));
                        }
                    })
                })
                .collect();
            for n in 0..200_000u32 {
                let address = if n % 2 == 0 {
                    Address::new(std::net::IpAddr::V4((n + 100_000).into()))
                } else {
                    Address::new(std::net::IpAddr::V6(u128::from(n + 100_000).into()))
                };
                writer.set(Target::host(address), until(u64::from(n % 3)), NOW);
            }
            done.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_hash_map(writes in proptest::collection::vec((0u32..300, any::<bool>(), 0u64..4), 0..600)) {
            let (view, mut writer) = View::new();
            let mut reader = view.reader();
            let mut oracle = HashMap::new();
            for (n, v6, seconds) in writes {
                let address = if v6 { Address::new(std::net::IpAddr::V6(u128::from(n).into())) } else { Address::new(std::net::IpAddr::V4(n.into())) };
                let end = if seconds == 0 { Expiry::PAST } else { until(seconds) };
                writer.set(Target::host(address), end, NOW);
                oracle.insert(address, end);
            }
            for (address, end) in oracle {
                prop_assert_eq!(reader.banned_until(address, NOW), (end != Expiry::PAST).then_some(end));
            }
        }
    }
}
