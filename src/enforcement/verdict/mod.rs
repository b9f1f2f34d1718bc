//! The endpoint that nginx, Traefik, Caddy and Envoy ask for each request whether its client is banned.
//!
//! - HTTP/1.1 and HTTP/2: any path and method. 200 with an empty body, or 403 with `Retry-After` (`http`).
//! - Envoy's gRPC service `envoy.service.auth.v3.Authorization` on the same port (`grpc`, [`ext_authz`]).
//! - The client is the sender as far as trusted proxies name it ([`crate::net::forwarded`]). A proxy that names nobody gets 200: refusing
//!   everybody because of a typing error would be worse. It is counted, logged and a problem of the node (`nameless`).
//! - Bodies over HTTP are never read, and connections stay open permanently. `max_clients` bounds them: idle ones give way.
//! - On shutdown the health check fails at once while everything else is answered for [`VerdictConfig::drain`]. Then the listeners close,
//!   answers ask for the end of their connection, and idle connections are closed.

mod connection;
pub mod ext_authz;
mod grpc;
mod http;
mod metrics;
mod nameless;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::metrics::{Metrics, Outcome};
pub use self::nameless::Nameless;
use crate::net::accept::{Acceptor, Listen};
use crate::net::forwarded::Sender;
use crate::net::limit::ConnectionLimit;
use crate::net::listen::ListenError;
use crate::net::places::{Client, Rules, Standing};
use crate::net::throttle::LogThrottle;
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;

/// Connections that the kernel queues for us.
const BACKLOG: i32 = 4096;
/// A connection without a request keeps its place this long, in milliseconds, and any other this long after its last request. Both matter
/// only when no place is free.
const PATIENCE_MS: (u64, u64) = (250, 10_000);
/// How long open connections may go on after the listeners have closed.
const LINGER: Duration = Duration::from_secs(1);
/// One log line that an outsider can provoke per this time.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// Looks up bans. Every connection has its own clone, which may hold a cache.
pub trait Bans: Clone + Send + 'static {
    /// The ban of `address` at present. Must neither block nor allocate.
    fn ban(&mut self, address: Address) -> Option<Remaining>;
}

/// How long a ban lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// For this many seconds, at least one.
    Seconds(u64),
    /// Permanently.
    Permanent,
}

/// The settings of the endpoint.
#[derive(Clone, Debug)]
pub struct VerdictConfig {
    /// The addresses to listen on, each with its configuration key. Port 0 chooses a free port.
    pub listen: Vec<(&'static str, SocketAddr)>,
    /// The proxies that may name their clients.
    pub trusted_proxies: NetSet,
    /// The limit on open connections; at least one. Trusted proxies have half of them for themselves.
    pub max_clients: usize,
    /// How long the endpoint answers on shutdown while its health check fails.
    pub drain: Duration,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    trusted: NetSet,
    metrics: Metrics,
    /// Whether the health check fails because the node is stopping.
    stopping: AtomicBool,
    /// Whether answers end their connection.
    closing: AtomicBool,
    /// Bytes of gRPC messages that wait for their rest, over all connections.
    buffered: AtomicUsize,
}

impl Shared {
    /// Whether the sender of a request is banned. `bans` is asked only if the sender is known.
    fn judge(&self, query: Query, sender: Sender, bans: &mut impl Bans) -> Option<Remaining> {
        let (client, outcome) = match sender {
            Sender::Peer(peer) if query.names_client => (Some(peer), Outcome::Untrusted),
            Sender::Unreadable => (None, Outcome::Unreadable),
            // Requests of the proxy's own host are judged like others. A chain of other proxies names nobody.
            Sender::Named(proxy) if self.trusted.contains(proxy) && !proxy.is_loopback() => (None, Outcome::Unnamed),
            Sender::Unnamed(_) => (None, Outcome::Unnamed),
            Sender::Peer(client) | Sender::Named(client) => (Some(client), Outcome::Clean),
        };
        let ban = client.and_then(|client| bans.ban(client));
        let outcome = if ban.is_some() { Outcome::Banned } else { outcome };
        self.metrics.count(query.grpc, outcome);
        if !matches!(outcome, Outcome::Banned | Outcome::Clean) {
            self.metrics.nameless.record(query.proxy, outcome, std::time::Instant::now());
        }
        ban
    }
}

/// How a query came, and from which proxy.
#[derive(Clone, Copy, Debug)]
struct Query {
    /// The proxy that sent it.
    proxy: Address,
    /// Whether it is gRPC; otherwise HTTP.
    grpc: bool,
    /// Whether a proxy names its client although it may not.
    names_client: bool,
}

/// The endpoint, listening. [`VerdictEndpoint::serve`] answers.
#[derive(Debug)]
pub struct VerdictEndpoint<B> {
    acceptor: Acceptor<Sockets>,
    limit: ConnectionLimit,
    refusals: LogThrottle,
    bans: B,
    drain: Duration,
    shared: Arc<Shared>,
}

impl<B: Bans> VerdictEndpoint<B> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When an address is in use or is not an address of this machine.
    pub fn bind(config: VerdictConfig, bans: B, metrics: Metrics) -> Result<Self, ListenError> {
        let open = |&(key, address): &(&'static str, SocketAddr)| {
            listen(address).map_err(|source| ListenError::new(key, address, source))
        };
        let sockets = config.listen.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let rules = Rules::new(config.max_clients, PATIENCE_MS.0, PATIENCE_MS.1);
        Ok(Self {
            acceptor: Acceptor::new(Sockets { sockets, next: 0 }, "a proxy", metrics.accept_errors.clone()),
            limit: ConnectionLimit::new("the verdict endpoint", rules, metrics.connection_limit()),
            refusals: LogThrottle::new(LOG_PERIOD),
            bans,
            drain: config.drain,
            shared: Arc::new(Shared {
                trusted: config.trusted_proxies,
                metrics,
                stopping: AtomicBool::new(false),
                closing: AtomicBool::new(false),
                buffered: AtomicUsize::new(0),
            }),
        })
    }

