//! The limit on open connections, shared by every listener of the node. [`places`](super::places) decides who gives way.
//!
//! | listener | client | gives way |
//! |---|---|---|
//! | SPOE agent | `allowed_clients` and loopback are known | idle connections; in a burst up to ten times as many stay open |
//! | syslog over TCP and TLS | `allowed_senders`, checked before | connections without a line, then idle ones |
//! | API and health | addresses outside `allowed_ips` have places of their own | connections without a request |
//! | verdict endpoint | trusted proxies are known | connections without a request, then idle ones |
//! | metrics | any | connections without a request |
//! | repair | addresses of live members are known | unauthenticated connections, the oldest first |
//!
//! TLS handshakes have places of their own ([`handshake`](super::handshake)), so a client that cannot finish a handshake never takes the
//! place of one that can.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub use super::places::LimitReached;
use super::places::{Activity, Client, Places, Rules};
use super::throttle::LogThrottle;

/// The time between two evictions while more places are taken than [`Rules::settled`]. HAProxy repeats a query once if its connection
/// closes meanwhile, so its connections must not all close at once.
const PACE: Duration = Duration::from_millis(10);

/// One log line per limit and this time.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// The metrics of a limit.
#[derive(Clone, Debug, Default)]
pub struct LimitMetrics {
    /// Places granted.
    pub granted: Counter,
    /// Places in use.
    pub open: Gauge,
    /// Connections that lost their place to another.
    pub evicted: Counter,
}

/// Bounds open connections. Clones share the count.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    rules: Rules,
    /// What the limit bounds, for the log.
    of: &'static str,
    metrics: LimitMetrics,
    throttle: LogThrottle,
    state: Mutex<State>,
    /// Notified when more than `settled` places are taken.
    exceeded: Notify,
}

#[derive(Debug)]
struct State {
    places: Places,
    revokers: HashMap<u64, oneshot::Sender<()>>,
    closed: bool,
}

/// The right to keep one connection open. Returned to the limit on drop.
#[derive(Debug)]
pub struct Place {
    id: u64,
    limit: ConnectionLimit,
    activity: Arc<Activity>,
    /// Resolves when the connection must close.
    pub revoked: oneshot::Receiver<()>,
}

impl ConnectionLimit {
    /// A limit with `rules`. The log names its connections `of`: `the API`.
    pub fn new(of: &'static str, rules: Rules, metrics: LimitMetrics) -> Self {
        let state = State { places: Places::new(rules), revokers: HashMap::new(), closed: false };
        Self(Arc::new(Shared {
            start: Instant::now(),
            rules,
            of,
            metrics,
            throttle: LogThrottle::new(LOG_PERIOD),
            state: Mutex::new(state),
            exceeded: Notify::new(),
        }))
    }

    /// Takes a place for a connection of `client`, which may hold up to `most` of them. Another connection may lose its place.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn take(&self, client: Client, most: usize) -> Result<Place, LimitReached> {
        let now = self.now(Instant::now());
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(LimitReached::Total(0));
        }
        let admitted = state.places.admit(client, most, now)?;
        if let Some(evicted) = admitted.evicted {
            state.revoke(evicted);
            self.0.metrics.evicted.inc();
        }
        let (revoker, revoked) = oneshot::channel();
        state.revokers.insert(admitted.id, revoker);
        if state.places.taken() > self.0.rules.settled {
            self.0.exceeded.notify_one();
        }
        drop(state);
        if let Some((crowding, connections)) = admitted.crowding
            && let Some(held_back) = self.0.throttle.permit(std::time::Instant::now())
        {
            tracing::warn!(
                address = %crowding.address(), connections, limit = self.0.rules.places, held_back,
                "closed a connection of this address to {}, because all are in use and another has fewer", self.0.of
            );
        }
        self.0.metrics.granted.inc();
        self.0.metrics.open.inc();
        Ok(Place { id: admitted.id, limit: self.clone(), activity: admitted.activity, revoked })
    }

    /// Evicts connections that become idle while there are more than [`Rules::settled`]. Never returns.
    pub async fn keep_settled(&self) {
        loop {
            match self.trim() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => self.0.exceeded.notified().await,
            }
        }
    }

    /// Evicts one idle connection if there are too many; then returns when to check again.
    fn trim(&self) -> Option<Duration> {
        let now = self.now(Instant::now());
        let mut state = self.0.state.lock();
        let trimmed = state.places.trim(now)?;
        Some(match trimmed {
            Ok(id) => {
                state.revoke(id);
                self.0.metrics.evicted.inc();
                PACE
            }
            Err(wait) => Duration::from_millis(wait),
        })
    }

    /// Revokes every place and grants no more.
    pub fn revoke_all(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        let ids: Vec<u64> = state.places.ids().collect();
        for id in ids {
            state.places.release(id);
            state.revoke(id);
        }
    }

    fn now(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0.start).as_millis()).unwrap_or(u64::MAX)
    }
}

