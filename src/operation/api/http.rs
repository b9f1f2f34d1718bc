//! The API over TCP (`api.*`): who may come in, how often, by which name, and what they may do.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::errors::ApiError;
use super::login::{Credentials, Identity, Login, Refusal};
use super::roles::Need;
use super::session::{Sessions, User};
use super::{forwarded, roles, routes};
use crate::config::role::Role;
use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;
use crate::operation::http_server::rate::RateLimiter;
use crate::operation::http_server::{self, Peer, ServerSettings};
use banmesh_types::netset::NetSet;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// Connections at a time of one client that is no proxy of ours.
const CONNECTIONS_OF_ONE: usize = 64;
/// Failed logins a minute that are logged, of all clients together; every one is counted.
const LOGGED_FAILURES: u32 = 120;

/// How the API is served over TCP.
#[derive(Clone, Debug, Default)]
pub struct HttpConfig {
    /// Who may come in.
    pub access: Access,
    /// `api.rate_limiting.requests_per_minute`, for each client; `None` is without a limit.
    pub requests_per_minute: Option<u32>,
    /// `api.tls`: the only way in, if it is there.
    pub tls: Option<TlsServer>,
}

/// Who may come in: what a reload can change.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `api.allowed_ips`; nothing means nobody.
    pub allowed: NetSet,
    /// `api.trusted_proxies`: whose `X-Forwarded-For` is believed.
    pub trusted_proxies: NetSet,
    /// `api.users`, `api.tokens`, `api.basic_auth`. `None` asks nobody who they are.
    pub credentials: Option<Arc<Credentials>>,
}

impl Access {
    /// Whether they may be let in on `listen`.
    fn check(&self, listen: SocketAddr) -> Result<(), HttpError> {
        match &self.credentials {
            None if !listen.ip().to_canonical().is_loopback() => Err(HttpError::Open(listen)),
            Some(credentials) if credentials.is_empty() => Err(HttpError::Nobody),
            _ => Ok(()),
        }
    }
}

/// Why the API is not served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Everybody could ban and lift.
    #[error(
        "the API does not listen on {0} (api.address) without authentication, for everybody there could lift bans: \
         set api.users, api.tokens or api.basic_auth, or an address of the loopback"
    )]
    Open(SocketAddr),
    /// Authentication is on, and there is nobody who could pass.
    #[error("api.basic_auth needs a name and a password for every user")]
    Nobody,
    /// The system refused.
    #[error("cannot listen on {listen} (api.address, api.port): {source}")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The bound listener.
pub struct HttpListener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsServer>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for HttpListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpListener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl HttpConfig {
    /// Binds `listen`.
    ///
    /// # Errors
    /// When that would let everybody in, and when the port is taken.
    pub async fn bind(self, listen: SocketAddr, metrics: Metrics) -> Result<HttpListener, HttpError> {
        self.access.check(listen)?;
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| HttpError::Bind { listen, source })?;
        let gate = Gate {
            access: ArcSwap::from_pointee(self.access),
            sessions: Sessions::default(),
            login: Login::default(),
            limiter: self.requests_per_minute.map(RateLimiter::new),
            metrics,
            log: LogThrottle::new(Duration::from_secs(60)),
            failures: RateLimiter::new(LOGGED_FAILURES),
        };
        Ok(HttpListener { listener, address, tls: self.tls, gate: Arc::new(gate) })
    }
}

impl HttpListener {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What changes who may come in while it is served.
    pub fn access_handle(&self) -> AccessHandle {
        AccessHandle { address: self.address, gate: Arc::clone(&self.gate) }
    }

    /// Serves `router` to those who may until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let router = router.layer(middleware::from_fn_with_state(Arc::clone(&self.gate), pass));
        let (sharing, metrics) = (Arc::clone(&self.gate), self.gate.metrics.clone());
        let of_one = move |client| match sharing.access.load().trusted_proxies.contains(client) {
            true => CONNECTIONS,
            false => CONNECTIONS_OF_ONE,
        };
        let settings =
            ServerSettings { tls: self.tls, of_one: Some(Box::new(of_one)), ..ServerSettings::new(CONNECTIONS) };
        let settings = ServerSettings { refused: Some(Box::new(move |reason| metrics.count(reason))), ..settings };
        http_server::serve(self.listener, router, settings, shutdown).await;
    }
}

