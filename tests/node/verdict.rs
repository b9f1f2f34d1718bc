//! The verdict endpoint over real sockets, as seen by proxies and by other clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh::enforcement::verdict::ext_authz::{self, encode_question};
use banmesh::enforcement::verdict::{Bans, Metrics, Outcome, Remaining, VerdictConfig, VerdictEndpoint};
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A generous timeout for everything in this file.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Banned(Arc<HashMap<Address, Remaining>>);

impl Bans for Banned {
    fn ban(&mut self, address: Address) -> Option<Remaining> {
        self.0.get(&address).copied()
    }
}

struct Endpoint {
    addresses: Vec<SocketAddr>,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Endpoint {
    fn start() -> Self {
        Self::with(&["127.0.0.0/8", "10.0.0.0/8"], 100, Duration::ZERO)
    }

    fn with(trusted: &[&str], max_clients: usize, drain: Duration) -> Self {
        let banned = [
            ("192.0.2.1", Remaining::Seconds(77)),
            ("2001:db8::1", Remaining::Seconds(1)),
            ("192.0.2.3", Remaining::Permanent),
            ("10.0.0.9", Remaining::Permanent),
            ("127.0.0.1", Remaining::Permanent),
        ];
        let banned = banned.map(|(text, remaining)| (text.parse().unwrap(), remaining)).into();
        let trusted: NetSet = trusted.iter().map(|text| text.parse::<Target>().unwrap()).collect();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = vec![("verdict.address", any), ("nginx.port", any)];
        let metrics = Metrics::default();
        let config = VerdictConfig { listen, trusted_proxies: trusted, max_clients, drain };
        let endpoint = VerdictEndpoint::bind(config, Banned(Arc::new(banned)), metrics.clone()).unwrap();
        let (addresses, shutdown) = (endpoint.addresses(), CancellationToken::new());
        let task = tokio::spawn(endpoint.serve(shutdown.clone()));
        Self { addresses, metrics, shutdown, task }
    }

    async fn connect(&self) -> Client {
        Client(timeout(PATIENCE, TcpStream::connect(self.addresses[0])).await.unwrap().unwrap())
    }

    /// A connection from another address of this host, which no test bans.
    async fn connect_as_other(&self) -> Client {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
        Client(timeout(PATIENCE, socket.connect(self.addresses[0])).await.unwrap().unwrap())
    }

    /// The status of a request with these header lines, over a connection of its own.
    async fn status(&self, target: &str, headers: &[&str]) -> u16 {
        self.connect().await.ask("GET", target, headers, "").await.0
    }

    async fn grpc(&self) -> Envoy {
        let stream = TcpStream::connect(self.addresses[1]).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Envoy(sender)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

struct Client(TcpStream);

impl Client {
    /// Sends a request. Returns the status, the head in lower case, and the body.
    async fn ask(&mut self, method: &str, target: &str, headers: &[&str], body: &str) -> (u16, String, String) {
        let head: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{head}\r\n{body}");
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> (u16, String, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, self.0.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        timeout(PATIENCE, self.0.read_exact(&mut body)).await.unwrap().unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head, String::from_utf8(body).unwrap())
    }

    async fn is_closed(&mut self) -> bool {
        matches!(timeout(PATIENCE, self.0.read(&mut [0; 16])).await.unwrap(), Ok(0) | Err(_))
    }
}

struct Envoy(hyper::client::conn::http2::SendRequest<Full<Bytes>>);

impl Envoy {
    /// The gRPC status and the message of the answer.
    async fn call(&mut self, path: &str, body: Vec<u8>) -> (String, Vec<u8>) {
        let request = Request::post(format!("http://x{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let answer = timeout(PATIENCE, self.0.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let (parts, body) = answer.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let status = parts.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
        let status = status.unwrap().to_str().unwrap().to_owned();
        let bytes = body.to_bytes();
        (status, bytes.get(5..).unwrap_or_default().to_vec())
    }

    async fn check(&mut self, source: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let question = encode_question(source.parse().unwrap(), headers);
        let (status, answer) = self.call(ext_authz::CHECK, framed(&question)).await;
        assert_eq!(status, "0");
        answer
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    out.extend(message);
    out
}

const VERDICT: &str = "/api/v1/verdict";

#[tokio::test]
async fn a_banned_client_gets_403_with_the_time_that_is_left() {
    let endpoint = Endpoint::start();
    let mut client = endpoint.connect().await;
    let (status, head, body) = client.ask("GET", VERDICT, &["X-Forwarded-For: 192.0.2.1"], "").await;
    assert_eq!((status, body.as_str()), (403, "banned\n"));
    assert!(head.contains("retry-after: 77\r\n") && head.contains("cache-control: no-store"), "{head}");
    let (status, head, _) = client.ask("GET", VERDICT, &["X-Forwarded-For: 192.0.2.3"], "").await;
    assert!(status == 403 && !head.contains("retry-after"), "{head}");
    // On the same connection, with any method and below any path.
    for (method, target) in [("GET", VERDICT), ("POST", "/api/v1/verdict/a?b=c"), ("HEAD", "/"), ("PUT", "/api/health")]
    {
        let (status, head, body) = client.ask(method, target, &["X-Forwarded-For: 192.0.2.2"], "").await;
        assert_eq!((status, body.as_str()), (200, ""), "{method} {target}");
        assert!(!head.contains("connection: close"), "{head}");
    }
    assert_eq!(endpoint.metrics.connections.get(), 1);
    endpoint.stop().await;
}

#[tokio::test]
async fn the_client_is_the_last_entry_that_no_trusted_proxy_has() {
    let endpoint = Endpoint::start();
    for (headers, status) in [
        (&["X-Forwarded-For: 192.0.2.2, 192.0.2.1"][..], 403),
        (&["X-Forwarded-For: 192.0.2.1, 192.0.2.2"], 200),
        (&["X-Forwarded-For: 192.0.2.2", "X-Forwarded-For: 192.0.2.1, 127.0.0.1"], 403),
        (&["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"], 200),
        (&["X-Forwarded-For: ::ffff:192.0.2.1"], 403),
        (&["X-Forwarded-For: [2001:db8::1]:4711, 10.0.0.5"], 403),
        (&["X-Forwarded-For: 192.0.2.1:80"], 403),
        (&["X-Real-IP: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"], 200),
        (&["Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.2"], 200),
        // Requests of the proxy's own host are about that host.
        (&["X-Forwarded-For: 127.0.0.1"], 403),
    ] {
        assert_eq!(endpoint.status(VERDICT, headers).await, status, "{headers:?}");
    }
    let five: Vec<String> = (0..5).map(|n| format!("X-Forwarded-For: 192.0.2.1{n}, 10.0.0.{n}")).collect();
    let five: Vec<&str> = five.iter().map(String::as_str).chain(["X-Forwarded-For: 192.0.2.1"]).collect();
    assert_eq!(endpoint.status(VERDICT, &five).await, 403);
    assert_eq!(endpoint.metrics.nameless.problem(Instant::now()), None);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_proxy_that_names_nobody_passes_and_is_reported() {
    for (trusted, headers, outcome, words) in [
        (&["127.0.0.0/8"][..], &[][..], Outcome::Unnamed, "without naming a client"),
        (&["127.0.0.0/8"], &["X-Forwarded-For: unknown"], Outcome::Unreadable, "is not an address"),
        (&["127.0.0.0/8", "10.0.0.0/8"], &["X-Forwarded-For: 10.0.0.9"], Outcome::Unnamed, "without naming a client"),
        (&["10.0.0.0/8"], &["X-Forwarded-For: 192.0.2.1"], Outcome::Untrusted, "verdict.trusted_proxies"),
    ] {
        let endpoint = Endpoint::with(trusted, 100, Duration::ZERO);
        let answer = endpoint.connect_as_other().await.ask("GET", VERDICT, headers, "").await;
        assert_eq!(answer.0, 200, "{headers:?}");
        assert_eq!(endpoint.metrics.answered(outcome), 1, "{headers:?}");
        let problem = endpoint.metrics.nameless.problem(Instant::now()).unwrap();
        assert!(problem.contains("127.0.0.2") && problem.contains(words), "{problem}");
        endpoint.stop().await;
    }
    // A client that asks about itself is judged.
    let endpoint = Endpoint::with(&["10.0.0.0/8"], 100, Duration::ZERO);
    assert_eq!(endpoint.status(VERDICT, &[]).await, 403);
    assert_eq!(endpoint.status(VERDICT, &["X-Forwarded-For: 192.0.2.2"]).await, 403, "a forged header changes nothing");
    assert_eq!(endpoint.metrics.nameless.problem(Instant::now()), None);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_body_is_never_taken_for_the_next_request() {
    let endpoint = Endpoint::start();
    let mut client = endpoint.connect().await;
    let smuggled = "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.2\r\n\r\n";
    let headers = ["X-Forwarded-For: 192.0.2.1", &format!("Content-Length: {}", smuggled.len() + 1000)];
    let (status, head, _) = client.ask("POST", VERDICT, &headers, smuggled).await;
    assert!(status == 403 && head.contains("connection: close"), "{head}");
    assert!(client.is_closed().await);
    // The body of a length of zero is no body.
    let mut client = endpoint.connect().await;
    let (status, head, _) = client.ask("POST", VERDICT, &["X-Forwarded-For: 192.0.2.1", "Content-Length: 0"], "").await;
    assert!(status == 403 && !head.contains("connection: close"), "{head}");
    endpoint.stop().await;
}

#[tokio::test]
async fn the_health_check_passes_no_client() {
    let endpoint = Endpoint::start();
    assert_eq!(endpoint.status("/api/health", &[]).await, 200);
    assert_eq!(endpoint.metrics.all_checks(), 0);
    assert_eq!(endpoint.status("/api/health", &["X-Forwarded-For: 192.0.2.1"]).await, 403);
    assert_eq!(endpoint.metrics.health_checks.get(), 1);
    assert_eq!(endpoint.metrics.nameless.problem(Instant::now()), None);
    endpoint.stop().await;
}

#[tokio::test]
async fn a_stopping_endpoint_answers_while_its_health_check_fails_and_then_ends_connections_with_an_answer() {
    let endpoint = Endpoint::with(&["127.0.0.0/8"], 100, Duration::from_millis(600));
    let mut kept = endpoint.connect().await;
    let mut idle = endpoint.connect().await;
    assert_eq!(kept.ask("GET", "/api/health", &[], "").await.0, 200);
    assert_eq!(idle.ask("GET", "/api/health", &[], "").await.0, 200);
    endpoint.shutdown.cancel();
    while kept.ask("GET", "/api/health", &[], "").await.0 != 503 {}
    // New connections are still accepted, and everything gets its answer, until one says that the connection ends.
    assert_eq!(endpoint.status(VERDICT, &["X-Forwarded-For: 192.0.2.1"]).await, 403);
    loop {
        let (status, head, _) = kept.ask("GET", VERDICT, &["X-Forwarded-For: 192.0.2.1"], "").await;
        assert_eq!(status, 403);
        if head.contains("connection: close") {
            break;
        }
    }
    assert!(kept.is_closed().await && idle.is_closed().await);
    endpoint.stop().await;
}

#[tokio::test]
async fn idle_connections_give_way_when_all_places_are_taken() {
    let endpoint = Endpoint::with(&["127.0.0.0/8"], 4, Duration::ZERO);
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(endpoint.connect().await);
    }
    // A connection without a request keeps its place for a moment only.
    let served = async {
        loop {
            let mut client = endpoint.connect().await;
            let head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
            let _ = client.0.write_all(head).await;
            if client.0.read_u8().await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, served).await.unwrap();
    assert!(endpoint.metrics.evicted.get() >= 1);
    endpoint.stop().await;
}

#[tokio::test]
async fn envoy_gets_a_refusal_with_status_header_and_body() {
    let endpoint = Endpoint::start();
    let mut envoy = endpoint.grpc().await;
    assert_eq!(envoy.check("192.0.2.1", &[]).await, ext_authz::encode(Some(Remaining::Seconds(77))));
    assert_eq!(envoy.check("192.0.2.2", &[]).await, [0; 0]);
    // The source counts unless it is a trusted proxy; then the header does.
    assert_eq!(envoy.check("192.0.2.2", &[("x-forwarded-for", "192.0.2.1")]).await, [0; 0]);
    assert_ne!(envoy.check("10.0.0.1", &[("x-forwarded-for", "192.0.2.2, 192.0.2.1")]).await, [0; 0]);
    assert_eq!(envoy.check("10.0.0.1", &[("x-forwarded-for", "192.0.2.1, 192.0.2.2")]).await, [0; 0]);
    assert_ne!(envoy.check("::ffff:192.0.2.1", &[]).await, [0; 0]);
    // A client on Envoy's own host.
    assert_ne!(envoy.check("127.0.0.1", &[]).await, [0; 0]);
    assert_eq!(endpoint.metrics.nameless.problem(Instant::now()), None);
    assert_eq!(envoy.check("10.0.0.9", &[]).await, [0; 0]);
    assert!(endpoint.metrics.nameless.problem(Instant::now()).is_some());
    assert_eq!(endpoint.metrics.connections.get(), 1);
    endpoint.stop().await;
}

#[tokio::test]
async fn calls_that_are_not_understood_are_refused_and_counted() {
    let endpoint = Endpoint::start();
    let mut envoy = endpoint.grpc().await;
    let mut long = framed(&[]);
    long[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    for (path, body, status) in [
        ("/envoy.service.auth.v2.Authorization/Check", framed(&[]), "12"),
        (ext_authz::CHECK, vec![], "3"),
        (ext_authz::CHECK, framed(&[0x0b]), "3"),
        (ext_authz::CHECK, vec![1, 0, 0, 0, 0], "3"),
        (ext_authz::CHECK, long, "3"),
        ("/grpc.health.v1.Health/Check", framed(&[]), "0"),
    ] {
        assert_eq!(envoy.call(path, body).await.0, status, "{path}");
    }
    assert_eq!((endpoint.metrics.malformed.get(), endpoint.metrics.unimplemented.get()), (4, 1));
    endpoint.stop().await;
}

#[tokio::test]
async fn a_long_message_in_many_frames_is_answered() {
    let endpoint = Endpoint::start();
    let mut envoy = endpoint.grpc().await;
    let cookie = "x".repeat(300_000);
    let headers = [("cookie", cookie.as_str()), ("x-forwarded-for", "192.0.2.1")];
    assert_ne!(envoy.check("10.0.0.1", &headers).await, [0; 0]);
    endpoint.stop().await;
}
