//! The bans as lists, for appliances that fetch one: Palo Alto, FortiGate, OPNsense, pfSense, MikroTik.
//!
//! | path | content |
//! |---|---|
//! | `/ipv4.txt`, `/ipv6.txt`, `/all.txt` | one address or network per line |
//! | `/mikrotik.rsc` | a script for RouterOS that adds all to an address list, with the time left |
//!
//! The key is the password of a login (RFC 7617), a bearer token, or the first part of the path: `/KEY/ipv4.txt`. `limit=N` keeps the N bans
//! that last longest. Before the bans are complete, the answer is 503: an empty list would end all bans at an appliance.

mod metrics;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use tracing::warn;

use super::published::{KeyCheck, PublishedBans, Snapshot};
use crate::clock;
use crate::net::throttle::LogThrottle;
pub use metrics::Metrics;

use banmesh_core::published::Decision;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Lines that are written at once.
const PAGE: usize = 4096;
/// The name of the address list in RouterOS.
const MIKROTIK_LIST: &str = "banmesh";
/// The longest time that RouterOS keeps an entry, in seconds. Longer bans are added again by the next fetch.
const MIKROTIK_LONGEST: u64 = 30 * 86_400;

/// The lists; clones share them.
#[derive(Clone)]
pub struct Lists(Arc<Shared>);

struct Shared {
    bans: PublishedBans,
    keys: KeyCheck,
    metrics: Metrics,
    refusals: LogThrottle,
}

/// A list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Ipv4,
    Ipv6,
    All,
    Mikrotik,
}

#[derive(Debug, serde::Deserialize)]
struct Parameters {
    limit: Option<usize>,
}

impl std::fmt::Debug for Lists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lists").field("bans", &self.0.bans).finish_non_exhaustive()
    }
}

impl List {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ipv4.txt" => Self::Ipv4,
            "ipv6.txt" => Self::Ipv6,
            "all.txt" => Self::All,
            "mikrotik.rsc" => Self::Mikrotik,
            _ => return None,
        })
    }

    const fn has(self, value: Target) -> bool {
        match self {
            Self::Ipv4 => value.is_ipv4(),
            Self::Ipv6 => !value.is_ipv4(),
            Self::All | Self::Mikrotik => true,
        }
    }

    /// The version of the content; `None` if it changes with time.
    fn tag(self, [ipv4, ipv6]: [u64; 2]) -> Option<String> {
        Some(match self {
            Self::Ipv4 => format!("\"{ipv4:016x}\""),
            Self::Ipv6 => format!("\"{ipv6:016x}\""),
            Self::All => format!("\"{:016x}\"", ipv4.rotate_left(1) ^ ipv6),
            Self::Mikrotik => return None,
        })
    }
}

impl Lists {
    /// Serves `bans`. `keys` knows the keys of appliances.
    pub fn new(bans: PublishedBans, keys: KeyCheck, metrics: Metrics) -> Self {
        let refusals = LogThrottle::new(Duration::from_secs(60));
        Self(Arc::new(Shared { bans, keys, metrics, refusals }))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/{list}", get(with_login))
            .route("/{key}/{list}", get(with_key))
            .route("/health", get(health))
            .with_state(self.clone())
    }

