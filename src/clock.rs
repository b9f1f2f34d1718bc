//! The only place that reads the system's clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use banmesh_core::clock_step::Reading;
use banmesh_types::time::UnixMillis;

/// The time now. A clock before 1970 reads as the epoch.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock and the steady clock, which nobody can set, read at the same moment for [`banmesh_core::clock_step`]. `None` if the
/// system has no steady clock, or if it was too busy to read both within `TOGETHER`.
pub fn reading() -> Option<Reading> {
    let before = steady()?;
    let wall = now();
    let after = steady()?;
    (after.saturating_sub(before) < TOGETHER).then_some(Reading { wall, steady: after })
}

/// The longest time between two readings that count as simultaneous.
const TOGETHER: Duration = Duration::from_millis(100);

/// The system's uptime, including the time during which it was suspended.
fn steady() -> Option<Duration> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::CLOCK_MONOTONIC;
    clock_gettime(clock).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_read_at_the_same_moment() {
        let (before, reading, after) = (now(), std::iter::repeat_with(reading).take(100).flatten().next(), now());
        let reading = reading.unwrap();
        assert!((before..=after).contains(&reading.wall) && reading.steady > Duration::ZERO);
    }
}
