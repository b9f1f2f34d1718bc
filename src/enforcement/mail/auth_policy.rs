//! Dovecot's auth policy: `allow` and `report`, JSON over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::listener::{MailClient, MailListener};
use super::queries::{Answer, Queries};
use crate::decisions::history::Evidence;
use crate::decisions::judge::OffenceSender;
use crate::enforcement::agent::Verdicts;
use crate::net::listen::ListenError;
use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::judge::{Kind, Offence};
use banmesh_mail::auth_policy::{self, Command, Ended, Login, MAX_BODY};
use banmesh_types::address::Address;

/// The filter and the rule of reported logins: the filter that recognises the same failures in Dovecot's log.
const BY: (&str, &str) = ("dovecot", "auth-policy");
/// How long a request head may take; also limits idle connections.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);
/// The longest request head.
const HEAD_BYTES: usize = 16 * 1024;

/// Checks the secret of a request.
pub type SecretCheck = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The listener's settings.
pub struct AuthPolicyConfig {
    /// The address; port 0 chooses a free port.
    pub listen: SocketAddr,
    /// Clients that may ask; none when empty.
    pub allowed_clients: Vec<banmesh_types::target::Target>,
    /// The most open connections.
    pub max_clients: usize,
    /// Checks the secret. `None`: requests need none.
    pub secret: Option<SecretCheck>,
    /// The text that banned users read.
    pub text: String,
}

/// The listener.
pub struct AuthPolicy<V> {
    listener: MailListener,
    shared: Arc<Shared<V>>,
}

struct Shared<V> {
    verdicts: V,
    offences: OffenceSender,
    by: Recognised,
    secret: Option<SecretCheck>,
    allowed: Bytes,
    banned: Bytes,
    queries: Queries,
}

impl<V: Verdicts + Sync> AuthPolicy<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or is not an address of this machine.
    pub fn bind(
        config: AuthPolicyConfig,
        verdicts: V,
        offences: OffenceSender,
        queries: Queries,
    ) -> Result<Self, ListenError> {
        const KEY: &str = "auth_policy.address";
        let at = (Some(config.listen), None);
        let listener = MailListener::open((KEY, KEY), at, config.allowed_clients, config.max_clients, queries.clone())?;
        let shared = Shared {
            verdicts,
            offences,
            by: Recognised { filter: BY.0.into(), rule: BY.1.into() },
            secret: config.secret,
            allowed: auth_policy::answer(None).into(),
            banned: auth_policy::answer(Some(&config.text)).into(),
            queries,
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// The address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address()
    }

    /// Answers until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        self.listener.serve(shutdown, move |client, shutdown| connection(client, Arc::clone(&shared), shutdown)).await;
    }
}

async fn connection<V: Verdicts + Sync>(client: MailClient, shared: Arc<Shared<V>>, shutdown: CancellationToken) {
    let MailClient { stream, address, mut place } = client;
    let peer = address.unwrap_or(Address::LOCALHOST);
    let watch = place.watch();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        watch.mark_useful();
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request, peer).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // The client closed it, or sent what is not HTTP.
        _ = serving.as_mut() => {}
        _ = &mut place.revoked => {}
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        }
    }
}

impl<V: Verdicts> Shared<V> {
    async fn answer<B>(&self, request: Request<B>, peer: Address) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !self.secret.as_ref().is_none_or(|check| presented(request.headers()).is_some_and(|secret| check(secret))) {
            let why =
                "it sends no or another secret; set auth_policy_server_api_header in Dovecot to auth_policy.token";
            self.queries.complain(Answer::Unreadable, Some(peer), why);
            return respond(StatusCode::UNAUTHORIZED, Bytes::new());
        }
        let command = request.uri().query().and_then(Command::of_query);
        let Some(command) = command.filter(|_| request.method() == Method::POST) else {
            let why = "its request is not a POST with command=allow or command=report in the query";
            self.queries.complain(Answer::Unreadable, Some(peer), why);
            return respond(StatusCode::NOT_FOUND, Bytes::new());
        };
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let login = match tokio::time::timeout(BODY_TIME, body).await {
            Ok(Ok(body)) => auth_policy::read(&body.to_bytes()).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it did not arrive in time".to_owned()),
        };
        let login = match login {
            Ok(login) => login,
            Err(error) => {
                self.queries.complain(Answer::Unreadable, Some(peer), &format!("its body is invalid: {error}"));
                return respond(StatusCode::BAD_REQUEST, Bytes::new());
            }
        };
        let refused = match command {
            Command::Allow => self.allow(&login),
            Command::Report => {
                self.report(&login, peer);
                false
            }
        };
        respond(StatusCode::OK, if refused { self.banned.clone() } else { self.allowed.clone() })
    }

    /// Whether the login must be refused. A login without an address is one of a program on Dovecot's host.
    fn allow(&self, login: &Login) -> bool {
        let mut verdicts = self.verdicts.clone();
        verdicts.begin();
        let banned = login.client.is_some_and(|client| verdicts.is_banned(client.into()));
        self.queries.count(if banned { Answer::Banned } else { Answer::Clean });
        banned
    }

    /// Passes on how a login ended, like a line of Dovecot's log. The account is part of the evidence.
    fn report(&self, login: &Login, peer: Address) {
        self.queries.count(Answer::Other);
        let kind = match login.ended {
            Ended::Success => Kind::Success,
            Ended::Failure => Kind::Failure,
            Ended::Unknown => return,
        };
        let Some(client) = login.client else { return };
        let offence = Offence {
            source: client.into(),
            by: self.by.clone(),
            jail: JailId::GENERAL,
            echo: None,
            kind,
            times: 1,
            account: AccountName::new(login.account.as_bytes()),
            unknown: login.unknown,
        };
        let line = format!("login failed: account=<{}>, protocol={}, client={client}", login.account, login.protocol);
        let evidence = Evidence::new(line.as_bytes(), Some(BY.1.as_bytes()), None, Some(peer));
        // A report that does not fit into the queue is counted and logged there.
        let _ = self.offences.send_with_evidence(offence, Some(evidence));
    }
}

/// The secret in a request: `Authorization: Bearer …`, or `X-Api-Key: …`.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, secret) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
    });
    bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes)).map(<[u8]>::trim_ascii)
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
