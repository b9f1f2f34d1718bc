//! The limit on HAProxy's connections (`spoa.max_clients`), which evicts idle connections instead of refusing new ones. TLS handshakes
//! have a limit of their own with the same rules, so that a client that cannot finish a handshake never evicts a HAProxy.
//!
//! The connection that has been idle longest is evicted. While any connection has not sent HELLO, only such connections are evicted:
//! connections that never send anything push out each other, and a working HAProxy keeps its own. (Any client that speaks SPOP
//! looks like a HAProxy; `allowed_clients` keeps out others.)
//!
//! While every connection is busy, more permits are lent ([`BURST`]), and connections that become idle are evicted until the
//! limit holds again. A HAProxy with a thousand clients at once opens hundreds of connections. If one is refused, HAProxy considers the
//! agent dead and lets every client pass. Beyond the burst, a few connections are served until HELLO ([`RESERVE`]), because a refused
//! health check would also make a busy agent look dead.
//!
//! A query that HAProxy sends while its connection is being closed is not answered, and HAProxy repeats it on another
//! connection. So connections are evicted one at a time ([`PACE`]): if many were closed at once, the second might be closed as well.
//!
//! The other listeners of the node refuse instead: see [`crate::net::limit`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// A connection that was active within this time is busy, and is not evicted.
const BUSY: Duration = Duration::from_millis(100);

/// The time between two evictions while there are more connections than the limit.
const PACE: Duration = Duration::from_millis(10);

/// How many times the limit of connections is allowed while all of them are busy.
const BURST: usize = 10;

/// How many connections beyond that are served until they send HELLO.
const RESERVE: usize = 8;

/// The metrics of a limit.
#[derive(Clone, Debug, Default)]
pub(super) struct LimitMetrics {
    /// Permits granted.
    pub granted: Counter,
    /// Permits in use.
    pub open: Gauge,
    /// Connections that lost their permit to another.
    pub evicted: Counter,
}

/// Bounds open connections and evicts idle ones.
#[derive(Debug)]
pub(super) struct EvictingLimit {
    max: usize,
    /// The bound while all connections are busy.
    burst_limit: usize,
    metrics: LimitMetrics,
    /// Permits for connections beyond the bound until they send HELLO, if any.
    reserve: Option<Arc<Self>>,
    start: Instant,
    granted: Mutex<Granted>,
    /// Notified when more than `max` permits are in use.
    exceeded: Notify,
    /// Connections that have returned their permit but still wait for their peer to read the last frame.
    lingering: AtomicUsize,
}

#[derive(Debug, Default)]
struct Granted {
    next: u64,
    permits: HashMap<u64, Holder>,
    closed: bool,
}

#[derive(Debug)]
struct Holder {
    activity: Arc<Activity>,
    revoked: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Activity {
    /// Milliseconds since [`EvictingLimit::start`].
    last: AtomicU64,
    greeted: AtomicBool,
}

/// The right to keep one connection open. Returned to the limit on drop.
#[derive(Debug)]
pub(super) struct Permit {
    id: u64,
    limit: Arc<EvictingLimit>,
    activity: Arc<Activity>,
    /// The limit that must grant a permit when the connection sends HELLO; set for connections in its reserve.
    wanted: Option<Arc<EvictingLimit>>,
    /// Resolves when the connection is evicted and must close.
    pub revoked: oneshot::Receiver<()>,
}

impl EvictingLimit {
    /// A limit of `max` connections, at least one, without a reserve.
    pub fn new(max: usize, metrics: LimitMetrics) -> Self {
        let max = max.max(1);
        Self {
            max,
            burst_limit: max,
            metrics,
            reserve: None,
            start: Instant::now(),
            granted: Mutex::default(),
            exceeded: Notify::new(),
            lingering: AtomicUsize::new(0),
        }
    }

    /// Lends more permits while all connections are busy; [`Self::keep_to_limit`] takes them back.
    pub fn elastic(self) -> Self {
        Self { burst_limit: self.max.saturating_mul(BURST), ..self }
    }

    /// A limit with a reserve, whose permits are not counted in `metrics`.
    pub fn with_reserve(max: usize, metrics: LimitMetrics) -> Self {
        Self { reserve: Some(Arc::new(Self::new(RESERVE, LimitMetrics::default()))), ..Self::new(max, metrics) }
    }

    /// A permit for a new connection; `None` when all connections, those in the reserve included, are busy.
    pub fn acquire(limit: &Arc<Self>) -> Option<Permit> {
        Self::acquire_regular(limit).or_else(|| {
            let mut permit = Self::acquire_regular(limit.reserve.as_ref()?)?;
            permit.wanted = Some(Arc::clone(limit));
            Some(permit)
        })
    }

