//! RFC 5424, after the priority: `1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]`.

use super::line::{BOM, Line, Priority, is_hostname, is_program, skip_spaces, word};
use super::timestamp;

/// Whether `text` begins with a version and a timestamp.
pub(super) fn is_header(text: &[u8]) -> bool {
    header(true, text).is_some()
}

/// The timestamp (`None` for NILVALUE) and what follows the space behind it. Without a priority before it, a line needs a
/// real timestamp to be told from a text such as `1 - done`.
fn header(prioritised: bool, text: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let rest = text.strip_prefix(b"1 ")?;
    if let Some(rest) = rest.strip_prefix(b"- ").filter(|_| prioritised) {
        return Some((None, rest));
    }
    // RFC 5424 knows no timestamp with a space in it.
    let (stamp, rest) = word(rest);
    (stamp.get(4) == Some(&b'-') && timestamp::measure(stamp) == Some(stamp.len())).then_some((Some(stamp), rest))
}

/// Takes `text`, which is what follows `priority`, apart; `None` when it is not RFC 5424.
///
/// The fields may be longer than RFC 5424 §6 allows. A field that is missing at the end of the line is as good as NILVALUE.
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

/// The structured data (`None` for NILVALUE), and what follows it. What is malformed is left to the message.
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
            // A backslash before any other byte stands for itself; skipping that byte does no harm.
            b'\\' if quoted => _ = bytes.next(),
            b'"' => quoted = !quoted,
            b']' if !quoted => return named.then_some(at + 1),
            b'[' if !quoted => return None,
            _ => named = true,
        }
    }
    None
}