/// Changes who may come in; clones share it.
#[derive(Clone)]
pub struct AccessHandle {
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for AccessHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AccessHandle {
    /// Whether `access` can be put in force where the API listens.
    ///
    /// # Errors
    /// When that would let everybody in, or nobody.
    pub fn check(&self, access: &Access) -> Result<(), HttpError> {
        access.check(self.address)
    }

    /// Puts `access`, which was checked, in force for all requests from now on. Answers without an end come to one: who may
    /// still have them asks again.
    pub fn renew(&self, access: Access) {
        self.gate.access.store(Arc::new(access));
        self.gate.sessions.end();
    }
}

/// What the gate counts; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    refused: Family<ReasonLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Metrics {
    /// Makes the counters known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Requests and connections that the API turned away, by reason";
        registry.register("banmesh_api_refused", help, self.refused.clone());
    }

    fn count(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}

struct Gate {
    access: ArcSwap<Access>,
    sessions: Sessions,
    login: Login,
    limiter: Option<RateLimiter>,
    metrics: Metrics,
    log: LogThrottle,
    /// Bounds the lines about failed logins, which have to name every client: filters read them.
    failures: RateLimiter,
}

async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().and_then(|path| routes::route(request.method(), path.as_str()));
    let need = route.map(|route| route.need);
    if need == Some(Need::Nothing) {
        return next.run(request).await;
    }
    let session = gate.sessions.begin();
    let access = gate.access.load_full();
    let asker = match admit(&gate, &access, need, &mut request).await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    // Without credentials to ask for, whoever got here may do everything.
    let expires = asker.as_ref().and_then(|asker| asker.expires);
    request.extensions_mut().insert(session.expiring(expires));
    if let Some(Identity { name, role, .. }) = asker {
        match (need, &matched) {
            (Some(Need::Role(needed)), _) if !role.may(needed) => {
                gate.metrics.count("forbidden");
                return roles::forbidden(role, needed, "this").into_response();
            }
            // A route that the table does not know; most likely a method that the path does not have.
            (None, Some(path)) if !role.may(Role::Admin) => {
                return routes::method_not_allowed(request.method(), request.uri(), path.as_str());
            }
            // Nothing is at a path that the router does not know, and everybody may be told so.
            _ => {}
        }
        request.extensions_mut().insert(User(name));
        request.extensions_mut().insert(role);
    }
    next.run(request).await
}

/// Who asks, if anybody has to say so.
async fn admit(
    gate: &Gate,
    access: &Access,
    need: Option<Need>,
    request: &mut Request,
) -> Result<Option<Identity>, Response> {
    let Some(Peer::Remote(peer)) = request.extensions().get::<Peer>().cloned() else {
        let error = "the client's address is not known";
        return Err(turned_away(gate, None, "unknown_peer", StatusCode::FORBIDDEN, error, ""));
    };
    let Some(address) = forwarded::client(peer.ip(), request.headers(), &access.trusted_proxies) else {
        let (error, hint) = ("X-Forwarded-For is no list of addresses", "see api.trusted_proxies");
        return Err(turned_away(gate, Some(peer.ip()), "bad_forwarded", StatusCode::BAD_REQUEST, error, hint));
    };
    request.extensions_mut().insert(Peer::Remote(SocketAddr::new(address, peer.port())));
    if !access.allowed.contains(address) {
        let error = format!("{address} may not use the API");
        let (status, hint) = (StatusCode::FORBIDDEN, "see api.allowed_ips");
        return Err(turned_away(gate, Some(address), "not_allowed", status, &error, hint));
    }
    let named = need != Some(Need::Address);
    if let Some(limiter) = gate.limiter.as_ref().filter(|_| named)
        && let Err(wait) = limiter.take(address, Instant::now())
    {
        return Err(too_many(gate, address, "rate", "too many requests", "see api.rate_limiting", wait));
    }
    if !request.method().is_safe() && foreign_origin(request.headers()) {
        let (error, hint) = ("a page of another site may not change anything here", "send no `Origin`");
        return Err(turned_away(gate, Some(address), "foreign_origin", StatusCode::FORBIDDEN, error, hint));
    }
    let Some(credentials) = &access.credentials else {
        // A web page whose name its owner points to the loopback must not speak to us from the operator's browser.
        if names_an_address(request.headers()) {
            return Ok(None);
        }
        let (error, hint) = ("the request names another host", "ask by address, or as `localhost`");
        return Err(turned_away(gate, Some(address), "foreign_host", StatusCode::FORBIDDEN, error, hint));
    };
    if !named {
        return Ok(None);
    }
    let refusal = match gate.login.check(credentials, request.headers(), address).await {
        Ok(identity) => return Ok(Some(identity)),
        Err(refusal) => refusal,
    };
    let (reason, error, hint) = match refusal {
        Refusal::Missing => ("unauthenticated", "a name and a password, or a token, are needed", ""),
        Refusal::Wrong { user } => {
            log_failure(gate, address, user.as_deref());
            ("bad_credentials", "the name and the password, or the token, are wrong", "")
        }
        Refusal::Expired => ("expired", "the token has expired", "`banmesh api token` makes another one"),
        Refusal::TooOften(wait) => {
            return Err(too_many(gate, address, "login_rate", "too many failed logins", "wait", wait));
        }
        Refusal::Busy => {
            let (error, hint) = ("too many are logging in at the same time", "try again soon, or use a token");
            let wait = Duration::from_secs(5);
            let mut response =
                turned_away(gate, Some(address), "login_busy", StatusCode::SERVICE_UNAVAILABLE, error, hint);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs()));
            return Err(response);
        }
    };
    gate.metrics.count(reason);
    let hint = if hint.is_empty() { "see api.users and api.tokens" } else { hint };
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", error, hint).into_response();
    // Of a challenge a browser makes a question of its own; a page that asks its user itself says so.
    if request.headers().contains_key("x-requested-with") {
        return Err(response);
    }
    for challenge in ["Basic realm=\"banmesh\", charset=\"UTF-8\"", "Bearer realm=\"banmesh\""] {
        response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    Err(response)
}