impl State {
    fn revoke(&mut self, id: u64) {
        if let Some(revoker) = self.revokers.remove(&id) {
            // The connection may be closed already.
            let _ = revoker.send(());
        }
    }
}

impl Place {
    /// Records that the connection was active at `now`.
    #[inline]
    pub fn touch(&self, now: Instant) {
        self.activity.touch(self.limit.now(now));
    }

    /// Records that the connection did what the listener is for: it sent HELLO, a line or a request.
    #[inline]
    pub fn mark_useful(&self) {
        self.activity.mark_useful();
    }

    /// A handle that records activity from elsewhere.
    pub fn watch(&self) -> Watch {
        Watch { limit: self.limit.clone(), activity: Arc::clone(&self.activity) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.limit.0.state.lock();
        state.places.release(self.id);
        state.revokers.remove(&self.id);
        drop(state);
        self.limit.0.metrics.open.dec();
    }
}

/// Records the activity of a connection without holding its place.
#[derive(Clone, Debug)]
pub struct Watch {
    limit: ConnectionLimit,
    activity: Arc<Activity>,
}

impl Watch {
    /// Records that the connection did what the listener is for, just now.
    pub fn mark_useful(&self) {
        self.activity.touch(self.limit.now(Instant::now()));
        self.activity.mark_useful();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::places::Standing;

    fn client(number: u8) -> Client {
        Client::new([192, 0, 2, number].into(), Standing::Stranger)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_gives_way_learns_it_and_is_counted() {
        let limit = ConnectionLimit::new("tests", Rules::new(2, 100, 100), LimitMetrics::default());
        let (mut first, mut second) = (limit.take(client(1), 9).unwrap(), limit.take(client(1), 9).unwrap());
        assert!(limit.take(client(1), 9).is_err(), "both are new");
        let mut third = limit.take(client(2), 9).unwrap();
        assert!(first.revoked.try_recv().is_ok());
        assert!(second.revoked.try_recv().is_err() && third.revoked.try_recv().is_err());
        drop(first);
        let metrics = &limit.0.metrics;
        assert_eq!((metrics.granted.get(), metrics.open.get(), metrics.evicted.get()), (3, 2, 1));
        drop((second, third));
        let state = limit.0.state.lock();
        assert_eq!((state.places.taken(), state.revokers.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn places_above_the_settled_number_are_taken_back_one_at_a_time() {
        let rules = Rules { settled: 2, ..Rules::new(20, 100, 100) };
        let limit = ConnectionLimit::new("tests", rules, LimitMetrics::default());
        let keeper = tokio::spawn({
            let limit = limit.clone();
            async move { limit.keep_settled().await }
        });
        let _all: Vec<Place> = (0..20).map(|_| limit.take(client(1), 99).unwrap()).collect();
        tokio::time::sleep(Duration::from_millis(101)).await;
        assert_eq!(limit.0.metrics.evicted.get(), 1);
        tokio::time::sleep(PACE * 100).await;
        assert_eq!(limit.0.metrics.evicted.get(), 18);
        keeper.abort();
    }
}
