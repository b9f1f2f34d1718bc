//! Typed data, strings and key-value lists (SPOE.txt 3.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Malformed, varint};

const TRUNCATED: Malformed = Malformed("it ends inside a value");

/// Longest text that is parsed as an address, in bytes. It leaves room for spaces around an IPv6 address with an embedded IPv4
/// address.
const MAX_ADDRESS_TEXT: usize = 64;

/// One typed value. Strings and binary data are borrowed from the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Type 0. HAProxy sends it when a sample has no value, such as `src` of a client on a Unix socket.
    Null,
    /// Type 1. The value is in flag 0x10 of the type byte.
    Bool(bool),
    /// Type 2.
    Int32(i32),
    /// Type 3.
    Uint32(u32),
    /// Type 4. HAProxy sends its own integers as this type.
    Int64(i64),
    /// Type 5.
    Uint64(u64),
    /// Type 6.
    Ipv4(Ipv4Addr),
    /// Type 7.
    Ipv6(Ipv6Addr),
    /// Type 8. The bytes may be invalid UTF-8.
    String(&'a [u8]),
    /// Type 9.
    Binary(&'a [u8]),
}

impl<'a> Data<'a> {
    /// Decodes one value and returns it with the rest of `input`. A number that is too large for a 32-bit type is cut to its low
    /// 32 bits, as HAProxy does.
    ///
    /// # Errors
    /// When `input` ends inside the value, or its type is not one of 0 to 9.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "signed numbers are sent as their 64-bit two's complement"
    )]
    pub fn decode(input: &'a [u8]) -> Result<(Self, &'a [u8]), Malformed> {
        let (&head, rest) = input.split_first().ok_or(TRUNCATED)?;
        let number = |wrap: fn(u64) -> Self| varint::decode(rest).map(|(value, rest)| (wrap(value), rest));
        match head & 0x0f {
            0 => Ok((Self::Null, rest)),
            1 => Ok((Self::Bool(head & 0x10 != 0), rest)),
            2 => number(|value| Self::Int32(value as i32)),
            3 => number(|value| Self::Uint32(value as u32)),
            4 => number(|value| Self::Int64(value as i64)),
            5 => number(Self::Uint64),
            6 => {
                let (octets, rest) = rest.split_first_chunk::<4>().ok_or(TRUNCATED)?;
                Ok((Self::Ipv4(Ipv4Addr::from(*octets)), rest))
            }
            7 => {
                let (octets, rest) = rest.split_first_chunk::<16>().ok_or(TRUNCATED)?;
                Ok((Self::Ipv6(Ipv6Addr::from(*octets)), rest))
            }
            8 => decode_string(rest).map(|(bytes, rest)| (Self::String(bytes), rest)),
            9 => decode_string(rest).map(|(bytes, rest)| (Self::Binary(bytes), rest)),
            _ => Err(Malformed("a value has an unknown type")),
        }
    }

    /// Appends the encoded value to `output`.
    #[expect(clippy::cast_sign_loss, reason = "signed numbers are sent as their 64-bit two's complement")]
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut number = |kind: u8, value: u64| {
            output.push(kind);
            varint::encode(value, output);
        };
        match *self {
            Self::Null => output.push(0),
            Self::Bool(value) => output.push(if value { 0x11 } else { 0x01 }),
            Self::Int32(value) => number(2, i64::from(value) as u64),
            Self::Uint32(value) => number(3, value.into()),
            Self::Int64(value) => number(4, value as u64),
            Self::Uint64(value) => number(5, value),
            Self::Ipv4(address) => {
                output.push(6);
                output.extend_from_slice(&address.octets());
            }
            Self::Ipv6(address) => {
                output.push(7);
                output.extend_from_slice(&address.octets());
            }
            Self::String(bytes) => {
                output.push(8);
                encode_string(bytes, output);
            }
            Self::Binary(bytes) => {
                output.push(9);
                encode_string(bytes, output);
            }
        }
    }

    /// The value as an address in canonical form: from type IPv4 or IPv6, or from a string with optional spaces around the address.
    ///
    /// `None` for every other type, and for strings longer than 64 bytes.
    #[inline(always)]
    pub fn address(&self) -> Option<IpAddr> {
        match *self {
            Self::Ipv4(address) => Some(IpAddr::V4(address)),
            Self::Ipv6(address) => Some(IpAddr::V6(address).to_canonical()),
            Self::String(bytes) if bytes.len() <= MAX_ADDRESS_TEXT => {
                let text = std::str::from_utf8(bytes).ok()?;
                text.trim().parse().ok().map(|address: IpAddr| address.to_canonical())
            }
            _ => None,
        }
    }

    /// The type in one word, for people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "boolean",
            Self::Int32(_) | Self::Uint32(_) | Self::Int64(_) | Self::Uint64(_) => "number",
            Self::Ipv4(_) | Self::Ipv6(_) => "address",
            Self::String(_) => "text",
            Self::Binary(_) => "binary",
        }
    }

    /// The value as an unsigned number. `None` for negative numbers and for types that are not numbers.
    pub fn unsigned(&self) -> Option<u64> {
        match *self {
            Self::Int32(value) => u64::try_from(value).ok(),
            Self::Uint32(value) => Some(value.into()),
            Self::Int64(value) => u64::try_from(value).ok(),
            Self::Uint64(value) => Some(value),
            _ => None,
        }
    }
}

