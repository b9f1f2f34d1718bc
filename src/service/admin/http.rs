//! The API over TCP (`api.*`): who may come in, how often, and by which name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::super::throttle::LogThrottle;
use super::errors::ApiError;
use super::page;
use super::rate::RateLimiter;
use super::serve::{self, Peer};
use crate::domain::netset::NetSet;

/// Connections at a time.
const CONNECTIONS: usize = 256;

/// How the API is served over TCP.
#[derive(Clone, Default)]
pub struct HttpConfig {
    /// `api.allowed_ips`; nothing means nobody.
    pub allowed: NetSet,
    /// `api.basic_auth`: names and passwords. `None` asks nobody for one.
    pub users: Option<Vec<(String, String)>>,
    /// `api.rate_limiting.requests_per_minute`, for each client; `None` is without a limit.
    pub requests_per_minute: Option<u32>,
}

/// Why the API is not served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Everybody could ban and lift.
    #[error(
        "the API does not listen on {0} (api.address) without authentication, for everybody there could lift bans: \
         set api.basic_auth, or an address of the loopback"
    )]
    Open(SocketAddr),
    /// Authentication is on, and there is nobody who could pass, or one who needs no password.
    #[error("api.basic_auth needs a name and a password for every user")]
    NoPassword,
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
    gate: Gate,
}

impl std::fmt::Debug for HttpListener {
    // Without the gate, which holds the passwords.
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
        match &self.users {
            None if !listen.ip().to_canonical().is_loopback() => return Err(HttpError::Open(listen)),
            Some(users) if users.is_empty() || users.iter().any(|(name, word)| name.is_empty() || word.is_empty()) => {
                return Err(HttpError::NoPassword);
            }
            _ => {}
        }
        let bound = TcpListener::bind(listen).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|source| HttpError::Bind { listen, source })?;
        let limiter = self.requests_per_minute.map(RateLimiter::new);
        let log = LogThrottle::new(Duration::from_secs(60));
        Ok(HttpListener { listener, address, gate: Gate { config: self, limiter, metrics, log } })
    }
}

