//! The listeners that mail servers ask, over sockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use banmesh::decisions::judge::{self, JudgeHandle, JudgeTask};
use banmesh::decisions::store::{self, Store};
use banmesh::decisions::view::View;
use banmesh::enforcement::agent::Verdicts;
use banmesh::enforcement::mail::auth_policy::{AuthPolicy, AuthPolicyConfig};
use banmesh::enforcement::mail::policy::{Policy, PolicyConfig};
use banmesh::enforcement::mail::{Answer, Metrics, Queries};
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::Rules;
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_types::address::Address;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

const SOON: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Bans 192.0.2.1 only.
#[derive(Clone)]
struct One;

impl Verdicts for One {
    fn is_banned(&mut self, address: Address) -> bool {
        address == [192, 0, 2, 1].into()
    }
}

/// Writes `request`, closes the sending side, and returns all that is answered until the other end closes too.
async fn exchange(mut stream: impl AsyncWrite + AsyncReadExt + Unpin, request: &[u8]) -> String {
    // The listener may close the connection before it has read everything.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the listener closes");
    String::from_utf8(answer).unwrap()
}

fn policy(allowed: &str, folder: &tempfile::TempDir) -> (SocketAddr, Queries, DropGuard) {
    let queries = Metrics::default().of("policy");
    let config = PolicyConfig {
        listen: Some(([127, 0, 0, 1], 0).into()),
        socket: Some(folder.path().join("policy.sock")),
        allowed_clients: vec![allowed.parse().unwrap()],
        max_clients: 4,
        action: "REJECT banned".parse().unwrap(),
    };
    let mut policy = Policy::bind(config, One, queries.clone()).unwrap();
    let (address, end) = (policy.address().unwrap(), CancellationToken::new());
    let shutdown = end.clone();
    tokio::spawn(async move { policy.serve(shutdown).await });
    (address, queries, end.drop_guard())
}

fn request(client: &str) -> String {
    format!("request=smtpd_access_policy\nprotocol_state=CONNECT\nclient_address={client}\n\n")
}

#[tokio::test]
async fn a_policy_request_is_answered_over_tcp_and_unix_sockets_also_after_a_half_close() {
    let folder = tempfile::tempdir().unwrap();
    let (address, queries, _end) = policy("127.0.0.0/8", &folder);
    let two = request("192.0.2.1") + &request("192.0.2.2");
    let answers = "action=REJECT banned\n\naction=DUNNO\n\n";
    assert_eq!(exchange(TcpStream::connect(address).await.unwrap(), two.as_bytes()).await, answers);
    let unix = UnixStream::connect(folder.path().join("policy.sock")).await.unwrap();
    assert_eq!(exchange(unix, two.as_bytes()).await, answers);
    assert_eq!([Answer::Banned, Answer::Clean].map(|answer| queries.counter(answer).get()), [2, 2]);
}

#[tokio::test]
async fn policy_requests_that_cannot_be_read_let_the_client_in_and_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (address, queries, _end) = policy("127.0.0.0/8", &folder);
    for (input, reason) in [
        (request("unknown"), "no valid client_address"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "is not `name=value`"),
        ("x".repeat(100_000), "is not"),
    ] {
        let before = queries.misunderstood();
        let answer = exchange(TcpStream::connect(address).await.unwrap(), input.as_bytes()).await;
        assert!(answer.is_empty() || answer == "action=DUNNO\n\n", "{answer}");
        assert_eq!(queries.misunderstood(), before + 1, "{reason}");
    }
    assert!(queries.complaint().unwrap().contains("no valid client_address"), "one line per minute");
}

#[tokio::test]
async fn a_policy_client_outside_of_the_list_is_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (address, queries, _end) = policy("192.0.2.0/24", &folder);
    let answer = exchange(TcpStream::connect(address).await.unwrap(), request("192.0.2.1").as_bytes()).await;
    assert_eq!((answer.as_str(), queries.counter(Answer::Refused).get()), ("", 1));
    assert!(queries.complaint().unwrap().contains("policy.allowed_clients"));
}

struct Dovecot {
    address: SocketAddr,
    judge: JudgeHandle,
    queries: Queries,
    _end: DropGuard,
}

