//! The messages of Envoy's service `envoy.service.auth.v3.Authorization`, as far as a verdict needs them, decoded and encoded by hand.
//!
//! ```text
//! CheckRequest   attributes 1
//! attributes     source 1 → address 1 → socket_address 1 → address 2      request 4 → http 2 → headers 3 (map: key 1, value 2)
//! CheckResponse  status 1 (code 1), denied_response 2 (status 1 (code 1), headers 2 (header 1 (key 1, value 2)) …, body 3)
//! ```
//!
//! No I/O, no recursion over the input, and no allocation while decoding except for the list of header values. Unknown fields are
//! skipped.

use banmesh_types::address::Address;

use super::Remaining;
use crate::net::forwarded::X_FORWARDED_FOR;

/// The path of the method.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The code of a refusal in a gRPC status (PERMISSION_DENIED).
const DENIED: u64 = 7;
/// The most values of `x-forwarded-for`; Envoy joins several headers to one.
const MAX_VALUES: usize = 16;

/// What a question says about the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question<'a> {
    /// The direct peer of Envoy, or the client that the PROXY protocol names; `None` if it is not an IP address.
    pub source: Option<Address>,
    /// The values of the header `x-forwarded-for`.
    pub forwarded: Vec<&'a [u8]>,
}

/// Why a message cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends within a field.
    #[error("the message ends within a field")]
    Truncated,
    /// A number has more than 64 bits.
    #[error("a number has more than 64 bits")]
    Varint,
    /// A field has a type that does not exist or that this version does not use.
    #[error("a field has the wire type {0}")]
    WireType(u8),
    /// It has too many headers of one name.
    #[error("the message has more than {MAX_VALUES} headers x-forwarded-for")]
    Values,
}

/// Decodes a `CheckRequest`.
///
/// # Errors
/// When the bytes are not such a message.
pub fn decode(message: &[u8]) -> Result<Question<'_>, DecodeError> {
    let mut question = Question::default();
    each(message, |field, attributes| {
        if field != 1 {
            return Ok(());
        }
        each(attributes, |field, value| match field {
            1 => source(value, &mut question.source),
            4 => each(value, |field, http| if field == 2 { headers(http, &mut question.forwarded) } else { Ok(()) }),
            _ => Ok(()),
        })
    })?;
    Ok(question)
}

/// The `CheckResponse` for a client with this ban. Without one it is empty.
pub fn encode(ban: Option<Remaining>) -> Vec<u8> {
    let Some(remaining) = ban else { return Vec::new() };
    let mut denied = Vec::with_capacity(64);
    bytes(&mut denied, 1, &number(1, 403));
    if let Remaining::Seconds(seconds) = remaining {
        bytes(&mut denied, 2, &header("retry-after", &seconds.to_string()));
    }
    bytes(&mut denied, 2, &header("cache-control", "no-store"));
    bytes(&mut denied, 3, super::http::REFUSAL.as_bytes());
    let mut response = Vec::with_capacity(96);
    bytes(&mut response, 1, &number(1, DENIED));
    bytes(&mut response, 2, &denied);
    response
}

/// Reads `peer`: address 1, socket_address 1, address 2.
fn source(peer: &[u8], found: &mut Option<Address>) -> Result<(), DecodeError> {
    each(peer, |field, address| {
        if field != 1 {
            return Ok(());
        }
        each(address, |field, socket| {
            if field != 1 {
                return Ok(());
            }
            each(socket, |field, text| {
                if field == 2 {
                    *found = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                }
                Ok(())
            })
        })
    })
}

/// Reads the map `headers` of an HTTP request.
fn headers<'a>(http: &'a [u8], found: &mut Vec<&'a [u8]>) -> Result<(), DecodeError> {
    each(http, |field, entry| {
        if field != 3 {
            return Ok(());
        }
        let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
        each(entry, |field, part| {
            match field {
                1 => key = part,
                2 => value = part,
                _ => {}
            }
            Ok(())
        })?;
        if key.eq_ignore_ascii_case(X_FORWARDED_FOR.as_bytes()) {
            if found.len() >= MAX_VALUES {
                return Err(DecodeError::Values);
            }
            found.push(value);
        }
        Ok(())
    })
}

