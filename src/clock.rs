//! The clocks, read in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use banmesh_core::clock_step::Reading;
use banmesh_types::time::UnixMillis;

/// The time now. A clock before 1970 reads as the epoch.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock and the clock that nobody sets, read at the same moment, for [`banmesh_core::clock_step`]. `None` where the
/// system has no such clock, or was so busy that the two readings would not belong together.
pub fn reading() -> Option<Reading> {
    let before = steady()?;
    let wall = now();
    let after = steady()?;
    (after.saturating_sub(before) < TOGETHER).then_some(Reading { wall, steady: after })
}

/// Readings that lie within this belong together.
const TOGETHER: Duration = Duration::from_millis(100);

/// How long the system has run, the time included during which it was suspended.
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
    fn the_clocks_are_read_together() {
        let (before, reading, after) = (now(), std::iter::repeat_with(reading).take(100).flatten().next(), now());
        let reading = reading.unwrap();
        assert!((before..=after).contains(&reading.wall) && reading.steady > Duration::ZERO);
    }
}
