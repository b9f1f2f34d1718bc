//! A digest of what a place holds.

use xxhash_rust::xxh3::xxh3_64;

use banmesh_types::target::Target;

/// A digest of the entries of a place, independent of their order. Equal digests mean equal contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// The number of entries.
    pub entries: u64,
    /// The sum of the hashes of all entries.
    sum: u64,
}

impl Digest {
    /// Adds an entry.
    pub fn add(&mut self, target: Target, value: u32) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(target, value));
    }

    /// Removes an entry that was added.
    pub(super) fn remove(&mut self, target: Target, value: u32) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(target, value));
    }

    /// Adds an entry that banmesh never writes. From then on the digest differs from that of every place that banmesh filled.
    pub fn add_foreign(&mut self) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

fn hash(target: Target, value: u32) -> u64 {
    let mut bytes = [0; 21];
    bytes[..16].copy_from_slice(&target.bits().to_be_bytes());
    bytes[16] = target.prefix128();
    bytes[17..].copy_from_slice(&value.to_be_bytes());
    xxh3_64(&bytes)
}
