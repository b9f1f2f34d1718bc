//! RFC 3164, the part after the priority: `Mon DD HH:MM:SS HOSTNAME TAG[PID]: MESSAGE`. Any part may be missing.

use crate::line::{Line, Priority};
use crate::scan::{BOM, PROGRAM_MAX, is_hostname, is_program_byte, skip_spaces, word};
use crate::timestamp;

/// Parses `text`, the part after `priority`.
pub(super) fn parse(priority: Option<Priority>, text: &[u8]) -> Line<'_> {
    let text = skip_spaces(text);
    let text = text.strip_prefix(BOM).unwrap_or(text);
    let line = Line { priority, ..Line::default() };
    let Some(Dated { timestamp, origin, rest }) = dated(priority.is_some(), text) else {
        // Without a timestamp there is no hostname (RFC 3164 §4.3.2). Without timestamp and priority there is no header.
        return match tag(text) {
            Some(tag) if priority.is_some() => {
                Line { program: Some(tag.program), pid: tag.pid, message: tag.message, ..line }
            }
            _ => Line { message: text, ..line },
        };
    };
    let line = Line { timestamp: Some(timestamp), hostname: origin, ..line };
    let rest = after_level(rest).unwrap_or(rest);
    let (line, rest) = match unifi(rest) {
        Some((device, rest)) if line.hostname.is_none() => (Line { hostname: Some(device), ..line }, rest),
        _ => (line, rest),
    };
    if let Some(tag) = tag(rest) {
        return Line { program: Some(tag.program), pid: tag.pid, message: tag.message, ..line };
    }
    let (hostname, after) = word(rest);
    if line.hostname.is_some() || !is_hostname(hostname) {
        return Line { message: rest, ..line };
    }
    let line = Line { hostname: Some(hostname), ..line };
    let after = skip_spaces(after);
    // Cisco ASA: `HH:MM:SS hostname : %ASA-6-302013: …`.
    let after = after.strip_prefix(b": ").unwrap_or(after);
    let after = after_level(after).unwrap_or(after);
    let after = unifi(after).map_or(after, |(_, after)| after);
    match tag(after) {
        Some(tag) => Line { program: Some(tag.program), pid: tag.pid, message: tag.message, ..line },
        None => Line { message: after, ..line },
    }
}

/// A text that begins with a timestamp, possibly after an origin.
struct Dated<'a> {
    timestamp: &'a [u8],
    /// The host before the timestamp (Cisco).
    origin: Option<&'a [u8]>,
    /// The text after the timestamp, without leading spaces and Cisco's colon.
    rest: &'a [u8],
}

fn dated(prioritised: bool, text: &[u8]) -> Option<Dated<'_>> {
    let (length, origin, text) = match timestamp::measure(text).or_else(|| logread(text)) {
        Some(length) => (length, None, text),
        None if prioritised => {
            let (origin, text) = cisco(text)?;
            (timestamp::measure(text)?, origin, text)
        }
        None => return None,
    };
    let (timestamp, rest) = text.split_at_checked(length)?;
    Some(Dated { timestamp, origin, rest: skip_spaces(rest.strip_prefix(b":").unwrap_or(rest)) })
}

/// The length of a timestamp that begins with the weekday, as OpenWrt's logread writes it before facility and severity
/// (`Thu Jan  8 16:39:33 2026 authpriv.warn dropbear[14824]: …`). Without a facility it is not a header, because other programs begin
/// their messages with such a timestamp.
fn logread(text: &[u8]) -> Option<usize> {
    let length = timestamp::measure_with_weekday(text)?;
    after_level(skip_spaces(text.get(length..)?)).map(|_| length)
}

const FACILITIES: &[&[u8]] = &[
    b"auth",
    b"authpriv",
    b"cron",
    b"daemon",
    b"ftp",
    b"kern",
    b"lpr",
    b"mail",
    b"news",
    b"ntp",
    b"security",
    b"syslog",
    b"user",
    b"uucp",
    b"local0",
    b"local1",
    b"local2",
    b"local3",
    b"local4",
    b"local5",
    b"local6",
    b"local7",
];
const SEVERITIES: &[&[u8]] =
    &[b"emerg", b"panic", b"alert", b"crit", b"err", b"error", b"warning", b"warn", b"notice", b"info", b"debug"];

