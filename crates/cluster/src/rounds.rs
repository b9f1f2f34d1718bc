//! How many exchanges of gossip a node begins in a round.
//!
//! chitchat begins three in every gossip interval, whatever the number of nodes. That is what 200 nodes need. Where one datagram names
//! all members, two exchanges spread heartbeats fast enough, and one in a small cluster.

use std::time::{Duration, Instant};

/// chitchat's exchanges per round.
const MOST: usize = 3;

/// Counts the exchanges of a round.
#[derive(Clone, Debug)]
pub struct Rounds {
    interval: Duration,
    began: Option<Instant>,
    exchanges: usize,
}

impl Rounds {
    /// Rounds of [`Timers::gossip_interval`](crate::timers::Timers::gossip_interval).
    pub const fn new(interval: Duration) -> Self {
        Self { interval, began: None, exchanges: 0 }
    }

    /// Whether a node that knows `members`, `capacity` of which one datagram can name, should begin another exchange. If so, counts it.
    pub fn permit(&mut self, members: usize, capacity: usize, now: Instant) -> bool {
        // chitchat begins the exchanges of a round one after the other. The clock of another thread may be a little behind.
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= self.interval / 2) {
            (self.began, self.exchanges) = (Some(now), 0);
        }
        let permitted = self.exchanges < needed(members, capacity);
        self.exchanges += usize::from(permitted);
        permitted
    }
}

/// Members of a cluster in which one exchange per round is enough.
const FEW: usize = 6;

/// The exchanges that a round needs: one in a cluster of few members, and two while one datagram can name them all. With that, in profile
/// `lan`, the last of them notices a death within 5 s.
const fn needed(members: usize, capacity: usize) -> usize {
    if members > capacity {
        MOST
    } else if members > FEW {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn begun(members: usize, capacity: usize) -> usize {
        let (mut rounds, start) = (Rounds::new(INTERVAL), Instant::now());
        let mut begun = 0;
        for round in 0..10u32 {
            // Ticks are never exact.
            let tick = start + INTERVAL * round + Duration::from_millis(u64::from(round % 3) * 20);
            begun += (0..3).filter(|n| rounds.permit(members, capacity, tick + Duration::from_micros(*n))).count();
        }
        begun
    }

    #[test]
    fn a_small_cluster_needs_one_exchange_per_round_and_a_large_one_all_three() {
        for (members, expected) in [(0, 1), (3, 1), (6, 1), (7, 2), (100, 2), (101, 3), (400, 3)] {
            assert_eq!(begun(members, 100), expected * 10, "{members}");
        }
    }

    #[test]
    fn nothing_is_saved_before_it_is_known_how_many_members_a_datagram_names() {
        assert_eq!(begun(3, 0), 30);
    }
}
