//! The TCP connections of a host, over sock_diag: listing them, and ending them from outside of their programs.
//!
//! A request needs a socket of its own, of the netlink family `NETLINK_SOCK_DIAG`. Any bytes are read without a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{ACK, DUMP, Writer, messages};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `AF_INET`, `AF_INET6` and `IPPROTO_TCP`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
/// All states in which a peer is connected, or connects: not `TIME_WAIT` (6), `CLOSE` (7) and `LISTEN` (10), nor those that the kernel
/// does not show.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// The length of `inet_diag_sockid`: ports, addresses, interface, and the kernel's number of the socket.
const IDENTITY: usize = 48;
/// Where that begins in `inet_diag_msg`, and where the remote address begins in it.
const IDENTITY_AT: usize = 4;
const REMOTE_AT: usize = 20;

/// The families of sockets. An IPv6 socket may have an IPv4 peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    const fn number(self) -> u8 {
        match self {
            Self::Ipv4 => IPV4,
            Self::Ipv6 => IPV6,
        }
    }
}

/// A TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The address of the peer. An IPv4 peer of an IPv6 socket is `::ffff:a.b.c.d`.
    pub remote: IpAddr,
    family: Family,
    /// As the kernel sent it. It has the number of the socket, so no other connection can be meant.
    identity: [u8; IDENTITY],
}

impl Connection {
    /// Between ports that no connection has, to find out whether the kernel ends connections.
    pub const NONE: Self =
        Self { remote: IpAddr::V4(Ipv4Addr::UNSPECIFIED), family: Family::Ipv4, identity: [0; IDENTITY] };
}

/// An answer of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A connection in a list.
    Connection(Connection),
    /// The end of a list.
    Done,
    /// The outcome of a request: 0, or an error number such as 1 for `EPERM`.
    Outcome {
        /// The number of the request.
        sequence: u32,
        /// The error number.
        errno: i32,
    },
}

/// Asks for all connections of a family.
pub fn list(sequence: u32, family: Family) -> Vec<u8> {
    request(BY_FAMILY, DUMP, sequence, family, CONNECTED, &[0; IDENTITY])
}

/// Ends a connection: its program gets `ECONNABORTED`, and the peer a reset. The kernel answers with the outcome: `ENOENT` if it has
/// ended, `EOPNOTSUPP` if the kernel cannot do this.
pub fn end(sequence: u32, connection: &Connection) -> Vec<u8> {
    request(DESTROY, ACK, sequence, connection.family, u32::MAX, &connection.identity)
}

fn request(kind: u16, flags: u16, sequence: u32, family: Family, states: u32, identity: &[u8; IDENTITY]) -> Vec<u8> {
    let mut writer = Writer::default();
    let open = writer.start(kind, flags, sequence);
    // Without extensions.
    writer.raw(&[family.number(), TCP, 0, 0]);
    writer.raw(&states.to_ne_bytes());
    writer.raw(identity);
    writer.end_message(open);
    writer.into_bytes()
}

/// The answers in a datagram.
pub fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer> {
    messages(datagram).filter_map(|message| match message.kind {
        DONE => Some(Answer::Done),
        ERROR => {
            let errno = i32::from_ne_bytes(message.body.get(..4)?.try_into().ok()?);
            Some(Answer::Outcome { sequence: message.sequence, errno: errno.checked_neg().unwrap_or(i32::MAX) })
        }
        BY_FAMILY => connection(message.body).map(Answer::Connection),
        _ => None,
    })
}

fn connection(body: &[u8]) -> Option<Connection> {
    let family = match *body.first()? {
        IPV4 => Family::Ipv4,
        IPV6 => Family::Ipv6,
        _ => return None,
    };
    let identity: [u8; IDENTITY] = body.get(IDENTITY_AT..IDENTITY_AT + IDENTITY)?.try_into().ok()?;
    let remote: [u8; 16] = identity.get(REMOTE_AT..REMOTE_AT + 16)?.try_into().ok()?;
    let remote = match family {
        Family::Ipv4 => Ipv4Addr::from(*remote.first_chunk::<4>()?).into(),
        Family::Ipv6 => Ipv6Addr::from(remote).into(),
    };
    Some(Connection { remote, family, identity })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A connection as Linux 6.18 describes it, without attributes: port 2222 of 10.77.0.2, with 10.77.1.1.
    fn described() -> Vec<u8> {
        let mut body = vec![IPV4, 1, 0, 0];
        body.extend(2222u16.to_be_bytes());
        body.extend(40_000u16.to_be_bytes());
        for address in [[10, 77, 0, 2], [10, 77, 1, 1]] {
            body.extend(address);
            body.extend([0; 12]);
        }
        body.extend([0, 0, 0, 0, 7, 7, 7, 7, 8, 8, 8, 8]);
        body.extend([0; 20]);
        let mut bytes = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        bytes.extend(BY_FAMILY.to_ne_bytes());
        bytes.extend([2, 0, 5, 0, 0, 0, 1, 0, 0, 0]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_listed_connection_is_ended_by_its_own_identity() {
        let bytes = described();
        assert_eq!(bytes.len(), 16 + 72);
        let Some(Answer::Connection(found)) = answers(&bytes).next() else { panic!("a connection") };
        assert_eq!(found.remote, IpAddr::from([10, 77, 1, 1]));
        let request = end(9, &found);
        assert_eq!(request.len(), 16 + 56);
        assert_eq!(request[..4], 72u32.to_ne_bytes());
        assert_eq!(request[4..8], [DESTROY.to_ne_bytes(), 5u16.to_ne_bytes()].concat());
        assert_eq!(request[16..20], [IPV4, TCP, 0, 0]);
        assert_eq!(request[24..], bytes[20..68], "ports, addresses, and the number of the socket");
    }

    #[test]
    fn listening_and_closed_sockets_are_not_asked_for() {
        let request = list(3, Family::Ipv6);
        assert_eq!((request.len(), &request[16..18]), (72, &[IPV6, TCP][..]));
        let states = u32::from_ne_bytes(request[20..24].try_into().unwrap());
        assert_eq!([6, 7, 10].map(|state| states & 1 << state), [0; 3]);
        assert_ne!(states & 1 << 1, 0, "established");
        assert!(request[24..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn outcomes_carry_the_number_of_the_request() {
        let mut bytes = [36u32.to_ne_bytes(), [2, 0, 0, 0], 9u32.to_ne_bytes(), [0; 4]].concat();
        bytes.extend((-2i32).to_ne_bytes());
        bytes.resize(36, 0);
        bytes.extend([20u32.to_ne_bytes(), [3, 0, 2, 0], 9u32.to_ne_bytes(), [0; 4], [0; 4]].concat());
        let found: Vec<Answer> = answers(&bytes).collect();
        assert_eq!(found, [Answer::Outcome { sequence: 9, errno: 2 }, Answer::Done]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answers(&bytes).count();
        }

        #[test]
        fn damaged_messages_are_read(at in 0usize..88, value: u8, cut in 0usize..88) {
            let mut bytes = described();
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut);
            let _ = answers(&bytes).count();
        }
    }
}
