//! One repair, as the caller.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::exchange::{self, Outcome};
use super::frame::{Greeter, SessionError, within};
use crate::clock;
use crate::cluster::metrics::Metrics;
use crate::decisions::store::StoreHandle;
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// However long a table takes, a repair that takes longer than this is hung.
pub(super) const MAX_SESSION: Duration = Duration::from_secs(30 * 60);

/// How the last repair went.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LastRepair {
    /// With whom.
    pub with: NodeId,
    /// Why.
    pub reason: &'static str,
    /// When it ended, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it took.
    pub took: Duration,
    /// What it did; `None` when it failed.
    pub outcome: Option<Outcome>,
}

/// Calls other nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(in super::super) struct Caller {
    store: StoreHandle,
    metrics: Metrics,
    greeter: Greeter,
    last: watch::Sender<Option<LastRepair>>,
}

impl Caller {
    pub(in super::super) const fn new(
        store: StoreHandle,
        metrics: Metrics,
        greeter: Greeter,
        last: watch::Sender<Option<LastRepair>>,
    ) -> Self {
        Self { store, metrics, greeter, last }
    }

    /// Compares the tables with `node` and exchanges what differs; `None` when that failed, which is logged and counted.
    /// Calls `answered` when the node has.
    pub(in super::super) async fn repair(
        &self,
        node: &NodeId,
        address: SocketAddr,
        reason: &'static str,
        answered: impl FnOnce(),
    ) -> Option<Outcome> {
        Metrics::count(&self.metrics.repairs, reason);
        let start = Instant::now();
        let result = within(MAX_SESSION, self.call(address, answered)).await;
        let took = start.elapsed();
        let outcome = match result {
            Ok(outcome) => {
                self.metrics.repair_sent.inc_by(outcome.sent);
                self.metrics.repair_received.inc_by(outcome.received);
                tracing::debug!(with = %node, reason, ?took, ?outcome, "repaired");
                if outcome.refused > 0 {
                    Metrics::count_many(&self.metrics.records_refused, "repair", outcome.refused);
                }
                Some(outcome)
            }
            Err(error) => {
                Metrics::count(&self.metrics.repairs_failed, error.reason());
                tracing::warn!(with = %node, %address, reason, %error, "a repair failed; it is tried again");
                None
            }
        };
        let UnixMillis(at_ms) = clock::now();
        self.last.send_replace(Some(LastRepair { with: node.clone(), reason, at_ms, took, outcome }));
        outcome
    }

    async fn call(&self, address: SocketAddr, answered: impl FnOnce()) -> Result<Outcome, SessionError> {
        let timeout = self.greeter.timeout;
        let mut stream = within(timeout, async { Ok(TcpStream::connect(address).await?) }).await?;
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.split();
        let session = self.greeter.call(reader, writer).await?;
        answered();
        exchange::call(&self.store, session).await
    }
}
