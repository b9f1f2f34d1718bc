//! Builds a node: binds its parts and wires them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::allowed_names::{AllowedNames, NameResolver};
use super::fetching::{Fetching, Listeners};
use super::inputs::Inputs;
use super::keyring::keyring;
use super::lookup::Lookup;
use super::mail::MailListeners;
use super::own_addresses::{self, OwnAddresses};
use super::places::Places;
use super::problems::{ProblemWatch, Problems};
use super::reload::{ReloadableParts, Reloader};
use super::socket::SocketService;
use super::start_error::StartError;
use super::supervisor::PartHealth;
use super::supervisor::policy::How;
use super::{access, alarms, capacity, notifications, panics, settings, views};
use crate::cluster::{self, Cluster, ClusterHandle, ClusterSettings};
use crate::config::{Config, allowlist};
use crate::decisions::history::History;
use crate::decisions::journal::{self, Journal};
use crate::decisions::judge::{self, JudgeTask, Sharing};
use crate::decisions::store::{self, Store, StoreHandle};
use crate::decisions::view::View;
use crate::enforcement::agent::{self, Spoa, SpoaConfig};
use crate::enforcement::follower::PlaceHealth;
use crate::enforcement::published::Board;
use crate::enforcement::verdict::{self, VerdictEndpoint};
use crate::inputs::detect::{self, FilterSink};
use crate::net::tls::{TlsError, TlsServer};
use crate::operation::Provider;
use crate::operation::api::activity::{Recorder, Totals};
use crate::operation::api::views::ClusterView;
use crate::operation::api::{self, ApiContext, HttpConfig, HttpListener};
use crate::operation::metrics::{self, MetricsConfig, MetricsListener};
use crate::operation::readiness::Readiness;
use crate::operation::webhooks::{Sources, Webhooks};
use crate::private;
use banmesh_core::attempts::Counter;
use banmesh_core::node::NodeId;
use banmesh_core::retention::DECISION_RETENTION;
use banmesh_core::wire::Dialect;
use banmesh_filter::library;

/// The version and the wire format that a node publishes to the other nodes.
#[derive(Clone, Debug)]
pub struct Build {
    /// The version of banmesh.
    pub version: String,
    /// The wire versions that it reads and writes.
    pub wire: Dialect,
}

impl Default for Build {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), wire: Dialect::default() }
    }
}

/// How a node starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether a node without a cluster may start without its journal (`banmesh run --without-journal`). A node in a cluster always may,
    /// because it receives the bans of the other nodes.
    pub without_journal: bool,
}

/// A node whose listeners are bound.
#[derive(Debug)]
pub struct Node {
    pub(super) store: Store,
    pub(super) store_handle: StoreHandle,
    pub(super) journal: journal::Thread,
    pub(super) judge: JudgeTask,
    pub(super) cluster: Option<Cluster>,
    pub(super) inputs: Inputs,
    pub(super) spoa: Option<Spoa<Lookup>>,
    pub(super) verdict: Option<VerdictEndpoint<Lookup>>,
    /// How long the agent drains (`spoa.drain`).
    pub(super) drain: Duration,
    pub(super) mail: MailListeners,
    pub(super) places: Option<Places>,
    pub(super) fetching: Vec<Fetching>,
    pub(super) metrics: Option<MetricsListener>,
    pub(super) api: Option<HttpListener>,
    pub(super) webhooks: Option<Webhooks>,
    pub(super) socket: SocketService,
    pub(super) router: axum::Router,
    pub(super) registry: Arc<Registry>,
    pub(super) recorder: Recorder,
    pub(super) problem_watch: ProblemWatch,
    pub(super) own_addresses: Option<OwnAddresses>,
    pub(super) names: NameResolver,
    pub(super) health: PartHealth,
    /// Whether the node serves; part of its readiness.
    pub(super) serving: Arc<AtomicBool>,
    /// Ends responses without an end, such as event streams.
    pub(super) answers: CancellationToken,
    pub(super) handle: Option<ClusterHandle>,
}