/// Decodes a length and that many bytes. Returns the bytes and the rest of `input`.
///
/// # Errors
/// When `input` ends before the string does.
#[inline(always)]
pub fn decode_string(input: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = varint::decode(input)?;
    usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)).ok_or(TRUNCATED)
}

/// Appends the length of `bytes`, then the bytes, to `output`.
pub fn encode_string(bytes: &[u8], output: &mut Vec<u8>) {
    varint::encode(bytes.len() as u64, output);
    output.extend_from_slice(bytes);
}

/// Decodes a name and its value. Returns both with the rest of `input`.
///
/// # Errors
/// When `input` ends before the value does, or the value has an unknown type.
#[inline(always)]
pub fn decode_pair(input: &[u8]) -> Result<(&[u8], Data<'_>, &[u8]), Malformed> {
    let (name, rest) = decode_string(input)?;
    let (value, rest) = Data::decode(rest)?;
    Ok((name, value, rest))
}

/// Appends a name and its value to `output`.
pub fn encode_pair(name: &str, value: &Data<'_>, output: &mut Vec<u8>) {
    encode_string(name.as_bytes(), output);
    value.encode(output);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_text_is_not_an_address() {
        let padded = |length: usize| format!("{:length$}", "192.0.2.1");
        assert!(Data::String(padded(64).as_bytes()).address().is_some());
        assert_eq!(Data::String(padded(65).as_bytes()).address(), None);
    }

    #[test]
    fn known_encodings() {
        for (data, bytes) in [
            (Data::Null, &[0x00][..]),
            (Data::Bool(false), &[0x01]),
            (Data::Bool(true), &[0x11]),
            (Data::Int32(123), &[0x02, 123]),
            (Data::Uint32(16380), &[0x03, 0xfc, 0xf0, 0x06]),
            (Data::Int64(1), &[0x04, 0x01]),
            (Data::Ipv4(Ipv4Addr::new(192, 0, 2, 1)), &[0x06, 192, 0, 2, 1]),
            (Data::String(b"2.0"), &[0x08, 0x03, b'2', b'.', b'0']),
            (Data::Binary(&[0xff]), &[0x09, 0x01, 0xff]),
        ] {
            let mut output = Vec::new();
            data.encode(&mut output);
            assert_eq!(output, bytes);
            assert_eq!(Data::decode(bytes), Ok((data, &[][..])));
        }
    }

    #[test]
    fn truncated_values_and_unknown_types_are_malformed() {
        for bytes in [&[][..], &[0x02], &[0x06, 1, 2, 3], &[0x07; 16], &[0x08, 0x02, b'a'], &[0x0a], &[0x0f, 0]] {
            assert!(Data::decode(bytes).is_err(), "{bytes:?}");
        }
        let mut endless = vec![0x08];
        varint::encode(u64::MAX, &mut endless);
        assert!(Data::decode(&endless).is_err());
    }

    #[test]
    fn addresses_are_read_from_typed_values_and_from_text() {
        let expected: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        assert_eq!(Data::Ipv4(Ipv4Addr::new(192, 0, 2, 1)).address(), expected);
        assert_eq!(Data::Ipv6("::ffff:192.0.2.1".parse().unwrap()).address(), expected);
        assert_eq!(Data::String(b" 192.0.2.1\r\n").address(), expected);
        assert_eq!(Data::String(b"::ffff:192.0.2.1").address(), expected);
        assert_eq!(Data::String(b"2001:DB8::1").address(), Some("2001:db8::1".parse().unwrap()));
        for bytes in [&b""[..], b"localhost", b"192.0.2.1:80", b"\xff\xfe", &[b' '; 65]] {
            assert_eq!(Data::String(bytes).address(), None);
        }
        assert_eq!(Data::Null.address(), None);
        assert_eq!(Data::Binary(&[192, 0, 2, 1]).address(), None);
    }

    fn data(bytes: &[u8]) -> impl Strategy<Value = Data<'_>> {
        prop_oneof![
            Just(Data::Null),
            any::<bool>().prop_map(Data::Bool),
            any::<i32>().prop_map(Data::Int32),
            any::<u32>().prop_map(Data::Uint32),
            any::<i64>().prop_map(Data::Int64),
            any::<u64>().prop_map(Data::Uint64),
            any::<Ipv4Addr>().prop_map(Data::Ipv4),
            any::<Ipv6Addr>().prop_map(Data::Ipv6),
            Just(Data::String(bytes)),
            Just(Data::Binary(bytes)),
        ]
    }

    const BYTES: &[u8] = &[0x61; 300];

    proptest! {
        #[test]
        fn pairs_survive_a_round_trip(value in data(BYTES), name in "[a-z_]{0,300}", tail in any::<Vec<u8>>()) {
            let mut bytes = Vec::new();
            encode_pair(&name, &value, &mut bytes);
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(decode_pair(&bytes), Ok((name.as_bytes(), value, &tail[..])));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            if let Ok((value, _)) = Data::decode(&bytes) {
                let _ = value.address();
            }
        }
    }
}
