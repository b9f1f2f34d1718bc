//! The parts of a process that are HAProxy's peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh::cluster::Cluster;
use banmesh::enforcement::peers::{Hub, Metrics, PeersConfig, SharedCounters};
use banmesh_peers::counters::Counters;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::platform;

/// The buffer of a connection in each direction, in bytes.
const BUFFER: usize = 65_536;
/// `haproxy.peers.interval`.
const INTERVAL: Duration = Duration::from_millis(10);

/// Where the HAProxy of a node connects to: the process that runs there, if any.
pub type Entrance = Arc<Mutex<Option<Door>>>;

/// The listener of a process for HAProxy.
#[derive(Clone)]
pub struct Door {
    node: usize,
    hub: Hub,
    shutdown: CancellationToken,
    sessions: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Door {
    /// Opens a connection. `None` if too many are open.
    pub fn connect(&self) -> Option<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let from = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let session = platform::within(self.node, || {
            self.hub.session(tokio::io::split(theirs), from, self.shutdown.clone()).ok()
        })?;
        let task = tokio::spawn(platform::on(self.node, session));
        let mut sessions = self.sessions.lock();
        sessions.retain(|session| !session.is_finished());
        sessions.push(task.abort_handle());
        Some(ours)
    }
}

/// The running parts.
pub struct PeersParts {
    board: SharedCounters,
    door: Door,
    entrance: Entrance,
    exchange: JoinHandle<()>,
}

impl PeersParts {
    /// Starts them, and opens `entrance`. Must run [`platform::on`] the node.
    pub fn start(node: usize, cluster: &mut Cluster, entrance: &Entrance) -> Self {
        let config = PeersConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 10_002)),
            allowed_clients: Vec::new(),
            bans_table: String::new(),
            report_tables: Vec::new(),
            max_keys: 1000,
            interval: INTERVAL,
        };
        let hub = Hub::new(config, Arc::new(|_| true), Metrics::default());
        let mut exchange = hub.exchange().with(cluster.state_sender(), cluster.remote_states());
        let (shutdown, board) = (CancellationToken::new(), hub.board());
        let stop = shutdown.clone();
        let exchange = tokio::spawn(platform::on(node, async move { exchange.serve(stop).await }));
        let door = Door { node, hub, shutdown, sessions: Arc::default() };
        *entrance.lock() = Some(door.clone());
        Self { board, door, entrance: Arc::clone(entrance), exchange }
    }

    /// Reads what the process knows of all counters.
    pub fn read<T>(&self, read: impl FnOnce(&Counters, Instant) -> T) -> T {
        self.board.read(read)
    }

    /// Whether a part has ended.
    pub fn is_broken(&self) -> bool {
        self.exchange.is_finished()
    }

    /// Stops as on SIGTERM.
    pub async fn stop(self) {
        *self.entrance.lock() = None;
        self.door.shutdown.cancel();
        let _ = self.exchange.await;
    }

    /// Ends at once.
    pub fn kill(self) {
        *self.entrance.lock() = None;
        self.exchange.abort();
        self.door.sessions.lock().drain(..).for_each(|session| session.abort());
    }
}