    fn acquire_regular(limit: &Arc<Self>) -> Option<Permit> {
        let now = limit.now(Instant::now());
        let mut granted = limit.lock();
        if granted.closed {
            return None;
        }
        if granted.permits.len() >= limit.burst_limit {
            granted.evict_idle(now, &limit.metrics).ok()?;
        } else if granted.permits.len() >= limit.max {
            granted.evict_silent(now, &limit.metrics);
        }
        let id = granted.next;
        granted.next += 1;
        let activity = Arc::new(Activity { last: AtomicU64::new(now), greeted: AtomicBool::new(false) });
        let (sender, revoked) = oneshot::channel();
        granted.permits.insert(id, Holder { activity: Arc::clone(&activity), revoked: sender });
        if granted.permits.len() > limit.max {
            limit.exceeded.notify_one();
        }
        drop(granted);
        limit.metrics.granted.inc();
        limit.metrics.open.inc();
        Some(Permit { id, limit: Arc::clone(limit), activity, wanted: None, revoked })
    }

    /// Evicts connections that become idle while there are more than the limit. Never returns.
    pub async fn keep_to_limit(&self) {
        loop {
            match self.trim() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => self.exceeded.notified().await,
            }
        }
    }

    /// Evicts one idle connection if there are more than the limit; then returns when to check again.
    fn trim(&self) -> Option<Duration> {
        let mut granted = self.lock();
        if granted.permits.len() <= self.max {
            return None;
        }
        Some(granted.evict_idle(self.now(Instant::now()), &self.metrics).err().unwrap_or(PACE))
    }

    /// Revokes every permit and grants no more.
    pub fn revoke_all(&self) {
        let mut granted = self.lock();
        granted.closed = true;
        for (_, holder) in granted.permits.drain() {
            // The connection may be closed already.
            let _ = holder.revoked.send(());
        }
        drop(granted);
        if let Some(reserve) = &self.reserve {
            reserve.revoke_all();
        }
    }

    fn now(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Granted> {
        self.granted.lock()
    }
}

impl Granted {
    /// Evicts the connection that has been idle longest. If that one is busy, returns for how long it still counts as busy.
    fn evict_idle(&mut self, now: u64, metrics: &LimitMetrics) -> Result<(), Duration> {
        let (_, last, id) = self.idlest().ok_or(BUSY)?;
        let idle = Duration::from_millis(now.saturating_sub(last));
        if let Some(wait) = BUSY.checked_sub(idle).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        self.evict(id, metrics);
        Ok(())
    }

    /// Evicts one connection that has sent no HELLO and is no longer new, if there is one.
    fn evict_silent(&mut self, now: u64, metrics: &LimitMetrics) {
        let silent = self
            .idlest()
            .filter(|(greeted, last, _)| !greeted && Duration::from_millis(now.saturating_sub(*last)) >= BUSY);
        if let Some((_, _, id)) = silent {
            self.evict(id, metrics);
        }
    }

    /// The next connection to evict: whether it has sent HELLO, when it was last active, and its number.
    fn idlest(&self) -> Option<(bool, u64, u64)> {
        let holders = self.permits.iter().map(|(id, holder)| {
            let activity = &holder.activity;
            (activity.greeted.load(Ordering::Relaxed), activity.last.load(Ordering::Relaxed), *id)
        });
        holders.min()
    }

    fn evict(&mut self, id: u64, metrics: &LimitMetrics) {
        if let Some(holder) = self.permits.remove(&id) {
            // The connection may be closed already.
            let _ = holder.revoked.send(());
            metrics.evicted.inc();
        }
    }
}

impl Permit {
    /// Records that the connection was active at `now`.
    #[inline]
    pub fn touch(&self, now: Instant) {
        self.activity.last.store(self.limit.now(now), Ordering::Relaxed);
    }

    /// Records that HELLO is done. Returns whether the connection may stay: a connection in the reserve needs a regular permit
    /// now, and there may be none.
    pub fn confirm_hello(&mut self) -> bool {
        if let Some(limit) = &self.wanted {
            let Some(permit) = EvictingLimit::acquire_regular(limit) else { return false };
            *self = permit;
        }
        self.activity.greeted.store(true, Ordering::Relaxed);
        true
    }

