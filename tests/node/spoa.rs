//! The SPOE agent over real sockets, as seen by HAProxy and by other clients.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::enforcement::agent::{Metrics, Reported, Spoa, SpoaConfig, Verdicts};
use banmesh_spop::data::{Data, encode_pair, encode_string};
use banmesh_spop::{Code, frame, varint};
use banmesh_types::address::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A generous timeout for everything in this file.
const PATIENCE: Duration = Duration::from_secs(20);

/// The banned addresses, and the reports received.
#[derive(Clone, Default)]
struct Banned(Arc<HashSet<Address>>, Arc<Mutex<Vec<String>>>);

impl Verdicts for Banned {
    fn is_banned(&mut self, address: Address) -> bool {
        self.0.contains(&address)
    }

    fn report(&mut self, report: &Reported<'_>) -> bool {
        let Reported { source, reason, attempts, .. } = *report;
        let mut reports = self.1.lock().unwrap();
        if reports.len() == 3 {
            return false;
        }
        reports.push(format!("{source} {reason} {attempts}"));
        true
    }
}

struct Agent {
    address: SocketAddr,
    reports: Arc<Mutex<Vec<String>>>,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(config: SpoaConfig) -> Self {
        let metrics = Metrics::default();
        let banned = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
        let banned = Banned(Arc::new(banned), Arc::default());
        let reports = Arc::clone(&banned.1);
        let spoa = Spoa::bind(config, banned, metrics.clone()).unwrap();
        let address = spoa.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(spoa.serve(shutdown.clone()));
        Self { address, reports, metrics, shutdown, task }
    }

    async fn connect(&self) -> Client {
        Client(timeout(PATIENCE, TcpStream::connect(self.address)).await.unwrap().unwrap())
    }

    async fn greeted(&self) -> Client {
        let mut client = self.connect().await;
        client.send(&hello(false)).await;
        assert_eq!(client.frame().await[0], 101);
        client
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.0.write_all(bytes)).await.unwrap().unwrap();
    }

    /// The next frame without its length.
    async fn frame(&mut self) -> Vec<u8> {
        timeout(PATIENCE, async {
            let length = self.0.read_u32().await.unwrap();
            let mut body = vec![0; length as usize];
            self.0.read_exact(&mut body).await.unwrap();
            body
        })
        .await
        .unwrap()
    }

    /// Expects DISCONNECT with `code`, then the end of the stream.
    async fn ends_with(&mut self, code: Code) {
        assert_eq!(self.frame().await, disconnect(code));
        self.closed().await;
    }

    /// Expects the end of the stream, by FIN or reset.
    async fn closed(&mut self) {
        let end = timeout(PATIENCE, self.0.read_u8()).await.unwrap();
        assert!(end.is_err(), "another byte: {end:?}");
    }

    /// Sends a query and expects the answer.
    async fn checks(&mut self, source: &str, banned: bool) {
        self.send(&notify(7, source)).await;
        assert_eq!(self.frame().await, verdict(7, banned));
    }
}

fn frame_of(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 1];
    varint::encode(id, &mut body);
    varint::encode(u64::from(kind == 3), &mut body);
    body.extend_from_slice(payload);
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

fn hello(healthcheck: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(b"2.0"), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(16380), &mut payload);
    encode_pair("capabilities", &Data::String(if healthcheck { b"" } else { b"pipelining,async" }), &mut payload);
    if healthcheck {
        encode_pair("healthcheck", &Data::Bool(true), &mut payload);
    }
    frame_of(1, 0, &payload)
}

fn notify(id: u64, source: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_string(b"check-client-ip", &mut payload);
    payload.push(1);
    let source = match source.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => Data::Ipv4(v4),
        Ok(IpAddr::V6(v6)) => Data::Ipv6(v6),
        Err(_) => Data::String(source.as_bytes()),
    };
    encode_pair("src", &source, &mut payload);
    frame_of(3, id, &payload)
}

/// A report of `source`, after a query for `asked`.
fn report(id: u64, source: Data<'_>, reason: Data<'_>, asked: Option<&str>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(asked) = asked {
        encode_string(b"check-ip", &mut payload);
        payload.push(1);
        encode_pair("src_ip", &Data::String(asked.as_bytes()), &mut payload);
    }
    encode_string(b"report-offence", &mut payload);
    payload.push(3);
    encode_pair("src", &source, &mut payload);
    encode_pair("reason", &reason, &mut payload);
    encode_pair("attempts", &Data::Int64(2), &mut payload);
    frame_of(3, id, &payload)
}