/// Calls `visit` with the number and content of every length-delimited field. Others are skipped.
fn each<'a>(
    mut rest: &'a [u8],
    mut visit: impl FnMut(u64, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => drop(varint(&mut rest)?),
            1 => drop(take(&mut rest, 8)?),
            2 => {
                let length = varint(&mut rest)?;
                let content = take(&mut rest, usize::try_from(length).map_err(|_| DecodeError::Truncated)?)?;
                visit(key >> 3, content)?;
            }
            5 => drop(take(&mut rest, 4)?),
            other => return Err(DecodeError::WireType(u8::try_from(other).unwrap_or(u8::MAX))),
        }
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest, 1)? else { return Err(DecodeError::Truncated) };
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(DecodeError::Varint);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Varint)
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    write_varint(&mut out, field << 3);
    write_varint(&mut out, value);
    out
}

/// A `HeaderValueOption`.
fn header(key: &str, value: &str) -> Vec<u8> {
    let mut pair = Vec::new();
    bytes(&mut pair, 1, key.as_bytes());
    bytes(&mut pair, 2, value.as_bytes());
    let mut option = Vec::new();
    bytes(&mut option, 1, &pair);
    option
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    write_varint(out, field << 3 | 2);
    write_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Encodes a `CheckRequest` as Envoy does: for tests and benchmarks of the endpoint.
pub fn encode_question(source: Address, headers: &[(&str, &str)]) -> Vec<u8> {
    let wrap = |field, content: &[u8]| {
        let mut out = Vec::new();
        bytes(&mut out, field, content);
        out
    };
    let mut socket = wrap(2, source.ip().to_string().as_bytes());
    socket.extend(number(3, 40_000));
    let peer = wrap(1, &wrap(1, &socket));
    let mut http = wrap(1, b"4711");
    bytes(&mut http, 2, b"GET");
    for (key, value) in headers {
        let mut entry = wrap(1, key.as_bytes());
        bytes(&mut entry, 2, value.as_bytes());
        bytes(&mut http, 3, &entry);
    }
    let mut request = wrap(1, &number(1, 1_800_000_000));
    bytes(&mut request, 2, &http);
    let mut attributes = wrap(1, &peer);
    bytes(&mut attributes, 2, &peer);
    bytes(&mut attributes, 4, &request);
    wrap(1, &attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_source_and_the_forwarded_headers_are_found() {
        let source: Address = "2001:db8::7".parse().unwrap();
        let message = encode_question(source, &[("host", "a"), ("x-forwarded-for", "192.0.2.1"), ("cookie", "b")]);
        let question = decode(&message).unwrap();
        assert_eq!(question, Question { source: Some(source), forwarded: vec![b"192.0.2.1"] });
        // From the TCP filter there is no request.
        let message = encode_question("192.0.2.9".parse().unwrap(), &[]);
        assert_eq!(decode(&message).unwrap().forwarded, [b""; 0]);
        assert_eq!(decode(&[]), Ok(Question::default()));
    }

    #[test]
    fn a_refusal_has_a_status_a_header_and_a_body() {
        let message = encode(Some(Remaining::Seconds(77)));
        assert_eq!(message.get(..4), Some(&[0x0a, 2, 8, 7][..]), "status 1 {{ code 1 = 7 }}");
        let text = String::from_utf8_lossy(&message);
        assert!(text.contains("retry-after\u{12}\u{2}77") && text.ends_with("banned\n"), "{text:?}");
        assert!(message.windows(5).any(|part| part == [0x0a, 3, 8, 0x93, 3]), "status {{ code 403 }}");
        assert!(!String::from_utf8_lossy(&encode(Some(Remaining::Permanent))).contains("retry-after"));
        assert_eq!(encode(None), [0; 0]);
    }

    #[test]
    fn broken_messages_are_refused() {
        for (message, error) in [
            (&[0x0a, 5, 1][..], DecodeError::Truncated),
            (&[0x0a], DecodeError::Truncated),
            (&[0x0b], DecodeError::WireType(3)),
            (&[0x80; 12], DecodeError::Varint),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], DecodeError::Varint),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], DecodeError::Truncated),
        ] {
            assert_eq!(decode(message), Err(error), "{message:?}");
        }
        let many = [("x-forwarded-for", "192.0.2.1"); MAX_VALUES + 1];
        assert_eq!(decode(&encode_question(Address::LOCALHOST, &many)), Err(DecodeError::Values));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(message in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&message);
        }

        #[test]
        fn a_prefix_of_a_message_never_names_another_client(cut in 0usize..200) {
            let source: Address = "192.0.2.1".parse().unwrap();
            let message = encode_question(source, &[("x-forwarded-for", "198.51.100.1")]);
            if let Ok(question) = decode(message.get(..cut).unwrap_or(&message)) {
                prop_assert!(question.source.is_none_or(|found| found == source));
            }
        }
    }
}
