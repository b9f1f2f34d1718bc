//! Low-level scanning that the parsers and the deframer share.

/// Length of the longest program name that is recognised in a header, in bytes.
///
/// RFC 3164 §4.1.3 allows 32 and RFC 5424 §6.2.5 allows 48, but Docker's tags are longer than both.
pub const PROGRAM_MAX: usize = 128;

/// The byte order mark of UTF-8 (RFC 5424 §6.4).
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Removes whitespace and a byte order mark from the beginning of a line, and the line end from its end (see [`trim_end`]).
#[inline]
pub fn trim(line: &[u8]) -> &[u8] {
    let line = trim_end(line);
    let line = line.strip_prefix(BOM).unwrap_or(line);
    let start = line.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(line.len());
    line.get(start..).unwrap_or_default()
}

/// Removes the line end: CR, LF and NUL bytes in any order and number.
#[inline]
pub fn trim_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    line.get(..end).unwrap_or(line)
}

/// Replaces CR, LF and NUL bytes by spaces, so that the message is one line.
///
/// A datagram or an octet-counted frame is one message, even if it contains line breaks. A line break that a client smuggled into it
/// must not begin a line of its own, and must not hide the rest from a pattern whose `.` stops at a line break.
#[inline]
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

/// Removes leading spaces.
#[inline]
pub(crate) fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| **byte == b' ').count();
    text.get(spaces..).unwrap_or_default()
}

/// The text up to the next space, and the rest after that space.
#[inline]
pub(crate) fn word(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', text) {
        Some(space) => (text.get(..space).unwrap_or_default(), text.get(space + 1..).unwrap_or_default()),
        None => (text, &[]),
    }
}

/// Whether `byte` is allowed in a program name.
#[inline]
pub(crate) const fn is_program_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'+' | b'%' | b'(' | b')')
}

/// Whether `name` can be the name of a program.
#[inline]
pub(crate) fn is_program(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= PROGRAM_MAX && name.iter().all(|byte| is_program_byte(*byte))
}

/// Whether `name` can be a hostname: a name, an address, or syslog-ng's chain of both (`source@host/relay`).
#[inline]
pub(crate) fn is_hostname(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:%[]/@".contains(byte) || !byte.is_ascii())
}
