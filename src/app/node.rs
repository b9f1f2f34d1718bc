//! Builds a node: binds its parts and wires them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::accounts;
use super::allowed_names::{AllowedNames, NameResolver};
use super::disk::{make_data_dir, open_journal, warn_if_away};
use super::feeds::{self, AllFeeds, GeoWatch};
use super::fetching::{Fetching, Listeners};
use super::health::HealthSources;
use super::inputs::Inputs;
use super::keyring::keyring;
use super::listeners::{bind_api, bind_metrics, bind_spoa, bind_verdict};
use super::lookup::Lookup;
use super::mail::MailListeners;
use super::own_addresses::{self, OwnAddresses};
use super::peers::PeersParts;
use super::places::Places;
use super::problems::{ProblemWatch, Problems};
use super::reload::{ReloadableParts, Reloader};
use super::socket::SocketService;
use super::start_error::StartError;
use super::supervisor::PartHealth;
use super::{alarms, notifications, panics, settings, views};
use crate::cluster::{self, Cluster, ClusterHandle, ClusterSettings};
use crate::config::{Config, allowlist};
use crate::decisions::evidence_log::EvidenceLog;
use crate::decisions::history::History;
use crate::decisions::journal;
use crate::decisions::judge::{self, JudgeTask, Sharing};
use crate::decisions::rankings::Rankings;
use crate::decisions::store::{self, Store, StoreHandle};
use crate::decisions::view::View;
use crate::enforcement::agent::{self, Spoa, SpoaConfig};
use crate::enforcement::follower::PlaceHealth;
use crate::enforcement::published::PublishedBans;
use crate::enforcement::verdict::{self, VerdictEndpoint};
use crate::inputs::detect::{self, FilterSink};
use crate::net::tls::{TlsError, TlsServer};
use crate::operation::Provider;
use crate::operation::api::activity::{Recorder, Totals};
use crate::operation::api::views::ClusterView;
use crate::operation::api::{self, ApiContext, HttpListener};
use crate::operation::metrics::{self, MetricsListener};
use crate::operation::readiness::Readiness;
use crate::operation::webhooks::{Sources, Webhooks};
use banmesh_core::attempts::Counter;
use banmesh_core::judge::Rules;
use banmesh_core::node::NodeId;
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
    pub(super) peers: Option<PeersParts>,
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
    pub(super) feeds: Option<AllFeeds>,
    pub(super) geo: Option<GeoWatch>,
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
        let may_start_without = options.without_journal || config.cluster.enabled;
        // Before anything that keeps a file there.
        make_data_dir(&config, may_start_without)?;
        let evidence = Arc::new(accounts::evidence(&config, None)?);
        let accounts_key = evidence.key;
        let rules = Rules { evidence, ..settings::judge(&config, &detection, &allowed) };
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        let detection = Arc::new(ArcSwap::from_pointee(detection));
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
        let evidence = cluster.as_mut().and_then(Cluster::remote_evidence);
        let sharing = cluster_handle.as_ref().zip(counts.zip(evidence)).map(|(cluster, (remote, evidence))| {
            Sharing::new(cluster.local_counts(), remote, cluster.local_evidence(), evidence)
        });

        let serving = Arc::new(AtomicBool::new(false));
        let readiness = readiness(Arc::clone(&serving), cluster_handle.clone());
        metrics::register_readiness(&mut registry, Arc::clone(&readiness));
        let judge_metrics = judge::Metrics::default();
        judge_metrics.register(&mut registry);
        let spoa_metrics = agent::Metrics::default();
        let verdict_metrics = verdict::Metrics::default();
        let asked = (spoa_metrics.clone(), verdict_metrics.clone());
        let (judge_counters, agent_counters) = (judge_metrics.clone(), spoa_metrics.clone());
        let (recognised, bans) = (judge_metrics.clone(), store_metrics.clone());
        let history = History::new(config.api.history);
        let rankings = Rankings::default();
        let max_tracked = config.ban.max_tracked;
        let (judge, offences) =
            JudgeTask::new(max_tracked, Arc::clone(&rules), handle.clone(), view.reader(), sharing, judge_metrics);
        let (all_feeds, for_judge) = AllFeeds::new(&config, &mut registry)?.unzip();
        let geo = feeds::geo(&config);
        let evidence =
            EvidenceLog::open(&config.node.data_dir, config.evidence.max_accounts, accounts_key.as_ref()).await;
        let judge = judge
            .with_history(history.clone())
            .with_rankings(rankings.clone())
            .with_feeds(for_judge)
            .with_geo(geo.clone())
            .with_evidence(evidence);
        let judge_handle = judge.handle();
        let detect_metrics = detect::Metrics::default();
        detect_metrics.register(&mut registry);
        let sink = FilterSink::new(Arc::clone(&detection), offences.clone(), detect_metrics.clone());
        let inputs = Inputs::bind(&config, &sink, &mut registry)?;
        let totals = totals(store_metrics.clone(), judge_counters.clone(), asked, inputs.line_metrics());
        let recorder = Recorder::new(totals).saved_in(&config.node.data_dir);
        let spoa_tls = settings::spoa_tls(&config).map(|(at, files)| Ok::<_, TlsError>((at, TlsServer::load(files)?)));
        let spoa_tls = spoa_tls.transpose()?;
        let api_tls = settings::api_tls(&config).map(TlsServer::load).transpose()?;
        let spoa_server = spoa_tls.iter().map(|(_, server)| server.clone());
        let mut renewed: Vec<TlsServer> = inputs.tls().into_iter().chain(spoa_server).chain(api_tls.clone()).collect();
        let table_lookup = Lookup::new(view.reader(), Arc::clone(&rules), handle.exempt(), offences.clone());
        let lookup = table_lookup.clone().with_feeds(all_feeds.as_ref().map(|all| all.feeds.reader()));
        let mail = MailListeners::bind(&config, &lookup, &offences, &mut registry)?;
        let spoa_settings = SpoaConfig { tls: spoa_tls, ..settings::spoa(&config) };
        let nameless = verdict_metrics.nameless.clone();
        let verdict_counters = verdict_metrics.clone();
        let verdict = bind_verdict(&config, lookup.clone(), verdict_metrics, &mut registry)?;
        let spoa = bind_spoa(spoa_settings, lookup, spoa_metrics, &mut registry)?;
        allowed.register(&mut registry);
        let allowlist = tokio::sync::watch::Sender::new(own_addresses::mirrored(&rules.load()));
        let names = NameResolver::new(allowed.clone(), Arc::clone(&rules), allowlist.clone());
        let own_addresses = OwnAddresses::new(&config, Arc::clone(&rules), allowlist.clone(), cluster_handle.clone());
        let published_bans = PublishedBans::default();
        let peers = PeersParts::bind(&config, &offences, cluster.as_mut(), &mut registry)?;
        let table = peers.as_ref().and_then(|peers| peers.place(&config));
        let places = Places::new(&config, &handle, table_lookup, &allowlist, &published_bans, table, &mut registry);
        let fetching = Listeners::bind(&config, &published_bans, &handle, &mut registry).await?;
        let health_of =
            [places.as_ref().map(Places::health), fetching.bouncers(), peers.as_ref().map(PeersParts::health)];
        let place_health = all_places(health_of);
        let metrics = bind_metrics(&config).await?;
        let api = bind_api(&config, api_tls, &mut registry).await?;

        let problems = Problems::default();
        let health_sources = HealthSources {
            name: super::health::name_of(&config.node.id, &id),
            lines: inputs.line_metrics(),
            detection: detect_metrics.clone(),
            judge: judge_counters.clone(),
            agent: Some(agent_counters.clone()).filter(|_| spoa.is_some()),
            verdict: Some(verdict_counters).filter(|_| verdict.is_some()),
            journal: opened.metrics.clone(),
            journal_path: config.node.data_dir.join(journal::FILE_NAME),
            problems: problems.clone(),
            activity: recorder.activity(),
        };
        if let Some(cluster) = &cluster {
            let sources = health_sources.clone();
            cluster.report_from(move || sources.report());
        }
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
            connections: places.as_ref().and_then(Places::connections),
            feeds: all_feeds.as_ref().map(|all| all.feeds.clone()),
            geo: geo.clone(),
            nameless,
        };
        let problem_watch = ProblemWatch::new(alarms::conditions(parts), problems.clone(), &mut registry);
        let sources = Sources::new(&handle, cluster_handle.clone(), problems.conditions()).with_geo(geo.clone());
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
            feeds: all_feeds.as_ref().map(|all| all.feeds.clone()),
        };
        reloader.attach(live);
        let audit = api::audit::Metrics::default();
        audit.register(&mut registry);
        let events = api::backlog::Events::default();
        events.register(&mut registry);
        let (answers, registry) = (CancellationToken::new(), Arc::new(registry));
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
            tables: peers.as_ref().map(PeersParts::board),
            filters: {
                let rankings = rankings.clone();
                Arc::new(move || views::filters(&in_force.load(), &recognised, &bans, &rankings))
            },
            rankings,
            inputs: health_sources.inputs(),
            proxies: health_sources.proxies(),
            disk: health_sources.disk(),
            report: Arc::new(move || views::report(&health_sources.report())),
            counters: counters(cluster_handle.clone()),
            judge: Some(judge_handle),
            offences: Some(offences),
            feeds: all_feeds.as_ref().map(|all| (all.feeds.clone(), all.handle.clone())),
            geo: geo.clone(),
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
            peers,
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
            feeds: all_feeds,
            geo: geo.map(GeoWatch),
            health,
            serving,
            answers,
            handle: cluster_handle,
        })
    }
}

