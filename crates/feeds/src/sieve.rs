//! Rules out most addresses that no list has, from memory that is small enough for a processor's cache.

use crate::ranges::Key;

/// Two Bloom filters of cache lines, with a bitmap next to them for ranges that would fill too many blocks of addresses.
///
/// It may let an address pass that no range has, which costs a search. It never rules out an address that a range has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sieve {
    /// Single units.
    units: Vec<Line>,
    /// Whole blocks. They are fewer, so they have lines of their own, which stay in a faster cache.
    blocks: Vec<Line>,
    /// A bit for each wide area (see [`Key::area`]) that a wide range touches; empty without wide ranges.
    wide: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Line([u64; 8]);

/// What is stored.
#[derive(Clone, Copy)]
enum Place {
    /// One unit.
    Unit(u64),
    /// All units of a block.
    Block(u64),
}

/// Ranges in more blocks than these are wide.
const MAX_BLOCKS: u64 = 8;
/// A part of a block with more units than these is stored as the whole block.
const MAX_UNITS: u64 = 16;
/// Bits for each stored place: with four of them set, about one foreign address in 200 passes.
const BITS: usize = 16;
/// Positions in the bitmap of wide areas.
const AREAS: usize = 1 << 20;
/// Once so many areas are marked, nearly every bit is set, and further ones are not worth the time.
const MAX_MARKED: u64 = 4 << 20;

impl Sieve {
    /// Makes the sieve of `ranges`: pairs of the first and last address.
    pub(crate) fn of<K: Key>(ranges: impl Iterator<Item = (K, K)> + Clone) -> Self {
        let (mut units, mut blocks, mut count, mut marked) = (0_usize, 0_usize, 0_usize, 0_u64);
        for (first, last) in ranges.clone() {
            count += 1;
            match narrow::<K>(first, last) {
                Some(narrow) => narrow.for_each(|place| match place {
                    Place::Unit(_) => units += 1,
                    Place::Block(_) => blocks += 1,
                }),
                None => marked = marked.saturating_add(areas(first, last)),
            }
        }
        // There is little room next to the long keys of IPv6.
        let bits = BITS.min(count * K::SIEVE_BITS / (units + blocks).max(1));
        let lines = |places: usize| vec![Line::default(); (places * bits).div_ceil(512)];
        let mut sieve = Self { units: lines(units), blocks: lines(blocks), wide: Vec::new() };
        if marked > 0 {
            sieve.wide = vec![if marked > MAX_MARKED { u64::MAX } else { 0 }; AREAS / 64];
        }
        for (first, last) in ranges {
            match narrow::<K>(first, last) {
                Some(narrow) => narrow.for_each(|place| match place {
                    Place::Unit(unit) => store(&mut sieve.units, unit),
                    Place::Block(block) => store(&mut sieve.blocks, block),
                }),
                None if marked <= MAX_MARKED => sieve.mark(first, last),
                None => {}
            }
        }
        sieve
    }

    /// Returns `false` if no range has `key`.
    pub(crate) fn may_have<K: Key>(&self, key: K) -> bool {
        let unit = key.unit();
        // Not `||`: the reads do not wait for each other.
        has(&self.units, unit) | has(&self.blocks, unit >> K::BLOCK) || self.is_wide(K::area(unit))
    }

    fn is_wide(&self, area: u64) -> bool {
        let (word, bit) = position(area);
        self.wide.get(word).is_some_and(|word| word & bit != 0)
    }

    fn mark<K: Key>(&mut self, first: K, last: K) {
        for step in 0..areas(first, last) {
            let (word, bit) = position(K::area(first.unit().saturating_add(step << K::AREA)));
            if let Some(word) = self.wide.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        (self.units.capacity() + self.blocks.capacity()) * size_of::<Line>() + self.wide.capacity() * size_of::<u64>()
    }
}

fn has(lines: &[Line], value: u64) -> bool {
    let hash = mixed(value);
    lines.get(slot(hash, lines.len())).is_some_and(|line| line.has(pattern(hash)))
}

fn store(lines: &mut [Line], value: u64) {
    let hash = mixed(value);
    let slot = slot(hash, lines.len());
    if let Some(line) = lines.get_mut(slot) {
        line.set(pattern(hash));
    }
}

impl Line {
    // Without branches: nearly every address takes the same path.
    fn has(&self, pattern: u64) -> bool {
        bits(pattern).fold(1, |all, (word, shift)| all & (self.0[word] >> shift)) & 1 == 1
    }

