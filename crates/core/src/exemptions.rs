//! The allowlist entries of operators, and the bans of operators that are exceptions from them.
//!
//! Both are in the ban table too. They are kept here a second time so that a lookup does not have to scan the table.
//!
//! Among the decisions of operators that cover an address, the one with the longest prefix wins: `ban 198.19.7.0/24` holds within
//! `allow 198.19.0.0/16`, and `allow 198.19.7.9` holds within that ban.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::ban::BanEntry;
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;
use banmesh_types::target::{Target, mask};
use banmesh_types::time::{Expiry, UnixMillis};

/// The most allowlist entries that operators may add on this node. An eighth more are accepted from other nodes, so that nodes which reach
/// the limit at the same moment converge.
pub const MAX_ALLOWED: usize = 100_000;

/// A copy of the allowlist entries and their exceptions that are in force, for lookups. [`Exemptions`] maintains it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    /// The targets of all allowlist entries.
    pub allowed: NetSet,
    /// The targets inside them that operators have banned, with the ends of these bans.
    pub exceptions: BTreeMap<Target, Expiry>,
    /// The keys of `exceptions`, for lookups by prefix.
    banned: NetSet,
}

impl Exempt {
    /// Returns the narrowest allowlist entry that exempts all of `target`, or `None` if there is none or a narrower ban is an exception.
    pub fn covering(&self, target: Target) -> Option<Target> {
        let allowed = self.allowed.narrowest(target)?;
        let exception = self.banned.narrowest(target).is_some_and(|ban| ban.prefix128() > allowed.prefix128());
        (!exception).then_some(allowed)
    }

    /// Returns the ban of an operator that applies to `address` although a wider network is allowed: the target and the end of the ban, and
    /// the allowlist entry from which it is an exception. If several bans apply, returns the one that ends last.
    pub fn exception(&self, address: Address) -> Option<(Target, Expiry, Target)> {
        let host = Target::host(address);
        let allowed = self.allowed.narrowest(host)?;
        let around =
            (allowed.prefix128() + 1..=128).map(|prefix| Target::from_bits(host.bits() & mask(prefix), prefix));
        let ends = around.filter_map(|target| Some((target, *self.exceptions.get(&target)?)));
        let (target, until) = ends.max_by_key(|(target, until)| (*until, target.prefix128()))?;
        Some((target, until, allowed))
    }

    /// Iterates over the exceptions inside `network`: bans of operators that hold although the network is allowed.
    pub fn exceptions_within(&self, network: Target) -> impl Iterator<Item = Target> + '_ {
        let from = self.exceptions.range(network..).map(|(target, _)| *target);
        from.take_while(move |target| target.bits() & mask(network.prefix128()) == network.bits())
            .filter(move |target| network.covers(*target))
    }

    /// Returns the narrowest allowlist entry that exempts `address`: see [`Exempt::covering`].
    pub fn matching(&self, address: Address) -> Option<Target> {
        self.covering(Target::host(address))
    }

    /// Returns `true` if `address` is exempt from banning.
    pub fn contains(&self, address: Address) -> bool {
        !self.allowed.is_empty() && self.matching(address).is_some()
    }
}

/// Maintains the allowlist entries and their exceptions, and removes them when they end.
#[derive(Debug, Default)]
pub struct Exemptions {
    allowed: Timed,
    exceptions: Timed,
    exempt: Exempt,
    changed: bool,
    /// Whether networks were allowed since the last search for exceptions: older bans of operators may lie inside them.
    incomplete: bool,
}

impl Exemptions {
    /// Returns the number of allowlist entries.
    pub fn len(&self) -> usize {
        self.allowed.members.len()
    }

    /// Returns `true` if there are no allowlist entries.
    pub fn is_empty(&self) -> bool {
        self.allowed.members.is_empty()
    }

    /// Updates `target` from its entry in the table; `None` if the table has none.
    pub fn update(&mut self, target: Target, entry: Option<&BanEntry>, now: UnixMillis) {
        let allowed = entry.and_then(BanEntry::allowed_until).filter(|until| !until.has_passed(now));
        let had = self.allowed.members.contains_key(&target);
        if self.allowed.set(target, allowed) {
            self.changed = true;
            match allowed {
                Some(_) => self.exempt.allowed.insert(target),
                None => self.exempt.allowed.remove(target),
            }
            self.incomplete |= !had && !target.is_host();
        }
        self.except(target, entry.and_then(BanEntry::operator_ban), now);
    }

