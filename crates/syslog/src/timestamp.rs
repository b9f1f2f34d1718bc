//! Recognises timestamps and measures their length. They are not converted to a time.

/// The length of the timestamp at the beginning of `text`. A space, a colon or the end of the text must follow it.
///
/// These formats are recognised:
///
/// - RFC 3164: `Nov 22 20:00:00`, optionally with a fraction, with the year before the month, after the day or after the time, and
///   with Cisco's leading `*` or `.`
/// - ISO 8601: `2026-11-22T20:00:00.123+01:00`, optionally with a space instead of `T`, a comma instead of the point, and no zone
/// - journald: `Sun 2026-11-22 20:00:00 UTC`
/// - seconds since 1970 with a fraction
pub(super) fn measure(text: &[u8]) -> Option<usize> {
    let mut scan = Scan { text, at: 0 };
    match text.first()? {
        b'0'..=b'9' => {
            if text.get(4) == Some(&b'-') {
                scan.iso()?;
            } else if text.get(4) == Some(&b' ') {
                // Cisco Nexus: the year first.
                scan.digits(4)?;
                scan.byte(b' ')?;
                scan.bsd()?;
            } else {
                scan.epoch()?;
            }
        }
        b'*' | b'.' => {
            scan.at = 1;
            scan.bsd()?;
        }
        _ if scan.weekday().is_some() => {
            scan.iso()?;
            scan.zone_name();
        }
        _ => scan.bsd()?,
    }
    matches!(text.get(scan.at), None | Some(b' ' | b':')).then_some(scan.at)
}

