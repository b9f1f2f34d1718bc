//! Syslog in: UDP, TCP, TLS, every complete line handed to a [`LineSink`].
//!
//! [`Syslog::bind`] opens the sockets, [`Syslog::serve`] moves lines until it is told to stop. Whoever can send a line can
//! get an address banned, so [`SyslogConfig::allowed_senders`] says who may.
//!
//! Other sources of lines (files, the journal) use the same door: an [`Intake`] is a sink with its counters, and [`read_stream`]
//! feeds it from anything that can be read.

mod bind;
mod config;
mod intake;
mod kernel_drops;
mod metrics;
mod slots;
mod stream;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use bind::BindError;
pub use config::{Protocol, SyslogConfig};
pub use intake::{Intake, LineSink};
pub use metrics::{DropReason, Metrics, Transport};
pub use slots::{Full, Slot, Slots};
pub use stream::{End, read_stream};

use crate::net::tls::TlsServer;
use banmesh_types::target::Target;

/// The open syslog sockets, not yet served.
#[derive(Debug)]
pub struct Syslog<S> {
    udp: Option<udp::Listener<S>>,
    tcp: Option<tcp::Listener<S>>,
    tls: Option<tcp::Listener<S>>,
}

impl<S: LineSink> Syslog<S> {
    /// Opens the sockets that `config` asks for. It must be called within a tokio runtime.
    ///
    /// With port 0 the kernel chooses a port for each of the two transports: see [`Syslog::udp_address`] and
    /// [`Syslog::tcp_address`].
    ///
    /// # Errors
    /// When a socket cannot be opened; the error says which one and what to do.
    pub fn bind(config: &SyslogConfig, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        let udp =
            if config.protocol.has_udp() { Some(udp::Listener::bind(config, sink.clone(), metrics)?) } else { None };
        let tcp = if config.protocol.has_tcp() { Some(tcp::Listener::bind(config, sink, metrics)?) } else { None };
        Ok(Self { udp, tcp, tls: None })
    }

    /// Opens `config.address` for syslog over TLS (RFC 5425), and nothing else. `config.protocol` is without effect.
    ///
    /// # Errors
    /// When the socket cannot be opened; the error says what to do.
    pub fn bind_tls(config: &SyslogConfig, tls: TlsServer, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        Ok(Self { udp: None, tcp: None, tls: Some(tcp::Listener::bind_tls(config, tls, sink, metrics)?) })
    }

    /// Where datagrams are received.
    pub fn udp_address(&self) -> Option<SocketAddr> {
        self.udp.as_ref().map(udp::Listener::address)
    }

    /// Where connections are accepted.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(tcp::Listener::address)
    }

    /// Where connections over TLS are accepted.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(tcp::Listener::address)
    }

    /// Moves lines until `shutdown` is cancelled and what the kernel already had is handed over, for at most a second or two.
    ///
    /// # Panics
    /// When serving one of the sockets did.
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

    /// What [`Syslog::serve`] does, a part for each socket. A task of its own must serve each, so that a flood by one
    /// transport does not hold up the other. None ends before `shutdown`.
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

/// Whether `sender` may send lines: everybody where nobody is named.
fn is_allowed(allowed: &[Target], sender: IpAddr) -> bool {
    allowed.is_empty() || allowed.iter().any(|network| network.contains(sender))
}