    /// The addresses that it listens on, in the order of [`VerdictConfig::listen`].
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.acceptor.listener().sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Answers until `shutdown`, then drains and returns when every connection is closed: after [`VerdictConfig::drain`] and at most two
    /// seconds. Does not wait for health checks to notice if there never was one. Dropping the future closes the listeners at once.
    pub async fn serve(mut self, shutdown: CancellationToken) {
        let (open, end) = (TaskTracker::new(), CancellationToken::new());
        self.accept_until(shutdown.cancelled(), &open, &end).await;
        self.shared.stopping.store(true, Ordering::Relaxed);
        if self.shared.metrics.health_checks.get() > 0 {
            let drained = tokio::time::sleep(self.drain);
            self.accept_until(drained, &open, &end).await;
        }
        self.shared.closing.store(true, Ordering::Relaxed);
        let Self { acceptor, limit, .. } = self;
        drop(acceptor);
        open.close();
        // Busy connections end with their next answer, so that a proxy loses none.
        let _ = tokio::time::timeout(LINGER, open.wait()).await;
        end.cancel();
        let _ = tokio::time::timeout(LINGER, open.wait()).await;
        limit.revoke_all();
    }

    async fn accept_until(&mut self, until: impl Future<Output = ()>, open: &TaskTracker, end: &CancellationToken) {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                biased;
                () = &mut until => return,
                (stream, peer) = self.acceptor.next() => self.admit(stream, peer, open, end),
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, open: &TaskTracker, end: &CancellationToken) {
        let address = Address::new(peer.ip());
        let is_proxy = self.shared.trusted.contains(address);
        let client = Client::new(address, Standing::known_if(is_proxy));
        let Ok(place) = self.limit.take(client, usize::MAX) else {
            self.shared.metrics.refused.inc();
            if let Some(held_back) = self.refusals.permit(std::time::Instant::now()) {
                tracing::warn!(%address, held_back, "refused a connection: verdict.max_clients are open, and none is idle");
            }
            return;
        };
        // Without it, answers are later, not wrong.
        let _ = stream.set_nodelay(true);
        let (shared, bans) = (Arc::clone(&self.shared), self.bans.clone());
        open.spawn(connection::serve(stream, address, place, bans, shared, end.clone()));
    }
}

/// The listening sockets.
#[derive(Debug)]
struct Sockets {
    sockets: Vec<TcpListener>,
    /// Which socket comes first, so that none has to wait for another.
    next: usize,
}

impl Listen for Sockets {
    type Accepted = (TcpStream, SocketAddr);

    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        let Self { sockets, next } = Pin::new(self).get_mut();
        std::future::poll_fn(|context| {
            *next = next.wrapping_add(1);
            let first = *next % sockets.len().max(1);
            let (before, from) = sockets.split_at(first.min(sockets.len()));
            for socket in from.iter().chain(before) {
                if let Poll::Ready(accepted) = socket.poll_accept(context) {
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
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
