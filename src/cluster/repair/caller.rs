//! Repairs that this node begins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::exchange;
use super::session::{Handshake, Session, SessionError, within};
use crate::clock;
use crate::cluster::metrics::Metrics;
use crate::decisions::batch::Source;
use crate::decisions::store::StoreHandle;
use crate::net::network::{Network, Stream};
use banmesh_cluster::repair::ProtocolError;
use banmesh_cluster::repair::exchange::RepairOutcome;
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// A repair that takes longer than this has hung, however large the table is.
pub(super) const MAX_SESSION: Duration = Duration::from_secs(30 * 60);

/// The last repair that this node began.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LastRepair {
    /// The other node.
    pub with: NodeId,
    /// Its reason: a metric label.
    pub reason: &'static str,
    /// When it ended, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it ran.
    pub took: Duration,
    /// `None` if it failed.
    pub outcome: Option<RepairOutcome>,
}

/// A session over a connection of the network.
type NetworkSession = Session<ReadHalf<Stream>, WriteHalf<Stream>>;

/// The longest time to connect to an address that does not gossip.
const CONTACT_TIMEOUT: Duration = Duration::from_secs(5);

/// What answers at an address.
#[derive(Debug)]
pub(in crate::cluster) enum Contact {
    /// A node of the cluster.
    Node(NodeId),
    /// This node itself.
    Itself,
    /// A node whose keyring has no key in common with this node's. The text says why.
    WrongKey(String),
    /// Something that accepts connections and is not a node of this cluster with the same key. The text says why.
    Stranger(String),
    /// Nothing. The text says why.
    None(String),
}

/// Begins repairs with other nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Caller {
    store: StoreHandle,
    metrics: Metrics,
    handshake: Handshake,
    network: Arc<dyn Network>,
    last: watch::Sender<Option<LastRepair>>,
}

impl Caller {
    pub(in crate::cluster) const fn new(
        store: StoreHandle,
        metrics: Metrics,
        handshake: Handshake,
        network: Arc<dyn Network>,
        last: watch::Sender<Option<LastRepair>>,
    ) -> Self {
        Self { store, metrics, handshake, network, last }
    }

    /// Compares the tables with `node`, and exchanges what differs. Calls `answered` when the node answers. Returns `None` if the
    /// repair failed, which is also logged and counted.
    pub(in crate::cluster) async fn repair(
        &self,
        node: &NodeId,
        address: SocketAddr,
        reason: &'static str,
        answered: impl FnOnce(),
    ) -> Option<RepairOutcome> {
        Metrics::count(&self.metrics.repairs, reason);
        let start = Instant::now();
        let result = within(MAX_SESSION, self.call(address, answered)).await;
        let took = start.elapsed();
        let outcome = match result {
            Ok(outcome) => {
                self.metrics.exchanged(&outcome);
                tracing::debug!(with = %node, reason, ?took, ?outcome, "repaired");
                if outcome.refused > 0 {
                    Metrics::count_many(&self.metrics.records_refused, "repair", outcome.refused);
                }
                Some(outcome)
            }
            Err(error) => {
                Metrics::count(&self.metrics.repairs_failed, error.reason());
                tracing::warn!(with = %node, %address, reason, %error, "a repair failed; trying again later");
                None
            }
        };
        let UnixMillis(at_ms) = clock::now();
        self.last.send_replace(Some(LastRepair { with: node.clone(), reason, at_ms, took, outcome }));
        outcome
    }

    /// This node.
    pub(in crate::cluster) const fn node(&self) -> &NodeId {
        &self.handshake.node
    }

    /// Contacts an address that does not gossip with this node, and repairs with the node there. Its failure is neither logged nor
    /// counted, because the address may well be down.
    pub(in crate::cluster) async fn contact(&self, address: SocketAddr) -> Contact {
        let timeout = self.handshake.timeout.min(CONTACT_TIMEOUT);
        let connected = within(timeout, async { Ok(self.network.connect(address).await?) }).await;
        let stream = match connected {
            Ok(stream) => stream,
            Err(SessionError::Io(error)) => return Contact::None(error.to_string()),
            Err(_) => return Contact::None(format!("no answer within {} s", timeout.as_secs())),
        };
        let (reader, writer) = tokio::io::split(stream);
        let session = match self.handshake.call(reader, writer).await {
            Ok(session) => session,
            Err(SessionError::Protocol(ProtocolError::Ourselves)) => return Contact::Itself,
            Err(error) if error.is_of_key() => return Contact::WrongKey(error.to_string()),
            Err(error) => return Contact::Stranger(error.to_string()),
        };
        let node = session.node.clone();
        Metrics::count(&self.metrics.repairs, "contact");
        match within(MAX_SESSION, exchange::call(&self.store, session)).await {
            Ok(outcome) => {
                self.metrics.exchanged(&outcome);
            }
            Err(error) => Metrics::count(&self.metrics.repairs_failed, error.reason()),
        }
        Contact::Node(node)
    }

    /// Compares the tables with the node at `address`, which is of another site with this place in `cluster.sites`, and exchanges what
    /// differs. Returns that node. Its failure is counted, but not logged.
    pub(in crate::cluster) async fn exchange(&self, address: SocketAddr, site: usize) -> Result<NodeId, SessionError> {
        Metrics::count(&self.metrics.repairs, "site");
        let exchange = async {
            // An address that hangs delays those after it.
            let timeout = self.handshake.timeout.min(CONTACT_TIMEOUT);
            let session = self.open(address, timeout).await?.with_source(Source::OtherSite(Some(site)));
            let node = session.node.clone();
            Ok((node, exchange::call(&self.store, session).await?))
        };
        let (node, outcome) = within(MAX_SESSION, exchange).await.inspect_err(|error| {
            Metrics::count(&self.metrics.repairs_failed, error.reason());
        })?;
        self.metrics.exchanged(&outcome);
        Ok(node)
    }

    async fn call(&self, address: SocketAddr, answered: impl FnOnce()) -> Result<RepairOutcome, SessionError> {
        let session = self.open(address, self.handshake.timeout).await?;
        answered();
        exchange::call(&self.store, session).await
    }

    /// Connects within `timeout`, and begins a session.
    async fn open(&self, address: SocketAddr, timeout: Duration) -> Result<NetworkSession, SessionError> {
        let stream = within(timeout, async { Ok(self.network.connect(address).await?) }).await?;
        let (reader, writer) = tokio::io::split(stream);
        self.handshake.call(reader, writer).await
    }
}
