//! The door through which every line goes, whatever brought it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::metrics::{DropReason, Metrics, Transport};
use crate::net::throttle::LogThrottle;

/// What takes the lines.
///
/// Every connection and every socket has a clone of its own, so what it keeps for itself (buffers) needs no lock.
pub trait LineSink: Clone + Send + 'static {
    /// Takes one complete line from `sender`, in canonical form. It must not block.
    ///
    /// The line is as it was sent, with its header, without line end. It holds no line break and no NUL: those inside a
    /// message have become spaces. It is never empty and never longer than `syslog.max_line`.
    fn line(&mut self, sender: IpAddr, line: &[u8]);

    /// Takes one message of `program` that has no header, under the same conditions.
    ///
    /// What only takes lines gets `program: message`.
    fn message(&mut self, sender: IpAddr, program: &[u8], message: &[u8]) {
        self.line(sender, &[program, b": ", message].concat());
    }
}

/// A sink with the counters of one transport.
#[derive(Clone, Debug)]
pub struct Intake<S> {
    sink: S,
    transport: Transport,
    max_line: usize,
    lines: Counter,
    oversized: Counter,
    incomplete: Counter,
    stalled: Counter,
    throttle: Arc<LogThrottle>,
}

impl<S: LineSink> Intake<S> {
    /// A door for lines of at most `max_line` bytes that come by `transport`.
    pub fn new(sink: S, metrics: &Metrics, transport: Transport, max_line: usize) -> Self {
        Self {
            sink,
            transport,
            max_line,
            lines: metrics.lines(transport),
            oversized: metrics.dropped(transport, DropReason::Oversized),
            incomplete: metrics.dropped(transport, DropReason::Incomplete),
            stalled: metrics.stalled().clone(),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        }
    }

    /// The longest line in bytes.
    pub const fn max_line(&self) -> usize {
        self.max_line
    }

    /// Hands over a line that is complete, not empty, not too long, and without line breaks.
    pub fn line(&mut self, sender: IpAddr, line: &[u8]) {
        self.lines.inc();
        self.sink.line(sender, line);
    }

    /// Hands over a message of `program` that has no header, under the same conditions.
    pub fn message(&mut self, sender: IpAddr, program: &[u8], message: &[u8]) {
        self.lines.inc();
        self.sink.message(sender, program, message);
    }

    /// Counts lines that were too long.
    pub fn oversized(&self, sender: IpAddr, count: u64) {
        self.oversized.inc_by(count);
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            warn!(
                %sender,
                transport = self.transport.as_str(),
                max_line = self.max_line,
                held_back,
                "dropped a line longer than syslog.max_line"
            );
        }
    }

    /// Counts a line whose end did not come.
    pub fn incomplete(&self) {
        self.incomplete.inc();
    }

    /// Counts a connection that stopped in the middle of a line.
    pub(super) fn stalled(&self) {
        self.stalled.inc();
    }
}