impl Dovecot {
    fn start() -> Self {
        let general = BanPolicy {
            max_attempts: 5,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: DAY,
            escalation_factor: 2.0,
            max_memory_ttl: 3 * DAY,
        };
        let scope = Scope {
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            allowlist: NetSet::default(),
            own: NetSet::default(),
            nat64: Nat64::default(),
            dry_run: false,
        };
        let (scope, general) = (Arc::new(scope), Arc::new(general));
        let rules = Rules { scope, general, own: HashMap::new(), success_clears: true, evidence: Arc::default() };
        let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        let (view, writer) = View::new();
        let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let (store, handle) = Store::new(ledger, writer, None, SOON, store::Metrics::default());
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        let (task, offences) = JudgeTask::new(1000, rules, handle, view.reader(), None, judge::Metrics::default());
        let (judge, end, queries) = (task.handle(), CancellationToken::new(), Metrics::default().of("auth_policy"));
        tokio::spawn(store.serve(end.clone()));
        tokio::spawn(task.serve(end.clone()));
        let config = AuthPolicyConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            allowed_clients: vec!["127.0.0.0/8".parse().unwrap()],
            max_clients: 4,
            secret: Some(Arc::new(|given: &[u8]| given == b"right")),
            text: "banned".to_owned(),
        };
        let mut listener = AuthPolicy::bind(config, One, offences, queries.clone()).unwrap();
        let (address, shutdown) = (listener.address().unwrap(), end.clone());
        tokio::spawn(async move { listener.serve(shutdown).await });
        Self { address, judge, queries, _end: end.drop_guard() }
    }

    /// The status line and the body of the answer.
    async fn ask(&self, method_and_path: &str, header: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{method_and_path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap()), body.to_owned())
    }

    /// The attempts counted for an address, once the judge has seen every report so far.
    async fn attempts(&self, source: &str) -> u32 {
        let status = self.judge.ask(source.parse().unwrap()).await.unwrap();
        status.tallies.iter().map(|jail| jail.counts.total()).sum()
    }
}

const SECRET: &str = "Authorization: Bearer right";

#[tokio::test]
async fn dovecot_learns_who_is_banned_and_its_reports_count() {
    let dovecot = Dovecot::start();
    let allow = |client: &str| format!(r#"{{"login":"alice","protocol":"imap","remote":"{client}"}}"#);
    for (header, client, answer) in [
        (SECRET, "192.0.2.1", r#"{"msg":"banned","status":-1}"#),
        ("X-Api-Key: right", "192.0.2.2", r#"{"msg":"","status":0}"#),
        (SECRET, "", r#"{"msg":"","status":0}"#),
    ] {
        let asked = dovecot.ask("POST /?command=allow", header, &allow(client)).await;
        assert_eq!(asked, (200, answer.to_owned()), "{client}");
    }
    let report = |end: &str| format!(r#"{{"login":"alice","protocol":"imap","remote":"192.0.2.9",{end}}}"#);
    let send = async |end: &str| dovecot.ask("POST /any?command=report", SECRET, &report(end)).await.0;
    for end in [
        r#""success":false,"policy_reject":false"#,
        r#""success":false,"fail_type":"credentials""#,
        r#""success":false,"policy_reject":true"#,
        r#""success":false,"fail_type":"internal""#,
    ] {
        assert_eq!(send(end).await, 200);
    }
    let two = async || dovecot.attempts("192.0.2.9").await == 2;
    let waited = tokio::time::timeout(SOON, async {
        while !two().await {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("two of the reports are failed logins");
    assert_eq!(send(r#""success":true"#).await, 200);
    let waited = tokio::time::timeout(SOON, async {
        while dovecot.attempts("192.0.2.9").await != 0 {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("a success clears them");
}

#[tokio::test]
async fn dovecot_requests_without_the_secret_or_that_cannot_be_read_are_refused() {
    let dovecot = Dovecot::start();
    let long = format!(r#"{{"login":"{}"}}"#, "x".repeat(20_000));
    for (line, header, body, status) in [
        ("POST /?command=allow", "X-Other: right", "{}", 401),
        ("POST /?command=report", "Authorization: Bearer wrong", "{}", 401),
        ("POST /?command=allow", "Authorization: right", "{}", 401),
        ("GET /?command=allow", SECRET, "", 404),
        ("POST /", SECRET, "{}", 404),
        ("POST /?command=allow", SECRET, "nonsense", 400),
        ("POST /?command=allow", SECRET, &long, 400),
    ] {
        assert_eq!(dovecot.ask(line, header, body).await.0, status, "{line} {header}");
    }
    assert_eq!(dovecot.queries.counter(Answer::Unreadable).get(), 7);
    assert!(dovecot.queries.complaint().unwrap().contains("auth_policy.token"));
}
