//! Sorted ranges of addresses, each with a set of feeds.

use crate::sieve::{Sieve, mixed};

/// An address as a number.
pub(crate) trait Key: Copy + Ord {
    /// The last address.
    const LAST: Self;
    /// How many keys a step of the search compares: about a cache line of them.
    const FAN: usize;
    /// A block (a /24, IPv6: a /48) has 2 to the power of this units.
    const BLOCK: u32;
    /// An area has 2 to the power of this units.
    const AREA: u32;
    /// The most bits of the sieve for each range, so that a prefix needs at most 48 bytes in all.
    const SIEVE_BITS: usize;
    /// The address after this one, if any.
    fn next(self) -> Option<Self>;
    /// The address before this one, if any.
    fn before(self) -> Option<Self>;
    /// The smallest part of the address space that the sieve tells apart: an address (IPv6: a /64).
    fn unit(self) -> u64;
    /// The area of a unit: a /20 (IPv6: a /32) as a number that is equal for few others.
    fn area(unit: u64) -> u64;
}

impl Key for u32 {
    const LAST: Self = Self::MAX;
    const FAN: usize = 16;
    const BLOCK: u32 = 8;
    const AREA: u32 = 12;
    const SIEVE_BITS: usize = 240;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn unit(self) -> u64 {
        self.into()
    }

    fn area(unit: u64) -> u64 {
        unit >> Self::AREA
    }
}

impl Key for u128 {
    const LAST: Self = Self::MAX;
    const FAN: usize = 8;
    const BLOCK: u32 = 16;
    const AREA: u32 = 32;
    const SIEVE_BITS: usize = 24;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn unit(self) -> u64 {
        u64::try_from(self >> 64).unwrap_or_default()
    }

    fn area(unit: u64) -> u64 {
        mixed(unit >> Self::AREA)
    }
}

/// Sorts ranges, and joins those that overlap or touch.
pub(crate) fn merged<K: Key>(mut ranges: Vec<(K, K)>) -> Vec<(K, K)> {
    ranges.sort_unstable();
    let mut kept = 0;
    for at in 0..ranges.len() {
        let (first, last) = ranges[at];
        match ranges[..kept].last_mut() {
            Some((_, end)) if end.next().is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => {
                ranges[kept] = (first, last);
                kept += 1;
            }
        }
    }
    ranges.truncate(kept);
    ranges.shrink_to_fit();
    ranges
}

/// The whole space of addresses, cut where the set of feeds changes.
///
/// The sieve rules out most addresses that have no feed. For others, a lookup walks levels of keys, of which each has every `FAN`-th of the
/// one below, so it costs the same whatever the lists have.
#[derive(Clone, Debug)]
pub(crate) struct Ranges<K> {
    /// Where a range begins; it ends where the next one begins. Addresses before the first have no feed.
    starts: Vec<K>,
    /// The set of each range.
    sets: Vec<u32>,
    /// From narrow to wide: every `FAN`-th key of the level below; the first of `starts`.
    levels: Vec<Vec<K>>,
    /// Rules out most addresses that have no feed, because walking the levels of a long list costs several reads of main memory.
    sieve: Sieve,
}

impl<K> Default for Ranges<K> {
    fn default() -> Self {
        Self { starts: Vec::new(), sets: Vec::new(), levels: Vec::new(), sieve: Sieve::default() }
    }
}

impl<K: Key> Ranges<K> {
    /// The set that `key` has.
    pub(crate) fn find(&self, key: K) -> u32 {
        if !self.sieve.may_have(key) {
            return 0;
        }
        // The position in a level is that of the block in the level below.
        let mut block = 0;
        for level in self.levels.iter().rev() {
            match Self::last_until(level, block, key) {
                Some(at) => block = at,
                None => return 0,
            }
        }
        Self::last_until(&self.starts, block, key).and_then(|at| self.sets.get(at)).copied().unwrap_or(0)
    }

    /// The position of the last key of a block that is not above `key`.
    fn last_until(keys: &[K], block: usize, key: K) -> Option<usize> {
        let from = block * K::FAN;
        let keys = keys.get(from..keys.len().min(from + K::FAN))?;
        let count = keys.iter().map(|other| usize::from(*other <= key)).sum::<usize>();
        count.checked_sub(1).map(|at| from + at)
    }

