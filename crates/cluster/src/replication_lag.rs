//! How long a change takes to reach all peers, measured from their acknowledgements.
//!
//! ```text
//! gossip key "seen"    author:generation:next:missed:at , …
//! ```
//!
//! A peer acknowledges what it gets directly. In a cluster with earlier builds, every node also publishes how far it has received the recent-changes log of every author: the sequence number of the next record
//! that it expects, and when it got there, by its own clock. The author compares that with when it sent each batch.
//!
//! The result is never too short. It is too long by the time of one datagram, because the offset between two clocks is known
//! only up to that. When several batches arrive within one gossip interval, the earlier ones are measured as if they had
//! arrived with the last. A batch that a peer missed arrives by repair; it is counted instead of measured.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use banmesh_types::time::UnixMillis;

use crate::incarnation::Incarnation;

/// Batches that wait for acknowledgements at most. The oldest are dropped first.
const MAX_WAITING: usize = 4096;
/// Authors that one node acknowledges: the text must fit into a datagram together with everything else.
const MAX_AUTHORS: usize = 64;
/// Processes whose last age is stored at most.
const MAX_PROCESSES: usize = 4096;
/// How long to wait for acknowledgements of a batch. After that a peer has died, and repair does the rest.
const GIVE_UP: Duration = Duration::from_secs(60);

/// The batches that this node sent, and how far it received those of others.
#[derive(Debug, Default)]
pub struct ReplicationLag {
    waiting: VecDeque<SentBatch>,
    received: HashMap<Incarnation, Position>,
    /// How old the latest change of each author was when it arrived: our clock minus the author's, in milliseconds.
    ages: HashMap<Incarnation, i64>,
    /// The same for authors whose log arrives directly, by the number of their process.
    direct_ages: HashMap<u64, i64>,
}

#[derive(Debug)]
struct SentBatch {
    /// The sequence number after its last record.
    end: u64,
    at: UnixMillis,
}

/// How far a node has received an author's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The sequence number of the next expected record.
    pub next: u64,
    /// The sequence number after the last record that was missed; 0 if none was.
    pub missed: u64,
    /// When `next` was reached, by the clock of that node.
    pub at: UnixMillis,
}

/// What a peer has acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledgements {
    /// What it published under the key `seen`.
    pub text: String,
    /// What it acknowledged directly, which then counts instead.
    pub direct: Option<Position>,
    /// By how many milliseconds the peer's clock is ahead of ours.
    pub clock_ahead_ms: i64,
}

/// The result for one sent batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// All peers had it after at most this time.
    Replicated(Duration),
    /// A peer missed it in the log, and gets it by repair.
    Missed,
    /// It was not acknowledged within a minute.
    NotAcknowledged,
}

impl ReplicationLag {
    /// Notes that this node sent a batch. `end` is the sequence number after its last record.
    pub fn sent(&mut self, end: u64, now: UnixMillis) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(SentBatch { end, at: now });
    }

    /// Notes that this node has received the log of `author` up to, not including, `next`. If records before `missed` have not
    /// arrived, they count as missed.
    pub fn received(&mut self, author: &Incarnation, next: u64, missed: Option<u64>, now: UnixMillis) {
        let received = &mut self.received;
        if received.len() >= MAX_AUTHORS && !received.contains_key(author) {
            // Replaces the author that has sent nothing for longest.
            let oldest = received.iter().min_by_key(|(_, position)| position.at).map(|(id, _)| id.clone());
            oldest.map(|id| received.remove(&id));
        }
        let position = received.entry(author.clone()).or_default();
        if next > position.next {
            *position = Position { next, at: now, ..*position };
        }
        position.missed = missed.map_or(position.missed, |first| first.max(position.missed));
    }

    /// Notes how old the latest change of `author` was when it arrived: our clock minus the author's, in milliseconds.
    pub fn arrived(&mut self, author: &Incarnation, age: i64) {
        self.ages.insert(author.clone(), age);
    }

    /// As [`ReplicationLag::arrived`], for the log of a process that arrives directly.
    pub fn arrived_directly(&mut self, process: u64, age: i64) {
        if self.direct_ages.len() >= MAX_PROCESSES && !self.direct_ages.contains_key(&process) {
            self.direct_ages.clear();
        }
        self.direct_ages.insert(process, age);
    }

    /// The last age that was given to [`ReplicationLag::arrived_directly`].
    pub fn direct_age(&self, process: u64) -> Option<i64> {
        self.direct_ages.get(&process).copied()
    }

    /// The last age that was given to [`ReplicationLag::arrived`].
    pub fn age(&self, author: &Incarnation) -> Option<i64> {
        self.ages.get(author).copied()
    }

    /// Removes the authors for which `known` is false, and returns the text to publish under the key `seen`.
    pub fn acknowledge(&mut self, known: impl Fn(&Incarnation) -> bool) -> String {
        self.received.retain(|id, _| known(id));
        self.ages.retain(|id, _| known(id));
        let mut all: Vec<_> = self.received.iter().collect();
        all.sort_by_key(|(id, _)| *id);
        let one = |(id, position): (&Incarnation, &Position)| {
            format!("{}:{}:{}:{}:{}", id.node, id.generation, position.next, position.missed, position.at.0)
        };
        all.into_iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Evaluates what the live peers acknowledge about this node, `own`. Returns the outcome of every batch that no longer waits.
    ///
    /// A peer that publishes nothing about `own` holds up all batches. Callers leave out builds that publish no key `seen`.
    pub fn evaluate(&mut self, own: &Incarnation, peers: &[Acknowledgements], now: UnixMillis) -> Vec<BatchOutcome> {
        let positions: Vec<(Position, i64)> =
            peers.iter().map(|peer| (peer.position(own).unwrap_or_default(), peer.clock_ahead_ms)).collect();
        if positions.is_empty() {
            self.waiting.clear();
            return Vec::new();
        }
        let mut outcomes = Vec::new();
        while let Some(sent) = self.waiting.front() {
            let outcome = if positions.iter().any(|(position, _)| position.next < sent.end) {
                if now.since(sent.at) < GIVE_UP {
                    break;
                }
                BatchOutcome::NotAcknowledged
            } else if positions.iter().any(|(position, _)| position.missed >= sent.end) {
                BatchOutcome::Missed
            } else {
                let arrivals = positions
                    .iter()
                    .map(|(position, ahead)| position.at.0.saturating_add_signed(ahead.saturating_neg()));
                let last = UnixMillis(arrivals.max().unwrap_or_default());
                BatchOutcome::Replicated(last.since(sent.at))
            };
            outcomes.push(outcome);
            self.waiting.pop_front();
        }
        outcomes
    }
}

