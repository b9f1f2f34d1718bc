//! CrowdSec's bouncer API, so that its bouncers enforce our bans without changes.
//!
//! | route | answer |
//! |---|---|
//! | `GET /v1/decisions/stream` | everything with `startup=true`, else what changed since the bouncer asked last |
//! | `GET /v1/decisions?ip=…` | the bans that cover an address or a network, or `null` |
//! | `POST /v1/usage-metrics` | accepted and dropped |
//! | `GET /health` | whether the bans are complete |
//!
//! A bouncer sends no cursor. `banmesh_core::published` decides what it must get, from its key, its address and its
//! `User-Agent`; nodes share nothing about bouncers. See docs/enforcement.md.

mod answer;
mod metrics;
mod query;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, body};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::published::{ClientAddress, KeyCheck, PublishedBans};
use crate::decisions::store::StoreHandle;
use crate::net::throttle::LogThrottle;
use answer::{Answer, Form, TooMany};
pub use metrics::Metrics;
use query::{Filter, Lookup};

use banmesh_core::published::{Clients, Decision, Identity, Steady, Window};
use banmesh_types::address::Address;

/// Answers with everything that are sent at once. Each may hold a snapshot, 48 bytes per ban; further ones wait.
const FULL_ANSWERS: usize = 4;
/// The longest `User-Agent` that is stored, in bytes.
const MAX_AGENT: usize = 100;
/// The longest body of a request, in bytes. Bouncers send their own metrics.
const BODY: usize = 1 << 20;
/// The most decisions of an answer to `contains=false`.
const MAX_INSIDE: usize = 10_000;
/// A bouncer that has not asked for this long is no longer known.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The bouncer API; clones share its state.
#[derive(Clone, Debug)]
pub struct BouncerApi(Arc<Shared>);

struct Shared {
    bans: PublishedBans,
    store: StoreHandle,
    keys: KeyCheck,
    clients: Mutex<Clients>,
    full: Arc<Semaphore>,
    metrics: Metrics,
    refusals: LogThrottle,
    arrivals: LogThrottle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BouncerApi").field("bans", &self.bans).finish_non_exhaustive()
    }
}

/// A bouncer that has polled this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bouncer {
    /// Who it is.
    pub identity: Identity,
    /// How long ago it asked.
    pub silent: Duration,
    /// The bans in force.
    pub entries: u64,
}

/// The name of the key of a request.
#[derive(Clone, Debug)]
struct Key(Arc<str>);

type Api = State<BouncerApi>;
type Parameters = Query<Vec<(String, String)>>;

impl BouncerApi {
    /// Serves `bans`; their causes are in `store`. `keys` knows the keys of bouncers.
    pub fn new(bans: PublishedBans, store: StoreHandle, keys: KeyCheck, metrics: Metrics) -> Self {
        let minute = Duration::from_secs(60);
        Self(Arc::new(Shared {
            bans,
            store,
            keys,
            clients: Mutex::default(),
            full: Arc::new(Semaphore::new(FULL_ANSWERS)),
            metrics,
            refusals: LogThrottle::new(minute),
            arrivals: LogThrottle::new(Duration::from_secs(1)),
        }))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/decisions", get(decisions))
            .route("/v1/decisions/stream", get(stream))
            .route("/v1/usage-metrics", post(usage))
            .layer(DefaultBodyLimit::max(BODY))
            .route_layer(middleware::from_fn_with_state(self.clone(), check))
            .route("/health", get(health))
            .with_state(self.clone())
    }

    /// The bouncers that have polled this node within a day.
    pub fn bouncers(&self) -> Vec<Bouncer> {
        let now = self.0.bans.steady();
        let entries = self.0.bans.read(|published, _| u64::try_from(published.len()).unwrap_or(u64::MAX));
        let mut clients = self.0.clients.lock();
        let longest = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
        clients.remove_before(Steady(now.0.saturating_sub(longest)));
        let all = clients.all().into_iter();
        let silent = |last: Steady| Duration::from_millis(now.0.saturating_sub(last.0));
        all.map(|polled| Bouncer { silent: silent(polled.last), identity: polled.identity, entries }).collect()
    }
}

/// Lets bouncers with a key pass.
async fn check(State(api): Api, mut request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").and_then(|key| (api.0.keys)(key.as_bytes()));
    let Some(key) = key else {
        api.0.metrics.polls.answered("refused");
        if let Some(more) = api.0.refusals.permit(Instant::now()) {
            let client = request.extensions().get::<ClientAddress>().map(|client| client.0.to_string());
            warn!(client, and_more = more, "refused a bouncer with an unknown key (crowdsec.keys)");
        }
        return message(StatusCode::FORBIDDEN, "access forbidden");
    };
    request.extensions_mut().insert(Key(key));
    next.run(request).await
}

