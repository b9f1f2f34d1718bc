//! How long a busy node collects changes before it sends them.

use std::time::Duration;

use crate::timers::Timers;

/// Decides when the next flush of the recent-changes log is due.
///
/// A datagram costs some 10 µs of CPU at both ends, and an exchange with an earlier build 50–100 µs, however many records it carries, so
/// it is their number that saturates a node. The pause therefore grows with the number of peers. It doubles while flushes are late because the machine
/// is busy, up to four times, but not while a single flush cannot carry everything that waits.
#[derive(Debug, Default)]
pub struct FlushPace {
    doublings: u32,
}

impl FlushPace {
    const MAX_DOUBLINGS: u32 = 2;

    /// The pause after a flush that was `late` by so much. `full` says whether records had to be left for the next flush. `direct` peers
    /// get a datagram, and with `earlier` ones there is a gossip exchange.
    pub fn after(&mut self, late: Duration, full: bool, direct: usize, earlier: usize, timers: &Timers) -> Duration {
        let times = |pace: Duration, peers: usize| pace.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX));
        let exchanges = times(timers.pace_per_exchange, earlier);
        let pause = times(timers.pace_per_peer, direct).saturating_add(exchanges).max(timers.min_pace);
        if full {
            self.doublings = 0;
        } else if late > pause + Duration::from_millis(2) {
            self.doublings = (self.doublings + 1).min(Self::MAX_DOUBLINGS);
        } else {
            self.doublings = self.doublings.saturating_sub(1);
        }
        pause.saturating_mul(1 << self.doublings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::Profile;

    #[test]
    fn the_pause_grows_with_peers_and_while_flushes_are_late() {
        let timers = Timers::of(Profile::Lan);
        let mut pace = FlushPace::default();
        let ms = Duration::from_millis;
        assert_eq!(pace.after(ms(0), false, 2, 0, &timers), ms(1));
        assert_eq!(pace.after(ms(0), false, 0, 40, &timers), ms(20));
        assert_eq!(pace.after(ms(0), false, 100, 20, &timers), ms(20));
        assert_eq!(pace.after(ms(50), false, 200, 0, &timers), ms(40));
        for _ in 0..10 {
            pace.after(ms(100), false, 200, 0, &timers);
        }
        assert_eq!(pace.after(ms(100), false, 200, 0, &timers), ms(80));
        assert_eq!(pace.after(ms(0), false, 200, 0, &timers), ms(40));
        assert_eq!(pace.after(ms(100), true, 200, 0, &timers), ms(20));
    }
}
