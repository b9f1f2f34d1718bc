//! Cuts, deaths and mistakes.

use std::time::{Duration, Instant};

use banmesh::cluster::{ClusterSettings, Metrics, Timers};
use banmesh_core::wire::Versions;

use crate::cluster_replication::node::{Node, agree, keyring, settings, until};
use crate::cluster_replication::versions::Peer;

/// Cuts the cluster in two by giving one part other keys.
fn cut(part: &[Node]) {
    part.iter().for_each(|node| node.cluster.rotate(&keyring(&[9])));
}

fn heal(part: &[Node]) {
    part.iter().for_each(|node| node.cluster.rotate(&keyring(&[1])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_cut_heals_all_tables_are_equal() {
    let nodes = Node::cluster_of(5).await;
    let all: Vec<&Node> = nodes.iter().collect();
    for n in 0..20 {
        nodes[0].ban(&format!("192.0.2.{n}")).await;
    }
    until("equal tables before the cut", || agree(&all)).await;
    cut(&nodes[..2]);
    until("the parts have lost each other", || async { nodes[0].peers() == 1 && nodes[4].peers() == 2 }).await;
    for n in 0..300 {
        nodes[0].ban(&format!("198.51.100.{}", n % 256)).await;
        nodes[4].ban(&format!("203.0.113.{}", n % 256)).await;
    }
    nodes[1].lift("192.0.2.1").await;
    nodes[3].lift("192.0.2.2").await;
    nodes[3].ban("192.0.2.1").await;
    until("each part has its own opinion", || async {
        nodes[4].bans("192.0.2.1").await && !nodes[0].bans("192.0.2.1").await
    })
    .await;
    heal(&nodes[..2]);
    let start = Instant::now();
    until("equal tables after the cut", || agree(&all)).await;
    eprintln!("healed in {:?}", start.elapsed());
    // The later of the two writes won, on both sides.
    for node in &nodes {
        assert!(node.bans("192.0.2.1").await && !node.bans("192.0.2.2").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_killed_and_comes_back_empty_gets_everything_again() {
    let mut nodes = Node::cluster_of(3).await;
    nodes[2].ban("192.0.2.1").await;
    until("known", || nodes[0].bans("192.0.2.1")).await;
    drop(nodes.remove(2));
    nodes[0].ban("192.0.2.2").await;
    let back = Node::start_with(settings("node-2", 2, &[&nodes[1]])).await;
    back.cluster.ready().await;
    until("equal tables", || async { agree(&[&nodes[0], &nodes[1], &back]).await }).await;
    assert!(back.bans("192.0.2.1").await && back.bans("192.0.2.2").await);
    back.ban("192.0.2.3").await;
    until("heard again", || nodes[0].bans("192.0.2.3")).await;
    until("one life of it is over", || async { nodes[0].peers() == 2 }).await;
    assert_eq!(nodes[0].metrics.duplicate_nodes.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_without_losing_a_ban() {
    let nodes = Node::cluster_of(3).await;
    let mut count = 0;
    // As the documentation says: add the new key everywhere, let it seal everywhere, remove the old one everywhere.
    for keys in [&[1, 2][..], &[2, 1], &[2]] {
        for node in &nodes {
            node.cluster.rotate(&keyring(keys));
            count += 1;
            nodes[count % 3].ban(&format!("192.0.2.{count}")).await;
        }
    }
    for node in &nodes {
        for n in 1..=count {
            until("every ban", || async { node.bans(&format!("192.0.2.{n}")).await }).await;
        }
        assert_eq!(node.metrics.live_nodes.get(), 3);
        assert_eq!(node.cluster.keys(), keyring(&[2]).key_ids().collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_of_the_same_name_are_reported() {
    let nodes = Node::cluster_of(2).await;
    let _twin = Node::start("node-1", &[&nodes[0]]).await;
    until("a third node reports both", || async { nodes[0].metrics.duplicate_nodes.get() == 2 }).await;
    until("the twin reports itself", || async {
        nodes[1].cluster.members().nodes.iter().any(|member| member.is_self && member.duplicate)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_differ_in_silence_are_repaired() {
    let nodes = Node::cluster_of(2).await;
    let lonely = Node::start_with(settings("pattern", 1, &[])).await;
    lonely.ban("192.0.2.1").await;
    let entry = lonely.store.entry("192.0.2.1".parse().unwrap()).await.unwrap().unwrap();
    // As if it had come from a third node: it is in no recent-changes log.
    nodes[0].store.merge(vec![("192.0.2.1".parse().unwrap(), entry)]).await.unwrap();
    let start = Instant::now();
    until("equal tables", || async { agree(&[&nodes[0], &nodes[1]]).await }).await;
    eprintln!("repaired in {:?}", start.elapsed());
    assert!(nodes[1].bans("192.0.2.1").await);
}

/// Bans `count` targets of 198.18.0.0/15 as fast as the store takes them.
async fn ban_many(node: &Node, count: u32) {
    let ban = async |n: u32| {
        let [_, b, c, d] = n.to_be_bytes();
        node.ban(&format!("198.{}.{c}.{d}", 18 + b)).await;
    };
    for first in (0..count).step_by(1000) {
        let mut bans: Vec<_> = (first..count.min(first + 1000)).map(|n| Box::pin(ban(n))).collect();
        std::future::poll_fn(|cx| {
            bans.retain_mut(|ban| ban.as_mut().poll(cx).is_pending());
            if bans.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_changes_right_before_a_stop_reach_the_others() {
    const COUNT: usize = 50_000;
    let first = Node::start("first", &[]).await;
    let nodes = [first, Node::start("second", &[]).await];
    // However slow the machine is, the end must not be the deadline's.
    let last = settings("last", 1, &nodes.iter().collect::<Vec<_>>());
    let timers = Timers { farewell: Duration::from_secs(300), ..last.timers };
    let last = Node::start_with(ClusterSettings { timers, ..last }).await;
    until("met", || async { last.peers() == 2 && nodes.iter().all(|node| node.peers() == 2 && node.is_ready()) }).await;
    ban_many(&last, u32::try_from(COUNT).unwrap()).await;
    let held = last.digest().await;
    assert_eq!(held.1, COUNT);
    let start = Instant::now();
    last.leave().await;
    eprintln!("left after {:?}", start.elapsed());
    // Nobody else can have given them what they lack now.
    for node in &nodes {
        until("what was received is in the table", || async { node.digest().await == held }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_nobody_confirms_leaves_at_its_deadline() {
    let quick = settings("quick", 1, &[]);
    let timers = Timers { farewell: Duration::from_secs(1), ..quick.timers };
    let quick = Node::start_with(ClusterSettings { timers, ..quick }).await;
    // It gossips, acknowledges nothing, and answers no repair.
    let (_mute, _listener) = Peer::start("mute", Versions::default(), &quick).await;
    until("met", || async { quick.peers() == 1 && quick.is_ready() }).await;
    quick.ban("192.0.2.1").await;
    let metrics = quick.metrics.clone();
    let start = Instant::now();
    quick.leave().await;
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(Metrics::counted(&metrics.repairs, "farewell") > 0, "it was not called");
}
