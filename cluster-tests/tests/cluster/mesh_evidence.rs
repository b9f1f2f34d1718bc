//! Evidence on real nodes that are cut off from each other, have wrong clocks, and restart.

use std::time::Duration;

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::Node;
use cluster_tests::{syslog, wait};
use serde_json::Value;

/// Nodes compare their evidence once a minute, and send what others lack a minute later.
const COMPARED: Duration = Duration::from_secs(240);
/// Accounts that log in, and a name that nobody uses.
const NAMES: [&str; 3] = ["ann", "bob", "oracle"];

/// Lines about `account` from `sources`: logins, or failures.
fn log(node: &Node, account: &str, logins: bool, sources: std::ops::Range<u32>) {
    let what = if logins { "Accepted" } else { "Failed" };
    let line = |n| format!("<38>sshd[{n}]: {what} password for {account} from {} port 40000 ssh2", address(n));
    let lines: Vec<String> = sources.map(line).collect();
    node.on_its_host(|| syslog::send_udp(node.syslog(), lines.iter().map(String::as_str)));
}

fn about(node: &Node, name: &str) -> Value {
    let mut about = node.admin().get(&format!("/evidence/names/{name}")).unwrap();
    for list in ["homes", "tried_by"] {
        about[list].as_array_mut().unwrap().sort_by_key(|seen| seen["target"].to_string());
    }
    about
}

fn homes(node: &Node, name: &str) -> usize {
    about(node, name)["homes"].as_array().unwrap().len()
}

fn wait_until_equal(nodes: &[Node]) {
    wait::until("all nodes know the same", COMPARED, || {
        let known = |node| NAMES.map(|name| about(node, name));
        nodes.iter().all(|node| known(node) == known(&nodes[0]))
    });
}

#[test]
fn evidence_of_both_sides_of_a_partition_is_on_all_nodes_afterwards_and_survives_a_kill() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    // Half of what `cluster.max_clock_drift` allows.
    clock.set_ahead(5);
    let started = Mesh::start_with(3, |index, config| if index == 2 { clock.wind(config) } else { config });
    let Some(mut mesh) = started else { return };
    mesh.partition(&[&[0], &[1, 2]]);
    mesh.wait_until_these_are_joined(&[0]);
    mesh.wait_until_these_are_joined(&[1, 2]);
    log(&mesh.nodes[0], "ann", true, 10..12);
    log(&mesh.nodes[0], "oracle", false, 100..102);
    log(&mesh.nodes[2], "bob", true, 20..23);
    log(&mesh.nodes[2], "oracle", false, 200..203);
    wait::until("each side knows its own", wait::SOON, || {
        homes(&mesh.nodes[0], "ann") == 2 && homes(&mesh.nodes[1], "bob") == 3
    });
    assert_eq!(
        (homes(&mesh.nodes[0], "bob"), homes(&mesh.nodes[1], "ann")),
        (0, 0),
        "the other side knows nothing of it"
    );

    mesh.heal();
    wait_until_equal(&mesh.nodes);
    assert_eq!((homes(&mesh.nodes[1], "ann"), homes(&mesh.nodes[0], "bob")), (2, 3));
    assert!(!about(&mesh.nodes[0], "oracle")["tried_by"].as_array().unwrap().is_empty());

    // What a killed node had not yet written, the others send again.
    mesh.nodes[1].restart();
    wait_until_equal(&mesh.nodes);
    assert_eq!((homes(&mesh.nodes[1], "ann"), homes(&mesh.nodes[1], "bob")), (2, 3));
}
