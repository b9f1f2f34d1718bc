//! Numbers, ages and times in the words of people.

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use crate::operation::words::{count, number, span};

/// The zone in which times are printed.
#[derive(Clone, Debug)]
pub struct Zone {
    zone: TimeZone,
}

impl Zone {
    /// The zone of this host, from `TZ` or `/etc/localtime`. UTC if it is unknown.
    pub fn local() -> Self {
        Self { zone: TimeZone::try_system().unwrap_or(TimeZone::UTC) }
    }

    /// UTC.
    pub const fn utc() -> Self {
        Self { zone: TimeZone::UTC }
    }

    /// A time of the API (RFC 3339 in UTC) in this zone, such as `2027-01-31 13:00:00 CET`. Texts that are not times are returned as they are.
    pub fn show(&self, time: &str) -> String {
        match time.parse::<Timestamp>() {
            Ok(time) => time.to_zoned_datetime(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
            Err(_) => time.to_owned(),
        }
    }
}

/// How long ago something was, such as `6 min ago`.
pub fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", span(seconds)) }
}

/// How long ago something was; `never` if it was not.
pub fn ago_or_never(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), ago)
}

/// Milliseconds in the unit that fits, such as `12 ms`, `1.5 s` or `6 min`.
pub fn milliseconds(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        _ => span(milliseconds / 1000),
    }
}

/// `line` cut to `width` characters, with an ellipsis if something is missing.
pub fn fit(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept: String = line.chars().take(width.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_durations_have_the_unit_that_people_use() {
        for (seconds, text) in
            [(0, "now"), (59, "59 s ago"), (378, "6 min ago"), (7200, "2 h ago"), (200_000, "2 days ago")]
        {
            assert_eq!(ago(seconds), text);
        }
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1540, "1.5 s"), (378_874, "6 min")] {
            assert_eq!(milliseconds(ms), text);
        }
        assert_eq!(ago_or_never(None), "never");
    }

    #[test]
    fn long_lines_are_cut_to_the_width() {
        assert_eq!(fit("short", 5), "short");
        assert_eq!(fit("a long äöü line", 8), "a long…");
    }

    #[test]
    fn times_are_in_the_zone_with_its_name() {
        assert_eq!(Zone::utc().show("2027-01-15T08:00:20Z"), "2027-01-15 08:00:20 UTC");
        assert_eq!(Zone::utc().show("never"), "never");
        let berlin = Zone { zone: TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap() };
        assert_eq!(berlin.show("2027-07-15T08:00:20Z"), "2027-07-15 10:00:20 CEST");
    }
}
