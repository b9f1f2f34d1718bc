//! The limit on HAProxy's connections (`spoa.max_clients`). TLS handshakes have places of their own.
//!
//! [`crate::net::places`] decides which connection gives way. At `max_clients`, idle connections are closed, one at a time. While
//! every connection is busy, up to ten times as many stay open ([`BURST`]): a HAProxy with a thousand clients at once opens hundreds of
//! connections, and if one is refused, it considers the agent dead and lets every client pass. At ten times `max_clients` the client that
//! holds the most connections gives way, so a host that keeps a thousand of them busy does not lock out a HAProxy. Loopback and
//! `allowed_clients` have half of all places for themselves.
//!
//! Beyond that, a few connections are served until HELLO ([`RESERVE`]), because a refused health check would also make a busy agent
//! look dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use crate::net::limit::{ConnectionLimit, LimitMetrics, Place};
use crate::net::places::{Client, Rules};

/// A connection that was active within this time is busy, in milliseconds.
const BUSY_MS: u64 = 100;

/// How many times the limit of connections is allowed while all of them are busy.
const BURST: usize = 10;

/// How many connections beyond that are served until they send HELLO.
const RESERVE: usize = 8;

/// The rules for `max_clients` connections, or for as many handshakes.
pub(super) const fn elastic(max_clients: usize) -> Rules {
    let max_clients = if max_clients == 0 { 1 } else { max_clients };
    Rules { settled: max_clients, ..Rules::new(max_clients.saturating_mul(BURST), BUSY_MS, BUSY_MS) }
}

/// Bounds open connections.
#[derive(Debug)]
pub(super) struct AgentLimit {
    connections: ConnectionLimit,
    /// Places for connections beyond the limit until they send HELLO.
    reserve: ConnectionLimit,
    max_lingering: usize,
    /// Connections that have returned their place but still wait for their peer to read the last frame.
    lingering: AtomicUsize,
}

/// The right to keep one connection open. Returned to the limit on drop.
#[derive(Debug)]
pub(super) struct Permit {
    pub place: Place,
    limit: Arc<AgentLimit>,
    client: Client,
    /// Whether the place is in the reserve, so that the connection needs a regular one when it sends HELLO.
    is_reserved: bool,
}

impl AgentLimit {
    /// A limit with `rules`, and a reserve whose places are not counted in `metrics`.
    pub fn new(rules: Rules, metrics: LimitMetrics) -> Self {
        let reserve = Rules::new(RESERVE, BUSY_MS, BUSY_MS);
        Self {
            connections: ConnectionLimit::new("the SPOE agent (spoa.max_clients)", rules, metrics),
            reserve: ConnectionLimit::new("the SPOE agent, before HELLO", reserve, LimitMetrics::default()),
            max_lingering: rules.settled,
            lingering: AtomicUsize::new(0),
        }
    }

    /// A permit for a new connection of `client`; `None` when all places, those in the reserve included, are taken and none gives way.
    pub fn acquire(limit: &Arc<Self>, client: Client) -> Option<Permit> {
        let permit = |place, is_reserved| Permit { place, limit: Arc::clone(limit), client, is_reserved };
        match limit.connections.take(client, usize::MAX) {
            Ok(place) => Some(permit(place, false)),
            Err(_) => limit.reserve.take(client, usize::MAX).ok().map(|place| permit(place, true)),
        }
    }

    /// Evicts connections that become idle while there are more than the limit. Never returns.
    pub async fn keep_to_limit(&self) {
        self.connections.keep_settled().await;
    }

    /// Revokes every permit and grants no more.
    pub fn revoke_all(&self) {
        self.connections.revoke_all();
        self.reserve.revoke_all();
    }
}

impl Permit {
    /// Records that the connection was active at `now`.
    #[inline]
    pub fn touch(&self, now: Instant) {
        self.place.touch(now);
    }

    /// Records that HELLO is done. Returns whether the connection may stay: a connection in the reserve needs a regular place now,
    /// and there may be none.
    pub fn confirm_hello(&mut self) -> bool {
        if self.is_reserved {
            let Ok(place) = self.limit.connections.take(self.client, usize::MAX) else { return false };
            self.place = place;
            self.is_reserved = false;
        }
        self.place.mark_useful();
        true
    }

    /// Returns the permit. The connection may wait for its peer to read the last frame, unless too many do so already.
    pub fn linger(self) -> Option<Linger> {
        let limit = Arc::clone(&self.limit);
        drop(self);
        let linger = Linger { limit };
        let before = linger.limit.lingering.fetch_add(1, Ordering::Relaxed);
        (before < linger.limit.max_lingering).then_some(linger)
    }
}

/// The right to wait for the peer to read the last frame. Returned on drop.
#[derive(Debug)]
pub(super) struct Linger {
    limit: Arc<AgentLimit>,
}