impl Node {
    /// Builds and wires the parts. Must be called within the runtime.
    ///
    /// # Errors
    /// The first error of a part.
    pub async fn bind(reloader: Reloader, build: Build, options: Options) -> Result<Self, StartError> {
        let config = reloader.config();
        let detection = settings::detection(&config).map_err(|errors| StartError::Filters(library::lines(&errors)))?;
        for warning in detection.detector().warnings() {
            warn!("{warning}");
        }
        let allowed = AllowedNames::new(allowlist::read(&config)?, config.allowlist_resolve_interval.0);
        let rules = Arc::new(ArcSwap::from_pointee(settings::judge(&config, &detection, &allowed)));
        let detection = Arc::new(ArcSwap::from_pointee(detection));
        let may_start_without = options.without_journal || config.cluster.enabled;
        make_data_dir(&config, may_start_without)?;
        // Bind the socket first: its error about a second node in this data directory is clearer than that of a locked journal.
        let socket = SocketService::bind(config.admin_socket(), may_start_without)?;
        let opened = open_journal(&config, may_start_without).await?;
        if config.cluster.enabled {
            warn_if_away(&opened.ledger);
        }
        let (id, generation) = (opened.identity.node.clone(), opened.identity.generation);
        let started = crate::clock::now();
        let mut registry = metrics::registry(&id, env!("CARGO_PKG_VERSION"), started);
        opened.metrics.register(&mut registry);
        panics::register(&mut registry);
        reloader.log().register(&mut registry);
        let health = PartHealth::default();
        health.register(&mut registry);

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
        let store = store.with_alarm_at(config.ban.alarm_ipv4_percent);
        let cluster_metrics = config.cluster.enabled.then(cluster::Metrics::default);
        let mut cluster =
            bind_cluster(&config, build, (id.clone(), generation), &handle, cluster_metrics.clone(), &mut registry)
                .await?;
        let cluster_handle = cluster.as_ref().map(Cluster::handle);
        let counts = cluster.as_mut().and_then(Cluster::remote_counts);
        let sharing = cluster_handle
            .as_ref()
            .zip(counts)
            .map(|(cluster, remote)| Sharing { local: cluster.local_counts(), remote });

        let serving = Arc::new(AtomicBool::new(false));
        let readiness = readiness(Arc::clone(&serving), cluster_handle.clone());
        metrics::register_readiness(&mut registry, Arc::clone(&readiness));
        let judge_metrics = judge::Metrics::default();
        judge_metrics.register(&mut registry);
        let spoa_metrics = agent::Metrics::default();
        let verdict_metrics = verdict::Metrics::default();
        let asked = (spoa_metrics.clone(), verdict_metrics.clone());
        let totals = totals(store_metrics.clone(), judge_metrics.clone(), asked);
        let (judge_counters, agent_counters) = (judge_metrics.clone(), spoa_metrics.clone());
        let (recognised, bans) = (judge_metrics.clone(), store_metrics.clone());
        let history = History::new(config.api.history);
        let max_tracked = config.ban.max_tracked;
        let (judge, offences) =
            JudgeTask::new(max_tracked, Arc::clone(&rules), handle.clone(), view.reader(), sharing, judge_metrics);
        let judge = judge.with_history(history.clone());
        let judge_handle = judge.handle();
        let detect_metrics = detect::Metrics::default();
        detect_metrics.register(&mut registry);
        let sink = FilterSink::new(Arc::clone(&detection), offences.clone(), detect_metrics.clone());
        let inputs = Inputs::bind(&config, &sink, &mut registry)?;
        let spoa_tls = settings::spoa_tls(&config).map(|(at, files)| Ok::<_, TlsError>((at, TlsServer::load(files)?)));
        let spoa_tls = spoa_tls.transpose()?;
        let api_tls = settings::api_tls(&config).map(TlsServer::load).transpose()?;
        let spoa_server = spoa_tls.iter().map(|(_, server)| server.clone());
        let mut renewed: Vec<TlsServer> = inputs.tls().into_iter().chain(spoa_server).chain(api_tls.clone()).collect();
        let lookup = Lookup::new(view.reader(), Arc::clone(&rules), handle.exempt(), offences.clone());
        let mail = MailListeners::bind(&config, &lookup, &offences, &mut registry)?;
        let spoa_settings = SpoaConfig { tls: spoa_tls, ..settings::spoa(&config) };
        let nameless = verdict_metrics.nameless.clone();
        let verdict = bind_verdict(&config, lookup.clone(), verdict_metrics, &mut registry)?;
        let spoa = bind_spoa(spoa_settings, lookup, spoa_metrics, &mut registry)?;
        allowed.register(&mut registry);
        let allowlist = tokio::sync::watch::Sender::new(own_addresses::mirrored(&rules.load()));
        let names = NameResolver::new(allowed.clone(), Arc::clone(&rules), allowlist.clone());
        let own_addresses = OwnAddresses::new(&config, Arc::clone(&rules), allowlist.clone(), cluster_handle.clone());
        let board = Board::default();
        let places = Places::new(&config, &handle, &allowlist, &board, &mut registry);
        let fetching = Listeners::bind(&config, &board, &handle, &mut registry).await?;
        let place_health = all_places(places.as_ref().map(Places::health), fetching.bouncers());
        let metrics = bind_metrics(&config).await?;
        let api = bind_api(&config, api_tls, &mut registry).await?;

        let parts = alarms::AlarmSources {
            journal: opened.metrics,
            store: store_metrics,
            max_bans: settings::limits(&config).max_bans,
            judge: judge_counters,
            agent: Some(agent_counters).filter(|_| spoa.is_some()),
            detection: detect_metrics,
            files: inputs.file_metrics(),
            names: allowed.clone(),
            cluster: cluster_handle.clone().zip(cluster_metrics),
            mail: mail.queries(),
            places: place_health.clone(),
            nameless,
        };
        let problems = Problems::default();
        let problem_watch = ProblemWatch::new(alarms::conditions(parts), problems.clone(), &mut registry);
        let sources = Sources::new(&handle, cluster_handle.clone(), problems.conditions());
        let webhooks = notifications::webhooks(&config, id.clone(), sources, &mut registry)?;

        let in_force = Arc::clone(&detection);
        renewed.extend(fetching.tls);
        let live = ReloadableParts {
            keys: fetching.keys,
            rules: Arc::clone(&rules),
            detection,
            store: handle.clone(),
            cluster: cluster_handle.clone(),
            tls: renewed,
            api: api.as_ref().map(HttpListener::access_handle),
            allowlist,
            allowed,
        };
        reloader.attach(live);
        let audit = api::audit::Metrics::default();
        audit.register(&mut registry);
        let events = api::backlog::Events::default();
        events.register(&mut registry);
        let (answers, registry) = (CancellationToken::new(), Arc::new(registry));
        let recorder = Recorder::new(totals);
        let (silent, restarts) = (health.clone(), health.clone());
        let store_handle = handle.clone();
        let context = ApiContext {
            node: id,
            started,
            rules: Arc::new(move || {
                let rules = rules.load();
                api::LiveSettings { policy: Arc::clone(&rules.general), scope: Arc::clone(&rules.scope) }
            }),
            cluster: cluster_view(cluster_handle.clone()),
            readiness,
            silent: Arc::new(move || silent.silent(Instant::now())),
            restarted: Arc::new(move || restarts.restarts()),
            problems: problems.present(),
            places: place_health.unwrap_or_else(|| Arc::new(Vec::new)),
            filters: Arc::new(move || views::filters(&in_force.load(), &recognised, &bans)),
            counters: counters(cluster_handle.clone()),
            judge: Some(judge_handle),
            offences: Some(offences),
            history,
            reload: Arc::new(move || {
                let requested = reloader.request(&tokio::runtime::Handle::current());
                Box::pin(async move {
                    // Logged by the panic hook.
                    requested
                        .outcome()
                        .await
                        .unwrap_or_else(|| Err("the reload failed; see the log of the node".to_owned()))
                })
            }),
            registry: Arc::clone(&registry),
            activity: recorder.activity(),
            audit,
            events,
            shutdown: answers.clone(),
            ..ApiContext::new(handle, view, "unnamed".parse()?)
        };
        let router = api::router(Arc::new(context));
        Ok(Self {
            store,
            store_handle,
            journal: opened.thread,
            judge,
            cluster,
            inputs,
            spoa,
            verdict,
            drain: config.spoa.drain.0,
            mail,
            places,
            fetching: fetching.bound,
            metrics,
            api,
            webhooks,
            socket,
            router,
            registry,
            recorder,
            problem_watch,
            own_addresses,
            names,
            health,
            serving,
            answers,
            handle: cluster_handle,
        })
    }
}

