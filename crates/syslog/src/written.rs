//! When a line was written, as far as its timestamp says so.

/// A timestamp's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Milliseconds since 1970 (UTC). The timestamp names the zone.
    Exact(i64),
    /// The same, for a timestamp without a zone, as if it were in UTC.
    Local(i64),
    /// A timestamp without a year and a zone.
    Yearless {
        /// 1 to 12.
        month: u8,
        /// 1 to 31.
        day: u8,
        /// Milliseconds since midnight.
        time: i64,
    },
}

const DAY: i64 = 86_400_000;

impl Written {
    /// The time of a timestamp, in any format that a header may have.
    pub fn read(timestamp: &[u8]) -> Option<Self> {
        crate::timestamp::read(timestamp)
    }

    /// Milliseconds since 1970, as if a time without a zone were in UTC. A missing year is the one that brings the time closest to `now`
    /// (milliseconds since 1970).
    pub fn millis(self, now: i64) -> i64 {
        match self {
            Self::Exact(at) | Self::Local(at) => at,
            Self::Yearless { month, day, time } => {
                let year = 1970 + now.div_euclid(DAY).div_euclid(366);
                let candidates = (year - 1..=year + 2).map(|year| days(year, month, day) * DAY + time);
                candidates.min_by_key(|at| at.abs_diff(now)).unwrap_or(now)
            }
        }
    }
}

/// The days from 1970-01-01 to a day of the Gregorian calendar. A day that does not exist is a later one.
pub(crate) fn days(year: i64, month: u8, day: u8) -> i64 {
    // The year begins in March here, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, i64::from(month) - 3) } else { (year - 1, i64::from(month) + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + i64::from(day) - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        for (year, month, day, wanted) in [
            (1970, 1, 1, 0),
            (1969, 12, 31, -1),
            (2000, 2, 29, 11_016),
            (2000, 3, 1, 11_017),
            (2026, 11, 22, 20_779),
            (2100, 3, 1, 47_541),
        ] {
            assert_eq!(days(year, month, day), wanted, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn a_missing_year_is_the_closest_one() {
        let at = |year, month, day| days(year, month, day) * DAY;
        for (now, month, day, wanted) in [
            (at(2026, 11, 29), 11, 22, at(2026, 11, 22)),
            (at(2027, 1, 1), 12, 31, at(2026, 12, 31)),
            (at(2026, 12, 31), 1, 1, at(2027, 1, 1)),
            (at(2026, 1, 2), 12, 30, at(2025, 12, 30)),
            (at(2000, 12, 31), 12, 31, at(2000, 12, 31)),
            (at(2026, 5, 31), 12, 10, at(2025, 12, 10)),
            (at(1970, 1, 2), 1, 1, 0),
        ] {
            for time in [0, 72_000_000] {
                let written = Written::Yearless { month, day, time };
                assert_eq!(written.millis(now), wanted + time, "{month}-{day} at {now}");
            }
        }
    }
}
