//! Syslog over TCP (RFC 6587) and TLS (RFC 5425). Each connection has a task.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use socket2::{SockRef, TcpKeepalive};
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
use crate::net::limit::{ConnectionLimit, LimitReached};
use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;
use banmesh_types::target::{Target, canonical};

/// TCP keepalive: a sender that was idle for a minute is probed, and its connection closed after four probes without an answer.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The bound socket.
#[derive(Debug)]
pub(super) struct Listener<S> {
    acceptor: Acceptor<TcpListener>,
    address: SocketAddr,
    tls: Option<TlsServer>,
    intake: Intake<S>,
    allowed: Vec<Target>,
    limit: ConnectionLimit,
    per_sender: usize,
    idle_timeout: Duration,
    refused: Counter,
    rejected: Counter,
    failed_handshakes: Counter,
    accepted: Counter,
    open: Gauge,
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
            tls,
            intake: Intake::new(sink, metrics, transport, config.max_line),
            allowed: config.allowed_senders.clone(),
            limit: ConnectionLimit::new(config.tcp_max_connections),
            per_sender: config.tcp_max_connections_per_sender,
            idle_timeout: config.tcp_idle_timeout,
            refused: metrics.dropped(transport, DropReason::Refused),
            rejected: metrics.dropped(transport, DropReason::Connections),
            failed_handshakes: metrics.dropped(transport, DropReason::Handshake),
            accepted: metrics.accepted().clone(),
            open: metrics.connections().clone(),
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
        let sender = canonical(peer.ip());
        if !is_allowed(&self.allowed, sender) {
            self.refused.inc();
            if let Some(held_back) = self.throttle.permit(Instant::now()) {
                warn!(%sender, held_back, "closed a connection: its sender is not in syslog.allowed_senders");
            }
            return;
        }
        let permit = match self.limit.acquire(sender, self.per_sender) {
            Ok(permit) => permit,
            Err(reached) => {
                self.rejected.inc();
                if let Some(held_back) = self.throttle.permit(Instant::now()) {
                    warn!(%sender, held_back, "closed a syslog connection: {}", explained(reached));
                }
                return;
            }
        };
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE) {
            debug!(%sender, %error, "cannot set keepalive");
        }
        self.accepted.inc();
        let open = Open::new(&self.open);
        let (mut intake, idle_timeout, shutdown) = (self.intake.clone(), self.idle_timeout, shutdown.clone());
        let Some(tls) = self.tls.clone() else {
            tasks.spawn(async move {
                let _held = (permit, open);
                let end = read_stream(stream, sender, &mut intake, idle_timeout, &shutdown).await;
                debug!(%sender, ?end, "syslog connection ended");
            });
            return;
        };
        let (failed_handshakes, throttle) = (self.failed_handshakes.clone(), Arc::clone(&self.throttle));
        tasks.spawn(async move {
            let _held = (permit, open);
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = tls.accept(stream, HANDSHAKE) => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let end = read_stream(stream, sender, &mut intake, idle_timeout, &shutdown).await;
                    debug!(%sender, ?end, "syslog connection over TLS ended");
                }
                Err(error) => {
                    failed_handshakes.inc();
                    if let Some(held_back) = throttle.permit(Instant::now()) {
                        warn!(%sender, %error, held_back, "closed a syslog connection: the TLS handshake failed");
                    }
                }
            }
        });
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

/// Counts a connection as open until it is dropped.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