/// The places that follow the table, and the bouncers that poll.
fn all_places(
    places: Option<Provider<Vec<PlaceHealth>>>,
    bouncers: Option<Provider<Vec<PlaceHealth>>>,
) -> Option<Provider<Vec<PlaceHealth>>> {
    let (Some(places), Some(bouncers)) = (places.clone(), bouncers) else { return places };
    Some(Arc::new(move || places().into_iter().chain(bouncers()).collect()))
}

/// The opened journal and its contents.
struct OpenedJournal {
    journal: Journal,
    thread: journal::Thread,
    identity: journal::Identity,
    ledger: banmesh_core::ledger::Ledger,
    metrics: journal::Metrics,
}

/// Warns if this node has written and received nothing for longer than other nodes keep the unbans of permanent bans.
fn warn_if_away(ledger: &banmesh_core::ledger::Ledger) {
    let silent = crate::clock::now().since(ledger.last_stamp().millis());
    if silent > DECISION_RETENTION && !ledger.table().is_empty() {
        tracing::warn!(
            days = silent.as_secs() / 86_400,
            "the journal has no change of the last 90 days: if this node was disconnected, the other nodes may have removed unbans that it has \
             not received, and its permanent bans return; delete its data directory and start it again"
        );
    }
}

/// Logs how many entries the table can hold, and warns if the memory limit does not hold them.
fn say_capacity(max_bans: usize, config: &Config) {
    let limit = capacity::memory_limit();
    let limit = if config.firewall.enabled { limit.map(capacity::beside_firewall) } else { limit };
    let published = config.crowdsec.enabled || config.lists.enabled;
    let limit = if published { limit.map(capacity::beside_published) } else { limit };
    let needs = capacity::memory_for(max_bans);
    match limit {
        Some(limit) if limit < needs => tracing::warn!(
            max_bans,
            limit_mib = limit >> 20,
            needs_mib = needs >> 20,
            "the memory limit of this process does not hold ban.max_bans entries, so a full table would end it: raise the limit, or \
             remove ban.max_bans"
        ),
        _ => tracing::info!(
            max_bans,
            limit_mib = limit.map(|limit| limit >> 20),
            "the ban table can hold this many entries"
        ),
    }
}