fn reported(id: u64, taken: bool, banned: Option<bool>) -> Vec<u8> {
    let mut ids = Vec::new();
    varint::encode(id, &mut ids);
    varint::encode(1, &mut ids);
    let mut output = Vec::new();
    frame::encode_reported(&ids, taken, banned, &mut output);
    output.split_off(4)
}

fn verdict(id: u64, banned: bool) -> Vec<u8> {
    let mut ids = Vec::new();
    varint::encode(id, &mut ids);
    varint::encode(1, &mut ids);
    let mut output = Vec::new();
    frame::encode_verdict(&ids, banned, &mut output);
    output.split_off(4)
}

fn disconnect(code: Code) -> Vec<u8> {
    let mut output = Vec::new();
    frame::encode_disconnect(code, &mut output);
    output.split_off(4)
}

fn config() -> SpoaConfig {
    SpoaConfig { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..SpoaConfig::default() }
}

/// Waits until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn checks_are_answered_and_counted() {
    let agent = Agent::start(config());
    let mut client = agent.greeted().await;
    client.checks("192.0.2.1", true).await;
    client.checks("192.0.2.2", false).await;
    client.checks("::ffff:192.0.2.1", true).await;
    client.checks("2001:db8::1", true).await;
    client.checks("nobody", false).await;
    until("the counters", || agent.metrics.banned.get() == 3).await;
    assert_eq!((agent.metrics.clean.get(), agent.metrics.unknown.get()), (1, 1));
    assert_eq!(agent.metrics.connections_open.get(), 1);
    let mut registry = prometheus_client::registry::Registry::default();
    agent.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("banmesh_spoa_checks_total{verdict=\"banned\"} 3"), "{text}");
}

#[tokio::test]
async fn pipelined_checks_split_anywhere_are_answered_in_order() {
    let agent = Agent::start(config());
    let mut client = agent.greeted().await;
    let count = 500;
    let mut bytes = Vec::new();
    for id in 0..count {
        bytes.extend(notify(id, if id % 3 == 0 { "192.0.2.1" } else { "192.0.2.9" }));
    }
    for piece in bytes.chunks(97) {
        client.send(piece).await;
    }
    for id in 0..count {
        assert_eq!(client.frame().await, verdict(id, id % 3 == 0));
    }
}

#[tokio::test]
async fn health_checks_are_answered_and_closed() {
    let agent = Agent::start(config());
    let mut client = agent.connect().await;
    client.send(&hello(true)).await;
    assert_eq!(client.frame().await[0], 101);
    client.closed().await;
    assert_eq!(agent.metrics.health_checks.get(), 1);
}

#[tokio::test]
async fn an_empty_connection_and_a_reset_are_not_errors() {
    let agent = Agent::start(config());
    drop(agent.connect().await);
    let client = agent.greeted().await;
    client.0.set_zero_linger().unwrap();
    drop(client);
    until("both gone", || agent.metrics.connections.get() == 2 && agent.metrics.connections_open.get() == 0).await;
    for code in [Code::Invalid, Code::Timeout, Code::TooBig] {
        assert_eq!(agent.metrics.frames_refused(code), 0);
    }
}

#[tokio::test]
async fn invalid_frames_are_answered_with_their_status_code() {
    let agent = Agent::start(config());
    let mut early = agent.connect().await;
    early.send(&notify(1, "192.0.2.1")).await;
    early.ends_with(Code::Invalid).await;
    let mut big = agent.greeted().await;
    big.send(&[0x7f, 0xff, 0xff, 0xff]).await;
    big.ends_with(Code::TooBig).await;
    let mut again = agent.greeted().await;
    again.send(&hello(false)).await;
    again.ends_with(Code::Invalid).await;
    assert_eq!(agent.metrics.frames_refused(Code::Invalid), 2);
    assert_eq!(agent.metrics.frames_refused(Code::TooBig), 1);
}

