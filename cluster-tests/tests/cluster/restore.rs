//! Backup and restore as in docs/operations.md: a lost disk, a lost cluster, and bans that were unbanned by mistake.

use std::io::Write as _;
use std::process::{Command, Stdio};

use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::{mesh, wait};
use serde_json::Value;

/// Runs a command that needs no node.
fn store(arguments: &[&str]) {
    let output = Command::new(binary()).arg("store").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn lose_the_disk(node: &Node) {
    let folder = node.data_dir();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
}

fn digest(node: &Node) -> String {
    node.admin().digest().map(|(digest, _)| digest).unwrap_or_default()
}

#[test]
fn lost_disks_lost_clusters_and_mistaken_unbans_are_restored() {
    let named = |(number, config): (usize, NodeConfig)| config.set("node.id", format!("n{}", number + 1)).start();
    let mut nodes: Vec<Node> = NodeConfig::cluster(3).into_iter().enumerate().map(named).collect();
    let together = |nodes: &[Node]| {
        for node in nodes {
            wait::until("three nodes are ready", wait::SOON, || {
                node.admin().ready_members().is_ok_and(|all| all.len() == 3)
            });
        }
    };
    together(&nodes);
    nodes[0].admin().ban_many((0..500).map(mesh::address)).unwrap();
    nodes[1].cli(&["ban", "2001:db8:bad::/48", "--permanent", "--reason", "keep"]);
    nodes[2].cli(&["unban", &mesh::address(7).to_string(), "--reason", "ours"]);
    nodes[0].cli(&["allow", "203.0.113.0/28", "--reason", "a partner"]);
    let same = |nodes: &[Node]| {
        wait::until("all have the same table", wait::SOON, || {
            let first = digest(&nodes[0]);
            nodes.iter().all(|node| digest(node) == first)
        });
        digest(&nodes[0])
    };
    let table = same(&nodes);

    // A node that has lost its disk is ready once it has the bans of the others.
    nodes[2].stop();
    lose_the_disk(&nodes[2]);
    nodes[2].restart();
    wait::until("it is ready", wait::SOON, || nodes[2].admin().is_ready());
    assert_eq!(digest(&nodes[2]), table, "what it had is there again");
    for node in &nodes {
        // The earlier run of the node is no longer listed.
        wait::until("each node is listed once", wait::SOON, || {
            let view = node.admin().get("/cluster").unwrap();
            let mut ids: Vec<String> =
                view["members"].as_array().unwrap().iter().map(|member| member["id"].to_string()).collect();
            ids.sort();
            ids == ["\"n1\"", "\"n2\"", "\"n3\""]
        });
    }

    // All nodes are lost.
    let bans = nodes[0].cli(&["list", "--json"]);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("bans.jsonl").to_string_lossy().into_owned();
    nodes[1].stop();
    store(&["export", &nodes[1].data_dir().to_string_lossy(), "--output", &copy]);
    for node in &mut nodes {
        node.kill();
        lose_the_disk(node);
    }
    store(&["import", &nodes[0].data_dir().to_string_lossy(), "--input", &copy]);
    nodes[0].restart();
    wait::until("it is ready alone", wait::SOON, || nodes[0].admin().is_ready());
    nodes[1].restart();
    nodes[2].restart();
    together(&nodes);
    assert_eq!(same(&nodes), table, "including the unban and the allowlist entry");

    // After mistaken unbans, restoring a backup changes nothing; the list bans the addresses again.
    nodes[0].cli(&["purge", "--permanent", "--yes"]);
    nodes[1].stop();
    store(&["import", &nodes[1].data_dir().to_string_lossy(), "--input", &copy]);
    nodes[1].restart();
    together(&nodes);
    same(&nodes);
    assert_eq!(nodes[1].admin().get("/status").unwrap()["active_bans"], 0, "an unban wins over an old copy");
    let targets: String = bans
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|ban| format!("{}\n", ban["target"].as_str().unwrap()))
        .collect();
    let mut again = Command::new(binary())
        .arg("--config")
        .arg(nodes[1].config_file())
        .args(["ban", "--file", "-", "--for", "1d", "--reason", "lifted by mistake"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    again.stdin.take().unwrap().write_all(targets.as_bytes()).unwrap();
    let output = again.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"banned 500 of 500"), "{output:?}");
    same(&nodes);
    assert_eq!(nodes[2].admin().get("/status").unwrap()["active_bans"], 500);
}
