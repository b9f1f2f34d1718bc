//! What is decided on one node is in force on all.

use std::time::{Duration, Instant};

use banmesh::cluster::Metrics;
use banmesh::cluster::members::Phase;
use banmesh_core::attempts::{JailId, SlotCount};

use crate::cluster_replication::node::{Node, agree, settings, target, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bans_and_unbans_of_any_node_are_in_force_on_all() {
    let nodes = Node::cluster_of(5).await;
    for (n, author) in nodes.iter().enumerate() {
        let who = format!("192.0.2.{n}");
        author.ban(&who).await;
        for node in &nodes {
            until("banned everywhere", || node.bans(&who)).await;
        }
        let other = &nodes[(n + 1) % 5];
        other.lift(&who).await;
        for node in &nodes {
            until("unbanned everywhere", || async { !node.bans(&who).await }).await;
        }
    }
    assert!(agree(&nodes.iter().collect::<Vec<_>>()).await);
    let received: u64 = nodes.iter().map(|node| node.metrics.recent_changes_received.get()).sum();
    assert!(received > 0, "the recent-changes log carried nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bans_misses_nobody() {
    let nodes = Node::cluster_of(3).await;
    let start = Instant::now();
    for n in 0..5_000u32 {
        let [_, _, c, d] = n.to_be_bytes();
        nodes[n as usize % 3].ban(&format!("198.18.{c}.{d}")).await;
    }
    let all: Vec<&Node> = nodes.iter().collect();
    until("equal tables of 5,000", || async { all[0].digest().await.1 == 5_000 && agree(&all).await }).await;
    eprintln!("5,000 bans on three nodes: {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_late_gets_the_bans_of_the_dead() {
    let mut nodes = Node::cluster_of(3).await;
    for n in 0..200 {
        nodes[0].ban(&format!("192.0.2.{n}")).await;
    }
    let all: Vec<&Node> = nodes.iter().collect();
    until("equal tables", || agree(&all)).await;
    drop(nodes.remove(0));
    let late = Node::start("late", &[&nodes[1]]).await;
    late.cluster.ready().await;
    assert_eq!(late.digest().await, nodes[0].digest().await);
    assert_eq!(late.cluster.last_repair().unwrap().reason, "join");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_is_joined_in_one_go() {
    const COUNT: usize = 20_000;
    let first = Node::start("first", &[]).await;
    first.cluster.ready().await;
    let pattern = Node::start("pattern", &[&first]).await;
    pattern.ban("192.0.2.1").await;
    let entry = pattern.store.entry(target("192.0.2.1")).await.unwrap().unwrap();
    let host = |n: usize| banmesh_types::target::Target::host(u32::try_from(n).unwrap().to_be_bytes().into());
    first.store.merge((1..COUNT).map(|n| (host(n), entry.clone())).collect()).await.unwrap();
    let start = Instant::now();
    let late = Node::start("late", &[&first]).await;
    late.cluster.ready().await;
    eprintln!("ready with {COUNT} entries after {:?}", start.elapsed());
    until("equal tables", || async { agree(&[&first, &late]).await }).await;
    // Tables are equal a moment before the repair that made them so has ended, and is counted.
    until("counted", || async { late.metrics.repair_received.get() >= COUNT as u64 - 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_peers_is_ready_alone() {
    let alone = Node::start("alone", &[]).await;
    tokio::time::timeout(Duration::from_secs(10), alone.cluster.ready()).await.unwrap();
    assert_eq!(*alone.cluster.phase().borrow(), Phase::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_may_be_names_and_may_come_later() {
    let first = Node::start("first", &[]).await;
    let mut by_name = settings("second", 1, &[]);
    by_name.seeds = vec!["no-such-host.invalid:1".to_owned(), format!("localhost:{}", first.address().port())];
    let second = Node::start_with(by_name).await;
    until("met", || async { first.peers() == 1 && second.peers() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_told_with_their_author_and_its_start() {
    let mut nodes = Node::cluster_of(3).await;
    let key = (JailId::GENERAL, target("192.0.2.7"));
    for count in 1..=3 {
        nodes[0].cluster.local_counts().unwrap().try_send(SlotCount { key, slot: 5, count }).unwrap();
    }
    nodes[1].cluster.local_counts().unwrap().try_send(SlotCount { key, slot: 5, count: 9 }).unwrap();
    let mut best = std::collections::HashMap::new();
    let last = tokio::time::timeout(Duration::from_secs(10), async {
        while best.len() < 2 || !best.values().any(|count| *count == 3) {
            let told = nodes[2].counts.recv().await.unwrap();
            assert_eq!((told.share.key, told.share.slot), (key, 5));
            let known = best.entry(told.from).or_insert(0);
            *known = told.share.count.max(*known);
        }
    });
    last.await.unwrap();
    let mut counts: Vec<u32> = best.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [3, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_says_so() {
    let mut nodes = Node::cluster_of(3).await;
    let last = nodes.remove(2);
    last.ban("192.0.2.1").await;
    last.leave().await;
    until("gone", || async { nodes.iter().all(|node| node.peers() == 1) }).await;
    let members = nodes[0].cluster.members();
    let gone = members.nodes.iter().find(|member| member.node.as_str() == "node-2").unwrap();
    assert_eq!(gone.phase, Some(Phase::Leaving));
    // It may still be on its way from the intake to the store.
    until("banned", || async { nodes[0].bans("192.0.2.1").await && nodes[1].bans("192.0.2.1").await }).await;
    assert_eq!(Metrics::counted(&nodes[0].metrics.datagrams_dropped, "not authentic"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_sees_the_members() {
    let nodes = Node::cluster_of(3).await;
    nodes[0].ban("192.0.2.1").await;
    until("tables agree, as published", || async {
        let members = nodes[1].cluster.members();
        members.nodes.len() == 3
            && members.nodes.iter().all(|member| member.agrees && member.table.is_some_and(|table| table.entries == 1))
    })
    .await;
    let members = nodes[1].cluster.members();
    assert!(members.nodes[0].is_self && members.nodes[0].node.as_str() == "node-1");
    for member in &members.nodes {
        assert!(member.live && !member.duplicate);
        assert_eq!(member.phase, Some(Phase::Ready));
        assert_eq!(member.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(member.generation, 1);
        assert!(member.clock_ahead_ms.unwrap().abs() < 1000);
        assert!(member.heartbeat_age < Duration::from_secs(5));
    }
    assert_eq!(members.nodes[1].address, nodes[0].address());
    assert_eq!(nodes[1].cluster.keys().len(), 1);
}
