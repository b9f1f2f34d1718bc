//! Every node answers a ban that one node made, and any node can unban.

use std::time::Duration;

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::wait;

/// Within this all tables are equal after a cut heals.
const HEALED: Duration = Duration::from_secs(5);

#[test]
fn bans_and_unbans_on_any_node_reach_all_nodes() {
    let Some(mesh) = Mesh::start(3) else { return };
    for (number, node) in (0..).zip(&mesh.nodes) {
        let target = address(number);
        node.admin().ban(target).unwrap();
        println!("mesh: ban by n{}, answered by all after {:?}", number + 1, mesh.wait_for(target, true));
        let other = &mesh.nodes[(number as usize + 1) % 3];
        other.admin().unban(target).unwrap();
        println!("mesh: unbanned by another node, answered by all after {:?}", mesh.wait_for(target, false));
    }
    // A ban from log lines, which is not acknowledged to anyone.
    let attacker = address(100);
    mesh.nodes[1].ban_by_log(attacker);
    mesh.wait_for(attacker, true);
    for node in &mesh.nodes {
        let admin = node.admin();
        assert_eq!(admin.get("/cluster").unwrap()["encrypted"], true);
        assert_eq!(admin.metric("banmesh_cluster_datagrams_dropped").unwrap(), 0.0);
    }
}

#[test]
fn an_unban_wins_over_an_older_ban_that_arrives_again() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let (target, probe) = (address(1), address(2));
    mesh.nodes[0].admin().ban(target).unwrap();
    mesh.wait_for(target, true);
    // The third node has the ban, also on disk, but not the unban.
    mesh.partition(&[&[0, 1], &[2]]);
    mesh.nodes[1].admin().unban(target).unwrap();
    for node in &mesh.nodes[..2] {
        node.wait_for(target, false);
    }
    mesh.nodes[2].kill();
    mesh.nodes[2].restart();
    assert!(mesh.nodes[2].is_banned(target).unwrap());
    mesh.heal();
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: an unban and an older ban met, equal after {took:?}");
    assert_eq!(table[&target.to_string()]["state"], "unbanned");
    mesh.wait_for(target, false);
    // A later ban is not a redelivery.
    mesh.nodes[2].admin().ban(probe).unwrap();
    mesh.wait_for(probe, true);
    assert!(mesh.nodes.iter().all(|node| !node.is_banned(target).unwrap()));
}

#[test]
fn an_unban_by_a_node_with_a_slow_clock_wins_everywhere() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    clock.set_ahead(-5);
    let Some(mesh) = Mesh::start_with(3, |index, config| if index == 2 { clock.wind(config) } else { config }) else {
        return;
    };
    let behind = &mesh.nodes[2];
    wait::until("n1 sees that n3's clock is behind", wait::SOON, || {
        let view = mesh.nodes[0].admin().get("/cluster").unwrap();
        let offset = view["members"].as_array().unwrap().iter().find(|member| member["id"] == "n3").unwrap();
        offset["clock_offset_ms"].as_i64().is_some_and(|offset| (-6000..-4000).contains(&offset))
    });
    for number in 0..20 {
        let target = address(number);
        mesh.nodes[0].admin().ban(target).unwrap();
        behind.wait_for(target, true);
        behind.admin().unban(target).unwrap();
        assert!(!behind.is_banned(target).unwrap());
        mesh.wait_for(target, false);
    }
    let (_, table) = mesh.wait_until_equal(HEALED);
    assert!(table.values().all(|entry| entry["state"] == "unbanned"), "{table:#?}");
    // The other way round: the node with the slow clock bans what another node has just unbanned.
    behind.admin().ban(address(1)).unwrap();
    mesh.wait_for(address(1), true);
}
