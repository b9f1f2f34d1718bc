//! Steps of the wall clock: noticed by comparing it with a clock that nobody sets.
//!
//! Everything that ends does so by the wall clock. When an administrator, NTP or a hypervisor sets that clock, entries seem to
//! have expired that have not. So after a step nothing is swept for [`SUSPENSION`]: enough for a second correction, for the other
//! nodes' clocks, and for a person to look.
//!
//! The other clock must go on while the machine is suspended: the wall clock does, and what ended during a suspend has ended.
//! On Linux that is `CLOCK_BOOTTIME`. `CLOCK_MONOTONIC`, which `std::time::Instant` reads, stands still meanwhile and would make
//! a step of every suspend. Both are slewed by NTP together with the wall clock, so slewing is hardly visible in the difference.

use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// A difference up to this is no step. Bans end on whole seconds, a leap second moves the clock by one, and a busy machine may
/// stop for a moment between the reading of one clock and the other; ntpd and chrony step from 128 ms or 1 s on, but a step
/// as small as that changes no decision.
pub const THRESHOLD: Duration = Duration::from_secs(2);

/// What the clocks may drift apart in addition, in parts per million of the time between two readings: twice the 500 ppm by which
/// NTP slews at most.
pub const DRIFT_PPM: u32 = 1_000;

/// How long nothing is swept after a step.
pub const SUSPENSION: Duration = Duration::from_secs(15 * 60);

/// Both clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The clock that can be set.
    pub wall: UnixMillis,
    /// The clock that cannot, from any beginning.
    pub steady: Duration,
}

/// That the wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// By how many milliseconds it was set forward; back, when negative.
    pub by_ms: i64,
    /// When it was noticed, by the wall clock after the step.
    pub noticed: UnixMillis,
}

/// Watches the clocks from one reading to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClockWatch {
    last: Option<Reading>,
    step: Option<Step>,
    sweep_after: Duration,
}

impl ClockWatch {
    /// Takes a reading, and returns the step that lies between this one and the one before.
    ///
    /// Only neighbours are compared, so slewing never adds up. To be called every second or so: the longer the time between two
    /// readings, the larger a step must be.
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

    /// The last step, for `status`.
    pub const fn last_step(&self) -> Option<Step> {
        self.step
    }

    /// For how much longer nothing may be swept; `None` when sweeping is in order. `steady` is the clock that cannot be set.
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
    fn an_hour_back_and_two_forward_are_two_steps() {
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
    fn sweeping_is_suspended_for_a_quarter_of_an_hour_after_the_last_step() {
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
    fn neither_a_leap_second_nor_a_suspend_is_a_step() {
        let mut watch = watching();
        assert_eq!(watch.read(at(1_000, -1_000)), None, "a leap second");
        // Eight hours with the lid closed: both clocks went on.
        assert_eq!(watch.read(at(8 * 3_600_000, -1_000)), None);
        // Over which the battery-backed clock may have drifted further than NTP slews in a second.
        assert_eq!(watch.read(at(16 * 3_600_000, 20_000)), None);
    }

    proptest! {
        #[test]
        fn slewing_is_never_a_step(
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
        fn every_step_beyond_the_threshold_is_noticed_with_its_size(
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
