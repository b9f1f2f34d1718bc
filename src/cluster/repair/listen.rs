//! Answers the repair calls of other nodes.
//!
//! A stranger gets nothing but a closed connection. Connections that have not yet shown that they hold a key are few and
//! short: when there are too many, the oldest makes room, so a flood of them keeps nobody out who is quick.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::MAX_SESSION;
use super::exchange;
use super::frame::{Greeter, SessionError, within};
use crate::cluster::metrics::Metrics;
use crate::decisions::store::StoreHandle;
use crate::net::accept::Acceptor;
use crate::net::throttle::LogThrottle;

/// Sessions that are served at a time.
const MAX_SESSIONS: usize = 8;
/// Connections that have yet to show a key.
const MAX_STRANGERS: usize = 256;

/// Connections that have yet to show a key, oldest first.
#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    waiting: BTreeMap<u64, AbortHandle>,
}

/// The answering end.
#[derive(Clone)]
pub(in super::super) struct Listener {
    greeter: Greeter,
    store: StoreHandle,
    metrics: Metrics,
    sessions: Arc<Semaphore>,
    strangers: Arc<Mutex<Strangers>>,
    throttle: Arc<LogThrottle>,
}

impl Listener {
    pub(in super::super) fn new(greeter: Greeter, store: StoreHandle, metrics: Metrics) -> Self {
        Self {
            greeter,
            store,
            metrics,
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            strangers: Arc::default(),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        }
    }

    /// Answers on `socket` until `shutdown`.
    pub(in super::super) async fn serve(self, socket: TcpListener, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let errors = Metrics::counter(&self.metrics.connections_dropped, "accept");
        let mut acceptor = Acceptor::new(socket, "another node", errors);
        while let Some((stream, from)) = shutdown.run_until_cancelled(acceptor.next()).await {
            self.begin(stream, from, &tasks, shutdown.clone());
        }
        tasks.close();
        tasks.wait().await;
    }

    fn begin(&self, stream: TcpStream, from: SocketAddr, tasks: &TaskTracker, shutdown: CancellationToken) {
        let mut strangers = self.strangers();
        if strangers.waiting.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = strangers.waiting.pop_first()
        {
            oldest.abort();
            Metrics::count(&self.metrics.connections_dropped, "too many");
        }
        let number = strangers.next;
        strangers.next += 1;
        let this = self.clone();
        let task = tasks.spawn(async move {
            let ended = shutdown.run_until_cancelled(this.answer(stream, number)).await;
            this.strangers().waiting.remove(&number);
            if let Some(Err(error)) = ended {
                Metrics::count(&this.metrics.connections_dropped, error.reason());
                if let Some(held_back) = this.throttle.permit(Instant::now()) {
                    tracing::warn!(%from, %error, held_back, "a repair call was dropped");
                }
            }
        });
        // The task takes the lock before it removes itself, so it cannot be gone already.
        strangers.waiting.insert(number, task.abort_handle());
    }

    async fn answer(&self, mut stream: TcpStream, number: u64) -> Result<(), SessionError> {
        // Small frames at the end of a session must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.split();
        let busy = self.sessions.available_permits() == 0;
        let mut session = self.greeter.answer(busy, reader, writer).await?;
        let digests = exchange::digests(&mut session.reader).await?;
        self.strangers().waiting.remove(&number);
        let _permit = self.sessions.try_acquire().map_err(|_| SessionError::Busy)?;
        let node = session.node.clone();
        let outcome = within(MAX_SESSION, exchange::answer(&self.store, session, &digests)).await?;
        self.metrics.repairs_served.inc();
        self.metrics.repair_sent.inc_by(outcome.sent);
        self.metrics.repair_received.inc_by(outcome.received);
        if outcome.refused > 0 {
            Metrics::count_many(&self.metrics.records_refused, "repair", outcome.refused);
        }
        tracing::debug!(%node, ?outcome, "answered a repair");
        Ok(())
    }

    fn strangers(&self) -> parking_lot::MutexGuard<'_, Strangers> {
        self.strangers.lock()
    }
}
