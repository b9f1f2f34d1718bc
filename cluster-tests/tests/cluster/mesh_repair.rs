//! What a repair between two real nodes costs.

use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::Node;

fn metric(node: &Node, name: &str) -> f64 {
    node.admin().metric(&format!("banmesh_cluster_{name}")).unwrap_or_default()
}

#[test]
fn a_thousand_differences_cost_little_more_than_their_records() {
    const SHARED: u32 = 30_000;
    const NEW: u32 = 1000;
    let Some(mut mesh) = Mesh::start(2) else { return };
    mesh.nodes[0].admin().ban_many((0..SHARED).map(address)).unwrap();
    mesh.wait_until_equal(Duration::from_secs(60));
    mesh.nodes[1].stop();
    mesh.nodes[0].admin().ban_many((SHARED..SHARED + NEW).map(address)).unwrap();
    // After its restart the recent-changes log is empty, so that only a repair can bring the new bans.
    mesh.nodes[0].stop();
    mesh.nodes[0].restart();
    mesh.nodes[1].restart();
    mesh.wait_until_joined();
    let (_, table) = mesh.wait_until_equal(Duration::from_secs(60));
    assert_eq!(table.len(), (SHARED + NEW) as usize);
    let node = &mesh.nodes[1];
    let methods = |method: &str| metric(node, &format!("repair_methods_total{{method=\"{method}\"}}"));
    assert!(methods("symbols") >= 1.0);
    assert_eq!((methods("buckets"), methods("undecoded")), (0.0, 0.0));
    let bytes = metric(node, "repair_sent_bytes_total") + metric(node, "repair_received_bytes_total");
    let repairs = methods("symbols") + methods("equal");
    println!("repair: {NEW} differences in {SHARED} entries: {bytes} bytes in {repairs} repairs");
    assert!(bytes / repairs <= 150_000.0, "{bytes} bytes in {repairs} repairs");
}
