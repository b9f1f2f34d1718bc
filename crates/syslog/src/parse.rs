//! Decides which format a line has, and parses it.

use crate::line::{Line, Priority};
use crate::scan::{skip_spaces, trim};
use crate::{rfc3164, rfc5424, timestamp};

/// Splits a line into its parts. This never fails: text that is not a syslog header belongs to the message.
///
/// The program is recognised only where a header has it: after a priority, or after a timestamp and an optional hostname. A line
/// with neither priority nor timestamp has no header, so all of it is message.
///
/// If a relay put a header of its own before the line (`<13>Nov 22 20:00:00 relay rsyslogd: <134>Nov 22 …`), the result has the
/// fields of the inner header. Only one such header is removed.
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

/// Whether a header with this program can be one that a relay put before the real one.
///
/// For any other program, the inner header could be a client's text at the beginning of the message.
fn is_relay(program: Option<&[u8]>) -> bool {
    matches!(program, None | Some(b"rsyslogd" | b"syslogd" | b"syslog-ng" | b"syslog"))
}

/// The priority at the beginning, and the rest of `text`.
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
