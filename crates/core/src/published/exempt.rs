//! Who is exempt, and what is left of a banned network around exempt addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use banmesh_types::netset::NetSet;
use banmesh_types::target::{Target, mask};
use xxhash_rust::xxh3::xxh3_64;

use crate::follow::Allowlist;

/// The most networks into which one banned network is cut. A ban that needs more is left out.
pub const MAX_PIECES: usize = 4096;

/// Whether the addresses of a target are exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// None of them.
    Clean,
    /// All of them.
    Exempt,
    /// Some of them.
    Mixed,
}

/// Who is exempt: see [`Allowlist`].
#[derive(Clone, Debug, Default)]
pub struct Exempt {
    configured: BTreeSet<Target>,
    configured_set: NetSet,
    operators: BTreeMap<Target, bool>,
    operator_set: NetSet,
}

impl Exempt {
    /// The exemptions of `allowlist`.
    pub fn new(allowlist: &Allowlist) -> Self {
        Self {
            configured: allowlist.configured.iter().copied().collect(),
            configured_set: allowlist.configured.iter().copied().collect(),
            operators: allowlist.operators.clone(),
            operator_set: allowlist.operators.keys().copied().collect(),
        }
    }

    /// Whether the addresses of `target` are exempt.
    pub fn status(&self, target: Target) -> Status {
        if self.configured_set.covering(target).is_some() {
            return Status::Exempt;
        }
        let decision = self.operator_set.narrowest(target).and_then(|member| self.operators.get(&member));
        let allowed = decision.copied().unwrap_or(false);
        if target.is_host() {
            return if allowed { Status::Exempt } else { Status::Clean };
        }
        let inside = (Bound::Excluded(target), Bound::Included(last(target)));
        let configured = || self.configured.range(inside).any(|member| target.covers(*member));
        let decided =
            || self.operators.range(inside).any(|(member, other)| *other != allowed && target.covers(*member));
        match (allowed, decided()) {
            (true, false) => Status::Exempt,
            (false, false) if !configured() => Status::Clean,
            _ => Status::Mixed,
        }
    }

    /// The widest networks inside `target` that hold no exempt address. None of them if there are more than [`MAX_PIECES`].
    pub fn pieces(&self, target: Target) -> Vec<Target> {
        let (mut pieces, mut open) = (Vec::new(), vec![target]);
        while let Some(part) = open.pop() {
            match self.status(part) {
                Status::Exempt => {}
                Status::Clean if pieces.len() >= MAX_PIECES => return Vec::new(),
                Status::Clean => pieces.push(part),
                Status::Mixed => {
                    let prefix = part.prefix128() + 1;
                    let half = mask(prefix) ^ mask(part.prefix128());
                    open.push(Target::from_bits(part.bits() | half, prefix));
                    open.push(Target::from_bits(part.bits(), prefix));
                }
            }
        }
        pieces
    }

    /// The members that only one of both has, or that differ.
    pub fn differences(&self, other: &Self) -> BTreeSet<Target> {
        let configured = self.configured.symmetric_difference(&other.configured).copied();
        let differs = |one: &BTreeMap<Target, bool>, other: &BTreeMap<Target, bool>| {
            let differing = one.iter().filter(|(target, allowed)| other.get(target) != Some(allowed));
            differing.map(|(target, _)| *target).collect::<Vec<_>>()
        };
        let operators = differs(&self.operators, &other.operators).into_iter();
        configured.chain(operators).chain(differs(&other.operators, &self.operators)).collect()
    }

    /// A digest of all members.
    pub fn digest(&self) -> u64 {
        let configured = self.configured.iter().map(|member| hash(*member, 1));
        let operators = self.operators.iter().map(|(member, allowed)| hash(*member, 2 + u8::from(*allowed)));
        configured.chain(operators).fold(0, u64::wrapping_add)
    }
}

/// The hash of a target with a mark for what it stands for.
pub(super) fn hash(target: Target, mark: u8) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
    bytes[16] = target.prefix128();
    bytes[17] = mark;
    xxh3_64(&bytes)
}

/// The last address of `target`.
fn last(target: Target) -> Target {
    Target::from_bits(target.bits() | !mask(target.prefix128()), 128)
}
