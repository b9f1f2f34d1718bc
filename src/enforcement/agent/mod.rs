//! The agent that HAProxy queries over SPOP (SPOA). Each connection reads what the socket has, decodes every complete frame in place,
//! looks up the addresses, and writes all answers with one write.
//!
//! - Up to `max_clients`, an idle connection stays open permanently. Only HELLO and the rest of a begun frame have a deadline.
//! - Above `max_clients`, connections that become idle are closed, one every 10 ms. While none is idle, up to ten times as many stay
//!   open; then the client that holds the most gives way (`limit`). A TLS handshake does not count before it is done.
//! - The connections of one client share a few tasks, so no client gets more processor time than another (`lanes`).
//! - Offences that HAProxy reports are passed on if the client is in `reports_from` (`reports`).
//! - On shutdown the agent drains, so that HAProxy switches to another agent without losing an answer: for
//!   [`SpoaConfig::drain`] it answers health checks with DISCONNECT and everything else as before. If there never was a
//!   health check over SPOP, it closes the listener at once, which a plain `check` notices, and keeps answering on open
//!   connections.

mod admission;
mod connection;
mod lanes;
mod latency;
mod limit;
mod metrics;
mod refused;
mod reports;
mod unaddressed;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::admission::{Admission, Listeners};
use self::lanes::Lanes;
pub use self::latency::Latencies;
use self::limit::{AgentLimit, elastic};
pub use self::metrics::Metrics;
pub use self::reports::MAX_REASON;
pub use self::unaddressed::{Blindness, Unaddressed};
use crate::net::accept::Acceptor;
use crate::net::handshake::Handshakes;
use crate::net::listen::ListenError;
use crate::net::throttle::LogThrottle;
use crate::net::tls::{HandshakeError, TlsServer};
use banmesh_spop::frame::DEFAULT_MAX_FRAME_SIZE;
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// Connections that the kernel queues for us. A reload of HAProxy opens a burst of them.
const BACKLOG: i32 = 4096;
/// How long a closing connection waits for its peer to read the last frame.
const LINGER: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take, unless `read_timeout` is shorter.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// One log line that an outsider can provoke per this time.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Looks up bans. Every connection has its own clone, which may hold a cache.
pub trait Verdicts: Clone + Send + 'static {
    /// Called before the queries of each read, to fetch what they share, such as the time.
    fn begin(&mut self) {}

    /// Whether `address` is banned now. Must neither block nor allocate.
    fn is_banned(&mut self, address: Address) -> bool;

    /// Until when `address` is banned; `None` if it is not banned now. Must neither block nor allocate.
    fn banned_until(&mut self, address: Address) -> Option<Expiry> {
        self.is_banned(address).then_some(Expiry::NEVER)
    }

    /// Receives an offence or a login that HAProxy reports. Returns whether it was queued. Must not block.
    fn report(&mut self, _report: &Reported<'_>) -> bool {
        false
    }
}

/// An offence or a login that HAProxy reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported<'a> {
    /// The source.
    pub source: Address,
    /// Printable, and at most [`MAX_REASON`] bytes long.
    pub reason: &'a str,
    /// How many times it counts.
    pub attempts: u32,
    /// The account, which a client may have chosen.
    pub account: Option<&'a [u8]>,
    /// Whether no such account exists.
    pub unknown: bool,
    /// Whether it is a successful login.
    pub success: bool,
}

/// The agent's settings.
#[derive(Clone, Debug)]
pub struct SpoaConfig {
    /// The address for plaintext connections; port 0 chooses a free port. `None`: no plaintext.
    pub listen: Option<SocketAddr>,
    /// The address for TLS connections, and the certificate. `None`: no TLS.
    pub tls: Option<(SocketAddr, TlsServer)>,
    /// The limit on open connections, plaintext and TLS together; at least one. While none of them is idle, ten times
    /// as many. Loopback and `allowed_clients` have half of these for themselves.
    pub max_clients: usize,
    /// How long HELLO, the rest of a begun frame, and writing an answer may take.
    pub read_timeout: Duration,
    /// Clients that may connect; all when empty.
    pub allowed_clients: Vec<Target>,
    /// Clients that may report offences; none when empty.
    pub reports_from: Vec<Target>,
    /// How long the agent drains on shutdown. Must be longer than HAProxy's health checks take to notice (`inter` × `fall`).
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

/// The state that all connections share.
#[derive(Debug)]
struct Shared {
    read_timeout: Duration,
    reports_from: Vec<Target>,
    max_frame_size: u32,
    draining: AtomicBool,
    /// Whether any HELLO was ever answered. If not, no HAProxy would notice the drain.
    greeted: AtomicBool,
    metrics: Metrics,
    faults: LogThrottle,
    refusals: LogThrottle,
}

impl Shared {
    fn new(read_timeout: Duration, reports_from: Vec<Target>, metrics: Metrics) -> Self {
        Self {
            read_timeout,
            reports_from,
            max_frame_size: DEFAULT_MAX_FRAME_SIZE,
            draining: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            metrics,
            faults: LogThrottle::new(LOG_PERIOD),
            refusals: LogThrottle::new(LOG_PERIOD),
        }
    }

