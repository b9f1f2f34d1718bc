//! Offences that HAProxy counts in a stick-table (`haproxy.peers.report_tables`): they lead to a ban on every node, without a query.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::site::{BANNED_IN_TABLE, peers_config};
use cluster_tests::{client, wait, with_every_haproxy};

const GUESSER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const FORGETFUL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    failed_logins_that_haproxy_counts_lead_to_a_ban_on_every_node,
    the_generated_configuration_counts_offences,
);

/// A HAProxy whose server answers `/login` with 401.
fn edge(binary: &Binary, banmesh: SocketAddr, http: SocketAddr) -> HaProxy {
    let server = loopback_port();
    let tables = "table bans type ipv6 size 1k expire 24d store gpt0
    table failed type ipv6 size 1k expire 1h store gpc0";
    let rules = format!(
        "{BANNED_IN_TABLE}
    http-response track-sc1 src,ipmask(32,64) table mesh/failed if {{ status 401 }}
    http-response sc-inc-gpc0(1) if {{ status 401 }}
    default_backend web
backend web
    server web {server}
frontend server
    bind {server}
    http-request return status 401 if {{ path /login }}
    http-request return status 200"
    );
    binary.start(peers_config(banmesh, http, tables, &rules))
}

fn login(from: IpAddr, to: SocketAddr) -> u16 {
    client::Http::connect(from, to).unwrap().request("GET", "/login", &[], "").unwrap().status
}

fn counted(node: &Node) -> f64 {
    node.admin().metric("banmesh_peers_reports_total{outcome=\"taken\"}").unwrap_or_default()
}

fn has_session(node: &Node) {
    wait::until("HAProxy has all bans", wait::SOON, || {
        let status = node.admin().get("/status").unwrap_or_default();
        let places = status["places"].as_array().cloned().unwrap_or_default();
        places.iter().any(|place| place["name"] == "haproxy peer lb1" && place["state"] == "current")
    });
}

fn failed_logins_that_haproxy_counts_lead_to_a_ban_on_every_node(binary: &Binary) {
    let peers: Vec<SocketAddr> = (0..2).map(|_| loopback_port()).collect();
    let config = |(config, listen): (NodeConfig, &SocketAddr)| {
        let config = config.set("haproxy.peers.listen", listen.to_string());
        config.set("haproxy.peers.report_tables", vec!["failed"]).set("ban.max_attempts", 5).start()
    };
    let mut nodes: Vec<Node> = NodeConfig::cluster(2).into_iter().zip(&peers).map(config).collect();
    let https: Vec<SocketAddr> = peers.iter().map(|_| loopback_port()).collect();
    let edges: Vec<HaProxy> = peers.iter().zip(&https).map(|(listen, http)| edge(binary, *listen, *http)).collect();
    nodes.iter().for_each(has_session);
    for attempt in 1..=4 {
        assert_eq!(login(GUESSER, https[0]), 401);
        wait::until("the attempt is counted", wait::SOON, || counted(&nodes[0]) == f64::from(attempt));
    }
    assert_eq!(client::status(GUESSER, https[0]), 200, "four attempts are too few, and this is none");
    assert_eq!(login(GUESSER, https[0]), 401);
    for http in &https {
        wait::until("the client is refused", wait::SOON, || client::status(GUESSER, *http) == 403);
        assert_eq!(client::status(FORGETFUL, *http), 200);
    }
    assert_eq!((counted(&nodes[0]), counted(&nodes[1])), (5.0, 0.0));
    let why = nodes[0].cli(&["why", &GUESSER.to_string()]);
    assert!(why.contains("haproxy") && why.contains("failed"), "{why}");
    // A node that starts again does not count again what HAProxy still has.
    for _ in 0..4 {
        assert_eq!(login(FORGETFUL, https[0]), 401);
    }
    wait::until("the attempts are counted", wait::SOON, || counted(&nodes[0]) == 9.0);
    nodes[0].stop();
    nodes[0].restart();
    has_session(&nodes[0]);
    wait::until("HAProxy has sent its entries", wait::SOON, || {
        nodes[0].admin().metric("banmesh_peers_updates_received_total").is_ok_and(|updates| updates >= 2.0)
    });
    assert_eq!(counted(&nodes[0]), 0.0);
    assert_eq!(login(FORGETFUL, https[0]), 401);
    wait::until("the new attempt is counted", wait::SOON, || counted(&nodes[0]) == 1.0);
    drop(edges);
}

/// HAProxy accepts what `banmesh haproxy config` prints for `report_tables`, and `banmesh haproxy check` finds nothing wrong with it.
fn the_generated_configuration_counts_offences(binary_of_haproxy: &Binary) {
    let folder = tempfile::tempdir().unwrap();
    let [settings, file] = ["banmesh.yaml", "haproxy.cfg"].map(|name| folder.path().join(name));
    let peers = "haproxy: { peers: { listen: 127.0.0.1:10002, report_tables: [failed, probes, scans] } }\n";
    std::fs::write(&settings, peers).unwrap();
    let banmesh = |arguments: &[&str]| {
        let output = Command::new(binary()).arg("--config").arg(&settings).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for mode in ["http", "tcp"] {
        let arguments = ["haproxy", "config", "--peers", "--limit", "100/10s", "--mode", mode, "--part", "complete"];
        let text = banmesh(&arguments);
        let counts = mode == "http";
        for table in ["failed", "probes"] {
            assert_eq!(text.contains(&format!("table {table} type ipv6")), counts, "{text}");
        }
        assert_eq!(text.contains("http-response sc-inc-gpc0(2) if"), counts, "{text}");
        assert!(text.contains(if counts { ": scans." } else { ": failed, probes, scans." }), "{text}");
        let local = text.replace("    user haproxy\n    group haproxy\n", "").replace("/dev/log", "stdout format raw");
        let output = binary_of_haproxy.check(&Config::own(&local));
        assert!(output.status.success(), "{mode}: {output:?}");
        std::fs::write(&file, text).unwrap();
        banmesh(&["haproxy", "check", "--strict", file.to_str().unwrap()]);
    }
}
