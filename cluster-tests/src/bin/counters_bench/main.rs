//! Measures the sums over all HAProxies: three nodes on this machine, without encryption.
//!
//! | arguments | what counts |
//! |---|---|
//! | `[UPDATES PER SECOND AND NODE] [KEYS] [SECONDS]` | a program next to each node ([`programs`]); without arguments, at several rates |
//! | `haproxy [REQUESTS PER SECOND] [KEYS] [SECONDS]` | a real HAProxy next to each node ([`haproxies`]); 0 requests: as many as possible |
#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark: what cannot go on ends it")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod clients;
mod haproxies;
mod programs;

use std::net::SocketAddr;
use std::time::Duration;

use cluster_tests::measure;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;

const NODES: usize = 3;

fn main() {
    let mut words = std::env::args().skip(1).peekable();
    let with_haproxy = words.next_if(|word| word == "haproxy").is_some();
    let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
    let keys = usize::try_from(numbers.get(1).copied().unwrap_or(100_000)).expect("a number of keys");
    let length = Duration::from_secs(numbers.get(2).copied().unwrap_or(20));
    let rate = numbers.first().copied();
    if with_haproxy { haproxies::run(rate, keys, length) } else { programs::run(rate, keys, length) }
}

/// Three nodes that listen for HAProxy on these addresses, and know each other.
fn nodes(listen: &[SocketAddr]) -> Vec<Node> {
    let start = |(config, listen): (NodeConfig, &SocketAddr)| {
        let config = config.set("haproxy.peers.listen", listen.to_string()).set("haproxy.peers.bans_table", "");
        config.set("log.level", "warn").start()
    };
    let nodes: Vec<Node> = NodeConfig::cluster(listen.len()).into_iter().zip(listen).map(start).collect();
    for node in &nodes {
        wait::until("all nodes know each other", wait::SOON, || {
            node.admin().ready_members().is_ok_and(|members| members.len() == listen.len())
        });
    }
    nodes
}

/// The bytes of gossip that all nodes have sent, and their processor time.
fn used(nodes: &mut [Node]) -> (f64, Duration) {
    let bytes = |node: &Node| node.admin().metric("banmesh_cluster_datagram_bytes_sent_total").unwrap_or_default();
    (nodes.iter().map(bytes).sum(), nodes.iter_mut().map(measure::processor_time).sum())
}

/// The memory of the node that has the most.
fn largest(nodes: &mut [Node]) -> u64 {
    nodes.iter_mut().map(measure::memory).max().unwrap_or_default()
}
