//! Network partitions: both sides keep working, and are equal shortly after the partition heals.

use std::net::IpAddr;
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};

/// Within this all tables are equal after a cut heals.
const HEALED: Duration = Duration::from_secs(5);

#[test]
fn both_sides_of_a_partition_keep_working_and_converge_afterwards() {
    let Some(mesh) = Mesh::start(5) else { return };
    let (left, right) = (&mesh.nodes[0].admin(), &mesh.nodes[3].admin());
    let both: Vec<IpAddr> = (0..200).map(address).collect();
    left.ban_many(both.iter().copied()).unwrap();
    mesh.wait_until_equal(HEALED);

    mesh.partition(&[&[0, 1], &[2, 3, 4]]);
    mesh.wait_until_these_are_joined(&[0, 1]);
    mesh.wait_until_these_are_joined(&[2, 3, 4]);
    for number in 0..100 {
        left.ban(address(1000 + number)).unwrap();
        right.ban(address(2000 + number)).unwrap();
        left.unban(both[number as usize]).unwrap();
        right.unban(both[100 + number as usize]).unwrap();
    }
    // Targets about which both sides decide: the later decision wins.
    for number in 0..50 {
        let target = address(3000 + number);
        left.ban_for(target, "1h").unwrap();
        std::thread::sleep(Duration::from_millis(3));
        right.ban_for(target, "2h").unwrap();
        if number % 2 == 0 {
            // Decisions of both sides within the same millisecond are concurrent. Then every node chooses the same one, but not
            // necessarily the later one.
            std::thread::sleep(Duration::from_millis(3));
            left.unban(target).unwrap();
        }
    }
    assert!(mesh.nodes[1].is_banned(address(1000)).unwrap());
    assert!(!mesh.nodes[4].is_banned(address(1000)).unwrap());

    // For a longer partition: `MESH_CUT_SECONDS=180 cargo test -p cluster-tests --test cluster mesh_partition::both_sides`.
    let longer = std::env::var("MESH_CUT_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    std::thread::sleep(Duration::from_secs(longer));
    mesh.heal();
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: five nodes in two parts healed, {} entries equal after {took:?}", table.len());
    assert_eq!(table.len(), 450);
    let state = |number: u32| table[&address(number).to_string()]["state"].as_str().unwrap().to_owned();
    assert!((0..200).all(|number| state(number) == "unbanned"));
    assert!((1000..1100).chain(2000..2100).all(|number| state(number) == "banned"));
    for number in 0..50 {
        assert_eq!(state(3000 + number), if number % 2 == 0 { "unbanned" } else { "banned" });
    }
    mesh.wait_until_joined();
}

#[test]
fn a_node_with_a_pulled_cable_converges_when_it_is_back() {
    let Some(mesh) = Mesh::start(3) else { return };
    mesh.hosts[2].cut();
    mesh.wait_until_these_are_joined(&[0, 1]);
    for number in 0..50 {
        mesh.nodes[0].admin().ban(address(number)).unwrap();
        mesh.nodes[2].admin().ban(address(100 + number)).unwrap();
    }
    assert!(mesh.nodes[2].is_banned(address(100)).unwrap(), "a node alone answers and bans");
    mesh.hosts[2].join();
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: cable back, equal after {took:?}");
    assert_eq!(table.len(), 100);
}

#[test]
fn a_one_way_network_loses_no_changes() {
    let Some(mesh) = Mesh::start(3) else { return };
    // The third node receives nothing; the others receive its messages.
    mesh.hosts[2].deafen(&mesh.hosts[..2]);
    for number in 0..50 {
        for (index, node) in (0..).zip(&mesh.nodes) {
            node.admin().ban(address(1000 * index + number)).unwrap();
        }
    }
    // The other two are not affected.
    mesh.nodes[1].wait_for(address(49), true);
    mesh.nodes[0].wait_for(address(1049), true);
    assert!(!mesh.nodes[2].is_banned(address(0)).unwrap(), "it is deaf");
    mesh.heal();
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: a node that received nothing is connected again, equal after {took:?}");
    assert_eq!(table.len(), 150);

    // Now it receives all messages, but the others receive none of its messages.
    for host in &mesh.hosts[..2] {
        host.deafen([&mesh.hosts[2]]);
    }
    mesh.nodes[2].admin().ban(address(5000)).unwrap();
    mesh.nodes[0].admin().ban(address(5001)).unwrap();
    mesh.nodes[1].wait_for(address(5001), true);
    assert!(!mesh.nodes[0].is_banned(address(5000)).unwrap(), "it is mute");
    mesh.heal();
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: a node that sent nothing is connected again, equal after {took:?}");
    assert_eq!(table.len(), 152);
}

#[test]
fn a_node_that_reaches_only_one_peer_receives_all_changes() {
    let Some(mesh) = Mesh::start(4) else { return };
    // n4 exchanges messages only with n3.
    mesh.hosts[3].deafen(&mesh.hosts[..2]);
    mesh.hosts[0].deafen([&mesh.hosts[3]]);
    mesh.hosts[1].deafen([&mesh.hosts[3]]);
    for number in 0..20 {
        mesh.nodes[0].admin().ban(address(number)).unwrap();
        mesh.nodes[3].admin().ban(address(100 + number)).unwrap();
    }
    // Through n3, while the partition lasts.
    println!("mesh: the far node has the near one's bans after {:?}", mesh.wait_for(address(19), true));
    println!("mesh: the near nodes have the far one's bans after {:?}", mesh.wait_for(address(119), true));
    let (took, table) = mesh.wait_until_equal(HEALED);
    println!("mesh: with one peer only, equal after {took:?}");
    assert_eq!(table.len(), 40);
    mesh.nodes[1].admin().unban(address(100)).unwrap();
    println!("mesh: an unban arrived after {:?}", mesh.wait_for(address(100), false));
}
