//! Questions about nobody. The endpoint lets them pass, so a proxy that asks them protects nothing: its configuration is wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{LOG_PERIOD, Outcome};
use crate::net::throttle::LogThrottle;
use banmesh_types::address::Address;

/// How long after the last such question it counts as a problem.
const RECENT: Duration = Duration::from_secs(60);

/// The latest question about nobody; clones share it.
#[derive(Clone, Debug)]
pub struct Nameless(Arc<State>);

#[derive(Debug)]
struct State {
    throttle: LogThrottle,
    latest: Mutex<Option<(Address, Outcome, Instant)>>,
}

impl Default for Nameless {
    fn default() -> Self {
        Self(Arc::new(State { throttle: LogThrottle::new(LOG_PERIOD), latest: Mutex::new(None) }))
    }
}

impl Nameless {
    /// What is wrong, and what to do about it, if a proxy asked about nobody within the last minute.
    pub fn problem(&self, now: Instant) -> Option<String> {
        let (by, outcome, at) = (*self.0.latest.lock())?;
        (now.duration_since(at) < RECENT).then(|| text(by, outcome))
    }

    #[cold]
    pub(super) fn record(&self, by: Address, outcome: Outcome, now: Instant) {
        // No connection waits for another one's record.
        if let Some(mut latest) = self.0.latest.try_lock() {
            *latest = Some((by, outcome, now));
        }
        if let Some(held_back) = self.0.throttle.permit(now) {
            tracing::warn!(held_back, "{}", text(by, outcome));
        }
    }
}

fn text(by: Address, outcome: Outcome) -> String {
    const FIND: &str = "`banmesh nginx check`, or traefik, caddy or envoy instead of nginx, finds the line";
    match outcome {
        Outcome::Untrusted => format!(
            "{by} asks for verdicts and names clients in X-Forwarded-For, but is not in verdict.trusted_proxies, so its clients pass; add it \
             there if it is your proxy, else close the port to it"
        ),
        Outcome::Unreadable => format!(
            "the proxy {by} asks for verdicts with an X-Forwarded-For whose last entry is not an address, so its clients pass; it must be \
             the address of the client; {FIND}"
        ),
        _ => format!(
            "the proxy {by} asks for verdicts without naming a client, so its clients pass; it must send the address of the client in \
             X-Forwarded-For; {FIND}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_about_nobody_is_a_problem_for_a_minute() {
        let (nameless, start) = (Nameless::default(), Instant::now());
        assert_eq!(nameless.problem(start), None);
        nameless.record(Address::LOCALHOST, Outcome::Unnamed, start);
        let at = |second| nameless.problem(start + Duration::from_secs(second));
        assert!(at(59).is_some_and(|text| text.contains("127.0.0.1") && text.contains("nginx check")));
        assert_eq!(at(60), None);
        nameless.record(Address::LOCALHOST, Outcome::Untrusted, start + Duration::from_secs(70));
        assert!(at(71).is_some_and(|text| text.contains("verdict.trusted_proxies")));
    }
}
