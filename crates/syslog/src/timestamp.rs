//! Recognises timestamps, measures their length, and reads their time.

use crate::scan::BOM;
use crate::written::{Written, days};

/// The length of the timestamp at the beginning of `text`. A space, a colon or the end of the text must follow it.
///
/// These formats are recognised:
///
/// - RFC 3164: `Nov 22 20:00:00`, optionally with a fraction, with the year before the month, after the day or after the time, and
///   with Cisco's leading `*` or `.`; the month in English or as other locales abbreviate it
/// - ISO 8601: `2026-11-22T20:00:00.123+01:00`, optionally with a space instead of `T`, a comma instead of the point, and no zone
/// - journald: `Sun 2026-11-22 20:00:00 UTC`
/// - seconds since 1970 with a fraction
pub(super) fn measure(text: &[u8]) -> Option<usize> {
    scan(text).map(|scan| scan.at)
}

/// Like [`measure`], for an RFC 3164 timestamp after a weekday: `Thu Jan  8 16:39:33 2026`.
pub(super) fn measure_with_weekday(text: &[u8]) -> Option<usize> {
    scan_with_weekday(text).map(|scan| scan.at)
}

/// The time of a timestamp that was recognised.
pub(super) fn read(text: &[u8]) -> Option<Written> {
    let scan = scan(text).or_else(|| scan_with_weekday(text))?;
    if let Some(seconds) = scan.epoch {
        return Some(Written::Exact(seconds * 1000));
    }
    let midnight = |year: i64| days(year, scan.month, scan.day) * 86_400_000;
    Some(match (scan.year, scan.zone) {
        (None, _) => Written::Yearless { month: scan.month, day: scan.day, time: scan.time },
        (Some(year), None) => Written::Local(midnight(year) + scan.time),
        (Some(year), Some(minutes)) => Written::Exact(midnight(year) + scan.time - minutes * 60_000),
    })
}

fn scan(text: &[u8]) -> Option<Scan<'_>> {
    let mut scan = Scan::new(text);
    match text.first()? {
        b'0'..=b'9' => {
            if text.get(4) == Some(&b'-') {
                scan.iso()?;
            } else if text.get(4) == Some(&b' ') {
                // Cisco Nexus: the year first.
                scan.year = Some(scan.digits(4)?);
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
    scan.is_at_an_end().then_some(scan)
}

fn scan_with_weekday(text: &[u8]) -> Option<Scan<'_>> {
    let mut scan = Scan::new(text);
    scan.weekday()?;
    scan.bsd()?;
    scan.is_at_an_end().then_some(scan)
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    year: Option<i64>,
    month: u8,
    day: u8,
    /// Milliseconds since midnight.
    time: i64,
    /// Minutes east of UTC.
    zone: Option<i64>,
    /// Seconds since 1970.
    epoch: Option<i64>,
}

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const WEEKDAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];

/// Months as other locales of glibc abbreviate them, from January to December, in lower case and without a final point. Languages that
/// use the same letters for different months are left out.
const LOCAL_MONTHS: [&[&str]; 12] = [
    &["jan", "janv", "ene", "gen", "sty", "led", "tam", "янв"],
    &["feb", "févr", "fev", "lut", "úno", "hel", "фев"],
    &["mär", "mrz", "mars", "mar", "mrt", "bře", "márc", "maa", "мар"],
    &["apr", "avril", "abr", "kwi", "dub", "ápr", "huh", "апр"],
    &["mai", "maj", "mei", "mag", "may", "kvě", "máj", "tou", "мая", "май"],
    &["jun", "juin", "giu", "cze", "čen", "jún", "kes", "июн"],
    &["jul", "juil", "lug", "lip", "čec", "júl", "hei", "июл"],
    &["aug", "août", "ago", "sie", "srp", "elo", "авг"],
    &["sep", "sept", "set", "wrz", "zář", "szept", "syy", "сен"],
    &["okt", "oct", "ott", "out", "paź", "říj", "lok", "окт"],
    &["nov", "lis", "ноя"],
    &["dez", "déc", "dic", "dec", "des", "gru", "pro", "jou", "дек"],
];

