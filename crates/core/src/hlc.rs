//! Hybrid logical clocks, which order the writes of nodes whose clocks differ (Kulkarni et al., "Logical Physical Clocks and
//! Consistent Snapshots in Globally Distributed Databases", 2014).

use std::time::Duration;

use crate::node::NodeId;
use banmesh_types::time::UnixMillis;

/// A reading of a hybrid logical clock: 48 bits of milliseconds since the Unix epoch, then a 16-bit counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Returns the first reading within the millisecond `now`: its counter is 0.
    pub const fn first_of(now: UnixMillis) -> Self {
        Self(now.0 << 16)
    }

    /// Returns the milliseconds without the counter.
    pub const fn millis(self) -> UnixMillis {
        UnixMillis(self.0 >> 16)
    }

    /// Returns the next reading, or `None` after the greatest one. When the counter overflows, the reading moves on to the next
    /// millisecond, so the order holds.
    pub const fn checked_next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }

    /// Returns how far this reading is ahead of `now`, or zero if it is not ahead.
    pub fn ahead_of(self, now: UnixMillis) -> Duration {
        self.millis().since(now)
    }
}

/// Identifies one write: a reading of the clock and the node that wrote. No two writes of a cluster have the same stamp.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The reading of the author's clock.
    pub hlc: Hlc,
    /// The author. Breaks ties between equal readings.
    pub node: NodeId,
}

/// Why a local write could not be stamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockExhausted {
    /// The node's clock has reached the greatest reading.
    #[error(
        "the logical clock of this node is exhausted, so nothing more can be written; correct the system clock, and \
         set cluster.max_clock_drift to less than an hour: the logical clock then resets itself"
    )]
    Node,
    /// The entry to be replaced already has the greatest reading.
    #[error(
        "the logical clock is exhausted for this entry: its stamp is the greatest possible, so nothing can replace it before \
         its retention ends"
    )]
    Entry,
}

/// A node's hybrid logical clock.
///
/// Its readings increase even when the wall clock is set back, with one exception: [`Clock::tick`] resets a clock that is ahead
/// of the wall clock by more than `max_drift`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
    /// How many readings it leaves out after that of an entry that is ahead of it.
    skip: u16,
}

/// A clock continues less than so many readings (64 ms) after the one in the journal.
const RESUME_GAP: u64 = 1 << 22;
/// [`Clock::skip`] is less than this.
const SKIPS: u64 = 1 << 12;

impl Clock {
    /// Creates a clock that continues after `last`, which the journal keeps.
    pub const fn resume(last: Hlc) -> Self {
        Self { last, skip: 0 }
    }

    /// Makes the readings of this process differ from those of the one before it, of which `generation` is another.
    ///
    /// Writes that the disk refused can be lost by a restart here, but not at the peers that have received them. If the wall clock is also
    /// behind, a clock that continued from the journal would stamp other writes with the same readings. So each process continues at another
    /// distance from the journal and from the entries that it replaces.
    pub fn begin_process(&mut self, generation: u64) {
        let mixed = xxhash_rust::xxh3::xxh3_64(&generation.to_le_bytes());
        self.last = Hlc(self.last.0.saturating_add(mixed % RESUME_GAP));
        self.skip = u16::try_from((mixed >> 32) % SKIPS).unwrap_or_default();
    }

    /// Returns the latest reading made or observed since the last reset.
    pub const fn last(&self) -> Hlc {
        self.last
    }

    /// Returns a reading for a local write. It is greater than `stored`, the reading of the entry that the write replaces, and
    /// greater than all earlier readings unless the clock was reset.
    ///
    /// If the clock is ahead of `now` by more than `max_drift`, the wall clock was set back. The logical clock then resets to
    /// `now`, because peers would hold back its writes until their clocks catch up. The write still wins over `stored`.
    ///
    /// # Errors
    /// When there is no greater reading. The clock is then unchanged.
    pub fn tick(&mut self, now: UnixMillis, stored: Option<Hlc>, max_drift: Duration) -> Result<Hlc, ClockExhausted> {
        let last = if self.last.ahead_of(now) > max_drift { Hlc::default() } else { self.last };
        let next = Hlc::first_of(now).max(last.checked_next().ok_or(ClockExhausted::Node)?);
        let reading = match stored {
            Some(Hlc(stored)) => {
                let after = stored.checked_add(1 + u64::from(self.skip)).ok_or(ClockExhausted::Entry)?;
                next.max(Hlc(after))
            }
            None => next,
        };
        self.last = next;
        Ok(reading)
    }