#[tokio::test]
async fn hello_and_begun_frames_have_a_deadline_and_idle_connections_have_none() {
    let agent = Agent::start(SpoaConfig { read_timeout: Duration::from_millis(200), ..config() });
    let mut idle = agent.greeted().await;
    let mut silent = agent.connect().await;
    let mut stuck = agent.greeted().await;
    stuck.send(&notify(1, "192.0.2.1")[..9]).await;
    silent.ends_with(Code::Timeout).await;
    stuck.ends_with(Code::Timeout).await;
    // Sending slowly does not extend the deadline.
    let mut trickle = agent.greeted().await;
    let long = frame_of(3, 1, &[0; 10_000]);
    let mut sent = 0;
    let mut first = [0];
    loop {
        trickle.send(&long[sent..=sent]).await;
        sent += 1;
        if timeout(Duration::from_millis(10), trickle.0.peek(&mut first)).await.is_ok() {
            break;
        }
        assert!(sent < 5000, "the connection was never closed");
    }
    assert_eq!(trickle.frame().await, disconnect(Code::Timeout));
    assert_eq!(agent.metrics.frames_refused(Code::Timeout), 3);
    idle.checks("192.0.2.1", true).await;
}

#[tokio::test]
async fn at_the_limit_the_connection_idle_longest_is_closed() {
    let agent = Agent::start(SpoaConfig { max_clients: 3, ..config() });
    let mut first = agent.greeted().await;
    let mut second = agent.greeted().await;
    let mut third = agent.greeted().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    first.checks("192.0.2.1", true).await;
    third.checks("192.0.2.1", true).await;
    let mut fourth = agent.greeted().await;
    second.ends_with(Code::Normal).await;
    for client in [&mut first, &mut third, &mut fourth] {
        client.checks("192.0.2.2", false).await;
    }
    assert_eq!((agent.metrics.evicted.get(), agent.metrics.refused_limit.get()), (1, 0));
    assert_eq!(agent.metrics.connections_open.get(), 3);
}

