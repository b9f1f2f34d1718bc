//! SIGHUP and `banmesh reload`: reads the configuration again and applies the settings that can change without a restart.

mod turns;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{error, info, warn};

use self::turns::{Requested, Turns};
use super::allowed_names::AllowedNames;
use super::fetching::LiveKeys;
use super::keyring::keyring;
use super::logging::LogControl;
use super::{own_addresses, settings};
use crate::cluster::ClusterHandle;
use crate::config::{self, Config, allowlist};
use crate::decisions::feeds::Feeds;
use crate::decisions::store::StoreHandle;
use crate::inputs::detect::Detection;
use crate::net::tls::TlsServer;
use crate::operation::api::http::AccessHandle;
use banmesh_core::judge::Rules;
use banmesh_filter::library;
use banmesh_types::target::Target;

/// Reloads the configuration of a node. Clones share their state.
#[derive(Clone, Debug)]
pub struct Reloader {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// The file given with `--config`.
    named: Option<PathBuf>,
    config: Mutex<Config>,
    log: LogControl,
    live: OnceLock<ReloadableParts>,
    turns: Turns<Result<String, String>>,
}

/// The parts that a reload changes.
#[derive(Clone, Debug)]
pub struct ReloadableParts {
    /// The settings of the judge and the agent.
    pub rules: Arc<ArcSwap<Rules>>,
    /// The filters of the inputs.
    pub detection: Arc<ArcSwap<Detection>>,
    /// The limits of the store.
    pub store: StoreHandle,
    /// The keys of the cluster.
    pub cluster: Option<ClusterHandle>,
    /// The certificates of the TLS listeners.
    pub tls: Vec<TlsServer>,
    /// The users and tokens of the API.
    pub api: Option<AccessHandle>,
    /// The keys of clients that fetch bans.
    pub keys: LiveKeys,
    /// The configured allowlist.
    pub allowed: AllowedNames,
    /// The allowlist of the map in HAProxy.
    pub allowlist: tokio::sync::watch::Sender<Vec<Target>>,
    /// The feeds, if there are any.
    pub feeds: Option<Feeds>,
}

impl Reloader {
    /// Creates the reloader of a node that starts with `config`.
    pub fn new(config: Config, named: Option<PathBuf>, log: LogControl) -> Self {
        let (config, live, turns) = (Mutex::new(config), OnceLock::new(), Turns::default());
        Self { state: Arc::new(State { named, config, log, live, turns }) }
    }

    /// The configuration in force.
    pub fn config(&self) -> Config {
        self.state.config.lock().clone()
    }

    /// Sets the parts to reload. Before this call, a reload fails.
    pub fn attach(&self, live: ReloadableParts) {
        // Called once, by the only node of the process.
        let _ = self.state.live.set(live);
    }

    /// The log.
    pub fn log(&self) -> &LogControl {
        &self.state.log
    }

    /// Reads and applies the configuration on a thread of `runtime` for blocking work. Logs the outcome: a report, or why the old
    /// configuration stays in force. One reload runs at a time, and at most one more waits, which serves all requests until it begins.
    pub fn request(&self, runtime: &Handle) -> Requested<Result<String, String>> {
        let this = self.clone();
        self.state.turns.request(runtime, move || this.reload())
    }

    fn reload(&self) -> Result<String, String> {
        let outcome = self.try_reload();
        if let Err(reason) = &outcome {
            error!("the configuration was not reloaded; the old one stays in force:\n{reason}");
        }
        outcome
    }

    fn try_reload(&self) -> Result<String, String> {
        let Some(live) = self.state.live.get() else { return Err("the node is still starting".to_owned()) };
        let loaded = config::load(self.state.named.as_deref(), config::process_environment())
            .map_err(|errors| errors.to_string())?;
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        for (key, message) in super::exposure::exposed(&loaded.config) {
            warn!("{key}: {message}");
        }
        let mut current = self.state.config.lock();
        let changes = config::diff(&current, &loaded.config);
        let next = config::diff::reloaded(&current, &loaded.config);
        // Filter files may have changed even if the configuration did not.
        let detection = settings::detection(&next).map_err(|errors| library::lines(&errors))?;
        // The same is true of the files of the allowlist.
        let allowlist = allowlist::read(&next).map_err(|error| format!("allowlist_files: {error}"))?;
        // The same is true of the keyring file.
        let keyring = keyring(&next).map_err(|error| error.to_string())?;
        let renewed: Result<Vec<_>, _> = live.tls.iter().map(|tls| tls.read_again().map(|read| (tls, read))).collect();
        let renewed = renewed.map_err(|error| error.to_string())?;
        let keys = live.keys.read(&next).map_err(|error| error.to_string())?;
        let access = match &live.api {
            Some(handle) => {
                let access = super::access::access(&next).map_err(|error| error.to_string())?;
                // A reload does not change the address, so it may differ from the one in the file.
                handle.check(&access).map_err(|error| error.to_string())?;
                Some((handle, access))
            }
            None => None,
        };
        let limits = settings::limits(&next);
        let key_in_use = live.rules.load().evidence.key;
        let evidence = super::accounts::evidence(&next, key_in_use).map_err(|error| error.to_string())?;
        let evidence = Arc::new(evidence);
        // Nothing can fail any more.
        live.allowed.replace(allowlist, next.allowlist_resolve_interval.0);
        let rules = Rules { evidence, ..settings::judge(&next, &detection, &live.allowed) };
        live.rules.rcu(|before| {
            let mut rules = rules.clone();
            let scope = Arc::make_mut(&mut rules.scope);
            scope.own = before.scope.own.clone();
            // A name may have been resolved meanwhile.
            scope.allowlist = live.allowed.targets(&scope.nat64);
            rules
        });
        if let Some(feeds) = &live.feeds {
            feeds.set_dry_run(next.ban.dry_run);
        }
        live.detection.store(Arc::new(detection));
        live.allowlist.send_replace(own_addresses::mirrored(&live.rules.load()));
        let runtime = Handle::current();
        if runtime.block_on(live.store.tune(limits, next.ban.cleanup_interval.0)).is_err() {
            return Err("the node is shutting down".to_owned());
        }
        if let (Some(cluster), Some(keyring)) = (&live.cluster, keyring) {
            cluster.rotate(&keyring);
        }
        for (tls, read) in renewed {
            tls.renew(read);
        }
        keys.apply();
        if let Some((handle, access)) = access {
            handle.renew(access);
        }
        self.state.log.set_level(next.log.level);
        *current = next;
        drop(current);
        let mut report = vec![format!("reloaded: {} changed", changes.live.len())];
        for change in &changes.live {
            info!(key = change.key, old = change.old, new = change.new, "changed");
            report.push(format!("{}: {} -> {}", change.key, change.old, change.new));
        }
        for change in &changes.restart {
            warn!(key = change.key, old = change.old, new = change.new, "takes effect only after a restart");
            report.push(format!("{}: {} -> {} (needs a restart)", change.key, change.old, change.new));
        }
        info!(changed = changes.live.len(), need_restart = changes.restart.len(), "configuration reloaded");
        Ok(report.join("\n"))
    }
}
