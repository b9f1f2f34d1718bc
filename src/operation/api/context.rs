//! What the API needs from its node.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{activity, audit, backlog, views};
use crate::clock;
use crate::decisions::feeds::Feeds;
use crate::decisions::geo::Geo;
use crate::decisions::history::History;
use crate::decisions::judge::{JudgeHandle, OffenceSender};
use crate::decisions::rankings::Rankings;
use crate::decisions::store::StoreHandle;
use crate::decisions::view::View;
use crate::enforcement::follower::PlaceHealth;
use crate::enforcement::peers::SharedCounters;
use crate::inputs::feeds::FeedsHandle;
use crate::operation::Provider;
use crate::operation::readiness::Readiness;
use banmesh_core::attempts::Counter;
use banmesh_core::node::NodeId;
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::target::{Target, TargetError};
use banmesh_types::time::UnixMillis;

/// Reloads the configuration. Returns a message for the operator, or the reason for a failure. Requests during a reload share the next one.
pub type Reload = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// The settings that a reload can change.
#[derive(Clone, Debug)]
pub struct LiveSettings {
    /// Ban lengths and retention.
    pub policy: Arc<BanPolicy>,
    /// The configured allowlist, the prefixes that are banned, and whether this is a dry run.
    pub scope: Arc<Scope>,
}

/// What the API needs from its node. [`ApiContext::new`] has defaults for a node without a cluster; set the fields that differ.
#[derive(Clone)]
pub struct ApiContext {
    /// The ban table.
    pub store: StoreHandle,
    /// The lock-free view of the ban table.
    pub view: View,
    /// This node.
    pub node: NodeId,
    /// The version of banmesh.
    pub version: &'static str,
    /// When this process started.
    pub started: UnixMillis,
    /// The settings in force.
    pub rules: Provider<LiveSettings>,
    /// The cluster as this node sees it.
    pub cluster: Provider<views::ClusterView>,
    /// Whether the node is ready.
    pub readiness: Provider<Readiness>,
    /// The vital parts that do not answer; empty while the node is alive.
    pub silent: Provider<Vec<String>>,
    /// The parts that failed and were restarted.
    pub restarted: Provider<Vec<views::RestartedPart>>,
    /// What keeps the node from doing its work.
    pub problems: Provider<Vec<views::ProblemView>>,
    /// The places that follow the ban table, besides the agent.
    pub places: Provider<Vec<PlaceHealth>>,
    /// What HAProxies count; `None` without `haproxy.peers`.
    pub tables: Option<SharedCounters>,
    /// The filters in force and their counters.
    pub filters: Provider<views::FiltersView>,
    /// The node behind each attempt counter.
    pub counters: Provider<Vec<(Counter, NodeId)>>,
    /// Queries to the judge; `None` on a node without one.
    pub judge: Option<JudgeHandle>,
    /// Receives reported offences; `None` on a node without a judge.
    pub offences: Option<OffenceSender>,
    /// Feeds, and who asks for them; `None` on a node without any.
    pub feeds: Option<(Feeds, FeedsHandle)>,
    /// Countries and networks; `None` without files.
    pub geo: Option<Geo>,
    /// Recent offences and decisions.
    pub history: History,
    /// What was most frequent in the last hour.
    pub rankings: Rankings,
    /// What this node receives.
    pub inputs: Provider<views::InputsView>,
    /// The proxies that ask this node.
    pub proxies: Provider<Vec<views::ProxyView>>,
    /// The journal on disk.
    pub disk: Provider<views::DiskView>,
    /// What this node tells the others about its work.
    pub report: Provider<views::NodeReportView>,
    /// Reloads the configuration.
    pub reload: Reload,
    /// All metrics of the node.
    pub registry: Arc<Registry>,
    /// The counters of the last hour, day and week.
    pub activity: activity::Activity,
    /// Counts requests that change something.
    pub audit: audit::Metrics,
    /// What the event streams share.
    pub events: backlog::Events,
    /// Fires when the node stops; ends event streams.
    pub shutdown: CancellationToken,
}

impl ApiContext {
    /// The target that `text` names. What a translator wrote (`ban.nat64_prefixes`) is the IPv4 target that it stands for.
    ///
    /// # Errors
    /// When it is neither an address nor a network.
    pub fn target(&self, text: &str) -> Result<Target, TargetError> {
        text.parse().map(|target| (self.rules)().scope.nat64.target(target))
    }

    /// The context of a ready node without a cluster, an allowlist or a configuration to reload.
    pub fn new(store: StoreHandle, view: View, node: NodeId) -> Self {
        let policy = Arc::new(BanPolicy {
            max_attempts: 5,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(3 * 86_400),
        });
        let scope = Arc::new(Scope {
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            allowlist: NetSet::default(),
            own: NetSet::default(),
            nat64: Nat64::default(),
            dry_run: false,
        });
        let rules = LiveSettings { policy, scope };
        let vital = store.clone();
        Self {
            store,
            view,
            node,
            version: env!("CARGO_PKG_VERSION"),
            started: clock::now(),
            rules: Arc::new(move || rules.clone()),
            cluster: Arc::new(views::ClusterView::standalone),
            readiness: Arc::new(Readiness::ready),
            silent: Arc::new(move || if vital.is_gone() { vec!["store".to_owned()] } else { Vec::new() }),
            restarted: Arc::new(Vec::new),
            problems: Arc::new(Vec::new),
            places: Arc::new(Vec::new),
            tables: None,
            filters: Arc::new(|| views::FiltersView { filters: Vec::new() }),
            counters: Arc::new(Vec::new),
            judge: None,
            offences: None,
            feeds: None,
            geo: None,
            history: History::default(),
            rankings: Rankings::default(),
            inputs: Arc::new(views::InputsView::default),
            proxies: Arc::new(Vec::new),
            disk: Arc::new(views::DiskView::default),
            report: Arc::new(views::NodeReportView::default),
            reload: Arc::new(|| {
                let error = "this node was started without a configuration file, so there is nothing to reload";
                Box::pin(std::future::ready(Err(error.to_owned())))
            }),
            registry: Arc::new(Registry::default()),
            activity: activity::Activity::default(),
            audit: audit::Metrics::default(),
            events: backlog::Events::default(),
            shutdown: CancellationToken::new(),
        }
    }
}
