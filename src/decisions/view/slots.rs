//! The hash table of one prefix length.

use std::hash::BuildHasher;

use banmesh_types::time::{Expiry, UnixMillis};

use super::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A slot of a table: either never used, or a key with an expiry (in the past after an unban).
pub(super) trait Slot: Default {
    /// The key and the expiry; `None` if the slot was never used.
    fn load(&self) -> Option<(u128, Expiry)>;
    /// Sets the expiry, and the key to `bits` if the slot was never used.
    fn write(&self, bits: u128, until: Expiry);
}

/// The expiry of an unbanned slot: in the past, but not 0, which marks a slot that was never used.
const UNBANNED: Expiry = Expiry::from_seconds(1);

/// An IPv4 slot: address and expiry in one word.
#[derive(Debug, Default)]
pub(super) struct Narrow(AtomicU64);

impl Slot for Narrow {
    fn load(&self) -> Option<(u128, Expiry)> {
        let word = self.0.load(Ordering::Acquire);
        let until = Expiry::from_seconds(low_half(word));
        (word != 0).then_some((MAPPED | u128::from(word >> 32), until))
    }

    fn write(&self, bits: u128, until: Expiry) {
        let address = u64::try_from(bits & 0xffff_ffff).unwrap_or_default();
        self.0.store(address << 32 | u64::from(until.seconds()), Ordering::Release);
    }
}

/// The lower 32 bits.
fn low_half(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or_default()
}

const MAPPED: u128 = 0xffff_0000_0000;

/// An IPv6 slot. The two words of the address are written before the slot is marked as used, and never again.
#[derive(Debug, Default)]
pub(super) struct Wide {
    high: AtomicU64,
    low: AtomicU64,
    until: AtomicU64,
}

impl Slot for Wide {
    fn load(&self) -> Option<(u128, Expiry)> {
        let until = self.until.load(Ordering::Acquire);
        if until == 0 {
            return None;
        }
        let high = u128::from(self.high.load(Ordering::Relaxed));
        let low = u128::from(self.low.load(Ordering::Relaxed));
        Some((high << 64 | low, Expiry::from_seconds(low_half(until))))
    }

    fn write(&self, bits: u128, until: Expiry) {
        if self.until.load(Ordering::Relaxed) == 0 {
            let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
            self.high.store(half(bits >> 64), Ordering::Relaxed);
            self.low.store(half(bits), Ordering::Relaxed);
        }
        self.until.store(u64::from(until.seconds()), Ordering::Release);
    }
}

#[derive(Debug)]
pub(super) struct Slots<S> {
    slots: Box<[S]>,
    /// The number of slots that were ever used. Only the writer changes it.
    used: AtomicUsize,
    hasher: foldhash::fast::RandomState,
}

impl<S: Slot> Slots<S> {
    /// A table that is at most half full with `entries`.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let size = (entries * 2).next_power_of_two().max(64);
        Self::with_slots(size, foldhash::fast::RandomState::default())
    }

    /// A table with `size` slots, which must be a power of two.
    pub(super) fn with_slots(size: usize, hasher: foldhash::fast::RandomState) -> Self {
        let slots = std::iter::repeat_with(S::default).take(size).collect();
        Self { slots, used: AtomicUsize::new(0), hasher }
    }

    pub(super) fn until(&self, bits: u128) -> Expiry {
        let mut at = self.start(bits);
        // Ends at the first unused slot, at the latest after the whole table. At least a quarter of the slots are unused.
        for _ in 0..self.slots.len() {
            match self.slots[at].load() {
                None => return Expiry::PAST,
                Some((key, until)) if key == bits => return until,
                Some(_) => at = (at + 1) & (self.slots.len() - 1),
            }
        }
        Expiry::PAST
    }

    pub(super) fn set(&self, bits: u128, until: Expiry) {
        let until = until.max(UNBANNED);
        let mut at = self.start(bits);
        for _ in 0..self.slots.len() {
            match self.slots[at].load() {
                None if until == UNBANNED => return,
                None => {
                    self.used.fetch_add(1, Ordering::Relaxed);
                    return self.slots[at].write(bits, until);
                }
                Some((key, _)) if key == bits => return self.slots[at].write(bits, until),
                Some(_) => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }

    /// Whether three quarters of the slots are used, so that the next insert needs a larger table.
    pub(super) fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) * 4 >= self.slots.len() * 3
    }

    pub(super) fn rebuilt(&self, now: UnixMillis) -> Self {
        let live = || self.slots.iter().filter_map(Slot::load).filter(|(_, until)| !until.has_passed(now));
        let rebuilt = Self::with_capacity(live().count() + 1);
        for (bits, until) in live() {
            rebuilt.set(bits, until);
        }
        rebuilt
    }

    fn start(&self, bits: u128) -> usize {
        // The remainder is less than the length, so it fits.
        usize::try_from(self.hasher.hash_one(bits) & (self.slots.len() as u64 - 1)).unwrap_or_default()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }
}
