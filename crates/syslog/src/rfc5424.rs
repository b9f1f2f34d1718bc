//! RFC 5424, the part after the priority: `1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]`.

use crate::line::{Line, Priority};
use crate::scan::{BOM, is_hostname, is_program, skip_spaces, word};
use crate::timestamp;

/// Whether `text` begins with a version and a timestamp.
pub(super) fn is_header(text: &[u8]) -> bool {
    header(true, text).is_some()
}

/// The timestamp (`None` for NILVALUE) and the text after the space that ends it. A line without a priority needs a real timestamp,
/// to distinguish it from a text such as `1 - done`.
fn header(prioritised: bool, text: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let rest = text.strip_prefix(b"1 ")?;
    if let Some(rest) = rest.strip_prefix(b"- ").filter(|_| prioritised) {
        return Some((None, rest));
    }
    // A timestamp of RFC 5424 has no space in it.
    let (stamp, rest) = word(rest);
    (stamp.get(4) == Some(&b'-') && timestamp::measure(stamp) == Some(stamp.len())).then_some((Some(stamp), rest))
}

/// Parses `text`, the part after `priority`. `None` if it is not RFC 5424.
///
/// Fields may be longer than RFC 5424 §6 allows. Fields that are missing at the end of the line count as NILVALUE.
pub(super) fn parse(priority: Option<Priority>, text: &[u8]) -> Option<Line<'_>> {
    let (timestamp, rest) = header(priority.is_some(), text)?;
    let (hostname, rest) = word(rest);
    let (program, rest) = word(rest);
    let (pid, rest) = word(rest);
    let (message_id, rest) = word(rest);
    let (structured_data, rest) = structured_data(rest);
    let message = skip_spaces(rest);
    let message = message.strip_prefix(BOM).unwrap_or(message);
    Some(Line {
        priority,
        timestamp,
        hostname: Some(hostname).filter(|name| *name != b"-" && is_hostname(name)),
        program: Some(program).filter(|name| *name != b"-" && is_program(name)),
        pid: present(pid),
        message_id: present(message_id),
        structured_data,
        message: skip_spaces(message),
    })
}

/// The field, unless it is NILVALUE (RFC 5424 §6) or missing.
fn present(field: &[u8]) -> Option<&[u8]> {
    Some(field).filter(|field| !field.is_empty() && *field != b"-")
}

/// The structured data (`None` for NILVALUE), and the text after it. Malformed structured data belongs to the message.
fn structured_data(text: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if let Some(rest) = text.strip_prefix(b"-")
        && matches!(rest.first(), None | Some(b' '))
    {
        return (None, rest);
    }
    let mut end = 0;
    while let Some(length) = text.get(end..).and_then(element) {
        end += length;
    }
    match text.split_at_checked(end) {
        Some((data, rest)) if end > 0 && matches!(rest.first(), None | Some(b' ')) => (Some(data), rest),
        _ => (None, text),
    }
}

/// The length of the element `[id name="value" …]` at the beginning of `text` (RFC 5424 §6.3.1).
fn element(text: &[u8]) -> Option<usize> {
    let mut bytes = text.iter().enumerate();
    if bytes.next()?.1 != &b'[' {
        return None;
    }
    let (mut quoted, mut named) = (false, false);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            // A backslash before any other byte is an ordinary character. Skipping that byte does no harm.
            b'\\' if quoted => _ = bytes.next(),
            b'"' => quoted = !quoted,
            b']' if !quoted => return named.then_some(at + 1),
            b'[' if !quoted => return None,
            _ => named = true,
        }
    }
    None
}
