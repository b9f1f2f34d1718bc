//! The messages in a NOTIFY (SPOE.txt 3.2.6: `{string name, u8 count, count × (string key, typed value)}…`) and what they
//! ask.

use std::net::IpAddr;

use super::Malformed;
use super::data::{decode_pair, decode_string};

/// What one message asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Whether this address is banned. `None` when no argument holds a usable address. A message of any name asks this.
    Check(Option<IpAddr>),
}

/// How much an argument counts as the address, 0 the most.
const fn rank(key: &[u8]) -> Option<u8> {
    match key {
        b"src_ip" => Some(0),
        b"src" => Some(1),
        b"ip" => Some(2),
        _ => None,
    }
}

/// Reads the first message of a NOTIFY's payload; returns what it asks with what follows.
///
/// The address is the argument `src_ip`, else `src`, else `ip`; one without a usable address (HAProxy sends NULL for the
/// `src` of a client on a Unix socket) is passed over.
///
/// # Errors
/// When the payload ends within the message or holds a value of unknown type.
#[inline]
pub fn decode(payload: &[u8]) -> Result<(Request, &[u8]), Malformed> {
    let (_name, rest) = decode_string(payload)?;
    let (&count, mut rest) = rest.split_first().ok_or(Malformed("a message ends before its arguments"))?;
    let mut found: Option<(u8, IpAddr)> = None;
    for _ in 0..count {
        let (key, value, tail) = decode_pair(rest)?;
        rest = tail;
        let Some(rank) = rank(key) else { continue };
        if found.is_none_or(|(best, _)| rank < best)
            && let Some(address) = value.address()
        {
            found = Some((rank, address));
        }
    }
    Ok((Request::Check(found.map(|(_, address)| address)), rest))
}

#[cfg(test)]
mod tests {
    use super::super::data::{Data, encode_pair, encode_string};
    use super::*;

    fn asked(arguments: &[(&str, Data<'_>)]) -> Option<String> {
        let mut payload = Vec::new();
        encode_string(b"any-name", &mut payload);
        payload.push(u8::try_from(arguments.len()).unwrap());
        for (name, value) in arguments {
            encode_pair(name, value, &mut payload);
        }
        payload.push(0xaa);
        let (Request::Check(address), rest) = decode(&payload).unwrap();
        assert_eq!(rest, [0xaa]);
        address.map(|address| address.to_string())
    }

    #[test]
    fn the_address_is_src_ip_else_src_else_ip() {
        let (one, two, three) = (Data::String(b"192.0.2.1"), Data::String(b"192.0.2.2"), Data::String(b"192.0.2.3"));
        assert_eq!(asked(&[("ip", three), ("src", two), ("src_ip", one)]).as_deref(), Some("192.0.2.1"));
        assert_eq!(asked(&[("ip", three), ("src", two)]).as_deref(), Some("192.0.2.2"));
        assert_eq!(asked(&[("method", one), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(asked(&[("src_ip", Data::Null), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(asked(&[("src", one), ("src", two)]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn without_a_usable_address_nothing_is_asked() {
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[("src", Data::Null)]), None);
        assert_eq!(asked(&[("src", Data::String(b"unknown")), ("other", Data::String(b"192.0.2.1"))]), None);
    }

    #[test]
    fn a_message_cut_short_is_malformed() {
        let mut payload = Vec::new();
        encode_string(b"check", &mut payload);
        payload.push(1);
        encode_pair("src", &Data::Ipv4([192, 0, 2, 1].into()), &mut payload);
        assert!(decode(&payload).is_ok());
        for end in 0..payload.len() {
            assert!(decode(&payload[..end]).is_err(), "{end}");
        }
    }
}
