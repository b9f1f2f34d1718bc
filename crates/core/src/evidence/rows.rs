//! [`Rows`]: a table from keys to a few entries each. Joining is commutative, associative and idempotent, within the limit of a row and
//! with expiry.
//!
//! All entries are in one hash table, hashed by the key of their row alone, so an entry costs its own bytes and one more.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::entries::{Entry, Hour};

/// How many digests a table has.
pub const BUCKETS: usize = 256;

/// The limits of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The most entries of one row. Those with the greatest rank are kept.
    pub row: usize,
    /// The most entries of the table. See [`Rows::join`].
    pub entries: usize,
    /// An entry counts as absent when its time lies further back, in hours.
    pub keep: u32,
    /// Whether rows with few entries are removed first when the table is full: such a row has few witnesses.
    pub by_witnesses: bool,
}

/// A table from keys to a few entries each.
#[derive(Debug)]
pub struct Rows<E> {
    bounds: Bounds,
    table: HashTable<E>,
    hasher: foldhash::fast::RandomState,
    digests: Box<[u64; BUCKETS]>,
    removed: u64,
}

impl<E: Entry> Rows<E> {
    /// Creates an empty table.
    pub fn new(bounds: Bounds) -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self { bounds, table: HashTable::new(), hasher, digests: Box::new([0; BUCKETS]), removed: 0 }
    }

    /// Returns the number of entries, including expired ones that are not yet removed.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns the bytes that the table has allocated.
    pub fn bytes(&self) -> usize {
        self.table.allocation_size()
    }

    /// Returns how many entries were removed before they expired, because the table was full.
    pub const fn removed(&self) -> u64 {
        self.removed
    }

    /// The digests by bucket: equal where two tables have the same entries.
    pub const fn digests(&self) -> &[u64; BUCKETS] {
        &self.digests
    }

    /// Iterates over the entries of a row that have not expired, in no order.
    pub fn row(&self, key: E::Key, now: Hour) -> impl Iterator<Item = &E> {
        let keep = self.bounds.keep;
        self.table
            .iter_hash(self.hasher.hash_one(key))
            .filter(move |entry| entry.key() == key && now.since(entry.time()) <= keep)
    }

    /// Returns one entry of a row, if it has not expired.
    pub fn get(&self, key: E::Key, sub: E::Sub, now: Hour) -> Option<&E> {
        self.row(key, now).find(|entry| entry.sub() == sub)
    }

    /// Iterates over all entries that have not expired.
    pub fn iter(&self, now: Hour) -> impl Iterator<Item = &E> {
        let keep = self.bounds.keep;
        self.table.iter().filter(move |entry| now.since(entry.time()) <= keep)
    }

    /// Returns `true` if an entry would change the table by more than a later time within `grain` hours.
    pub fn is_news(&self, new: &E, now: Hour, grain: u32) -> bool {
        let (mut live, mut least) = (0, None);
        for entry in self.row(new.key(), now) {
            if entry.sub() == new.sub() {
                return new.time().since(entry.time()) >= grain;
            }
            live += 1;
            if least.as_ref().is_none_or(|least| entry.rank() < *least) {
                least = Some(entry.rank());
            }
        }
        live < self.bounds.row || least.is_none_or(|least| new.rank() > least)
    }

    /// Joins an entry. Returns `true` if the table changed. An entry that has expired, or is more than a day ahead of `now`, is ignored.
    ///
    /// A full row keeps the entries of the greatest rank. A full table first loses what has expired, and then an eighth of its
    /// entries: those of the smallest rows if `by_witnesses` is set, and the oldest.
    pub fn join(&mut self, new: E, now: Hour) -> bool {
        if now.since(new.time()) > self.bounds.keep || new.time().since(now) > 24 {
            return false;
        }
        let (key, sub) = (new.key(), new.sub());
        let hash = self.hasher.hash_one(key);
        let (mut live, mut last, mut expired, mut same) = (0, None::<E>, None::<E>, None::<E>);
        for entry in self.table.iter_hash(hash).filter(|entry| entry.key() == key) {
            if entry.sub() == sub {
                same = Some(*entry);
                break;
            }
            if now.since(entry.time()) > self.bounds.keep {
                expired = Some(*entry);
            } else {
                live += 1;
                if last.is_none_or(|last| entry.rank() < last.rank()) {
                    last = Some(*entry);
                }
            }
        }
        if let Some(known) = same {
            let gone = now.since(known.time()) > self.bounds.keep;
            let joined = if gone { new } else { known.join(new) };
            if joined.bytes().as_ref() == known.bytes().as_ref() {
                return false;
            }
            self.replace(hash, &known, joined);
            return true;
        }
        if let Some(expired) = expired {
            self.replace(hash, &expired, new);
            return true;
        }
        if live >= self.bounds.row {
            return match last {
                Some(last) if new.rank() > last.rank() => {
                    self.replace(hash, &last, new);
                    true
                }
                _ => false,
            };
        }
        if self.table.len() >= self.bounds.entries {
            self.make_room(now);
        }
        self.toggle(&new);
        let hasher = &self.hasher;
        self.table.insert_unique(hash, new, |entry| hasher.hash_one(entry.key()));
        true
    }

    /// Removes a row.
    pub fn remove(&mut self, key: E::Key) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut removed = false;
        while let Ok(found) = self.table.find_entry(hash, |entry| entry.key() == key) {
            let (entry, _) = found.remove();
            self.toggle(&entry);
            removed = true;
        }
        removed
    }

    /// Removes expired entries.
    pub fn sweep(&mut self, now: Hour) {
        let keep = self.bounds.keep;
        self.retain(|entry| now.since(entry.time()) <= keep);
    }

    fn replace(&mut self, hash: u64, old: &E, new: E) {
        let (key, sub) = (old.key(), old.sub());
        if let Some(entry) = self.table.find_mut(hash, |entry| entry.key() == key && entry.sub() == sub) {
            let before = std::mem::replace(entry, new);
            self.toggle(&before);
            self.toggle(&new);
        }
    }

    fn toggle(&mut self, entry: &E) {
        let bytes = entry.bytes();
        let digest = xxh3_64(bytes.as_ref());
        self.digests[bucket_of(entry)] ^= digest;
    }

    fn retain(&mut self, mut keep: impl FnMut(&E) -> bool) {
        let digests = &mut self.digests;
        self.table.retain(|entry| {
            let kept = keep(entry);
            if !kept {
                digests[bucket_of(entry)] ^= xxh3_64(entry.bytes().as_ref());
            }
            kept
        });
    }

    fn make_room(&mut self, now: Hour) {
        self.sweep(now);
        let len = self.table.len();
        if len < self.bounds.entries {
            return;
        }
        let mut values: Vec<u64> = self.table.iter().map(|entry| self.value(entry)).collect();
        let (_, cut, _) = values.select_nth_unstable(len / 8);
        let cut = *cut;
        drop(values);
        let doomed: hashbrown::HashSet<u64> = self
            .table
            .iter()
            .filter(|entry| self.value(entry) <= cut)
            .map(|entry| xxh3_64(entry.bytes().as_ref()))
            .collect();
        self.removed = self.removed.saturating_add(doomed.len() as u64);
        self.retain(|entry| !doomed.contains(&xxh3_64(entry.bytes().as_ref())));
    }

    /// What a full table keeps: the greater, the longer.
    fn value(&self, entry: &E) -> u64 {
        let witnesses = if self.bounds.by_witnesses {
            let key = entry.key();
            self.table.iter_hash(self.hasher.hash_one(key)).filter(|other| other.key() == key).count()
        } else {
            0
        };
        let scatter = xxh3_64(entry.bytes().as_ref()) >> 32;
        (witnesses.min(255) as u64) << 56 | u64::from(entry.time().0) << 32 | scatter
    }
}

/// The bucket of the row to which an entry belongs.
pub fn bucket_of<E: Entry>(entry: &E) -> usize {
    let hash = xxh3_64(entry.key_bytes().as_ref());
    usize::try_from(hash % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
