//! Variable-length integers (SPOE.txt 3.1, "varint"). A number below 240 takes one byte. A larger one takes 4 bits in the first
//! byte and 7 bits in each further byte, with an offset at each step, so that every number has exactly one encoding.

use crate::Malformed;

/// Length of the longest encoding of a 64-bit number, in bytes.
pub const MAX_LEN: usize = 10;

const TRUNCATED: Malformed = Malformed("it ends inside a number");
const TOO_LARGE: Malformed = Malformed("a number exceeds 64 bits");

/// Decodes one number and returns it with the rest of `input`.
///
/// # Errors
/// When `input` ends inside the number, or the number does not fit in 64 bits.
#[inline(always)]
pub fn decode(input: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    match input.split_first() {
        Some((&first, rest)) if first < 240 => Ok((u64::from(first), rest)),
        Some((&first, rest)) => decode_long(first, rest),
        None => Err(TRUNCATED),
    }
}

#[inline(never)]
fn decode_long(first: u8, mut rest: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let mut value = u64::from(first);
    let mut shift = 4;
    loop {
        let (&byte, tail) = rest.split_first().ok_or(TRUNCATED)?;
        rest = tail;
        let part = u64::from(byte);
        if shift > 60 || part > u64::MAX >> shift {
            return Err(TOO_LARGE);
        }
        value = value.checked_add(part << shift).ok_or(TOO_LARGE)?;
        if byte < 128 {
            return Ok((value, rest));
        }
        shift += 7;
    }
}

/// Appends the encoding of `value` to `output`.
#[inline]
pub fn encode(value: u64, output: &mut Vec<u8>) {
    if value < 240 {
        output.push(low_byte(value));
        return;
    }
    output.push(low_byte(value | 240));
    let mut rest = (value - 240) >> 4;
    while rest >= 128 {
        output.push(low_byte(rest | 128));
        rest = (rest - 128) >> 7;
    }
    output.push(low_byte(rest));
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "only the low byte is wanted")]
const fn low_byte(value: u64) -> u8 {
    value as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(value: u64) -> Vec<u8> {
        let mut output = Vec::new();
        encode(value, &mut output);
        output
    }

    #[test]
    fn known_encodings() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (239, &[0xef]),
            (240, &[0xf0, 0x00]),
            (2287, &[0xff, 0x7f]),
            (2288, &[0xf0, 0x80, 0x00]),
            (16380, &[0xfc, 0xf0, 0x06]),
            (264_431, &[0xff, 0xff, 0x7f]),
            (264_432, &[0xf0, 0x80, 0x80, 0x00]),
        ] {
            assert_eq!(encoded(value), bytes, "{value}");
            assert_eq!(decode(bytes), Ok((value, &[][..])), "{value}");
        }
    }

    #[test]
    fn numbers_above_64_bits_are_rejected() {
        let bytes = encoded(u64::MAX);
        assert_eq!(bytes.len(), MAX_LEN);
        assert_eq!(decode(&bytes), Ok((u64::MAX, &[][..])));
        assert_eq!(decode(&[0xff; 10]), Err(TOO_LARGE));
        let mut above = bytes;
        *above.last_mut().unwrap() += 1;
        assert_eq!(decode(&above), Err(TOO_LARGE));
        // Bits that would be shifted out, with a sum that fits.
        for last in [0x10, 0x20, 0x7f] {
            assert_eq!(decode(&[0xf0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, last]), Err(TOO_LARGE), "{last}");
        }
        assert_eq!(decode(&[0xf0; 3]), Err(TRUNCATED));
        assert_eq!(decode(&[]), Err(TRUNCATED));
    }

    proptest! {
        #[test]
        fn numbers_survive_a_round_trip(value in any::<u64>(), bits in 0u32..64, tail in any::<Vec<u8>>()) {
            let value = value >> bits;
            let mut bytes = encoded(value);
            prop_assert!(bytes.len() <= MAX_LEN);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(decode(&bytes), Ok((value, &tail[..])));
        }

        #[test]
        fn every_number_has_exactly_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Ok((value, rest)) = decode(&bytes) {
                prop_assert_eq!(&encoded(value)[..], &bytes[..bytes.len() - rest.len()]);
            }
        }
    }
}
