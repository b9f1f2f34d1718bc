//! Who is never banned by an operator's decision: the targets whose entry says so, kept beside the table so that asking
//! needs no walk over it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::netset::NetSet;
use super::target::Target;
use super::time::{Expiry, UnixMillis};

/// How many allowances an operator may make. Those of other nodes are taken in beyond it, for replicas must agree.
pub const MAX_ALLOWANCES: usize = 100_000;

/// The allowances in force.
#[derive(Debug, Default)]
pub struct Allowances {
    members: BTreeMap<Target, Expiry>,
    ends: BTreeSet<(Expiry, Target)>,
    set: NetSet,
    changed: bool,
}

impl Allowances {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// `target` is allowed until then; with `None`, or an end that has passed at `now`, no longer.
    pub fn set(&mut self, target: Target, until: Option<Expiry>, now: UnixMillis) {
        let until = until.filter(|until| !until.has_passed(now));
        let before = match until {
            Some(until) => self.members.insert(target, until),
            None => self.members.remove(&target),
        };
        if before == until {
            return;
        }
        if let Some(before) = before {
            self.ends.remove(&(before, target));
        }
        match until {
            Some(until) => {
                self.ends.insert((until, target));
                self.set.insert(target);
            }
            None => self.set.remove(target),
        }
        self.changed = true;
    }

    /// Lets those go whose end has passed at `now`.
    pub fn expire(&mut self, now: UnixMillis) {
        while let Some((until, target)) = self.ends.first().copied().filter(|(until, _)| until.has_passed(now)) {
            self.ends.remove(&(until, target));
            self.members.remove(&target);
            self.set.remove(target);
            self.changed = true;
        }
    }

    /// The widest allowance that covers all of `target`.
    pub fn covering(&self, target: Target) -> Option<Target> {
        self.set.covering(target)
    }

    /// The targets after `after` (all, without), in order.
    pub fn after(&self, after: Option<Target>) -> impl Iterator<Item = Target> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.members.range((from, Bound::Unbounded)).map(|(target, _)| *target)
    }

    /// The set for those who look up, if it has changed since it was taken last.
    pub fn take_changed(&mut self) -> Option<NetSet> {
        std::mem::take(&mut self.changed).then(|| self.set.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn allowances_end_and_the_set_follows() {
        let mut allowances = Allowances::default();
        assert_eq!(allowances.take_changed(), None);
        let now = UnixMillis(1000);
        allowances.set(target("192.0.2.0/24"), Some(Expiry::from_seconds(10)), now);
        allowances.set(target("2001:db8::1"), Some(Expiry::NEVER), now);
        allowances.set(target("192.0.2.0/24"), Some(Expiry::from_seconds(20)), now);
        assert_eq!(allowances.covering(target("192.0.2.7")), Some(target("192.0.2.0/24")));
        assert!(allowances.take_changed().unwrap().contains("192.0.2.7".parse().unwrap()));
        allowances.expire(UnixMillis(10_000));
        assert_eq!((allowances.len(), allowances.take_changed()), (2, None));
        allowances.expire(UnixMillis(20_000));
        assert_eq!(allowances.after(None).collect::<Vec<_>>(), [target("2001:db8::1")]);
        assert_eq!(allowances.covering(target("192.0.2.7")), None);
        allowances.set(target("2001:db8::1"), None, now);
        allowances.set(target("2001:db8::2"), Some(Expiry::from_seconds(1)), now);
        assert!(allowances.is_empty() && allowances.take_changed().unwrap().is_empty());
        assert!(allowances.ends.is_empty());
    }

    #[test]
    fn they_are_listed_in_order_from_anywhere() {
        let mut allowances = Allowances::default();
        for text in ["192.0.2.9", "192.0.2.1", "192.0.2.5"] {
            allowances.set(target(text), Some(Expiry::NEVER), UnixMillis(0));
        }
        let after: Vec<_> = allowances.after(Some(target("192.0.2.1"))).collect();
        assert_eq!(after, [target("192.0.2.5"), target("192.0.2.9")]);
    }
}
