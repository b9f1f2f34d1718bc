//! A log line as the detector gets it.

use banmesh_types::address::Address;

/// A log line, parsed by the caller.
///
/// `raw` is used twice: patterns search it, and filters fall back to it when the apparent header may be part of the
/// message.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineView<'a> {
    /// The program that wrote the line: the syslog tag without the pid. `None` if the line does not name one.
    pub program: Option<&'a [u8]>,
    /// The text after the tag, or the whole line if it has no syslog header.
    pub message: &'a [u8],
    /// The line as received. A priority (`<134>`) at its start is skipped.
    pub raw: &'a [u8],
    /// The process that wrote the line. Sessions of different writers are separate.
    pub writer: Writer<'a>,
}

impl<'a> LineView<'a> {
    /// A message of `program`, without a header.
    pub const fn message(program: &'a [u8], message: &'a [u8]) -> Self {
        let writer = Writer { sender: None, hostname: None, pid: None };
        Self { program: Some(program), message, raw: message, writer }
    }

    /// The raw line without a program, for services whose own format looks like a syslog header.
    ///
    /// `None` if the line cannot be one: a priority, or a program that a filter names (`named`), proves that the header
    /// is real.
    pub(crate) fn without_header(self, named: bool) -> Option<Self> {
        let message = without_priority(self.raw);
        let has_priority = message.len() != self.raw.len();
        let may_lack_header = self.program.is_none() || !has_priority && !named;
        (may_lack_header && message.len() > self.message.len()).then_some(Self { program: None, message, ..self })
    }
}

/// The process that wrote a line, as far as the line and its transport identify it.
///
/// Two processes may use the same session names, so sessions are kept per writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer<'a> {
    /// The address that the line was received from. `None` for local inputs.
    pub sender: Option<Address>,
    /// The host name in the line. `None` if there is none.
    pub hostname: Option<&'a [u8]>,
    /// The process id in the line. `None` if there is none.
    pub pid: Option<&'a [u8]>,
}

/// Returns `line` without a leading `<n>`, where `n` has one to three digits.
pub(crate) fn without_priority(line: &[u8]) -> &[u8] {
    let Some(rest) = line.strip_prefix(b"<") else { return line };
    let digits = rest.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        Some(b'>') if digits > 0 => rest.get(digits + 1..).unwrap_or_default(),
        _ => line,
    }
}
