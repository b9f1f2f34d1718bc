//! The agent that HAProxy asks (SPOA): one task a connection reads what the socket has, decodes every complete frame in
//! place, looks up, and writes all answers with one write.
//!
//! - An idle connection stays open for ever; only HELLO and the rest of a begun frame have a deadline.
//! - At `max_clients` the connection that has been idle longest makes room ([`seats`]).
//! - On shutdown the agent leaves as a lame duck, so that HAProxy moves to another agent without losing an answer: for
//!   [`SpoaConfig::drain`] it answers health checks with DISCONNECT and everything else as before. When there never was a
//!   health check over SPOP it closes the listener at once, which is what a plain `check` notices, and answers on open
//!   connections.

mod connection;
mod metrics;
mod seats;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
pub use self::metrics::Metrics;
use self::seats::Seats;
use crate::domain::target::{Target, canonical};
use crate::proto::spop::frame::DEFAULT_MAX_FRAME_SIZE;
use crate::service::throttle::LogThrottle;

/// Connections that the kernel holds ready for us: a reload of HAProxy opens a burst of them.
const BACKLOG: i32 = 4096;
/// How long a closing connection waits for its peer to read the last frame.
const LINGER: Duration = Duration::from_secs(1);
/// The pauses after an error of `accept`, such as no file descriptor left.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often a log line that an outsider can provoke is written.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Knows what is banned. Every connection has its own clone, which may hold a cache.
pub trait Verdicts: Clone + Send + 'static {
    /// Called before the questions of each read: what they can share, such as the time, is taken here.
    fn begin(&mut self) {}

    /// Whether `address` (in canonical form) is banned now. Must neither block nor allocate.
    fn is_banned(&mut self, address: IpAddr) -> bool;
}

/// How the agent listens and what it bears.
#[derive(Clone, Debug)]
pub struct SpoaConfig {
    /// Where HAProxy connects to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The most connections at a time; at least one.
    pub max_clients: usize,
    /// How long HELLO, the rest of a begun frame, and the peer's reading of a written answer may take.
    pub read_timeout: Duration,
    /// Who may connect; everybody when empty.
    pub allowed_clients: Vec<Target>,
    /// How long the agent goes on as a lame duck after shutdown began. Longer than HAProxy's health checks take to notice
    /// (`inter` × `fall`).
    pub drain: Duration,
}

