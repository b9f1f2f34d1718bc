//! Connections (RFC 6587), also over TLS (RFC 5425), a task each.

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
use super::slots::Slots;
use super::stream::read_stream;
use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;
use banmesh_types::target::{Target, canonical};

/// After how long without a word a sender is asked whether it is still there, and how often until it is given up.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The open socket.
#[derive(Debug)]
pub(super) struct Listener<S> {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsServer>,
    intake: Intake<S>,
    allowed: Vec<Target>,
    slots: Slots,
    idle_timeout: Duration,
    refused: Counter,
    rejected: Counter,
    unshaken: Counter,
    accepted: Counter,
    open: Gauge,
    throttle: Arc<LogThrottle>,
}

impl<S: LineSink> Listener<S> {
    pub(super) fn bind(config: &SyslogConfig, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        Self::open(config, None, Transport::Tcp, sink, metrics)
    }

    /// As [`Listener::bind`], over TLS.
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
        Ok(Self {
            listener: TcpListener::from_std(socket.into()).map_err(bind::failed(address, transport))?,
            address,
            tls,
            intake: Intake::new(sink, metrics, transport, config.max_line),
            allowed: config.allowed_senders.clone(),
            slots: Slots::new(config.tcp_max_connections, config.tcp_max_connections_per_sender),
            idle_timeout: config.tcp_idle_timeout,
            refused: metrics.dropped(transport, DropReason::Refused),
            rejected: metrics.dropped(transport, DropReason::Connections),
            unshaken: metrics.dropped(transport, DropReason::Handshake),
            accepted: metrics.accepted().clone(),
            open: metrics.connections().clone(),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `shutdown`, then waits for the connections to hand over what they have.
    pub(super) async fn serve(self, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.connection(stream, peer, &connections, &shutdown),
                Err(error) => {
                    // Such as EMFILE, which goes on until a connection ends.
                    if let Some(held_back) = self.throttle.permit(Instant::now()) {
                        warn!(%error, held_back, "cannot accept syslog connections; trying again");
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                }
            }
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
        let slot = match self.slots.take(sender) {
            Ok(slot) => slot,
            Err(full) => {
                self.rejected.inc();
                if let Some(held_back) = self.throttle.permit(Instant::now()) {
                    warn!(%sender, held_back, "closed a syslog connection: {full}");
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
                let _held = (slot, open);
                let end = read_stream(stream, sender, &mut intake, idle_timeout, &shutdown).await;
                debug!(%sender, ?end, "syslog connection ended");
            });
            return;
        };
        let (unshaken, throttle) = (self.unshaken.clone(), Arc::clone(&self.throttle));
        tasks.spawn(async move {
            let _held = (slot, open);
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
                    unshaken.inc();
                    if let Some(held_back) = throttle.permit(Instant::now()) {
                        warn!(%sender, %error, held_back, "closed a syslog connection: the TLS handshake failed");
                    }
                }
            }
        });
    }
}

/// Counts a connection as open for as long as it lives.
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
