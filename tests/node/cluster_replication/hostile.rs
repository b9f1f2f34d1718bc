//! Strangers on the cluster's port: no effect but counters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh::cluster::{Cluster, ClusterError, ClusterSettings, Metrics};
use banmesh_core::wire::Versions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster_replication::node::{Node, agree, keyring, new_store, settings, until};
use crate::cluster_replication::versions::Peer;

/// Passes datagrams on between two nodes and keeps a copy of each.
struct Tap {
    port: std::net::SocketAddr,
    heard: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
    _task: AbortOnDropHandle<()>,
}

impl Tap {
    async fn before(node: &Node) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (port, behind) = (socket.local_addr().unwrap(), node.address());
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let copies = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            let mut other = None;
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let to = if from == behind { other } else { Some(behind) };
                if from != behind {
                    other = Some(from);
                    copies.lock().unwrap().push(buffer[..length].to_vec());
                }
                if let Some(to) = to {
                    let _ = socket.send_to(&buffer[..length], to).await;
                }
            }
        });
        Self { port, heard, _task: AbortOnDropHandle::new(task) }
    }
}

fn dropped(node: &Node, reason: &'static str) -> u64 {
    Metrics::counted(&node.metrics.datagrams_dropped, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_strangers_are_counted_and_do_nothing() {
    let nodes = Node::cluster_of(2).await;
    let tap = Tap::before(&nodes[0]).await;
    let mut through = settings("through", 1, &[]);
    through.seeds = vec![tap.port.to_string()];
    let _third = Node::start_with(through).await;
    until("datagrams were heard", || async { tap.heard.lock().unwrap().len() > 3 }).await;

    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let heard = tap.heard.lock().unwrap().clone();
    for datagram in &heard {
        stranger.send_to(datagram, nodes[0].address()).await.unwrap();
        stranger.send_to(&datagram[..datagram.len() / 2], nodes[0].address()).await.unwrap();
        let mut forged = datagram.clone();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        stranger.send_to(&forged, nodes[0].address()).await.unwrap();
    }
    // A pseudo-random flood, while bans go on.
    let mut state = 1u64;
    for n in 0..10_000u32 {
        let mut bytes = [0; 100];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        bytes[0] = u8::try_from(n % 4).unwrap();
        stranger.send_to(&bytes, nodes[0].address()).await.unwrap();
        if n % 1000 == 0 {
            nodes[1].ban(&format!("192.0.2.{}", n / 1000)).await;
            tokio::task::yield_now().await;
        }
    }
    for n in 0..10 {
        until("bans go on", || async { nodes[0].bans(&format!("192.0.2.{n}")).await }).await;
    }
    for reason in ["replayed", "not authentic", "unknown version", "unknown key", "not encrypted"] {
        until(reason, || async { dropped(&nodes[0], reason) > 0 }).await;
    }
    assert_eq!(nodes[0].metrics.membership_restarts.get(), 0);
    // Nobody lives who was not let in; the third node is known by the address that it advertises.
    assert!(nodes[0].cluster.members().nodes.len() <= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_and_another_key_stay_apart() {
    let nodes = Node::cluster_of(2).await;
    let mut other_name = settings("other-name", 1, &[&nodes[0]]);
    other_name.name = "elsewhere".to_owned();
    let mut other_key = settings("other-key", 1, &[&nodes[0]]);
    other_key.keyring = Some(keyring(&[7]));
    let mut no_key = settings("no-key", 1, &[&nodes[0]]);
    no_key.keyring = None;
    for stranger in [&mut other_name, &mut other_key, &mut no_key] {
        stranger.join_timeout = Duration::from_millis(500);
    }
    let (a, b, c) =
        (Node::start_with(other_name).await, Node::start_with(other_key).await, Node::start_with(no_key).await);
    for reason in ["wrong cluster", "unknown key", "not encrypted"] {
        until(reason, || async { dropped(&nodes[0], reason) > 0 }).await;
    }
    for node in [&a, &b, &c] {
        node.cluster.ready().await;
        node.ban("192.0.2.66").await;
        assert_eq!(node.peers(), 0);
    }
    nodes[0].ban("192.0.2.1").await;
    until("the cluster goes on", || nodes[1].bans("192.0.2.1")).await;
    assert!(!nodes[0].bans("192.0.2.66").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_strangers_are_closed_and_keep_nobody_out() {
    let nodes = Node::cluster_of(2).await;
    nodes[0].ban("192.0.2.1").await;
    let mut open = Vec::new();
    for n in 0..600 {
        let Ok(mut stream) = TcpStream::connect(nodes[0].address()).await else { continue };
        match n % 4 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: banmesh\r\n\r\n").await.unwrap(),
            1 => stream.write_all(&[0xff; 2000]).await.unwrap_or_default(),
            2 => stream.write_all(&[20, 0, 0, 0, 1]).await.unwrap(),
            _ => {}
        }
        open.push(stream);
    }
    let late = Node::start("late", &[&nodes[1]]).await;
    late.cluster.ready().await;
    until("the late one has it", || late.bans("192.0.2.1")).await;
    let direct = Node::start("direct", &[&nodes[0]]).await;
    direct.cluster.ready().await;
    assert!(direct.bans("192.0.2.1").await);
    for reason in ["too many", "too long", "timeout"] {
        let counted = || Metrics::counted(&nodes[0].metrics.connections_dropped, reason);
        until(reason, || async { counted() > 0 }).await;
    }
    let mut closed = 0;
    for stream in &mut open {
        let end = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0; 16])).await.unwrap();
        closed += usize::from(!matches!(end, Ok(1..)));
    }
    assert_eq!(closed, open.len());
}

#[tokio::test]
async fn without_a_keyring_only_loopback_is_listened_on() {
    let (store, _task) = new_store("a");
    let open = |insecure| ClusterSettings {
        listen: "0.0.0.0:0".parse().unwrap(),
        keyring: None,
        insecure,
        ..settings("a", 1, &[])
    };
    let error = Cluster::bind(open(false), store.clone(), Metrics::default()).await.unwrap_err();
    assert!(matches!(error, ClusterError::Insecure { .. }));
    assert!(error.to_string().contains("banmesh cluster keygen"), "{error}");
    assert!(Cluster::bind(open(true), store, Metrics::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_never_answers_a_repair_holds_up_no_repair_with_others() {
    let nodes = Node::cluster_of(2).await;
    // It gossips, its table differs, and it accepts connections without a word.
    let (_hung, listener) = Peer::start("hung", Versions::default(), &nodes[0]).await;
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let connections = Arc::clone(&held);
    let _accepts = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.lock().unwrap().push(stream);
        }
    }));
    until("both have called it", || async { held.lock().unwrap().len() >= 2 }).await;

    let lonely = Node::start_with(settings("pattern", 1, &[])).await;
    let start = Instant::now();
    for n in 0..6 {
        let target = format!("192.0.2.{n}");
        lonely.ban(&target).await;
        let entry = lonely.store.entry(target.parse().unwrap()).await.unwrap().unwrap();
        // As if it had come from a third node: it is in no recent-changes log.
        nodes[n % 2].store.merge(vec![(target.parse().unwrap(), entry)]).await.unwrap();
        until("equal tables", || async { agree(&[&nodes[0], &nodes[1]]).await }).await;
    }
    // With one peer's failures pacing all, every one of these waited for up to 30 s.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let failed = |node: &Node| Metrics::counted(&node.metrics.repairs_failed, "timeout");
    until("counted", || async { failed(&nodes[0]) > 0 && failed(&nodes[1]) > 0 }).await;
}
