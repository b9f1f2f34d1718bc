//! Coded symbols: the XOR of the keys that are mapped to a place, with a check of it.
//!
//! Every key is mapped to place 0, and to place `i` with probability `1 / (1 + i/2)`, so that the first places have many keys and
//! later ones few. Some place therefore holds a single difference, whatever their number is. The places of a key depend on the
//! key only, so that a key which both ends have is in the same symbols on both.
//!
//! The paper's symbols also count their keys. These do not: a key that was found is looked up in the finder's own set, which says
//! whose it is. That saves one or two bytes of 14.

use super::mix;

/// The bytes of an encoded symbol.
pub const SYMBOL_LEN: usize = 12;

/// A coded symbol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// The XOR of the keys.
    pub keys: u64,
    /// The XOR of the checks of the keys.
    pub checks: u32,
}

impl Symbol {
    /// Adds or removes a key.
    pub const fn toggle(&mut self, key: u64, check: u32) {
        self.keys ^= key;
        self.checks ^= check;
    }

    /// Adds the keys of `other`, or removes them.
    pub const fn toggle_all(&mut self, other: &Self) {
        self.toggle(other.keys, other.checks);
    }

    /// Whether no keys are left.
    pub const fn is_empty(&self) -> bool {
        self.keys == 0 && self.checks == 0
    }

    /// The key, if only one seems to be left. One of four billion symbols with several keys seems to have one.
    pub fn only_key(&self) -> Option<u64> {
        (!self.is_empty() && check_of(self.keys) == self.checks).then_some(self.keys)
    }

    /// The encoded symbol.
    pub fn encode(&self) -> [u8; SYMBOL_LEN] {
        let mut bytes = [0; SYMBOL_LEN];
        bytes[..8].copy_from_slice(&self.keys.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checks.to_le_bytes());
        bytes
    }

    /// Decodes a symbol.
    pub const fn decode(bytes: [u8; SYMBOL_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, check @ ..] = bytes;
        Self { keys: u64::from_le_bytes([a, b, c, d, e, f, g, h]), checks: u32::from_le_bytes(check) }
    }
}

/// The check of `key`. It need not be secret: the keys are.
pub const fn check_of(key: u64) -> u32 {
    let [.., a, b, c, d] = mix(key ^ 0x5851_f42d_4c95_7f2d).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The places of a key, in ascending order. Beyond 2^52, which no table reaches, they can repeat.
#[derive(Clone, Debug)]
pub struct Places {
    next: f64,
    /// The state of a SplitMix64 generator.
    random: u64,
}

/// Adding this to a number below it, and subtracting it again, rounds to the nearest integer: there are no digits left for a fraction.
const ROUND: f64 = (1u64 << 52) as f64;

impl Places {
    /// The places of `key`.
    pub const fn of(key: u64) -> Self {
        Self { next: 0.0, random: key }
    }
}

impl Iterator for Places {
    type Item = usize;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "the numbers are whole and positive, and the conversion saturates"
    )]
    #[inline]
    fn next(&mut self) -> Option<usize> {
        let here = self.next;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // In (0, 1], in steps of 2^-53.
        let uniform = ((mix(self.random) >> 11) + 1).cast_signed() as f64 * (1.0 / (1u64 << 53) as f64);
        // The probability that none of the places after `here` up to `to` is one of the key's is the product of i / (i + 2),
        // which is (here + 1)(here + 2) / ((to + 1)(to + 2)), or nearly ((here + 1.5) / (to + 1.5))². The next place is the first `to`
        // where that is less than `uniform`. Only operations that IEEE 754 defines exactly: both ends must get the same number.
        // The slow ones do not depend on `here`, so a processor does those of several places at the same time.
        let factor = 1.0 / uniform.sqrt();
        let to = ((here + 1.5) * factor - 1.0 + ROUND) - ROUND;
        self.next = if to > here { to } else { here + 1.0 };
        Some(here as i64 as usize)
    }
}

/// Adds `keys` to the symbols of the places from `first` on.
pub fn add(symbols: &mut [Symbol], first: usize, keys: &[u64]) {
    let end = first.saturating_add(symbols.len());
    for key in keys {
        let check = check_of(*key);
        for place in Places::of(*key).take_while(|place| *place < end) {
            // Wraps around to a place without a symbol for the places before `first`.
            if let Some(symbol) = symbols.get_mut(place.wrapping_sub(first)) {
                symbol.toggle(*key, check);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_mapped_with_about_the_probability_of_the_paper() {
        const KEYS: u32 = 40_000;
        let mut counts = [0u32; 200];
        for number in 0..KEYS {
            for place in Places::of(mix(number.into())).take_while(|place| *place < 200) {
                counts[place] += 1;
            }
        }
        for (place, count) in counts.into_iter().enumerate() {
            let expected = f64::from(KEYS) / (1.0 + place as f64 / 2.0);
            // Five standard deviations, and what the continuous jumps differ from the exact ones: 4 % at place 1, less at others.
            let tolerance = 5.0 * expected.sqrt() + 0.04 * expected;
            assert!((f64::from(count) - expected).abs() <= tolerance, "{place}: {count}, not {expected}");
        }
    }

    #[test]
    fn places_are_the_same_everywhere() {
        let places: Vec<usize> = Places::of(1).take(12).collect();
        assert_eq!(places, [0, 1, 2, 3, 6, 10, 12, 13, 19, 37, 42, 67]);
        let places: Vec<usize> = Places::of((1 << 63) + 5).take(14).collect();
        assert_eq!(places, [0, 2, 12, 25, 55, 56, 98, 139, 145, 289, 825, 1279, 1464, 2062]);
    }

    proptest! {
        #[test]
        fn symbols_are_read_as_written(keys: u64, checks: u32) {
            let symbol = Symbol { keys, checks };
            prop_assert_eq!(Symbol::decode(symbol.encode()), symbol);
        }

        #[test]
        fn symbols_made_in_steps_are_those_made_at_once(keys in proptest::collection::vec(any::<u64>(), 0..50), cut in 0usize..100) {
            let mut whole = vec![Symbol::default(); 100];
            add(&mut whole, 0, &keys);
            let mut steps = vec![Symbol::default(); 100];
            let (before, after) = steps.split_at_mut(cut);
            add(before, 0, &keys);
            add(after, cut, &keys);
            prop_assert_eq!(whole, steps);
        }

        #[test]
        fn places_ascend(key: u64) {
            let places: Vec<usize> = Places::of(key).take_while(|place| *place < u32::MAX as usize).take(60).collect();
            prop_assert!(places.is_sorted_by(|one, next| one < next));
        }
    }
}
