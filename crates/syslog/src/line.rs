//! The parts of one line.

use crate::scan::skip_spaces;
use crate::timestamp;
use crate::written::Written;

/// The parts of a syslog line. Every field is a slice of the line that was parsed.
///
/// All fields but the message come from the header. The text of the message cannot change them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line<'a> {
    /// Facility and severity. `None` if the line does not begin with a valid priority.
    pub priority: Option<Priority>,
    /// The timestamp as written. [`Line::written`] converts it to a time.
    pub timestamp: Option<&'a [u8]>,
    /// The host that the line names: a name, an IPv4 or an IPv6 address. The sender of the line can write anything here.
    pub hostname: Option<&'a [u8]>,
    /// The program (RFC 3164 TAG without the process id, RFC 5424 APP-NAME): `dovecot`, `postfix/smtps/smtpd`.
    ///
    /// At most [`PROGRAM_MAX`](crate::PROGRAM_MAX) letters, digits and `- _ . / + % ( )`; `None` if the line has anything else there.
    /// When rsyslog writes RFC 5424 (`RSYSLOG_SyslogProtocol23Format`), it cuts the name at the first slash, so
    /// `postfix/smtpd` becomes `postfix`.
    pub program: Option<&'a [u8]>,
    /// The process id as written: in RFC 3164 in brackets after the program, in RFC 5424 the PROCID.
    pub pid: Option<&'a [u8]>,
    /// RFC 5424 MSGID.
    pub message_id: Option<&'a [u8]>,
    /// RFC 5424 STRUCTURED-DATA including its brackets. Escapes (`\"`, `\\`, `\]`) are not decoded.
    pub structured_data: Option<&'a [u8]>,
    /// The text after the header, without leading spaces and byte order mark. For a line without a header, the whole line.
    pub message: &'a [u8],
}

/// Facility and severity (RFC 5424 §6.2.1): a number from 0 to 191.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(u8);

impl Priority {
    /// From the number between the angle brackets. `None` if it is greater than 191.
    #[inline]
    pub const fn new(value: u8) -> Option<Self> {
        if value <= 191 { Some(Self(value)) } else { None }
    }

    /// The number between the angle brackets: facility × 8 + severity.
    #[inline]
    pub const fn value(self) -> u8 {
        self.0
    }

    /// 0 (kernel) to 23 (local7); 2 is mail, 4 and 10 are authentication.
    #[inline]
    pub const fn facility(self) -> u8 {
        self.0 >> 3
    }

    /// 0 (emergency) to 7 (debug).
    #[inline]
    pub const fn severity(self) -> u8 {
        self.0 & 7
    }
}

/// A line that replaces repeated ones, because a syslog daemon condensed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat<'a> {
    /// How many more times the message occurred, as written in the line. It can be any number, so limit it before you count with it.
    pub count: u32,
    /// The message that was repeated (rsyslog's `message repeated 3 times: [ … ]`). `None` means the previous line of the same sender
    /// (sysklogd's `last message repeated 3 times`).
    pub message: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// The time in the timestamp.
    pub fn written(&self) -> Option<Written> {
        self.timestamp.and_then(timestamp::read)
    }

    /// Returns what was repeated, if this line reports the repetition of another one.
    ///
    /// The count does not include the first occurrence, which syslog daemons write in full. The report is recognised only at the
    /// beginning of the message, where the text is the program's own and not a client's.
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

/// A decimal number and the rest of `text`. A number that is too large becomes `u32::MAX`.
fn count(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits).filter(|(number, _)| !number.is_empty())?;
    let value =
        number.iter().fold(0u32, |value, digit| value.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    Some((value, rest))
}
