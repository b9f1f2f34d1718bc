//! Repairs that other nodes begin.
//!
//! A connection that does not authenticate is closed without an answer. Unauthenticated connections are limited in number and
//! time. When there are too many, the oldest is closed, so a flood of them does not keep out a node that authenticates quickly.

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

use super::caller::MAX_SESSION;
use super::exchange;
use super::session::{Handshake, SessionError, within};
use crate::cluster::metrics::Metrics;
use crate::decisions::store::StoreHandle;
use crate::net::accept::Acceptor;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::repair::ProtocolError;

/// Authenticated sessions at a time.
const MAX_SESSIONS: usize = 8;
/// Unauthenticated connections at a time.
const MAX_UNAUTHENTICATED: usize = 256;

/// Connections that have not authenticated yet, oldest first.
#[derive(Debug, Default)]
struct Unauthenticated {
    next: u64,
    waiting: BTreeMap<u64, AbortHandle>,
}

/// Accepts repairs. Cheap to clone.
#[derive(Clone)]
pub(in crate::cluster) struct Listener {
    handshake: Handshake,
    store: StoreHandle,
    metrics: Metrics,
    sessions: Arc<Semaphore>,
    unauthenticated: Arc<Mutex<Unauthenticated>>,
    throttle: Arc<LogThrottle>,
}

impl Listener {
    pub(in crate::cluster) fn new(handshake: Handshake, store: StoreHandle, metrics: Metrics) -> Self {
        Self {
            handshake,
            store,
            metrics,
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            unauthenticated: Arc::default(),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        }
    }

    /// Accepts connections on `socket` until `shutdown`.
    pub(in crate::cluster) async fn serve(self, socket: TcpListener, shutdown: CancellationToken) {
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
        let mut unauthenticated = self.unauthenticated();
        if unauthenticated.waiting.len() >= MAX_UNAUTHENTICATED
            && let Some((_, oldest)) = unauthenticated.waiting.pop_first()
        {
            oldest.abort();
            Metrics::count(&self.metrics.connections_dropped, "too many");
        }
        let number = unauthenticated.next;
        unauthenticated.next += 1;
        let this = self.clone();
        let task = tasks.spawn(async move {
            let ended = shutdown.run_until_cancelled(this.answer(stream, number)).await;
            this.unauthenticated().waiting.remove(&number);
            if let Some(Err(error)) = ended {
                Metrics::count(&this.metrics.connections_dropped, error.reason());
                if let Some(held_back) = this.throttle.permit(Instant::now()) {
                    tracing::warn!(%from, %error, held_back, "a repair connection was dropped");
                }
            }
        });
        // The task needs the lock to remove itself, so it is still there.
        unauthenticated.waiting.insert(number, task.abort_handle());
    }

    async fn answer(&self, mut stream: TcpStream, number: u64) -> Result<(), SessionError> {
        // Small frames at the end of a session must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.split();
        let busy = self.sessions.available_permits() == 0;
        let mut session = self.handshake.answer(busy, reader, writer).await?;
        let digests = exchange::digests(&mut session.reader).await?;
        self.unauthenticated().waiting.remove(&number);
        let _permit = self.sessions.try_acquire().map_err(|_| SessionError::Protocol(ProtocolError::Busy))?;
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

    fn unauthenticated(&self) -> parking_lot::MutexGuard<'_, Unauthenticated> {
        self.unauthenticated.lock()
    }
}
