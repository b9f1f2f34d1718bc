//! Points in time, ends and durations. Nothing here reads a clock: callers pass `now`.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::DateTime;

/// Milliseconds since the Unix epoch (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Returns the time `span` later, or the latest possible time on overflow.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the time `span` earlier, or the epoch if that is later.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the time elapsed since `earlier`, or zero if `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the whole seconds since the epoch, rounded down. Times beyond the range of [`Expiry`] give its last second.
    pub fn second(self) -> u32 {
        u32::try_from(self.0 / 1000).unwrap_or(u32::MAX - 1)
    }
}

/// When a ban or an allowlist entry ends: a whole second since the Unix epoch, or never.
///
/// Whole seconds keep the table small and let one atomic word hold an address and its expiry. Ends are rounded up, so nothing
/// ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry(u32);

impl Expiry {
    /// Permanent. Greater than every other expiry.
    pub const NEVER: Self = Self(u32::MAX);
    /// The epoch, which has always passed. Smaller than every other expiry.
    pub const PAST: Self = Self(0);

    /// Returns the first whole second at or after `at`.
    pub fn at(at: UnixMillis) -> Self {
        Self(u32::try_from(at.0.div_ceil(1000)).unwrap_or(u32::MAX - 1).min(u32::MAX - 1))
    }

    /// Returns the first whole minute at or after `at`. Retentions are whole minutes, so that replicas remove an entry together.
    pub fn at_minute(at: UnixMillis) -> Self {
        let minutes = at.0.div_ceil(60_000).min(u64::from(u32::MAX / 60 - 1));
        Self(u32::try_from(minutes * 60).unwrap_or(u32::MAX - 1))
    }

    /// Returns the seconds since the epoch; `u32::MAX` means never.
    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// Creates an expiry from what [`Expiry::seconds`] returns.
    pub const fn from_seconds(seconds: u32) -> Self {
        Self(seconds)
    }

    /// Returns `true` if the end has passed at `now`. An expiry passes when its second begins.
    pub fn has_passed(self, now: UnixMillis) -> bool {
        self != Self::NEVER && u64::from(self.0) * 1000 <= now.0
    }

    /// Returns the time left at `now`: zero once the end has passed, `None` if it never ends.
    pub fn remaining(self, now: UnixMillis) -> Option<Duration> {
        (self != Self::NEVER).then(|| UnixMillis(u64::from(self.0) * 1000).since(now))
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NEVER { f.write_str("never") } else { write_utc(f, u64::from(self.0)) }
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_utc(f, self.0 / 1000)
    }
}

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// Writes RFC 3339 in UTC. Times after the year 9999 are written as its last second.
fn write_utc(f: &mut fmt::Formatter<'_>, seconds: u64) -> fmt::Result {
    let since_epoch = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    let time = EPOCH.checked_add(since_epoch).unwrap_or(DateTime::constant(9999, 12, 31, 23, 59, 59, 0));
    write!(f, "{time}Z")
}

/// A text that is not a valid time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a valid time: write it in UTC, such as 2027-01-31 or 2027-01-31T12:00:00Z")]
pub struct TimeError(pub String);

/// Reads a time as [`UnixMillis`] displays it (RFC 3339 in UTC), or a date, which means its midnight. The years are 1970 to 9999.
impl std::str::FromStr for UnixMillis {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let error = || TimeError(text.chars().take(40).collect());
        let written = match text.len() {
            10 => format!("{text}T00:00:00"),
            20 => text.strip_suffix('Z').ok_or_else(error)?.to_owned(),
            _ => return Err(error()),
        };
        let time: DateTime = written.parse().map_err(|_| error())?;
        // jiff accepts more forms than the one that is written here.
        if time.to_string() != written {
            return Err(error());
        }
        let millis = time.duration_since(EPOCH).as_millis();
        u64::try_from(millis).map(Self).map_err(|_| error())
    }
}

/// A duration with a readable text form: `90s`, `5m`, `1h30m`, `3d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is not a valid duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write a number and a unit, such as 500ms, 30s, 5m, 24h, 3d, or a sum such as 1h30m")]
pub struct SpanError(pub String);

impl std::str::FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = || SpanError(text.to_owned());
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(error());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit_ms: u64 = match &rest[..letters] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                "w" => 7 * 86_400_000,
                _ => return Err(error()),
            };
            rest = &rest[letters..];
            let part = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(error)?;
            total = total.checked_add(part).ok_or_else(error)?;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if millis >= size {
                // One day is usually written `24h`, so `d` starts at two days.
                if unit == "d" && millis < 2 * size {
                    continue;
                }
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_and_invalid_ones_are_refused() {
        for text in ["1970-01-01T00:00:00Z", "2000-02-29T23:59:59Z", "2026-11-22T20:45:09Z", "9999-12-31T00:00:01Z"] {
            assert_eq!(text.parse::<UnixMillis>().unwrap().to_string(), text);
        }
        assert_eq!("2027-01-31".parse(), Ok(UnixMillis(1_801_353_600_000)));
        for wrong in [
            "",
            "2027",
            "2027-02-29",
            "2027-13-01",
            "2027-1-1",
            "1969-12-31",
            "2027-01-01T00:00:00",
            "2027-01-01T24:00:00Z",
            "2027-01-01T00:00Z",
            "2027-01-01T00:00:00+01:00",
            "2027-01-01 00:00:00Z",
            "+027-01-01",
            "2027-01-01-01",
            "2027-01-01T00:00:60Z",
            "2027-01-01T00:00:00.5Z",
            "2027-01-01t00:00:00Z",
            "20270101T000000Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(wrong.parse::<UnixMillis>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_expiry_rounds_up_and_passes_when_its_second_begins() {
        let expiry = Expiry::at(UnixMillis(1_001));
        assert_eq!(expiry.seconds(), 2);
        assert!(!expiry.has_passed(UnixMillis(1_999)));
        assert!(expiry.has_passed(UnixMillis(2_000)));
        assert!(!Expiry::NEVER.has_passed(UnixMillis(u64::MAX)));
        assert_eq!(Expiry::at_minute(UnixMillis(60_001)).seconds(), 120);
        assert_eq!(expiry.remaining(UnixMillis(500)), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn times_are_displayed_as_rfc_3339() {
        assert_eq!(UnixMillis(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(UnixMillis(951_782_400_000).to_string(), "2000-02-29T00:00:00Z");
        assert_eq!(Expiry::from_seconds(1_793_664_000).to_string(), "2026-11-03T00:00:00Z");
        assert_eq!(Expiry::NEVER.to_string(), "never");
        assert_eq!(Expiry::from_seconds(u32::MAX - 1).to_string(), "2106-02-07T06:28:14Z");
        assert_eq!(UnixMillis(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn durations_round_trip_and_invalid_ones_are_refused() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("24h", 86_400), ("1h30m", 5400), ("3d", 259_200), ("0", 0)] {
            assert_eq!(text.parse::<Span>().unwrap().0, Duration::from_secs(seconds), "{text}");
        }
        for text in ["30s", "5m", "24h", "1h30m", "3d", "500ms", "1m1s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["", "5", "m", "5x", "-5m", "5m 3", "99999999999999999999s", "9999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