async fn open_journal(config: &Config, may_start_without: bool) -> Result<OpenedJournal, StartError> {
    let node: Option<NodeId> = if config.node.id.is_empty() { None } else { Some(config.node.id.parse()?) };
    let settings = journal::Settings { path: config.node.data_dir.join(journal::FILE_NAME), node, may_start_without };
    let (limits, metrics) = (settings::limits(config), journal::Metrics::default());
    say_capacity(limits.max_bans, config);
    let counters = metrics.clone();
    let opened = tokio::task::spawn_blocking(move || Journal::open(&settings, limits, counters)).await;
    let opened = opened.map_err(|error| {
        let how = error.try_into_panic().map_or(How::Returned, |panic| How::Panicked(panics::message(panic.as_ref())));
        StartError::Ended { part: "journal".to_owned(), how }
    })??;
    let journal::Opened { journal, identity, ledger, thread } = opened;
    Ok(OpenedJournal { journal, thread, identity, ledger, metrics })
}

fn make_data_dir(config: &Config, may_start_without: bool) -> Result<(), StartError> {
    let path = &config.node.data_dir;
    let rights = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    // Check now, because otherwise the admin socket would fail with a less clear error.
    let usable =
        private::create_directory(path).and_then(|()| nix::unistd::access(path, rights).map_err(std::io::Error::from));
    match usable {
        Ok(()) => Ok(()),
        Err(error) if may_start_without && is_of_the_disk(&error) => {
            error!(path = %path.display(), %error, "the data directory (node.data_dir) cannot be written; starting without it");
            Ok(())
        }
        Err(source) => Err(StartError::DataDir { path: path.clone(), source }),
    }
}