    /// Returns the permit. The connection may wait for its peer to read the last frame, unless too many do so already.
    pub fn linger(self) -> Option<Linger> {
        let limit = Arc::clone(&self.limit);
        drop(self);
        let linger = Linger { limit };
        let before = linger.limit.lingering.fetch_add(1, Ordering::Relaxed);
        (before < linger.limit.max).then_some(linger)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.lock().permits.remove(&self.id);
        self.limit.metrics.open.dec();
    }
}

/// The right to wait for the peer to read the last frame. Returned on drop.
#[derive(Debug)]
pub(super) struct Linger {
    limit: Arc<EvictingLimit>,
}

impl Drop for Linger {
    fn drop(&mut self) {
        self.limit.lingering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_revoked(permit: &mut Permit) -> bool {
        permit.revoked.try_recv().is_ok()
    }

    fn limited_to(max: usize) -> Arc<EvictingLimit> {
        Arc::new(EvictingLimit::new(max, LimitMetrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_idle_longest_is_evicted() {
        let limit = limited_to(2);
        let mut first = EvictingLimit::acquire(&limit).unwrap();
        let mut second = EvictingLimit::acquire(&limit).unwrap();
        assert!(first.confirm_hello() && second.confirm_hello());
        assert!(EvictingLimit::acquire(&limit).is_none(), "both are busy");
        tokio::time::advance(BUSY * 2).await;
        first.touch(Instant::now());
        let mut third = EvictingLimit::acquire(&limit).unwrap();
        assert!(is_revoked(&mut second) && !is_revoked(&mut first) && !is_revoked(&mut third));
        drop(second);
        assert_eq!(limit.metrics.open.get(), 2);
        assert_eq!((limit.metrics.granted.get(), limit.metrics.evicted.get()), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_hello_are_evicted_first() {
        let limit = limited_to(2);
        let mut haproxy = EvictingLimit::acquire(&limit).unwrap();
        assert!(haproxy.confirm_hello());
        tokio::time::advance(BUSY * 10).await;
        let mut silent = EvictingLimit::acquire(&limit).unwrap();
        assert!(EvictingLimit::acquire(&limit).is_none(), "the silent connection is too new, and HAProxy stays");
        tokio::time::advance(BUSY).await;
        let _next = EvictingLimit::acquire(&limit).unwrap();
        assert!(is_revoked(&mut silent) && !is_revoked(&mut haproxy));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_in_the_reserve_need_a_regular_permit_at_hello() {
        let limit = Arc::new(EvictingLimit::with_reserve(1, LimitMetrics::default()));
        let mut haproxy = EvictingLimit::acquire(&limit).unwrap();
        assert!(haproxy.confirm_hello());
        let mut reserved: Vec<Permit> = (0..RESERVE).map(|_| EvictingLimit::acquire(&limit).unwrap()).collect();
        assert!(EvictingLimit::acquire(&limit).is_none(), "the reserve is bounded, too");
        assert_eq!((limit.metrics.granted.get(), limit.metrics.open.get()), (1, 1));
        let mut other = reserved.pop().unwrap();
        assert!(!other.confirm_hello(), "the only permit is in use by a busy connection");
        tokio::time::advance(BUSY).await;
        assert!(other.confirm_hello(), "the other connection is idle now");
        assert!(is_revoked(&mut haproxy) && !is_revoked(&mut other));
        let _another = EvictingLimit::acquire(&limit).unwrap();
        limit.revoke_all();
        assert!(is_revoked(&mut other) && reserved.iter_mut().all(is_revoked));
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connections_may_exceed_the_limit_and_are_evicted_one_at_a_time_when_idle() {
        let limit = Arc::new(EvictingLimit::with_reserve(2, LimitMetrics::default()).elastic());
        let keeper = tokio::spawn({
            let limit = Arc::clone(&limit);
            async move { limit.keep_to_limit().await }
        });
        let mut all: Vec<Permit> = (0..2 * BURST).map(|_| EvictingLimit::acquire(&limit).unwrap()).collect();
        assert!(all.iter_mut().all(Permit::confirm_hello), "all are busy");
        let mut reserved = EvictingLimit::acquire(&limit).unwrap();
        assert!(!reserved.confirm_hello(), "the burst limit is reached");
        tokio::time::sleep(BUSY / 2).await;
        all[3].touch(Instant::now());
        all[5].touch(Instant::now());
        assert!(!all.iter_mut().any(is_revoked));
        tokio::time::sleep(BUSY / 2 + Duration::from_millis(1)).await;
        assert_eq!(limit.metrics.evicted.get(), 1, "one is evicted at a time");
        tokio::time::sleep(PACE * 16).await;
        assert_eq!(limit.metrics.evicted.get(), 17);
        tokio::time::sleep(BUSY * 3).await;
        let gone: Vec<usize> = (0..all.len()).filter(|index| is_revoked(&mut all[*index])).collect();
        let idle: Vec<usize> = (0..all.len()).filter(|index| ![3, 5].contains(index)).collect();
        assert_eq!(gone, idle, "the limit holds again, and the busy connections stay");
        assert!(!is_revoked(&mut all[3]) && !is_revoked(&mut all[5]), "idle, and within the limit");
        assert_eq!(limit.metrics.evicted.get(), idle.len() as u64);
        keeper.abort();
    }

    #[tokio::test]
    async fn revoking_all_permits_ends_every_connection_and_grants_no_more() {
        let limit = limited_to(2);
        let mut permit = EvictingLimit::acquire(&limit).unwrap();
        limit.revoke_all();
        assert!(is_revoked(&mut permit));
        assert!(EvictingLimit::acquire(&limit).is_none());
    }

    #[tokio::test]
    async fn no_more_connections_linger_than_the_limit_allows() {
        let limit = limited_to(1);
        let first = EvictingLimit::acquire(&limit).unwrap().linger();
        assert!(first.is_some());
        assert!(EvictingLimit::acquire(&limit).unwrap().linger().is_none());
        drop(first);
        assert!(EvictingLimit::acquire(&limit).unwrap().linger().is_some());
    }
}
