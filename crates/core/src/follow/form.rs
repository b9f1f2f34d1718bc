//! The entries that a place holds for the bans, by how it looks clients up.

use std::collections::BTreeMap;

use banmesh_types::netset::NetSet;
use banmesh_types::target::{Target, mask};
use banmesh_types::time::Expiry;

/// How a place looks a client up, which decides the value of each entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Only the longest prefix that contains the client counts (HAProxy's map).
    ///
    /// - The value of a target is the latest end of all bans that cover it: its own and those of wider networks.
    /// - Members of the allowlist have the value 0, which has always passed, and targets inside them have no entry.
    /// - The exception is a ban of an operator inside an allowed network: its value is the end of that ban.
    #[default]
    LongestPrefix,
    /// A client is banned while any entry contains it. The value of each target is the end of its own ban. The place applies the
    /// allowlist itself (see [`Allowlist`]), so a change of the allowlist changes no entry.
    Own,
}

/// Who is exempt from banning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    /// The members of the configuration and this host's own addresses, sorted. They are never banned.
    pub configured: Vec<Target>,
    /// What operators decided, with `true` for an allowlist entry and `false` for a ban inside an allowed network. Among those that
    /// contain a client, the longest prefix wins.
    pub operators: BTreeMap<Target, bool>,
}

/// The bans and who is exempt from them.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// All bans with their own ends.
    pub(super) bans: BTreeMap<Target, Expiry>,
    /// The number of bans by family (`true` is IPv4) and prefix length within 128 bits.
    lengths: BTreeMap<(bool, u8), usize>,
    /// The members of both allowlists, sorted.
    pub(super) allowed: Vec<Target>,
    allowlist: NetSet,
    /// The bans of operators inside allowed networks.
    exceptions: BTreeMap<Target, Expiry>,
    exception_set: NetSet,
}

impl Standing {
    /// Replaces both allowlists. Returns whether either differs.
    pub(super) fn allow(&mut self, mut allowed: Vec<Target>, exceptions: BTreeMap<Target, Expiry>) -> bool {
        allowed.sort_unstable();
        allowed.dedup();
        let differs = allowed != self.allowed || exceptions != self.exceptions;
        if differs {
            self.allowlist = allowed.iter().copied().collect();
            self.allowed = allowed;
            self.exception_set = exceptions.keys().copied().collect();
            self.exceptions = exceptions;
        }
        differs
    }

    pub(super) fn clear(&mut self) {
        self.bans.clear();
        self.lengths.clear();
    }

    /// Sets the end of the ban of `target`, or removes the ban. Returns the end before.
    pub(super) fn set(&mut self, target: Target, until: Option<Expiry>) -> Option<Expiry> {
        let length = (target.is_ipv4(), target.prefix128());
        let before = match until {
            Some(until) => self.bans.insert(target, until),
            None => self.bans.remove(&target),
        };
        match (before, until) {
            (None, Some(_)) => *self.lengths.entry(length).or_default() += 1,
            (Some(_), None) => {
                if let Some(count) = self.lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&length);
                    }
                }
            }
            _ => {}
        }
        before
    }

    /// Returns the value of `target`, or `None` if it has no entry.
    pub(super) fn value(&self, form: Form, target: Target) -> Option<u32> {
        let own = self.bans.get(&target)?;
        match form {
            Form::Own => Some(own.seconds()),
            Form::LongestPrefix => self.latest(target, own),
        }
    }

    fn latest(&self, target: Target, own: &Expiry) -> Option<u32> {
        if holds_ipv4(target) {
            return None;
        }
        if let Some(allowed) = self.allowlist.narrowest(target) {
            let exception = self.exception_set.narrowest(target)?;
            // Inside an exception, only its own end counts: after it, the allowlist entry of the wider network applies again.
            let decides = exception == target && exception.prefix128() > allowed.prefix128();
            return self.exceptions.get(&target).filter(|_| decides).map(|until| until.seconds());
        }
        let family = target.is_ipv4();
        let wider = self.lengths.range((family, 0)..(family, target.prefix128())).filter_map(|((_, prefix), _)| {
            let around = Target::from_bits(target.bits() & mask(*prefix), *prefix);
            self.bans.get(&around).filter(|_| !holds_ipv4(around))
        });
        wider.chain([own]).max().map(|until| until.seconds())
    }

    /// Iterates over the banned targets whose value may depend on the ban of `target`, including `target` itself.
    pub(super) fn depending(&self, form: Form, target: Target) -> impl Iterator<Item = Target> + '_ {
        let last = match form {
            Form::LongestPrefix => Target::from_bits(target.bits() | !mask(target.prefix128()), 128),
            Form::Own => target,
        };
        self.bans.range(target..=last).map(|(held, _)| *held).filter(move |held| target.covers(*held))
    }
}

/// Returns `true` if `target` is an IPv6 network that contains `::ffff:0:0/96`. HAProxy would match IPv4 clients with it, so it is never
/// sent to HAProxy.
pub fn holds_ipv4(target: Target) -> bool {
    !target.is_ipv4() && 0xffff_0000_0000 & mask(target.prefix128()) == target.bits() && target.prefix128() < 96
}
