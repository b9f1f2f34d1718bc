//! How many exchanges of gossip a node begins in a round.
//!
//! chitchat begins three in every gossip interval, whatever the number of nodes. That is what 200 nodes need. Where one datagram names
//! all members, two exchanges spread heartbeats fast enough, and one in a small cluster.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// chitchat's exchanges per round.
const MOST: usize = 3;

/// Counts the exchanges of a round.
#[derive(Clone, Debug)]
pub struct Rounds {
    interval: Duration,
    began: Option<Instant>,
    proposed: usize,
    exchanges: usize,
    /// The nodes of the last exchanges.
    recent: VecDeque<SocketAddr>,
}

impl Rounds {
    /// Rounds of [`Timers::gossip_interval`](crate::timers::Timers::gossip_interval).
    pub fn new(interval: Duration) -> Self {
        Self { interval, began: None, proposed: 0, exchanges: 0, recent: VecDeque::new() }
    }

    /// Whether a node that knows `members`, `capacity` of which one datagram can name, should begin another exchange, with `peer`. If so,
    /// counts it. Of the peers that chitchat proposes, those are preferred with which the last exchanges were not: taking turns makes
    /// the times between heartbeats more regular (Das, Gupta and Motivala, SWIM, DSN 2002, section 4.3).
    pub fn permit(&mut self, peer: SocketAddr, members: usize, capacity: usize, now: Instant) -> bool {
        // chitchat begins the exchanges of a round one after the other. The clock of another thread may be a little behind.
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= self.interval / 2) {
            if self.exchanges == 0 {
                // Most members are dead, and those that are proposed are always the same.
                self.recent.clear();
            }
            (self.began, self.proposed, self.exchanges) = (Some(now), 0, 0);
        }
        self.proposed += 1;
        let missing = needed(members, capacity).saturating_sub(self.exchanges);
        let proposals_left = MOST.saturating_sub(self.proposed);
        let permitted = missing > 0 && (proposals_left < missing || !self.recent.contains(&peer));
        if permitted {
            self.exchanges += 1;
            self.recent.push_back(peer);
            while self.recent.len() > members.saturating_sub(2) / 2 {
                self.recent.pop_front();
            }
        }
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

    fn peer(number: usize) -> SocketAddr {
        ([192, 0, 2, 1], 1_000 + u16::try_from(number).unwrap()).into()
    }

    /// The peers of ten rounds, to each of which `propose` proposes three.
    fn peers_of(
        members: usize,
        capacity: usize,
        mut propose: impl FnMut(usize, usize) -> SocketAddr,
    ) -> Vec<SocketAddr> {
        let (mut rounds, start) = (Rounds::new(INTERVAL), Instant::now());
        let mut peers = Vec::new();
        for round in 0..10 {
            // Ticks are never exact.
            let tick = start + INTERVAL * u32::try_from(round).unwrap() + Duration::from_millis(round as u64 % 3 * 20);
            for number in 0..3 {
                let peer = propose(round, number);
                if rounds.permit(peer, members, capacity, tick + Duration::from_micros(number as u64)) {
                    peers.push(peer);
                }
            }
        }
        peers
    }

    fn begun(members: usize, capacity: usize) -> usize {
        peers_of(members, capacity, |round, number| peer((3 * round + number) % members.max(1))).len()
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

    #[test]
    fn peers_take_turns_where_chitchat_proposes_several() {
        // Peer 0 is proposed in every round, and two others with it.
        let peers =
            peers_of(6, 100, |round, number| if number == 0 { peer(0) } else { peer(1 + (2 * round + number) % 4) });
        assert_eq!(peers.len(), 10);
        for window in peers.windows(3) {
            assert!(window[..2].iter().all(|earlier| *earlier != window[2]), "{peers:?}");
        }
    }

    #[test]
    fn the_only_live_node_of_many_is_not_passed_over_for_long() {
        let start = Instant::now();
        let mut rounds = Rounds::new(INTERVAL);
        let begun = (0..10u32).filter(|round| rounds.permit(peer(1), 12, 100, start + INTERVAL * *round)).count();
        assert!(begun >= 5, "{begun}");
        let mut rounds = Rounds::new(INTERVAL);
        assert_eq!((0..10u32).filter(|round| rounds.permit(peer(1), 2, 100, start + INTERVAL * *round)).count(), 10);
    }
}