    async fn answer(
        &self,
        key: Option<Arc<str>>,
        list: &str,
        parameters: &Parameters,
        headers: &HeaderMap,
    ) -> Response {
        let metrics = &self.0.metrics;
        let Some(key) = key else {
            metrics.polls.answered("refused");
            if let Some(more) = self.0.refusals.permit(Instant::now()) {
                warn!(and_more = more, "refused a list to a client with an unknown key (lists.keys)");
            }
            let login = [(WWW_AUTHENTICATE, "Basic realm=\"banmesh\"")];
            return (StatusCode::UNAUTHORIZED, login, "unknown key; see lists.keys\n").into_response();
        };
        let Some(list) = List::named(list) else {
            let lists = "there is no such list; use ipv4.txt, ipv6.txt, all.txt or mikrotik.rsc\n";
            return (StatusCode::NOT_FOUND, lists).into_response();
        };
        if !self.0.bans.is_complete().await {
            metrics.polls.answered("unready");
            return unready();
        }
        metrics.polls.polled_by(&key);
        // Which bans are among the first N depends on their ends, which the tag does not cover.
        let tagged = |digests| list.tag(digests).filter(|_| parameters.limit.is_none());
        let asked = headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
        if let Some(tag) = tagged(self.0.bans.digests()).filter(|tag| asked.is_some_and(|asked| asked.contains(tag))) {
            metrics.polls.answered("unchanged");
            return (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response();
        }
        metrics.polls.answered("sent");
        let snapshot = self.0.bans.snapshot().await;
        let tag = tagged(snapshot.digests).and_then(|tag| HeaderValue::try_from(tag).ok());
        let written = Written::new(snapshot, list, parameters.limit);
        let parts = stream::unfold(written, |mut written| async move {
            written.next().map(|part| (Ok::<_, std::convert::Infallible>(part), written))
        });
        let mut response = Body::from_stream(parts).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(tag) = tag {
            headers.insert(ETAG, tag);
        }
        response
    }
}

async fn with_login(
    State(lists): State<Lists>,
    Path(list): Path<String>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Response {
    let key = password(&headers).and_then(|key| (lists.0.keys)(&key));
    lists.answer(key, &list, &parameters, &headers).await
}

async fn with_key(
    State(lists): State<Lists>,
    Path((key, list)): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
) -> Response {
    let key = (lists.0.keys)(key.as_bytes());
    lists.answer(key, &list, &parameters, &headers).await
}

async fn health(State(lists): State<Lists>) -> Response {
    if lists.0.bans.is_complete_now() { StatusCode::OK.into_response() } else { unready() }
}

fn unready() -> Response {
    let text = "the bans are not complete yet; ask again\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], text).into_response()
}

/// The password of a login with any user name, or a bearer token.
fn password(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, value) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().as_bytes().to_vec());
    }
    let decoded = STANDARD.decode(value.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    decoded.get(colon + 1..).map(<[u8]>::to_vec)
}

/// A list that is being written.
struct Written {
    list: List,
    decisions: Chosen,
    at: usize,
    /// Whether a line was written.
    any: bool,
    begun: bool,
}

enum Chosen {
    All(Arc<Snapshot>),
    Some(Vec<Decision>),
}

impl Written {
    fn new(snapshot: Arc<Snapshot>, list: List, limit: Option<usize>) -> Self {
        let decisions = match limit {
            None => Chosen::All(snapshot),
            Some(limit) => {
                let wanted = snapshot.decisions.iter().filter(|one| list.has(one.value));
                let mut wanted: Vec<Decision> = wanted.copied().collect();
                wanted.sort_unstable_by(|one, other| other.until.cmp(&one.until).then(one.value.cmp(&other.value)));
                wanted.truncate(limit);
                Chosen::Some(wanted)
            }
        };
        Self { list, decisions, at: 0, any: false, begun: false }
    }

    fn next(&mut self) -> Option<String> {
        let all = match &self.decisions {
            Chosen::All(snapshot) => &snapshot.decisions,
            Chosen::Some(decisions) => decisions,
        };
        let page = all.get(self.at..).unwrap_or_default();
        let page = page.get(..PAGE).unwrap_or(page);
        let mut part = String::with_capacity(page.len() * 20);
        if !std::mem::replace(&mut self.begun, true) && self.list == List::Mikrotik {
            // A ban that was lifted must not stay.
            for family in ["ip", "ipv6"] {
                let _ = writeln!(part, "/{family} firewall address-list remove [find list={MIKROTIK_LIST}]");
            }
            self.any = true;
        }
        if page.is_empty() {
            // An empty answer may count as a failed download.
            let empty = !std::mem::replace(&mut self.any, true);
            return if empty { Some("# no bans\n".to_owned()) } else { (!part.is_empty()).then_some(part) };
        }
        let now = clock::now();
        self.at += page.len();
        for decision in page.iter().filter(|one| self.list.has(one.value)) {
            line(&mut part, self.list, *decision, now);
            self.any = true;
        }
        Some(part)
    }
}

fn line(part: &mut String, list: List, Decision { value, until }: Decision, now: UnixMillis) {
    // Cannot fail: writing to a text.
    let _ = match list {
        List::Ipv4 | List::Ipv6 | List::All => writeln!(part, "{value}"),
        List::Mikrotik => {
            let family = if value.is_ipv4() { "ip" } else { "ipv6" };
            let left =
                until.and_then(|until: Expiry| until.remaining(now)).map_or(MIKROTIK_LONGEST, |left| left.as_secs());
            let left = left.clamp(1, MIKROTIK_LONGEST);
            writeln!(
                part,
                ":do {{/{family} firewall address-list add list={MIKROTIK_LIST} address={value} timeout={left}s}} on-error={{}}"
            )
        }
    };
}

#[cfg(test)]
mod tests;
