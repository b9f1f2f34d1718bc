//! How many exchanges of gossip a node begins in a round.
//!
//! chitchat begins three in every gossip interval, whatever the number of nodes. That is what 200 nodes need. Where one datagram names
//! all members, or most of them, a single exchange spreads heartbeats fast enough, and costs a third.

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

    /// Whether a node that knows `members`, of which one datagram names `named`, should begin another exchange. If so, counts it.
    pub fn permit(&mut self, members: usize, named: usize, now: Instant) -> bool {
        // chitchat begins the exchanges of a round one after the other. The clock of another thread may be a little behind.
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= self.interval / 2) {
            (self.began, self.exchanges) = (Some(now), 0);
        }
        let permitted = self.exchanges < needed(members, named);
        self.exchanges += usize::from(permitted);
        permitted
    }
}

/// The exchanges that a round needs: one for every one and a half times as many members as a datagram names. With that, a heartbeat
/// reaches the other nodes every 0.35 s on average in profile `lan`, as with 180 nodes and three exchanges, and they notice a death within 5 s.
const fn needed(members: usize, named: usize) -> usize {
    match (members, named) {
        (0, _) => 1,
        (_, 0) => MOST,
        _ => {
            let enough = members.div_ceil(named + named / 2);
            if enough < MOST { enough } else { MOST }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn begun(members: usize, named: usize) -> usize {
        let (mut rounds, start) = (Rounds::new(INTERVAL), Instant::now());
        let mut begun = 0;
        for round in 0..10u32 {
            // Ticks are never exact.
            let tick = start + INTERVAL * round + Duration::from_millis(u64::from(round % 3) * 20);
            begun += (0..3).filter(|n| rounds.permit(members, named, tick + Duration::from_micros(*n))).count();
        }
        begun
    }

    #[test]
    fn a_small_cluster_needs_one_exchange_per_round_and_a_large_one_all_three() {
        for (members, named, expected) in
            [(3, 2, 1), (10, 9, 1), (36, 35, 1), (54, 36, 1), (55, 36, 2), (108, 36, 2), (109, 36, 3), (400, 36, 3)]
        {
            assert_eq!(begun(members, named), expected * 10, "{members}");
        }
    }

    #[test]
    fn nothing_is_saved_before_it_is_known_how_many_members_a_datagram_names() {
        assert_eq!(begun(3, 0), 30);
    }
}