impl Drop for Linger {
    fn drop(&mut self) {
        self.limit.lingering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::places::Standing;

    const BUSY: Duration = Duration::from_millis(BUSY_MS);

    fn is_revoked(permit: &mut Permit) -> bool {
        permit.place.revoked.try_recv().is_ok()
    }

    fn limited_to(max: usize) -> (Arc<AgentLimit>, LimitMetrics) {
        let metrics = LimitMetrics::default();
        (Arc::new(AgentLimit::new(Rules::new(max, BUSY_MS, BUSY_MS), metrics.clone())), metrics)
    }

    fn stranger(number: u8) -> Client {
        Client::new([192, 0, 2, number].into(), Standing::Stranger)
    }

    fn acquire(limit: &Arc<AgentLimit>) -> Option<Permit> {
        AgentLimit::acquire(limit, stranger(1))
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_idle_longest_is_evicted() {
        let (limit, metrics) = limited_to(2);
        let (mut first, mut second) = (acquire(&limit).unwrap(), acquire(&limit).unwrap());
        assert!(first.confirm_hello() && second.confirm_hello());
        assert!(acquire(&limit).unwrap().is_reserved, "both are busy");
        tokio::time::advance(BUSY * 2).await;
        first.touch(Instant::now());
        let mut third = acquire(&limit).unwrap();
        assert!(is_revoked(&mut second) && !is_revoked(&mut first) && !is_revoked(&mut third));
        drop(second);
        assert_eq!((metrics.open.get(), metrics.granted.get(), metrics.evicted.get()), (2, 3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_hello_are_evicted_first() {
        let (limit, _) = limited_to(2);
        let mut haproxy = acquire(&limit).unwrap();
        assert!(haproxy.confirm_hello());
        tokio::time::advance(BUSY * 10).await;
        let mut silent = acquire(&limit).unwrap();
        assert!(acquire(&limit).unwrap().is_reserved, "the silent connection is too new, and HAProxy stays");
        tokio::time::advance(BUSY).await;
        let _next = acquire(&limit).unwrap();
        assert!(is_revoked(&mut silent) && !is_revoked(&mut haproxy));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_in_the_reserve_need_a_regular_permit_at_hello() {
        let (limit, metrics) = limited_to(1);
        let mut haproxy = acquire(&limit).unwrap();
        assert!(haproxy.confirm_hello());
        let mut reserved: Vec<Permit> = (0..RESERVE).map(|_| acquire(&limit).unwrap()).collect();
        assert!(acquire(&limit).is_none(), "the reserve is bounded, too");
        assert_eq!((metrics.granted.get(), metrics.open.get()), (1, 1));
        let mut other = reserved.pop().unwrap();
        assert!(!other.confirm_hello(), "the only place is in use by a busy connection");
        tokio::time::advance(BUSY).await;
        assert!(other.confirm_hello(), "the other connection is idle now");
        assert!(is_revoked(&mut haproxy) && !is_revoked(&mut other));
        let _another = acquire(&limit).unwrap();
        limit.revoke_all();
        assert!(is_revoked(&mut other) && reserved.iter_mut().all(is_revoked));
        assert!(acquire(&limit).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connections_may_exceed_the_limit_and_are_evicted_when_idle() {
        let metrics = LimitMetrics::default();
        let limit = Arc::new(AgentLimit::new(elastic(2), metrics.clone()));
        let keeper = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { limit.keep_to_limit().await }
        });
        let mut all: Vec<Permit> = (0..2 * BURST).map(|_| acquire(&limit).unwrap()).collect();
        assert!(all.iter_mut().all(Permit::confirm_hello), "all are busy");
        assert!(acquire(&limit).unwrap().is_reserved, "the burst limit is reached");
        tokio::time::sleep(BUSY / 2).await;
        all[3].touch(Instant::now());
        all[5].touch(Instant::now());
        assert!(!all.iter_mut().any(is_revoked));
        tokio::time::sleep(BUSY * 10).await;
        let gone: Vec<usize> = (0..all.len()).filter(|index| is_revoked(&mut all[*index])).collect();
        let idle: Vec<usize> = (0..all.len()).filter(|index| ![3, 5].contains(index)).collect();
        assert_eq!(gone, idle, "the limit holds again, and the busy connections stay");
        assert_eq!(metrics.evicted.get(), idle.len() as u64);
        keeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_busy_connections_of_one_address_do_not_lock_out_another() {
        let (limit, metrics) = limited_to(1000);
        let mut flood: Vec<Permit> = (0..1000).map(|_| acquire(&limit).unwrap()).collect();
        assert!(flood.iter_mut().all(Permit::confirm_hello));
        let mut haproxy: Vec<Permit> = (0..8).map(|_| AgentLimit::acquire(&limit, stranger(2)).unwrap()).collect();
        assert!(haproxy.iter_mut().all(|permit| !permit.is_reserved && permit.confirm_hello()));
        tokio::time::advance(BUSY * 100).await;
        flood.iter().for_each(|permit| permit.touch(Instant::now()));
        let again: Vec<Permit> = (0..20).filter_map(|_| acquire(&limit)).collect();
        assert!(again.iter().all(|permit| permit.is_reserved), "the flood is busy itself");
        assert!(!haproxy.iter_mut().any(is_revoked), "idle, but fewer");
        assert_eq!(metrics.evicted.get(), 8);
    }

    #[tokio::test]
    async fn no_more_connections_linger_than_the_limit_allows() {
        let (limit, _) = limited_to(1);
        let first = acquire(&limit).unwrap().linger();
        assert!(first.is_some());
        assert!(acquire(&limit).unwrap().linger().is_none());
        drop(first);
        assert!(acquire(&limit).unwrap().linger().is_some());
    }
}
