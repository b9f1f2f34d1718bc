//! What a node remembers from one look at its peers to the next: heartbeats, its own recent digests, and who agreed with them.
//!
//! While bans come in, two tables that are kept in step are never equal for long: each has changes that are still on their way
//! to the other. So a peer's digest is compared with all that ours was in the last seconds, and who agreed lately still does,
//! unless nothing has changed on either side since.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use chitchat::ChitchatId;

use super::members::TableDigest;

/// How many of our own digests are remembered at most.
const DIGESTS: usize = 1024;
/// For so long a peer counts as agreeing after it did, while changes keep the digests apart.
const AGREED_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Track {
    heartbeat: u64,
    rose: Instant,
    /// Since when it and another of the same id have both been alive.
    twin_since: Option<Instant>,
    /// The digest that it tells, and since when.
    table: Option<(TableDigest, Instant)>,
    /// When its table was last one that we had.
    agreed: Option<Instant>,
}

/// How a peer's table compares with ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    /// It is what ours is, or was a moment ago.
    pub(super) equal: bool,
    /// It is, or was lately and only changes that are on their way keep them apart.
    pub(super) agrees: bool,
}

/// A digest of ours, from when until when.
#[derive(Debug)]
struct Held {
    table: TableDigest,
    from: Instant,
    until: Instant,
}

/// The memory between two looks.
#[derive(Debug)]
pub(super) struct Tracks {
    failure_timeout: Duration,
    /// For so long an earlier digest of ours counts: a peer may be a moment behind.
    settle: Duration,
    nodes: HashMap<ChitchatId, Track>,
    /// Our digests; the last is the present one.
    digests: VecDeque<Held>,
}

impl Tracks {
    pub(super) fn new(failure_timeout: Duration, settle: Duration) -> Self {
        Self { failure_timeout, settle, nodes: HashMap::new(), digests: VecDeque::new() }
    }

    /// Our table is `ours`.
    pub(super) fn have(&mut self, ours: TableDigest, now: Instant) {
        match self.digests.back_mut() {
            Some(present) if present.table == ours => present.until = now,
            _ => self.digests.push_back(Held { table: ours, from: now, until: now }),
        }
        while self.digests.len() > DIGESTS
            || self.digests.front().is_some_and(|held| now.saturating_duration_since(held.until) > self.settle)
        {
            self.digests.pop_front();
        }
    }

    /// How `table`, which `id` tells, compares with ours. One that is not heard of agrees with nobody.
    pub(super) fn compare(
        &mut self,
        id: &ChitchatId,
        table: Option<TableDigest>,
        live: bool,
        now: Instant,
    ) -> Agreement {
        let Some(track) = self.nodes.get_mut(id) else { return Agreement::default() };
        let Some(table) = table.filter(|_| live) else {
            (track.table, track.agreed) = (None, None);
            return Agreement::default();
        };
        let since = match track.table {
            Some((same, since)) if same == table => since,
            _ => track.table.insert((table, now)).1,
        };
        let equal = self.digests.iter().any(|held| held.table == table);
        if equal {
            track.agreed = Some(now);
        }
        let settled = |from: Instant| now.saturating_duration_since(from) > self.settle;
        let quiet = settled(since) && self.digests.back().is_some_and(|present| settled(present.from));
        let lately = track.agreed.is_some_and(|at| now.saturating_duration_since(at) < AGREED_FOR);
        Agreement { equal, agrees: equal || lately && !quiet }
    }

    /// A node's heartbeat stands at `heartbeat`. Our own always rises.
    pub(super) fn heard(&mut self, id: &ChitchatId, heartbeat: u64, is_self: bool, now: Instant) {
        match self.nodes.get_mut(id) {
            Some(track) if heartbeat > track.heartbeat || is_self => {
                track.heartbeat = heartbeat;
                track.rose = now;
            }
            Some(_) => {}
            None => {
                self.nodes
                    .insert(id.clone(), Track { heartbeat, rose: now, twin_since: None, table: None, agreed: None });
            }
        }
    }

    /// Forgets the nodes that are not `known` any more.
    pub(super) fn forget(&mut self, known: impl Fn(&ChitchatId) -> bool) {
        self.nodes.retain(|id, _| known(id));
    }

    /// How long ago the heartbeat of `id` rose.
    pub(super) fn heartbeat_age(&self, id: &ChitchatId, now: Instant) -> Duration {
        self.nodes.get(id).map_or(Duration::ZERO, |track| now.saturating_duration_since(track.rose))
    }