/// Like [`measure`], for an RFC 3164 timestamp after a weekday: `Thu Jan  8 16:39:33 2026`.
pub(super) fn measure_with_weekday(text: &[u8]) -> Option<usize> {
    let mut scan = Scan { text, at: 0 };
    scan.weekday()?;
    scan.bsd()?;
    matches!(text.get(scan.at), None | Some(b' ' | b':')).then_some(scan.at)
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const WEEKDAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        (self.peek() == Some(wanted)).then(|| self.at += 1)
    }

    /// Exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<()> {
        let digits = self.text.get(self.at..self.at + count)?;
        digits.iter().all(u8::is_ascii_digit).then(|| self.at += count)
    }

    /// As many digits as there are; at least `least` and at most `most`.
    fn digits_between(&mut self, least: usize, most: usize) -> Option<()> {
        let rest = self.text.get(self.at..)?;
        let count = rest.iter().take(most + 1).take_while(|byte| byte.is_ascii_digit()).count();
        (least <= count && count <= most).then(|| self.at += count)
    }

    fn name(&mut self, names: &[&[u8; 3]]) -> Option<()> {
        let name = self.text.get(self.at..)?.first_chunk::<3>()?;
        names.contains(&name).then(|| self.at += 3)
    }

    fn weekday(&mut self) -> Option<()> {
        self.name(&WEEKDAYS)?;
        self.byte(b' ')
    }

    /// `HH:MM:SS` with an optional fraction.
    fn time(&mut self) -> Option<()> {
        self.digits(2)?;
        self.byte(b':')?;
        self.digits(2)?;
        self.byte(b':')?;
        self.digits(2)?;
        if matches!(self.peek(), Some(b'.' | b',')) {
            self.at += 1;
            self.digits_between(1, 9)?;
        }
        Some(())
    }

    /// `Mon DD [YYYY] HH:MM:SS[.fraction] [YYYY]`.
    fn bsd(&mut self) -> Option<()> {
        self.name(&MONTHS)?;
        self.byte(b' ')?;
        while self.byte(b' ').is_some() {}
        self.digits_between(1, 2)?;
        self.byte(b' ')?;
        if self.text.get(self.at + 4) == Some(&b' ') {
            self.digits(4)?;
            self.at += 1;
        }
        self.time()?;
        self.year_after();
        // Cisco: `18:48:50.483 UTC: %SYS-5-CONFIG_I: …`. Without a colon, the word is a hostname.
        let end = self.at;
        self.zone_name();
        if self.peek() != Some(b':') {
            self.at = end;
        }
        Some(())
    }

    /// ` 20YY` after the time.
    fn year_after(&mut self) {
        let year = self.text.get(self.at..self.at + 5).filter(|year| year.starts_with(b" 20"));
        let is_year = year.is_some_and(|year| year.iter().skip(1).all(u8::is_ascii_digit));
        let after = self.text.get(self.at + 5..).unwrap_or_default();
        // `2001:db8::1` is a hostname, not a year.
        if is_year && (after.is_empty() || after.starts_with(b" ") || after.starts_with(b": ")) {
            self.at += 5;
        }
    }

    /// A space and three to five capital letters.
    fn zone_name(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(rest) = rest.strip_prefix(b" ") else { return };
        let letters = rest.iter().take(6).take_while(|byte| byte.is_ascii_uppercase()).count();
        if (3..=5).contains(&letters) && matches!(rest.get(letters), None | Some(b' ' | b':')) {
            self.at += 1 + letters;
        }
    }

    /// `YYYY-MM-DDTHH:MM:SS[.fraction][zone]`.
    fn iso(&mut self) -> Option<()> {
        self.digits(4)?;
        self.byte(b'-')?;
        self.digits(2)?;
        self.byte(b'-')?;
        self.digits(2)?;
        match self.peek()? {
            b'T' | b't' | b' ' => self.at += 1,
            _ => return None,
        }
        self.time()?;
        match self.peek() {
            Some(b'Z' | b'z') => self.at += 1,
            Some(b'+' | b'-') => {
                self.at += 1;
                self.digits(2)?;
                // A colon after the hours can also be the end of the timestamp (Cisco).
                let minutes = self.at + usize::from(self.peek() == Some(b':'));
                if self.text.get(minutes).is_some_and(u8::is_ascii_digit) {
                    self.at = minutes;
                    self.digits(2)?;
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Ten digits, a point and a fraction.
    fn epoch(&mut self) -> Option<()> {
        self.digits(10)?;
        self.byte(b'.')?;
        self.digits_between(1, 9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_measured() {
        for text in [
            "Nov 22 20:00:00",
            "Nov  2 20:00:00",
            "Nov 2 20:00:00",
            "Nov 22 20:00:00.123456",
            "Nov 22 2026 20:00:00",
            "Nov 22 20:00:00 2026",
            "*Mar  1 18:48:50.483",
            ".Mar  1 18:48:50.483",
            "2026 Nov 22 20:00:00",
            "2026-11-22T20:00:00",
            "2026-11-22T20:00:00Z",
            "2026-11-22T20:00:00.123456+01:00",
            "2026-11-22T20:00:00,123-0100",
            "2026-11-22T20:00:00+01",
            "2026-11-22 20:00:00",
            "Sun 2026-11-22 20:00:00 UTC",
            "Sun 2026-11-22 20:00:00",
            "1793664000.123456",
        ] {
            assert_eq!(measure(text.as_bytes()), Some(text.len()), "{text}");
            assert_eq!(measure(format!("{text}: x").as_bytes()), Some(text.len()), "{text}:");
        }
        // The name of a zone is taken for a hostname unless a colon follows it.
        assert_eq!(measure(b"Mar  1 18:48:50 UTC: %SYS-5-CONFIG_I: x"), Some(19));
        assert_eq!(measure(b"Mar  1 18:48:50 UTC sshd[1]: x"), Some(15));
    }

    #[test]
    fn other_text_is_not_a_timestamp() {
        for text in [
            "",
            "N",
            "Nov",
            "Nov 22",
            "Nov 22 20:00",
            "Nov 22 20:00:0",
            "Nov 22 20:00:00x",
            "Nov 222 20:00:00",
            "nov 22 20:00:00",
            "2026-11-22",
            "2026-11-22T20:00",
            "2026-11-22T20:00:00Zulu",
            "1793664000",
            "179366400.1",
            "2026-11-22T20:00:00+1",
            "2026-11-22T20:00:00+01:0",
            "Mon",
            "Mon Nov 22 20:00:00",
            "*",
            "2026 ",
        ] {
            assert_eq!(measure(text.as_bytes()), None, "{text}");
        }
    }
}