async fn health(State(api): Api) -> Response {
    if api.0.bans.is_complete_now() { StatusCode::OK.into_response() } else { unready() }
}

/// The bouncers' own metrics. They are read, so that the connection stays usable, and dropped.
async fn usage(_: Bytes) -> StatusCode {
    StatusCode::CREATED
}

async fn stream(
    State(api): Api,
    Extension(key): Extension<Key>,
    client: Option<Extension<ClientAddress>>,
    Query(parameters): Parameters,
    headers: HeaderMap,
) -> Response {
    let api = api.0;
    if !api.bans.is_complete().await {
        api.metrics.polls.answered("unready");
        return unready();
    }
    let startup = parameters.iter().any(|(name, value)| name == "startup" && value == "true");
    let identity = identity(key, client.map(|Extension(client)| client), &headers);
    let filter = Filter::of_stream(&parameters);
    let (window, is_new) = {
        let (at, mut clients) = (api.bans.steady(), api.clients.lock());
        let is_new = !clients.knows(&identity);
        (clients.poll(identity.clone(), startup, at), is_new)
    };
    api.metrics.polls.polled_by(&identity.key);
    if is_new && let Some(more) = api.arrivals.permit(Instant::now()) {
        let Identity { key, address, agent } = &identity;
        info!(%key, %address, %agent, and_more = more, "a bouncer follows the bans");
    }
    let changes = match window {
        Window::Full => None,
        Window::Since(from) => {
            let bans = api.bans.clone();
            // A quarter of a million changes take a moment.
            let taken = tokio::task::spawn_blocking(move || bans.read(|published, now| published.since(from, now)));
            taken.await.unwrap_or_default()
        }
    };
    if let Some(changes) = changes {
        api.metrics.polls.answered("changes");
        return body(Answer::changes(changes, api.store.clone(), filter, api.metrics.clone()));
    }
    api.metrics.polls.answered("full");
    let Ok(permit) = Arc::clone(&api.full).acquire_owned().await else { return unready() };
    let snapshot = api.bans.snapshot().await;
    let answered = Arc::clone(&api);
    let answered = move || answered.clients.lock().answered(&identity);
    let answer = Answer::full(snapshot, api.bans.clone(), api.store.clone(), filter, api.metrics.clone());
    body(answer.with_permit(permit).when_written(answered))
}

async fn decisions(State(api): Api, Query(parameters): Parameters) -> Response {
    let api = api.0;
    if !api.bans.is_complete().await {
        api.metrics.polls.answered("unready");
        return unready();
    }
    let (lookup, filter) = match (Lookup::read(&parameters), Filter::of_lookup(&parameters)) {
        (Ok(lookup), filter) => (lookup, filter),
        (Err(error), _) => return message(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    api.metrics.polls.answered("lookup");
    let found = match lookup {
        Lookup::Nothing => Vec::new(),
        Lookup::All => {
            let Ok(permit) = Arc::clone(&api.full).acquire_owned().await else { return unready() };
            let snapshot = api.bans.snapshot().await;
            let answer = Answer::full(snapshot, api.bans.clone(), api.store.clone(), filter, api.metrics.clone());
            return body(answer.with_permit(permit).in_form(Form::List));
        }
        Lookup::Covering(target) => api.bans.read(|published, now| published.covering(target, now)),
        Lookup::Inside(target) => api.bans.read(|published, now| published.within(target, MAX_INSIDE, now)),
        Lookup::Exactly(target) => api.bans.read(|published, now| {
            let decisions = published.covering(target, now);
            decisions.into_iter().filter(|decision: &Decision| decision.value == target).collect()
        }),
    };
    let answer = Answer::changes(found, api.store.clone(), filter, api.metrics.clone()).in_form(Form::List);
    // Exactly these bytes: nginx answers 500 to visitors for anything else. A short answer also gets its Content-Length.
    match answer.collect().await {
        Ok(text) => ([(CONTENT_TYPE, JSON)], text).into_response(),
        Err(TooMany) => unready(),
    }
}

const JSON: &str = "application/json";

fn body(answer: Answer) -> Response {
    ([(CONTENT_TYPE, JSON)], Body::from_stream(answer.into_stream())).into_response()
}

fn unready() -> Response {
    let mut response = message(StatusCode::SERVICE_UNAVAILABLE, "the bans are not complete yet; ask again");
    response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
    response
}

fn message(status: StatusCode, text: &str) -> Response {
    let text = serde_json::json!({ "message": text }).to_string();
    (status, [(CONTENT_TYPE, JSON)], body::Body::from(text)).into_response()
}

fn identity(Key(key): Key, client: Option<ClientAddress>, headers: &HeaderMap) -> Identity {
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let agent: String = agent.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_AGENT).collect();
    let unknown = || Address::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    Identity { key, address: client.map_or_else(unknown, |client| client.0), agent: agent.into() }
}

#[cfg(test)]
mod tests;
