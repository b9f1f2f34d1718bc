//! One line, taken apart by reference.

use super::{rfc3164, rfc5424, timestamp};

/// The longest program name that is taken from a header, in bytes.
///
/// RFC 3164 §4.1.3 allows 32, RFC 5424 §6.2.5 allows 48; docker's tags are longer than both.
pub const PROGRAM_MAX: usize = 128;

/// A syslog line, taken apart. Every field is a slice of the line that was parsed.
///
/// Only the header is ever looked at: what stands in the message cannot change the other fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line<'a> {
    /// Facility and severity, where the line names them.
    pub priority: Option<Priority>,
    /// The timestamp as written. It is not interpreted: attempts are counted by the time of arrival.
    pub timestamp: Option<&'a [u8]>,
    /// The host that the line names: a name, an IPv4 or an IPv6 address. Whoever sends the line chooses it.
    pub hostname: Option<&'a [u8]>,
    /// The program (RFC 3164 TAG without the process id, RFC 5424 APP-NAME): `dovecot`, `postfix/smtps/smtpd`.
    ///
    /// At most [`PROGRAM_MAX`] letters, digits and `- _ . / + % ( )`; anything else in its place is no program.
    /// rsyslog cuts it at the first slash when it writes RFC 5424 (`RSYSLOG_SyslogProtocol23Format`), so postfix may be
    /// just `postfix`.
    pub program: Option<&'a [u8]>,
    /// The process id as written: RFC 3164 in brackets after the program, RFC 5424 PROCID.
    pub pid: Option<&'a [u8]>,
    /// RFC 5424 MSGID.
    pub message_id: Option<&'a [u8]>,
    /// RFC 5424 STRUCTURED-DATA with its brackets, its escapes (`\"`, `\\`, `\]`) as they are.
    pub structured_data: Option<&'a [u8]>,
    /// What follows the header, without leading spaces and byte order mark; for a line without header the whole line.
    pub message: &'a [u8],
}

/// Facility and severity (RFC 5424 §6.2.1): at most 191.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(u8);

impl Priority {
    /// The number between the angle brackets; `None` when it is over 191.
    pub const fn new(value: u8) -> Option<Self> {
        if value <= 191 { Some(Self(value)) } else { None }
    }

    /// The number as it is written: facility × 8 + severity.
    pub const fn value(self) -> u8 {
        self.0
    }

    /// 0 (kernel) to 23 (local7); 2 is mail, 4 and 10 are authentication.
    pub const fn facility(self) -> u8 {
        self.0 >> 3
    }

    /// 0 (emergency) to 7 (debug).
    pub const fn severity(self) -> u8 {
        self.0 & 7
    }
}

/// A line that stands for several equal ones, because a syslog daemon folded them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat<'a> {
    /// How many more times the message came. It is as written and may be as large as it can be: cap it before counting.
    pub count: u32,
    /// The message that was repeated (rsyslog's `message repeated 3 times: [ … ]`), or `None` when it is the previous
    /// line of the same sender (sysklogd's `last message repeated 3 times`).
    pub message: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Whether, and how many times, this line says that another one was repeated.
    ///
    /// The line itself is not one of them: rsyslog writes the first message in full and folds only the later ones.
    /// It is recognised only at the beginning of the message, which is the program's text and not its client's.
    pub fn repeat(&self) -> Option<Repeat<'a>> {
        let message = self.message.strip_prefix(b"--- ").unwrap_or(self.message);
        if let Some(rest) = message.strip_prefix(b"message repeated ") {
            let (count, rest) = count(rest)?;
            let inner = rest.strip_prefix(b" times: [")?.strip_suffix(b"]")?;
            return Some(Repeat { count, message: Some(skip_spaces(inner)) });
        }
        let (count, rest) = count(message.strip_prefix(b"last message repeated ")?)?;
        rest.starts_with(b" time").then_some(Repeat { count, message: None })
    }
}

/// A decimal number and what follows it; too large a number is the largest one.
fn count(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits).filter(|(number, _)| !number.is_empty())?;
    let value =
        number.iter().fold(0u32, |value, digit| value.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    Some((value, rest))
}