/// Whether a full, read-only or failing disk causes `error`.
pub(super) fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let kind = matches!(
        error.kind(),
        ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::StaleNetworkFileHandle
    );
    kind || error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
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
    let settings = ClusterSettings { version, wire, ..settings::cluster(config, node, generation, keyring(config)?) };
    Ok(Some(Cluster::bind(settings, store.clone(), metrics).await?))
}

fn bind_spoa(
    settings: SpoaConfig,
    lookup: Lookup,
    metrics: agent::Metrics,
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

fn bind_verdict(
    config: &Config,
    lookup: Lookup,
    metrics: verdict::Metrics,
    registry: &mut Registry,
) -> Result<Option<VerdictEndpoint<Lookup>>, StartError> {
    let Some(settings) = settings::verdict(config) else { return Ok(None) };
    metrics.register(registry);
    let endpoint = VerdictEndpoint::bind(settings, lookup, metrics)?;
    for address in endpoint.addresses() {
        info!(%address, "listening for nginx, Traefik, Caddy and Envoy");
    }
    Ok(Some(endpoint))
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

/// The API over TCP, with authentication and rate limit.
async fn bind_api(
    config: &Config,
    tls: Option<TlsServer>,
    registry: &mut Registry,
) -> Result<Option<HttpListener>, StartError> {
    let api = &config.api;
    if !api.enabled {
        return Ok(None);
    }
    let metrics = api::http::Metrics::default();
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
            "passwords and tokens for the API cross the network as plaintext; set api.tls, or put a proxy with TLS in front of it"
        );
    }
    Ok(Some(listener))
}

/// The counters behind the charts of the last hour.
fn totals(
    store: store::Metrics,
    judge: judge::Metrics,
    (spoa, verdict): (agent::Metrics, verdict::Metrics),
) -> Provider<Totals> {
    Arc::new(move || Totals {
        offences: judge.all_offences(),
        bans: store.all_bans(),
        unbans: store.all_unbans(),
        checks: spoa.all_checks() + verdict.all_checks(),
    })
}

fn cluster_view(handle: Option<ClusterHandle>) -> Provider<ClusterView> {
    match handle {
        Some(handle) => Arc::new(move || views::cluster(&handle)),
        None => Arc::new(ClusterView::standalone),
    }
}

fn counters(handle: Option<ClusterHandle>) -> Provider<Vec<(Counter, NodeId)>> {
    Arc::new(move || handle.as_ref().map(ClusterHandle::counters).unwrap_or_default())
}

fn readiness(serving: Arc<AtomicBool>, cluster: Option<ClusterHandle>) -> Provider<Readiness> {
    Arc::new(move || {
        let mut waiting_for = Vec::new();
        if !serving.load(Ordering::Relaxed) {
            waiting_for.push("the node to finish starting or stopping".to_owned());
        }
        if cluster.as_ref().is_some_and(|cluster| *cluster.phase().borrow() == cluster::members::Phase::Joining) {
            waiting_for.push("the bans of the other nodes".to_owned());
        }
        Readiness { ready: waiting_for.is_empty(), waiting_for }
    })
}
