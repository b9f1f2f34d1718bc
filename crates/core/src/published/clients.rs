//! What a polling client must get: everything, or what changed in a window of time.
//!
//! CrowdSec's bouncers send no cursor. A client is known by its key, its address and its `User-Agent`, and each node notes only when
//! the client last asked *here*. The window reaches further back than that, so that a lost answer, a node that was behind, and a second
//! bouncer with the same identity are covered.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use banmesh_types::address::Address;

use super::Steady;

/// The most clients that are remembered. With more, those that have not asked for the longest time get everything.
pub const MAX_CLIENTS: usize = 4096;
/// The least overlap of two windows, in milliseconds.
const LEAST_OVERLAP: u64 = 15_000;
/// The overlap in intervals of the client.
const OVERLAP: u64 = 3;
/// The most bouncers with one identity that are counted.
const MOST_SHARING: u64 = 16;
/// A client that was away this long, in milliseconds, gets everything. Meanwhile it may have asked a node that was behind.
const AWAY: u64 = 10 * 60_000;
/// The intervals of a client that are remembered.
const INTERVALS: usize = 16;

/// Who polls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The name of its key.
    pub key: Arc<str>,
    /// Its address.
    pub address: Address,
    /// Its `User-Agent`, cut to a length that is safe to store.
    pub agent: Arc<str>,
}

/// What a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Everything.
    Full,
    /// What changed at or after this time.
    Since(Steady),
}

/// A client, and when it asked last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The client.
    pub identity: Identity,
    /// When it asked last.
    pub last: Steady,
}

/// The clients that asked this node.
#[derive(Debug, Default)]
pub struct Clients {
    seen: HashMap<Identity, Seen>,
}

#[derive(Debug)]
struct Seen {
    last: Steady,
    intervals: VecDeque<u64>,
    /// How often it asked for everything.
    starts: u64,
    /// How many more full answers it must be sent, because an answer that was written may have been lost on the way.
    owed: u8,
}

/// A client that asks for everything asks again if the answer is lost. One that does not, because another node served it until now, is
/// sent everything twice.
const fn owed(startup: bool) -> u8 {
    if startup { 1 } else { 2 }
}

impl Clients {
    /// Notes that `identity` asks at `at`, for everything if `startup`. Returns what it must get.
    pub fn poll(&mut self, identity: Identity, startup: bool, at: Steady) -> Window {
        if let Some(seen) = self.seen.get_mut(&identity) {
            let (last, interval) = (seen.last, at.0.saturating_sub(seen.last.0));
            seen.last = at;
            if seen.intervals.len() >= INTERVALS {
                seen.intervals.pop_front();
            }
            seen.intervals.push_back(interval);
            if startup || interval > AWAY {
                seen.starts = seen.starts.saturating_add(u64::from(startup));
                seen.owed = seen.owed.max(owed(startup));
            }
            if seen.owed > 0 {
                return Window::Full;
            }
            // Several bouncers with one identity each start once, and their polls shorten the interval that is seen here.
            let times = OVERLAP.max(seen.starts.saturating_add(1).min(MOST_SHARING));
            let longest = seen.intervals.iter().copied().max().unwrap_or(interval);
            let overlap = longest.saturating_mul(times).max(LEAST_OVERLAP);
            return Window::Since(Steady(last.0.saturating_sub(overlap)));
        }
        if self.seen.len() >= MAX_CLIENTS {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.last).map(|(identity, _)| identity.clone());
            oldest.map(|identity| self.seen.remove(&identity));
        }
        let seen = Seen { last: at, intervals: VecDeque::new(), starts: u64::from(startup), owed: owed(startup) };
        self.seen.insert(identity, seen);
        Window::Full
    }

    /// Notes that an answer with everything was written to `identity` completely. Until then, it gets everything.
    pub fn answered(&mut self, identity: &Identity) {
        if let Some(seen) = self.seen.get_mut(identity) {
            seen.owed = seen.owed.saturating_sub(1);
        }
    }

    /// Whether `identity` has asked before.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.seen.contains_key(identity)
    }

    /// All clients, sorted by identity.
    pub fn all(&self) -> Vec<Polled> {
        let polled = |(identity, seen): (&Identity, &Seen)| Polled { identity: identity.clone(), last: seen.last };
        let mut all: Vec<Polled> = self.seen.iter().map(polled).collect();
        all.sort_unstable_by(|one, other| one.identity.cmp(&other.identity));
        all
    }

    /// Removes clients that have not asked since `before`.
    pub fn remove_before(&mut self, before: Steady) {
        self.seen.retain(|_, seen| seen.last >= before);
    }
}
