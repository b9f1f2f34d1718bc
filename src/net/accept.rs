//! Accepting connections: the retry after an error, shared by every listener of the node.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tracing::warn;

use super::throttle::LogThrottle;

/// The first and the longest pause after an error of `accept`.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// One log line about errors per this time.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// A socket that accepts connections.
pub trait Listen: Send {
    /// A connection with the address of its peer.
    type Accepted;

    /// Waits for the next connection. Must be cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;
}

impl Listen for TcpListener {
    type Accepted = (TcpStream, SocketAddr);

    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        Self::accept(self).await
    }
}

/// Accepts connections from a listener and pauses after errors.
///
/// The process may be out of file descriptors. Then `accept` fails at once until a connection closes, and a loop without a pause would
/// use a whole core. Errors that concern a single connection, such as one that its client has already reset, are skipped.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    /// Whose connections these are, for the log: `HAProxy`.
    of: &'static str,
    errors: Counter,
    throttle: LogThrottle,
    pause: Duration,
    paused_until: Option<Instant>,
}

impl<L: Listen> Acceptor<L> {
    /// Accepts from `listener` and counts errors in `errors`. The log says "cannot accept a connection of `of`".
    pub const fn new(listener: L, of: &'static str, errors: Counter) -> Self {
        let throttle = LogThrottle::new(LOG_PERIOD);
        Self { listener, of, errors, throttle, pause: PAUSES.0, paused_until: None }
    }

    /// The listener.
    pub const fn listener(&self) -> &L {
        &self.listener
    }

    /// Waits for the next connection. Cancel safe: a pause that was cut short goes on at the next call.
    pub async fn next(&mut self) -> L::Accepted {
        loop {
            if let Some(until) = self.paused_until {
                tokio::time::sleep_until(until).await;
                self.paused_until = None;
            }
            match self.listener.accept().await {
                Ok(accepted) => {
                    self.pause = PAUSES.0;
                    return accepted;
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    self.errors.inc();
                    if let Some(held_back) = self.throttle.permit(std::time::Instant::now()) {
                        warn!(%error, held_back, "cannot accept a connection of {}; trying again", self.of);
                    }
                    self.paused_until = Some(Instant::now() + self.pause);
                    self.pause = (self.pause * 2).min(PAUSES.1);
                }
            }
        }
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with each error in turn, then accepts.
    struct Failing(Vec<io::ErrorKind>);

    impl Listen for Failing {
        type Accepted = ();

        async fn accept(&mut self) -> io::Result<()> {
            self.0.pop().map_or(Ok(()), |kind| Err(kind.into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_each_error_and_end_with_a_connection() {
        let errors = Counter::default();
        let mut acceptor = Acceptor::new(Failing(vec![io::ErrorKind::Other; 3]), "tests", errors.clone());
        let start = Instant::now();
        acceptor.next().await;
        assert_eq!((start.elapsed(), errors.get()), (PAUSES.0 * 7, 3));
        acceptor.listener.0.push(io::ErrorKind::Other);
        let start = Instant::now();
        acceptor.next().await;
        assert_eq!((start.elapsed(), errors.get()), (PAUSES.0, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_one_connection_is_skipped_without_a_pause() {
        let errors = Counter::default();
        let mut acceptor = Acceptor::new(Failing(vec![io::ErrorKind::ConnectionAborted; 9]), "tests", errors.clone());
        let start = Instant::now();
        acceptor.next().await;
        assert_eq!((start.elapsed(), errors.get()), (Duration::ZERO, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_does_not_shorten_the_pause() {
        let mut acceptor = Acceptor::new(Failing(vec![io::ErrorKind::Other]), "tests", Counter::default());
        let start = Instant::now();
        for _ in 0..4 {
            let _ = tokio::time::timeout(PAUSES.0 / 5, acceptor.next()).await;
        }
        acceptor.next().await;
        assert_eq!(start.elapsed(), PAUSES.0);
    }
}
