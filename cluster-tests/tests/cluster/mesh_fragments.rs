//! Paths that drop the fragments of IP packets, or all of UDP in one direction.

use std::time::{Duration, Instant};

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::spop::Connection;
use cluster_tests::wait;

/// Longer than a ban takes by gossip, and much shorter than a repair that waits for tables to differ (2 s).
const AT_ONCE: Duration = Duration::from_millis(700);

/// The time of each of `count` bans, one after the other, until all nodes have it. Each node is asked over one connection, because a new
/// connection for each question would take longer than a ban.
fn single_bans(mesh: &Mesh, first: u32, count: u32) -> Vec<Duration> {
    let mut agents: Vec<Connection> = mesh.nodes.iter().map(|node| node.connect().unwrap()).collect();
    let mut times: Vec<Duration> = (first..first + count)
        .map(|number| {
            mesh.nodes[0].admin().ban(address(number)).unwrap();
            let start = Instant::now();
            for agent in &mut agents {
                while !agent.is_banned(address(number)).unwrap() {
                    assert!(start.elapsed() < wait::SOON, "{} is not banned", address(number));
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

/// Addresses without order: what compresses well would fit into fewer packets.
fn scattered(number: u32) -> std::net::IpAddr {
    address(number.wrapping_mul(2_654_435_761) >> 9)
}

/// The middle of `times`: one slow answer on a busy machine does not matter, but a path that is always slow does.
fn middle(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

#[test]
fn a_burst_does_not_slow_later_bans_where_fragments_are_dropped() {
    let Some(mesh) = Mesh::start_with(3, |_, config| config.set("ban.max_attempts", 3)) else { return };
    mesh.hosts.iter().for_each(cluster_tests::netns::Host::drop_fragments);
    let before = single_bans(&mesh, 0, 10);
    for (round, size) in [500, 5_000].into_iter().enumerate() {
        let first = 10_000 * (u32::try_from(round).unwrap() + 1);
        mesh.nodes[0].admin().ban_many((first..first + size).map(scattered)).unwrap();
        let (took, _) = mesh.wait_until_equal(Duration::from_secs(20));
        let after = single_bans(&mesh, 1_000 * (u32::try_from(round).unwrap() + 1), 20);
        println!(
            "mesh: fragments dropped, single bans {:?} before, {:?} (at most {:?}) after a burst of {size} that took {took:?}",
            middle(&before),
            middle(&after),
            after.last().unwrap()
        );
        assert!(middle(&after) < AT_ONCE, "single bans after a burst of {size}: {after:?}");
    }
    // Three failures on three nodes are one attacker.
    let attacker = address(500_000);
    for node in &mesh.nodes {
        node.fail_logins(attacker, 1);
    }
    println!(
        "mesh: fragments dropped, one failure on each node, banned by all after {:?}",
        mesh.wait_for(attacker, true)
    );
    for node in &mesh.nodes {
        assert_eq!(node.admin().metric("banmesh_cluster_datagrams_dropped").unwrap(), 0.0);
    }
}

#[test]
fn a_node_that_receives_no_datagrams_of_a_peer_gets_bans_and_attempts_by_tcp_and_is_reported() {
    let Some(mesh) = Mesh::start_with(3, |_, config| config.set("ban.max_attempts", 2)) else { return };
    // The third node still relays the membership.
    mesh.hosts[1].drop_udp_from(&mesh.hosts[0]);
    let times = single_bans(&mesh, 0, 20);
    println!("mesh: no UDP from n1 to n2, single bans {:?}, at most {:?}", middle(&times), times.last().unwrap());
    assert!(middle(&times) < AT_ONCE, "{times:?}");
    let attacker = address(500);
    mesh.nodes[0].fail_logins(attacker, 1);
    mesh.nodes[1].fail_logins(attacker, 1);
    mesh.wait_for(attacker, true);
    let problem = || mesh.nodes[0].cli(&["status"]);
    wait::until("n1 reports that n2 does not receive its datagrams", wait::SOON, || {
        single_bans(&mesh, 600, 1);
        problem().contains("n2 (10.77.0.2:12350) is reachable by TCP, but datagrams to it are lost")
    });
    wait::until("it is counted", wait::SOON, || {
        mesh.nodes[0].admin().metric("banmesh_cluster_unfollowed_nodes").unwrap_or_default() > 0.0
    });
}
