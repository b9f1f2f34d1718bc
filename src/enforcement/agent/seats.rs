//! Who holds one of the `max_clients` places, and who leaves when they are all taken. TLS handshakes have places of their
//! own, under the same rules: who cannot finish one never takes a place from a HAProxy.
//!
//! The connection that has been idle longest goes. While any connection has not said HELLO, only those are asked to go: so
//! connections that never say anything push out each other, and a HAProxy that is at work keeps its own. (Whoever speaks
//! SPOP looks like a HAProxy; `allowed_clients` keeps strangers out.)
//!
//! Where every connection is at work more are taken ([`BURST`]), and those that fall idle go until the limit is kept again: a
//! HAProxy that is called on by a thousand clients at once opens hundreds of connections, takes one that is refused for a dead
//! agent, and lets everybody pass. Beyond that a few are heard until HELLO ([`RESERVE`]): a health check that found no place
//! would take an agent for dead that is only busy.
//!
//! A check that HAProxy sends while the connection is being closed goes without an answer, and HAProxy asks again on another
//! connection. So HAProxy's connections go one at a time ([`PACE`]): if many went at once, the second might be gone as well.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// A connection that was active within this time is at work, and does not go.
const AT_WORK: Duration = Duration::from_millis(100);

/// The time between two connections that are closed to return to the limit.
const PACE: Duration = Duration::from_millis(10);

/// How many times the limit is held at most, while all connections are at work.
const BURST: usize = 10;

/// How many connections beyond the limit are heard until they have said HELLO.
const RESERVE: usize = 8;

/// What is counted of places.
#[derive(Clone, Debug, Default)]
pub(super) struct Turnover {
    /// Places taken.
    pub taken: Counter,
    /// Places taken now.
    pub open: Gauge,
    /// Connections that had to leave theirs.
    pub evicted: Counter,
}

/// All places.
#[derive(Debug)]
pub(super) struct Seats {
    limit: usize,
    /// How many places there are while all of them are at work.
    most: usize,
    turnover: Turnover,
    /// Where somebody may wait who finds no place; without one nobody may.
    reserve: Option<Arc<Self>>,
    start: Instant,
    held: Mutex<Held>,
    /// Told when more than `limit` places are taken.
    crowded: Notify,
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
    /// Where the connection must find a place once it has said HELLO: it sits in their reserve.
    wanted: Option<Arc<Seats>>,
    /// Resolves when the connection must leave.
    pub leave: oneshot::Receiver<()>,
}

impl Seats {
    /// So many places, at least one, without a reserve.
    pub fn new(limit: usize, turnover: Turnover) -> Self {
        let limit = limit.max(1);
        Self {
            limit,
            most: limit,
            turnover,
            reserve: None,
            start: Instant::now(),
            held: Mutex::default(),
            crowded: Notify::new(),
            lingering: AtomicUsize::new(0),
        }
    }

    /// The same with more places while all are at work; [`Self::keep_to_limit`] takes them back.
    pub fn elastic(self) -> Self {
        Self { most: self.limit.saturating_mul(BURST), ..self }
    }

    /// The same with a reserve, of which nothing is counted.
    pub fn with_reserve(limit: usize, turnover: Turnover) -> Self {
        Self { reserve: Some(Arc::new(Self::new(RESERVE, Turnover::default()))), ..Self::new(limit, turnover) }
    }

    /// A seat for a new connection, or `None` when all are taken by connections at work, the reserve as well.
    pub fn take(seats: &Arc<Self>) -> Option<Seat> {
        Self::take_regular(seats).or_else(|| {
            let mut seat = Self::take_regular(seats.reserve.as_ref()?)?;
            seat.wanted = Some(Arc::clone(seats));
            Some(seat)
        })
    }

