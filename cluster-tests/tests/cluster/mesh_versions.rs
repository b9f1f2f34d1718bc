//! Two builds in one cluster: the version rules of docs/upgrade.md, on real processes.

use std::path::Path;
use std::time::Duration;

use cluster_tests::mesh::address;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;
use serde_json::Value;

/// Starts two nodes of the build under test and one of the other build, on loopback.
fn two_and_another(other: &str) -> (Vec<Node>, Node) {
    let mut configs = NodeConfig::cluster(3);
    for (number, config) in (1..).zip(&mut configs) {
        *config = config.clone().set("node.id", format!("n{number}")).set("spoa.drain", "200ms");
    }
    let another = configs.pop().unwrap().set("node.id", "other").environment("OTHER_BUILD", other);
    let another = another.program(Path::new(env!("CARGO_BIN_EXE_other_build")));
    let nodes: Vec<Node> = configs.into_iter().map(NodeConfig::start).collect();
    (nodes, another.start())
}

/// What `node` shows of the member `id`.
fn member(node: &Node, id: &str) -> Option<Value> {
    let view = node.admin().get("/cluster").ok()?;
    view["members"].as_array()?.iter().find(|member| member["id"] == id).cloned()
}

fn wait_until_member(node: &Node, id: &str) -> Value {
    wait::until_some(&format!("{id} is a member"), wait::SOON, || {
        member(node, id).filter(|member| member["version"].is_string() && member["state"] == "ready")
    })
}

fn metric(node: &Node, name: &str) -> f64 {
    node.admin().metric(name).unwrap_or_default()
}

#[test]
fn an_older_and_a_newer_build_work_together() {
    let (nodes, newer) = two_and_another("newer");
    for node in &nodes {
        let seen = wait_until_member(node, "other");
        assert_eq!((&seen["version"], &seen["shares_wire_version"]), (&Value::from("99.0.0"), &Value::from(true)));
    }
    for id in ["n1", "n2"] {
        wait_until_member(&newer, id);
    }
    let all: Vec<&Node> = nodes.iter().chain([&newer]).collect();
    for (number, author) in (0..).zip(&all) {
        let (ban, unban) = (address(number * 2), address(number * 2 + 1));
        author.admin().ban(ban).unwrap();
        author.admin().ban(unban).unwrap();
        for node in &all {
            node.wait_for(unban, true);
        }
        all[(number as usize + 1) % 3].admin().unban(unban).unwrap();
        for node in &all {
            node.wait_for(ban, true);
            node.wait_for(unban, false);
        }
    }
    cluster_tests::mesh::wait_until_equal(&all, Duration::from_secs(20));
    // The new kind of record was skipped and counted, and nothing else was refused.
    for node in &nodes {
        let unknown = || metric(node, "banmesh_cluster_records_refused_total{reason=\"unknown kind\"}");
        wait::until("unknown kinds are counted", wait::SOON, || unknown() > 0.0);
        for reason in ["refused", "malformed", "malformed batch"] {
            assert_eq!(metric(node, &format!("banmesh_cluster_records_refused_total{{reason=\"{reason}\"}}")), 0.0);
        }
        assert_eq!(metric(node, "banmesh_cluster_incompatible_nodes"), 0.0);
        assert!(!node.cli(&["cluster", "status"]).contains("shares no wire version"));
    }
}

#[test]
fn an_older_build_repairs_by_whole_buckets_and_newer_ones_by_differences() {
    let (mut nodes, mut older) = two_and_another("older");
    for node in &nodes {
        wait_until_member(node, "other");
    }
    let limit = Duration::from_secs(20);
    nodes[0].admin().ban_many((0..8000).map(address)).unwrap();
    cluster_tests::mesh::wait_until_equal(&[&nodes[0], &nodes[1], &older], limit);
    older.stop();
    nodes[1].stop();
    nodes[0].admin().ban_many((8000..8400).map(address)).unwrap();
    // After its restart the recent-changes log is empty, so that only repairs can bring the new bans.
    nodes[0].stop();
    nodes[0].restart();
    older.restart();
    cluster_tests::mesh::wait_until_equal(&[&nodes[0], &older], limit);
    let methods =
        |node: &Node, method| metric(node, &format!("banmesh_cluster_repair_methods_total{{method=\"{method}\"}}"));
    assert!(methods(&older, "buckets") >= 1.0);
    assert_eq!(methods(&older, "symbols"), 0.0);
    older.stop();
    nodes[1].restart();
    cluster_tests::mesh::wait_until_equal(&[&nodes[0], &nodes[1]], limit);
    assert!(methods(&nodes[1], "symbols") >= 1.0);
    assert_eq!(methods(&nodes[1], "buckets"), 0.0);
}

