//! The API over TCP (`api.*`): addresses, rate limits, authentication and roles.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
use super::{errors, forwarded, roles, routes};
use crate::config::role::Role;
use crate::net::listen::ListenError;
use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;
use crate::operation::http_server::rate::RateLimiter;
use crate::operation::http_server::{self, Admit, Peer, ServerSettings};
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;

/// The most open connections.
const CONNECTIONS: usize = 256;
/// The most open connections of one client that is not a trusted proxy.
const CONNECTIONS_PER_CLIENT: usize = 64;
/// Failed logins per minute in the log, for all clients together. The metrics count all of them.
const LOGGED_FAILURES: u32 = 120;

/// The settings of the API over TCP.
#[derive(Clone, Debug, Default)]
pub struct HttpConfig {
    /// Who may use the API.
    pub access: Access,
    /// `api.rate_limiting.requests_per_minute` for each client; `None` for no limit.
    pub requests_per_minute: Option<u32>,
    /// `api.tls`; with it, plaintext connections fail.
    pub tls: Option<TlsServer>,
}

/// Who may use the API. A reload can change it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `api.allowed_ips`; an empty set allows no client.
    pub allowed: NetSet,
    /// `api.trusted_proxies`: the proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: NetSet,
    /// `api.users`, `api.tokens`, `api.basic_auth`. `None`: nobody can log in, and every allowed client has the role `read`.
    pub credentials: Option<Arc<Credentials>>,
}

impl Access {
    /// Checks that these settings are safe for the address `listen`.
    fn check(&self, listen: SocketAddr) -> Result<(), HttpError> {
        match &self.credentials {
            None if !listen.ip().to_canonical().is_loopback() => Err(HttpError::Open(listen)),
            Some(credentials) if credentials.is_empty() => Err(HttpError::Nobody),
            _ => Ok(()),
        }
    }
}

/// Why the API cannot be served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Authentication is off, and the address is not on loopback.
    #[error(
        "the API does not listen on {0} (api.address) without authentication, because anyone who can reach it could read all \
         bans: set api.users, api.tokens or api.basic_auth, or a loopback address"
    )]
    Open(SocketAddr),
    /// Authentication is on, but there are no accounts.
    #[error("api.basic_auth needs a name and a password for every user")]
    Nobody,
    /// The system refused the address.
    #[error("{0}")]
    Listen(#[from] ListenError),
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
    /// When the settings are unsafe for `listen`, and when the port is taken.
    pub async fn bind(self, listen: SocketAddr, metrics: Metrics) -> Result<HttpListener, HttpError> {
        self.access.check(listen)?;
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| ListenError::new("api.address, api.port", listen, source))?;
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
    /// The bound address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that changes the access settings while the API runs.
    pub fn access_handle(&self) -> AccessHandle {
        AccessHandle { address: self.address, gate: Arc::clone(&self.gate) }
    }

    /// Serves `router` with access checks until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let router = router.layer(middleware::from_fn_with_state(Arc::clone(&self.gate), check));
        let router = router.layer(middleware::map_response(errors::no_store));
        let (sharing, metrics) = (Arc::clone(&self.gate), self.gate.metrics.clone());
        // Everybody may ask for the health, so others are not refused here, but have few places of their own.
        let admit = move |client| {
            let access = sharing.access.load();
            if access.trusted_proxies.contains(client) {
                Admit::Expected(CONNECTIONS)
            } else if access.allowed.contains(client) {
                Admit::Expected(CONNECTIONS_PER_CLIENT)
            } else {
                Admit::Outsider
            }
        };
        let settings = ServerSettings {
            tls: self.tls,
            admit: Some(Box::new(admit)),
            ..ServerSettings::new("the API", CONNECTIONS)
        };
        let settings = ServerSettings { refused: Some(Box::new(move |reason| metrics.count(reason))), ..settings };
        http_server::serve(self.listener, router, settings, shutdown).await;
    }
}

/// Changes the access settings of a running API; clones share it.
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
    /// Checks that `access` is safe for the address of the API.
    ///
    /// # Errors
    /// When authentication is missing, or has no accounts.
    pub fn check(&self, access: &Access) -> Result<(), HttpError> {
        access.check(self.address)
    }

    /// Applies `access`, which must have passed [`AccessHandle::check`], to all further requests. Ends open event streams; clients that
    /// may still read them reconnect.
    pub fn renew(&self, access: Access) {
        self.gate.access.store(Arc::new(access));
        self.gate.sessions.end();
    }
}

