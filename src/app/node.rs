//! One node: its parts, bound and wired, then served until the end.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::reload::{Live, Reloader};
use super::rules;
use super::verdicts::Lookup;
use crate::config::Config;
use crate::domain::hlc::Hlc;
use crate::domain::ledger::Ledger;
use crate::service::detect::{self, Watch};
use crate::service::judge::{self, Court};
use crate::service::spoa::{self, Spoa, SpoaError};
use crate::service::store::{self, Store};
use crate::service::syslog::{self, BindError, Syslog};
use crate::service::view::View;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No threads to be had.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// No signals to be had.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The filters do not compile.
    #[error("the filters are not usable; `banmesh check` says the same:\n{}", .0.join("\n"))]
    Filters(Vec<String>),
    /// Syslog cannot listen.
    #[error("{0}")]
    Syslog(#[from] BindError),
    /// The agent cannot listen.
    #[error("{0}")]
    Spoa(#[from] SpoaError),
}

/// A node whose listeners are bound.
#[derive(Debug)]
pub struct Node {
    store: Store,
    court: Court,
    syslog: Option<Syslog<Watch>>,
    spoa: Option<Spoa<Lookup>>,
}

impl Node {
    /// Builds and wires the parts. Must be called within the runtime.
    ///
    /// # Errors
    /// The first part that cannot start.
    pub async fn bind(reloader: Reloader) -> Result<Self, StartError> {
        let config = reloader.config();
        let detection = rules::detection(&config).map_err(StartError::Filters)?;
        let rules = Arc::new(ArcSwap::from_pointee(rules::rules(&config, &detection)));
        let detection = Arc::new(ArcSwap::from_pointee(detection));
        let (view, writer) = View::new();
        let node = config.node.id.parse().unwrap_or_else(|_| "node".parse().unwrap_or_else(|_| unreachable!()));
        let ledger = Ledger::new(node, rules::limits(&config), Hlc::default());
        let (store, handle) =
            Store::new(ledger, writer, None, config.ban.cleanup_interval.0, store::Metrics::default());
        let (court, bench) = Court::new(
            config.ban.max_tracked,
            Arc::clone(&rules),
            handle.clone(),
            view.reader(),
            None,
            judge::Metrics::default(),
        );
        let watch = Watch::new(Arc::clone(&detection), bench, detect::Metrics::default());
        let syslog = Self::syslog(&config, watch)?;
        let spoa = Self::spoa(&config, Lookup::new(view.reader(), Arc::clone(&rules)))?;
        reloader.attach(Live { rules, detection, store: handle });
        Ok(Self { store, court, syslog, spoa })
    }

    fn syslog(config: &Config, watch: Watch) -> Result<Option<Syslog<Watch>>, StartError> {
        if !config.syslog.enabled {
            return Ok(None);
        }
        let syslog = Syslog::bind(&rules::syslog(config), watch, &syslog::Metrics::default())?;
        for (protocol, address) in [("udp", syslog.udp_address()), ("tcp", syslog.tcp_address())] {
            if let Some(address) = address {
                info!(%address, protocol, "listening for syslog");
            }
        }
        Ok(Some(syslog))
    }

    fn spoa(config: &Config, lookup: Lookup) -> Result<Option<Spoa<Lookup>>, StartError> {
        if !config.spoa.enabled {
            return Ok(None);
        }
        let spoa = Spoa::bind(rules::spoa(config), lookup, spoa::Metrics::default())?;
        if let Ok(address) = spoa.local_addr() {
            info!(%address, "listening for HAProxy");
        }
        Ok(Some(spoa))
    }

    /// Serves until `stop`, then takes the parts down in order; `now` cuts the lame duck short.
    pub async fn serve(self, stop: CancellationToken, now: CancellationToken) {
        let store = Stage::start(|end| self.store.serve(end));
        let court = Stage::start(|end| self.court.serve(end));
        let syslog = self.syslog.map(|syslog| Stage::start(|end| syslog.serve(end)));
        let spoa = self.spoa.map(|spoa| Stage::start(|end| spoa.serve(end)));
        info!("ready");
        stop.cancelled().await;
        if let Some(spoa) = spoa {
            tokio::select! {
                () = spoa.end() => {}
                () = now.cancelled() => {}
            }
        }
        if let Some(syslog) = syslog {
            syslog.end().await;
        }
        court.end().await;
        store.end().await;
    }
}

/// A running part and the way to end it.
#[derive(Debug)]
struct Stage {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Stage {
    fn start<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(CancellationToken) -> F) -> Self {
        let end = CancellationToken::new();
        Self { task: tokio::spawn(serve(end.clone())), end }
    }

    async fn end(self) {
        self.end.cancel();
        // A part that panicked has said so on standard error; the others are still taken down in order.
        let _ = self.task.await;
    }
}