#[test]
fn an_older_build_skips_records_of_evidence_and_bans_as_before() {
    let (nodes, older) = two_and_another("older");
    let all = [&nodes[0], &nodes[1], &older];
    for node in &nodes {
        wait_until_member(node, "other");
    }
    let login = |address: std::net::IpAddr| {
        format!(
            "<22>dovecot: imap-login: Login: user=<anna@example.org>, method=PLAIN, rip={address}, lip=192.0.2.1, mpid=7, TLS, \
             session=<q1w2e3r4>"
        )
    };
    cluster_tests::syslog::send_udp(nodes[0].syslog(), [login(address(1)).as_str()]);
    // The newer builds share the login, and the older one skips it.
    for node in &nodes {
        wait::until("the login is known", wait::SOON, || {
            node.admin().get("/evidence/names/anna@example.org").is_ok_and(|view| view["last_login"].is_string())
        });
    }
    let unknown = || metric(&older, "banmesh_cluster_records_refused_total{reason=\"unknown kind\"}");
    wait::until("unknown kinds are counted", wait::SOON, || unknown() > 0.0);
    for reason in ["refused", "malformed", "malformed batch"] {
        assert_eq!(metric(&older, &format!("banmesh_cluster_records_refused_total{{reason=\"{reason}\"}}")), 0.0);
    }
    // Failures count over all builds, and bans of each reach the others.
    for (number, author) in (10..).zip(all) {
        author.ban_by_log(address(number));
    }
    let spread = address(20);
    for author in [0, 1, 2, 0, 1, 2] {
        all[author].fail_logins(spread, 1);
    }
    for node in all {
        for number in [10, 11, 12, 20] {
            node.wait_for(address(number), true);
        }
    }
    cluster_tests::mesh::wait_until_equal(&all, Duration::from_secs(20));
}

#[test]
fn builds_without_a_common_wire_version_report_that_bans_do_not_replicate() {
    let (nodes, apart) = two_and_another("apart");
    for (node, peer) in [(&nodes[0], "other"), (&nodes[1], "other"), (&apart, "n1"), (&apart, "n2")] {
        let seen = wait_until_member(node, peer);
        assert_eq!(seen["shares_wire_version"], false, "{seen}");
        wait::until("it is counted", wait::SOON, || metric(node, "banmesh_cluster_incompatible_nodes") > 0.0);
        wait::until("it is logged", wait::SOON, || {
            node.log().lines().any(|line| line.contains("shares no wire version") && line.contains(peer))
        });
        let status = node.cli(&["cluster", "status"]);
        let line = status.lines().find(|line| line.starts_with(&format!("{peer} (build")));
        let line = line.unwrap_or_else(|| panic!("status does not name {peer}:\n{status}"));
        assert!(
            line.contains("bans do not replicate") && line.contains("Upgrade the node with the older build"),
            "{line}"
        );
    }
    nodes[0].admin().ban(address(0)).unwrap();
    nodes[1].wait_for(address(0), true);
    apart.admin().ban(address(1)).unwrap();
    apart.wait_for(address(1), true);
    // The receiver counts the changes that it refuses.
    for node in [&nodes[0], &nodes[1], &apart] {
        let refused = || metric(node, "banmesh_cluster_records_refused_total{reason=\"another version\"}");
        wait::until("refused batches are counted", wait::SOON, || refused() > 0.0);
    }
    assert!(!apart.is_banned(address(0)).unwrap());
    assert!(nodes.iter().all(|node| !node.is_banned(address(1)).unwrap()));
    // Each side keeps working.
    nodes[1].admin().unban(address(0)).unwrap();
    nodes[0].wait_for(address(0), false);
}
