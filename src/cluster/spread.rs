//! How long a change takes until all peers have it, measured by their acknowledgements.
//!
//! ```text
//! key "seen" of a node   author:incarnation:next:missed:at , …
//! ```
//!
//! Every node tells, with its gossip, how far it has followed the hot ring of every author: the number of the next record that it
//! expects, and by its own clock when it got there. The author compares that with when it sent each batch. The clocks' difference is
//! known less one way of a datagram, so what is measured is too long by that; where several batches follow each other within one
//! gossip interval, the earlier ones count with the time of the last. Never too short, then. A batch that a peer has missed in the
//! ring came by repair, and is counted instead of measured.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use chitchat::ChitchatId;
use parking_lot::{Mutex, MutexGuard};

use banmesh_types::time::UnixMillis;

/// Batches whose acknowledgements are waited for; the oldest are given up.
const MAX_WAITING: usize = 4096;
/// Authors that one node acknowledges: the text must fit a datagram beside everything else.
const MAX_AUTHORS: usize = 64;
/// A batch that is not acknowledged by then is given up: a peer died on it, and repair does the rest.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What was sent and what was seen; shared by those who send, take in and look.
#[derive(Debug, Default)]
pub(super) struct Spread {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Sent>,
    seen: HashMap<ChitchatId, Seen>,
    /// How old the latest record of an author was when it arrived, by its clock and ours, in milliseconds.
    ages: HashMap<ChitchatId, i64>,
}

#[derive(Debug)]
struct Sent {
    end: u64,
    at: UnixMillis,
}

/// How far a node has followed an author's ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The next record that it expects.
    next: u64,
    /// What it has last missed ended before this record.
    missed: u64,
    /// When it got to `next`.
    at: UnixMillis,
}

/// What a peer has told, and how far its clock is ahead of ours.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) text: String,
    pub(super) ahead_ms: i64,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All peers had it after so long, at the latest.
    Spread(Duration),
    /// A peer missed it in the ring, and got it by repair.
    Missed,
    /// It was not acknowledged in time.
    GivenUp,
}

impl Spread {
    /// A batch was sent, after which the next record is `end`.
    pub(super) fn sent(&self, end: u64, now: UnixMillis) {
        let mut inner = self.lock();
        if inner.waiting.len() >= MAX_WAITING {
            inner.waiting.pop_front();
        }
        inner.waiting.push_back(Sent { end, at: now });
    }

    /// The ring of `author` was followed up to `next`; if records before `first` were missed, up to there.
    pub(super) fn followed(&self, author: &ChitchatId, next: u64, missed: Option<u64>, now: UnixMillis) {
        let mut inner = self.lock();
        if inner.seen.len() >= MAX_AUTHORS && !inner.seen.contains_key(author) {
            // The author that has been silent for longest.
            let oldest = inner.seen.iter().min_by_key(|(_, seen)| seen.at).map(|(id, _)| id.clone());
            oldest.map(|id| inner.seen.remove(&id));
        }
        let seen = inner.seen.entry(author.clone()).or_default();
        if next > seen.next {
            *seen = Seen { next, at: now, ..*seen };
        }
        seen.missed = missed.map_or(seen.missed, |first| first.max(seen.missed));
    }

    /// The latest record of `author` was made `age` milliseconds before it arrived, by its clock and ours.
    pub(super) fn arrived(&self, author: &ChitchatId, age: i64) {
        self.lock().ages.insert(author.clone(), age);
    }

    /// See [`Spread::arrived`].
    pub(super) fn age(&self, author: &ChitchatId) -> Option<i64> {
        self.lock().ages.get(author).copied()
    }

