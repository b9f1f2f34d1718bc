//! All lists in one table.
//!
//! A table is never changed: [`Table::replaced`] makes the next one from it, which the node then swaps in, so no reader waits.

use banmesh_types::address::Address;

use crate::list::List;
use crate::ranges::Ranges;

/// The most feeds of a node.
pub const MAX_FEEDS: usize = 32;

/// Which feeds have an address, by their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeedSet(u32);

/// Which feeds have which addresses.
#[derive(Clone, Debug, Default)]
pub struct Table {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl FeedSet {
    /// The set of one feed. Numbers from [`MAX_FEEDS`] on make an empty set.
    pub fn of(feed: usize) -> Self {
        Self(if feed < MAX_FEEDS { 1 << feed } else { 0 })
    }

    /// Whether no feed is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The feeds that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The feeds that are in one of them.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The numbers of its feeds, ascending.
    pub fn feeds(self) -> impl Iterator<Item = usize> {
        (0..MAX_FEEDS).filter(move |feed| self.0 >> feed & 1 == 1)
    }
}

impl Table {
    /// The feeds that have `address`.
    pub fn find(&self, address: Address) -> FeedSet {
        let bits = address.bits();
        FeedSet(if address.is_ipv4() { self.v4.find(low_word(bits)) } else { self.v6.find(bits) })
    }

    /// This table with `list` as all that `feed` has; `None` for nothing.
    #[must_use]
    pub fn replaced(&self, feed: usize, list: Option<&List>) -> Self {
        let FeedSet(bit) = FeedSet::of(feed);
        let (v4, v6) = list.map_or((&[][..], &[][..]), |list| (&list.v4[..], &list.v6[..]));
        Self { v4: self.v4.replaced(bit, v4), v6: self.v6.replaced(bit, v6) }
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

fn low_word(bits: u128) -> u32 {
    u32::try_from(bits & 0xffff_ffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use banmesh_types::netset::NetSet;
    use banmesh_types::target::Target;
    use proptest::prelude::*;

    fn list(targets: &[Target]) -> List {
        List::of(&targets.iter().copied().collect::<NetSet>())
    }

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn found(table: &Table, address: &str) -> Vec<usize> {
        table.find(address.parse().unwrap()).feeds().collect()
    }

    #[test]
    fn every_feed_that_has_an_address_is_found() {
        let first = list(&targets(&["11.0.0.0/16", "11.2.0.1", "2a00:1::/32"]));
        let second = list(&targets(&["11.0.7.0/24", "11.2.0.2", "2a00:1:2::/48", "223.255.255.255"]));
        let table = Table::default().replaced(0, Some(&first)).replaced(31, Some(&second));
        for (address, feeds) in [
            ("11.0.0.0", vec![0]),
            ("11.0.7.0", vec![0, 31]),
            ("11.0.7.255", vec![0, 31]),
            ("11.0.8.0", vec![0]),
            ("11.1.0.0", vec![]),
            ("10.255.255.255", vec![]),
            ("11.2.0.1", vec![0]),
            ("11.2.0.2", vec![31]),
            ("223.255.255.255", vec![31]),
            ("224.0.0.0", vec![]),
            ("2a00:1::1", vec![0]),
            ("2a00:1:2::1", vec![0, 31]),
            ("2a00:2::", vec![]),
            ("::", vec![]),
            ("::ffff:11.2.0.1", vec![0]),
        ] {
            assert_eq!(found(&table, address), feeds, "{address}");
        }
        let table = table.replaced(0, None);
        assert_eq!(found(&table, "11.0.7.1"), [31]);
        assert_eq!(found(&table, "11.0.8.1"), [0usize; 0]);
        assert_eq!(table.replaced(31, None).bytes(), 0);
    }

    #[test]
    fn an_isolated_prefix_needs_at_most_48_bytes() {
        let v4: NetSet = (0..50_000u32).map(|n| Target::host(Ipv4Addr::from((11 << 24) + n * 5).into())).collect();
        let v6: NetSet = (0..50_000u128).map(|n| Target::from_bits((0x2a00 << 112) + (n << 70), 64)).collect();
        for (set, most) in [(v4, 24), (v6, 48)] {
            let list = List::of(&set);
            assert_eq!(list.entries, 50_000);
            let bytes = Table::default().replaced(3, Some(&list)).bytes();
            assert!(bytes <= most * 50_000, "{} bytes for each", bytes / 50_000);
        }
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_set_of_networks(
            lists in proptest::collection::vec((0usize..4, proptest::collection::vec((any::<u16>(), 8u8..=32), 0..60)), 1..6),
            asked in proptest::collection::vec(any::<u16>(), 60),
        ) {
            // Few addresses, so that networks overlap and touch, of both families.
            let v4 = |n: u16| IpAddr::V4(Ipv4Addr::from((11 << 24) + (u32::from(n) << 5)));
            let v6 = |n: u16| IpAddr::V6(Ipv6Addr::from_bits((0x2a00 << 112) + (u128::from(n) << 90)));
            let mut table = Table::default();
            let mut sets = vec![NetSet::default(); 4];
            for (feed, entries) in lists {
                let of_both = entries.iter().flat_map(|(n, prefix)| {
                    [Target::network(v4(*n), *prefix).unwrap(), Target::network(v6(*n), prefix + 19).unwrap()]
                });
                sets[feed] = of_both.collect();
                table = table.replaced(feed, Some(&List::of(&sets[feed])));
            }
            for n in asked {
                for ip in [v4(n), v6(n)] {
                    let expected: Vec<usize> = (0..4).filter(|feed| sets[*feed].contains(ip.into())).collect();
                    prop_assert_eq!(table.find(ip.into()).feeds().collect::<Vec<_>>(), expected, "{}", ip);
                }
            }
        }
    }
}
