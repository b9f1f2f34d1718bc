//! What a node knows about its peers from earlier observations: heartbeats, duplicate ids, and whether tables converge.
//!
//! While bans arrive, two tables that replicate are rarely equal at any moment, because each has changes that the other has not
//! received yet. A peer's digest is therefore compared with all digests that this node's table had in the last seconds. A peer
//! that agreed recently still agrees, unless neither table has changed since.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::incarnation::Incarnation;
use crate::members::TableDigest;

/// Own digests that are stored at most.
const MAX_DIGESTS: usize = 1024;
/// How long a peer agrees after its table was last equal, while changes keep the digests apart.
const AGREES_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Peer {
    heartbeat: u64,
    heartbeat_rose: Instant,
    /// Since when this incarnation and another with the same id have both been alive.
    duplicate_since: Option<Instant>,
    /// The digest that it publishes, and since when.
    table: Option<(TableDigest, Instant)>,
    /// When its digest was last one of ours.
    agreed: Option<Instant>,
}

/// How a peer's table compares with ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Whether it equals ours, or equalled it a moment ago.
    pub equal: bool,
    /// Whether it is equal, or was recently and differs only because changes are still arriving.
    pub agrees: bool,
}

/// A digest of our table, and when the table had it.
#[derive(Debug)]
struct OwnDigest {
    table: TableDigest,
    from: Instant,
    until: Instant,
}

/// Earlier observations of all peers.
#[derive(Debug)]
pub struct PeerHistory {
    failure_timeout: Duration,
    /// How long an earlier digest of ours still counts as equal, because a peer may be a moment behind.
    settle: Duration,
    peers: HashMap<Incarnation, Peer>,
    /// The last one is the current one.
    own_digests: VecDeque<OwnDigest>,
}

impl PeerHistory {
    /// An empty history. See [`Timers::failure_timeout`](crate::timers::Timers::failure_timeout); `settle` is
    /// [`Timers::differ_for`](crate::timers::Timers::differ_for).
    pub fn new(failure_timeout: Duration, settle: Duration) -> Self {
        Self { failure_timeout, settle, peers: HashMap::new(), own_digests: VecDeque::new() }
    }

    /// Records the current digest of this node's table.
    pub fn own_table(&mut self, ours: TableDigest, now: Instant) {
        match self.own_digests.back_mut() {
            Some(current) if current.table == ours => current.until = now,
            _ => self.own_digests.push_back(OwnDigest { table: ours, from: now, until: now }),
        }
        while self.own_digests.len() > MAX_DIGESTS
            || self.own_digests.front().is_some_and(|own| now.saturating_duration_since(own.until) > self.settle)
        {
            self.own_digests.pop_front();
        }
    }

    /// Compares the digest that `id` publishes with ours. A peer that is not live agrees with nobody.
    pub fn compare(&mut self, id: &Incarnation, table: Option<TableDigest>, live: bool, now: Instant) -> Agreement {
        let Some(peer) = self.peers.get_mut(id) else { return Agreement::default() };
        let Some(table) = table.filter(|_| live) else {
            (peer.table, peer.agreed) = (None, None);
            return Agreement::default();
        };
        let since = match peer.table {
            Some((same, since)) if same == table => since,
            _ => peer.table.insert((table, now)).1,
        };
        let equal = self.own_digests.iter().any(|own| own.table == table);
        if equal {
            peer.agreed = Some(now);
        }
        let settled = |from: Instant| now.saturating_duration_since(from) > self.settle;
        let quiet = settled(since) && self.own_digests.back().is_some_and(|current| settled(current.from));
        let recently = peer.agreed.is_some_and(|at| now.saturating_duration_since(at) < AGREES_FOR);
        Agreement { equal, agrees: equal || recently && !quiet }
    }

    /// Records the heartbeat counter of `id`. Our own counts as rising every time.
    pub fn heartbeat(&mut self, id: &Incarnation, heartbeat: u64, is_self: bool, now: Instant) {
        match self.peers.get_mut(id) {
            Some(peer) if heartbeat > peer.heartbeat || is_self => {
                peer.heartbeat = heartbeat;
                peer.heartbeat_rose = now;
            }
            Some(_) => {}
            None => {
                let peer = Peer { heartbeat, heartbeat_rose: now, duplicate_since: None, table: None, agreed: None };
                self.peers.insert(id.clone(), peer);
            }
        }
    }

    /// Removes the incarnations for which `known` is false.
    pub fn retain(&mut self, known: impl Fn(&Incarnation) -> bool) {
        self.peers.retain(|id, _| known(id));
    }

    /// How long ago the heartbeat of `id` rose.
    pub fn heartbeat_age(&self, id: &Incarnation, now: Instant) -> Duration {
        self.peers.get(id).map_or(Duration::ZERO, |peer| now.saturating_duration_since(peer.heartbeat_rose))
    }

