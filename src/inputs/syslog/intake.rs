//! The intake of lines, which every input uses: a sink with the counters of one transport.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::metrics::{DropReason, Metrics, Transport};
use crate::inputs::envelope::{LineFormat, Opener, Wrapping};
use crate::inputs::senders::LineCount;
use crate::net::limit::Watch;
use crate::net::throttle::LogThrottle;
use banmesh_syslog::envelope::{Content, Unwrapped};
use banmesh_syslog::{Line, Written, flatten, trim};
use banmesh_types::address::Address;

/// Receives the lines of the inputs.
///
/// Every connection and every socket has its own clone, so the state of a sink, such as buffers, needs no lock.
pub trait LineSink: Clone + Send + 'static {
    /// Receives one complete line from `sender`. Must not block.
    ///
    /// The line includes its header, but not the line end. Line breaks and NUL bytes inside a message are replaced by spaces.
    /// The line is never empty and never longer than `syslog.max_line`.
    fn line(&mut self, sender: Address, line: &[u8]);

    /// Receives one message of `program` without a header, under the same conditions.
    ///
    /// The default implementation passes `program: message` to [`LineSink::line`].
    fn message(&mut self, sender: Address, program: &[u8], message: &[u8]) {
        self.line(sender, &[program, b": ", message].concat());
    }

    /// Receives one line from an envelope, under the same conditions.
    ///
    /// The default implementation passes it to [`LineSink::message`], or to [`LineSink::line`] if the program is unknown.
    fn record(&mut self, sender: Address, record: Record<'_>) {
        match record.program.or(record.header.program) {
            Some(program) => self.message(sender, program, record.text),
            None => self.line(sender, record.text),
        }
    }
}

/// A line that was taken out of an envelope; see [`envelope`](crate::inputs::envelope).
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    /// When the line was written, as the envelope says it.
    pub written: Option<Written>,
    /// The header around the envelope. For inputs without headers, only its program is set.
    pub header: Line<'a>,
    /// The program that the configuration or a field of the envelope names.
    pub program: Option<&'a [u8]>,
    /// The line.
    pub text: &'a [u8],
    /// Whether the line may have a header of its own.
    pub nested: bool,
}

/// A sink with the counters of one transport.
#[derive(Clone, Debug)]
pub struct Intake<S> {
    sink: S,
    transport: Transport,
    max_line: usize,
    lines: Counter,
    senders: LineCount,
    oversized: Counter,
    incomplete: Counter,
    stalled: Counter,
    empty: Counter,
    throttle: Arc<LogThrottle>,
    connection: Option<Watch>,
    envelopes: Option<Opener>,
}

impl<S: LineSink> Intake<S> {
    /// Passes lines of up to `max_line` bytes that arrive over `transport` to `sink`.
    pub fn new(sink: S, metrics: &Metrics, transport: Transport, max_line: usize) -> Self {
        Self {
            sink,
            transport,
            max_line,
            lines: metrics.lines(transport),
            senders: metrics.line_count(transport),
            oversized: metrics.dropped(transport, DropReason::Oversized),
            incomplete: metrics.dropped(transport, DropReason::Incomplete),
            stalled: metrics.stalled().clone(),
            empty: metrics.dropped(transport, DropReason::Empty),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
            connection: None,
            envelopes: None,
        }
    }

    /// Takes lines that come with a syslog header out of envelopes as `wrapping` says. Clones share what they join.
    #[must_use]
    pub fn opening(self, wrapping: &Wrapping) -> Self {
        let envelopes = (wrapping.format != LineFormat::Plain).then(|| Opener::new(wrapping.clone(), self.max_line));
        Self { envelopes, ..self }
    }

    /// The longest line in bytes.
    pub const fn max_line(&self) -> usize {
        self.max_line
    }

    /// Passes on a line, which must be complete, not empty, not too long, and without line breaks.
    pub fn line(&mut self, sender: Address, line: &[u8]) {
        match self.envelopes.clone() {
            Some(envelopes) => envelopes.line(sender, line, self),
            None => self.whole(sender, line),
        }
    }

    /// Passes on a line that is not in an envelope, under the same conditions.
    pub(in crate::inputs) fn whole(&mut self, sender: Address, line: &[u8]) {
        self.lines.inc();
        self.senders.count(sender);
        self.sink.line(sender, line);
    }

    /// Passes on a message of `program` without a header, under the same conditions.
    pub fn message(&mut self, sender: Address, program: &[u8], message: &[u8]) {
        self.lines.inc();
        self.senders.count(sender);
        self.sink.message(sender, program, message);
    }

    /// Records on `connection` when lines arrive.
    pub(super) fn watch(&mut self, connection: Watch) {
        self.connection = Some(connection);
    }

    /// Called after each read that completed lines.
    pub(super) fn has_received_lines(&self) {
        if let Some(connection) = &self.connection {
            connection.mark_useful();
        }
    }

    /// Passes on a line from an envelope, under the same conditions.
    pub fn record(&mut self, sender: Address, record: Record<'_>) {
        self.lines.inc();
        self.senders.count(sender);
        self.sink.record(sender, record);
    }

    /// Passes on what a part of a line completes. `known` is what is known about the line besides the envelope.
    pub(in crate::inputs) fn content(&mut self, sender: Address, content: Content, known: Record<'_>) {
        match content {
            Content::Partial => {}
            Content::Oversized => self.oversized(sender, 1),
            Content::Incomplete => self.incomplete(),
            Content::Line(line) if trim(&line.text).is_empty() => _ = self.empty.inc(),
            Content::Line(Unwrapped { written, program, mut text }) => {
                flatten(&mut text);
                let program = known.program.or(program.as_deref());
                self.record(sender, Record { written: written.or(known.written), program, text: &text, ..known });
            }
        }
    }

    /// Counts lines that were too long.
    pub fn oversized(&self, sender: Address, count: u64) {
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

    /// Counts a line whose end never arrived.
    pub fn incomplete(&self) {
        self.incomplete.inc();
    }

    /// Counts a connection that stalled in the middle of a line.
    pub(super) fn stalled(&self) {
        self.stalled.inc();
    }
}