    fn take_regular(seats: &Arc<Self>) -> Option<Seat> {
        let now = seats.now(Instant::now());
        let mut held = seats.lock();
        if held.dismissed {
            return None;
        }
        if held.seats.len() >= seats.most {
            held.evict_idle(now, &seats.turnover).ok()?;
        } else if held.seats.len() >= seats.limit {
            held.evict_silent(now, &seats.turnover);
        }
        let id = held.next;
        held.next += 1;
        let activity = Arc::new(Activity { last: AtomicU64::new(now), greeted: AtomicBool::new(false) });
        let (sender, leave) = oneshot::channel();
        held.seats.insert(id, Occupant { activity: Arc::clone(&activity), leave: sender });
        if held.seats.len() > seats.limit {
            seats.crowded.notify_one();
        }
        drop(held);
        seats.turnover.taken.inc();
        seats.turnover.open.inc();
        Some(Seat { id, seats: Arc::clone(seats), activity, wanted: None, leave })
    }

    /// For ever makes those leave that fall idle while more than the limit are there.
    pub async fn keep_to_limit(&self) {
        loop {
            match self.trim() {
                Some(wait) => tokio::time::sleep(wait).await,
                None => self.crowded.notified().await,
            }
        }
    }

    /// Makes one idle connection leave if more than the limit are there. Returns when to look again, if so.
    fn trim(&self) -> Option<Duration> {
        let mut held = self.lock();
        if held.seats.len() <= self.limit {
            return None;
        }
        Some(held.evict_idle(self.now(Instant::now()), &self.turnover).err().unwrap_or(PACE))
    }

    /// Makes every connection leave, and gives no more seats.
    pub fn dismiss_all(&self) {
        let mut held = self.lock();
        held.dismissed = true;
        for (_, occupant) in held.seats.drain() {
            // Whoever is gone already need not be told.
            let _ = occupant.leave.send(());
        }
        drop(held);
        if let Some(reserve) = &self.reserve {
            reserve.dismiss_all();
        }
    }

    fn now(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }
}

impl Held {
    /// Makes the one leave that has been idle longest. Where that one is at work, returns for how long it still counts so.
    fn evict_idle(&mut self, now: u64, turnover: &Turnover) -> Result<(), Duration> {
        let (_, last, id) = self.idlest().ok_or(AT_WORK)?;
        let idle = Duration::from_millis(now.saturating_sub(last));
        if let Some(wait) = AT_WORK.checked_sub(idle).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        self.evict(id, turnover);
        Ok(())
    }

    /// Makes one leave that has not said HELLO and is no longer new, if there is one.
    fn evict_silent(&mut self, now: u64, turnover: &Turnover) {
        let silent = self
            .idlest()
            .filter(|(greeted, last, _)| !greeted && Duration::from_millis(now.saturating_sub(*last)) >= AT_WORK);
        if let Some((_, _, id)) = silent {
            self.evict(id, turnover);
        }
    }

    /// Who goes first: whether it has said HELLO, when it was last active, and its number.
    fn idlest(&self) -> Option<(bool, u64, u64)> {
        let occupants = self.seats.iter().map(|(id, occupant)| {
            let activity = &occupant.activity;
            (activity.greeted.load(Ordering::Relaxed), activity.last.load(Ordering::Relaxed), *id)
        });
        occupants.min()
    }

    fn evict(&mut self, id: u64, turnover: &Turnover) {
        if let Some(occupant) = self.seats.remove(&id) {
            // Whoever is gone already need not be told.
            let _ = occupant.leave.send(());
            turnover.evicted.inc();
        }
    }
}

impl Seat {
    /// Notes that the connection was active at `now`.
    #[inline]
    pub fn touch(&self, now: Instant) {
        self.activity.last.store(self.seats.now(now), Ordering::Relaxed);
    }

