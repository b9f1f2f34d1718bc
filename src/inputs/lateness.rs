//! Judges how late the lines of one sender arrive, from the times in them.
//!
//! A sender's clock, zone and year may be wrong, so a time says little by itself. The difference between a line's time and the time of
//! its arrival is the same for all lines that arrive when they are written. That difference is a *level* of the sender. A line
//! that waited in a queue lies above the level by the time that it waited, because a line cannot arrive before it is written.
//!
//! The first line of a sender sets its level. For times that name their zone the level is 0, so they are judged by the clock. A
//! sender whose clock is set, or whose zone changes, writes lines above its level from then on. A queue that is delivered does so as well,
//! but it comes closer to the level with every line. So a difference that stays the same for `CONFIRM` becomes a level.
//! While lines arrive faster than they were written, nobody knows yet how late the first of them are: the sender is not settled.

use std::time::Duration;

/// How much the difference of lines that arrive at once may vary, in milliseconds: many times have whole seconds only.
const SLACK: i64 = 1500;

/// How long a difference must last to become a level, in milliseconds.
const CONFIRM: i64 = 60_000;

/// How many lines must show it.
const CONFIRM_LINES: u32 = 3;

/// How long after its last line that was later written than all others a sender is settled, in milliseconds.
const SETTLE: i64 = 2000;

/// The limit on levels of one sender. Two programs behind one name may write in different zones.
const LEVELS: usize = 4;

/// Zones differ by multiples of this, in milliseconds.
const ZONE_STEP: i64 = 15 * 60_000;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// What is known about the clock of one sender.
#[derive(Clone, Debug, Default)]
pub struct SenderClock {
    /// Differences of lines that arrived at once, the latest first.
    levels: Vec<i64>,
    trial: Option<Trial>,
    /// When the sender is settled.
    settled_at: i64,
    /// The time and the difference of the last line.
    last: Option<(i64, i64)>,
}

/// A difference that may become a level.
#[derive(Clone, Copy, Debug)]
struct Trial {
    since: i64,
    lines: u32,
    first: i64,
    lowest: i64,
}

/// One line, as judged when it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The difference between the arrival and the time in the line; see [`SenderClock::lateness`].
    pub difference: i64,
    /// When the sender will be settled, if it is not yet.
    pub unsettled_until: Option<i64>,
    /// The sender's clock has been behind by this much for `CONFIRM`; from now on it is taken to be wrong.
    pub adopted: Option<Duration>,
}

impl SenderClock {
    /// The clock of a sender whose times name their zone.
    pub fn exact() -> Self {
        Self { levels: vec![0], ..Self::default() }
    }

    /// Takes a line with the time `written` that arrives at `now`, both in milliseconds.
    pub fn observe(&mut self, now: i64, written: i64) -> Reading {
        // A repeated time counts from when it was first seen. A clock may stand still.
        let difference = match self.last {
            Some((time, difference)) if time == written => difference,
            _ => now.saturating_sub(written),
        };
        self.last = Some((written, difference));
        let mut adopted = None;
        match self.level(difference) {
            Some(at) => {
                let level = self.levels.remove(at);
                let late = difference.saturating_sub(level);
                self.levels.insert(0, level.min(difference));
                if late > SLACK {
                    adopted = self.try_level(now, difference, late);
                }
            }
            None => self.earliest(now, difference),
        }
        Reading { difference, unsettled_until: self.unsettled_until(now), adopted }
    }

    /// How late a line with this difference is, by what is known now.
    pub fn lateness(&self, difference: i64) -> Duration {
        let late = self.level(difference).and_then(|at| self.levels.get(at)).map_or(0, |level| difference - level);
        Duration::from_millis(u64::try_from(without_years(late)).unwrap_or_default())
    }

    /// When the sender will be settled, if it is not at `now`.
    pub fn unsettled_until(&self, now: i64) -> Option<i64> {
        Some(self.settled_at).filter(|at| *at > now)
    }

    /// The position of the level that the difference is closest to, of those that are not above it.
    fn level(&self, difference: i64) -> Option<usize> {
        let below = self.levels.iter().enumerate().filter(|(_, level)| **level <= difference.saturating_add(SLACK));
        below.max_by_key(|(_, level)| **level).map(|(at, _)| at)
    }

    /// A line that is written later, in relation to its arrival, than every other one.
    fn earliest(&mut self, now: i64, difference: i64) {
        let first = self.levels.is_empty();
        if self.settled_at > now {
            self.levels.remove(0);
        }
        self.levels.insert(0, difference);
        self.levels.truncate(LEVELS);
        if !first || may_have_waited(difference) {
            self.settled_at = now.saturating_add(SETTLE);
        }
    }

    /// A line that is late, or comes from a clock that was set.
    fn try_level(&mut self, now: i64, difference: i64, late: i64) -> Option<Duration> {
        let fresh = Trial { since: now, lines: 0, first: difference, lowest: difference };
        let mut trial = self.trial.unwrap_or(fresh);
        trial.lines = trial.lines.saturating_add(1);
        trial.lowest = trial.lowest.min(difference);
        let lasted = now.saturating_sub(trial.since);
        if lasted < CONFIRM || trial.lines < CONFIRM_LINES {
            self.trial = Some(trial);
            return None;
        }
        // A queue is delivered faster than it was filled.
        if trial.first.saturating_sub(trial.lowest) > lasted / 2 {
            self.trial = Some(fresh);
            return None;
        }
        self.trial = None;
        self.levels.insert(0, trial.lowest);
        self.levels.truncate(LEVELS);
        Some(Duration::from_millis(u64::try_from(late).unwrap_or_default()))
    }
}

