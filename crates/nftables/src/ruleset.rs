//! The sets and rules that drop banned sources.
//!
//! Every chain looks at a source in this order:
//!
//! 1. The configured allowlist: accepted, whatever else applies.
//! 2. What operators decided, the longest prefix first: an allowlist entry is accepted, a ban inside an allowed network dropped.
//! 3. The bans: dropped.
//!
//! `accept` ends only this table: others still decide.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use banmesh_types::target::{Target, mask};

use crate::batch::{Action, Batch, Hook};

/// What the members of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Members of the configured allowlist.
    Allow,
    /// Allowlist entries of operators.
    Permit,
    /// Bans of operators inside allowed networks. They are in a set of bans too, which has their end.
    Except,
    /// Bans.
    Ban,
}

/// A set: all targets of one kind, family and prefix length. Its text is its name in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// What the members are.
    pub kind: Kind,
    /// The family.
    pub ipv4: bool,
    /// The prefix length, as written after the slash.
    pub prefix: u8,
    /// Which of the sets that follow one another this is: a new one is filled while the old one is in force. At most
    /// [`SetName::GENERATIONS`].
    pub generation: u8,
}

impl SetName {
    /// The number of generations.
    pub const GENERATIONS: u8 = 3;

    /// The set for a target.
    pub fn of(kind: Kind, target: Target, generation: u8) -> Self {
        Self { kind, ipv4: target.is_ipv4(), prefix: target.prefix(), generation }
    }

    /// Whether elements can have an end.
    pub const fn is_timed(&self) -> bool {
        matches!(self.kind, Kind::Ban)
    }

    /// Whether the members are single addresses.
    pub const fn is_of_hosts(&self) -> bool {
        self.prefix == self.longest()
    }

    /// The mask of the prefix, as long as an address.
    pub fn mask(&self) -> Vec<u8> {
        let bits = if self.ipv4 { mask(self.prefix.min(32) + 96) } else { mask(self.prefix.min(128)) };
        let bytes = bits.to_be_bytes();
        if self.ipv4 { bytes[12..].to_vec() } else { bytes.to_vec() }
    }

    const fn longest(&self) -> u8 {
        if self.ipv4 { 32 } else { 128 }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.kind {
            Kind::Allow => "allow",
            Kind::Permit => "permit",
            Kind::Except => "except",
            Kind::Ban if self.is_of_hosts() => "hosts",
            Kind::Ban => "nets",
        };
        write!(f, "{word}{}", if self.ipv4 { 4 } else { 6 })?;
        if !(self.kind == Kind::Ban && self.is_of_hosts()) {
            write!(f, "_{}", self.prefix)?;
        }
        match self.generation {
            0 => Ok(()),
            1 => f.write_str("_b"),
            _ => f.write_str("_c"),
        }
    }
}

/// A name that no set of this crate has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a set of banmesh")]
pub struct NotOurs(pub String);

impl FromStr for SetName {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let parse = || {
            let (name, generation) = match text.strip_suffix("_b") {
                Some(name) => (name, 1),
                None => text.strip_suffix("_c").map_or((text, 0), |name| (name, 2)),
            };
            let at = name.find(|c: char| c.is_ascii_digit())?;
            let (word, rest) = name.split_at(at);
            let kind = match word {
                "allow" => Kind::Allow,
                "permit" => Kind::Permit,
                "except" => Kind::Except,
                "hosts" | "nets" => Kind::Ban,
                _ => return None,
            };
            let ipv4 = rest.starts_with('4');
            let longest = if ipv4 { 32 } else { 128 };
            let prefix = match rest.get(1..)? {
                "" => longest,
                prefix => prefix.strip_prefix('_')?.parse().ok()?,
            };
            Some(Self { kind, ipv4, prefix, generation })
        };
        // Written again, it must be the same: no second spelling of a name.
        parse().filter(|set| set.to_string() == text).ok_or_else(|| NotOurs(text.chars().take(60).collect()))
    }
}

/// The table: its name, where it sees packets, and its sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The table's name.
    pub table: String,
    /// The points at which it sees packets. The chains have the same names.
    pub hooks: Vec<Hook>,
    /// The priority of the chains: lower ones see a packet first.
    pub priority: i32,
    /// Whether TCP from banned sources is answered with a reset.
    pub reject: bool,
    /// The sets in use.
    pub sets: BTreeSet<SetName>,
}

