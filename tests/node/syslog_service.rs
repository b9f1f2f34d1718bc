//! The syslog input, tested through its sockets.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::inputs::syslog::{BindError, DropReason, LineSink, Metrics, Protocol, Syslog, SyslogConfig, Transport};
use banmesh_types::address::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<(Address, String)>>>);

impl LineSink for Lines {
    fn line(&mut self, sender: Address, line: &[u8]) {
        self.0.lock().unwrap().push((sender, String::from_utf8_lossy(line).into_owned()));
    }
}

impl Lines {
    fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, text)| text.clone()).collect()
    }
}

struct Running {
    lines: Lines,
    metrics: Metrics,
    udp: SocketAddr,
    tcp: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

fn local(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn config() -> SyslogConfig {
    SyslogConfig {
        address: local("127.0.0.1:0"),
        protocol: Protocol::Both,
        receive_buffer: 1024 * 1024,
        ..SyslogConfig::default()
    }
}

fn start(config: &SyslogConfig) -> Running {
    let (lines, metrics, shutdown) = (Lines::default(), Metrics::default(), CancellationToken::new());
    let syslog = Syslog::bind(config, lines.clone(), &metrics).unwrap();
    let (udp, tcp) = (syslog.udp_address().unwrap(), syslog.tcp_address().unwrap());
    let served = tokio::spawn(syslog.serve(shutdown.clone()));
    Running { lines, metrics, udp, tcp, shutdown, served }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

impl Running {
    fn dropped(&self, transport: Transport, reason: DropReason) -> u64 {
        self.metrics.dropped(transport, reason).get()
    }

    async fn has(&self, count: usize) -> Vec<String> {
        eventually("lines", || self.lines.texts().len() >= count).await;
        self.lines.texts()
    }

    async fn stop(self) -> Vec<String> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap();
        self.lines.texts()
    }
}

async fn datagram(to: SocketAddr, bytes: &[u8]) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.send_to(bytes, to).await.unwrap();
}

/// Waits until the peer closes the connection.
async fn is_closed(stream: &mut TcpStream) {
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn datagrams_and_streams_reach_the_sink_with_their_sender() {
    let running = start(&config());
    datagram(running.udp, b"<134>Nov 22 20:00:00 mx dovecot: one\r\n\0").await;
    running.has(1).await;
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    stream.write_all(b"<134>two\n5 <134>\n9 <13>three").await.unwrap();
    assert_eq!(running.has(4).await, ["<134>Nov 22 20:00:00 mx dovecot: one", "<134>two", "<134>", "<13>three"]);
    assert_eq!(running.lines.0.lock().unwrap()[0].0, Address::LOCALHOST);
    assert_eq!(running.metrics.lines(Transport::Udp).get(), 1);
    assert_eq!(running.metrics.lines(Transport::Tcp).get(), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_datagram_is_one_line_whatever_it_contains() {
    let running = start(&config());
    datagram(running.udp, b"<134>Nov 22 20:00:00 mx app: user=x\n<134>Nov 22 20:00:00 mx dovecot: rip=192.0.2.1\n")
        .await;
    datagram(running.udp, b"\n").await;
    datagram(running.udp, b"").await;
    let lines = running.has(1).await;
    assert_eq!(lines, ["<134>Nov 22 20:00:00 mx app: user=x <134>Nov 22 20:00:00 mx dovecot: rip=192.0.2.1"]);
    eventually("empty datagrams", || running.dropped(Transport::Udp, DropReason::Empty) == 2).await;
    running.stop().await;
}

#[tokio::test]
async fn both_families_arrive_at_the_unspecified_address_and_ipv4_stays_ipv4() {
    let running = start(&SyslogConfig { address: local("[::]:0"), ..config() });
    datagram(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), running.udp.port()), b"four").await;
    running.has(1).await;
    datagram(SocketAddr::new("::1".parse().unwrap(), running.udp.port()), b"six").await;
    running.has(2).await;
    let mut stream = TcpStream::connect(("127.0.0.1", running.tcp.port())).await.unwrap();
    stream.write_all(b"four\n").await.unwrap();
    running.has(3).await;
    let senders: Vec<_> = running.lines.0.lock().unwrap().iter().map(|(sender, _)| sender.to_string()).collect();
    assert_eq!(senders, ["127.0.0.1", "::1", "127.0.0.1"]);
    running.stop().await;
}

#[tokio::test]
async fn lines_are_accepted_only_from_allowed_senders() {
    let running = start(&SyslogConfig { allowed_senders: vec!["192.0.2.0/24".parse().unwrap()], ..config() });
    datagram(running.udp, b"<134>no").await;
    eventually("a refused datagram", || running.dropped(Transport::Udp, DropReason::Refused) == 1).await;
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    is_closed(&mut stream).await;
    assert_eq!(running.dropped(Transport::Tcp, DropReason::Refused), 1);
    assert!(running.stop().await.is_empty());

    let running = start(&SyslogConfig { allowed_senders: vec!["127.0.0.0/8".parse().unwrap()], ..config() });
    datagram(running.udp, b"<134>yes").await;
    assert_eq!(running.has(1).await, ["<134>yes"]);
    running.stop().await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_dropped_and_the_next_is_received() {
    let running = start(&SyslogConfig { max_line: 100, ..config() });
    datagram(running.udp, &[b'x'; 101]).await;
    datagram(running.udp, &[b'x'; 100]).await;
    assert_eq!(running.has(1).await[0].len(), 100);
    assert_eq!(running.dropped(Transport::Udp, DropReason::Oversized), 1);
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    stream.write_all(&[b'y'; 50_000]).await.unwrap();
    stream.write_all(b"\nafter\n").await.unwrap();
    assert_eq!(running.has(2).await[1], "after");
    assert_eq!(running.dropped(Transport::Tcp, DropReason::Oversized), 1);
    running.stop().await;
}

#[tokio::test]
async fn the_largest_datagram_is_a_line() {
    let running = start(&config());
    datagram(running.udp, &[b'x'; 65_507]).await;
    assert_eq!(running.has(1).await[0].len(), 65_507);
    running.stop().await;
}

#[tokio::test]
async fn a_stalled_line_is_dropped_and_other_connections_are_served() {
    let running = start(&SyslogConfig { tcp_idle_timeout: Duration::from_millis(200), ..config() });
    let mut idle = TcpStream::connect(running.tcp).await.unwrap();
    idle.write_all(b"whole\n").await.unwrap();
    running.has(1).await;
    let mut half = TcpStream::connect(running.tcp).await.unwrap();
    half.write_all(b"<134>half of a li").await.unwrap();
    let mut counted = TcpStream::connect(running.tcp).await.unwrap();
    counted.write_all(b"20 half").await.unwrap();
    is_closed(&mut half).await;
    is_closed(&mut counted).await;
    assert_eq!(running.metrics.stalled().get(), 2);
    assert_eq!(running.dropped(Transport::Tcp, DropReason::Incomplete), 2);
    // The connection that is idle between lines stays open.
    idle.write_all(b"more\n").await.unwrap();
    assert_eq!(running.has(2).await, ["whole", "more"]);
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_a_stream_completes_a_line_but_not_an_octet_counted_one() {
    let running = start(&config());
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    stream.write_all(b"no line end").await.unwrap();
    drop(stream);
    assert_eq!(running.has(1).await, ["no line end"]);
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    stream.write_all(b"20 <134>cut").await.unwrap();
    drop(stream);
    eventually("an incomplete line", || running.dropped(Transport::Tcp, DropReason::Incomplete) == 1).await;
    assert_eq!(running.stop().await.len(), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_others_are_served() {
    let limits = SyslogConfig { tcp_max_connections: 8, tcp_max_connections_per_sender: 2, ..config() };
    let running = start(&limits);
    // A connection without a line would give way after a second.
    let mut first = TcpStream::connect(running.tcp).await.unwrap();
    first.write_all(b"one\n").await.unwrap();
    running.has(1).await;
    let mut second = TcpStream::connect(running.tcp).await.unwrap();
    second.write_all(b"two\n").await.unwrap();
    running.has(2).await;
    for _ in 0..20 {
        is_closed(&mut TcpStream::connect(running.tcp).await.unwrap()).await;
    }
    assert_eq!(running.dropped(Transport::Tcp, DropReason::Connections), 20);
    first.write_all(b"still here\n").await.unwrap();
    running.has(3).await;
    drop(second);
    eventually("a free place", || running.metrics.connections().get() == 1).await;
    let mut third = TcpStream::connect(running.tcp).await.unwrap();
    third.write_all(b"in again\n").await.unwrap();
    assert_eq!(running.has(4).await, ["one", "two", "still here", "in again"]);
    assert_eq!(running.metrics.accepted().get(), 3);
    running.stop().await;
}

#[tokio::test]
async fn lines_that_have_arrived_are_passed_on_at_shutdown() {
    let (lines, metrics, shutdown) = (Lines::default(), Metrics::default(), CancellationToken::new());
    let syslog = Syslog::bind(&config(), lines.clone(), &metrics).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for number in 0..500 {
        socket.send_to(format!("line {number}").as_bytes(), syslog.udp_address().unwrap()).await.unwrap();
    }
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), syslog.serve(shutdown)).await.unwrap();
    assert_eq!(lines.texts().len(), 500);
    assert_eq!(lines.texts()[499], "line 499");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_sender_that_keeps_sending() {
    let running = start(&config());
    let mut stream = TcpStream::connect(running.tcp).await.unwrap();
    stream.write_all(b"begin\n").await.unwrap();
    running.has(1).await;
    let flood = tokio::spawn(async move { while stream.write_all(&[b'\n'; 10_000]).await.is_ok() {} });
    running.stop().await;
    flood.await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_unless_it_is_shared() {
    let shared = SyslogConfig { reuse_port: true, ..config() };
    let sink = Lines::default();
    let first = Syslog::bind(&shared, sink.clone(), &Metrics::default()).unwrap();
    for (protocol, address) in [(Protocol::Udp, first.udp_address()), (Protocol::Tcp, first.tcp_address())] {
        let same = SyslogConfig { address: address.unwrap(), protocol, ..shared.clone() };
        let second = Syslog::bind(&same, sink.clone(), &Metrics::default());
        assert!(second.is_ok(), "{protocol:?}");
        let alone = SyslogConfig { reuse_port: false, ..same };
        let error = Syslog::bind(&alone, sink.clone(), &Metrics::default()).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("syslog.reuse_port"), "{error}");
    }
}

#[tokio::test]
async fn datagrams_dropped_by_the_kernel_are_counted() {
    let (lines, metrics, shutdown) = (Lines::default(), Metrics::default(), CancellationToken::new());
    let small = SyslogConfig { receive_buffer: 4096, ..config() };
    let syslog = Syslog::bind(&small, lines.clone(), &metrics).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..200 {
        socket.send_to(&[b'x'; 1000], syslog.udp_address().unwrap()).await.unwrap();
    }
    shutdown.cancel();
    syslog.serve(shutdown).await;
    let received = u64::try_from(lines.texts().len()).unwrap();
    assert!(received < 200, "the buffer had room for all of them");
    assert_eq!(received + metrics.dropped(Transport::Udp, DropReason::Kernel).get(), 200);
}

#[test]
fn metrics_are_registered_under_their_names() {
    let (metrics, mut registry, mut text) = (Metrics::default(), Default::default(), String::new());
    metrics.register(&mut registry);
    metrics.lines(Transport::Udp).inc();
    metrics.dropped(Transport::Udp, DropReason::Kernel).inc();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("banmesh_syslog_lines_total{transport=\"udp\"} 1\n"), "{text}");
    assert!(text.contains("banmesh_syslog_dropped_total{transport=\"udp\",reason=\"kernel\"} 1\n"), "{text}");
    assert!(text.contains("banmesh_syslog_connections 0\n"), "{text}");
}