impl Default for SpoaConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 12345)),
            max_clients: 100,
            read_timeout: Duration::from_secs(30),
            allowed_clients: Vec::new(),
            drain: Duration::from_secs(3),
        }
    }
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SpoaError {
    /// The address cannot be listened on.
    #[error("cannot listen for HAProxy on {address} (spoa.address, spoa.port): {source}")]
    Listen {
        /// The address that was wanted.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    read_timeout: Duration,
    max_frame_size: u32,
    lame_duck: AtomicBool,
    /// Whether any HELLO was ever answered: without one nobody would notice a lame duck.
    greeted: AtomicBool,
    metrics: Metrics,
    faults: LogThrottle,
    refusals: LogThrottle,
    accept_errors: LogThrottle,
}

impl Shared {
    fn new(read_timeout: Duration, metrics: Metrics) -> Self {
        Self {
            read_timeout,
            max_frame_size: DEFAULT_MAX_FRAME_SIZE,
            lame_duck: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            metrics,
            faults: LogThrottle::new(LOG_PERIOD),
            refusals: LogThrottle::new(LOG_PERIOD),
            accept_errors: LogThrottle::new(LOG_PERIOD),
        }
    }
}

/// The agent, listening. [`Spoa::serve`] makes it answer.
#[derive(Debug)]
pub struct Spoa<V> {
    listener: TcpListener,
    allowed_clients: Vec<Target>,
    drain: Duration,
    verdicts: V,
    seats: Arc<Seats>,
    shared: Arc<Shared>,
}

impl<V: Verdicts> Spoa<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or is not this machine's.
    pub fn bind(config: SpoaConfig, verdicts: V, metrics: Metrics) -> Result<Self, SpoaError> {
        let listener = listen(config.listen).map_err(|source| SpoaError::Listen { address: config.listen, source })?;
        let shared = Shared::new(config.read_timeout, metrics);
        Ok(Self {
            listener,
            allowed_clients: config.allowed_clients,
            drain: config.drain,
            verdicts,
            seats: Arc::new(Seats::new(config.max_clients)),
            shared: Arc::new(shared),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `shutdown`, then leaves as a lame duck and returns when every connection is closed: after
    /// [`SpoaConfig::drain`] and at most two seconds. Leaves at once when no HAProxy has ever said HELLO. Dropping the
    /// future closes everything at once.
    pub async fn serve(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        self.accept_until(shutdown.cancelled(), &mut tasks).await;
        let drain = if self.shared.greeted.load(Ordering::Relaxed) { self.drain } else { Duration::ZERO };
        let drained = tokio::time::sleep(drain);
        let close_all = async |tasks: &mut JoinSet<()>| while tasks.join_next().await.is_some() {};
        if !drain.is_zero() {
            self.shared.lame_duck.store(true, Ordering::Relaxed);
            tracing::info!(?drain, "health checks of HAProxy now fail; open connections are answered a while longer");
        }
        if self.shared.metrics.health_checks.get() > 0 {
            self.accept_until(drained, &mut tasks).await;
            drop(self.listener);
        } else {
            // Nobody uses `option spop-check`: a plain `check` fails only when nothing listens any more.
            drop(self.listener);
            tokio::select! {
                () = drained => {}
                () = close_all(&mut tasks) => {}
            }
        }
        self.seats.dismiss_all();
        // What is still open after that is cut by the drop of `tasks`.
        let _ = tokio::time::timeout(2 * LINGER, close_all(&mut tasks)).await;
    }

    async fn accept_until(&self, end: impl Future<Output = ()>, tasks: &mut JoinSet<()>) {
        let mut end = std::pin::pin!(end);
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                Some(result) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = result {
                        tracing::error!(%error, "a connection of HAProxy ended by a fault of ours");
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        pause = ACCEPT_PAUSE.0;
                        self.admit(stream, peer, tasks);
                    }
                    Err(error) if is_of_the_connection(&error) => {}
                    Err(error) => {
                        self.shared.metrics.accept_errors.inc();
                        if let Some(held_back) = self.shared.accept_errors.permit(Instant::now()) {
                            tracing::warn!(%error, held_back, "cannot accept a connection of HAProxy");
                        }
                        tokio::select! {
                            biased;
                            () = &mut end => return,
                            () = tokio::time::sleep(pause) => {}
                        }
                        pause = (pause * 2).min(ACCEPT_PAUSE.1);
                    }
                },
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, tasks: &mut JoinSet<()>) {
        let metrics = &self.shared.metrics;
        let address = canonical(peer.ip());
        // Judged before a seat is taken, so that outsiders cannot make a HAProxy lose its connection.
        if !self.allowed_clients.is_empty() && !self.allowed_clients.iter().any(|target| target.contains(address)) {
            metrics.refused_address.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%address, held_back, "refused a connection from outside spoa.allowed_clients");
            }
            return;
        }
        let Some(seat) = Seats::take(&self.seats, metrics) else {
            metrics.refused_limit.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%address, held_back, "refused a connection: spoa.max_clients are open and none is idle");
            }
            return;
        };
        // Without it the answers are later, not wrong.
        let _ = stream.set_nodelay(true);
        let connection = Connection::new(stream, address, seat, Arc::clone(&self.shared));
        tasks.spawn(connection.run(self.verdicts.clone()));
    }
}

/// An error of `accept` that concerns one connection, which is gone, and not the listener.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