    /// Notes that HELLO is done. Returns whether the connection may stay: one that was heard in the reserve needs a place
    /// now, and there may be none.
    pub fn greet(&mut self) -> bool {
        if let Some(seats) = &self.wanted {
            let Some(seat) = Seats::take_regular(seats) else { return false };
            *self = seat;
        }
        self.activity.greeted.store(true, Ordering::Relaxed);
        true
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
        self.seats.turnover.open.dec();
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

    fn seats(limit: usize) -> Arc<Seats> {
        Arc::new(Seats::new(limit, Turnover::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_idle_longest_makes_room() {
        let seats = seats(2);
        let mut first = Seats::take(&seats).unwrap();
        let mut second = Seats::take(&seats).unwrap();
        assert!(first.greet() && second.greet());
        assert!(Seats::take(&seats).is_none(), "both are at work");
        tokio::time::advance(AT_WORK * 2).await;
        first.touch(Instant::now());
        let mut third = Seats::take(&seats).unwrap();
        assert!(left(&mut second) && !left(&mut first) && !left(&mut third));
        drop(second);
        assert_eq!(seats.turnover.open.get(), 2);
        assert_eq!((seats.turnover.taken.get(), seats.turnover.evicted.get()), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_not_said_hello_goes_first() {
        let seats = seats(2);
        let mut haproxy = Seats::take(&seats).unwrap();
        assert!(haproxy.greet());
        tokio::time::advance(AT_WORK * 10).await;
        let mut silent = Seats::take(&seats).unwrap();
        assert!(Seats::take(&seats).is_none(), "the silent one is too new, and HAProxy stays");
        tokio::time::advance(AT_WORK).await;
        let _next = Seats::take(&seats).unwrap();
        assert!(left(&mut silent) && !left(&mut haproxy));
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_is_for_those_who_have_not_said_hello() {
        let seats = Arc::new(Seats::with_reserve(1, Turnover::default()));
        let mut haproxy = Seats::take(&seats).unwrap();
        assert!(haproxy.greet());
        let mut heard: Vec<Seat> = (0..RESERVE).map(|_| Seats::take(&seats).unwrap()).collect();
        assert!(Seats::take(&seats).is_none(), "it has an end as well");
        assert_eq!((seats.turnover.taken.get(), seats.turnover.open.get()), (1, 1));
        let mut other = heard.pop().unwrap();
        assert!(!other.greet(), "the only place is at work");
        tokio::time::advance(AT_WORK).await;
        assert!(other.greet(), "it is idle now");
        assert!(left(&mut haproxy) && !left(&mut other));
        let _another = Seats::take(&seats).unwrap();
        seats.dismiss_all();
        assert!(left(&mut other) && heard.iter_mut().all(left));
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_burst_more_are_taken_until_some_are_idle() {
        let seats = Arc::new(Seats::with_reserve(2, Turnover::default()).elastic());
        let keeper = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { seats.keep_to_limit().await }
        });
        let mut all: Vec<Seat> = (0..2 * BURST).map(|_| Seats::take(&seats).unwrap()).collect();
        assert!(all.iter_mut().all(Seat::greet), "all are at work");
        let mut heard = Seats::take(&seats).unwrap();
        assert!(!heard.greet(), "that is the most");
        tokio::time::sleep(AT_WORK / 2).await;
        all[3].touch(Instant::now());
        all[5].touch(Instant::now());
        assert!(!all.iter_mut().any(left));
        tokio::time::sleep(AT_WORK / 2 + Duration::from_millis(1)).await;
        assert_eq!(seats.turnover.evicted.get(), 1, "they leave one at a time");
        tokio::time::sleep(PACE * 16).await;
        assert_eq!(seats.turnover.evicted.get(), 17);
        tokio::time::sleep(AT_WORK * 3).await;
        let gone: Vec<usize> = (0..all.len()).filter(|index| left(&mut all[*index])).collect();
        let idle: Vec<usize> = (0..all.len()).filter(|index| ![3, 5].contains(index)).collect();
        assert_eq!(gone, idle, "the limit is kept again, and who was at work stays");
        assert!(!left(&mut all[3]) && !left(&mut all[5]), "idle, and within the limit");
        assert_eq!(seats.turnover.evicted.get(), idle.len() as u64);
        keeper.abort();
    }

    #[tokio::test]
    async fn all_leave_and_none_comes_after() {
        let seats = seats(2);
        let mut seat = Seats::take(&seats).unwrap();
        seats.dismiss_all();
        assert!(left(&mut seat));
        assert!(Seats::take(&seats).is_none());
    }

    #[tokio::test]
    async fn no_more_linger_than_sit() {
        let seats = seats(1);
        let first = Seats::take(&seats).unwrap().linger();
        assert!(first.is_some());
        assert!(Seats::take(&seats).unwrap().linger().is_none());
        drop(first);
        assert!(Seats::take(&seats).unwrap().linger().is_some());
    }
}
