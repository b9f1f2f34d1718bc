//! A node that joins a cluster with many bans.

use std::time::Duration;

use cluster_tests::measure;
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::wait;

#[test]
fn a_node_joins_a_hundred_thousand_bans_without_delaying_lookups() {
    let Some(join) = measure::join(100_000, Duration::from_secs(60)) else { return };
    println!("{join}");
    assert!(join.received < 100_000 * 200, "{} bytes", join.received);
    // A lookup never waits for other work; here it may wait for a processor.
    assert!(join.old_node.at(0.5) < Duration::from_millis(50), "{join}");
}

#[test]
fn a_node_without_reachable_peers_answers_from_its_journal() {
    let Some(mut mesh) = Mesh::start_with(2, |_, config| config.set("cluster.join_timeout", "2s")) else { return };
    mesh.nodes[0].admin().ban(address(1)).unwrap();
    mesh.wait_for(address(1), true);
    mesh.nodes[0].kill();
    mesh.nodes[1].stop();
    mesh.nodes[1].restart();
    assert!(mesh.nodes[1].is_banned(address(1)).unwrap(), "at once");
    let admin = mesh.nodes[1].admin();
    wait::until("ready alone", wait::SOON, || admin.is_ready());
    // Its peer comes back later, and receives the bans made meanwhile.
    admin.ban(address(2)).unwrap();
    mesh.nodes[0].restart();
    mesh.wait_until_joined();
    let (_, table) = mesh.wait_until_equal(Duration::from_secs(5));
    assert_eq!(table.len(), 2);
    mesh.wait_for(address(2), true);
}