/// Whether the first line of a sender may have waited for up to a day. Its zone is unknown, but a line that did not wait differs by a
/// multiple of [`ZONE_STEP`]. A greater difference is more probably a wrong clock or year.
const fn may_have_waited(difference: i64) -> bool {
    -14 * HOUR <= difference && difference <= DAY + 12 * HOUR && difference.rem_euclid(ZONE_STEP) > SLACK
}

/// Lateness without whole years, because a wrong year is more probable than a queue of a year.
fn without_years(late: i64) -> i64 {
    let years = (late + 183 * DAY) / (365 * DAY + DAY / 4);
    if years == 0 {
        return late;
    }
    let leap_days = (years / 4 - 1)..=(years / 4 + 1);
    let rest = leap_days.map(|leap_days| late - (years * 365 + leap_days) * DAY).min_by_key(|rest| rest.abs());
    rest.filter(|rest| rest.abs() < DAY / 2).unwrap_or(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const NOW: i64 = 1_795_000_000_000;

    /// How late the line is by what is known when it arrives.
    fn late(clock: &mut SenderClock, now: i64, written: i64) -> i64 {
        let reading = clock.observe(now, written);
        i64::try_from(clock.lateness(reading.difference).as_millis()).unwrap()
    }

    #[test]
    fn a_time_with_a_zone_is_judged_by_the_clock() {
        let mut clock = SenderClock::exact();
        assert_eq!(late(&mut clock, NOW, NOW - 50 * MINUTE), 50 * MINUTE);
        assert_eq!(late(&mut clock, NOW, NOW - 700), 700);
        assert_eq!(late(&mut clock, NOW, NOW + 7 * MINUTE), 0);
        assert_eq!(clock.observe(NOW, NOW - 3).unsettled_until.filter(|until| *until > NOW + SETTLE), None);
    }

    #[test]
    fn a_wrong_zone_or_year_does_not_make_lines_late() {
        for wrong in [0, -2 * HOUR, 5 * HOUR + 30 * MINUTE, 365 * DAY, 20_000 * DAY, -400 * DAY, 7 * DAY + 123_456] {
            let mut clock = SenderClock::default();
            for second in 0..100 {
                let now = NOW + second * 1000;
                assert_eq!(late(&mut clock, now, now - wrong), 0, "{wrong}");
            }
        }
        // The year changes to a wrong one.
        let mut clock = SenderClock::default();
        late(&mut clock, NOW, NOW);
        for years in [1, 3, 4, 56] {
            let days = years * 365 + years / 4;
            assert!(late(&mut clock, NOW, NOW - days * DAY - 500) < MINUTE, "{years}");
        }
        assert_eq!(late(&mut clock, NOW, NOW - 30 * DAY), 30 * DAY);
    }

    #[test]
    fn lines_that_waited_in_a_queue_are_late() {
        let mut clock = SenderClock::default();
        assert_eq!(late(&mut clock, NOW, NOW - 2 * HOUR), 0);
        let now = NOW + HOUR;
        for waited in [59, 45, 30, 15, 1] {
            assert_eq!(late(&mut clock, now, now - 2 * HOUR - waited * MINUTE), waited * MINUTE);
        }
        assert_eq!(late(&mut clock, now, now - 2 * HOUR), 0);
    }

    #[test]
    fn a_queue_that_is_delivered_by_an_unknown_sender_is_judged_when_it_ends() {
        for zone in [0, 2 * HOUR] {
            let mut clock = SenderClock::default();
            let waited = [58, 46, 34, 22, 10];
            let readings = waited.map(|minutes| clock.observe(NOW, NOW - zone - minutes * MINUTE));
            assert!(readings.iter().all(|reading| reading.unsettled_until == Some(NOW + SETTLE)));
            clock.observe(NOW + 500, NOW + 500 - zone);
            let late = readings.map(|reading| clock.lateness(reading.difference).as_secs() / 60);
            assert_eq!(late, [58, 46, 34, 22, 10]);
        }
        // A line that did not wait, and one from a clock that is wrong by days, are judged immediately.
        for wrong in [0, 700, HOUR, -3 * HOUR + 200, 3 * DAY + 7 * MINUTE] {
            assert_eq!(SenderClock::default().observe(NOW, NOW - wrong).unsettled_until, None, "{wrong}");
        }
    }

    #[test]
    fn a_clock_that_stays_behind_is_adopted_after_a_minute() {
        for (mut clock, wrong) in [(SenderClock::exact(), HOUR), (SenderClock::default(), HOUR)] {
            late(&mut clock, NOW, NOW);
            let mut adopted = Vec::new();
            for second in 1..=120 {
                let now = NOW + second * 1000;
                let reading = clock.observe(now, now - wrong);
                adopted.extend(reading.adopted.map(|by| (second, by.as_secs())));
                let late = clock.lateness(reading.difference).as_secs();
                assert_eq!(late, if second <= 60 { 3600 } else { 0 }, "{second}");
            }
            assert_eq!(adopted, [(61, 3600)]);
            // The other clock is still known.
            assert_eq!(late(&mut clock, NOW + 130_000, NOW + 130_000), 0);
        }
    }

    #[test]
    fn a_long_queue_is_not_taken_for_a_wrong_clock() {
        let mut clock = SenderClock::default();
        late(&mut clock, NOW - 1, NOW - 1);
        // Ten hours of lines in ten minutes.
        for second in 0..600 {
            let now = NOW + 10 * HOUR + second * 1000;
            let waited = 10 * HOUR - second * MINUTE + second * 1000;
            assert_eq!(late(&mut clock, now, now - waited), waited.max(0), "{second}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_does_not_make_lines_late() {
        let mut clock = SenderClock::default();
        for minute in 0..60 {
            assert_eq!(late(&mut clock, NOW + minute * MINUTE, NOW - 7 * DAY), 0);
        }
    }
}