impl<'a> Scan<'a> {
    const fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, year: None, month: 1, day: 1, time: 0, zone: None, epoch: None }
    }

    fn is_at_an_end(&self) -> bool {
        matches!(self.peek(), None | Some(b' ' | b':'))
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        (self.peek() == Some(wanted)).then(|| self.at += 1)
    }

    /// The value of exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        self.number(count, count)
    }

    /// The value of the first `most` digits, or of as many as there are, which must be at least `least`.
    fn number(&mut self, least: usize, most: usize) -> Option<i64> {
        let digits = self.rest().iter().take(most).take_while(|byte| byte.is_ascii_digit());
        let (count, value) =
            digits.fold((0, 0), |(count, value), digit| (count + 1, value * 10 + i64::from(digit - b'0')));
        (least <= count).then(|| {
            self.at += count;
            value
        })
    }

    fn weekday(&mut self) -> Option<()> {
        let name = self.rest().first_chunk::<3>()?;
        WEEKDAYS.contains(&name).then(|| self.at += 3)?;
        self.byte(b' ')
    }

    /// The name of a month, and the space after it.
    fn month(&mut self) -> Option<()> {
        let rest = self.rest();
        if let Some(at) = rest.first_chunk::<3>().and_then(|name| MONTHS.iter().position(|month| *month == name)) {
            self.at += 3;
            self.month = u8::try_from(at + 1).ok()?;
            return self.byte(b' ');
        }
        // Rejects most of what is not a month without a search: the longest name has ten bytes, and a space follows it.
        let length = rest.iter().take(12).position(|byte| *byte == b' ')?;
        let name = rest.get(..length)?;
        if name.starts_with(BOM) || name.iter().any(u8::is_ascii_digit) {
            return None;
        }
        let name = str::from_utf8(name.strip_suffix(b".").unwrap_or(name)).ok()?.to_lowercase();
        let at = LOCAL_MONTHS.iter().position(|names| names.contains(&name.as_str()))?;
        self.month = u8::try_from(at + 1).ok()?;
        self.at += length;
        self.byte(b' ')
    }

    /// `HH:MM:SS` with an optional fraction.
    fn time(&mut self) -> Option<()> {
        let hours = self.digits(2)?;
        self.byte(b':')?;
        let minutes = self.digits(2)?;
        self.byte(b':')?;
        let seconds = self.digits(2)?;
        self.time = ((hours * 60 + minutes) * 60 + seconds) * 1000;
        if matches!(self.peek(), Some(b'.' | b',')) {
            self.at += 1;
            let begin = self.at;
            let fraction = self.number(1, 9)?;
            let digits = u32::try_from(self.at - begin).ok()?;
            self.time += fraction * 1000 / 10_i64.pow(digits);
        }
        Some(())
    }

    /// `Mon DD [YYYY] HH:MM:SS[.fraction] [YYYY]`.
    fn bsd(&mut self) -> Option<()> {
        self.month()?;
        while self.byte(b' ').is_some() {}
        self.day = u8::try_from(self.number(1, 2)?).ok()?;
        self.byte(b' ')?;
        if self.text.get(self.at + 4) == Some(&b' ') {
            self.year = Some(self.digits(4)?);
            self.at += 1;
        }
        self.time()?;
        self.year_after();
        // Cisco: `18:48:50.483 UTC: %SYS-5-CONFIG_I: …`. Without a colon, the word is a hostname.
        let (end, zone) = (self.at, self.zone);
        self.zone_name();
        if self.peek() != Some(b':') {
            (self.at, self.zone) = (end, zone);
        }
        Some(())
    }

    /// ` 20YY` after the time, or ` 19YY` of a clock that was never set.
    fn year_after(&mut self) {
        let year =
            self.text.get(self.at..self.at + 5).filter(|year| year.starts_with(b" 20") || year.starts_with(b" 19"));
        let is_year = year.is_some_and(|year| year.iter().skip(1).all(u8::is_ascii_digit));
        let after = self.text.get(self.at + 5..).unwrap_or_default();
        // `2001:db8::1` is a hostname, not a year.
        if is_year && (after.is_empty() || after.starts_with(b" ") || after.starts_with(b": ")) {
            self.at += 1;
            self.year = self.digits(4);
        }
    }

    /// A space and three to five capital letters.
    fn zone_name(&mut self) {
        let Some(rest) = self.rest().strip_prefix(b" ") else { return };
        let letters = rest.iter().take(6).take_while(|byte| byte.is_ascii_uppercase()).count();
        if (3..=5).contains(&letters) && matches!(rest.get(letters), None | Some(b' ' | b':')) {
            self.at += 1 + letters;
            // Other names stand for several zones.
            if matches!(rest.get(..letters), Some(b"UTC" | b"GMT")) {
                self.zone = Some(0);
            }
        }
    }

    /// `YYYY-MM-DDTHH:MM:SS[.fraction][zone]`.
    fn iso(&mut self) -> Option<()> {
        self.year = Some(self.digits(4)?);
        self.byte(b'-')?;
        self.month = u8::try_from(self.digits(2)?).ok()?;
        self.byte(b'-')?;
        self.day = u8::try_from(self.digits(2)?).ok()?;
        match self.peek()? {
            b'T' | b't' | b' ' => self.at += 1,
            _ => return None,
        }
        self.time()?;
        match self.peek() {
            Some(b'Z' | b'z') => {
                self.at += 1;
                self.zone = Some(0);
            }
            Some(sign @ (b'+' | b'-')) => {
                self.at += 1;
                let mut zone = self.digits(2)? * 60;
                // A colon after the hours can also be the end of the timestamp (Cisco).
                let minutes = self.at + usize::from(self.peek() == Some(b':'));
                if self.text.get(minutes).is_some_and(u8::is_ascii_digit) {
                    self.at = minutes;
                    zone += self.digits(2)?;
                }
                self.zone = Some(if sign == b'-' { -zone } else { zone });
            }
            _ => {}
        }
        Some(())
    }

    /// Ten digits, a point and a fraction.
    fn epoch(&mut self) -> Option<()> {
        self.epoch = Some(self.number(10, 10)?);
        self.byte(b'.')?;
        self.number(1, 9).map(|_| ())
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
            "Jan  1 00:00:07 1970",
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
            "Nov 22 20:00:00.1234567890",
            "2026-11-22T20:00:00.1234567890",
            "1793664000.1234567890",
            "Novem 22 20:00:00",
            "lis 22 20:00",
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

    #[test]
    fn months_of_other_locales_are_recognised() {
        for (name, month) in [
            ("Dez", 12),
            ("Mär", 3),
            ("Mrz", 3),
            ("Okt", 10),
            ("Mai", 5),
            ("févr.", 2),
            ("août", 8),
            ("déc.", 12),
            ("juil.", 7),
            ("ene", 1),
            ("dic", 12),
            ("ago", 8),
            ("gen", 1),
            ("ott", 10),
            ("mrt", 3),
            ("nov", 11),
            ("out", 10),
            ("paź", 10),
            ("wrz", 9),
            ("čec", 7),
            ("říj", 10),
            ("szept.", 9),
            ("янв", 1),
            ("Май", 5),
        ] {
            let text = format!("{name} 22 20:00:00");
            assert_eq!(measure(text.as_bytes()), Some(text.len()), "{text}");
            assert_eq!(read(text.as_bytes()), Some(Written::Yearless { month, day: 22, time: 72_000_000 }), "{text}");
        }
    }

    #[test]
    fn timestamps_are_read() {
        let midnight = days(2026, 11, 22) * 86_400_000;
        let at = |hours: i64, millis: i64| midnight + hours * 3_600_000 + millis;
        for (text, wanted) in [
            ("2026-11-22T20:00:00", Written::Local(at(20, 0))),
            ("2026-11-22 20:00:00,5", Written::Local(at(20, 500))),
            ("Nov 22 2026 20:00:00", Written::Local(at(20, 0))),
            ("Nov 22 20:00:00 2026", Written::Local(at(20, 0))),
            ("2026 Nov 22 20:00:00", Written::Local(at(20, 0))),
            ("Sun Nov 22 20:00:00 2026", Written::Local(at(20, 0))),
            ("2026-11-22T20:00:00Z", Written::Exact(at(20, 0))),
            ("2026-11-22T20:00:00.123456+01:00", Written::Exact(at(19, 123))),
            ("2026-11-22T20:00:00-0130", Written::Exact(at(21, 1_800_000))),
            ("2026-11-22T20:00:00+01", Written::Exact(at(19, 0))),
            ("Sun 2026-11-22 20:00:00 UTC", Written::Exact(at(20, 0))),
            ("Sun 2026-11-22 20:00:00 CET", Written::Local(at(20, 0))),
            ("1793664000.123456", Written::Exact(1_793_664_000_000)),
            ("*Mar  1 18:48:50.483", Written::Yearless { month: 3, day: 1, time: 67_730_483 }),
        ] {
            assert_eq!(read(text.as_bytes()), Some(wanted), "{text}");
        }
    }
}
