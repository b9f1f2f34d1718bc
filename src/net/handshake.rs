//! TLS handshakes of a listener. They have places of their own, so a client that does not finish its handshake takes no connection
//! place.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use super::limit::{ConnectionLimit, LimitMetrics, Place};
use super::places::{Client, LimitReached, Rules};
use super::tls::{HandshakeError, TlsServer};

/// A handshake keeps its place at least this long, unless its client holds the most.
const PATIENCE_MS: u64 = 250;

/// The most handshakes in progress, for listeners that do not choose a number.
pub const HANDSHAKES: usize = 256;

/// Why a connection has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeEnd {
    /// It had to give way to another handshake.
    #[error("too many handshakes are in progress, and this client has most of them")]
    GaveWay,
    /// The handshake failed.
    #[error(transparent)]
    Failed(#[from] HandshakeError),
}

/// The handshakes of one listener. Clones share the places.
#[derive(Clone, Debug)]
pub struct Handshakes {
    tls: TlsServer,
    time: Duration,
    limit: ConnectionLimit,
}

/// A handshake that has a place.
#[derive(Debug)]
pub struct Handshake {
    tls: TlsServer,
    time: Duration,
    place: Place,
}

impl Handshakes {
    /// Up to [`HANDSHAKES`] at a time, each of at most `time`. The log names them `of`.
    pub fn new(of: &'static str, tls: TlsServer, time: Duration) -> Self {
        Self::with_rules(of, tls, time, Rules::new(HANDSHAKES, PATIENCE_MS, PATIENCE_MS), LimitMetrics::default())
    }

    /// Handshakes with other rules.
    pub fn with_rules(of: &'static str, tls: TlsServer, time: Duration, rules: Rules, metrics: LimitMetrics) -> Self {
        Self { tls, time, limit: ConnectionLimit::new(of, rules, metrics) }
    }

    /// The limit.
    pub const fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    /// Takes a place for a handshake of `client`.
    ///
    /// # Errors
    /// None is free, and none gives way.
    pub fn begin(&self, client: Client) -> Result<Handshake, LimitReached> {
        let place = self.limit.take(client, usize::MAX)?;
        Ok(Handshake { tls: self.tls.clone(), time: self.time, place })
    }
}

impl Handshake {
    /// Does the handshake and frees the place.
    ///
    /// # Errors
    /// It fails, takes too long or has to give way.
    pub async fn finish<S>(mut self, stream: S) -> Result<TlsStream<S>, HandshakeEnd>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::select! {
            biased;
            _ = &mut self.place.revoked => Err(HandshakeEnd::GaveWay),
            accepted = self.tls.accept(stream, self.time) => Ok(accepted?),
        }
    }
}
