//! Queries without a usable address. banmesh answers them with `banned` = 0, so every client passes: HAProxy's configuration is wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use banmesh_spop::message::WithoutAddress;
use banmesh_types::address::Address;

/// The pause between two samples of what such queries look like.
const SAMPLE_PAUSE: Duration = Duration::from_secs(1);
/// How long without any query with an address before the agent counts as blind, once there have been some.
const BLIND_AFTER: Duration = Duration::from_secs(60);

/// The latest query without an address; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Unaddressed(Arc<Mutex<Option<Sample>>>);

/// What a query without an address looks like.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The HAProxy that sent it.
    pub peer: Address,
    /// The message with the names and types of its arguments.
    pub message: String,
    at: Instant,
}

impl Unaddressed {
    /// The latest sample.
    pub fn sample(&self) -> Option<Sample> {
        self.0.lock().clone()
    }

    #[cold]
    pub(super) fn record(&self, peer: Address, message: WithoutAddress<'_>, now: Instant) {
        // No connection waits for another one's sample.
        let Some(mut sample) = self.0.try_lock() else { return };
        if sample.as_ref().is_none_or(|last| now.duration_since(last.at) >= SAMPLE_PAUSE) {
            *sample = Some(Sample { peer, message: message.to_string(), at: now });
        }
    }
}

/// Decides from the agent's counters whether all of its answers are `unknown`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blindness {
    known: u64,
    unknown_before: u64,
    known_at: Option<Instant>,
}

impl Blindness {
    /// Takes the numbers of queries with and without an address at `now`. Returns how many without one have come since the last
    /// with one, if these are the only queries that HAProxy sends.
    pub fn look(&mut self, known: u64, unknown: u64, now: Instant) -> Option<u64> {
        if known != self.known {
            *self = Self { known, unknown_before: unknown, known_at: Some(now) };
        }
        let recent = self.known_at.is_some_and(|at| now.duration_since(at) < BLIND_AFTER);
        let since = unknown.saturating_sub(self.unknown_before);
        (since > 0 && !recent).then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_blind_when_no_query_has_an_address() {
        let (mut blindness, start) = (Blindness::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(blindness.look(0, 0, at(0)), None, "nothing asked yet");
        assert_eq!(blindness.look(0, 1, at(1)), Some(1));
        assert_eq!(blindness.look(1, 5, at(2)), None, "one query had an address");
        assert_eq!(blindness.look(1, 9, at(3)), None, "a client on a Unix socket");
        assert_eq!(blindness.look(1, 9, at(62)), Some(4), "none for a minute");
        assert_eq!(blindness.look(2, 9, at(63)), None);
        assert_eq!(blindness.look(2, 9, at(200)), None, "a quiet night");
    }
}
