//! Sends log lines like mail servers.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// A login failure as dovecot logs it, for a client at `address`.
pub fn dovecot_failure(address: IpAddr) -> String {
    format!(
        "<22>Nov 22 20:11:55 mail dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): \
         user=<alice@example.org>, method=PLAIN, rip={address}, lip=192.0.2.1, TLS, session=<q1w2e3r4>"
    )
}

/// Sends every line as one datagram.
///
/// # Panics
/// The system refuses to send.
pub fn send_udp<'a>(to: SocketAddr, lines: impl IntoIterator<Item = &'a str>) {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).expect("bind a UDP socket");
    for line in lines {
        socket.send_to(line.as_bytes(), to).expect("send a datagram");
    }
}

/// Sends every line over one connection, each ended by a newline.
///
/// # Panics
/// Nothing listens there.
pub fn send_tcp<'a>(to: SocketAddr, lines: impl IntoIterator<Item = &'a str>) {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect to the syslog port");
    for line in lines {
        stream.write_all(format!("{line}\n").as_bytes()).expect("send a line");
    }
}
