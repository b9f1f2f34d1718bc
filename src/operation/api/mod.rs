//! The operator's door: one HTTP API (JSON, `/api/v1/...`), served on a Unix socket and, when told to, over TCP.
//!
//! It decides little: it turns requests into commands for the store and what the parts know into JSON. Everything that a
//! request can cost is bounded: bodies, times, connections, and the memory of a listing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::decisions::history::History;
use crate::decisions::judge::Inquiry;
use crate::decisions::store::StoreHandle;
use crate::decisions::view::View;
use banmesh_core::attempts::Counter;
use banmesh_core::node::NodeId;
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_types::netset::NetSet;
use banmesh_types::time::UnixMillis;

pub mod activity;
mod allowlist;
pub mod audit;
mod bans;
mod bulk;
pub mod credential;
mod errors;
mod events;
mod facts;
mod forwarded;
mod guard;
pub mod http;
mod legacy;
mod listing;
pub mod login;
mod node;
mod openapi;
mod page;
mod patience;
mod rate;
pub mod roles;
pub mod serve;
mod session;
pub mod socket;
pub mod views;

pub use errors::ApiError;
pub use http::{Access, HttpConfig, HttpError, HttpListener};
pub use socket::{AdminSocket, SocketError};

/// What a part of the node knows at the moment it is asked. Must not block: it is called on the runtime's threads.
pub type Provider<T> = Arc<dyn Fn() -> T + Send + Sync>;
/// Reads the configuration again and puts it in force: what was done, or why not. May block; called on a thread for that.
pub type Reload = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// The rules in force, which a reload may change.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Lengths of bans, and how long an offender is remembered.
    pub policy: Arc<BanPolicy>,
    /// The allowlist, and whether bans are only talked about.
    pub scope: Arc<Scope>,
}

/// All that the API needs of the node. [`AdminContext::new`] makes one of a node that is alone; set the fields that differ.
#[derive(Clone)]
pub struct AdminContext {
    /// The ban table.
    pub store: StoreHandle,
    /// The readers' side of the ban table.
    pub view: View,
    /// This node.
    pub node: NodeId,
    /// The program's version.
    pub version: &'static str,
    /// When this process started.
    pub started: UnixMillis,
    /// The rules in force.
    pub rules: Provider<Rules>,
    /// The cluster as this node sees it.
    pub cluster: Provider<views::ClusterView>,
    /// Whether the node does its work.
    pub readiness: Provider<views::Readiness>,
    /// The parts that the node is not alive without and that do not answer; empty while it is alive.
    pub silent: Provider<Vec<String>>,
    /// The parts that broke and were started again.
    pub restarted: Provider<Vec<views::RestartedPart>>,
    /// The filters in force, and what they have done.
    pub filters: Provider<views::FiltersView>,
    /// Which node counts under which number.
    pub counters: Provider<Vec<(Counter, NodeId)>>,
    /// A way to ask the judge; `None` where there is none.
    pub judge: Option<Inquiry>,
    /// What this node has seen and heard of late.
    pub history: History,
    /// Reads the configuration again.
    pub reload: Reload,
    /// What the node counts.
    pub registry: Arc<Registry>,
    /// What happened in the last hour.
    pub activity: activity::Activity,
    /// Counts the changes that are asked for.
    pub audit: audit::Metrics,
    /// Fires when the node stops: ends answers that would go on for ever.
    pub shutdown: CancellationToken,
}

impl AdminContext {
    /// The context of a node without a cluster, which is ready, allows nobody in particular and cannot reload.
    pub fn new(store: StoreHandle, view: View, node: NodeId) -> Self {
        let policy = Arc::new(BanPolicy {
            max_attempts: 5,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(3 * 86_400),
        });
        let scope = Arc::new(Scope { ipv4_prefix: 32, ipv6_prefix: 64, allowlist: NetSet::default(), dry_run: false });
        let rules = Rules { policy, scope };
        let vital = store.clone();
        Self {
            store,
            view,
            node,
            version: env!("CARGO_PKG_VERSION"),
            started: clock::now(),
            rules: Arc::new(move || rules.clone()),
            cluster: Arc::new(views::ClusterView::standalone),
            readiness: Arc::new(views::Readiness::ready),
            silent: Arc::new(move || if vital.is_gone() { vec!["store".to_owned()] } else { Vec::new() }),
            restarted: Arc::new(Vec::new),
            filters: Arc::new(|| views::FiltersView { filters: Vec::new() }),
            counters: Arc::new(Vec::new),
            judge: None,
            history: History::default(),
            reload: Arc::new(|| Err("this node was started without a configuration that can be read again".to_owned())),
            registry: Arc::new(Registry::default()),
            activity: activity::Activity::default(),
            audit: audit::Metrics::default(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// The longest body of a request that names one target, in bytes.
const BODY: usize = 64 * 1024;
/// The longest body of a request that names many, in bytes.
const BULK_BODY: usize = 2 * 1024 * 1024;

/// The API over `context`, without any authentication: whoever reaches it may use all of it. [`HttpListener`] puts a gate
/// in front, which looks every route up in [`roles::ROUTES`]: one that is not there is for administrators only.
pub fn router(context: Arc<AdminContext>) -> Router {
    let v1 = Router::new()
        .route("/status", get(node::status))
        .route("/me", get(node::me))
        .route("/openapi.json", get(openapi::document))
        .route("/bans", get(bans::list).post(bans::ban))
        .route("/bans/export", get(bans::export))
        .route("/bans/bulk", post(bans::ban_many).layer(DefaultBodyLimit::max(BULK_BODY)))
        .route("/bans/unban", post(bans::unban_many).layer(DefaultBodyLimit::max(BULK_BODY)))
        // A wildcard, so that a network may be written with its slash.
        .route("/bans/{*target}", get(facts::show).delete(bans::unban))
        .route("/why/{address}", get(facts::why))
        .route("/allowlist", get(allowlist::list).post(allowlist::add))
        .route("/allowlist/bulk", post(allowlist::add_many).layer(DefaultBodyLimit::max(BULK_BODY)))
        .route("/allowlist/{*target}", get(allowlist::show).delete(allowlist::remove))
        .route("/filters", get(facts::filters))
        .route("/cluster", get(node::cluster))
        .route("/reload", post(node::reload))
        .route("/ping", get(node::ping))
        .route("/events", get(events::events))
        .route("/activity", get(activity::activity))
        .fallback(errors::no_such_path)
        .method_not_allowed_fallback(errors::no_such_method);
    Router::new()
        .nest("/api/v1", v1)
        .merge(legacy::router())
        .merge(page::router())
        .route("/metrics", get(node::metrics))
        .route("/health/live", get(node::live))
        .route("/health/ready", get(node::ready))
        .fallback(errors::no_such_path)
        .method_not_allowed_fallback(errors::no_such_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(context.audit.clone(), audit::record))
        .layer(middleware::from_fn(errors::in_time))
        .with_state(context)
}
