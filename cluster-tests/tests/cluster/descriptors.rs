//! A node that cannot open more files keeps answering existing connections, counts the connections that it cannot accept, and accepts
//! again as soon as possible.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{in_ci, spop, wait};

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Limits the number of the node's descriptors. Open ones stay open.
fn limit(node: &mut Node, descriptors: &str) {
    let id = node.process().id().to_string();
    let output = Command::new("prlimit").args(["--pid", &id, &format!("--nofile={descriptors}")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn accept_errors(node: &Node) -> u64 {
    let answer = node.admin().request("GET", "/metrics", None).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    text.lines().find_map(|line| line.strip_prefix("banmesh_spoa_accept_errors_total ")).unwrap().parse().unwrap()
}

#[test]
fn the_agent_keeps_answering_without_free_descriptors_and_recovers() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        assert!(!in_ci(), "prlimit (util-linux) must not be missing in CI");
        eprintln!("skipped: there is no prlimit (util-linux)");
        return;
    }
    let mut node = NodeConfig::new().set("spoa.max_clients", 1000).start();
    node.cli(&["ban", "--force", &BANNED.to_string()]);
    let mut connected = node.connect().unwrap();
    assert_eq!(accept_errors(&node), 0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.process().id())).unwrap().count();
    // Allow a few more connections, but fewer than are made.
    limit(&mut node, &format!("{0}:4096", open + 4));
    let mut more: Vec<spop::Connection> = Vec::new();
    let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(node.spoa()).unwrap()).collect();
    wait::until("it says so", wait::SOON, || node.log().contains("cannot accept a connection of HAProxy"));
    for _ in 0..20 {
        assert!(connected.is_banned(BANNED).unwrap(), "existing connections are answered");
    }
    // No connection is accepted before one is closed.
    assert!(spop::Connection::open_within(node.spoa(), Duration::from_secs(1)).is_err());
    drop(waiting);
    wait::until("it accepts again", wait::SOON, || {
        more.extend(node.connect());
        !more.is_empty()
    });
    assert!(more[0].is_banned(BANNED).unwrap() && connected.is_banned(BANNED).unwrap());
    // The limit is raised while no connection is closed.
    let held: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(node.spoa()).unwrap()).collect();
    limit(&mut node, "4096:4096");
    wait::until("it accepts again", wait::SOON, || node.is_banned(BANNED).is_ok());
    drop(held);
    let errors = accept_errors(&node);
    println!("descriptors: {errors} errors counted");
    assert!(errors >= 2);
    // It retries after 20 ms, and doubles the pause up to a second.
    assert!(errors < 500, "{errors}");
    node.process().assert_running();
}
