//! Who holds one of the `max_clients` places, and who leaves when they are all taken.
//!
//! The connection that has been idle longest goes. While any connection has not said HELLO, only those are asked to go: so
//! connections that never say anything push out each other, and a HAProxy that is at work keeps its own. (Whoever speaks
//! SPOP looks like a HAProxy; `allowed_clients` keeps strangers out.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::metrics::Metrics;

/// A connection that was active within this time is at work: a new one is refused rather than that it goes.
const AT_WORK: Duration = Duration::from_millis(100);

/// All places.
#[derive(Debug)]
pub(super) struct Seats {
    limit: usize,
    start: Instant,
    held: Mutex<Held>,
    /// Connections that have left their seat but still wait for their peer to read the last frame.
    lingering: AtomicUsize,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    seats: HashMap<u64, Occupant>,
    dismissed: bool,
}

#[derive(Debug)]
struct Occupant {
    activity: Arc<Activity>,
    leave: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Activity {
    /// Milliseconds since [`Seats::start`].
    last: AtomicU64,
    greeted: AtomicBool,
}

/// One connection's place; given up on drop.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    seats: Arc<Seats>,
    activity: Arc<Activity>,
    metrics: Metrics,
    /// Resolves when the connection must leave.
    pub leave: oneshot::Receiver<()>,
}

impl Seats {
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), start: Instant::now(), held: Mutex::default(), lingering: AtomicUsize::new(0) }
    }

    /// A seat for a new connection, or `None` when all are taken by connections at work.
    pub fn take(seats: &Arc<Self>, metrics: &Metrics) -> Option<Seat> {
        let now = seats.now();
        let mut held = seats.lock();
        if held.dismissed || (held.seats.len() >= seats.limit && !held.evict_idle(now, metrics)) {
            return None;
        }
        let id = held.next;
        held.next += 1;
        let activity = Arc::new(Activity { last: AtomicU64::new(now), greeted: AtomicBool::new(false) });
        let (sender, leave) = oneshot::channel();
        held.seats.insert(id, Occupant { activity: Arc::clone(&activity), leave: sender });
        drop(held);
        metrics.connections.inc();
        metrics.connections_open.inc();
        Some(Seat { id, seats: Arc::clone(seats), activity, metrics: metrics.clone(), leave })
    }

    /// Makes every connection leave, and gives no more seats.
    pub fn dismiss_all(&self) {
        let mut held = self.lock();
        held.dismissed = true;
        for (_, occupant) in held.seats.drain() {
            // Whoever is gone already need not be told.
            let _ = occupant.leave.send(());
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn evict_idle(&mut self, now: u64, metrics: &Metrics) -> bool {
        let idlest = self.seats.iter().map(|(id, occupant)| {
            let activity = &occupant.activity;
            (activity.greeted.load(Ordering::Relaxed), activity.last.load(Ordering::Relaxed), *id)
        });
        let Some((_, last, id)) = idlest.min() else { return false };
        if u128::from(now.saturating_sub(last)) < AT_WORK.as_millis() {
            return false;
        }
        if let Some(occupant) = self.seats.remove(&id) {
            let _ = occupant.leave.send(());
            metrics.evicted.inc();
        }
        true
    }
}

impl Seat {
    /// Notes that the connection has just been active.
    #[inline]
    pub fn touch(&self) {
        self.activity.last.store(self.seats.now(), Ordering::Relaxed);
    }

    /// Notes that HELLO is done.
    pub fn greet(&self) {
        self.activity.greeted.store(true, Ordering::Relaxed);
    }

    /// Gives the seat up, with leave to wait for the peer to read the last frame unless too many do so already.
    pub fn linger(self) -> Option<Linger> {
        let seats = Arc::clone(&self.seats);
        drop(self);
        let linger = Linger { seats };
        let before = linger.seats.lingering.fetch_add(1, Ordering::Relaxed);
        (before < linger.seats.limit).then_some(linger)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().seats.remove(&self.id);
        self.metrics.connections_open.dec();
    }
}

/// Leave to wait for the peer; given up on drop.
#[derive(Debug)]
pub(super) struct Linger {
    seats: Arc<Seats>,
}

impl Drop for Linger {
    fn drop(&mut self) {
        self.seats.lingering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(seat: &mut Seat) -> bool {
        seat.leave.try_recv().is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_idle_longest_makes_room() {
        let (seats, metrics) = (Arc::new(Seats::new(2)), Metrics::default());
        let mut first = Seats::take(&seats, &metrics).unwrap();
        let mut second = Seats::take(&seats, &metrics).unwrap();
        first.greet();
        second.greet();
        assert!(Seats::take(&seats, &metrics).is_none(), "both are at work");
        tokio::time::advance(AT_WORK * 2).await;
        first.touch();
        let mut third = Seats::take(&seats, &metrics).unwrap();
        assert!(left(&mut second) && !left(&mut first) && !left(&mut third));
        drop(second);
        assert_eq!(metrics.connections_open.get(), 2);
        assert_eq!((metrics.connections.get(), metrics.evicted.get()), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_not_said_hello_goes_first() {
        let (seats, metrics) = (Arc::new(Seats::new(2)), Metrics::default());
        let mut haproxy = Seats::take(&seats, &metrics).unwrap();
        haproxy.greet();
        tokio::time::advance(AT_WORK * 10).await;
        let mut silent = Seats::take(&seats, &metrics).unwrap();
        assert!(Seats::take(&seats, &metrics).is_none(), "the silent one is too new, and HAProxy stays");
        tokio::time::advance(AT_WORK).await;
        let _next = Seats::take(&seats, &metrics).unwrap();
        assert!(left(&mut silent) && !left(&mut haproxy));
    }

    #[tokio::test]
    async fn all_leave_and_none_comes_after() {
        let (seats, metrics) = (Arc::new(Seats::new(2)), Metrics::default());
        let mut seat = Seats::take(&seats, &metrics).unwrap();
        seats.dismiss_all();
        assert!(left(&mut seat));
        assert!(Seats::take(&seats, &metrics).is_none());
    }

    #[tokio::test]
    async fn no_more_linger_than_sit() {
        let (seats, metrics) = (Arc::new(Seats::new(1)), Metrics::default());
        let first = Seats::take(&seats, &metrics).unwrap().linger();
        assert!(first.is_some());
        assert!(Seats::take(&seats, &metrics).unwrap().linger().is_none());
        drop(first);
        assert!(Seats::take(&seats, &metrics).unwrap().linger().is_some());
    }
}
