//! The agent that HAProxy asks (SPOA): one task a connection reads what the socket has, decodes every complete frame in
//! place, looks up, and writes all answers with one write.
//!
//! - An idle connection stays open for ever; only HELLO and the rest of a begun frame have a deadline.
//! - At `max_clients` the connection that has been idle longest makes room ([`seats`]), whether it came in the clear or over
//!   TLS. While none is idle, up to ten times as many are held. A TLS handshake takes no such place before it is done.
//! - Offences that HAProxy reports are handed on, from those who may ([`reports`]).
//! - On shutdown the agent leaves as a lame duck, so that HAProxy moves to another agent without losing an answer: for
//!   [`SpoaConfig::drain`] it answers health checks with DISCONNECT and everything else as before. When there never was a
//!   health check over SPOP it closes the listener at once, which is what a plain `check` notices, and answers on open
//!   connections.

mod connection;
mod latency;
mod metrics;
mod reports;
mod seats;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
pub use self::latency::Latencies;
pub use self::metrics::Metrics;
pub use self::reports::MAX_REASON;
use self::seats::Seats;
use crate::net::throttle::LogThrottle;
use crate::net::tls::{HandshakeError, TlsServer};
use banmesh_spop::frame::DEFAULT_MAX_FRAME_SIZE;
use banmesh_types::target::{Target, canonical};

/// Connections that the kernel holds ready for us: a reload of HAProxy opens a burst of them.
const BACKLOG: i32 = 4096;
/// How long a closing connection waits for its peer to read the last frame.
const LINGER: Duration = Duration::from_secs(1);
/// The pauses after an error of `accept`, such as no file descriptor left.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long a TLS handshake may take, if `read_timeout` is not shorter.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a log line that an outsider can provoke is written.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Knows what is banned. Every connection has its own clone, which may hold a cache.
pub trait Verdicts: Clone + Send + 'static {
    /// Called before the questions of each read: what they can share, such as the time, is taken here.
    fn begin(&mut self) {}

    /// Whether `address` (in canonical form) is banned now. Must neither block nor allocate.
    fn is_banned(&mut self, address: IpAddr) -> bool;

    /// Takes an offence by `source` (in canonical form) that HAProxy reports, to be counted as `attempts` of them. `reason` is
    /// printable and at most [`MAX_REASON`] bytes long. Returns whether there was room for it; must not block.
    fn report(&mut self, _source: IpAddr, _reason: &str, _attempts: u32) -> bool {
        false
    }
}

/// How the agent listens and what it bears.
#[derive(Clone, Debug)]
pub struct SpoaConfig {
    /// Where HAProxy connects to in the clear; port 0 takes a free one. `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Where HAProxy connects to over TLS, and our side of it.
    pub tls: Option<(SocketAddr, TlsServer)>,
    /// The most connections at a time, in the clear and over TLS together; at least one. While none of them is idle, ten times
    /// as many.
    pub max_clients: usize,
    /// How long HELLO, the rest of a begun frame, and the peer's reading of a written answer may take.
    pub read_timeout: Duration,
    /// Who may connect; everybody when empty.
    pub allowed_clients: Vec<Target>,
    /// Who of them may report offences; nobody when empty.
    pub reports_from: Vec<Target>,
    /// How long the agent goes on as a lame duck after shutdown began. Longer than HAProxy's health checks take to notice
    /// (`inter` × `fall`).
    pub drain: Duration,
}

impl Default for SpoaConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 12345))),
            tls: None,
            max_clients: 100,
            read_timeout: Duration::from_secs(30),
            allowed_clients: Vec::new(),
            reports_from: Vec::new(),
            drain: Duration::from_secs(3),
        }
    }
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SpoaError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen for HAProxy on {address} ({key}): {source}; stop the program that has it, or choose another"
    )]
    Listen {
        /// The keys that name it.
        key: &'static str,
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
    reports_from: Vec<Target>,
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
    fn new(read_timeout: Duration, reports_from: Vec<Target>, metrics: Metrics) -> Self {
        Self {
            read_timeout,
            reports_from,
            max_frame_size: DEFAULT_MAX_FRAME_SIZE,
            lame_duck: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            metrics,
            faults: LogThrottle::new(LOG_PERIOD),
            refusals: LogThrottle::new(LOG_PERIOD),
            accept_errors: LogThrottle::new(LOG_PERIOD),
        }
    }

    /// Whether `peer` may report offences.
    fn may_report(&self, peer: IpAddr) -> bool {
        self.reports_from.iter().any(|target| target.contains(peer))
    }

    fn note_handshake(&self, peer: IpAddr, error: &HandshakeError) {
        match error {
            HandshakeError::Slow(_) => self.metrics.handshakes_slow.inc(),
            HandshakeError::Failed(_) => self.metrics.handshakes_failed.inc(),
        };
        if let Some(held_back) = self.faults.permit(Instant::now()) {
            tracing::warn!(%peer, %error, held_back, "refused a connection: the TLS handshake failed");
        }
    }

    fn refuse_at_the_limit(&self, peer: IpAddr) {
        self.metrics.refused_limit.inc();
        if let Some(held_back) = self.refusals.permit(Instant::now()) {
            tracing::warn!(%peer, held_back, "refused a connection: spoa.max_clients are open and none is idle");
        }
    }
}

/// The sockets that are listened on.
#[derive(Debug)]
struct Listeners {
    plain: Option<TcpListener>,
    tls: Option<TcpListener>,
}