    /// Forgets the authors that are not `known` any more, and says what to tell the others.
    pub(super) fn tell(&self, known: impl Fn(&ChitchatId) -> bool) -> String {
        let mut inner = self.lock();
        inner.seen.retain(|id, _| known(id));
        inner.ages.retain(|id, _| known(id));
        let mut all: Vec<_> = inner.seen.iter().collect();
        all.sort_by_key(|(id, _)| *id);
        let one = |(id, seen): (&ChitchatId, &Seen)| {
            let (author, incarnation) = (&id.node_id, id.generation_id);
            format!("{author}:{incarnation}:{}:{}:{}", seen.next, seen.missed, seen.at.0)
        };
        all.into_iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// What the live peers tell about us, `own`: the batches that are settled by it. Peers that tell nothing of the kind, for they
    /// are of an older version, are left out.
    pub(super) fn settle(&self, own: &ChitchatId, peers: &[Told], now: UnixMillis) -> Vec<Outcome> {
        let told: Vec<(Seen, i64)> =
            peers.iter().map(|peer| (seen_of(&peer.text, own).unwrap_or_default(), peer.ahead_ms)).collect();
        let mut inner = self.lock();
        if told.is_empty() {
            inner.waiting.clear();
            return Vec::new();
        }
        let mut settled = Vec::new();
        while let Some(sent) = inner.waiting.front() {
            let outcome = if told.iter().any(|(seen, _)| seen.next < sent.end) {
                if now.since(sent.at) < GIVE_UP {
                    break;
                }
                Outcome::GivenUp
            } else if told.iter().any(|(seen, _)| seen.missed >= sent.end) {
                Outcome::Missed
            } else {
                let arrivals = told.iter().map(|(seen, ahead)| seen.at.0.saturating_add_signed(ahead.saturating_neg()));
                let last = UnixMillis(arrivals.max().unwrap_or_default());
                Outcome::Spread(last.since(sent.at))
            };
            settled.push(outcome);
            inner.waiting.pop_front();
        }
        settled
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

/// What a peer tells in `text` about `author`: the next record that it expects, and whether it missed some before that.
pub(super) fn acknowledged(text: &str, author: &ChitchatId) -> Option<(u64, bool)> {
    seen_of(text, author).map(|seen| (seen.next, seen.missed > 0))
}

/// What `text` says about `author`.
fn seen_of(text: &str, author: &ChitchatId) -> Option<Seen> {
    text.split(',').find_map(|one| {
        let mut parts = one.split(':');
        let (name, incarnation) = (parts.next()?, parts.next()?.parse::<u64>().ok()?);
        if name != &*author.node_id || incarnation != author.generation_id {
            return None;
        }
        let mut number = || parts.next()?.parse().ok();
        Some(Seen { next: number()?, missed: number()?, at: UnixMillis(number()?) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ChitchatId {
        ChitchatId::new(name, 7, ([127, 0, 0, 1], 1).into())
    }

    fn told(peer: &Spread, ahead_ms: i64) -> Told {
        Told { text: peer.tell(|_| true), ahead_ms }
    }

    fn at(ms: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + ms)
    }

    #[test]
    fn a_batch_is_spread_when_the_last_peer_has_it_by_our_clock() {
        let (a, b, c) = (Spread::default(), Spread::default(), Spread::default());
        a.sent(3, at(0));
        b.followed(&id("a"), 3, None, at(4));
        assert_eq!(a.settle(&id("a"), &[told(&b, 0), told(&c, 0)], at(100)), [], "one has not");
        // Its clock is 1 s ahead.
        c.followed(&id("a"), 3, None, at(1009));
        assert_eq!(
            a.settle(&id("a"), &[told(&b, 0), told(&c, 1000)], at(200)),
            [Outcome::Spread(Duration::from_millis(9))]
        );
        assert_eq!(a.settle(&id("a"), &[told(&b, 0), told(&c, 1000)], at(200)), [], "once");
        // An earlier life of the author is another one.
        a.sent(3, at(300));
        let other = ChitchatId::new("a", 8, ([127, 0, 0, 1], 1).into());
        assert_eq!(a.settle(&other, &[told(&b, 0)], at(400)), []);
    }

    #[test]
    fn what_was_missed_is_not_measured_and_what_is_not_acknowledged_is_given_up() {
        let (a, b) = (Spread::default(), Spread::default());
        for end in [1, 2, 3] {
            a.sent(end, at(end));
        }
        b.followed(&id("a"), 1, None, at(5));
        b.followed(&id("a"), 3, Some(2), at(9));
        let spread = Outcome::Spread(Duration::from_millis(6));
        // The first one is not known to have come before the gap; better not to measure it than wrongly.
        assert_eq!(a.settle(&id("a"), &[told(&b, 0)], at(10)), [Outcome::Missed, Outcome::Missed, spread]);
        a.sent(4, at(20));
        assert_eq!(a.settle(&id("a"), &[told(&b, 0)], at(30)), []);
        assert_eq!(a.settle(&id("a"), &[told(&b, 0)], at(60_020)), [Outcome::GivenUp]);
        // Without peers there is nothing to measure.
        a.sent(5, at(70_000));
        assert_eq!(a.settle(&id("a"), &[], at(70_000)), []);
        assert!(a.lock().waiting.is_empty());
    }

    #[test]
    fn it_stays_small_whatever_is_told() {
        let spread = Spread::default();
        for n in 0..10_000u32 {
            spread.sent(n.into(), at(0));
            spread.followed(&id(&format!("n{n}")), 1, None, at(n.into()));
        }
        let inner = spread.lock();
        assert_eq!((inner.waiting.len(), inner.seen.len()), (MAX_WAITING, MAX_AUTHORS));
        drop(inner);
        assert_eq!(spread.tell(|id| &*id.node_id == "n9999").split(',').count(), 1);
        for text in
            ["", ",,,", "a:7", "a:7:x:0:0", "a:7:1:1", ":::::", "a:7:18446744073709551615:0:18446744073709551615"]
        {
            let _ = spread.settle(&id("a"), &[Told { text: text.to_owned(), ahead_ms: i64::MIN + 1 }], at(0));
        }
    }
}
