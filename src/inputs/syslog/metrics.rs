//! The metrics of lines: every received line, and everything that was dropped instead.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a line arrived: the label `transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A TCP connection.
    Tcp,
    /// A TLS connection (RFC 5425).
    Tls,
    /// A followed file.
    File,
    /// The systemd journal.
    Journal,
}

impl Transport {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::File => "file",
            Self::Journal => "journal",
        }
    }
}

/// Why a line, datagram or connection was dropped: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Lines longer than `syslog.max_line`.
    Oversized,
    /// Datagrams or connections from senders outside `syslog.allowed_senders`.
    Refused,
    /// Empty lines.
    Empty,
    /// Lines in whose middle the connection ended, failed or stalled.
    Incomplete,
    /// Datagrams dropped because the kernel's buffer was full.
    Kernel,
    /// Connections beyond the limit, in total or of their sender.
    Connections,
    /// Connections whose TLS handshake failed or took too long.
    Handshake,
    /// Connections closed in favour of another sender's, because no place was free.
    Evicted,
    /// Output of journalctl that is not an entry.
    Malformed,
}

impl DropReason {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Oversized => "oversized",
            Self::Refused => "refused",
            Self::Empty => "empty",
            Self::Incomplete => "incomplete",
            Self::Kernel => "kernel",
            Self::Connections => "connections",
            Self::Handshake => "handshake",
            Self::Evicted => "evicted",
            Self::Malformed => "malformed",
        }
    }
}

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of lines; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lines: Family<Labels<1>, Counter>,
    dropped: Family<Labels<2>, Counter>,
    connections: Gauge,
    accepted: Counter,
    accept_errors: Counter,
    stalled: Counter,
    receive_buffer: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_syslog_lines", "Syslog lines received", self.lines.clone());
        registry.register(
            "banmesh_syslog_dropped",
            "Lines, datagrams or connections dropped, by reason",
            self.dropped.clone(),
        );
        registry.register(
            "banmesh_syslog_connections",
            "Open TCP and TLS connections of syslog senders",
            self.connections.clone(),
        );
        registry.register(
            "banmesh_syslog_connections_accepted",
            "TCP and TLS connections accepted",
            self.accepted.clone(),
        );
        registry.register(
            "banmesh_syslog_accept_errors",
            "Errors while accepting TCP and TLS connections",
            self.accept_errors.clone(),
        );
        registry.register(
            "banmesh_syslog_connections_stalled",
            "TCP and TLS connections closed because they stalled in the middle of a line",
            self.stalled.clone(),
        );
        registry.register(
            "banmesh_syslog_receive_buffer_bytes",
            "Size of the kernel's receive buffer for datagrams, in bytes",
            self.receive_buffer.clone(),
        );
    }

    /// Lines received over `transport`.
    pub fn lines(&self, transport: Transport) -> Counter {
        self.lines.get_or_create(&[("transport", transport.as_str())]).clone()
    }

    /// Lines, datagrams or connections dropped for `reason`. The first call creates the counter, with the value 0.
    pub fn dropped(&self, transport: Transport, reason: DropReason) -> Counter {
        self.dropped.get_or_create(&[("transport", transport.as_str()), ("reason", reason.as_str())]).clone()
    }

    /// Open connections.
    pub const fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// Accepted connections.
    pub const fn accepted(&self) -> &Counter {
        &self.accepted
    }

    /// Errors of `accept`.
    pub(super) const fn accept_errors(&self) -> &Counter {
        &self.accept_errors
    }

    /// Connections closed because they stalled in the middle of a line.
    pub const fn stalled(&self) -> &Counter {
        &self.stalled
    }

    /// The size in bytes of the UDP receive buffer that the kernel granted.
    pub const fn receive_buffer(&self) -> &Gauge {
        &self.receive_buffer
    }
}
