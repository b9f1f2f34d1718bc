//! The metrics of lines: every received line, and everything that was dropped instead.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::inputs::senders::{LineCount, Received, Senders};
use banmesh_types::time::UnixMillis;

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
    /// Every transport.
    pub const ALL: [Self; 5] = [Self::Udp, Self::Tcp, Self::Tls, Self::File, Self::Journal];

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
    const ALL: [Self; 9] = [
        Self::Oversized,
        Self::Refused,
        Self::Empty,
        Self::Incomplete,
        Self::Kernel,
        Self::Connections,
        Self::Handshake,
        Self::Evicted,
        Self::Malformed,
    ];

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

impl DropReason {
    /// What was dropped, and what to do about it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Oversized => "longer than syslog.max_line; raise it",
            Self::Refused => "from senders outside syslog.allowed_senders; add them if they are yours",
            Self::Empty => "empty lines; harmless",
            Self::Incomplete => "the connection ended in the middle of a line",
            Self::Kernel => "the kernel's receive buffer was full; raise net.core.rmem_max and restart, or use TCP",
            Self::Connections => "too many connections; see the limits in docs/inputs.md",
            Self::Handshake => "the TLS handshake failed; check the certificates of the sender",
            Self::Evicted => "connections closed in favour of others; see docs/operations.md",
            Self::Malformed => "output of journalctl that is not an entry",
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
    senders: Senders,
    received: [Arc<Received>; Transport::ALL.len()],
}

/// What arrived over one transport, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intaken {
    /// The transport.
    pub transport: Transport,
    /// Lines since the start.
    pub lines: u64,
    /// When the last one arrived.
    pub last: Option<UnixMillis>,
    /// What was dropped since the start, by reason; only reasons that occurred.
    pub dropped: Vec<(DropReason, u64)>,
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

    /// Counts the lines of an input with this transport.
    pub fn line_count(&self, transport: Transport) -> LineCount {
        let received = self.received.get(transport as usize).cloned().unwrap_or_default();
        LineCount::new(transport, self.senders.clone(), received)
    }

    /// The senders of all lines.
    pub const fn senders(&self) -> &Senders {
        &self.senders
    }

    /// What arrived over each transport that is in use.
    pub fn intaken(&self) -> Vec<Intaken> {
        let view = |transport: Transport| {
            let label = transport.as_str();
            let lines = self.lines.get(&[("transport", label)])?.get();
            let count = |reason: DropReason| {
                let dropped = self.dropped.get(&[("transport", label), ("reason", reason.as_str())])?.get();
                (dropped > 0).then_some((reason, dropped))
            };
            let last = self.received.get(transport as usize).and_then(|received| received.last());
            let dropped = DropReason::ALL.into_iter().filter_map(count).collect();
            Some(Intaken { transport, lines, last, dropped })
        };
        Transport::ALL.into_iter().filter_map(view).collect()
    }

    /// Lines received, and lines, datagrams or connections dropped, over all transports.
    pub fn all_lines(&self) -> (u64, u64) {
        let sum = |one: &Intaken| (one.lines, one.dropped.iter().map(|(_, count)| count).sum::<u64>());
        self.intaken().iter().map(sum).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
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