/// The places that follow the table, the bouncers that poll, and the HAProxies that are connected as peers.
fn all_places(sources: [Option<Provider<Vec<PlaceHealth>>>; 3]) -> Option<Provider<Vec<PlaceHealth>>> {
    let sources: Vec<_> = sources.into_iter().flatten().collect();
    (!sources.is_empty())
        .then(|| -> Provider<_> { Arc::new(move || sources.iter().flat_map(|health| health()).collect()) })
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

/// The counters behind the charts.
fn totals(
    store: store::Metrics,
    judge: judge::Metrics,
    (spoa, verdict): (agent::Metrics, verdict::Metrics),
    lines: crate::inputs::syslog::Metrics,
) -> Provider<Totals> {
    Arc::new(move || {
        let (lines, dropped) = lines.all_lines();
        Totals {
            offences: judge.all_offences(),
            bans: store.all_bans(),
            unbans: store.all_unbans(),
            haproxy: spoa.all_checks(),
            verdicts: verdict.all_checks(),
            refused: spoa.banned.get() + verdict.answered(verdict::Outcome::Banned),
            lines,
            dropped,
        }
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
        if cluster.as_ref().is_some_and(ClusterHandle::is_kept_out) {
            waiting_for.push("a key that the other nodes accept (cluster.secret_file)".to_owned());
        }
        Readiness { ready: waiting_for.is_empty(), waiting_for }
    })
}
