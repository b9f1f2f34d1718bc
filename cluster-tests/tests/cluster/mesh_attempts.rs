//! Failures are counted across the cluster.

use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::wait;

#[test]
fn failures_spread_over_five_nodes_add_up_and_partitions_count_separately() {
    let Some(mesh) = Mesh::start_with(5, |_, config| config.set("ban.max_attempts", 5)) else { return };
    let (spread, few, cut) = (address(1), address(2), address(3));
    for node in &mesh.nodes[..4] {
        node.fail_logins(few, 1);
    }
    for node in &mesh.nodes {
        node.fail_logins(spread, 1);
    }
    println!("mesh: one failure on each of five nodes, banned by all after {:?}", mesh.wait_for(spread, true));
    assert!(mesh.nodes.iter().all(|node| !node.is_banned(few).unwrap()), "four failures are no ban");

    // Two partitions with four failures each do not count together.
    mesh.partition(&[&[0, 1], &[2, 3, 4]]);
    mesh.wait_until_these_are_joined(&[0, 1]);
    mesh.wait_until_these_are_joined(&[2, 3, 4]);
    for index in [0, 0, 1, 1, 2, 3, 4, 4] {
        mesh.nodes[index].fail_logins(cut, 1);
    }
    // The counts of a partition arrive together with those of a source that is banned there.
    let (left, right) = (address(4), address(5));
    for index in [0, 1, 0, 1, 0] {
        mesh.nodes[index].fail_logins(left, 1);
    }
    for index in [2, 3, 4, 2, 3] {
        mesh.nodes[index].fail_logins(right, 1);
    }
    let banned = |index: usize, target| mesh.nodes[index].is_banned(target).unwrap();
    wait::until("each part has banned its own", wait::SOON, || {
        (0..2).all(|index| banned(index, left)) && (2..5).all(|index| banned(index, right))
    });
    assert!((0..5).all(|index| !banned(index, cut)), "each part has counted four");
    assert!((0..2).all(|index| !banned(index, right)) && (2..5).all(|index| !banned(index, left)));
    // The fifth failure in one partition leads to a ban there.
    mesh.nodes[2].fail_logins(cut, 1);
    wait::until("the part with five failures bans", wait::SOON, || (2..5).all(|index| banned(index, cut)));
    assert!((0..2).all(|index| !banned(index, cut)));
    mesh.heal();
    let (took, table) = mesh.wait_until_equal(Duration::from_secs(5));
    println!("mesh: two parts healed, equal after {took:?}");
    assert_eq!(table.len(), 4, "{table:#?}");
    assert!((0..5).all(|index| banned(index, cut) && banned(index, left) && banned(index, right)));
    assert!(!table.contains_key(&few.to_string()));
}

/// The attempts that led to a ban on another node counted again after the ban: the next attempt there banned at once.
#[test]
fn after_an_unban_every_node_counts_from_zero() {
    let Some(mesh) = Mesh::start_with(3, |_, config| config.set("ban.max_attempts", 5)) else { return };
    for round in 0..3 {
        let target = address(10 + round);
        mesh.nodes[0].fail_logins(target, 5);
        mesh.wait_for(target, true);
        mesh.nodes[0].cli(&["unban", &target.to_string()]);
        mesh.wait_for(target, false);
        mesh.nodes[1].fail_logins(target, 4);
        wait::until("node 1 has counted four", wait::SOON, || {
            let why = mesh.nodes[1].admin().get(&format!("/why/{target}")).unwrap();
            why["attempts"].as_array().unwrap().iter().any(|attempts| attempts["own"] == 4)
        });
        assert!(mesh.nodes.iter().all(|node| !node.is_banned(target).unwrap()), "four failures since the unban");
        mesh.nodes[1].fail_logins(target, 1);
        mesh.wait_for(target, true);
    }
}
