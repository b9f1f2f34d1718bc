//! Receives syslog over UDP, TCP and TLS, and passes every complete line to a [`LineSink`].
//!
//! [`Syslog::bind`] opens the sockets, and [`Syslog::serve`] receives lines until shutdown. Anybody who can send a line can
//! get an address banned, so [`SyslogConfig::allowed_senders`] restricts the senders.
//!
//! The other inputs (files, the systemd journal) also pass their lines through an [`Intake`], which is a sink with its counters.
//! [`read_stream`] feeds an intake from any stream.

mod bind;
mod config;
mod intake;
mod kernel_drops;
mod metrics;
mod stream;
mod tcp;
mod udp;

use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use bind::BindError;
pub use config::{Protocol, SyslogConfig};
pub use intake::{Intake, LineSink, Record};
pub use metrics::{DropReason, Intaken, Metrics, Transport};
pub use stream::{End, read_stream};

use crate::net::tls::TlsServer;
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// The bound syslog sockets, not yet served.
#[derive(Debug)]
pub struct Syslog<S> {
    udp: Option<udp::Listener<S>>,
    tcp: Option<tcp::Listener<S>>,
    tls: Option<tcp::Listener<S>>,
}

impl<S: LineSink> Syslog<S> {
    /// Opens the sockets that `config` names. Must be called within a tokio runtime.
    ///
    /// With port 0, the kernel chooses a port for each of the two transports: see [`Syslog::udp_address`] and
    /// [`Syslog::tcp_address`].
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn bind(config: &SyslogConfig, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        let udp =
            if config.protocol.has_udp() { Some(udp::Listener::bind(config, sink.clone(), metrics)?) } else { None };
        let tcp = if config.protocol.has_tcp() { Some(tcp::Listener::bind(config, sink, metrics)?) } else { None };
        Ok(Self { udp, tcp, tls: None })
    }

    /// Opens `config.address` for syslog over TLS (RFC 5425) only. `config.protocol` has no effect.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn bind_tls(config: &SyslogConfig, tls: TlsServer, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        Ok(Self { udp: None, tcp: None, tls: Some(tcp::Listener::bind_tls(config, tls, sink, metrics)?) })
    }

    /// The UDP address.
    pub fn udp_address(&self) -> Option<SocketAddr> {
        self.udp.as_ref().map(udp::Listener::address)
    }

    /// The TCP address.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(tcp::Listener::address)
    }

    /// The TLS address.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(tcp::Listener::address)
    }

    /// Receives lines until `shutdown`, then what the kernel has already received, for at most two seconds.
    ///
    /// # Panics
    /// When the task of a socket panics.
    pub async fn serve(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        for (_, part) in self.parts(&shutdown) {
            tasks.spawn(part);
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// The parts of [`Syslog::serve`], one per socket. Each needs a task of its own, so that a flood over one
    /// transport does not delay the other. No part ends before `shutdown`.
    pub fn parts(self, shutdown: &CancellationToken) -> Vec<(Transport, BoxFuture<'static, ()>)> {
        let mut parts: Vec<(Transport, BoxFuture<'static, ()>)> = Vec::new();
        if let Some(udp) = self.udp {
            parts.push((Transport::Udp, Box::pin(udp.serve(shutdown.clone()))));
        }
        if let Some(tcp) = self.tcp {
            parts.push((Transport::Tcp, Box::pin(tcp.serve(shutdown.clone()))));
        }
        if let Some(tls) = self.tls {
            parts.push((Transport::Tls, Box::pin(tls.serve(shutdown.clone()))));
        }
        parts
    }
}

/// Whether `sender` may send lines. An empty list allows everybody.
fn is_allowed(allowed: &[Target], sender: Address) -> bool {
    allowed.is_empty() || allowed.iter().any(|network| network.contains(sender))
}