/// In the form that the filter `banmesh` reads: what the client chose stands at the end, quoted.
fn log_failure(gate: &Gate, address: IpAddr, user: Option<&str>) {
    // All clients share this bucket.
    if gate.failures.take(IpAddr::from([0, 0, 0, 0]), Instant::now()).is_ok() {
        match user {
            Some(user) => warn!("failed login to the API from {address} as user {user:?}"),
            None => warn!("failed login to the API from {address} with a token"),
        }
    }
}

fn too_many(gate: &Gate, address: IpAddr, reason: &'static str, error: &str, hint: &str, wait: Duration) -> Response {
    let mut response = turned_away(gate, Some(address), reason, StatusCode::TOO_MANY_REQUESTS, error, hint);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    response
}

fn turned_away(
    gate: &Gate,
    address: Option<IpAddr>,
    reason: &'static str,
    status: StatusCode,
    error: &str,
    hint: &str,
) -> Response {
    gate.metrics.count(reason);
    if let (Some(address), Some(more)) = (address, gate.log.permit(Instant::now())) {
        warn!(%address, reason, and_more = more, "the API turned a request away");
    }
    ApiError::new(status, reason, error, hint).into_response()
}

/// Whether a browser sends the request for a page that did not come from here (RFC 6454). A browser needs nobody's leave
/// to send a `POST` that has no JSON, and sends along the password that it knows.
fn foreign_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    authority.is_none_or(|authority| !host.is_some_and(|host| host.eq_ignore_ascii_case(authority)))
}

/// Whether the `Host` of the request is an address or `localhost`.
fn names_an_address(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let address = host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok();
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    address || name.eq_ignore_ascii_case("localhost") || bracketed.is_some_and(|inner| inner.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn without_passwords_only_addresses_and_localhost_are_answered() {
        for host in ["127.0.0.1:8888", "localhost:8888", "LOCALHOST", "[::1]:8888", "[::1]", "127.0.0.1"] {
            assert!(names_an_address(&headers(HOST, host)), "{host}");
        }
        for host in ["evil.example:8888", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:1"] {
            assert!(!names_an_address(&headers(HOST, host)), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_told_from_ones_own() {
        let from = |origin: &str| {
            let mut headers = headers(HOST, "127.0.0.1:8888");
            headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
            foreign_origin(&headers)
        };
        assert!(!from("http://127.0.0.1:8888") && !from("https://127.0.0.1:8888"));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:8889", "http://127.0.0.1", ""] {
            assert!(from(origin), "{origin}");
        }
        assert!(!foreign_origin(&headers(HOST, "127.0.0.1:8888")));
    }

    #[tokio::test]
    async fn it_does_not_listen_beyond_the_loopback_without_passwords() {
        let any = "0.0.0.0:0".parse().unwrap();
        let local = "127.0.0.1:0".parse().unwrap();
        let open = HttpConfig::default().bind(any, Metrics::default()).await;
        assert!(matches!(open, Err(HttpError::Open(_))));
        let nobody =
            Access { credentials: Some(Arc::new(Credentials::new(Vec::new(), Vec::new()))), ..Access::default() };
        let bound = HttpConfig { access: nobody.clone(), ..Default::default() }.bind(local, Metrics::default()).await;
        assert!(matches!(bound, Err(HttpError::Nobody)));
        let bound = HttpConfig::default().bind(local, Metrics::default()).await.unwrap();
        let taken = HttpConfig::default().bind(bound.address(), Metrics::default()).await;
        assert!(matches!(taken, Err(HttpError::Bind { .. })));
        let handle = bound.access_handle();
        assert!(handle.check(&Access::default()).is_ok() && handle.check(&nobody).is_err());
    }
}