impl Acknowledgements {
    fn position(&self, own: &Incarnation) -> Option<Position> {
        self.direct.or_else(|| position_of(&self.text, own))
    }
}

/// What the text under a peer's key `seen` acknowledges about `author`: the sequence number of the next record that the peer
/// expects, and whether it missed any before that.
pub fn acknowledged(text: &str, author: &Incarnation) -> Option<(u64, bool)> {
    position_of(text, author).map(|position| (position.next, position.missed > 0))
}

fn position_of(text: &str, author: &Incarnation) -> Option<Position> {
    text.split(',').find_map(|one| {
        let mut parts = one.split(':');
        let (name, generation) = (parts.next()?, parts.next()?.parse::<u64>().ok()?);
        if name != &*author.node || generation != author.generation {
            return None;
        }
        let mut number = || parts.next()?.parse().ok();
        Some(Position { next: number()?, missed: number()?, at: UnixMillis(number()?) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incarnation(node: &str, generation: u64) -> Incarnation {
        Incarnation { node: node.into(), generation, address: ([127, 0, 0, 1], 1).into() }
    }

    fn id(name: &str) -> Incarnation {
        incarnation(name, 7)
    }

    fn acknowledgements(peer: &mut ReplicationLag, clock_ahead_ms: i64) -> Acknowledgements {
        Acknowledgements { text: peer.acknowledge(|_| true), direct: None, clock_ahead_ms }
    }

    fn at(ms: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + ms)
    }

    #[test]
    fn a_batch_is_replicated_when_the_last_peer_has_it_by_our_clock() {
        let (mut a, mut b, mut c) = (ReplicationLag::default(), ReplicationLag::default(), ReplicationLag::default());
        a.sent(3, at(0));
        b.received(&id("a"), 3, None, at(4));
        let from_b = acknowledgements(&mut b, 0);
        assert_eq!(a.evaluate(&id("a"), &[from_b.clone(), acknowledgements(&mut c, 0)], at(100)), [], "c has not");
        // Its clock is 1 s ahead.
        c.received(&id("a"), 3, None, at(1009));
        let from_c = acknowledgements(&mut c, 1000);
        assert_eq!(
            a.evaluate(&id("a"), &[from_b.clone(), from_c.clone()], at(200)),
            [BatchOutcome::Replicated(Duration::from_millis(9))]
        );
        assert_eq!(a.evaluate(&id("a"), &[from_b.clone(), from_c], at(200)), [], "once");
        // Acknowledgements of an earlier incarnation of the author do not count.
        a.sent(3, at(300));
        assert_eq!(a.evaluate(&incarnation("a", 8), &[from_b], at(400)), []);
    }

    #[test]
    fn missed_and_unacknowledged_batches_are_not_measured() {
        let (mut a, mut b) = (ReplicationLag::default(), ReplicationLag::default());
        for end in [1, 2, 3] {
            a.sent(end, at(end));
        }
        b.received(&id("a"), 1, None, at(5));
        b.received(&id("a"), 3, Some(2), at(9));
        let replicated = BatchOutcome::Replicated(Duration::from_millis(6));
        let from_b = acknowledgements(&mut b, 0);
        // Whether the first one came before the gap is not known: rather not measured than measured wrongly.
        let outcomes = a.evaluate(&id("a"), std::slice::from_ref(&from_b), at(10));
        assert_eq!(outcomes, [BatchOutcome::Missed, BatchOutcome::Missed, replicated]);
        a.sent(4, at(20));
        assert_eq!(a.evaluate(&id("a"), std::slice::from_ref(&from_b), at(30)), []);
        assert_eq!(a.evaluate(&id("a"), &[from_b], at(60_020)), [BatchOutcome::NotAcknowledged]);
        // Without peers there is nothing to measure.
        a.sent(5, at(70_000));
        assert_eq!(a.evaluate(&id("a"), &[], at(70_000)), []);
        assert!(a.waiting.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_no_acknowledgement_panics() {
        let mut lag = ReplicationLag::default();
        for n in 0..10_000u32 {
            lag.sent(n.into(), at(0));
            lag.received(&id(&format!("n{n}")), 1, None, at(n.into()));
        }
        assert_eq!((lag.waiting.len(), lag.received.len()), (MAX_WAITING, MAX_AUTHORS));
        assert_eq!(lag.acknowledge(|id| &*id.node == "n9999").split(',').count(), 1);
        for text in
            ["", ",,,", "a:7", "a:7:x:0:0", "a:7:1:1", ":::::", "a:7:18446744073709551615:0:18446744073709551615"]
        {
            let peer = Acknowledgements { text: text.to_owned(), direct: None, clock_ahead_ms: i64::MIN + 1 };
            let _ = lag.evaluate(&id("a"), &[peer], at(0));
        }
    }
}