#[tokio::test]
async fn clients_outside_allowed_clients_are_refused_and_evict_nobody() {
    let allowed_clients = vec!["127.0.0.1".parse().unwrap()];
    let agent = Agent::start(SpoaConfig { max_clients: 1, allowed_clients, ..config() });
    let mut haproxy = agent.greeted().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    for _ in 0..10 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        Client(socket.connect(agent.address).await.unwrap()).closed().await;
    }
    assert_eq!(agent.metrics.refused_address.get(), 10);
    haproxy.checks("192.0.2.1", true).await;
    assert_eq!(agent.metrics.evicted.get(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_and_others_are_served() {
    let agent = Agent::start(SpoaConfig { read_timeout: Duration::from_millis(300), ..config() });
    let mut other = agent.greeted().await;
    let mut deaf = agent.greeted().await;
    let batch: Vec<u8> = (0..2000).flat_map(|id| notify(id, "192.0.2.1")).collect();
    let flood = async { while deaf.0.write_all(&batch).await.is_ok() {} };
    let watch = async {
        until("the cut", || agent.metrics.slow_readers.get() == 1).await;
        other.checks("192.0.2.1", true).await;
    };
    timeout(PATIENCE, async { tokio::join!(flood, watch) }).await.unwrap();
    until("it is counted as open", || agent.metrics.connections_open.get() == 1).await;
}

#[tokio::test]
async fn hundreds_of_idle_connections_stay_open() {
    let agent = Agent::start(SpoaConfig { max_clients: 1000, read_timeout: Duration::from_millis(300), ..config() });
    let mut clients = Vec::new();
    // Both ends of each connection are in this process, which may be limited to 1,024 descriptors.
    for _ in 0..450 {
        clients.push(agent.greeted().await);
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(agent.metrics.connections_open.get(), 450);
    for client in &mut clients {
        client.checks("192.0.2.1", true).await;
    }
    assert_eq!(agent.metrics.evicted.get(), 0);
}

#[tokio::test]
async fn a_draining_agent_fails_health_checks_and_keeps_answering() {
    let agent = Agent::start(SpoaConfig { drain: Duration::from_secs(2), ..config() });
    let mut client = agent.greeted().await;
    let mut check = agent.connect().await;
    check.send(&hello(true)).await;
    assert_eq!(check.frame().await[0], 101);
    agent.shutdown.cancel();
    let failing = async {
        loop {
            let mut check = agent.connect().await;
            check.send(&hello(true)).await;
            if check.frame().await == disconnect(Code::Normal) {
                return;
            }
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    client.checks("192.0.2.1", true).await;
    let mut late = agent.greeted().await;
    late.checks("192.0.2.1", true).await;
    client.ends_with(Code::Normal).await;
    late.ends_with(Code::Normal).await;
    agent.stop().await;
}

#[tokio::test]
async fn without_health_checks_over_spop_a_draining_agent_closes_its_listener_and_keeps_answering() {
    let agent = Agent::start(SpoaConfig { drain: Duration::from_secs(2), ..config() });
    let mut client = agent.greeted().await;
    agent.shutdown.cancel();
    let refused = async { while TcpStream::connect(agent.address).await.is_ok() {} };
    timeout(PATIENCE, refused).await.unwrap();
    client.checks("192.0.2.1", true).await;
    client.ends_with(Code::Normal).await;
    agent.stop().await;
}

#[tokio::test]
async fn without_a_haproxy_the_agent_stops_at_once() {
    let agent = Agent::start(SpoaConfig { drain: PATIENCE * 10, ..config() });
    let address = agent.address;
    let mut silent = agent.connect().await;
    until("the connection", || agent.metrics.connections_open.get() == 1).await;
    agent.shutdown.cancel();
    silent.ends_with(Code::Normal).await;
    drop(silent);
    agent.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn reports_are_passed_on_and_answered_like_queries() {
    let reports_from = vec!["127.0.0.0/8".parse().unwrap()];
    let agent = Agent::start(SpoaConfig { reports_from, ..config() });
    let mut client = agent.greeted().await;
    let source = Data::Ipv4([192, 0, 2, 1].into());
    client.send(&report(1, source, Data::String(b"waf\nhit"), None)).await;
    assert_eq!(client.frame().await, reported(1, true, None));
    client.send(&report(2, source, Data::Int64(401), Some("192.0.2.1"))).await;
    assert_eq!(client.frame().await, reported(2, true, Some(true)));
    client.send(&report(3, Data::Null, Data::Null, Some("192.0.2.2"))).await;
    assert_eq!(client.frame().await, reported(3, false, Some(false)), "the report has no source");
    client.send(&report(4, source, Data::Null, None)).await;
    assert_eq!(client.frame().await, reported(4, true, None));
    client.send(&report(5, source, Data::Null, None)).await;
    assert_eq!(client.frame().await, reported(5, false, None), "the queue is full");
    let wanted = ["192.0.2.1 waf?hit 2", "192.0.2.1 401 2", "192.0.2.1 reported 2"];
    assert_eq!(*agent.reports.lock().unwrap(), wanted);
    let metrics = &agent.metrics;
    assert_eq!((metrics.reports_taken.get(), metrics.reports_unknown.get(), metrics.reports_dropped.get()), (3, 1, 1));
    client.checks("192.0.2.1", true).await;
    until("the latencies", || agent.metrics.answer_seconds.count() == 6).await;
}

#[tokio::test]
async fn clients_that_may_not_report_may_query() {
    let reports_from = vec!["127.0.0.2".parse().unwrap()];
    let agent = Agent::start(SpoaConfig { reports_from, ..config() });
    let mut client = agent.greeted().await;
    client.send(&report(1, Data::Ipv4([192, 0, 2, 9].into()), Data::Null, Some("192.0.2.1"))).await;
    assert_eq!(client.frame().await, reported(1, false, Some(true)));
    assert_eq!(agent.metrics.reports_forbidden.get(), 1);
    assert!(agent.reports.lock().unwrap().is_empty());
    // Without a list, no client may report.
    let agent = Agent::start(config());
    let mut client = agent.greeted().await;
    client.send(&report(1, Data::Ipv4([192, 0, 2, 9].into()), Data::Null, None)).await;
    assert_eq!(client.frame().await, reported(1, false, None));
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_key() {
    let agent = Agent::start(config());
    let taken = SpoaConfig { listen: Some(agent.address), ..config() };
    let Err(error) = Spoa::bind(taken, Banned::default(), Metrics::default()) else { panic!("the port is taken") };
    assert_eq!(error.at, agent.address.to_string());
    assert!(error.to_string().contains("spoa.port"), "{error}");
}
