//! The settings of `syslog`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use banmesh_syslog::deframe::MAX_LINE;
use banmesh_types::target::Target;

/// Where and from whom lines are received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogConfig {
    /// `syslog.address`: the socket address, the same for UDP and TCP. `[::]:514` takes IPv4 as well.
    pub address: SocketAddr,
    /// `syslog.protocol`: by which transport.
    pub protocol: Protocol,
    /// `syslog.allowed_senders`: who may send lines. Empty means everybody.
    pub allowed_senders: Vec<Target>,
    /// `syslog.reuse_port`: whether several processes of this user share the port (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// `syslog.receive_buffer`: how many bytes of datagrams the kernel is asked to hold for us.
    pub receive_buffer: usize,
    /// `syslog.max_line`: the longest line in bytes; a longer one is dropped and counted.
    pub max_line: usize,
    /// `syslog.tcp_max_connections`: how many TCP connections there may be.
    pub tcp_max_connections: usize,
    /// How many of them by one IPv4 address or IPv6 /64. A node allows a quarter of them.
    pub tcp_max_connections_per_sender: usize,
    /// How long after its beginning a line must be complete. Between lines there is no limit.
    pub tcp_idle_timeout: Duration,
}

impl Default for SyslogConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 514),
            protocol: Protocol::Udp,
            allowed_senders: Vec::new(),
            reuse_port: false,
            receive_buffer: 32 * 1024 * 1024,
            max_line: MAX_LINE,
            tcp_max_connections: 1024,
            tcp_max_connections_per_sender: 128,
            tcp_idle_timeout: Duration::from_secs(30),
        }
    }
}

/// By which transport lines are received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams (RFC 5426).
    #[default]
    Udp,
    /// Streams (RFC 6587).
    Tcp,
    /// Both, on the same port.
    Both,
}

impl Protocol {
    pub(super) const fn has_udp(self) -> bool {
        matches!(self, Self::Udp | Self::Both)
    }

    pub(super) const fn has_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Both)
    }
}