    /// The nodes that share an id and are both alive, for longer than the last news of a restarted node's earlier life
    /// can travel.
    pub(super) fn duplicates(&mut self, now: Instant) -> Vec<ChitchatId> {
        let recent = self.failure_timeout;
        let alive: Vec<ChitchatId> = self
            .nodes
            .iter()
            .filter(|(_, track)| now.saturating_duration_since(track.rose) < recent)
            .map(|(id, _)| id.clone())
            .collect();
        let mut duplicates = Vec::new();
        for (id, track) in &mut self.nodes {
            let twin = alive.contains(id) && alive.iter().any(|other| other != id && other.node_id == id.node_id);
            if !twin {
                track.twin_since = None;
                continue;
            }
            let since = *track.twin_since.get_or_insert(now);
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

    fn id(name: &str, generation: u64, port: u16) -> ChitchatId {
        ChitchatId::new(name, generation, ([127, 0, 0, 1], port).into())
    }

    /// Looks every 100 ms for 10 s; `lives` says until when each node's heartbeat rises.
    fn duplicates_of(lives: &[(ChitchatId, u64)]) -> Vec<ChitchatId> {
        let mut tracks = Tracks::new(TIMEOUT, TIMEOUT);
        let start = Instant::now();
        let mut last = Vec::new();
        for look in 0..100 {
            let now = start + Duration::from_millis(100 * look);
            for (id, until) in lives {
                tracks.heard(id, look.min(*until), false, now);
            }
            last = tracks.duplicates(now);
        }
        last.sort();
        last
    }

    #[test]
    fn a_restarted_node_is_no_duplicate_and_two_of_a_name_are() {
        let (old, new, other) = (id("a", 1, 1), id("a", 2, 1), id("b", 1, 2));
        assert_eq!(duplicates_of(&[(old.clone(), 10), (new.clone(), 100), (other.clone(), 100)]), []);
        assert_eq!(duplicates_of(&[(old.clone(), 100), (new.clone(), 100), (other, 100)]), [old, new]);
        let elsewhere = [id("a", 1, 1), id("a", 1, 2)];
        assert_eq!(duplicates_of(&elsewhere.clone().map(|id| (id, 100))), elsewhere);
    }

    #[test]
    fn a_digest_counts_for_a_moment_and_the_present_one_for_ever() {
        let mut tracks = Tracks::new(TIMEOUT, TIMEOUT);
        let peer = id("b", 1, 2);
        let start = Instant::now();
        tracks.heard(&peer, 1, false, start);
        for digest in 0..100 {
            tracks.have(table(digest), start + TIMEOUT / 10 * u32::try_from(digest).unwrap());
        }
        let equal = |tracks: &mut Tracks, digest, now| tracks.compare(&peer, Some(table(digest)), true, now).equal;
        let end = start + TIMEOUT / 10 * 99;
        assert!(equal(&mut tracks, 99, end) && equal(&mut tracks, 95, end) && !equal(&mut tracks, 80, end));
        tracks.have(table(99), start + TIMEOUT * 100);
        let end = start + TIMEOUT * 100;
        assert!(equal(&mut tracks, 99, end) && !equal(&mut tracks, 98, end));
    }

    fn table(digest: u64) -> TableDigest {
        TableDigest { digest, entries: 1 }
    }

    #[test]
    fn changes_on_their_way_are_no_disagreement_and_what_stays_apart_is() {
        let mut tracks = Tracks::new(TIMEOUT, TIMEOUT);
        let peer = id("b", 1, 2);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        tracks.heard(&peer, 1, false, start);
        assert_eq!(tracks.compare(&peer, None, true, start), Agreement::default());
        tracks.have(table(1), at(0));
        let both = Agreement { equal: true, agrees: true };
        assert_eq!(tracks.compare(&peer, Some(table(1)), true, at(0)), both);
        // Both change without a pause, and are never looked at while they are equal.
        let mut last = Agreement::default();
        for step in 1..=299 {
            tracks.have(table(1000 + step), at(step * 100));
            last = tracks.compare(&peer, Some(table(2000 + step)), true, at(step * 100));
            assert_eq!(last, Agreement { equal: false, agrees: true }, "{step}");
        }
        // After half a minute of that nobody can say any more.
        tracks.have(table(3000), at(30_100));
        assert_eq!(tracks.compare(&peer, Some(table(4000)), true, at(30_100)), Agreement::default());
        // Equal once is enough.
        assert_eq!(tracks.compare(&peer, Some(table(3000)), true, at(30_200)), both);
        tracks.have(table(3001), at(30_300));
        assert!(tracks.compare(&peer, Some(table(4001)), true, at(30_300)).agrees);
        // Where nothing changes any more, they must be equal after a moment.
        for (ms, agrees) in [(31_000, true), (31_250, true), (31_400, false), (40_000, false)] {
            tracks.have(table(3001), at(ms));
            last = tracks.compare(&peer, Some(table(4001)), true, at(ms));
            assert_eq!(last, Agreement { equal: false, agrees }, "{ms}");
        }
        assert!(!last.agrees);
        // A dead one is not remembered to have agreed.
        assert_eq!(tracks.compare(&peer, Some(table(3001)), true, at(40_100)), both);
        assert_eq!(tracks.compare(&peer, Some(table(3001)), false, at(40_200)), Agreement::default());
        tracks.have(table(3002), at(40_300));
        assert_eq!(tracks.compare(&peer, Some(table(4002)), true, at(40_300)), Agreement::default());
    }
}
