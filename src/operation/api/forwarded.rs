//! The address of a client behind proxies: `X-Forwarded-For`, as far as trusted proxies wrote it.

use axum::http::HeaderMap;

use crate::net::forwarded::{self, Sender, X_FORWARDED_FOR};
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;

/// The client of a request from `peer`; a trusted proxy that names nobody stands for itself, because it may send requests of its own.
///
/// `None` when a trusted proxy has written an invalid address.
pub fn client(peer: Address, headers: &HeaderMap, trusted: &NetSet) -> Option<Address> {
    let values = headers.get_all(X_FORWARDED_FOR);
    let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
    match forwarded::sender(peer, values.into_iter(), trusted) {
        Sender::Peer(client) | Sender::Named(client) | Sender::Unnamed(client) => Some(client),
        Sender::Unreadable => None,
    }
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
    fn only_entries_of_trusted_proxies_count() {
        for (peer, lines, client) in [
            // Not a trusted proxy: the header is ignored.
            ("192.0.2.1", &["127.0.0.1"][..], "192.0.2.1"),
            ("192.0.2.1", &[], "192.0.2.1"),
            // One proxy. The entries of the client precede that of the proxy.
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["127.0.0.1, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["127.0.0.1", "192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["banana,10.0.0.9 , 192.0.2.1"], "192.0.2.1"),
            // Two proxies.
            ("10.0.0.1", &["127.0.0.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("2001:db8::1", &["192.0.2.1", "10.0.0.2,[2001:db8::2]:80"], "192.0.2.1"),
            // Proxies only: they may send requests of their own.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // Notations of proxies.
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
        /// The entry of the proxy decides, whatever the client sends.
        #[test]
        fn a_client_cannot_choose_its_address(said in "[ -~]{0,60}", tail in "( ,|,| , ,)?") {
            let line = format!("{said}, 192.0.2.1");
            proptest::prop_assert_eq!(asked("10.0.0.1", &[&line]), Some("192.0.2.1".to_owned()));
            proptest::prop_assert_eq!(asked("10.0.0.1", &[&said, "192.0.2.1"]), Some("192.0.2.1".to_owned()));
            proptest::prop_assert_eq!(asked("192.0.2.1", &[&said, &tail]), Some("192.0.2.1".to_owned()));
        }
    }
}
