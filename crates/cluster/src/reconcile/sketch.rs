//! An estimate of how many keys two sets do not share, from 2 KiB.
//!
//! Every key adds or subtracts 1 at one of the counters, which one depends on the key. In the difference of two sketches, shared
//! keys cancel out, and the expected sum of the squares is the number of keys that only one of the sets has. The standard error
//! is the square root of 2 / [`COUNTERS`]: 4.4 %.

use super::mix;

/// The counters of a sketch. They wrap around, which does not matter for the difference of two.
pub const COUNTERS: usize = 1024;
/// The length of an encoded sketch, in bytes.
pub const ENCODED_LEN: usize = 2 * COUNTERS;

/// A sketch of a set of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    counters: Box<[u16; COUNTERS]>,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { counters: Box::new([0; COUNTERS]) }
    }
}

impl Sketch {
    /// Adds a key, which must not have been added before.
    pub fn add(&mut self, key: u64) {
        let bits = mix(key);
        // The remainder fits: it is less than COUNTERS.
        let at = usize::try_from(bits % COUNTERS as u64).unwrap_or_default();
        let counter = &mut self.counters[at];
        *counter = if bits >> 63 == 0 { counter.wrapping_add(1) } else { counter.wrapping_sub(1) };
    }

    /// The estimated number of keys that only one of the sets has.
    pub fn difference(&self, other: &Self) -> u64 {
        let differences =
            self.counters.iter().zip(other.counters.iter()).map(|(ours, theirs)| ours.wrapping_sub(*theirs));
        differences.map(|difference| u64::from(difference.cast_signed().unsigned_abs()).pow(2)).sum()
    }

    /// Appends the encoded sketch to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.counters.iter().flat_map(|counter| counter.to_le_bytes()));
    }

    /// Decodes a sketch, or returns `None` if it has the wrong length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (counters, rest) = bytes.as_chunks();
        if counters.len() != COUNTERS || !rest.is_empty() {
            return None;
        }
        let mut sketch = Self::default();
        for (counter, bytes) in sketch.counters.iter_mut().zip(counters) {
            *counter = u16::from_le_bytes(*bytes);
        }
        Some(sketch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(keys: std::ops::Range<u64>) -> Sketch {
        let mut sketch = Sketch::default();
        keys.for_each(|number| sketch.add(mix(number + 1)));
        sketch
    }

    #[test]
    fn the_number_of_differences_is_estimated_within_five_standard_errors() {
        let ours = sketch(0..200_000);
        for differences in [1_000u64, 20_000, 150_000] {
            // Half of them at either end.
            let theirs = sketch(differences / 2..200_000 + differences / 2);
            let estimate = ours.difference(&theirs);
            assert!(estimate.abs_diff(differences) < differences * 22 / 100, "{differences}: {estimate}");
        }
        assert_eq!(ours.difference(&ours), 0);
        assert_eq!(ours.difference(&sketch(1..200_000)), 1);
    }

    #[test]
    fn sketches_are_read_as_written() {
        let (ours, mut bytes) = (sketch(0..5000), Vec::new());
        ours.encode(&mut bytes);
        assert_eq!(bytes.len(), ENCODED_LEN);
        assert_eq!(Sketch::decode(&bytes), Some(ours));
        bytes.pop();
        assert_eq!(Sketch::decode(&bytes), None);
    }
}
