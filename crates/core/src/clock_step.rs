//! Detects steps of the wall clock by comparing it with a clock that cannot be set.
//!
//! Bans and retentions end by the wall clock. When an administrator, NTP or a hypervisor sets that clock forward, entries look
//! expired that are not. So nothing is swept for [`SUSPENSION`] after a step. That leaves time for a second correction, for the other
//! nodes' clocks, and for a person to look.
//!
//! The steady clock must keep running while the machine is suspended, as the wall clock does. On Linux that is `CLOCK_BOOTTIME`.
//! `CLOCK_MONOTONIC`, which `std::time::Instant` reads, stops during a suspend, so every suspend would look like a step. NTP slews both
//! clocks together with the wall clock, so slewing hardly shows in the difference.

use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// The largest difference that is not a step. Bans end on whole seconds, a leap second moves the clock by one, and a busy machine may
/// pause between reading the two clocks. ntpd and chrony step from 128 ms or 1 s on, but a step that small changes no decision.
pub const THRESHOLD: Duration = Duration::from_secs(2);

/// How much the clocks may drift apart in addition, in parts per million of the time between two readings: twice the 500 ppm by which
/// NTP slews at most.
pub const DRIFT_PPM: u32 = 1_000;

/// How long sweeping is suspended after a step.
pub const SUSPENSION: Duration = Duration::from_secs(15 * 60);

/// Both clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock, which can be set.
    pub wall: UnixMillis,
    /// The clock that cannot be set, counted from any starting point.
    pub steady: Duration,
}

/// A step of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds by which it was set: positive is forward, negative is back.
    pub by_ms: i64,
    /// When the step was detected, by the wall clock after it.
    pub noticed: UnixMillis,
}

/// Compares successive readings of the two clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClockWatch {
    last: Option<Reading>,
    step: Option<Step>,
    sweep_after: Duration,
}

impl ClockWatch {
    /// Takes a reading, and returns the step between the previous reading and this one, if there was one.
    ///
    /// Only successive readings are compared, so slewing never adds up. Call this about once per second: the longer the time between
    /// two readings, the larger a step must be to be detected.
    pub fn read(&mut self, reading: Reading) -> Option<Step> {
        let before = self.last.replace(reading)?;
        let passed = reading.steady.saturating_sub(before.steady);
        let walked = i128::from(reading.wall.0) - i128::from(before.wall.0);
        let apart = walked - i128::try_from(passed.as_millis()).unwrap_or(i128::MAX);
        let drift = passed.as_millis() * u128::from(DRIFT_PPM) / 1_000_000;
        if apart.unsigned_abs() <= THRESHOLD.as_millis() + drift {
            return None;
        }
        let by_ms = i64::try_from(apart).unwrap_or(if apart < 0 { i64::MIN } else { i64::MAX });
        let step = Step { by_ms, noticed: reading.wall };
        self.step = Some(step);
        self.sweep_after = reading.steady.saturating_add(SUSPENSION);
        Some(step)
    }

    /// Returns the last step, if any since the process started.
    pub const fn last_step(&self) -> Option<Step> {
        self.step
    }

    /// Returns how much longer sweeping is suspended, or `None` when it is allowed. `steady` is the present [`Reading::steady`].
    pub fn sweeping_suspended(&self, steady: Duration) -> Option<Duration> {
        self.step?;
        self.sweep_after.checked_sub(steady).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1_800_000_000_000;

    /// A reading `ms` after the start, by a wall clock that is `ahead` milliseconds ahead.
    fn at(ms: u64, ahead: i64) -> Reading {
        Reading { wall: UnixMillis((START + ms).saturating_add_signed(ahead)), steady: Duration::from_millis(ms) }
    }

    fn watching() -> ClockWatch {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.read(at(0, 0)), None);
        watch
    }

    #[test]
    fn a_step_back_and_a_step_forward_are_reported_once_each() {
        let mut watch = watching();
        for (ms, ahead, by_ms) in [(1_000, -3_600_000, -3_600_000), (2_000, 3_600_000, 7_200_000)] {
            let reading = at(ms, ahead);
            let step = Step { by_ms, noticed: reading.wall };
            assert_eq!(watch.read(reading), Some(step));
            assert_eq!(watch.last_step(), Some(step));
        }
        assert_eq!(watch.read(at(3_000, 3_600_000)), None, "once");
    }

    #[test]
    fn sweeping_is_suspended_for_15_minutes_after_the_last_step() {
        let mut watch = watching();
        assert_eq!(watch.sweeping_suspended(Duration::ZERO), None);
        watch.read(at(1_000, 10_000));
        watch.read(at(61_000, 0));
        let minute = Duration::from_secs(60);
        let suspended = |seconds| watch.sweeping_suspended(Duration::from_secs(seconds));
        assert_eq!(suspended(61), Some(SUSPENSION));
        assert_eq!(suspended(61 + 14 * 60), Some(minute));
        assert_eq!(suspended(61 + 15 * 60), None);
        assert_eq!(suspended(61 + 24 * 3600), None);
    }

    #[test]
    fn leap_seconds_and_suspends_are_not_steps() {
        let mut watch = watching();
        assert_eq!(watch.read(at(1_000, -1_000)), None, "a leap second");
        // Eight hours with the lid closed: both clocks went on.
        assert_eq!(watch.read(at(8 * 3_600_000, -1_000)), None);
        // Meanwhile the battery-backed clock may have drifted further than NTP slews in one second.
        assert_eq!(watch.read(at(16 * 3_600_000, 20_000)), None);
    }

    proptest! {
        #[test]
        fn slewing_is_not_a_step(
            pauses in proptest::collection::vec(1u64..100_000_000, 1..100),
            ppm in -500i64..=500,
        ) {
            let mut watch = watching();
            let mut passed = 0;
            for pause in pauses {
                passed += pause;
                let ahead = i64::try_from(passed).unwrap() * ppm / 1_000_000;
                prop_assert_eq!(watch.read(at(passed, ahead)), None);
            }
            prop_assert_eq!(watch.last_step(), None);
        }

        #[test]
        fn every_step_beyond_the_threshold_is_detected_with_its_size(
            pause in 1u64..60_000,
            slewed in -30i64..=30,
            size in 2_100i64..100_000_000,
            back: bool,
        ) {
            let by_ms = if back { -size } else { size };
            let mut watch = watching();
            let step = watch.read(at(pause, by_ms + slewed)).unwrap();
            prop_assert_eq!(step.by_ms, by_ms + slewed);
            prop_assert_eq!(step.by_ms < 0, back);
            prop_assert!(watch.sweeping_suspended(Duration::from_millis(pause)) == Some(SUSPENSION));
            prop_assert_eq!(watch.read(at(pause * 2, by_ms + slewed)), None);
        }

        #[test]
        fn no_readings_panic(readings: Vec<(u64, u64, u32)>) {
            let mut watch = ClockWatch::default();
            for (wall, seconds, nanos) in readings {
                let steady = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into()));
                watch.read(Reading { wall: UnixMillis(wall), steady });
                prop_assert!(watch.sweeping_suspended(steady).is_none_or(|left| left <= SUSPENSION));
                prop_assert_eq!(watch.last_step().is_none(), watch.step.is_none());
            }
        }
    }
}
