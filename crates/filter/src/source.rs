//! Parses the text of a group as an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banmesh_types::address::Address;

/// The longest text that may be an address: `[`, 45 bytes, `%`, a zone, `]:65535`.
const MAX_TEXT: usize = 96;

/// Parses `text` as an address. Returns `None` for everything else, including host names.
///
/// The text may be IPv4 or IPv6, either one in brackets or with a port (`192.0.2.1:25`, `[2001:db8::1]:25`), IPv6 with a zone
/// (`fe80::1%eth0`, the zone is dropped), or `IPv6:2001:db8::1` as mail servers write it. IPv4-mapped IPv6 becomes IPv4.
/// Surrounding whitespace is ignored. An IPv4 octet above 255 or with a leading zero is invalid.
///
/// ```
/// use banmesh_filter::parse_source;
///
/// assert_eq!(parse_source(b"[::ffff:192.0.2.1]:25"), Some("192.0.2.1".parse()?));
/// assert_eq!(parse_source(b"999.1.1.1"), None);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn parse_source(text: &[u8]) -> Option<Address> {
    let text = text.trim_ascii();
    if text.is_empty() || text.len() > MAX_TEXT {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest.split_once(']')?;
        if !(after.is_empty() || after.strip_prefix(':').is_some_and(is_port)) {
            return None;
        }
        return parse_bare(inner);
    }
    if let Some(address) = parse_bare(text) {
        return Some(address);
    }
    // What remains is IPv4 with a port.
    let (host, port) = text.rsplit_once(':')?;
    if !is_port(port) {
        return None;
    }
    host.parse::<Ipv4Addr>().ok().map(Address::from)
}

fn parse_bare(text: &str) -> Option<Address> {
    if let Ok(v4) = text.parse::<Ipv4Addr>() {
        return Some(v4.into());
    }
    let text = match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => text.get(5..)?,
        _ => text,
    };
    let text = match text.split_once('%') {
        Some((address, zone)) if is_zone(zone) => address,
        Some(_) => return None,
        None => text,
    };
    text.parse::<Ipv6Addr>().ok().map(Address::from)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_zone(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Returns the client in an X-Forwarded-For list.
///
/// Each proxy appends the address that it saw, so only the right end of the list can be trusted: the client can send
/// anything in the left part. From the right, the first address that is not private (loopback, RFC 1918, RFC 6598,
/// link-local, RFC 4193) is the client. The private ones to the right of it are your proxies. A single address is returned,
/// private or not.
///
/// Returns `None` for a longer list with only private addresses, because a banned proxy locks everyone out. Also returns
/// `None` if something other than an address is to the right of the client.
pub fn forwarded_source(list: &[u8]) -> Option<Address> {
    let mut only = None;
    for (index, entry) in list.rsplit(|byte| *byte == b',').enumerate() {
        let address = parse_source(unquote(entry))?;
        if !is_private(address) {
            return Some(address);
        }
        only = (index == 0).then_some(address);
    }
    only
}

fn unquote(entry: &[u8]) -> &[u8] {
    let entry = entry.trim_ascii();
    entry.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(entry)
}

fn is_private(address: Address) -> bool {
    match address.ip() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(text: &str) -> Option<String> {
        parse_source(text.as_bytes()).map(|address| address.to_string())
    }

    #[test]
    fn addresses_are_parsed_in_every_notation() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1 ", "192.0.2.1"),
            ("192.0.2.1:25", "192.0.2.1"),
            ("[192.0.2.1]", "192.0.2.1"),
            ("[192.0.2.1]:25", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
            ("::1", "::1"),
            ("[::1]:22", "::1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("IPv6:2001:db8::1", "2001:db8::1"),
            ("[IPv6:2001:db8::1]", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%eth0.5]:22", "fe80::1"),
        ] {
            assert_eq!(source(text).as_deref(), Some(address), "{text}");
        }
    }

    #[test]
    fn other_text_is_not_an_address() {
        for text in [
            "",
            "999.1.1.1",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "example.org",
            "1.2.3.4:",
            "1.2.3.4:99999",
            "1.2.3.4:+1",
            "[1.2.3.4",
            "1.2.3.4]",
            "[::1]x",
            "[::1]:",
            "::1%",
            "::1%a b",
            ":::",
            "1::2::3",
            "12345::",
            "1.2.3.4, 5.6.7.8",
            "192.0.2.1.",
            "+1.2.3.4",
            "0x7f.0.0.1",
        ] {
            assert_eq!(source(text), None, "{text}");
        }
    }

    #[test]
    fn the_client_of_a_forwarded_list_is_the_last_public_address() {
        let client = |list: &str| forwarded_source(list.as_bytes()).map(|address| address.to_string());
        for (list, expected) in [
            ("203.0.113.7", Some("203.0.113.7")),
            ("10.0.0.9", Some("10.0.0.9")),
            ("6.6.6.6, 203.0.113.7", Some("203.0.113.7")),
            ("203.0.113.7, 10.0.0.1", Some("203.0.113.7")),
            ("6.6.6.6, 203.0.113.7, 10.0.0.1, 127.0.0.1", Some("203.0.113.7")),
            ("unknown, 203.0.113.7", Some("203.0.113.7")),
            ("\"[2001:db8::1]:4711\", 10.0.0.1", Some("2001:db8::1")),
            ("6.6.6.6, banana", None),
            ("6.6.6.6, banana, 10.0.0.1", None),
            ("10.0.0.9, 10.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(client(list).as_deref(), expected, "{list}");
        }
    }

    proptest! {
        #[test]
        fn printed_addresses_are_parsed_back(address: IpAddr, port: u16) {
            let canonical = Address::new(address);
            prop_assert_eq!(parse_source(address.to_string().as_bytes()), Some(canonical));
            let with_port = std::net::SocketAddr::new(address, port).to_string();
            prop_assert_eq!(parse_source(with_port.as_bytes()), Some(canonical));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text: Vec<u8>) {
            let _ = parse_source(&text);
            let _ = forwarded_source(&text);
        }
    }
}