impl Ruleset {
    /// Adds what makes the table and its chains, or takes them over, and removes chains at other hooks.
    pub fn create(&self, batch: &mut Batch, flags: u32) {
        batch.table(&self.table, flags);
        for hook in Hook::ALL {
            if self.hooks.contains(&hook) {
                batch.chain(&self.table, hook, self.priority);
            } else {
                batch.remove_chain(&self.table, hook, self.priority);
            }
        }
    }

    /// Adds what replaces all rules by those for the sets in use.
    pub fn replace_rules(&self, batch: &mut Batch) {
        for hook in &self.hooks {
            batch.empty_chain(&self.table, *hook);
            for (sets, action) in self.rules() {
                batch.rule(&self.table, *hook, &sets, action);
            }
        }
    }

    /// The rules in order: the sets that a source must be in, and what then happens.
    pub fn rules(&self) -> Vec<(Vec<SetName>, Action)> {
        let of = |kind: Kind| self.sets.iter().filter(move |set| set.kind == kind);
        let mut rules: Vec<_> = of(Kind::Allow).map(|set| (vec![*set], Action::Accept)).collect();
        let mut decisions: Vec<&SetName> = of(Kind::Permit).chain(of(Kind::Except)).collect();
        decisions.sort_by_key(|set| (set.ipv4, std::cmp::Reverse(set.prefix), set.kind));
        for set in decisions {
            if set.kind == Kind::Permit {
                rules.push((vec![*set], Action::Accept));
            } else if let Some(bans) = of(Kind::Ban).find(|ban| (ban.ipv4, ban.prefix) == (set.ipv4, set.prefix)) {
                self.refuse(&mut rules, vec![*set, *bans]);
            }
        }
        for set in of(Kind::Ban) {
            self.refuse(&mut rules, vec![*set]);
        }
        rules
    }

    fn refuse(&self, rules: &mut Vec<(Vec<SetName>, Action)>, sets: Vec<SetName>) {
        if self.reject {
            rules.push((sets.clone(), Action::Reset));
        }
        rules.push((sets, Action::Drop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> SetName {
        text.parse().unwrap()
    }

    #[test]
    fn the_names_are_readable() {
        let set = |kind, ipv4, prefix, generation| SetName { kind, ipv4, prefix, generation }.to_string();
        assert_eq!(set(Kind::Ban, true, 32, 0), "hosts4");
        assert_eq!(set(Kind::Ban, false, 64, 1), "nets6_64_b");
        assert_eq!(set(Kind::Allow, true, 32, 2), "allow4_32_c");
        for foreign in ["", "hosts", "hosts4_32", "nets4_032", "hosts5", "nets4_33_x", "hosts4_d", "mine"] {
            assert!(foreign.parse::<SetName>().is_err(), "{foreign}");
        }
    }

    #[test]
    fn the_allowlist_comes_first_and_then_the_longest_prefix_of_operators() {
        let sets = ["hosts4", "nets4_24", "permit4_16", "permit4_32", "except4_24", "allow4_8", "except4_20"];
        let ruleset = Ruleset {
            table: "banmesh".into(),
            hooks: vec![Hook::Prerouting],
            priority: -300,
            reject: false,
            sets: sets.into_iter().map(name).collect(),
        };
        let rules: Vec<String> = ruleset
            .rules()
            .iter()
            .map(|(sets, action)| {
                let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
                format!("{} {action:?}", sets.join("+"))
            })
            .collect();
        let expected = [
            "allow4_8 Accept",
            "permit4_32 Accept",
            "except4_24+nets4_24 Drop",
            "permit4_16 Accept",
            "nets4_24 Drop",
            "hosts4 Drop",
        ];
        assert_eq!(rules, expected, "an exception without a set of bans has no rule");
        let rejecting = Ruleset { reject: true, ..ruleset };
        assert_eq!(rejecting.rules().len(), 9);
    }

    proptest! {
        #[test]
        fn names_can_be_read_back(ipv4: bool, prefix in 0u8..=128, generation in 0u8..3, kind in 0usize..4) {
            let kind = [Kind::Allow, Kind::Permit, Kind::Except, Kind::Ban][kind];
            let set = SetName { kind, ipv4, prefix: if ipv4 { prefix % 33 } else { prefix }, generation };
            prop_assert_eq!(set.to_string().parse::<SetName>(), Ok(set));
            prop_assert_eq!(set.mask().len(), if ipv4 { 4 } else { 16 });
        }

        #[test]
        fn any_text_is_a_name_or_refused(text in ".{0,40}") {
            if let Ok(set) = text.parse::<SetName>() {
                prop_assert_eq!(set.to_string(), text);
            }
        }
    }
}
