//! A set of addresses and networks with fast membership tests: the allowlist, permitted senders and clients.

use std::collections::HashSet;

use crate::address::Address;
use crate::target::{Target, mask};

/// A set of targets. A test costs one hash lookup per prefix length in use, however many members there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetSet {
    /// Members by prefix length, shortest first. Lengths are within 128 bits, so IPv4 starts at 96.
    v4: Vec<(u8, HashSet<u128, foldhash::fast::FixedState>)>,
    v6: Vec<(u8, HashSet<u128, foldhash::fast::FixedState>)>,
}

impl NetSet {
    /// Returns `true` if the set has no members.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Adds `target`. Networks that it covers stay members of their own.
    pub fn insert(&mut self, target: Target) {
        let lengths = if target.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let prefix = target.prefix128();
        let at = lengths.partition_point(|(length, _)| *length < prefix);
        if lengths.get(at).is_none_or(|(length, _)| *length != prefix) {
            lengths.insert(at, (prefix, HashSet::default()));
        }
        lengths[at].1.insert(target.bits());
    }

    /// Removes `target` if exactly this target is a member.
    pub fn remove(&mut self, target: Target) {
        let lengths = if target.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        if let Some((_, members)) = lengths.iter_mut().find(|(length, _)| *length == target.prefix128()) {
            members.remove(&target.bits());
        }
        lengths.retain(|(_, members)| !members.is_empty());
    }

    /// Returns `true` if exactly `target` is a member.
    pub fn has(&self, target: Target) -> bool {
        let lengths = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().any(|(prefix, members)| *prefix == target.prefix128() && members.contains(&target.bits()))
    }

    /// Returns the widest member that contains `address`.
    pub fn matching(&self, address: Address) -> Option<Target> {
        self.covering(Target::host(address))
    }

    /// Returns `true` if a member contains `address`.
    pub fn contains(&self, address: Address) -> bool {
        !self.is_empty() && self.matching(address).is_some()
    }

    /// Returns the widest member that covers all of `target`.
    pub fn covering(&self, target: Target) -> Option<Target> {
        let lengths = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().take_while(|(prefix, _)| *prefix <= target.prefix128()).find_map(|(prefix, members)| {
            let bits = target.bits() & mask(*prefix);
            members.contains(&bits).then(|| Target::from_bits(bits, *prefix))
        })
    }

    /// Returns the narrowest member that covers all of `target`.
    pub fn narrowest(&self, target: Target) -> Option<Target> {
        let lengths = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().rev().skip_while(|(prefix, _)| *prefix > target.prefix128()).find_map(|(prefix, members)| {
            let bits = target.bits() & mask(*prefix);
            members.contains(&bits).then(|| Target::from_bits(bits, *prefix))
        })
    }

    /// Iterates over all members, in no particular order.
    pub fn members(&self) -> impl Iterator<Item = Target> + '_ {
        let target = |prefix: u8| move |bits: &u128| Target::from_bits(*bits, prefix);
        self.v4.iter().chain(&self.v6).flat_map(move |(prefix, members)| members.iter().map(target(*prefix)))
    }

    /// Iterates over the members inside `target`, excluding `target` itself.
    pub fn within(&self, target: Target) -> impl Iterator<Item = Target> + '_ {
        let lengths = if target.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths
            .iter()
            .filter(move |(prefix, _)| *prefix > target.prefix128())
            .flat_map(|(prefix, members)| members.iter().map(|bits| Target::from_bits(*bits, *prefix)))
            .filter(move |member| target.covers(*member))
    }
}

impl FromIterator<Target> for NetSet {
    fn from_iter<I: IntoIterator<Item = Target>>(targets: I) -> Self {
        let mut set = Self::default();
        for target in targets {
            set.insert(target);
        }
        set
    }
}

/// Returns `true` if `list` contains `address`, or if `list` is empty: an empty list permits every address.
pub fn permits(list: &NetSet, address: Address) -> bool {
    list.is_empty() || list.contains(address)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_members_of_both_families_are_listed() {
        let targets: Vec<Target> =
            ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1", "::/0", "2001:db8::/32"].map(|text| text.parse().unwrap()).into();
        let mut members: Vec<Target> = targets.iter().copied().collect::<NetSet>().members().collect();
        members.sort_unstable();
        let mut expected = targets;
        expected.sort_unstable();
        assert_eq!(members, expected);
    }

    fn set(members: &[&str]) -> NetSet {
        members.iter().map(|text| text.parse::<Target>().unwrap()).collect()
    }

    #[test]
    fn a_set_contains_the_addresses_of_its_members() {
        let set = set(&["127.0.0.0/8", "::1", "2001:db8::/32", "192.0.2.7"]);
        for inside in ["127.9.9.9", "::1", "2001:db8:ffff::1", "192.0.2.7", "::ffff:127.0.0.1"] {
            assert!(set.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["128.0.0.1", "::2", "2001:db9::", "192.0.2.8"] {
            assert!(!set.contains(outside.parse().unwrap()), "{outside}");
        }
        assert_eq!(set.within("126.0.0.0/7".parse().unwrap()).count(), 1);
        for (target, member) in
            [("127.0.0.0/8", true), ("127.0.0.0/9", false), ("127.0.0.1", false), ("192.0.2.7", true)]
        {
            assert_eq!(set.has(target.parse().unwrap()), member, "{target}");
        }
    }

    #[test]
    fn an_ipv6_network_contains_no_ipv4_address() {
        assert!(!set(&["::/0"]).contains("192.0.2.1".parse().unwrap()));
        assert!(!set(&["0.0.0.0/0"]).contains("2001:db8::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_linear_search(
            members in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            removed in 0usize..20,
            address: u32,
        ) {
            let targets: Vec<_> =
                members.into_iter().map(|(bits, prefix)| Target::network(IpAddr::V4(bits.into()), prefix).unwrap()).collect();
            let mut set: NetSet = targets.iter().copied().collect();
            let (gone, targets) = targets.split_at(removed.min(targets.len()));
            gone.iter().for_each(|target| set.remove(*target));
            let targets: Vec<_> = targets.iter().filter(|target| !gone.contains(target)).collect();
            let address = IpAddr::V4(address.into());
            prop_assert_eq!(set.contains(address.into()), targets.iter().any(|target| target.contains(address.into())));
        }
    }
}
