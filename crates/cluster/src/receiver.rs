//! For whom a gossip message is.
//!
//! All nodes share the keys, so encryption alone does not say for which of them a message is: a recorded message could be sent to a
//! third node. Therefore the sender appends the address to which it sends, and a node refuses what it knows to be for another member.
//!
//! A node does not know all of its own addresses: a seed may name it by the address of a load balancer, or of a router that
//! translates addresses. So an address of no known member is accepted. Builds before this one append nothing, and ignore what follows a message.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes that follow a message.
pub const TRAILER_LEN: usize = MAGIC.len() + 16 + 2 + READS_DATAGRAMS.len();

const MAGIC: [u8; 4] = *b"to:1";
/// Follows the receiver where the sender reads the datagrams of [`crate::datagram`].
const READS_DATAGRAMS: [u8; 4] = *b"dg:1";

/// Appends the receiver to an encoded message.
pub fn append(to: SocketAddr, message: &mut Vec<u8>) {
    let ip = match to.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    message.extend_from_slice(&MAGIC);
    message.extend_from_slice(&ip.octets());
    message.extend_from_slice(&to.port().to_le_bytes());
    message.extend_from_slice(&READS_DATAGRAMS);
}

/// Whether the bytes that follow a message say that its sender reads the datagrams of [`crate::datagram`].
pub fn reads_datagrams(after_message: &[u8]) -> bool {
    after_message.get(TRAILER_LEN - READS_DATAGRAMS.len()..).is_some_and(|rest| rest.starts_with(&READS_DATAGRAMS))
}

/// The receiver in the bytes that follow a message; `None` where an earlier build sent it.
pub fn named(after_message: &[u8]) -> Option<SocketAddr> {
    let (ip, rest) = after_message.strip_prefix(&MAGIC)?.split_first_chunk::<16>()?;
    let (port, _) = rest.split_first_chunk::<2>()?;
    Some(SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), u16::from_le_bytes(*port)))
}

/// What a node knows about the addresses of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    /// Where this node listens, and what it advertises.
    pub own: Vec<SocketAddr>,
    /// What the other members advertise.
    pub others: Vec<SocketAddr>,
}

impl Receivers {
    /// Returns `true` if a message to `to` may be for this node.
    pub fn accept(&self, to: SocketAddr) -> bool {
        let among = |all: &[SocketAddr]| all.iter().any(|one| key(*one) == key(to));
        among(&self.own) || !among(&self.others)
    }
}

/// Without the flow and the scope of an IPv6 address, which only mean something on one host.
fn key(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_receiver_follows_the_message() {
        for address in ["192.0.2.1:12350", "[2001:db8::1]:1"].map(at) {
            let mut bytes = b"message".to_vec();
            append(address, &mut bytes);
            assert_eq!(bytes.len(), 7 + TRAILER_LEN);
            assert_eq!(named(&bytes[7..]), Some(address));
            assert_eq!(named(&[&bytes[7..], b"of a later build"].concat()), Some(address));
            assert!(reads_datagrams(&bytes[7..]) && !reads_datagrams(&bytes[7..bytes.len() - 1]));
            assert_eq!(named(&bytes[7..bytes.len() - 4]), Some(address), "as builds before datagrams wrote it");
            assert_eq!(named(&bytes[7..bytes.len() - 5]), None);
        }
        assert_eq!((named(b""), named(b"anything else that is long enough")), (None, None));
    }

    #[test]
    fn a_message_for_another_member_is_refused() {
        let receivers = Receivers {
            own: vec![at("192.0.2.1:7"), at("[2001:db8::1]:7")],
            others: ["192.0.2.2:7", "192.0.2.1:8", "192.0.2.1:7"].map(at).to_vec(),
        };
        for own in ["192.0.2.1:7", "[::ffff:192.0.2.1]:7", "[2001:db8::1]:7"] {
            assert!(receivers.accept(at(own)), "{own}: even if another member claims it");
        }
        assert!(receivers.accept(at("203.0.113.1:7")), "perhaps a translated address of this node");
        for other in ["192.0.2.2:7", "[::ffff:192.0.2.2]:7", "192.0.2.1:8"] {
            assert!(!receivers.accept(at(other)), "{other}");
        }
    }
}
