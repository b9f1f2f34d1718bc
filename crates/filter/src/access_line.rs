//! Recognises lines of an access log that begin with a header of the client.
//!
//! A `LogFormat` such as `%{X-Forwarded-For}i %h %l %u %t "%r" %>s %b` lets the client write the beginning of the line. It can imitate a
//! line of any service there, so in such a line only rules that read the request may match. Web servers escape quotes in headers, so the
//! client cannot write the request itself.

use std::net::IpAddr;

use memchr::memmem;

/// How many places of a line are examined, so that a line full of brackets costs no more than others.
const PLACES: usize = 8;

/// Returns `true` if `text` ends like a line of an access log, and if there is more in front of its time than an optional virtual host, an
/// address, an identity and a user name.
pub(super) fn begins_with_a_header(text: &[u8]) -> bool {
    memmem::find_iter(text, b"] \"").take(PLACES).any(|end| {
        let (before, after) = text.split_at(end);
        let Some(start) = memchr::memrchr(b'[', before) else { return false };
        let (beginning, time) = before.split_at(start);
        is_time(time.get(1..).unwrap_or_default())
            && is_request_and_result(after.get(3..).unwrap_or_default())
            && !is_client(beginning)
    })
}

/// Returns `true` if an expression matches the time and the quote before the request, so that it cannot match what a client wrote.
pub(super) fn reads_request(expression: &str) -> bool {
    [r#"\] ""#, r#"\] +""#, r#"\]\s""#, r#"\]\s+""#, r#"\]\s*""#, r#"\] *""#]
        .iter()
        .any(|part| expression.contains(part))
}

/// `07/Oct/2026:10:00:00 +0000` or `2026-10-07T10:00:00+00:00`.
fn is_time(text: &[u8]) -> bool {
    let is_in_time = |byte: &u8| byte.is_ascii_alphanumeric() || b"/:+-. ".contains(byte) || !byte.is_ascii();
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    (14..=40).contains(&text.len()) && digits >= 10 && text.iter().all(is_in_time)
}

/// The request to its quote, a status, a size, and then only words and quoted texts.
fn is_request_and_result(text: &[u8]) -> bool {
    let Some(rest) = after_quote(text) else { return false };
    let mut words = rest.split(|byte| *byte == b' ').skip(1);
    let is_status = |word: &[u8]| word.len() == 3 && word.iter().all(u8::is_ascii_digit);
    let is_size = |word: &[u8]| word == b"-" || (!word.is_empty() && word.iter().all(u8::is_ascii_digit));
    let (Some(status), Some(size)) = (words.next(), words.next()) else { return false };
    if !rest.starts_with(b" ") || !is_status(status) || !is_size(size.trim_ascii_end()) {
        return false;
    }
    let mut rest = rest.get(2 + status.len() + size.len()..).unwrap_or_default();
    loop {
        rest = rest.trim_ascii_start();
        let Some(quote) = memchr::memchr(b'"', rest) else { return true };
        // A quote begins a word.
        if quote > 0 && rest.get(quote - 1) != Some(&b' ') {
            return false;
        }
        match after_quote(rest.get(quote + 1..).unwrap_or_default()) {
            Some(after) => rest = after,
            None => return false,
        }
    }
}

/// The text after the next quote that is not escaped.
fn after_quote(text: &[u8]) -> Option<&[u8]> {
    let mut escaped = false;
    let quote = text.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    text.get(quote + 1..)
}

/// An optional virtual host, an address, and up to two words.
fn is_client(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mut words = text.split_ascii_whitespace();
    let is_address =
        |word: Option<&str>| word.is_some_and(|word| word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok());
    // A name before a colon that is not a port is a message of another service.
    let is_host = |word: Option<&str>| {
        let (name, port) = word.map(|word| word.split_once(':').unwrap_or((word, "0"))).unwrap_or_default();
        let is_in_host = |c: char| c.is_ascii_alphanumeric() || "_.*~-".contains(c);
        name.chars().all(is_in_host) && name.chars().any(char::is_alphabetic) && port.parse::<u16>().is_ok()
    };
    let first = words.next();
    let found = is_address(first) || (is_host(first) && is_address(words.next()));
    found && words.count() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "[07/Oct/2026:10:00:00 +0000] \"GET /a\\\"b HTTP/1.1\" 200 5";

    #[test]
    fn lines_that_begin_with_more_than_the_client_are_found() {
        for beginning in [
            "imap-login: Aborted login: user=<bob>, rip=66.66.66.66, 192.0.2.1 - -",
            "IP: 66.66.66.66. Username: - -",
            "badlogin: [66.66.66.66] - -",
            "66.66.66.66 x y 192.0.2.1 - -",
            "Failed password for root from 66.66.66.66 port 22 ssh2 192.0.2.1 - -",
            "",
        ] {
            for end in ["", " \"-\" \"Mozilla/5.0 (x; y)\"", " \"-\" \"a \\\"b\" 0.003 example.org", " 12 \"-\""] {
                let line = format!("{beginning} {REQUEST}{end}");
                assert!(begins_with_a_header(line.as_bytes()), "{line}");
            }
        }
        let line = format!("x y z {}", REQUEST.replace("07/Oct/2026:10:00:00 +0000", "2026-10-07T10:00:00+00:00"));
        assert!(begins_with_a_header(line.as_bytes()), "{line}");
    }

    #[test]
    fn ordinary_access_lines_and_lines_of_other_services_are_not() {
        for beginning in
            ["192.0.2.1 - -", "2001:db8::7 - bob", "www.example.org:443 192.0.2.1 - -", "192.0.2.1 example.org -"]
        {
            assert!(!begins_with_a_header(format!("{beginning} {REQUEST}").as_bytes()), "{beginning}");
        }
        for line in [
            "",
            "] \"",
            "[] \"\" 200 5",
            // Somebody logs in with such a name: the rest of the line is not that of an access log.
            "Failed password for invalid user [07/Oct/2026:10:00:00 +0000] \"GET /\" 200 5 from 192.0.2.1 port 4\" x",
            "login of [07/Oct/2026:10:00:00 +0000] \"GET / from 192.0.2.1",
            "login of [07/Oct/2026:10:00:00 +0000] \"GET /\" failed from 192.0.2.1",
            "a [b] \"c\" 200 5",
        ] {
            assert!(!begins_with_a_header(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn a_line_full_of_brackets_is_cheap() {
        let line = "[07/Oct/2026:10:00:00 +0000] \"".repeat(20_000);
        let started = std::time::Instant::now();
        assert!(!begins_with_a_header(line.as_bytes()));
        assert!(started.elapsed() < std::time::Duration::from_secs(5));
    }
}