/// The text after facility and severity, if `text` begins with their names. BusyBox writes `auth.info` before the tag, FreeBSD
/// (`syslogd -v -v`) writes `<auth.info>` before the host, and socklog writes `auth.info: ` before the sender's own timestamp.
fn after_level(text: &[u8]) -> Option<&[u8]> {
    let (level, rest) = word(text);
    let rest = skip_spaces(rest);
    let (level, rest) = match level.strip_suffix(b":") {
        Some(level) => (level, skip_spaces(rest.get(timestamp::measure(rest)?..)?)),
        None => (level, rest),
    };
    let level = level.strip_prefix(b"<").and_then(|level| level.strip_suffix(b">")).unwrap_or(level);
    let dot = level.iter().take(16).position(|byte| *byte == b'.')?;
    let (facility, severity) = (level.get(..dot)?, level.get(dot + 1..)?);
    (FACILITIES.contains(&facility) && SEVERITIES.contains(&severity)).then_some(rest)
}

/// Parses what Cisco IOS writes before the timestamp: `29: `, `29: hostname: ` or `: ` (a sequence number and an origin). Returns the
/// origin and the rest.
fn cisco(text: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let digits = text.iter().take(11).take_while(|byte| byte.is_ascii_digit()).count();
    let rest = skip_spaces(text.get(digits..)?.strip_prefix(b":")?);
    if timestamp::measure(rest).is_some() {
        return Some((None, rest));
    }
    let (origin, rest) = word(rest);
    let origin = origin.strip_suffix(b":").filter(|origin| is_hostname(origin))?;
    Some((Some(origin), skip_spaces(rest)))
}

/// The identity of a UniFi device before the tag, and the text after it: `U7PG2,788a20aabbcc,v4.0.66.10832: `, in older versions
/// `("U7PG2,788a20aabbcc,v3.9.3.7537") `, in newer ones `788a20aabbcc,U7-Pro-8.6.11+18870: ` after the host's name.
fn unifi(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (device, rest) = word(text);
    let quoted = device.strip_prefix(b"(\"").and_then(|device| device.strip_suffix(b"\")"));
    let device = quoted.or_else(|| device.strip_suffix(b":"))?;
    let is_mac = |part: &[u8]| part.len() == 12 && part.iter().all(u8::is_ascii_hexdigit);
    let is_word = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._+".contains(byte))
    };
    let mut parts = device.split(|byte| *byte == b',');
    let is_identity = match [parts.next(), parts.next(), parts.next(), parts.next()] {
        [Some(model), Some(mac), Some(version), None] => is_word(model) && is_mac(mac) && is_word(version),
        [Some(mac), Some(model), None, None] => is_mac(mac) && is_word(model),
        _ => false,
    };
    is_identity.then(|| (device, skip_spaces(rest)))
}

struct Tag<'a> {
    program: &'a [u8],
    pid: Option<&'a [u8]>,
    message: &'a [u8],
}

/// The tag at the beginning of `text`: `program: ` or `program[pid]:`.
///
/// Without a process id, a space must follow the colon. Otherwise the beginning of an IPv6 address would be taken for a program.
fn tag(text: &[u8]) -> Option<Tag<'_>> {
    let length = text.iter().take(PROGRAM_MAX + 1).take_while(|byte| is_program_byte(**byte)).count();
    let (program, rest) = text.split_at_checked(length)?;
    if program.is_empty() || length > PROGRAM_MAX {
        return None;
    }
    let (pid, rest) = match rest.strip_prefix(b"[") {
        Some(rest) => {
            let length = rest.iter().take(33).take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let (pid, rest) = rest.split_at_checked(length).filter(|(pid, _)| pid.len() <= 32)?;
            (Some(pid), rest.strip_prefix(b"]")?)
        }
        None => (None, rest),
    };
    let message = rest.strip_prefix(b":")?;
    if pid.is_none() && !matches!(message.first(), None | Some(b' ' | b'\t')) {
        return None;
    }
    let message = skip_spaces(message);
    let message = message.strip_prefix(BOM).unwrap_or(message);
    Some(Tag { program, pid: pid.filter(|pid| !pid.is_empty()), message })
}
