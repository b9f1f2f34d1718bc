//! Syslog over TCP (RFC 6587) and TLS (RFC 5425). Each connection has a task.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::bind::{self, BindError};
use super::config::SyslogConfig;
use super::intake::{Intake, LineSink};
use super::is_allowed;
use super::metrics::{DropReason, Metrics, Transport};
use super::stream::read_stream;
use crate::net::accept::Acceptor;
use crate::net::handshake::Handshakes;
use crate::net::limit::{ConnectionLimit, LimitMetrics, LimitReached, Place};
use crate::net::places::{Client, Rules, Standing};
use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// TCP keepalive: a sender that was idle for a minute is probed, and its connection closed after four probes without an answer.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection without a complete line keeps its place this long, in milliseconds, and any other this long after its last line. Both
/// matter only when no place is free: a sender may be idle for days.
const PATIENCE_MS: (u64, u64) = (1000, 60_000);

/// The bound socket.
#[derive(Debug)]
pub(super) struct Listener<S> {
    acceptor: Acceptor<TcpListener>,
    address: SocketAddr,
    handshakes: Option<Handshakes>,
    intake: Intake<S>,
    allowed: Vec<Target>,
    limit: ConnectionLimit,
    per_sender: usize,
    idle_timeout: Duration,
    refused: Counter,
    rejected: Counter,
    failed_handshakes: Counter,
    throttle: Arc<LogThrottle>,
}

impl<S: LineSink> Listener<S> {
    pub(super) fn bind(config: &SyslogConfig, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        Self::open(config, None, Transport::Tcp, sink, metrics)
    }

    /// Like [`Listener::bind`], over TLS.
    pub(super) fn bind_tls(
        config: &SyslogConfig,
        tls: TlsServer,
        sink: S,
        metrics: &Metrics,
    ) -> Result<Self, BindError> {
        Self::open(config, Some(tls), Transport::Tls, sink, metrics)
    }

    fn open(
        config: &SyslogConfig,
        tls: Option<TlsServer>,
        transport: Transport,
        sink: S,
        metrics: &Metrics,
    ) -> Result<Self, BindError> {
        let (socket, address) = bind::open(config.address, transport, config.reuse_port)?;
        let listener = TcpListener::from_std(socket.into()).map_err(bind::failed(address, transport))?;
        Ok(Self {
            acceptor: Acceptor::new(listener, "syslog", metrics.accept_errors().clone()),
            address,
            handshakes: tls.map(|tls| Handshakes::new("syslog, in its TLS handshake", tls, HANDSHAKE)),
            intake: Intake::new(sink, metrics, transport, config.max_line).opening(&config.wrapping),
            allowed: config.allowed_senders.clone(),
            limit: ConnectionLimit::new(
                "syslog (syslog.tcp_max_connections)",
                Rules::new(config.tcp_max_connections, PATIENCE_MS.0, PATIENCE_MS.1),
                LimitMetrics {
                    granted: metrics.accepted().clone(),
                    open: metrics.connections().clone(),
                    evicted: metrics.dropped(transport, DropReason::Evicted),
                },
            ),
            per_sender: config.tcp_max_connections_per_sender,
            idle_timeout: config.tcp_idle_timeout,
            refused: metrics.dropped(transport, DropReason::Refused),
            rejected: metrics.dropped(transport, DropReason::Connections),
            failed_handshakes: metrics.dropped(transport, DropReason::Handshake),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `shutdown`, then waits until the connections have passed on what they received.
    pub(super) async fn serve(mut self, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        while let Some((stream, peer)) = shutdown.run_until_cancelled(self.acceptor.next()).await {
            self.connection(stream, peer, &connections, &shutdown);
        }
        connections.close();
        connections.wait().await;
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let sender = Address::new(peer.ip());
        if !is_allowed(&self.allowed, sender) {
            self.refused.inc();
            if let Some(held_back) = self.throttle.permit(Instant::now()) {
                warn!(%sender, held_back, "closed a connection: its sender is not in syslog.allowed_senders");
            }
            return;
        }
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE) {
            debug!(%sender, %error, "cannot set keepalive");
        }
        let client = Client::new(sender, Standing::Stranger);
        let lines = self.lines_of(sender, shutdown);
        let Some(handshakes) = &self.handshakes else {
            match self.limit.take(client, self.per_sender) {
                Ok(place) => drop(tasks.spawn(lines.read(stream, place))),
                Err(reached) => reject(&self.rejected, &self.throttle, sender, reached),
            }
            return;
        };
        let handshake = match handshakes.begin(client) {
            Ok(handshake) => handshake,
            Err(reached) => return reject(&self.rejected, &self.throttle, sender, reached),
        };
        let (limit, per_sender, rejected) = (self.limit.clone(), self.per_sender, self.rejected.clone());
        let (failed_handshakes, throttle) = (self.failed_handshakes.clone(), Arc::clone(&self.throttle));
        tasks.spawn(async move {
            let accepted = tokio::select! {
                () = lines.shutdown.cancelled() => return,
                accepted = handshake.finish(stream) => accepted,
            };
            match accepted {
                Ok(stream) => match limit.take(client, per_sender) {
                    Ok(place) => lines.read(stream, place).await,
                    Err(reached) => reject(&rejected, &throttle, sender, reached),
                },
                Err(error) => {
                    failed_handshakes.inc();
                    if let Some(held_back) = throttle.permit(Instant::now()) {
                        warn!(%sender, %error, held_back, "closed a syslog connection: the TLS handshake failed");
                    }
                }
            }
        });
    }

    fn lines_of(&self, sender: Address, shutdown: &CancellationToken) -> Lines<S> {
        Lines { sender, intake: self.intake.clone(), idle_timeout: self.idle_timeout, shutdown: shutdown.clone() }
    }
}

/// What reading the lines of one connection needs.
struct Lines<S> {
    sender: Address,
    intake: Intake<S>,
    idle_timeout: Duration,
    shutdown: CancellationToken,
}

impl<S: LineSink> Lines<S> {
    /// Reads until either side ends the connection, or until it must give its place to another.
    async fn read<R: AsyncRead + Unpin + Send>(mut self, stream: R, mut place: Place) {
        let sender = self.sender;
        // Lines that have arrived are still passed on.
        let end = self.shutdown.child_token();
        self.intake.watch(place.watch());
        let mut reading = pin!(read_stream(stream, sender, &mut self.intake, self.idle_timeout, &end));
        let ended = tokio::select! {
            ended = &mut reading => ended,
            // The limit has counted and logged it.
            _ = &mut place.revoked => {
                end.cancel();
                reading.await
            }
        };
        debug!(%sender, ?ended, "syslog connection ended");
    }
}

fn reject(rejected: &Counter, throttle: &LogThrottle, sender: Address, reached: LimitReached) {
    rejected.inc();
    if let Some(held_back) = throttle.permit(Instant::now()) {
        warn!(%sender, held_back, "closed a syslog connection: {}", explained(reached));
    }
}

/// Which limit is reached, and what to do about it.
fn explained(reached: LimitReached) -> String {
    match reached {
        LimitReached::Total(limit) => {
            format!("{limit} connections are open, the limit of syslog.tcp_max_connections; raise it if you need more")
        }
        LimitReached::Client(limit) => format!(
            "this sender has {limit} connections open, its share of a quarter of syslog.tcp_max_connections; raise that key if it \
             needs more"
        ),
    }
}
