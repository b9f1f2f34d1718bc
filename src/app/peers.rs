//! HAProxy's peer: made from the configuration, and run under the supervisor.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::shutdown::Stage;
use super::start_error::StartError;
use super::supervisor::{Part, Restart, Supervisor};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::enforcement::follower::PlaceHealth;
use crate::enforcement::peers::{BanPlace, Board, Exchange, Metrics, Peers, PeersConfig};
use crate::operation::Provider;

/// The name of the place in memory from which every HAProxy is sent its bans.
pub(super) const TABLE: &str = "bans for haproxy.peers";

/// The listener for HAProxy and the exchange with the other nodes.
#[derive(Debug)]
pub(super) struct PeersParts {
    peers: Peers,
    exchange: Exchange,
}

impl PeersParts {
    /// Opens the listener; `None` if the configuration has none.
    pub(super) fn bind(
        config: &Config,
        cluster: Option<&mut Cluster>,
        registry: &mut Registry,
    ) -> Result<Option<Self>, StartError> {
        let own = &config.haproxy.peers;
        let Some(listen) = own.listen else { return Ok(None) };
        let metrics = Metrics::default();
        metrics.register(registry);
        let settings = PeersConfig {
            listen,
            allowed_clients: own.allowed_clients.clone(),
            bans_table: own.bans_table.clone(),
            max_keys: own.max_keys,
            interval: own.interval.0,
        };
        let peers = Peers::bind(settings, metrics)?;
        info!(address = peers.address().map(tracing::field::display), "listening for HAProxy's peers");
        let exchange = match cluster {
            Some(cluster) => peers.exchange().with(cluster.state_sender(), cluster.remote_states()),
            None => peers.exchange(),
        };
        Ok(Some(Self { peers, exchange }))
    }

    /// The place that fills the table of bans; `None` if there are only counters.
    pub(super) fn place(&self, config: &Config) -> Option<BanPlace> {
        (!config.haproxy.peers.bans_table.is_empty()).then(|| self.peers.place())
    }

    /// How every HAProxy is.
    pub(super) fn health(&self) -> Provider<Vec<PlaceHealth>> {
        let sessions = self.peers.sessions();
        Arc::new(move || sessions.health())
    }

    /// The counters.
    pub(super) fn board(&self) -> Board {
        self.peers.board()
    }

    /// Starts them.
    pub(super) fn start(self, supervisor: &mut Supervisor) {
        supervisor.run_again(Part::new("peers", Stage::Judge), self.peers);
        supervisor.run_again(Part::new("peers exchange", Stage::Judge), self.exchange);
    }
}

impl Restart for Peers {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}

impl Restart for Exchange {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}
