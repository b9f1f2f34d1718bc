//! What a node remembers from one look at its peers to the next: heartbeats, and its own recent digests.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use chitchat::ChitchatId;

use super::members::TableDigest;

/// How many of our own digests are remembered at most.
const DIGESTS: usize = 64;

#[derive(Debug)]
struct Track {
    heartbeat: u64,
    rose: Instant,
    /// Since when it and another of the same id have both been alive.
    twin_since: Option<Instant>,
}

/// The memory between two looks.
#[derive(Debug)]
pub(super) struct Tracks {
    failure_timeout: Duration,
    /// For so long an earlier digest of ours counts: a peer may be a moment behind.
    settle: Duration,
    nodes: HashMap<ChitchatId, Track>,
    /// Our digests, and when the next one took their place; the last is the present one.
    digests: VecDeque<(TableDigest, Instant)>,
}

impl Tracks {
    pub(super) fn new(failure_timeout: Duration, settle: Duration) -> Self {
        Self { failure_timeout, settle, nodes: HashMap::new(), digests: VecDeque::new() }
    }

    /// A new look, while our table is `ours`.
    pub(super) fn begin(&mut self, ours: TableDigest, now: Instant) {
        match self.digests.back_mut() {
            Some((present, until)) if *present == ours => *until = now,
            _ => self.digests.push_back((ours, now)),
        }
        while self.digests.len() > DIGESTS
            || self.digests.front().is_some_and(|(_, until)| now.saturating_duration_since(*until) > self.settle)
        {
            self.digests.pop_front();
        }
    }

    /// Whether our table is `table`, or was recently.
    pub(super) fn held(&self, table: TableDigest) -> bool {
        self.digests.iter().any(|(held, _)| *held == table)
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
                self.nodes.insert(id.clone(), Track { heartbeat, rose: now, twin_since: None });
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
    fn digests_are_held_for_a_moment_and_the_present_one_for_ever() {
        let mut tracks = Tracks::new(TIMEOUT, TIMEOUT);
        let table = |digest| TableDigest { digest, entries: 1 };
        let start = Instant::now();
        for digest in 0..100 {
            tracks.begin(table(digest), start + TIMEOUT / 10 * u32::try_from(digest).unwrap());
        }
        assert!(tracks.held(table(99)) && tracks.held(table(95)) && !tracks.held(table(80)));
        tracks.begin(table(99), start + TIMEOUT * 100);
        assert!(tracks.held(table(99)) && !tracks.held(table(98)));
    }
}
