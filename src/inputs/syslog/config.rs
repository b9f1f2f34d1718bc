//! The settings of the `syslog` section.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::inputs::envelope::Wrapping;
use banmesh_syslog::deframe::MAX_LINE;
use banmesh_types::target::Target;

/// The addresses, senders and limits of syslog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogConfig {
    /// `syslog.address`: the socket address, the same for UDP and TCP. `[::]:514` includes IPv4.
    pub address: SocketAddr,
    /// `syslog.protocol`: the transports.
    pub protocol: Protocol,
    /// `syslog.allowed_senders`: hosts that may send lines; all when empty.
    pub allowed_senders: Vec<Target>,
    /// `syslog.reuse_port`: whether several processes of this user share the port (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// `syslog.receive_buffer`: the size in bytes that is requested for the kernel's UDP receive buffer.
    pub receive_buffer: usize,
    /// `syslog.max_line`: the longest line in bytes. Longer lines are dropped and counted.
    pub max_line: usize,
    /// `syslog.format` and `syslog.format_programs`: which lines have envelopes.
    pub wrapping: Wrapping,
    /// `syslog.tcp_max_connections`: the limit on open TCP connections.
    pub tcp_max_connections: usize,
    /// The same limit per sender, which is an IPv4 address or an IPv6 /64. A node sets it to a quarter of the total.
    pub tcp_max_connections_per_sender: usize,
    /// How long a line may take to arrive completely. Between lines there is no timeout.
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
            wrapping: Wrapping::default(),
            tcp_max_connections: 1024,
            tcp_max_connections_per_sender: 128,
            tcp_idle_timeout: Duration::from_secs(30),
        }
    }
}

/// The transports over which lines are received.
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
