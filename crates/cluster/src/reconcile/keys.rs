//! The keys of entries in one session, and the set of keys of one end.

use banmesh_types::target::Target;
use sha2::{Digest as _, Sha256};

use super::sketch::Sketch;
use crate::repair::frame::RANDOM_LEN;
use banmesh_core::siphash::SipKey;

/// The number of parts of a [`KeySet`]. All work on a set is done one part at a time, so that a large set delays nobody.
const PARTS: usize = 256;

/// The hash functions of one session. Both ends derive the same ones.
#[derive(Clone, Copy, Debug)]
pub struct SessionKeys {
    entries: SipKey,
    digests: SipKey,
}

impl SessionKeys {
    /// The hash functions of the session whose hellos carried these random bytes.
    pub fn new(caller: &[u8; RANDOM_LEN], called: &[u8; RANDOM_LEN]) -> Self {
        let mut hasher = Sha256::new();
        for part in [&b"banmesh repair keys"[..], caller, called] {
            hasher.update(part);
        }
        let derived: [u8; 32] = hasher.finalize().into();
        let [entries, digests] = [0, 16].map(|from| SipKey::new(std::array::from_fn(|at| derived[from + at])));
        Self { entries, digests }
    }

    /// The key of the entry of `target` that has the digest `digest`.
    pub fn key(&self, target: Target, digest: u64) -> u64 {
        let mut bytes = [0; 25];
        bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
        bytes[16] = target.prefix128();
        bytes[17..].copy_from_slice(&digest.to_le_bytes());
        self.entries.hash(&bytes)
    }

    /// The digest of a bucket in 32 bits. Buckets that differ have equal short digests in one of four billion sessions.
    pub fn short_digest(&self, digest: u64) -> u32 {
        let [a, b, c, d, ..] = self.digests.hash(&digest.to_le_bytes()).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// The keys of one end: 8 bytes per entry, in 256 parts by their highest byte.
#[derive(Debug)]
pub struct KeySet {
    parts: Vec<Vec<u64>>,
    /// The parts below this one are sorted, and counted in `sketch`.
    sorted: usize,
    len: usize,
    sketch: Sketch,
}

impl Default for KeySet {
    fn default() -> Self {
        Self { parts: vec![Vec::new(); PARTS], sorted: 0, len: 0, sketch: Sketch::default() }
    }
}

impl KeySet {
    /// Adds `key`. Call this only before [`KeySet::sort`]. A key may be added twice: scans return some entries twice.
    pub fn insert(&mut self, key: u64) {
        if let Some(part) = self.parts.get_mut(part_of(key)) {
            part.push(key);
        }
    }

    /// Sorts one more part, and removes duplicates from it. Returns `true` once all are sorted. The other methods need that.
    pub fn sort(&mut self) -> bool {
        let Some(part) = self.parts.get_mut(self.sorted) else { return true };
        part.sort_unstable();
        part.dedup();
        part.iter().for_each(|key| self.sketch.add(*key));
        self.len += part.len();
        self.sorted += 1;
        self.sorted == PARTS
    }

    /// The number of different keys.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `key` is in the set.
    pub fn contains(&self, key: u64) -> bool {
        self.parts.get(part_of(key)).is_some_and(|part| part.binary_search(&key).is_ok())
    }

    /// The keys of part `number`, or `None` if there are no more parts.
    pub fn part(&self, number: usize) -> Option<&[u64]> {
        self.parts.get(number).map(Vec::as_slice)
    }

    /// The sketch of the set.
    pub const fn sketch(&self) -> &Sketch {
        &self.sketch
    }
}

fn part_of(key: u64) -> usize {
    let [.., highest] = key.to_le_bytes();
    usize::from(highest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    pub(in crate::reconcile) fn set_of(keys: impl IntoIterator<Item = u64>) -> KeySet {
        let mut set = KeySet::default();
        keys.into_iter().for_each(|key| set.insert(key));
        while !set.sort() {}
        set
    }

    #[test]
    fn each_session_has_its_own_keys() {
        let target = |text: &str| Target::host(text.parse().unwrap());
        let (one, other) = ([1; RANDOM_LEN], [2; RANDOM_LEN]);
        let sessions =
            [(one, other), (other, one), (one, one)].map(|(caller, called)| SessionKeys::new(&caller, &called));
        let mut seen = BTreeSet::new();
        for keys in sessions {
            for (target, digest) in [(target("192.0.2.1"), 1), (target("192.0.2.1"), 2), (target("192.0.2.2"), 1)] {
                assert!(seen.insert(keys.key(target, digest)));
            }
            assert!(seen.insert(keys.short_digest(1).into()));
        }
    }

    /// Computed with another implementation of the specification, so that all builds compute the same.
    #[test]
    fn keys_are_those_of_the_specification() {
        let keys = SessionKeys::new(&[1; RANDOM_LEN], &[2; RANDOM_LEN]);
        let (target, digest) = (Target::host([192, 0, 2, 1].into()), 0x0123_4567_89ab_cdef);
        assert_eq!((keys.key(target, digest), keys.short_digest(digest)), (0x700c_541a_25cf_1235, 0x02c9_0e9a));
        assert_eq!(crate::reconcile::symbols::check_of(1), 0x803b_e1df);
    }

    proptest! {
        #[test]
        fn a_set_has_each_key_once(keys in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..50], 0..300)) {
            let (set, naive) = (set_of(keys.clone()), BTreeSet::from_iter(keys));
            prop_assert_eq!(set.len(), naive.len());
            let held: Vec<u64> = (0..).map_while(|part| set.part(part)).flatten().copied().collect();
            prop_assert!(held.iter().eq(naive.iter()));
            prop_assert!((0..50).all(|key| set.contains(key) == naive.contains(&key)));
        }
    }
}
