//! HAProxy's peer: this node keeps a stick-table of bans in each HAProxy, learns what each HAProxy counts, and writes the sums of all
//! nodes back.
//!
//! | module | contents |
//! |---|---|
//! | `authors` | orders what arrives from the other nodes, without I/O |
//! | `bans` | the bans as entries of a table, and the place that follows the ban table |
//! | `connection` | one session with HAProxy: bytes in and out |
//! | `dialogue` | what a session sends and what it does with what arrives, without I/O |
//! | `mesh` | exchanges counters with the other nodes |
//! | `pace` | how much the exchange sends at once, and when, without I/O |
//! | `reports` | offences that HAProxy counts |
//! | `sessions` | how all sessions are, for the status |
//!
//! The protocol itself is [`banmesh_peers`]. HAProxy connects to this node, so HAProxy needs no listening port.

mod authors;
mod bans;
mod connection;
mod dialogue;
mod mesh;
mod metrics;
mod pace;
mod reports;
mod sessions;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub use bans::{BanPlace, Bans};
pub use mesh::Exchange;
pub use metrics::Metrics;
pub use reports::{CountedOffences, Sink};
pub use sessions::Sessions;

use crate::net::accept::Acceptor;
use crate::net::limit::{ConnectionLimit, LimitMetrics, LimitReached};
use crate::net::places::{Client, Rules, Standing};
use crate::net::throttle::LogThrottle;
use banmesh_peers::counters::Counters;
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// The most sessions.
const SESSIONS: usize = 64;
const BACKLOG: u32 = 128;
/// When no place is free, a connection without a hello keeps its place this long, and any other this long after its last message, in
/// milliseconds.
const PATIENCE_MS: (u64, u64) = (1000, 15_000);

/// The listener cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "haproxy.peers.listen: cannot listen on {address}: {source}; stop the program that has it, or choose another address \
     and write it into the peers section of HAProxy as well"
)]
pub struct PeersError {
    /// The address.
    pub address: SocketAddr,
    /// The error of the system.
    pub source: io::Error,
}

/// The settings.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The addresses that may connect.
    pub allowed_clients: Vec<Target>,
    /// The name of the table of bans.
    pub bans_table: String,
    /// The tables whose `gpc0` counts offences.
    pub report_tables: Vec<String>,
    /// The most keys of counters.
    pub max_keys: usize,
    /// How long changed counters are collected before they are sent.
    pub interval: Duration,
}

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Shared {
    config: PeersConfig,
    bans: Bans,
    counters: Mutex<Counters>,
    /// Notified when counters have changed.
    changed: watch::Sender<u64>,
    reports: reports::Reports,
    sessions: Sessions,
    metrics: Metrics,
    /// The order of local states.
    sequence: AtomicU64,
    throttle: LogThrottle,
}

impl Shared {
    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock()
    }

    fn version(&self) -> (u64, u64) {
        (0, self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Logs why a connection was closed, at most once a minute.
    fn complain(&self, from: &str, why: &dyn std::fmt::Display) {
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            warn!(from, held_back, "a session with HAProxy's peers protocol ended: {why}");
        }
    }
}

/// The listener for HAProxy.
#[derive(Debug)]
pub struct Peers {
    acceptor: Acceptor<TcpListener>,
    hub: Hub,
}

/// What the listener serves, without its socket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    limit: ConnectionLimit,
    shared: Arc<Shared>,
}

/// The counters of all nodes, for people to look at. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedCounters(Arc<Shared>);

impl SharedCounters {
    /// Reads the counters as they are now.
    pub fn read<T>(&self, read: impl FnOnce(&Counters, Instant) -> T) -> T {
        read(&self.0.counters(), Instant::now())
    }

    /// The name of the table of bans.
    pub fn bans_table(&self) -> &str {
        &self.0.config.bans_table
    }
}

impl Peers {
    /// Listens. Must be called within a tokio runtime. `sink` takes the offences that HAProxy counts.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn bind(config: PeersConfig, sink: Sink, metrics: Metrics) -> Result<Self, PeersError> {
        let address = config.listen;
        let listener = listen(address).map_err(|source| PeersError { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        let hub = Hub::new(PeersConfig { listen: address, ..config }, sink, metrics);
        Ok(Self { acceptor: Acceptor::new(listener, "HAProxy's peers", Default::default()), hub })
    }

    /// The address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.acceptor.listener().local_addr().ok()
    }

    /// What is served.
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Serves until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let open = TaskTracker::new();
        while let Some((stream, peer)) = shutdown.run_until_cancelled(self.acceptor.next()).await {
            let address = Address::new(peer.ip());
            let shared = &self.hub.shared;
            if !shared.config.allowed_clients.iter().any(|target| target.contains(address)) {
                shared.metrics.refused("not allowed");
                shared.complain(&peer.to_string(), &"it is not in haproxy.peers.allowed_clients");
                continue;
            }
            // Without it, updates are later, not wrong.
            let _: io::Result<()> = TcpStream::set_nodelay(&stream, true);
            if let Ok(session) = self.hub.session(stream.into_split(), peer, shutdown.clone()) {
                open.spawn(session);
            }
        }
        open.close();
        open.wait().await;
    }
}

impl Hub {
    /// `sink` takes the offences that HAProxy counts. `config.listen` is the address that problems name.
    pub fn new(config: PeersConfig, sink: Sink, metrics: Metrics) -> Self {
        let shared = Shared {
            bans: Bans::default(),
            counters: Mutex::new(Counters::new(config.max_keys)),
            changed: watch::Sender::new(0),
            reports: reports::Reports::new(&config.report_tables, sink, metrics.clone()),
            sessions: Sessions::new(config.listen, metrics.clone()),
            metrics,
            sequence: AtomicU64::new(0),
            throttle: LogThrottle::new(Duration::from_secs(60)),
            config,
        };
        let rules = Rules::new(SESSIONS, PATIENCE_MS.0, PATIENCE_MS.1);
        let limit = ConnectionLimit::new("haproxy.peers", rules, LimitMetrics::default());
        Self { limit, shared: Arc::new(shared) }
    }

    /// One session with the HAProxy at the other end of a connection, until it ends or `shutdown`.
    ///
    /// # Errors
    /// When too many are open.
    pub fn session<R, W>(
        &self,
        connection: (R, W),
        peer: SocketAddr,
        shutdown: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + use<R, W>, LimitReached>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let taken = self.limit.take(Client::new(Address::new(peer.ip()), Standing::Known), SESSIONS);
        let place = taken.inspect_err(|_| {
            self.shared.metrics.refused("too many");
            self.shared.complain(&peer.to_string(), &"64 sessions are open");
        })?;
        Ok(connection::serve(connection, peer, place, Arc::clone(&self.shared), shutdown))
    }

    /// The place that fills the table of bans.
    pub fn place(&self) -> BanPlace {
        BanPlace::new(self.shared.bans.clone(), self.shared.metrics.clone())
    }

    /// How all sessions are.
    pub fn sessions(&self) -> Sessions {
        self.shared.sessions.clone()
    }

    /// The counters.
    pub fn board(&self) -> SharedCounters {
        SharedCounters(Arc::clone(&self.shared))
    }

    /// The exchange with the other nodes.
    pub fn exchange(&self) -> Exchange {
        Exchange::new(Arc::clone(&self.shared))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