    /// Updates an operator's ban of `target`, where `None` means that there is none. The ban is an exception if it lies inside an allowed network.
    pub fn except(&mut self, target: Target, until: Option<Expiry>, now: UnixMillis) {
        let within = || self.exempt.allowed.covering(target).is_some();
        let until = until.filter(|until| !until.has_passed(now) && within());
        if self.exceptions.set(target, until) {
            self.changed = true;
            match until {
                Some(until) => {
                    self.exempt.banned.insert(target);
                    self.exempt.exceptions.insert(target, until);
                }
                None => self.remove_exception(target),
            }
        }
    }

    /// Removes the allowlist entries and exceptions that have expired at `now`.
    pub fn expire(&mut self, now: UnixMillis) {
        while let Some(target) = self.allowed.pop_expired(now) {
            self.exempt.allowed.remove(target);
            self.changed = true;
        }
        while let Some(target) = self.exceptions.pop_expired(now) {
            self.remove_exception(target);
            self.changed = true;
        }
    }

    /// Returns `true` if networks were allowed since the last call. The caller must then pass every ban of an operator to
    /// [`Exemptions::except`].
    pub fn take_incomplete(&mut self) -> bool {
        std::mem::take(&mut self.incomplete)
    }

    /// Returns the present allowlist entries and exceptions.
    pub const fn exempt(&self) -> &Exempt {
        &self.exempt
    }

    /// Iterates over the targets of the allowlist entries after `after` in order, or over all of them.
    pub fn after(&self, after: Option<Target>) -> impl Iterator<Item = Target> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.allowed.members.range((from, Bound::Unbounded)).map(|(target, _)| *target)
    }

    /// Returns a copy for lookups if anything has changed since the last call.
    pub fn take_changed(&mut self) -> Option<Exempt> {
        std::mem::take(&mut self.changed).then(|| self.exempt.clone())
    }

    fn remove_exception(&mut self, target: Target) {
        self.exempt.banned.remove(target);
        self.exempt.exceptions.remove(&target);
    }
}

/// Targets with an end each, ordered by target and by end.
#[derive(Debug, Default)]
struct Timed {
    members: BTreeMap<Target, Expiry>,
    ends: BTreeSet<(Expiry, Target)>,
}

impl Timed {
    /// Sets the end of `target`, or removes it if `until` is `None`. Returns `true` if that changed anything.
    fn set(&mut self, target: Target, until: Option<Expiry>) -> bool {
        let before = match until {
            Some(until) => self.members.insert(target, until),
            None => self.members.remove(&target),
        };
        if before == until {
            return false;
        }
        if let Some(before) = before {
            self.ends.remove(&(before, target));
        }
        if let Some(until) = until {
            self.ends.insert((until, target));
        }
        true
    }

