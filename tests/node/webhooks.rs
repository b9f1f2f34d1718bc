//! Webhooks with real HTTP servers: deliveries, retries, and losses.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::clock;
use banmesh::decisions::store::{self, Store, StoreHandle};
use banmesh::decisions::view::View;
use banmesh::net::dial::Trust;
use banmesh::net::tls::{TlsFiles, TlsServer};
use banmesh::operation::webhooks::notice::{Signer, Template, Topic};
use banmesh::operation::webhooks::{Metrics, Origin, Sources, WebhookSettings, Webhooks};
use banmesh_core::alarm::Condition;
use banmesh_core::attempts::Recognised;
use banmesh_core::ban::{By, Cause};
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::BanOrder;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_core::policy::BanPolicy;
use banmesh_types::time::Expiry;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A received request.
#[derive(Clone, Debug)]
struct Seen {
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':').unwrap().1.trim())
    }
}

/// A server that answers with these heads in order, then with the last one. `None` is a request without an answer.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let seen = Seen { head, body: bytes[end + 4..].to_vec() };
            let length: usize = seen.header("content-length").unwrap().parse().unwrap();
            if seen.body.len() >= length {
                return Some(seen);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, head: Option<&str>, seen: &Mutex<Vec<Seen>>) {
    let Some(request) = read(&mut stream).await else { return };
    seen.lock().unwrap().push(request);
    match head {
        Some(head) => {
            stream.write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
            stream.shutdown().await.ok();
        }
        None => std::future::pending().await,
    }
}

