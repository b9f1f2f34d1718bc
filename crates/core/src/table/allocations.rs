//! Counts how many networks of each IPv6 /48 filters have banned: 8 bytes for each /48, not for each network.

use std::hash::BuildHasher;
use std::ops::RangeInclusive;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use banmesh_types::target::Target;

/// The prefix lengths of the networks that are counted. Longer ones would count single hosts of one network.
pub(super) const ALLOCATION_MEMBERS: RangeInclusive<u8> = 49..=64;

/// The counts by /48: the 48 bits of the network, then 16 bits of the count.
#[derive(Debug, Default)]
pub(super) struct Allocations(HashTable<u64>);

type Hasher = foldhash::fast::RandomState;

impl Allocations {
    pub(super) fn count(&self, target: Target, hasher: &Hasher) -> usize {
        let allocation = allocation_of(target);
        let found = self.0.find(hasher.hash_one(allocation), |packed| packed >> 16 == allocation);
        found.map_or(0, |packed| usize::from(count_of(*packed)))
    }

    pub(super) fn add(&mut self, target: Target, hasher: &Hasher) {
        let allocation = allocation_of(target);
        match self.0.entry(
            hasher.hash_one(allocation),
            |packed| packed >> 16 == allocation,
            |packed| hasher.hash_one(packed >> 16),
        ) {
            Entry::Occupied(mut known) => {
                let packed = known.get_mut();
                *packed = (allocation << 16) | u64::from(count_of(*packed).saturating_add(1));
            }
            Entry::Vacant(vacant) => drop(vacant.insert((allocation << 16) | 1)),
        }
    }

    /// Reverts [`Allocations::add`]. A count beyond 16 bits becomes too low, which only delays the ban of the allocation.
    pub(super) fn remove(&mut self, target: Target, hasher: &Hasher) {
        let allocation = allocation_of(target);
        let Ok(mut known) = self.0.find_entry(hasher.hash_one(allocation), |packed| packed >> 16 == allocation) else {
            return;
        };
        match count_of(*known.get()) {
            0 | 1 => drop(known.remove()),
            count => *known.get_mut() = (allocation << 16) | u64::from(count - 1),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.allocation_size()
    }
}

fn allocation_of(target: Target) -> u64 {
    // The shift leaves 48 bits.
    u64::try_from(target.bits() >> 80).unwrap_or_default()
}

fn count_of(packed: u64) -> u16 {
    // The mask leaves 16 bits.
    u16::try_from(packed & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_counted_by_site_and_empty_sites_use_no_memory() {
        let (mut allocations, hasher) = (Allocations::default(), Hasher::default());
        let target = |text: &str| text.parse::<Target>().unwrap();
        for _ in 0..3 {
            allocations.add(target("2001:db8:1:2::/64"), &hasher);
        }
        allocations.add(target("2001:db8:2::/56"), &hasher);
        let counts = |allocations: &Allocations| {
            ["2001:db8:1:ffff::/64", "2001:db8:2::/64", "2001:db8:3::/64"]
                .map(|text| allocations.count(target(text), &hasher))
        };
        assert_eq!(counts(&allocations), [3, 1, 0]);
        allocations.remove(target("2001:db8:1::/64"), &hasher);
        allocations.remove(target("2001:db8:2::/56"), &hasher);
        allocations.remove(target("2001:db8:3::/64"), &hasher);
        assert_eq!(counts(&allocations), [2, 0, 0]);
        assert_eq!(allocations.0.len(), 1);
    }

    #[test]
    fn counts_survive_the_growth_of_the_table() {
        let (mut allocations, hasher) = (Allocations::default(), Hasher::default());
        let network = |n: u128| Target::from_bits(0x2001_0db8 << 96 | n << 80, 64);
        for n in 0..1000 {
            allocations.add(network(n), &hasher);
        }
        assert!((0..1000).all(|n| allocations.count(network(n), &hasher) == 1));
        assert!(allocations.bytes() >= 8 * 1000);
    }
}