/// The counters of refused requests; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    refused: Family<ReasonLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "API requests and connections refused, by reason";
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
    /// Limits the log lines about failed logins. Filters read them, so the usual throttle, which drops addresses, does not fit.
    failures: RateLimiter,
}

/// Checks the address, the rate, the credentials and the role of a request.
async fn check(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().and_then(|path| routes::route(request.method(), path.as_str()));
    let need = route.map(|route| route.need);
    if need == Some(Need::Nothing) {
        return next.run(request).await;
    }
    let session = gate.sessions.begin();
    let access = gate.access.load_full();
    let caller = match authenticate(&gate, &access, need, &mut request).await {
        Ok(caller) => caller,
        Err(response) => return response,
    };
    let expires = if let Caller::Known(identity) = &caller { identity.expires } else { None };
    request.extensions_mut().insert(session.expiring(expires));
    if let Some(role) = caller.role() {
        match (need, &matched) {
            (Some(Need::Role(needed)), _) if !role.may(needed) => {
                gate.metrics.count("forbidden");
                let refused = match caller {
                    Caller::Anonymous => roles::forbidden_without_login(needed),
                    _ => roles::forbidden(role, needed, "this"),
                };
                return refused.into_response();
            }
            // The path has no such method.
            (None, Some(path)) if !role.may(Role::Admin) => {
                return routes::method_not_allowed(request.method(), request.uri(), path.as_str());
            }
            // The path does not exist, which everyone may learn.
            _ => {}
        }
        request.extensions_mut().insert(role);
    }
    if let Caller::Known(Identity { name, .. }) = caller {
        request.extensions_mut().insert(User(name));
    }
    next.run(request).await
}

/// Who sends a request.
enum Caller {
    /// The route needs no role.
    Unasked,
    /// There are no users and tokens. Any local process can be the caller, so it may only read.
    Anonymous,
    /// A user or a token.
    Known(Identity),
}

impl Caller {
    fn role(&self) -> Option<Role> {
        match self {
            Self::Unasked => None,
            Self::Anonymous => Some(Role::Read),
            Self::Known(identity) => Some(identity.role),
        }
    }
}