impl Listeners {
    /// The next connection, and whether it came in by the socket for TLS. Of two that wait either may come first.
    async fn accept(&self) -> (bool, io::Result<(TcpStream, SocketAddr)>) {
        tokio::select! {
            accepted = accept(self.plain.as_ref()) => (false, accepted),
            accepted = accept(self.tls.as_ref()) => (true, accepted),
        }
    }
}

/// The next connection; never, without a listener.
async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// The agent, listening. [`Spoa::serve`] makes it answer.
#[derive(Debug)]
pub struct Spoa<V> {
    listeners: Listeners,
    tls: Option<TlsServer>,
    allowed_clients: Vec<Target>,
    drain: Duration,
    verdicts: V,
    seats: Arc<Seats>,
    handshakes: Arc<Seats>,
    shared: Arc<Shared>,
}

impl<V: Verdicts> Spoa<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or is not this machine's.
    pub fn bind(config: SpoaConfig, verdicts: V, metrics: Metrics) -> Result<Self, SpoaError> {
        let open = |key, address| listen(address).map_err(|source| SpoaError::Listen { key, address, source });
        let plain = config.listen.map(|address| open("spoa.address, spoa.port", address)).transpose()?;
        let tls = config.tls.as_ref().map(|(address, _)| open("spoa.tls.address", *address)).transpose()?;
        Ok(Self {
            listeners: Listeners { plain, tls },
            tls: config.tls.map(|(_, server)| server),
            allowed_clients: config.allowed_clients,
            drain: config.drain,
            verdicts,
            seats: Arc::new(Seats::with_reserve(config.max_clients, metrics.seats()).elastic()),
            handshakes: Arc::new(Seats::new(config.max_clients, metrics.handshakes()).elastic()),
            shared: Arc::new(Shared::new(config.read_timeout, config.reports_from, metrics)),
        })
    }

    /// Where it listens in the clear.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listeners.plain.as_ref()?.local_addr().ok()
    }

    /// Where it listens for TLS.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.listeners.tls.as_ref()?.local_addr().ok()
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
            drop(self.listeners);
        } else {
            // Nobody uses `option spop-check`: a plain `check` fails only when nothing listens any more.
            drop(self.listeners);
            tokio::select! {
                () = drained => {}
                () = close_all(&mut tasks) => {}
            }
        }
        self.handshakes.dismiss_all();
        self.seats.dismiss_all();
        // What is still open after that is cut by the drop of `tasks`.
        let _ = tokio::time::timeout(2 * LINGER, close_all(&mut tasks)).await;
    }

    async fn accept_until(&self, end: impl Future<Output = ()>, tasks: &mut JoinSet<()>) {
        let mut end = std::pin::pin!(end);
        let trimming = async { tokio::join!(self.seats.keep_to_limit(), self.handshakes.keep_to_limit()) };
        let mut trimming = std::pin::pin!(trimming);
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                _ = &mut trimming => return,
                Some(result) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = result {
                        tracing::error!(%error, "a connection of HAProxy ended by a fault of ours");
                    }
                }
                accepted = self.listeners.accept() => match accepted {
                    (over_tls, Ok((stream, peer))) => {
                        pause = ACCEPT_PAUSE.0;
                        self.admit(stream, peer, over_tls, tasks);
                    }
                    (_, Err(error)) if is_of_the_connection(&error) => {}
                    (_, Err(error)) => {
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

    fn admit(&self, stream: TcpStream, peer: SocketAddr, over_tls: bool, tasks: &mut JoinSet<()>) {
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
        // Without it the answers are later, not wrong.
        let _ = stream.set_nodelay(true);
        match self.tls.as_ref().filter(|_| over_tls) {
            None => self.seat(stream, address, tasks),
            Some(tls) => self.shake_hands(tls.clone(), stream, address, tasks),
        }
    }

    fn seat(&self, stream: TcpStream, peer: IpAddr, tasks: &mut JoinSet<()>) {
        if let Some(connection) = seated(stream, peer, &self.seats, &self.shared) {
            tasks.spawn(connection.run(self.verdicts.clone()));
        }
    }

    /// Makes a TLS connection in a task of its own, and serves it once it has a seat.
    fn shake_hands(&self, tls: TlsServer, stream: TcpStream, peer: IpAddr, tasks: &mut JoinSet<()>) {
        let Some(mut place) = Seats::take(&self.handshakes) else {
            self.shared.metrics.handshakes_refused.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%peer, held_back, "refused a connection: as many TLS handshakes as spoa.max_clients go on");
            }
            return;
        };
        let (seats, shared, verdicts) = (Arc::clone(&self.seats), Arc::clone(&self.shared), self.verdicts.clone());
        tasks.spawn(async move {
            let accepted = tokio::select! {
                biased;
                _ = &mut place.leave => return,
                accepted = tls.accept(stream, HANDSHAKE.min(shared.read_timeout)) => accepted,
            };
            drop(place);
            match accepted {
                Ok(stream) => {
                    shared.metrics.handshakes_done.inc();
                    if let Some(connection) = seated(stream, peer, &seats, &shared) {
                        connection.run(verdicts).await;
                    }
                }
                Err(error) => shared.note_handshake(peer, &error),
            }
        });
    }
}

/// The connection with a seat, unless there is none to be had.
fn seated<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: IpAddr,
    seats: &Arc<Seats>,
    shared: &Arc<Shared>,
) -> Option<Connection<S>> {
    let Some(seat) = Seats::take(seats) else {
        shared.refuse_at_the_limit(peer);
        return None;
    };
    Some(Connection::new(stream, peer, seat, Arc::clone(shared)))
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
