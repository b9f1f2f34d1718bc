//! Hybrid logical clocks: the order of writes across nodes whose clocks differ (Kulkarni et al., "Logical Physical
//! Clocks and Consistent Snapshots in Globally Distributed Databases", 2014).

use std::time::Duration;

use super::node::NodeId;
use super::time::UnixMillis;

/// 48 bits of milliseconds since the epoch, then a counter of 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first reading of the millisecond `now`.
    pub const fn first_of(now: UnixMillis) -> Self {
        Self(now.0 << 16)
    }

    /// The wall-clock part.
    pub const fn millis(self) -> UnixMillis {
        UnixMillis(self.0 >> 16)
    }

    /// The next reading; `None` after the greatest. A counter that overflows runs into the next millisecond, which keeps the
    /// order.
    pub const fn checked_next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }

    /// How far it runs ahead of `now`.
    pub fn ahead_of(self, now: UnixMillis) -> Duration {
        self.millis().since(now)
    }
}

/// When and by whom something was written: unique for every write of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The clock's reading.
    pub hlc: Hlc,
    /// The author, which breaks ties.
    pub node: NodeId,
}

/// Why a local write got no stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockExhausted {
    /// The node's own clock stands at the end.
    #[error(
        "the logical clock of this node is exhausted, so nothing more can be written; set the system clock right, and \
         cluster.max_clock_drift to less than an hour: the logical clock then starts over by itself"
    )]
    Node,
    /// The entry to replace has the greatest stamp.
    #[error(
        "the logical clock is exhausted for this entry: its stamp is the greatest possible, so nothing can replace it before \
         its retention ends"
    )]
    Entry,
}

/// A node's clock. Its readings only rise, also when the wall clock is set back, with one exception: [`Clock::tick`]
/// starts over when the clock is further ahead than `max_drift`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// A clock that goes on after `last`, as kept by the journal.
    pub const fn resume(last: Hlc) -> Self {
        Self { last }
    }

    /// The greatest reading so far.
    pub const fn last(&self) -> Hlc {
        self.last
    }

    /// A reading for a local write: greater than all before, and greater than `stored`, the stamp that it replaces.
    ///
    /// A clock that finds itself further ahead of `now` than `max_drift` was set back: it starts over from `now`, for
    /// peers would hold back what it writes. The write still beats the one it replaces.
    ///
    /// # Errors
    /// When no reading is left that is greater. The clock stays as it was.
    pub fn tick(&mut self, now: UnixMillis, stored: Option<Hlc>, max_drift: Duration) -> Result<Hlc, ClockExhausted> {
        let last = if self.last.ahead_of(now) > max_drift { Hlc::default() } else { self.last };
        let next = Hlc::first_of(now).max(last.checked_next().ok_or(ClockExhausted::Node)?);
        let reading = match stored {
            Some(stored) => next.max(stored.checked_next().ok_or(ClockExhausted::Entry)?),
            None => next,
        };
        self.last = next;
        Ok(reading)
    }

    /// Takes note of a reading that another node made, so that local writes follow it.
    pub fn observe(&mut self, remote: Hlc) {
        self.last = self.last.max(remote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRIFT: Duration = Duration::from_secs(10);

    #[test]
    fn a_write_beats_what_it_replaces_whatever_the_clocks_say() {
        let mut clock = Clock::default();
        let ahead = Hlc::first_of(UnixMillis(1_000_000));
        let stamp = clock.tick(UnixMillis(5), Some(ahead), DRIFT).unwrap();
        assert!(stamp > ahead);
    }

    #[test]
    fn a_wall_clock_that_was_set_back_does_not_leave_the_node_ahead_of_its_peers() {
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(600_000)));
        assert_eq!(clock.tick(UnixMillis(1_000), None, DRIFT).unwrap().millis(), UnixMillis(1_000));
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(6_000)));
        assert!(clock.tick(UnixMillis(1_000), None, DRIFT).unwrap() > Hlc::first_of(UnixMillis(6_000)));
    }

    #[test]
    fn an_idle_clock_shows_the_wall_clock() {
        assert_eq!(Clock::default().tick(UnixMillis(77), None, DRIFT).unwrap().millis(), UnixMillis(77));
    }

    #[test]
    fn a_clock_at_its_end_refuses_to_stamp_and_stays_where_it_is() {
        const FOREVER: Duration = Duration::MAX;
        let mut clock = Clock::resume(Hlc(u64::MAX - 1));
        assert_eq!(clock.tick(UnixMillis(5), None, FOREVER), Ok(Hlc(u64::MAX)));
        for _ in 0..2 {
            assert_eq!(clock.tick(UnixMillis(5), None, FOREVER), Err(ClockExhausted::Node));
            assert_eq!(clock.last(), Hlc(u64::MAX));
        }
        // With a usual drift it starts over from the wall clock, but no write beats the greatest stamp.
        assert_eq!(clock.tick(UnixMillis(5), Some(Hlc(u64::MAX)), DRIFT), Err(ClockExhausted::Entry));
        assert_eq!(clock.last(), Hlc(u64::MAX));
        assert_eq!(clock.tick(UnixMillis(5), None, DRIFT).map(Hlc::millis), Ok(UnixMillis(5)));
    }

    proptest! {
        #[test]
        fn readings_rise(steps in proptest::collection::vec((0u64..1_000, proptest::option::of(0u64..(9_000 << 16))), 1..50)) {
            let mut clock = Clock::default();
            let mut last = Hlc(0);
            for (now, remote) in steps {
                if let Some(remote) = remote {
                    clock.observe(Hlc(remote));
                }
                let reading = clock.tick(UnixMillis(now), None, DRIFT).unwrap();
                prop_assert!(reading > last);
                prop_assert!(remote.is_none_or(|remote| reading > Hlc(remote)));
                last = reading;
            }
        }
    }
}