    /// These ranges with `list` as all that the feeds in `bit` have.
    pub(crate) fn replaced(&self, bit: u32, list: &[(K, K)]) -> Self {
        let mut made = Self::default();
        // Most changes keep about as many ranges as there were.
        made.starts.reserve_exact(self.starts.len() + 2 * list.len());
        made.sets.reserve_exact(self.starts.len() + 2 * list.len());
        let edges = list.iter().flat_map(|(first, last)| [(Some(*first), bit), (last.next(), 0)]);
        let mut edges = edges.filter_map(|(at, set)| Some((at?, set))).peekable();
        let mut before = self.starts.iter().copied().zip(self.sets.iter().copied()).peekable();
        let (mut others, mut own) = (0, 0);
        loop {
            let at = match (before.peek(), edges.peek()) {
                (Some((old, _)), Some((edge, _))) => *old.min(edge),
                (Some((old, _)), None) => *old,
                (None, Some((edge, _))) => *edge,
                (None, None) => break,
            };
            while let Some((_, set)) = before.next_if(|(old, _)| *old == at) {
                others = set & !bit;
            }
            while let Some((_, set)) = edges.next_if(|(edge, _)| *edge == at) {
                own = set;
            }
            if made.sets.last().copied().unwrap_or(0) != others | own {
                made.starts.push(at);
                made.sets.push(others | own);
            }
        }
        made.starts.shrink_to_fit();
        made.sets.shrink_to_fit();
        made.index();
        made
    }

    fn index(&mut self) {
        let mut below = &self.starts;
        let mut levels: Vec<Vec<K>> = Vec::new();
        while below.len() > K::FAN {
            levels.push(below.iter().step_by(K::FAN).copied().collect());
            let Some(last) = levels.last() else { break };
            below = last;
        }
        self.levels = levels;
        self.sieve = Sieve::of(self.listed());
    }

    /// The first and the last address of each range that has a feed.
    fn listed(&self) -> impl Iterator<Item = (K, K)> + Clone {
        let lasts = self.starts.iter().skip(1).map(|next| next.before().unwrap_or(K::LAST)).chain([K::LAST]);
        let ranges = self.starts.iter().copied().zip(lasts).zip(&self.sets);
        ranges.filter(|(_, set)| **set != 0).map(|(range, _)| range)
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let keys = self.starts.capacity() + self.levels.iter().map(Vec::capacity).sum::<usize>();
        keys * size_of::<K>() + self.sets.capacity() * size_of::<u32>() + self.sieve.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Networks of every length from wide to a host, close together and far apart, which begin anywhere.
    fn ranges(lengths: std::ops::Range<u32>) -> impl Strategy<Value = Vec<(u128, u128, u32)>> {
        let one = (any::<u128>(), 0u128..40, lengths, 1u32..4).prop_map(|(far, near, length, set)| {
            let begin = if far & 3 == 0 { far } else { near << length };
            (begin, begin.saturating_add(far >> (128 - length)), set)
        });
        proptest::collection::vec(one, 0..40)
    }

    /// Asks at every edge of `lists`, and compares with a scan.
    fn check<K: Key + std::fmt::Debug>(lists: &[(K, K, u32)]) -> Result<(), TestCaseError> {
        let mut table = Ranges::default();
        for bit in [1, 2] {
            let list = lists.iter().filter(|(.., set)| set & bit != 0).map(|(first, last, _)| (*first, *last));
            table = table.replaced(bit, &merged(list.collect()));
        }
        for (first, last, _) in lists {
            for asked in [Some(*first), Some(*last), first.before(), last.next()].into_iter().flatten() {
                let having = lists.iter().filter(|(first, last, _)| *first <= asked && asked <= *last);
                prop_assert_eq!(table.find(asked), having.fold(0, |sets, (.., set)| sets | set), "{:?}", asked);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn lookups_at_every_edge_agree_with_a_scan(v4 in ranges(1..26), v6 in ranges(1..110)) {
            let low = |bits: u128| u32::try_from(bits & 0xffff_ffff).unwrap();
            let v4: Vec<_> = v4.iter().map(|(first, last, set)| (low(*first), low(*last).max(low(*first)), *set)).collect();
            check(&v4)?;
            check(&v6)?;
        }
    }
}
