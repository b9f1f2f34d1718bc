//! Who a client behind proxies is: `X-Forwarded-For`, believed only as far as it was written by those we trust.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use banmesh_types::netset::NetSet;
use banmesh_types::target::canonical;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The client of a request that came from `peer`. Each proxy adds at the end whom it has the request from: so the last
/// entry that is no proxy of ours is the client, and what stands before it is what the client says.
///
/// `None` when a proxy of ours has written something that is no address.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: &NetSet) -> Option<IpAddr> {
    if !trusted.contains(peer) {
        return Some(peer);
    }
    let mut client = peer;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for entry in value.as_bytes().rsplit(|byte| *byte == b',') {
            client = address(std::str::from_utf8(entry).ok()?.trim())?;
            if !trusted.contains(client) {
                return Some(client);
            }
        }
    }
    Some(client)
}

/// An address, as proxies write it: with a port or without, IPv6 in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let plain = bracketed.parse::<IpAddr>().ok();
    plain.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())).map(canonical)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use banmesh_types::target::Target;

    fn asked(peer: &str, lines: &[&str]) -> Option<String> {
        let trusted: NetSet =
            ["10.0.0.0/8", "2001:db8::/64"].iter().map(|text| text.parse::<Target>().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        client(peer.parse().unwrap(), &headers, &trusted).map(|client| client.to_string())
    }

    #[test]
    fn only_what_a_trusted_proxy_wrote_is_believed() {
        for (peer, lines, client) in [
            // Nobody we know: whatever it says.
            ("192.0.2.1", &["127.0.0.1"][..], "192.0.2.1"),
            ("192.0.2.1", &[], "192.0.2.1"),
            // One proxy; what the client sent stands before what the proxy added.
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["127.0.0.1, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["127.0.0.1", "192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["banana,10.0.0.9 , 192.0.2.1"], "192.0.2.1"),
            // Two proxies.
            ("10.0.0.1", &["127.0.0.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("2001:db8::1", &["192.0.2.1", "10.0.0.2,[2001:db8::2]:80"], "192.0.2.1"),
            // Nobody but proxies, which may ask for themselves.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // As proxies write them.
            ("10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("10.0.0.1", &["[2001:db8:1::1]"], "2001:db8:1::1"),
            ("10.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1"),
        ] {
            assert_eq!(asked(peer, lines).as_deref(), Some(client), "{peer} {lines:?}");
        }
        for lines in [&["unknown"][..], &[""], &["192.0.2.1,"], &["192.0.2.1, _hidden"], &["192.0.2.1;10.0.0.2"]] {
            assert_eq!(asked("10.0.0.1", lines), None, "{lines:?}");
        }
    }

    proptest::proptest! {
        /// Whatever a client sends: what its proxy adds behind it decides.
        #[test]
        fn a_client_cannot_choose_its_address(said in "[ -~]{0,60}", tail in "( ,|,| , ,)?") {
            let line = format!("{said}, 192.0.2.1");
            proptest::prop_assert_eq!(asked("10.0.0.1", &[&line]), Some("192.0.2.1".to_owned()));
            proptest::prop_assert_eq!(asked("10.0.0.1", &[&said, "192.0.2.1"]), Some("192.0.2.1".to_owned()));
            proptest::prop_assert_eq!(asked("192.0.2.1", &[&said, &tail]), Some("192.0.2.1".to_owned()));
        }
    }
}
