//! What is counted: every line that came in, and everything that did not become one.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a line came in: the label `transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A TCP connection.
    Tcp,
    /// A TLS connection (RFC 5425).
    Tls,
    /// A file that is followed.
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

/// Why something that arrived did not become a line: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// It was longer than `syslog.max_line`.
    Oversized,
    /// Its sender is not in `syslog.allowed_senders`: datagrams, or connections.
    Refused,
    /// There was nothing in it.
    Empty,
    /// Its connection ended, failed or stalled in the middle of it.
    Incomplete,
    /// The kernel's buffer was full: datagrams.
    Kernel,
    /// There were too many connections, in all or of its sender: connections.
    Connections,
    /// The TLS handshake failed or took too long: connections.
    Handshake,
    /// It is no entry of the journal.
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
            Self::Malformed => "malformed",
        }
    }
}

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The counters of syslog. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lines: Family<Labels<1>, Counter>,
    dropped: Family<Labels<2>, Counter>,
    connections: Gauge,
    accepted: Counter,
    stalled: Counter,
    receive_buffer: Gauge,
}

impl Metrics {
    /// Makes the counters known to `registry`.
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

    /// Lines received by `transport`.
    pub fn lines(&self, transport: Transport) -> Counter {
        self.lines.get_or_create(&[("transport", transport.as_str())]).clone()
    }

    /// What was dropped for `reason`. A counter exists, as 0, from when it is first asked for.
    pub fn dropped(&self, transport: Transport, reason: DropReason) -> Counter {
        self.dropped.get_or_create(&[("transport", transport.as_str()), ("reason", reason.as_str())]).clone()
    }

    /// Open connections.
    pub const fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// Connections that were accepted.
    pub const fn accepted(&self) -> &Counter {
        &self.accepted
    }

    /// Connections closed because they stalled in the middle of a line.
    pub const fn stalled(&self) -> &Counter {
        &self.stalled
    }

    /// The size of the UDP receive buffer that the kernel gave, in bytes.
    pub const fn receive_buffer(&self) -> &Gauge {
        &self.receive_buffer
    }
}
