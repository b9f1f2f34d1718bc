//! HAProxy's peer: made from the configuration, and run under the supervisor.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::lookup::FILTER;
use super::shutdown::Stage;
use super::start_error::StartError;
use super::supervisor::{Part, Restart, Supervisor};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::decisions::judge::OffenceSender;
use crate::enforcement::follower::PlaceHealth;
use crate::enforcement::peers::{
    BanPlace, CountedOffences, Exchange, Metrics, Peers, PeersConfig, SharedCounters, Sink,
};
use crate::operation::Provider;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::judge::{Kind, Offence};

/// The name of the place in memory from which every HAProxy is sent its bans.
pub(super) const TABLE: &str = "bans for haproxy.peers";

/// The listener for HAProxy and the exchange with the other nodes.
#[derive(Debug)]
pub(super) struct PeersParts {
    peers: Peers,
    exchange: Exchange,
}

impl PeersParts {
    /// Opens the listener; `None` if the configuration has none. `offences` takes those that HAProxy counts.
    pub(super) fn bind(
        config: &Config,
        offences: &OffenceSender,
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
            report_tables: own.report_tables.iter().map(ToString::to_string).collect(),
            max_keys: own.max_keys,
            interval: own.interval.0,
        };
        let peers = Peers::bind(settings, judged_by(offences.clone()), metrics)?;
        info!(address = peers.address().map(tracing::field::display), "listening for HAProxy's peers");
        let exchange = match cluster {
            Some(cluster) => peers.hub().exchange().with(cluster.state_sender(), cluster.remote_states()),
            None => peers.hub().exchange(),
        };
        Ok(Some(Self { peers, exchange }))
    }

    /// The place that fills the table of bans; `None` if there are only counters.
    pub(super) fn place(&self, config: &Config) -> Option<BanPlace> {
        (!config.haproxy.peers.bans_table.is_empty()).then(|| self.peers.hub().place())
    }

    /// How every HAProxy is.
    pub(super) fn health(&self) -> Provider<Vec<PlaceHealth>> {
        let sessions = self.peers.hub().sessions();
        Arc::new(move || sessions.health())
    }

    /// The counters.
    pub(super) fn board(&self) -> SharedCounters {
        self.peers.hub().board()
    }

    /// Starts them.
    pub(super) fn start(self, supervisor: &mut Supervisor) {
        supervisor.run_again(Part::new("peers", Stage::Judge), self.peers);
        supervisor.run_again(Part::new("peers exchange", Stage::Judge), self.exchange);
    }
}

/// Passes what HAProxy counts to the judge, as if HAProxy had reported it over SPOP with the name of the table as the reason.
fn judged_by(offences: OffenceSender) -> Sink {
    Arc::new(move |counted| {
        let CountedOffences { source, table, times } = counted;
        offences.send(Offence {
            source,
            by: Recognised { filter: FILTER.into(), rule: table },
            jail: JailId::GENERAL,
            echo: None,
            kind: Kind::Failure,
            times,
            account: None,
            unknown: false,
        })
    })
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
