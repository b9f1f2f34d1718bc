//! One node: its parts, bound and wired, then served until the end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Build;
use super::access::{self, AccessError};
use super::alarms;
use super::inputs::Inputs;
use super::notifications::{self, WebhookError};
use super::reload::{Live, Reloader};
use super::rules;
use super::verdicts::Lookup;
use super::views;
use crate::config::{Config, filters};
use crate::domain::attempts::Counter;
use crate::domain::node::{NodeId, NodeIdError};
use crate::proto::seal::{Keyring, KeyringError};
use crate::service::admin::activity::{Recorder, Totals};
use crate::service::admin::views::{ClusterView, Readiness};
use crate::service::admin::{self, AdminContext, AdminSocket, HttpConfig, HttpError, HttpListener, SocketError};
use crate::service::cluster::{self, Cluster, ClusterError, ClusterHandle, ClusterSettings};
use crate::service::detect::{self, Watch};
use crate::service::history::History;
use crate::service::journal::{self, Journal, JournalError};
use crate::service::journald::JournaldError;
use crate::service::judge::{self, Court, Sharing};
use crate::service::metrics::{self, MetricsConfig, MetricsError, MetricsListener};
use crate::service::mirror::{self, Mirrors};
use crate::service::spoa::{self, Spoa, SpoaConfig, SpoaError};
use crate::service::store::{self, Store, StoreHandle};
use crate::service::syslog::BindError;
use crate::service::tls::{TlsError, TlsServer};
use crate::service::view::View;
use crate::service::webhook::Webhooks;

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
    #[error("the filters are not usable; `banmesh check` says the same:\n{0}")]
    Filters(String),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {} (node.data_dir): {source}; make it, let this user own it, or name another one", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configured node id is none.
    #[error("node.id: {0}")]
    NodeId(#[from] NodeIdError),
    /// The journal cannot be used.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// The file with the cluster's keys cannot be read.
    #[error("cannot read {} (cluster.secret_file): {source}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the cluster's keys is no keyring.
    #[error("{} (cluster.secret_file): {source}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyringError,
    },
    /// The cluster cannot listen.
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    /// Syslog cannot listen.
    #[error("{0}")]
    Syslog(#[from] BindError),
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The systemd journal cannot be followed.
    #[error("{0}")]
    Journald(#[from] JournaldError),
    /// The agent cannot listen.
    #[error("{0}")]
    Spoa(#[from] SpoaError),
    /// The metrics cannot be served.
    #[error("{0}")]
    Metrics(#[from] MetricsError),
    /// A webhook cannot be used.
    #[error("{0}")]
    Webhook(#[from] WebhookError),
    /// The API cannot be served.
    #[error("{0}")]
    Api(#[from] HttpError),
    /// Who may use the API cannot be read.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The command line's socket cannot be served.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// A part ended while it was needed.
    #[error("the cluster ended unexpectedly; the log says why")]
    Ended,
}

/// A node whose listeners are bound.
#[derive(Debug)]
pub struct Node {
    store: Store,
    court: Court,
    cluster: Option<Cluster>,
    inputs: Inputs,
    spoa: Option<Spoa<Lookup>>,
    mirrors: Option<Mirrors>,
    metrics: Option<MetricsListener>,
    api: Option<HttpListener>,
    webhooks: Option<Webhooks>,
    socket: AdminSocket,
    router: axum::Router,
    registry: Arc<Registry>,
    recorder: Recorder,
    /// Whether the node serves: what readiness says.
    serving: Arc<AtomicBool>,
    /// Ends answers that would go on for ever.
    answers: CancellationToken,
    handle: Option<ClusterHandle>,
}

impl Node {
    /// Builds and wires the parts. Must be called within the runtime.
    ///
    /// # Errors
    /// The first part that cannot start.
    pub async fn bind(reloader: Reloader, build: Build) -> Result<Self, StartError> {
        let config = reloader.config();
        let detection = rules::detection(&config).map_err(|errors| StartError::Filters(filters::lines(&errors)))?;
        for warning in detection.detector().warnings() {
            warn!("{warning}");
        }
        let rules = Arc::new(ArcSwap::from_pointee(rules::rules(&config, &detection)));
        let detection = Arc::new(ArcSwap::from_pointee(detection));
        make_data_dir(&config)?;
        // The socket first: a node that runs with this data directory says so more clearly than a locked file.
        let socket = AdminSocket::bind(&config.admin_socket())?;
        let opened = open_journal(&config).await?;
        let (id, generation) = (opened.identity.node.clone(), opened.identity.generation);
        let started = crate::service::clock::now();
        let mut registry = metrics::registry(&id, env!("CARGO_PKG_VERSION"), started);
        opened.metrics.register(&mut registry);

        let (view, writer) = View::new();
        let store_metrics = store::Metrics::default();
        store_metrics.register(&mut registry);
        let (store, handle) = Store::new(
            opened.ledger,
            writer,
            Some(opened.journal),
            config.ban.cleanup_interval.0,
            store_metrics.clone(),
        );
        let cluster_metrics = config.cluster.enabled.then(cluster::Metrics::default);
        let mut cluster =
            bind_cluster(&config, build, (id.clone(), generation), &handle, cluster_metrics.clone(), &mut registry)
                .await?;
        let cluster_handle = cluster.as_ref().map(Cluster::handle);
        let counts = cluster.as_mut().and_then(Cluster::remote_counts);
        let sharing = cluster_handle.clone().zip(counts).map(|(cluster, counts)| Sharing { cluster, counts });

        let serving = Arc::new(AtomicBool::new(false));
        let readiness = readiness(Arc::clone(&serving), cluster_handle.clone());
        metrics::register_readiness(&mut registry, Arc::clone(&readiness));
        let judge_metrics = judge::Metrics::default();
        judge_metrics.register(&mut registry);
        let spoa_metrics = spoa::Metrics::default();
        let totals = totals(store_metrics.clone(), judge_metrics.clone(), spoa_metrics.clone());
        let judge_counters = judge_metrics.clone();
        let (recognised, bans) = (judge_metrics.clone(), store_metrics.clone());
        let history = History::new(config.api.history);
        let max_tracked = config.ban.max_tracked;
        let (court, bench) =
            Court::new(max_tracked, Arc::clone(&rules), handle.clone(), view.reader(), sharing, judge_metrics);
        let court = court.with_history(history.clone());
        let inquiry = court.inquiry();
        let detect_metrics = detect::Metrics::default();
        detect_metrics.register(&mut registry);
        let watch = Watch::new(Arc::clone(&detection), bench.clone(), detect_metrics);
        let inputs = Inputs::bind(&config, &watch, &mut registry)?;
        let spoa_tls = rules::spoa_tls(&config).map(|(at, files)| Ok::<_, TlsError>((at, TlsServer::load(files)?)));
        let spoa_tls = spoa_tls.transpose()?;
        let api_tls = rules::api_tls(&config).map(TlsServer::load).transpose()?;
        let spoa_server = spoa_tls.iter().map(|(_, server)| server.clone());
        let renewed = inputs.tls().into_iter().chain(spoa_server).chain(api_tls.clone()).collect();
        let lookup = Lookup::new(view.reader(), Arc::clone(&rules), handle.exempt(), bench);
        let spoa_settings = SpoaConfig { tls: spoa_tls, ..rules::spoa(&config) };
        let spoa = bind_spoa(spoa_settings, lookup, spoa_metrics, &mut registry)?;
        let allowlist = tokio::sync::watch::Sender::new(config.allowlist.clone());
        let mirrors = rules::mirror(&config).map(|settings| {
            let metrics = mirror::Metrics::default();
            metrics.register(&mut registry);
            Mirrors::new(settings, handle.clone(), allowlist.subscribe(), metrics)
        });
        let metrics = bind_metrics(&config).await?;
        let api = bind_api(&config, api_tls, &mut registry).await?;

        let parts = alarms::Parts {
            journal: opened.metrics,
            store: store_metrics,
            max_bans: config.ban.max_bans,
            judge: judge_counters,
            cluster: cluster_handle.clone().zip(cluster_metrics),
        };
        let webhooks = notifications::webhooks(&config, id.clone(), &handle, parts, &mut registry)?;

        let in_force = Arc::clone(&detection);
        let live = Live {
            rules: Arc::clone(&rules),
            detection,
            store: handle.clone(),
            cluster: cluster_handle.clone(),
            tls: renewed,
            api: api.as_ref().map(HttpListener::keeper),
            allowlist,
        };
        reloader.attach(live);
        let audit = admin::audit::Metrics::default();
        audit.register(&mut registry);
        let (answers, registry) = (CancellationToken::new(), Arc::new(registry));
        let recorder = Recorder::new(totals);
        let context = AdminContext {
            node: id,
            started,
            rules: Arc::new(move || {
                let rules = rules.load();
                admin::Rules { policy: Arc::clone(&rules.general), scope: Arc::clone(&rules.scope) }
            }),
            cluster: cluster_view(cluster_handle.clone()),
            readiness,
            filters: Arc::new(move || views::filters(&in_force.load(), &recognised, &bans)),
            counters: counters(cluster_handle.clone()),
            judge: Some(inquiry),
            history,
            reload: Arc::new(move || reloader.reload()),
            registry: Arc::clone(&registry),
            activity: recorder.activity(),
            audit,
            shutdown: answers.clone(),
            ..AdminContext::new(handle, view, "unnamed".parse()?)
        };
        let router = admin::router(Arc::new(context));
        Ok(Self {
            store,
            court,
            cluster,
            inputs,
            spoa,
            mirrors,
            metrics,
            api,
            webhooks,
            socket,
            router,
            registry,
            recorder,
            serving,
            answers,
            handle: cluster_handle,
        })
    }

    /// Serves until `stop`, then takes the parts down in order; `now` cuts the lame duck short.
    ///
    /// # Errors
    /// When a part ended that the node cannot be without.
    pub async fn serve(self, stop: CancellationToken, now: CancellationToken) -> Result<(), StartError> {
        let store = Stage::start(|end| self.store.serve(end));
        let court = Stage::start(|end| self.court.serve(end));
        let broken = CancellationToken::new();
        let cluster = self.cluster.map(|cluster| {
            let broken = broken.clone();
            Stage::start(|end| async move {
                if let Err(reason) = cluster.serve(end.clone()).await {
                    error!("{reason}");
                    broken.cancel();
                }
            })
        });
        let activity = Stage::start(|end| self.recorder.serve(end));
        let inputs = self.inputs.start();
        let spoa = self.spoa.map(|spoa| Stage::start(|end| spoa.serve(end)));
        let joined = self.handle.clone();
        let mirrors = self.mirrors.map(|mirrors| {
            Stage::start(|end| async move {
                // A node that lost its disk must not tell HAProxy that nobody is banned before it has asked the others.
                if let Some(cluster) = joined {
                    let _ = end.run_until_cancelled(cluster.ready()).await;
                }
                mirrors.serve(end).await;
            })
        });
        let metrics = self.metrics.map(|metrics| Stage::start(|end| metrics.serve(self.registry, end)));
        let router = self.router.clone();
        let api = self.api.map(|api| Stage::start(|end| api.serve(router, end)));
        let webhooks = self.webhooks.map(|webhooks| Stage::start(|end| webhooks.serve(end)));
        let admin = Stage::start(|end| self.socket.serve(self.router, end));
        self.serving.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle {
            tokio::select! {
                () = handle.ready() => {}
                () = stop.cancelled() => {}
            }
        }
        if !stop.is_cancelled() {
            info!("ready");
            tell_systemd(&[sd_notify::NotifyState::Ready]);
        }
        let watchdog = Stage::start(watchdog);
        tokio::select! {
            () = stop.cancelled() => {}
            () = broken.cancelled() => {}
        }
        tell_systemd(&[sd_notify::NotifyState::Stopping]);
        self.serving.store(false, Ordering::Relaxed);
        if let Some(spoa) = spoa {
            tokio::select! {
                () = spoa.end() => {}
                () = now.cancelled() => {}
            }
        }
        for input in inputs {
            input.end().await;
        }
        court.end().await;
        activity.end().await;
        if let Some(mirrors) = mirrors {
            mirrors.end().await;
        }
        // Before the cluster: what an operator is told is done must still reach the others.
        self.answers.cancel();
        admin.end().await;
        if let Some(api) = api {
            api.end().await;
        }
        if let Some(cluster) = cluster {
            cluster.end().await;
        }
        if let Some(webhooks) = webhooks {
            webhooks.end().await;
        }
        if let Some(metrics) = metrics {
            metrics.end().await;
        }
        store.end().await;
        watchdog.end().await;
        if broken.is_cancelled() { Err(StartError::Ended) } else { Ok(()) }
    }
}

/// What the journal gave, with its counters.
struct OpenedJournal {
    journal: Journal,
    identity: journal::Identity,
    ledger: crate::domain::ledger::Ledger,
    metrics: journal::Metrics,
}

async fn open_journal(config: &Config) -> Result<OpenedJournal, StartError> {
    let node: Option<NodeId> = if config.node.id.is_empty() { None } else { Some(config.node.id.parse()?) };
    let settings = journal::Settings { path: config.node.data_dir.join(journal::FILE_NAME), node };
    let (limits, metrics) = (rules::limits(config), journal::Metrics::default());
    let counters = metrics.clone();
    let opened = tokio::task::spawn_blocking(move || Journal::open(&settings, limits, counters)).await;
    let opened = opened.map_err(|_| StartError::Ended)??;
    let journal::Opened { journal, identity, ledger } = opened;
    Ok(OpenedJournal { journal, identity, ledger, metrics })
}

fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let path = &config.node.data_dir;
    let unusable = |source| StartError::DataDir { path: path.clone(), source };
    std::fs::create_dir_all(path).map_err(unusable)?;
    // Before the admin socket is the first that cannot be made in it.
    let rights = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    nix::unistd::access(path, rights).map_err(|error| unusable(error.into()))
}

/// The keys of `cluster.secret_file`, if there is one.
pub(super) fn keyring(config: &Config) -> Result<Option<Keyring>, StartError> {
    let Some(path) = &config.cluster.secret_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|source| StartError::SecretFile { path: path.clone(), source })?;
    Keyring::parse(&text).map(Some).map_err(|source| StartError::Keyring { path: path.clone(), source })
}

async fn bind_cluster(
    config: &Config,
    Build { version, wire }: Build,
    (node, generation): (NodeId, u64),
    store: &StoreHandle,
    metrics: Option<cluster::Metrics>,
    registry: &mut Registry,
) -> Result<Option<Cluster>, StartError> {
    let Some(metrics) = metrics else { return Ok(None) };
    metrics.register(registry);
    let settings = ClusterSettings { version, wire, ..rules::cluster(config, node, generation, keyring(config)?) };
    Ok(Some(Cluster::bind(settings, store.clone(), metrics).await?))
}

fn bind_spoa(
    settings: SpoaConfig,
    lookup: Lookup,
    metrics: spoa::Metrics,
    registry: &mut Registry,
) -> Result<Option<Spoa<Lookup>>, StartError> {
    if settings.listen.is_none() && settings.tls.is_none() {
        return Ok(None);
    }
    let client_certificates = settings.tls.as_ref().is_some_and(|(_, server)| server.asks_for_certificates());
    metrics.register(registry);
    let spoa = Spoa::bind(settings, lookup, metrics)?;
    if let Some(address) = spoa.local_addr() {
        info!(%address, "listening for HAProxy");
    }
    if let Some(address) = spoa.tls_addr() {
        info!(%address, client_certificates, "listening for HAProxy over TLS");
    }
    Ok(Some(spoa))
}

async fn bind_metrics(config: &Config) -> Result<Option<MetricsListener>, StartError> {
    if !config.prometheus.enabled {
        return Ok(None);
    }
    let settings = MetricsConfig { listen: config.prometheus.listen(), path: config.prometheus.path.clone() };
    let listener = settings.bind().await?;
    info!(address = %listener.address(), path = config.prometheus.path, "serving metrics");
    Ok(Some(listener))
}

/// The API over TCP, behind its gate.
async fn bind_api(
    config: &Config,
    tls: Option<TlsServer>,
    registry: &mut Registry,
) -> Result<Option<HttpListener>, StartError> {
    let api = &config.api;
    if !api.enabled {
        return Ok(None);
    }
    let metrics = admin::http::Metrics::default();
    metrics.register(registry);
    let (encrypted, limits) = (tls.is_some(), &api.rate_limiting);
    let settings = HttpConfig {
        access: access::access(config)?,
        requests_per_minute: limits.enabled.then_some(limits.requests_per_minute),
        tls,
    };
    let listener = settings.bind(api.listen(), metrics).await?;
    info!(address = %listener.address(), tls = encrypted, "serving the API");
    if !encrypted && !listener.address().ip().is_loopback() {
        warn!(
            "passwords and tokens for the API cross the network in the clear; set api.tls, or put a proxy with TLS before it"
        );
    }
    Ok(Some(listener))
}

/// What the curves of the last hour are drawn from.
fn totals(store: store::Metrics, judge: judge::Metrics, spoa: spoa::Metrics) -> admin::Provider<Totals> {
    Arc::new(move || Totals {
        offences: judge.all_offences(),
        bans: store.all_bans(),
        lifts: store.all_lifts(),
        checks: spoa.all_checks(),
    })
}

fn cluster_view(handle: Option<ClusterHandle>) -> admin::Provider<ClusterView> {
    match handle {
        Some(handle) => Arc::new(move || views::cluster(&handle)),
        None => Arc::new(ClusterView::standalone),
    }
}

fn counters(handle: Option<ClusterHandle>) -> admin::Provider<Vec<(Counter, NodeId)>> {
    Arc::new(move || handle.as_ref().map(ClusterHandle::counters).unwrap_or_default())
}

fn readiness(serving: Arc<AtomicBool>, cluster: Option<ClusterHandle>) -> admin::Provider<Readiness> {
    Arc::new(move || {
        let mut waiting_for = Vec::new();
        if !serving.load(Ordering::Relaxed) {
            waiting_for.push("the node is starting or stopping".to_owned());
        }
        if cluster.as_ref().is_some_and(|cluster| *cluster.phase().borrow() == cluster::members::Phase::Joining) {
            waiting_for.push("the bans of the other nodes".to_owned());
        }
        Readiness { ready: waiting_for.is_empty(), waiting_for }
    })
}

/// Tells systemd, where it has asked to be told (`Type=notify`).
fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(reason) = sd_notify::notify(state) {
        debug!(%reason, "cannot notify systemd");
    }
}

/// Says that we live as often as systemd wants to hear it (`WatchdogSec=`), if it does.
async fn watchdog(end: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval(interval / 2);
    while end.run_until_cancelled(beat.tick()).await.is_some() {
        tell_systemd(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// A running part and the way to end it.
#[derive(Debug)]
pub(super) struct Stage {
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Stage {
    pub(super) fn start<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(CancellationToken) -> F) -> Self {
        let end = CancellationToken::new();
        Self { task: tokio::spawn(serve(end.clone())), end }
    }

    async fn end(self) {
        self.end.cancel();
        // A part that panicked has said so on standard error; the others are still taken down in order.
        let _ = self.task.await;
    }
}