impl Server {
    async fn start(heads: &'static [Option<&'static str>], tls: Option<TlsServer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, asked) = (Arc::clone(&seen), AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let head = heads[asked.fetch_add(1, Ordering::Relaxed).min(heads.len() - 1)];
                let (seen, tls) = (Arc::clone(&kept), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, head, &seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream, Duration::from_secs(10)).await {
                                answer(stream, head, &seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests so far, once there are `count`.
    async fn wait(&self, count: usize) -> Vec<Seen> {
        until(|| self.seen().len() >= count).await;
        self.seen()
    }

    fn settings(&self, name: &str) -> WebhookSettings {
        WebhookSettings {
            name: name.to_owned(),
            endpoint: format!("http://{}/hook?x=1", self.address).parse().unwrap(),
            trust: Trust::load(None).unwrap(),
            topics: Topic::ALL.to_vec(),
            filters: Vec::new(),
            template: None,
            signer: None,
            authorization: None,
            timeout: Duration::from_secs(20),
            retries: 3,
            collect: Duration::from_millis(100),
            backoff: Duration::from_millis(20),
        }
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "it did not happen within 60 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A store, and webhooks over it.
struct Node {
    store: StoreHandle,
    registry: Registry,
    wrong: Arc<Mutex<Vec<Condition>>>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

fn start(hooks: Vec<WebhookSettings>) -> Node {
    let limits = Limits {
        max_bans: 100_000,
        max_clock_drift: Duration::from_secs(10),
        max_ban_time: Duration::from_secs(86_400),
    };
    let node: banmesh_core::node::NodeId = "edge-1".parse().unwrap();
    let (_, writer) = View::new();
    let ledger = Ledger::new(node.clone(), limits, Hlc::default());
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), store::Metrics::default());
    let shutdown = CancellationToken::new();
    tokio::spawn(store.serve(CancellationToken::new()));
    let wrong: Arc<Mutex<Vec<Condition>>> = Arc::default();
    let now_wrong = Arc::clone(&wrong);
    let sources = Sources::new(&handle, None, Arc::new(move || now_wrong.lock().unwrap().clone()));
    let (metrics, mut registry) = (Metrics::default(), Registry::default());
    metrics.register(&mut registry);
    let sender = Origin { node, cluster: "mail".to_owned() };
    let served = tokio::spawn(Webhooks::new(hooks, sender, sources, metrics).serve(shutdown.clone()));
    Node { store: handle, registry, wrong, shutdown, served }
}

impl Node {
    async fn ban(&self, target: &str, reason: &str) {
        let until = Expiry::at(clock::now().plus(Duration::from_secs(600)));
        let cause = Cause::new(By::Operator("ann".into()), reason);
        self.store
            .ban(target.parse().unwrap(), BanTerms::new(until, Duration::from_secs(3600)), cause)
            .await
            .unwrap()
            .unwrap();
    }

    async fn ban_by_filter(&self, target: &str, filter: &str, rule: &str) {
        let policy = BanPolicy {
            max_attempts: 1,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(600),
            max_ban_time: Duration::from_secs(3600),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(3600),
        };
        let by = Recognised { filter: filter.into(), rule: rule.into() };
        let order = BanOrder { target: target.parse().unwrap(), by, attempts: 1, policy: Arc::new(policy) };
        self.store.offence(order).await.unwrap();
    }

    fn metric(&self, name: &str, hook: &str, outcome: &str) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let start = format!("{name}_total{{hook=\"{hook}\",outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |value| value.parse().unwrap())
    }
}

#[tokio::test]
async fn bans_and_unbans_are_sent_signed_and_in_order() {
    let server = Server::start(&[Some("204 No Content")], None).await;
    let signer = Signer::new("whsec_c2VjcmV0");
    let mut settings = server.settings("chat");
    settings.signer = Some(signer.clone());
    settings.authorization = Some("Bearer abc".parse().unwrap());
    let node = start(vec![settings]);
    node.ban("192.0.2.7", "a \"quoted\" reason").await;
    let cause = Cause::new(By::Operator("bob".into()), "a mistake");
    node.store.unban("192.0.2.7".parse().unwrap(), cause).await.unwrap().unwrap();
    until(|| node.metric("banmesh_webhook_notices", "chat", "delivered") >= 2).await;
    let seen = server.seen();
    let notices: Vec<Value> =
        seen.iter().flat_map(|request| request.json()["notices"].as_array().unwrap().clone()).collect();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert_eq!((&notices[0]["event"], &notices[0]["target"]), (&"ban".into(), &"192.0.2.7".into()));
    assert_eq!(notices[0]["reason"], "a \"quoted\" reason");
    assert_eq!((&notices[1]["event"], &notices[1]["by"]), (&"unban".into(), &"bob".into()));
    for request in &seen {
        assert!(request.head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{}", request.head);
        assert_eq!(request.header("authorization"), Some("Bearer abc"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        let (id, at) = (request.header("webhook-id").unwrap(), request.header("webhook-timestamp").unwrap());
        let expected = signer.sign(id, at.parse().unwrap(), &request.body);
        assert_eq!(request.header("webhook-signature"), Some(expected.as_str()));
        assert_eq!(
            (request.json()["node"].clone(), request.json()["cluster"].clone()),
            ("edge-1".into(), "mail".into())
        );
    }
}

#[tokio::test]
async fn only_selected_events_are_sent() {
    let server = Server::start(&[Some("200 OK")], None).await;
    let mut settings = server.settings("ssh");
    settings.topics = vec![Topic::Ban];
    settings.filters = vec!["sshd".to_owned()];
    settings.template = Some(Template::parse(r#"{"text": "{{summary}}", "count": {{count}}}"#).unwrap());
    let node = start(vec![settings]);
    node.ban_by_filter("192.0.2.1", "dovecot", "x").await;
    let cause = Cause::new(By::Operator("bob".into()), "x");
    node.store.unban("192.0.2.1".parse().unwrap(), cause).await.unwrap().unwrap();
    node.ban_by_filter("192.0.2.2", "sshd", "\u{1b}[31m\"}").await;
    let body = server.wait(1).await[0].json();
    assert_eq!(body["count"], 1);
    assert!(body["text"].as_str().unwrap().starts_with("banned 192.0.2.2 until "), "{body}");
}

#[tokio::test]
async fn failed_deliveries_are_retried_with_the_same_id() {
    let server = Server::start(&[Some("500 No"), Some("503 No\r\nRetry-After: 0"), Some("200 OK")], None).await;
    let node = start(vec![server.settings("chat")]);
    node.ban("192.0.2.7", "x").await;
    until(|| node.metric("banmesh_webhook_notices", "chat", "delivered") == 1).await;
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("webhook-id") == seen[0].header("webhook-id")));
    assert_eq!(node.metric("banmesh_webhook_attempts", "chat", "retried"), 2);
    assert_eq!(node.metric("banmesh_webhook_attempts", "chat", "ok"), 1);
}

#[tokio::test]
async fn deliveries_are_given_up_after_the_last_retry() {
    let failing = Server::start(&[Some("500 No")], None).await;
    let refusing = Server::start(&[Some("302 Found\r\nLocation: http://192.0.2.1/")], None).await;
    let node = start(vec![failing.settings("failing"), refusing.settings("refusing")]);
    node.ban("192.0.2.7", "x").await;
    for hook in ["failing", "refusing"] {
        until(|| node.metric("banmesh_webhook_notices", hook, "lost") == 1).await;
    }
    assert_eq!((failing.seen().len(), refusing.seen().len()), (4, 1));
    assert_eq!(node.metric("banmesh_webhook_attempts", "failing", "given_up"), 1);
    assert_eq!(node.metric("banmesh_webhook_attempts", "refusing", "refused"), 1);
}

#[tokio::test]
async fn the_next_delivery_counts_lost_notices() {
    let server = Server::start(&[Some("500 Oh"), Some("500 Oh"), Some("200 OK")], None).await;
    let node = start(vec![WebhookSettings { retries: 0, ..server.settings("chat") }]);
    for (number, told) in [(1, 0), (2, 1), (3, 2), (4, 0)] {
        node.ban(&format!("192.0.2.{number}"), "scan").await;
        let seen = server.wait(number).await;
        assert_eq!(seen[number - 1].json()["left_out"], told, "{number}");
        let lost = u64::try_from(number).unwrap().min(2);
        until(|| node.metric("banmesh_webhook_notices", "chat", "lost") == lost).await;
    }
}

#[tokio::test]
async fn a_hook_that_never_answers_is_bounded_by_its_queue() {
    const MANY: u64 = 6000;
    let silent = Server::start(&[None], None).await;
    let good = Server::start(&[Some("200 OK")], None).await;
    let mut stuck = silent.settings("stuck");
    stuck.timeout = Duration::from_secs(600);
    let node = start(vec![stuck, good.settings("good")]);
    node.ban("192.0.2.1", "first").await;
    silent.wait(1).await;
    for n in 0..MANY {
        node.ban(&format!("10.0.{}.{}", n / 250, n % 250), "flood").await;
    }
    let told = || {
        let of = |outcome| node.metric("banmesh_webhook_notices", "good", outcome);
        (of("delivered"), of("dropped"))
    };
    until(|| told().0 + told().1 == MANY + 1).await;
    assert!(node.metric("banmesh_webhook_notices", "stuck", "dropped") >= MANY - 4096);
    assert_eq!(node.metric("banmesh_webhook_notices", "stuck", "delivered"), 0);
    let requests = good.seen().len() as u64;
    assert!(requests * 20 < MANY, "{requests} requests for {MANY} bans");
    // The shutdown does not wait for it without limit.
    node.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), node.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn queued_notices_are_sent_at_shutdown() {
    let server = Server::start(&[Some("200 OK")], None).await;
    let mut settings = server.settings("chat");
    settings.collect = Duration::from_secs(300);
    let node = start(vec![settings]);
    node.ban("192.0.2.7", "x").await;
    // The notice is with the hook, which goes on collecting.
    let mut changes = node.store.subscribe();
    node.ban("192.0.2.8", "y").await;
    changes.recv().await.unwrap();
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.shutdown.cancel();
    node.served.await.unwrap();
    assert!(!server.seen().is_empty());
}

#[tokio::test]
async fn an_alarm_is_sent_once() {
    let server = Server::start(&[Some("200 OK")], None).await;
    let node = start(vec![server.settings("pager")]);
    let disk = Condition { name: "journal", message: "the disk is full".to_owned(), patience: Duration::ZERO };
    *node.wrong.lock().unwrap() = vec![disk];
    let seen = server.wait(1).await;
    let notice = &seen[0].json()["notices"][0];
    assert_eq!((&notice["alarm"], &notice["raised"]), (&"journal".into(), &true.into()));
    assert_eq!(seen[0].json()["summary"], "alarm journal: the disk is full");
    // It still is, at the next looks: a ban that comes later is told without it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    node.ban("192.0.2.7", "x").await;
    let seen = server.wait(2).await;
    assert_eq!(seen[1].json()["notices"].as_array().unwrap().len(), 1);
    assert_eq!(seen[1].json()["notices"][0]["event"], "ban");
}

fn certificate(directory: &Path, name: &str) -> TlsFiles {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let write = |kind: &str, text: String| {
        let path = directory.join(format!("{name}.{kind}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        section: "test",
        certificate: write("pem", made.cert.pem()),
        key: write("key", made.signing_key.serialize_pem()),
        client_ca: None,
    }
}

#[tokio::test]
async fn only_trusted_tls_servers_get_notices() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (certificate(directory.path(), "ours"), certificate(directory.path(), "other"));
    let server = Server::start(&[Some("200 OK")], Some(TlsServer::load(ours.clone()).unwrap())).await;
    let url = format!("https://localhost:{}/", server.address.port());
    let hook = |name: &str, ca: &Path| {
        let mut settings = server.settings(name);
        settings.endpoint = url.parse().unwrap();
        settings.trust = Trust::load(Some(ca)).unwrap();
        settings.retries = 0;
        settings
    };
    let node = start(vec![hook("trusted", &ours.certificate), hook("untrusted", &other.certificate)]);
    node.ban("192.0.2.7", "x").await;
    until(|| node.metric("banmesh_webhook_notices", "trusted", "delivered") == 1).await;
    until(|| node.metric("banmesh_webhook_notices", "untrusted", "lost") == 1).await;
    assert_eq!(server.seen().len(), 1);
}