    /// Whether `peer` may report offences.
    fn may_report(&self, peer: Address) -> bool {
        self.reports_from.iter().any(|target| target.contains(peer))
    }

    fn count_failed_handshake(&self, peer: Address, error: &HandshakeError) {
        match error {
            HandshakeError::Slow(_) => self.metrics.handshakes_slow.inc(),
            HandshakeError::Failed(_) => self.metrics.handshakes_failed.inc(),
        };
        if let Some(held_back) = self.faults.permit(Instant::now()) {
            tracing::warn!(%peer, %error, held_back, "refused a connection: the TLS handshake failed");
        }
    }

    fn refuse_at_the_limit(&self, peer: Address) {
        self.metrics.refused_limit.inc();
        if let Some(held_back) = self.refusals.permit(Instant::now()) {
            tracing::warn!(%peer, held_back, "refused a connection: ten times spoa.max_clients are open, none is idle, and no other client holds more");
        }
    }
}

/// The agent, listening. [`Spoa::serve`] answers.
#[derive(Debug)]
pub struct Spoa<V> {
    acceptor: Acceptor<Listeners>,
    admission: Admission<V>,
    drain: Duration,
}

impl<V: Verdicts> Spoa<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or is not an address of this machine.
    pub fn bind(config: SpoaConfig, verdicts: V, metrics: Metrics) -> Result<Self, ListenError> {
        let open = |key, address| listen(address).map_err(|source| ListenError::new(key, address, source));
        let plain = config.listen.map(|address| open("spoa.address, spoa.port", address)).transpose()?;
        let tls = config.tls.as_ref().map(|(address, _)| open("spoa.tls.address", *address)).transpose()?;
        let listeners = Listeners { plain, tls };
        Ok(Self {
            acceptor: Acceptor::new(listeners, "HAProxy", metrics.accept_errors.clone()),
            admission: Admission {
                handshakes: config.tls.map(|(_, server)| {
                    let time = HANDSHAKE.min(config.read_timeout);
                    Handshakes::with_rules(
                        "the SPOE agent, in its TLS handshake",
                        server,
                        time,
                        elastic(config.max_clients),
                        metrics.handshake_limit(),
                    )
                }),
                allowed_clients: config.allowed_clients,
                verdicts,
                connections: Arc::new(AgentLimit::new(elastic(config.max_clients), metrics.connection_limit())),
                shared: Arc::new(Shared::new(config.read_timeout, config.reports_from, metrics)),
            },
            drain: config.drain,
        })
    }

    /// The address for plaintext connections.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.acceptor.listener().plain.as_ref()?.local_addr().ok()
    }

    /// The address for TLS connections.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.acceptor.listener().tls.as_ref()?.local_addr().ok()
    }

    /// Answers until `shutdown`, then drains and returns when every connection is closed: after [`SpoaConfig::drain`] and at most
    /// two seconds. Skips the drain if no HAProxy has ever sent HELLO. Dropping the future closes everything at once.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { mut acceptor, admission, drain } = self;
        let shared = Arc::clone(&admission.shared);
        let mut lanes = Lanes::default();
        admission.accept_until(shutdown.cancelled(), &mut acceptor, &mut lanes).await;
        let drain = if shared.greeted.load(Ordering::Relaxed) { drain } else { Duration::ZERO };
        let drained = tokio::time::sleep(drain);
        if !drain.is_zero() {
            shared.draining.store(true, Ordering::Relaxed);
            tracing::info!(
                ?drain,
                "draining: health checks of HAProxy now fail, and open connections are still answered"
            );
        }
        if shared.metrics.health_checks.get() > 0 {
            admission.accept_until(drained, &mut acceptor, &mut lanes).await;
            drop(acceptor);
        } else {
            // Nothing uses `option spop-check`, and a plain `check` fails only once the listener is closed.
            drop(acceptor);
            tokio::select! {
                () = drained => {}
                () = lanes.finish() => {}
            }
        }
        admission.revoke_all();
        // Dropping `lanes` cuts the connections that are open after that.
        let _ = tokio::time::timeout(2 * LINGER, lanes.finish()).await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
