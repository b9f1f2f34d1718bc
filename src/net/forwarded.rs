//! The address of a client behind proxies: `X-Forwarded-For`, as far as trusted proxies wrote it.

use std::net::SocketAddr;

use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;

/// The header in which proxies name their clients, in lower case.
pub const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Who sent a request, as far as it can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The peer, which is not a trusted proxy. What it writes about others is ignored.
    Peer(Address),
    /// The client that a trusted proxy names.
    Named(Address),
    /// A trusted proxy that names nobody: there is no header.
    Unnamed(Address),
    /// A trusted proxy has written something that is not an address.
    Unreadable,
}

/// The sender of a request from `peer`. `values` are the values of all `X-Forwarded-For` headers, in their order.
///
/// Each proxy appends the address of its client, so the last entry that is not a trusted proxy is the client. Earlier entries
/// come from the client itself and are ignored. If all entries are trusted proxies, the first one is the client.
pub fn sender<'a>(peer: Address, values: impl DoubleEndedIterator<Item = &'a [u8]>, trusted: &NetSet) -> Sender {
    if !trusted.contains(peer) {
        return Sender::Peer(peer);
    }
    let mut client = None;
    for entry in values.rev().flat_map(|value| value.rsplit(|byte| *byte == b',')) {
        let Some(address) = address(entry) else { return Sender::Unreadable };
        client = Some(address);
        if !trusted.contains(address) {
            break;
        }
    }
    client.map_or(Sender::Unnamed(peer), Sender::Named)
}

/// Parses an address as proxies write it: with or without a port, IPv6 with or without brackets.
fn address(entry: &[u8]) -> Option<Address> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let plain = bracketed.parse::<Address>().ok();
    plain.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_types::target::Target;
    use proptest::prelude::*;

    fn trusted() -> NetSet {
        ["10.0.0.0/8", "127.0.0.0/8", "2001:db8::/64"].iter().map(|text| text.parse::<Target>().unwrap()).collect()
    }

    fn asked(peer: &str, lines: &[&str]) -> Sender {
        sender(peer.parse().unwrap(), lines.iter().map(|line| line.as_bytes()), &trusted())
    }

    fn named(text: &str) -> Sender {
        Sender::Named(text.parse().unwrap())
    }

    #[test]
    fn a_peer_that_is_no_proxy_stands_for_itself() {
        for lines in [&[][..], &["198.51.100.9"], &["junk"]] {
            assert_eq!(asked("192.0.2.1", lines), Sender::Peer("192.0.2.1".parse().unwrap()), "{lines:?}");
        }
    }

    #[test]
    fn the_last_entry_that_is_no_proxy_is_the_client() {
        for (lines, client) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["198.51.100.9, 192.0.2.1"], "192.0.2.1"),
            (&["198.51.100.9", "192.0.2.1"], "192.0.2.1"),
            (&["junk,192.0.2.1 , 127.0.0.1"], "192.0.2.1"),
            (&["192.0.2.1", "10.0.0.2,[2001:db8::2]:80"], "192.0.2.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["[2001:db8:1::1]"], "2001:db8:1::1"),
            (&["[2001:db8:1::1]:443"], "2001:db8:1::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["[::ffff:192.0.2.1]:5"], "192.0.2.1"),
            (&["192.0.2.1, ::ffff:10.0.0.1"], "192.0.2.1"),
        ] {
            assert_eq!(asked("10.0.0.1", lines), named(client), "{lines:?}");
        }
    }

    #[test]
    fn a_proxy_that_names_nobody_is_told_apart_from_one_that_writes_rubbish() {
        assert_eq!(asked("::ffff:10.0.0.1", &[]), Sender::Unnamed("10.0.0.1".parse().unwrap()));
        for lines in
            [&["unknown"][..], &[""], &["192.0.2.1,"], &["192.0.2.1, _hidden"], &["192.0.2.1;10.0.0.2"], &["-"]]
        {
            assert_eq!(asked("10.0.0.1", lines), Sender::Unreadable, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_sends_changes_nothing(
            said in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4),
            client in any::<std::net::IpAddr>(),
            proxies in 0usize..3,
            port in prop::option::of(any::<u16>()),
        ) {
            let set = trusted();
            let client = Address::new(client);
            prop_assume!(!set.contains(client));
            let entry = port.map_or_else(|| client.to_string(), |port| SocketAddr::new(client.ip(), port).to_string());
            let chain = std::iter::once(entry).chain((0..proxies).map(|n| format!("10.0.0.{n}")));
            let line = chain.collect::<Vec<_>>().join(", ");
            let peer = "10.9.9.9".parse().unwrap();
            // The proxy adds a header of its own, or appends to the last one.
            let lines: Vec<&[u8]> = said.iter().map(Vec::as_slice).chain([line.as_bytes()]).collect();
            prop_assert_eq!(sender(peer, lines.into_iter(), &set), Sender::Named(client));
            let mut joined = said.concat();
            joined.extend_from_slice(b", ");
            joined.extend_from_slice(line.as_bytes());
            prop_assert_eq!(sender(peer, std::iter::once(joined.as_slice()), &set), Sender::Named(client));
            let stranger = "192.0.2.77".parse().unwrap();
            prop_assert_eq!(sender(stranger, std::iter::once(joined.as_slice()), &set), Sender::Peer(stranger));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4)) {
            let peer = "10.0.0.1".parse().unwrap();
            let found = sender(peer, values.iter().map(Vec::as_slice), &trusted());
            prop_assert!(values.is_empty() == matches!(found, Sender::Unnamed(_)));
        }
    }
}