/// Takes a line apart. It never fails: what is no syslog header is message.
///
/// The line is one that a program wrote, so the program is only ever taken from where the header has it: at the
/// beginning, after a priority, or after a timestamp and a hostname. A line with neither priority nor timestamp has no
/// header and is all message.
///
/// A line that a relay wrapped in a header of its own (`<13>Nov 22 20:00:00 relay rsyslogd: <134>Nov 22 …`) is unwrapped
/// once.
pub fn parse(line: &[u8]) -> Line<'_> {
    let text = trim(line);
    let outer = parse_once(text);
    if outer.message.first() == Some(&b'<') && is_relay(outer.program) {
        let (priority, rest) = priority(outer.message);
        if priority.is_some() && (rfc5424::is_header(rest) || timestamp::measure(skip_spaces(rest)).is_some()) {
            return parse_once(outer.message);
        }
    }
    outer
}

fn parse_once(text: &[u8]) -> Line<'_> {
    let (priority, rest) = priority(text);
    rfc5424::parse(priority, rest).unwrap_or_else(|| rfc3164::parse(priority, rest))
}

/// Whether a header of this program may be one that a relay put before the real one.
///
/// Any other program may have been made to print a client's text at the beginning of its message.
fn is_relay(program: Option<&[u8]>) -> bool {
    matches!(program, None | Some(b"rsyslogd" | b"syslogd" | b"syslog-ng" | b"syslog"))
}

/// Without the blanks and the byte order mark before a line, and without the line end after it ([`trim_end`]).
pub fn trim(line: &[u8]) -> &[u8] {
    let line = trim_end(line);
    let line = line.strip_prefix(BOM).unwrap_or(line);
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(line.len());
    line.get(start..).unwrap_or_default()
}

/// Without the line end: CR, LF and NUL in any order and number.
pub fn trim_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    line.get(..end).unwrap_or(line)
}

/// Makes one line of a message that holds line breaks: CR, LF and NUL inside it become spaces.
///
/// A datagram or an octet-counted frame is one message, whatever it holds. A line break that a client smuggled into it
/// must neither begin a line of its own nor hide what follows from a pattern whose `.` stops at a line break.
pub fn flatten(line: &mut [u8]) {
    let mut from = 0;
    while let Some(rest) = line.get_mut(from..) {
        let Some(at) = memchr::memchr3(b'\n', b'\r', 0, rest) else { return };
        if let Some(byte) = rest.get_mut(at) {
            *byte = b' ';
        }
        from += at + 1;
    }
}

/// The byte order mark of UTF-8 (RFC 5424 §6.4).
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// The priority at the beginning, and what follows it.
fn priority(text: &[u8]) -> (Option<Priority>, &[u8]) {
    let mut value = 0u32;
    for (at, &byte) in text.iter().enumerate().take(5).skip(1) {
        match byte {
            b'0'..=b'9' => value = value * 10 + u32::from(byte - b'0'),
            b'>' if at > 1 && text.first() == Some(&b'<') => {
                let priority = u8::try_from(value).ok().and_then(Priority::new);
                return match (priority, text.get(at + 1..)) {
                    (Some(priority), Some(rest)) => (Some(priority), rest),
                    _ => (None, text),
                };
            }
            _ => break,
        }
    }
    (None, text)
}

/// Without leading spaces.
pub(super) fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| **byte == b' ').count();
    text.get(spaces..).unwrap_or_default()
}

/// A word up to the next space, and what follows the space.
pub(super) fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', text) {
        Some(space) => (text.get(..space).unwrap_or_default(), text.get(space + 1..).unwrap_or_default()),
        None => (text, &[]),
    }
}

/// Whether `byte` may stand in a program name.
pub(super) const fn is_program_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'+' | b'%' | b'(' | b')')
}

/// Whether `name` can be a program's.
pub(super) fn is_program(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= PROGRAM_MAX && name.iter().all(|byte| is_program_byte(*byte))
}

/// Whether `name` can be a host's: a name, an address, or syslog-ng's chain of both (`source@host/relay`).
pub(super) fn is_hostname(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:%[]/@".contains(byte) || !byte.is_ascii())
}
