//! Shares the processor between the clients of the agent.
//!
//! The runtime serves its tasks in turn. With a task per connection, a host with a thousand busy connections would get a hundred times the
//! processor time of a HAProxy with ten. So each client has a few tasks, its lanes, at most one per worker thread, and each
//! lane serves the connections of its client in turn. A lane that has done a certain amount of work lets the other tasks run
//! ([`TURN`]); lanes of known clients do more per turn, so that strangers with many addresses cannot crowd them out.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, Stream as _};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::net::places::{Client, Standing};

/// The work of one turn, in answers: less than a tenth of a millisecond. A known client has [`KNOWN`] times as much.
const TURN: u64 = 256;
/// How much more a known client may do per turn.
const KNOWN: u64 = 4;
/// The cost of waking a connection, in answers: mostly a read and a write.
const WAKE: u64 = 32;

/// The lanes of all clients.
#[derive(Debug)]
pub(super) struct Lanes {
    /// The most lanes of one client.
    width: usize,
    clients: HashMap<Client, Vec<Arc<Lane>>>,
    tasks: JoinSet<()>,
}

/// The work that one connection may still do in this turn of its lane.
#[derive(Clone, Debug)]
pub(super) struct Turn(Arc<Lane>);

#[derive(Debug)]
struct Lane {
    /// The work of a turn.
    turn: u64,
    /// The work done in this turn. Only the task of the lane writes it.
    spent: AtomicU64,
    /// Connections of this lane.
    load: AtomicUsize,
    /// Connections that the task has not taken over yet. Each holds a place of a limit, which bounds them.
    arrived: Mutex<Vec<Job>>,
    has_arrived: AtomicBool,
    closed: AtomicBool,
    /// Set by the first poll of the task.
    waker: OnceLock<Waker>,
}

struct Job(BoxFuture<'static, ()>);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Default for Lanes {
    /// As many lanes per client as the runtime has worker threads. Must be called within a runtime.
    fn default() -> Self {
        Self::new(tokio::runtime::Handle::current().metrics().num_workers())
    }
}

