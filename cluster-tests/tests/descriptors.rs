//! A node that may open no more files: it goes on answering who is connected, counts what it could not accept, and accepts
//! again as soon as it can.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Command;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{in_ci, spop, wait};

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Allows the node so many descriptors from now on; those it has it keeps.
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
    node.cli(&["ban", &BANNED.to_string()]);
    let mut connected = node.connect().unwrap();
    assert_eq!(accept_errors(&node), 0);
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.process().id())).unwrap().count();
    // Room for a few more connections, less than are made.
    limit(&mut node, &format!("{0}:4096", open + 4));
    let mut more: Vec<spop::Connection> = Vec::new();
    let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(node.spoa()).unwrap()).collect();
    wait::until("it says so", wait::SOON, || node.log().contains("cannot accept a connection of HAProxy"));
    for _ in 0..20 {
        assert!(connected.is_banned(BANNED).unwrap(), "who is connected is answered");
    }
    // Nothing new is possible before somebody goes.
    assert!(node.connect().is_err());
    drop(waiting);
    wait::until("it accepts again", wait::SOON, || {
        more.extend(node.connect());
        !more.is_empty()
    });
    assert!(more[0].is_banned(BANNED).unwrap() && connected.is_banned(BANNED).unwrap());
    // The limit is lifted while nobody goes.
    let held: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(node.spoa()).unwrap()).collect();
    limit(&mut node, "4096:4096");
    wait::until("it accepts again", wait::SOON, || node.is_banned(BANNED).is_ok());
    drop(held);
    let errors = accept_errors(&node);
    println!("descriptors: {errors} errors counted");
    assert!(errors >= 2);
    // It does not try as fast as it can: 20 ms, and twice as long each time, up to a second.
    assert!(errors < 500, "{errors}");
    node.process().assert_running();
}