impl HttpListener {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` to those who may until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let router = router.layer(middleware::from_fn_with_state(Arc::new(self.gate), pass));
        serve::serve(self.listener, router, CONNECTIONS, shutdown).await;
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
        registry.register("banmesh_api_refused", "Requests that the API turned away, by reason", self.refused.clone());
    }
}

/// Who passed with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub String);

struct Gate {
    config: HttpConfig,
    limiter: Option<RateLimiter>,
    metrics: Metrics,
    log: LogThrottle,
}

async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    // Probes have neither name nor fixed address, and learn nothing but whether the node works.
    if request.uri().path().starts_with("/health/") {
        return next.run(request).await;
    }
    let Some(Peer::Remote(peer)) = request.extensions().get::<Peer>().cloned() else {
        return turned_away(
            &gate,
            None,
            "unknown_peer",
            StatusCode::FORBIDDEN,
            "the client's address is not known",
            "",
        );
    };
    let address = peer.ip();
    if !gate.config.allowed.contains(address) {
        let error = format!("{address} may not use the API");
        return turned_away(&gate, Some(address), "not_allowed", StatusCode::FORBIDDEN, &error, "see api.allowed_ips");
    }
    // The page itself holds no data. It asks the API with a name and a password of its own, when it is told that it must.
    let page = page::holds(request.uri().path());
    if let Some(limiter) = gate.limiter.as_ref().filter(|_| !page)
        && let Err(wait) = limiter.take(address, Instant::now())
    {
        let hint = "see api.rate_limiting";
        let error = "too many requests";
        let mut response = turned_away(&gate, Some(address), "rate", StatusCode::TOO_MANY_REQUESTS, error, hint);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        return response;
    }
    if !request.method().is_safe() && foreign_origin(request.headers()) {
        let (error, hint) = ("a page of another site may not change anything here", "send no `Origin`");
        return turned_away(&gate, Some(address), "foreign_origin", StatusCode::FORBIDDEN, error, hint);
    }
    match &gate.config.users {
        Some(_) if page => {}
        Some(users) => match authenticated(users, request.headers()) {
            Some(name) => {
                request.extensions_mut().insert(User(name));
            }
            None => {
                let (error, hint) = ("a name and a password are needed", "see api.basic_auth");
                let status = StatusCode::UNAUTHORIZED;
                let mut response = turned_away(&gate, Some(address), "unauthenticated", status, error, hint);
                // A browser would ask its user by itself; the page does that better.
                if request.headers().contains_key("x-requested-with") {
                    return response;
                }
                let challenge = HeaderValue::from_static("Basic realm=\"banmesh\", charset=\"UTF-8\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                return response;
            }
        },
        // A web page whose name its owner points to the loopback must not speak to us from the operator's browser.
        None if !names_an_address(request.headers()) => {
            let (error, hint) = ("the request names another host", "ask by address, or as `localhost`");
            return turned_away(&gate, Some(address), "foreign_host", StatusCode::FORBIDDEN, error, hint);
        }
        None => {}
    }
    next.run(request).await
}

fn turned_away(
    gate: &Gate,
    address: Option<IpAddr>,
    reason: &'static str,
    status: StatusCode,
    error: &str,
    hint: &str,
) -> Response {
    gate.metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
    if let (Some(address), Some(more)) = (address, gate.log.permit(Instant::now())) {
        warn!(%address, reason, and_more = more, "the API turned a request away");
    }
    ApiError::new(status, reason, error, hint).into_response()
}

/// The name of the user whose password came with the request.
fn authenticated(users: &[(String, String)], headers: &HeaderMap) -> Option<String> {
    let given = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = given.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(token.trim()).ok()?;
    let at = memchr::memchr(b':', &decoded)?;
    let (name, password) = decoded.split_at(at);
    let password = password.get(1..).unwrap_or_default();
    let mut found = None;
    // All of them, so that the time does not tell which names exist.
    for (user, word) in users {
        let same = same(name, user.as_bytes()) & same(password, word.as_bytes());
        if same {
            found = Some(user.clone());
        }
    }
    found
}

/// Whether `given` is `secret`, in a time that depends on `given` alone.
fn same(given: &[u8], secret: &[u8]) -> bool {
    let mut differ = u8::from(given.len() != secret.len());
    for (at, byte) in given.iter().enumerate() {
        let other = secret.get(at % secret.len().max(1)).copied().unwrap_or_default();
        differ |= std::hint::black_box(byte ^ other);
    }
    std::hint::black_box(differ) == 0
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
    fn the_right_password_lets_its_user_in() {
        let users = [("ann".to_owned(), "s3cr:et".to_owned()), ("bob".to_owned(), "b".to_owned())];
        let asked =
            |text: &str| authenticated(&users, &headers(AUTHORIZATION, &format!("Basic {}", STANDARD.encode(text))));
        assert_eq!(asked("ann:s3cr:et").as_deref(), Some("ann"));
        assert_eq!(asked("bob:b").as_deref(), Some("bob"));
        for wrong in ["ann:", "ann:s3cr:e", "ann:s3cr:ett", "ann:b", "bob:bb", ":", "", "ann", "eve:s3cr:et"] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
        for wrong in ["Bearer x", "Basic", "Basic ***", ""] {
            assert_eq!(authenticated(&users, &headers(AUTHORIZATION, wrong)), None, "{wrong}");
        }
        assert_eq!(authenticated(&users, &HeaderMap::new()), None);
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
        let user = |name: &str, word: &str| Some(vec![(name.to_owned(), word.to_owned())]);
        for users in [Some(Vec::new()), user("ann", ""), user("", "x")] {
            let bound = HttpConfig { users, ..Default::default() }.bind(local, Metrics::default()).await;
            assert!(matches!(bound, Err(HttpError::NoPassword)));
        }
        let bound = HttpConfig::default().bind(local, Metrics::default()).await.unwrap();
        let taken = HttpConfig::default().bind(bound.address(), Metrics::default()).await;
        assert!(matches!(taken, Err(HttpError::Bind { .. })));
    }
}
