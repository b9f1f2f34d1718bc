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

    /// The next reading. A counter that overflows runs into the next millisecond, which keeps the order.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
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

/// A node's clock: never goes back, also when the wall clock does.
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
    pub fn tick(&mut self, now: UnixMillis, stored: Option<Hlc>, max_drift: Duration) -> Hlc {
        let last = if self.last.ahead_of(now) > max_drift { Hlc::default() } else { self.last };
        self.last = Hlc::first_of(now).max(last.next());
        stored.map_or(self.last, |stored| self.last.max(stored.next()))
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
        let stamp = clock.tick(UnixMillis(5), Some(ahead), DRIFT);
        assert!(stamp > ahead);
    }

    #[test]
    fn a_wall_clock_that_was_set_back_does_not_leave_the_node_ahead_of_its_peers() {
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(600_000)));
        assert_eq!(clock.tick(UnixMillis(1_000), None, DRIFT).millis(), UnixMillis(1_000));
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(6_000)));
        assert!(clock.tick(UnixMillis(1_000), None, DRIFT) > Hlc::first_of(UnixMillis(6_000)));
    }

    #[test]
    fn an_idle_clock_shows_the_wall_clock() {
        assert_eq!(Clock::default().tick(UnixMillis(77), None, DRIFT).millis(), UnixMillis(77));
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
                let reading = clock.tick(UnixMillis(now), None, DRIFT);
                prop_assert!(reading > last);
                prop_assert!(remote.is_none_or(|remote| reading > Hlc(remote)));
                last = reading;
            }
        }
    }
}