    fn pop_expired(&mut self, now: UnixMillis) -> Option<Target> {
        let (until, target) = self.ends.first().copied().filter(|(until, _)| until.has_passed(now))?;
        self.ends.remove(&(until, target));
        self.members.remove(&target);
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ban::{By, Cause, Decision};
    use crate::hlc::{Hlc, Stamp};

    const NOW: UnixMillis = UnixMillis(1000);

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn decided(decision: Decision) -> BanEntry {
        let stamp = Stamp { hlc: Hlc(1), node: "a".parse().unwrap() };
        let cause = Arc::new(Cause::new(By::Operator("ann".into()), ""));
        BanEntry::by_operator(stamp, decision, cause, 0, Expiry::NEVER)
    }

    fn allow(until: u32) -> BanEntry {
        decided(Decision::Allowed { until: Expiry::from_seconds(until) })
    }

    fn ban(until: u32) -> BanEntry {
        decided(Decision::Banned { until: Expiry::from_seconds(until) })
    }

    #[test]
    fn allowlist_entries_expire_and_lookups_follow() {
        let mut exemptions = Exemptions::default();
        assert_eq!(exemptions.take_changed(), None);
        exemptions.update(target("192.0.2.0/24"), Some(&allow(10)), NOW);
        exemptions.update(target("2001:db8::1"), Some(&allow(u32::MAX)), NOW);
        exemptions.update(target("192.0.2.0/24"), Some(&allow(20)), NOW);
        assert_eq!(exemptions.exempt().covering(target("192.0.2.7")), Some(target("192.0.2.0/24")));
        assert!(exemptions.take_changed().unwrap().contains("192.0.2.7".parse().unwrap()));
        exemptions.expire(UnixMillis(10_000));
        assert_eq!((exemptions.len(), exemptions.take_changed()), (2, None));
        exemptions.expire(UnixMillis(20_000));
        assert_eq!(exemptions.after(None).collect::<Vec<_>>(), [target("2001:db8::1")]);
        assert_eq!(exemptions.exempt().covering(target("192.0.2.7")), None);
        exemptions.update(target("2001:db8::1"), None, NOW);
        exemptions.update(target("2001:db8::2"), Some(&allow(1)), NOW);
        assert!(exemptions.is_empty() && exemptions.take_changed().unwrap().allowed.is_empty());
        assert!(exemptions.allowed.ends.is_empty());
    }

    #[test]
    fn allowlist_entries_are_listed_in_order_from_any_target() {
        let mut exemptions = Exemptions::default();
        for text in ["192.0.2.9", "192.0.2.1", "192.0.2.5"] {
            exemptions.update(target(text), Some(&allow(u32::MAX)), UnixMillis(0));
        }
        let after: Vec<_> = exemptions.after(Some(target("192.0.2.1"))).collect();
        assert_eq!(after, [target("192.0.2.5"), target("192.0.2.9")]);
    }

    #[test]
    fn the_longest_prefix_wins_among_operators_decisions() {
        let mut exemptions = Exemptions::default();
        exemptions.update(target("198.19.7.0/24"), Some(&ban(30)), NOW);
        assert!(exemptions.exempt().exceptions.is_empty(), "no exception without an allowed network");
        exemptions.update(target("198.19.0.0/16"), Some(&allow(60)), NOW);
        assert!(exemptions.take_incomplete());
        exemptions.except(target("198.19.7.0/24"), Some(Expiry::from_seconds(30)), NOW);
        exemptions.update(target("198.19.7.9"), Some(&allow(60)), NOW);
        assert!(!exemptions.take_incomplete(), "nothing lies within one address");
        let exempt = exemptions.take_changed().unwrap();
        for (address, by) in
            [("198.19.1.1", Some("198.19.0.0/16")), ("198.19.7.1", None), ("198.19.7.9", Some("198.19.7.9"))]
        {
            assert_eq!(exempt.matching(address.parse().unwrap()), by.map(target), "{address}");
        }
        let exception = (target("198.19.7.0/24"), Expiry::from_seconds(30), target("198.19.0.0/16"));
        for (address, expected) in [("198.19.1.1", None), ("198.19.7.1", Some(exception)), ("198.19.7.9", None)] {
            assert_eq!(exempt.exception(address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(exempt.exceptions.len(), 1);
        for (network, expected) in
            [("198.19.0.0/16", &["198.19.7.0/24"][..]), ("198.19.7.0/25", &[]), ("198.20.0.0/16", &[])]
        {
            let within: Vec<_> = exempt.exceptions_within(target(network)).map(|target| target.to_string()).collect();
            assert_eq!(within, expected, "{network}");
        }
        exemptions.expire(UnixMillis(30_000));
        let exempt = exemptions.take_changed().unwrap();
        assert!(exempt.contains("198.19.7.1".parse().unwrap()), "the exception has expired");
        exemptions.update(target("198.19.8.0/24"), Some(&ban(50)), NOW);
        assert!(!exemptions.exempt().contains("198.19.8.1".parse().unwrap()));
        exemptions.update(target("198.19.8.0/24"), Some(&decided(Decision::Unbanned)), NOW);
        assert!(exemptions.exempt().contains("198.19.8.1".parse().unwrap()));
        assert!(exemptions.exempt().exceptions.is_empty());
    }

    #[test]
    fn an_allowed_network_inside_a_banned_one_is_no_exception() {
        let mut exemptions = Exemptions::default();
        exemptions.update(target("198.19.0.0/16"), Some(&allow(60)), NOW);
        exemptions.update(target("198.19.7.0/24"), Some(&ban(30)), NOW);
        exemptions.update(target("198.19.7.128/25"), Some(&allow(60)), NOW);
        let exempt = exemptions.exempt();
        assert!(exempt.exception("198.19.7.1".parse().unwrap()).is_some());
        assert_eq!(exempt.exception("198.19.7.200".parse().unwrap()), None);
        assert!(exempt.contains("198.19.7.200".parse().unwrap()));
    }
}