    fn set(&mut self, pattern: u64) {
        bits(pattern).for_each(|(word, shift)| self.0[word] |= 1 << shift);
    }
}

/// The four bits of a pattern: the word of the line, and the bit in it.
fn bits(pattern: u64) -> impl Iterator<Item = (usize, u64)> {
    [0, 9, 18, 27].into_iter().map(move |at| (usize::from(low_byte(pattern >> (at + 6)) & 7), pattern >> at & 63))
}

/// The places of a range, or `None` if it is wide.
fn narrow<K: Key>(first: K, last: K) -> Option<impl Iterator<Item = Place>> {
    let (first, last) = (first.unit(), last.unit());
    let blocks = (first >> K::BLOCK)..=(last >> K::BLOCK);
    (blocks.end() - blocks.start() < MAX_BLOCKS).then(|| {
        blocks.flat_map(move |block| {
            let (from, to) = (first.max(block << K::BLOCK), last.min(block << K::BLOCK | ((1 << K::BLOCK) - 1)));
            let many = to - from >= MAX_UNITS;
            let units = if many { None } else { Some(from..=to) };
            let whole = many.then_some(Place::Block(block));
            units.into_iter().flatten().map(Place::Unit).chain(whole)
        })
    })
}

/// How many areas a range touches.
fn areas<K: Key>(first: K, last: K) -> u64 {
    (last.unit() >> K::AREA) - (first.unit() >> K::AREA) + 1
}

/// Where the bit of an area is in the bitmap. Other areas may share it.
fn position(area: u64) -> (usize, u64) {
    let at = usize::try_from(area).unwrap_or_default() % AREAS;
    (at / 64, 1 << (at % 64))
}

/// The line of a block.
fn slot(hash: u64, lines: usize) -> usize {
    usize::try_from((u128::from(hash) * lines as u128) >> 64).unwrap_or_default()
}

/// The bits of a value in its line, which do not depend on the bits that selected the line.
fn pattern(hash: u64) -> u64 {
    hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 28
}

/// Spreads close numbers (the finalizer of `splitmix64`).
pub(crate) fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn low_byte(value: u64) -> u8 {
    u8::try_from(value & 0xff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts in their own blocks, and others between them.
    fn host(n: u32) -> u32 {
        0x0b00_0000 + n.wrapping_mul(0x9e37_79b1) % 0x6000_0000
    }

    fn network(n: u32) -> u128 {
        0x2a00 << 112 | u128::from(n.wrapping_mul(0x9e37_79b1)) << 64
    }

    #[test]
    fn few_addresses_pass_that_no_list_has() {
        const LISTED: u32 = 200_000;
        let v4 = Sieve::of((0..LISTED).map(|n| (host(n), host(n))));
        let v6 = Sieve::of((0..LISTED).map(|n| (network(n), network(n) | u128::from(u64::MAX))));
        assert!((0..LISTED).all(|n| v4.may_have(host(n)) && v6.may_have(network(n) | 7)));
        let foreign = LISTED..2 * LISTED;
        let passed = foreign.clone().filter(|n| v4.may_have(host(*n))).count();
        assert!(passed < 4_000, "{passed} of 200000 IPv4 addresses");
        let passed = foreign.filter(|n| v6.may_have(network(*n))).count();
        assert!(passed < 8_000, "{passed} of 200000 IPv6 addresses");
        assert!(v4.bytes() <= 3 * 200_000 && v6.bytes() <= 3 * 200_000);
    }

    #[test]
    fn wide_networks_let_only_their_surroundings_pass() {
        // 11.0.0.0/16, and 2a00::/29.
        let v4 = Sieve::of([(0x0b00_0000_u32, 0x0b00_ffff)].into_iter());
        let v6 = Sieve::of([(0x2a00 << 112, 0x2a00_0007_u128 << 96 | u128::MAX >> 32)].into_iter());
        assert!(v4.may_have(0x0b00_1234_u32) && !v4.may_have(0x0b01_0000_u32) && !v4.may_have(0x0aff_ffff_u32));
        assert!(v6.may_have(0x2a00_0007_ffff_u128 << 80) && !v6.may_have(0x2a00_0008_u128 << 96));
    }

    #[test]
    fn everything_passes_when_wide_networks_are_too_many_to_mark() {
        // All of 2000::/3.
        let sieve = Sieve::of([(1 << 125, (1 << 126) - 1_u128)].into_iter());
        assert!((0..1000).all(|n| sieve.may_have(network(n))));
    }
}