impl Lanes {
    /// Up to `width` lanes per client, at least one.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), clients: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Runs a connection of `client`.
    pub fn spawn<F>(&mut self, client: Client, connection: impl FnOnce(Turn) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if !self.clients.contains_key(&client) {
            self.close_unused();
        }
        let lanes = self.clients.entry(client).or_default();
        let least = lanes.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed));
        let lane = match least {
            Some(lane) if lanes.len() >= self.width || lane.load.load(Ordering::Relaxed) == 0 => Arc::clone(lane),
            _ => {
                let lane = Arc::new(Lane::new(client.standing()));
                self.tasks.spawn(serve(Arc::clone(&lane)));
                lanes.push(Arc::clone(&lane));
                lane
            }
        };
        lane.add(Job(connection(Turn(Arc::clone(&lane))).boxed()));
    }

    /// Removes the tasks of lanes that have ended. Pending while there is none; cancel safe.
    pub async fn reap(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until every connection has ended. None may be added afterwards.
    pub async fn finish(&mut self) {
        for (_, lanes) in self.clients.drain() {
            lanes.iter().for_each(|lane| lane.close());
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn close_unused(&mut self) {
        self.clients.retain(|_, lanes| {
            let used = lanes.iter().any(|lane| lane.load.load(Ordering::Relaxed) > 0);
            if !used {
                lanes.iter().for_each(|lane| lane.close());
            }
            used
        });
    }
}

impl Lane {
    fn new(standing: Standing) -> Self {
        Self {
            turn: if standing == Standing::Known { TURN * KNOWN } else { TURN },
            spent: AtomicU64::new(0),
            load: AtomicUsize::new(0),
            arrived: Mutex::default(),
            has_arrived: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waker: OnceLock::new(),
        }
    }

    fn add(&self, job: Job) {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.arrived.lock().push(job);
        self.has_arrived.store(true, Ordering::Release);
        self.wake();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    #[inline]
    fn spend(&self, work: u64) {
        self.spent.store(self.spent.load(Ordering::Relaxed) + work, Ordering::Relaxed);
    }

    #[inline]
    fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed) >= self.turn
    }
}

impl Turn {
    /// Records `answers`, and lets other tasks run if the turn is over.
    #[inline]
    pub async fn spend(&self, answers: u64) {
        self.0.spend(answers);
        if self.0.is_spent() {
            let mut has_yielded = false;
            // Not tokio's, which would wake the connection only after the next look at the sockets.
            poll_fn(|cx| {
                if std::mem::replace(&mut has_yielded, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
    }
}

/// Serves the connections of one lane until it is closed and empty.
async fn serve(lane: Arc<Lane>) {
    let mut running: FuturesUnordered<InTurn> = FuturesUnordered::new();
    poll_fn(|cx| {
        // The waker of a task stays the same.
        lane.waker.get_or_init(|| cx.waker().clone());
        lane.spent.store(0, Ordering::Relaxed);
        // Checked before what has arrived: nothing arrives in a closed lane.
        let closed = lane.closed.load(Ordering::Acquire);
        if lane.has_arrived.swap(false, Ordering::Acquire) {
            for job in std::mem::take(&mut *lane.arrived.lock()) {
                running.push(InTurn { connection: job.0, lane: Arc::clone(&lane) });
            }
        }
        loop {
            match Pin::new(&mut running).poll_next(cx) {
                Poll::Ready(Some(())) => {
                    lane.load.fetch_sub(1, Ordering::Relaxed);
                }
                Poll::Ready(None) if closed => return Poll::Ready(()),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// A connection that does nothing more once the turn of its lane is over.
struct InTurn {
    connection: BoxFuture<'static, ()>,
    lane: Arc<Lane>,
}

impl Future for InTurn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.lane.is_spent() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.lane.spend(WAKE);
        let connection = self.connection.as_mut();
        // The panic hook has logged and counted it. The other connections of the lane go on.
        std::panic::catch_unwind(AssertUnwindSafe(|| connection.poll(cx))).unwrap_or_else(|_| {
            tracing::error!("the task of a HAProxy connection failed; this is a bug in banmesh");
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8, standing: Standing) -> Client {
        Client::new([192, 0, 2, number].into(), standing)
    }

    /// The connections that wait for their next query.
    type Waiting = Arc<Mutex<Vec<Waker>>>;

    /// A connection that answers a batch of `answers` whenever it is woken, and counts the batches in `done`.
    async fn serve_batches(turn: Turn, done: Arc<AtomicU64>, answers: u64, waiting: Waiting) {
        loop {
            done.fetch_add(1, Ordering::Relaxed);
            turn.spend(answers).await;
            let mut was_woken = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut was_woken, true) {
                    return Poll::Ready(());
                }
                waiting.lock().push(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }

    /// The batches that the connections of two clients answer while each of them always has a query.
    async fn work(one: (Client, usize, u64), other: (Client, usize, u64)) -> (u64, u64) {
        let mut lanes = Lanes::new(1);
        let waiting = Waiting::default();
        let done = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        for ((client, connections, answers), done) in [one, other].into_iter().zip(&done) {
            for _ in 0..connections {
                lanes.spawn(client, |turn| serve_batches(turn, Arc::clone(done), answers, Arc::clone(&waiting)));
            }
        }
        let totals = done.clone();
        // A task, so that it has its turn after each turn of the two lanes, as the look at the sockets has.
        let querying = poll_fn(move |cx| {
            std::mem::take(&mut *waiting.lock()).into_iter().for_each(Waker::wake);
            if done.iter().map(|done| done.load(Ordering::Relaxed)).sum::<u64>() > 50_000 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        tokio::spawn(querying).await.unwrap();
        (totals[0].load(Ordering::Relaxed), totals[1].load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_thousand_busy_connections_get_no_more_turns_than_eight() {
        let flood = (client(1, Standing::Stranger), 1000, 1);
        let haproxy = (client(2, Standing::Stranger), 8, 1);
        let (flood, haproxy) = work(flood, haproxy).await;
        assert!(haproxy * 2 > flood, "{haproxy} against {flood}");
    }

    #[tokio::test]
    async fn a_client_that_sends_long_batches_gets_fewer_turns() {
        let batches = (client(1, Standing::Stranger), 16, 500);
        let haproxy = (client(2, Standing::Stranger), 16, 1);
        let (batches, haproxy) = work(batches, haproxy).await;
        assert!(haproxy > batches * 4, "{haproxy} against {batches}");
    }

    #[tokio::test]
    async fn known_clients_do_more_per_turn() {
        let stranger = (client(1, Standing::Stranger), 100, 1);
        let known = (client(2, Standing::Known), 100, 1);
        let (stranger, known) = work(stranger, known).await;
        assert!(known > stranger * 2, "{known} against {stranger}");
    }

    #[tokio::test]
    async fn a_panic_of_one_connection_does_not_end_the_others() {
        let mut lanes = Lanes::new(1);
        let done = Arc::new(AtomicU64::new(0));
        lanes.spawn(client(1, Standing::Known), |_| async { panic!("on purpose") });
        for _ in 0..3 {
            let done = Arc::clone(&done);
            lanes.spawn(client(1, Standing::Known), |_| async move {
                tokio::task::yield_now().await;
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        lanes.finish().await;
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn lanes_of_clients_without_connections_end() {
        let mut lanes = Lanes::new(2);
        for number in 0..100 {
            lanes.spawn(client(number, Standing::Stranger), |_| async {});
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        assert!(lanes.clients.len() <= 2, "{}", lanes.clients.len());
        lanes.finish().await;
    }
}
