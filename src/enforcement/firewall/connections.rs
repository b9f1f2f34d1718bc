//! Ends the TCP connections that banned sources have to this host.
//!
//! The firewall drops their packets, but programs see such a connection until their own timeout. This runs after the firewall changed,
//! so that a source that is cut off cannot connect again.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::enforcement::agent::Verdicts;
use crate::net::throttle::LogThrottle;
use banmesh_nftables::connections::{Answer, Connection, Family, answers, end, list};
use banmesh_types::address::Address;

/// The most connections that are ended in one round. The next round ends more.
const MOST: usize = 4096;
/// The shortest time between two rounds.
const PAUSE: Duration = Duration::from_millis(100);
/// A round is followed by a pause that is so many times as long, because listing takes longer with more connections.
const REST: u32 = 19;
/// The largest datagram of answers.
const DATAGRAM: usize = 64 * 1024;
/// One log line about failures per this time.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// Why connections were not ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionsError {
    /// There is no socket, or it broke.
    #[error("the netlink socket for connections failed: {0}")]
    Socket(#[from] io::Error),
    /// The process lacks the capability.
    #[error("this process may not end connections: it needs CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel cannot list or end connections.
    #[error(
        "the kernel cannot list or end connections ({0}): it needs INET_DIAG_DESTROY and the module tcp_diag; set \
         firewall.end_connections to false to do without"
    )]
    Unsupported(Errno),
    /// The answers did not arrive.
    #[error("the kernel's list of connections was cut off")]
    AnswerLost,
}

/// The counters of ended connections; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    ended: Counter,
    failures: Counter,
    trouble: Arc<Mutex<Option<String>>>,
}

impl ConnectionMetrics {
    /// Why the last attempt to end connections failed; `None` if it succeeded.
    pub fn problem(&self) -> Option<String> {
        self.trouble.lock().as_ref().map(|error| format!("connections of banned sources stay open: {error}"))
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let firewall = registry.sub_registry_with_prefix("banmesh_firewall");
        firewall.register("ended_connections", "Connections of banned sources that were ended", self.ended.clone());
        firewall.register(
            "ending_failures",
            "Times that connections of banned sources could not be listed or ended",
            self.failures.clone(),
        );
    }
}

/// Ends connections whenever the firewall changed.
#[derive(Debug)]
pub struct Ending<V> {
    verdicts: V,
    changed: Arc<Notify>,
    metrics: ConnectionMetrics,
    throttle: LogThrottle,
}

impl<V: Verdicts> Ending<V> {
    /// Ends connections of sources that are banned by `verdicts`, after each notification of `changed`.
    pub fn new(verdicts: V, changed: Arc<Notify>, metrics: ConnectionMetrics) -> Self {
        Self { verdicts, changed, metrics, throttle: LogThrottle::new(LOG_PERIOD) }
    }

    /// The counters, and whether it fails.
    pub fn metrics(&self) -> ConnectionMetrics {
        self.metrics.clone()
    }

    /// Runs until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.changed.notified()).await.is_some() {
            let begun = Instant::now();
            let mut verdicts = self.verdicts.clone();
            // Blocks while the kernel walks through its connections.
            let round = tokio::task::spawn_blocking(move || end_banned(&mut verdicts));
            match round.await.unwrap_or(Err(ConnectionsError::AnswerLost)) {
                Ok(Round { ended, more }) => {
                    *self.metrics.trouble.lock() = None;
                    self.metrics.ended.inc_by(ended);
                    if ended > 0 {
                        debug!(ended, "ended connections of banned sources");
                    }
                    if more {
                        self.changed.notify_one();
                    }
                }
                Err(error) => {
                    self.metrics.failures.inc();
                    *self.metrics.trouble.lock() = Some(error.to_string());
                    if let Some(more) = self.throttle.permit(Instant::now()) {
                        warn!(%error, and_more = more, "connections of banned sources stay open");
                    }
                }
            }
            let pause = (begun.elapsed() * REST).max(PAUSE);
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    ended: u64,
    /// Whether there are more connections than one round ends.
    more: bool,
}

/// Finds out whether this process may end connections, and whether the kernel can.
///
/// # Errors
/// When either is not so.
pub fn can_end() -> Result<(), ConnectionsError> {
    let mut socket = Socket::open()?;
    socket.list(Family::Ipv4, |_| ())?;
    socket.end(&Connection::NONE).map(|_| ())
}

/// Ends the connections of this network namespace whose peer is banned.
fn end_banned(verdicts: &mut impl Verdicts) -> Result<Round, ConnectionsError> {
    let mut socket = Socket::open()?;
    let mut round = Round::default();
    let mut found = Vec::new();
    verdicts.begin();
    for family in Family::ALL {
        socket.list(family, |connection| {
            if verdicts.is_banned(Address::new(connection.remote)) {
                if found.len() < MOST {
                    found.push(connection);
                } else {
                    round.more = true;
                }
            }
        })?;
    }
    for connection in found {
        round.ended += u64::from(socket.end(&connection)?);
    }
    Ok(round)
}

/// A socket to the kernel's sock_diag.
struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        // The kernel answers before `send` returns, and goes on with a list when a part of it was received.
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 1, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Calls `take` for every connection of a family.
    fn list(&mut self, family: Family, mut take: impl FnMut(Connection)) -> Result<(), ConnectionsError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&list(self.sequence, family))?;
        loop {
            self.receive()?;
            for answer in answers(&self.buffer) {
                match answer {
                    Answer::Connection(connection) => take(connection),
                    Answer::Done => return Ok(()),
                    // `ENOENT` if there is no module for TCP.
                    Answer::Outcome { errno: 0, .. } => {}
                    Answer::Outcome { errno, .. } => return Err(refused(Errno::from_raw(errno))),
                }
            }
        }
    }

    /// Ends a connection. Returns `false` if it has ended by itself.
    fn end(&mut self, connection: &Connection) -> Result<bool, ConnectionsError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&end(self.sequence, connection))?;
        loop {
            self.receive()?;
            for answer in answers(&self.buffer) {
                match answer {
                    Answer::Outcome { sequence, errno } if sequence == self.sequence => return outcome(errno),
                    _ => {}
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(|_| ())
    }

    fn receive(&mut self) -> Result<(), ConnectionsError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(1..) => Ok(()),
            Ok(0) => Err(ConnectionsError::AnswerLost),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ConnectionsError::AnswerLost),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a connection was ended: `false` if there is no such connection any more, or it is in a state that the kernel does not end.
fn outcome(errno: i32) -> Result<bool, ConnectionsError> {
    match Errno::from_raw(errno) {
        _ if errno == 0 => Ok(true),
        errno @ (Errno::EPERM | Errno::EOPNOTSUPP) => Err(refused(errno)),
        _ => Ok(false),
    }
}

const fn refused(errno: Errno) -> ConnectionsError {
    match errno {
        Errno::EPERM => ConnectionsError::NotPermitted,
        errno => ConnectionsError::Unsupported(errno),
    }
}
