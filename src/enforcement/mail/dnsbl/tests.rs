use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::enforcement::mail::Metrics;

/// Bans 192.0.2.1 permanently.
#[derive(Clone)]
struct One;

impl Verdicts for One {
    fn is_banned(&mut self, address: Address) -> bool {
        address == [192, 0, 2, 1].into()
    }
}

const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A query for `name` with type A.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

struct Running {
    udp: SocketAddr,
    tcp: SocketAddr,
    queries: Queries,
    _end: tokio_util::sync::DropGuard,
}

fn start(allowed: &str) -> Running {
    let queries = Metrics::default().of("dnsbl");
    let config = DnsblConfig {
        listen: LOCALHOST,
        zone: "bl.example.org".parse().unwrap(),
        allowed_clients: vec![allowed.parse().unwrap()],
        udp_rate: 5,
        text: "banned".to_owned(),
    };
    let mut dnsbl = Dnsbl::bind(config, One, queries.clone()).unwrap();
    let (udp, tcp) = dnsbl.addresses();
    let end = CancellationToken::new();
    let shutdown = end.clone();
    tokio::spawn(async move { dnsbl.serve(shutdown).await });
    Running { udp: udp.unwrap(), tcp: tcp.unwrap(), queries, _end: end.drop_guard() }
}

/// The answer from `to` over UDP.
async fn ask(to: SocketAddr, query: Vec<u8>) -> Option<Vec<u8>> {
    let asking = move || {
        let socket = UdpSocket::bind(LOCALHOST).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&query, to).unwrap();
        let mut answer = [0; 600];
        socket.recv(&mut answer).ok().map(|length| answer[..length].to_vec())
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_answer_the_same() {
    let running = start("127.0.0.0/8");
    for (name, answers) in [("1.2.0.192.bl.example.org", 1), ("2.2.0.192.bl.example.org", 0)] {
        let over_udp = ask(running.udp, query(name)).await.unwrap();
        assert_eq!(over_udp[7], answers);
        let mut stream = tokio::net::TcpStream::connect(running.tcp).await.unwrap();
        // Two queries in one write, in parts.
        let length = u16::try_from(query(name).len()).unwrap().to_be_bytes();
        let framed = [&length[..], &query(name)].concat().repeat(2);
        stream.write_all(&framed[..20]).await.unwrap();
        stream.write_all(&framed[20..]).await.unwrap();
        for _ in 0..2 {
            let length = stream.read_u16().await.unwrap();
            let mut over_tcp = vec![0; length.into()];
            stream.read_exact(&mut over_tcp).await.unwrap();
            assert_eq!(over_tcp, over_udp);
        }
    }
    let counted = [Answer::Banned, Answer::Clean].map(|answer| running.queries.counter(answer).get());
    assert_eq!(counted, [3, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_clients_are_refused_with_less_than_they_sent_and_not_without_end() {
    let running = start("192.0.2.0/24");
    let question = query("1.2.0.192.bl.example.org");
    let answer = ask(running.udp, question.clone()).await.unwrap();
    assert!(answer.len() < question.len() && answer[3] & 15 == 5);
    let socket = UdpSocket::bind(LOCALHOST).unwrap();
    for _ in 0..200 {
        socket.send_to(&question, running.udp).unwrap();
    }
    let dropped = running.queries.counter(Answer::Dropped).clone();
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while dropped.get() < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap();
    assert!(running.queries.complaint().unwrap().contains("dnsbl.allowed_clients"));
    let mut stream = tokio::net::TcpStream::connect(running.tcp).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed");
}

#[test]
fn what_is_not_a_query_in_the_zone_is_counted_and_explained() {
    let queries = Metrics::default().of("dnsbl");
    let zone = "bl.example.org".parse().unwrap();
    let shared = Shared { zone, text: "banned".to_owned(), allowed: Vec::new(), queries: queries.clone() };
    let mut out = Vec::new();
    let mut ask = |query: &[u8]| shared.answer(query, Address::LOCALHOST, UnixMillis(0), &mut One, &mut out);
    ask(&query("1.2.0.192.other.example"));
    assert!(queries.complaint().unwrap().contains("dnsbl.zone"));
    ask(b"GET / HTTP/1.1\r\n\r\n");
    ask(b"short");
    assert_eq!((queries.understood(), queries.misunderstood()), (0, 3));
    queries.count(Answer::Refused);
    assert_eq!(queries.misunderstood(), 4, "nobody else asks");
    ask(&query("1.2.0.192.bl.example.org"));
    assert_eq!((queries.understood(), queries.misunderstood()), (1, 3));
}

#[test]
fn the_text_says_when_a_ban_ends() {
    let mut verdicts = Until(Expiry::at(UnixMillis(1_800_000_060_000)));
    let mut listings = Banned { verdicts: &mut verdicts, text: "banned", now: UnixMillis(1_800_000_000_500) };
    let mut text = String::new();
    listings.reason([192, 0, 2, 1].into(), &mut text);
    assert_eq!((text.as_str(), listings.left([192, 0, 2, 1].into())), ("banned until 2027-01-15T08:01:00Z", Some(59)));
    let mut listings = Banned { verdicts: &mut Until(Expiry::NEVER), text: "banned", now: UnixMillis(0) };
    let mut text = String::new();
    listings.reason([192, 0, 2, 1].into(), &mut text);
    assert_eq!((text.as_str(), listings.left([192, 0, 2, 1].into())), ("banned", Some(u32::MAX)));
}

#[derive(Clone)]
struct Until(Expiry);

impl Verdicts for Until {
    fn is_banned(&mut self, _: Address) -> bool {
        true
    }

    fn banned_until(&mut self, _: Address) -> Option<Expiry> {
        Some(self.0)
    }
}
