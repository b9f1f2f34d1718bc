//! How much the exchange with the other nodes sends at once, and when it sends again. Without I/O.

use std::time::Duration;

use banmesh_peers::counters::Waiting;

/// The keys that are read and sent before other tasks have a turn: with the lock of the counters for about half a millisecond.
pub(super) const STEP: usize = 512;
/// The most datagrams of a round to one node, so that they fit into its socket's buffer: Linux gives 416 KiB by default, in which a
/// datagram of 1,200 bytes takes 2.25 KiB.
const TO_ONE: usize = 128;
/// The same while only keys wait that are sent again, which are not urgent.
const REPEATED_TO_ONE: usize = 32;
/// The most datagrams of a round to all nodes.
const TO_ALL: usize = 1024;
/// The shortest time from one round to the next.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest rest after a round that took long, mostly because other tasks and programs had their turns.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// What one round has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    peers: usize,
    datagrams: usize,
}

impl Round {
    pub(super) const fn new(peers: usize) -> Self {
        Self { peers, datagrams: 0 }
    }

    /// Adds datagrams that went to each peer.
    pub(super) const fn sent(&mut self, datagrams: usize) {
        self.datagrams += datagrams;
    }

    /// Whether the round sends more. It always sends something.
    pub(super) fn goes_on(&self, waiting: Waiting) -> bool {
        let most = match waiting {
            Waiting { changed: 0, repeated: 0 } => return false,
            Waiting { changed: 0, .. } => REPEATED_TO_ONE,
            _ => TO_ONE,
        };
        self.datagrams < most && self.datagrams * self.peers < TO_ALL
    }
}

/// The time from the end of a round that took `took` until the next one. `waits` is whether it has left something. After a round that took
/// longer than the interval, others have their turn for as long, up to a bound: a machine that is slow or busy sends less often, and each key
/// then carries more changes.
pub(super) fn pause(interval: Duration, took: Duration, waits: bool) -> Duration {
    let interval = if waits { interval.min(SHORTEST) } else { interval };
    interval.saturating_sub(took).max(took.min(LONGEST_REST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn waiting(changed: usize, repeated: usize) -> Waiting {
        Waiting { changed, repeated }
    }

    /// The datagrams to each peer of a round in which every step sends 16.
    fn round(peers: usize, waiting: Waiting) -> usize {
        let mut round = Round::new(peers);
        round.sent(16);
        while round.goes_on(waiting) {
            round.sent(16);
        }
        round.datagrams
    }

    #[test]
    fn a_round_goes_on_while_changes_wait_up_to_a_bound() {
        assert_eq!(round(2, waiting(0, 0)), 16);
        assert_eq!(round(2, waiting(100_000, 0)), TO_ONE);
        assert_eq!(round(2, waiting(1, 100_000)), TO_ONE);
        assert_eq!(round(2, waiting(0, 100_000)), REPEATED_TO_ONE);
    }

    #[test]
    fn many_peers_share_the_datagrams_of_a_round() {
        assert_eq!(round(16, waiting(100_000, 0)), 64);
        assert_eq!(round(200, waiting(100_000, 0)), 16);
    }

    #[test]
    fn a_round_that_took_long_is_followed_by_a_rest() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(10), ms(1), true), ms(9));
        assert_eq!(pause(ms(50), ms(1), true), ms(9), "what waits does not wait for the interval");
        assert_eq!(pause(ms(50), ms(1), false), ms(49));
        assert_eq!(pause(ms(10), ms(8), true), ms(8));
        assert_eq!(pause(ms(10), ms(15), false), ms(15));
        assert_eq!(pause(ms(10), ms(5000), true), LONGEST_REST);
    }
}