/// Checks the address, the rate, the origin and the credentials of a request.
async fn authenticate(
    gate: &Gate,
    access: &Access,
    need: Option<Need>,
    request: &mut Request,
) -> Result<Caller, Response> {
    let Some(Peer::Remote(peer)) = request.extensions().get::<Peer>().cloned() else {
        let error = "the address of the client is unknown";
        return Err(refuse(gate, None, "unknown_peer", StatusCode::FORBIDDEN, error, ""));
    };
    let Some(address) = forwarded::client(peer.ip().into(), request.headers(), &access.trusted_proxies) else {
        let (error, hint) = ("X-Forwarded-For is not a list of addresses", "see api.trusted_proxies");
        return Err(refuse(gate, Some(peer.ip().into()), "bad_forwarded", StatusCode::BAD_REQUEST, error, hint));
    };
    request.extensions_mut().insert(Peer::Remote(SocketAddr::new(address.ip(), peer.port())));
    if !access.allowed.contains(address) {
        let error = format!("{address} may not use the API");
        let (status, hint) = (StatusCode::FORBIDDEN, "see api.allowed_ips");
        return Err(refuse(gate, Some(address), "not_allowed", status, &error, hint));
    }
    let named = need != Some(Need::Address);
    if let Some(limiter) = gate.limiter.as_ref().filter(|_| named)
        && let Err(wait) = limiter.take(address, Instant::now())
    {
        return Err(too_many(gate, address, "rate", "too many requests", "see api.rate_limiting", wait));
    }
    if !request.method().is_safe() && foreign_origin(request.headers()) {
        let (error, hint) = ("requests from other web sites are refused", "omit the header `Origin`");
        return Err(refuse(gate, Some(address), "foreign_origin", StatusCode::FORBIDDEN, error, hint));
    }
    let Some(credentials) = &access.credentials else {
        // DNS rebinding: a web page whose name resolves to loopback must not use the API from the operator's browser.
        if names_an_address(request.headers()) {
            return Ok(if named { Caller::Anonymous } else { Caller::Unasked });
        }
        let (error, hint) = ("the header `Host` names another host", "use an IP address or `localhost` in the URL");
        return Err(refuse(gate, Some(address), "foreign_host", StatusCode::FORBIDDEN, error, hint));
    };
    if !named {
        return Ok(Caller::Unasked);
    }
    let refusal = match gate.login.check(credentials, request.headers(), address).await {
        Ok(identity) => return Ok(Caller::Known(identity)),
        Err(refusal) => refusal,
    };
    let (reason, error, hint) = match refusal {
        Refusal::Missing => ("unauthenticated", "a name and a password, or a token, are required", ""),
        Refusal::Wrong { user } => {
            log_failure(gate, address, user.as_deref());
            ("bad_credentials", "the name and password, or the token, are wrong", "")
        }
        Refusal::Expired => ("expired", "the token has expired", "`banmesh api token` makes a new one"),
        Refusal::TooOften(wait) => {
            return Err(too_many(gate, address, "login_rate", "too many failed logins", "try again later", wait));
        }
        Refusal::Busy => {
            let (error, hint) = ("too many logins at the same time", "try again soon, or use a token");
            let wait = Duration::from_secs(5);
            let mut response = refuse(gate, Some(address), "login_busy", StatusCode::SERVICE_UNAVAILABLE, error, hint);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs()));
            return Err(response);
        }
    };
    gate.metrics.count(reason);
    let hint = if hint.is_empty() { "see api.users and api.tokens" } else { hint };
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", error, hint).into_response();
    // A challenge makes the browser open its own dialog. A page with a dialog of its own sends this header.
    if request.headers().contains_key("x-requested-with") {
        return Err(response);
    }
    for challenge in ["Basic realm=\"banmesh\", charset=\"UTF-8\"", "Bearer realm=\"banmesh\""] {
        response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    Err(response)
}

/// Logs a failed login in the format of the filter `banmesh`: text from the client is at the end, quoted.
fn log_failure(gate: &Gate, address: Address, user: Option<&str>) {
    // One bucket for all clients.
    if gate.failures.take(Ipv4Addr::UNSPECIFIED.into(), Instant::now()).is_ok() {
        match user {
            Some(user) => warn!("failed login to the API from {address} as user {user:?}"),
            None => warn!("failed login to the API from {address} with a token"),
        }
    }
}

fn too_many(gate: &Gate, address: Address, reason: &'static str, error: &str, hint: &str, wait: Duration) -> Response {
    let mut response = refuse(gate, Some(address), reason, StatusCode::TOO_MANY_REQUESTS, error, hint);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    response
}

fn refuse(
    gate: &Gate,
    address: Option<Address>,
    reason: &'static str,
    status: StatusCode,
    error: &str,
    hint: &str,
) -> Response {
    gate.metrics.count(reason);
    if let (Some(address), Some(more)) = (address, gate.log.permit(Instant::now())) {
        warn!(%address, reason, and_more = more, "refused a request to the API");
    }
    ApiError::new(status, reason, error, hint).into_response()
}

/// Whether a browser sends the request for a page of another site (RFC 6454). Browsers send a `POST` without JSON, with the stored
/// password, without asking the server first.
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
    fn recognises_addresses_and_localhost_as_hosts() {
        for host in ["127.0.0.1:8888", "localhost:8888", "LOCALHOST", "[::1]:8888", "[::1]", "127.0.0.1"] {
            assert!(names_an_address(&headers(HOST, host)), "{host}");
        }
        for host in ["evil.example:8888", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:1"] {
            assert!(!names_an_address(&headers(HOST, host)), "{host}");
        }
    }

    #[test]
    fn recognises_pages_of_other_sites() {
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
    async fn listens_beyond_loopback_only_with_authentication() {
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
        assert!(matches!(taken, Err(HttpError::Listen(_))));
        let handle = bound.access_handle();
        assert!(handle.check(&Access::default()).is_ok() && handle.check(&nobody).is_err());
    }
}