    /// Advances the clock to a reading that another node made, so that later local writes are ordered after it.
    pub fn observe(&mut self, remote: Hlc) {
        self.last = self.last.max(remote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRIFT: Duration = Duration::from_secs(10);

    /// Found by seed 131 of the simulator: a node whose disk was full banned a source and told its peers. Its clock was set back, it
    /// restarted without the ban, and an unban got the same stamp.
    #[test]
    fn what_one_process_wrote_and_lost_has_no_stamp_of_the_next_process() {
        let (stored, saved) = (Hlc(117_964_802_555_117_568), Hlc(117_964_802_555_117_568));
        for back in [2_000, 600_000] {
            let now = UnixMillis(stored.millis().0 - back);
            let mut readings = Vec::new();
            for generation in [1_800_000_000_000, 1_800_000_019_987] {
                let mut clock = Clock::resume(saved);
                clock.begin_process(generation);
                let mut last = stored;
                for _ in 0..3 {
                    last = clock.tick(now, Some(last), DRIFT).unwrap();
                    readings.push(last);
                }
            }
            let (one, other) = readings.split_at(3);
            assert!(one.iter().all(|reading| !other.contains(reading)), "{readings:?}");
            assert!(readings.iter().all(|reading| *reading > stored), "{readings:?}");
        }
    }

    #[test]
    fn a_write_is_stamped_after_the_entry_it_replaces_even_if_the_clock_is_behind() {
        let mut clock = Clock::default();
        let ahead = Hlc::first_of(UnixMillis(1_000_000));
        let stamp = clock.tick(UnixMillis(5), Some(ahead), DRIFT).unwrap();
        assert!(stamp > ahead);
    }

    #[test]
    fn a_clock_ahead_by_more_than_the_drift_resets_to_the_wall_clock() {
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(600_000)));
        assert_eq!(clock.tick(UnixMillis(1_000), None, DRIFT).unwrap().millis(), UnixMillis(1_000));
        let mut clock = Clock::resume(Hlc::first_of(UnixMillis(6_000)));
        assert!(clock.tick(UnixMillis(1_000), None, DRIFT).unwrap() > Hlc::first_of(UnixMillis(6_000)));
    }

    #[test]
    fn a_new_clock_reads_the_wall_clock() {
        assert_eq!(Clock::default().tick(UnixMillis(77), None, DRIFT).unwrap().millis(), UnixMillis(77));
    }

    #[test]
    fn an_exhausted_clock_refuses_to_tick_and_is_unchanged() {
        const FOREVER: Duration = Duration::MAX;
        let mut clock = Clock::resume(Hlc(u64::MAX - 1));
        assert_eq!(clock.tick(UnixMillis(5), None, FOREVER), Ok(Hlc(u64::MAX)));
        for _ in 0..2 {
            assert_eq!(clock.tick(UnixMillis(5), None, FOREVER), Err(ClockExhausted::Node));
            assert_eq!(clock.last(), Hlc(u64::MAX));
        }
        // With a usual drift the clock resets, but nothing can be greater than the greatest reading.
        assert_eq!(clock.tick(UnixMillis(5), Some(Hlc(u64::MAX)), DRIFT), Err(ClockExhausted::Entry));
        assert_eq!(clock.last(), Hlc(u64::MAX));
        assert_eq!(clock.tick(UnixMillis(5), None, DRIFT).map(Hlc::millis), Ok(UnixMillis(5)));
    }

    proptest! {
        #[test]
        fn readings_increase(steps in proptest::collection::vec((0u64..1_000, proptest::option::of(0u64..(9_000 << 16))), 1..50)) {
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
