//! Takes the lines of an input out of what container runtimes and log agents put around them.
//! [`banmesh_syslog::envelope`] reads the envelopes; this module keeps what an input knows about them.

use std::sync::Arc;

use parking_lot::Mutex;

pub use banmesh_syslog::envelope::LineFormat;

use crate::inputs::syslog::{Intake, LineSink, Record};
use banmesh_syslog::envelope::{Content, Envelope, Joiner, Opened};
use banmesh_types::address::Address;

/// Which lines of an input have envelopes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wrapping {
    /// What is around them.
    pub format: LineFormat,
    /// The programs whose messages may be envelopes; all when empty.
    pub programs: Vec<glob::Pattern>,
}

impl Wrapping {
    /// Whether a message of `program` may be an envelope.
    pub fn includes(&self, program: Option<&[u8]>) -> bool {
        let name = std::str::from_utf8(program.unwrap_or_default());
        self.programs.is_empty() || name.is_ok_and(|name| self.programs.iter().any(|pattern| pattern.matches(name)))
    }
}

/// Opens the envelopes of an input. Clones share the lines whose end has not arrived, so that the parts of a line may arrive over
/// several connections.
#[derive(Clone, Debug)]
pub struct Opener {
    wrapping: Arc<Wrapping>,
    joiner: Arc<Mutex<Joiner>>,
}

impl Opener {
    /// Joined lines have at most `max_line` bytes.
    pub fn new(wrapping: Wrapping, max_line: usize) -> Self {
        Self { wrapping: Arc::new(wrapping), joiner: Arc::new(Mutex::new(Joiner::new(max_line))) }
    }

    /// Passes on a line with its syslog header.
    pub(super) fn line<S: LineSink>(&self, sender: Address, line: &[u8], intake: &mut Intake<S>) {
        match self.wrapping.format.open_line(line, |program| self.wrapping.includes(program)) {
            Opened::Plain => intake.whole(sender, line),
            Opened::Nested(header) => {
                intake.record(sender, Record { header, text: header.message, nested: true, ..Record::default() });
            }
            Opened::Envelope(header, envelope) => {
                let address = sender.to_string();
                let [host, program, pid] = [header.hostname, header.program, header.pid].map(Option::unwrap_or_default);
                let source = [address.as_bytes(), host, program, pid].join(&0);
                let known = Record { header, nested: self.wrapping.format.is_nested(), ..Record::default() };
                self.part(sender, &source, envelope, known, intake);
            }
        }
    }

    /// Passes on the text of `record`, which is a message without a header or has one of its own. `source` tells apart whose messages
    /// they are.
    pub(super) fn message<S: LineSink>(
        &self,
        sender: Address,
        source: &[u8],
        record: Record<'_>,
        intake: &mut Intake<S>,
    ) {
        let format = self.wrapping.format;
        let program = record.program.or(record.header.program);
        let envelope = if self.wrapping.includes(program) { format.open(record.text) } else { None };
        let known = Record { nested: format.is_nested() && self.wrapping.includes(program), ..record };
        match (envelope, program) {
            (Some(envelope), _) => self.part(sender, source, envelope, known, intake),
            (None, _) if known.nested => intake.record(sender, known),
            (None, Some(program)) => intake.message(sender, program, record.text),
            (None, None) => intake.whole(sender, record.text),
        }
    }

    /// Joins the parts of a line, and passes it on when it is complete. `known` is what is known about it besides the envelope.
    pub(super) fn part<S: LineSink>(
        &self,
        sender: Address,
        source: &[u8],
        envelope: Envelope,
        known: Record<'_>,
        intake: &mut Intake<S>,
    ) {
        let content = self.join(source, envelope);
        intake.content(sender, content, known);
    }

    /// Takes a line that was passed on before, because it may be a part of one that continues.
    pub(super) fn read_before(&self, line: &[u8]) {
        if let Some(envelope) = self.wrapping.format.open(line) {
            self.join(b"", envelope);
        }
    }

    /// Drops the lines whose end has not arrived.
    pub(super) fn clear(&self) {
        self.joiner.lock().clear();
    }

    /// Joins the parts of a line.
    pub(super) fn join(&self, source: &[u8], envelope: Envelope) -> Content {
        self.joiner.lock().add(source, envelope)
    }
}