    /// The incarnations that share an id and have both been alive for longer than the last heartbeats of a restarted node's
    /// earlier incarnation take to arrive.
    pub fn duplicates(&mut self, now: Instant) -> Vec<Incarnation> {
        let recent = self.failure_timeout;
        let is_alive = |peer: &Peer| now.saturating_duration_since(peer.heartbeat_rose) < recent;
        let mut alive: HashMap<Arc<str>, usize> = HashMap::new();
        for (id, _) in self.peers.iter().filter(|(_, peer)| is_alive(peer)) {
            *alive.entry(Arc::clone(&id.node)).or_default() += 1;
        }
        let mut duplicates = Vec::new();
        for (id, peer) in &mut self.peers {
            let duplicate = is_alive(peer) && alive.get(&id.node).is_some_and(|count| *count > 1);
            if !duplicate {
                peer.duplicate_since = None;
                continue;
            }
            let since = *peer.duplicate_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= recent * 2 {
                duplicates.push(id.clone());
            }
        }
        duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    fn id(name: &str, generation: u64, port: u16) -> Incarnation {
        Incarnation { node: name.into(), generation, address: ([127, 0, 0, 1], port).into() }
    }

    /// Observes every 100 ms for 10 s. Each node's heartbeat rises until the given observation.
    fn duplicates_of(until_when: &[(Incarnation, u64)]) -> Vec<Incarnation> {
        let mut history = PeerHistory::new(TIMEOUT, TIMEOUT);
        let start = Instant::now();
        let mut last = Vec::new();
        for step in 0..100 {
            let now = start + Duration::from_millis(100 * step);
            for (id, until) in until_when {
                history.heartbeat(id, step.min(*until), false, now);
            }
            last = history.duplicates(now);
        }
        last.sort();
        last
    }

    #[test]
    fn two_nodes_with_one_id_are_duplicates_and_a_restarted_node_is_not() {
        let (old, new, other) = (id("a", 1, 1), id("a", 2, 1), id("b", 1, 2));
        assert_eq!(duplicates_of(&[(old.clone(), 10), (new.clone(), 100), (other.clone(), 100)]), []);
        assert_eq!(duplicates_of(&[(old.clone(), 100), (new.clone(), 100), (other, 100)]), [old, new]);
        let elsewhere = [id("a", 1, 1), id("a", 1, 2)];
        assert_eq!(duplicates_of(&elsewhere.clone().map(|id| (id, 100))), elsewhere);
    }

    #[test]
    fn an_earlier_digest_expires_and_the_current_one_does_not() {
        let mut history = PeerHistory::new(TIMEOUT, TIMEOUT);
        let peer = id("b", 1, 2);
        let start = Instant::now();
        history.heartbeat(&peer, 1, false, start);
        for digest in 0..100 {
            history.own_table(table(digest), start + TIMEOUT / 10 * u32::try_from(digest).unwrap());
        }
        let equal =
            |history: &mut PeerHistory, digest, now| history.compare(&peer, Some(table(digest)), true, now).equal;
        let end = start + TIMEOUT / 10 * 99;
        assert!(equal(&mut history, 99, end) && equal(&mut history, 95, end) && !equal(&mut history, 80, end));
        history.own_table(table(99), start + TIMEOUT * 100);
        let end = start + TIMEOUT * 100;
        assert!(equal(&mut history, 99, end) && !equal(&mut history, 98, end));
    }

    fn table(digest: u64) -> TableDigest {
        TableDigest { digest, entries: 1 }
    }

    #[test]
    fn tables_agree_while_changes_arrive_and_not_when_they_stay_different() {
        let mut history = PeerHistory::new(TIMEOUT, TIMEOUT);
        let peer = id("b", 1, 2);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        history.heartbeat(&peer, 1, false, start);
        assert_eq!(history.compare(&peer, None, true, start), Agreement::default());
        history.own_table(table(1), at(0));
        let both = Agreement { equal: true, agrees: true };
        assert_eq!(history.compare(&peer, Some(table(1)), true, at(0)), both);
        // Both change all the time, and are never observed while they are equal.
        let mut last = Agreement::default();
        for step in 1..=299 {
            history.own_table(table(1000 + step), at(step * 100));
            last = history.compare(&peer, Some(table(2000 + step)), true, at(step * 100));
            assert_eq!(last, Agreement { equal: false, agrees: true }, "{step}");
        }
        // After half a minute of that, the peer no longer agrees.
        history.own_table(table(3000), at(30_100));
        assert_eq!(history.compare(&peer, Some(table(4000)), true, at(30_100)), Agreement::default());
        // Being equal once is enough.
        assert_eq!(history.compare(&peer, Some(table(3000)), true, at(30_200)), both);
        history.own_table(table(3001), at(30_300));
        assert!(history.compare(&peer, Some(table(4001)), true, at(30_300)).agrees);
        // When nothing changes any more, they must become equal.
        for (ms, agrees) in [(31_000, true), (31_250, true), (31_400, false), (40_000, false)] {
            history.own_table(table(3001), at(ms));
            last = history.compare(&peer, Some(table(4001)), true, at(ms));
            assert_eq!(last, Agreement { equal: false, agrees }, "{ms}");
        }
        assert!(!last.agrees);
        // That a peer agreed is deleted when it dies.
        assert_eq!(history.compare(&peer, Some(table(3001)), true, at(40_100)), both);
        assert_eq!(history.compare(&peer, Some(table(3001)), false, at(40_200)), Agreement::default());
        history.own_table(table(3002), at(40_300));
        assert_eq!(history.compare(&peer, Some(table(4002)), true, at(40_300)), Agreement::default());
    }
}
