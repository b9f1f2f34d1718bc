//! A host without a key cannot harm a cluster, whatever it sends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cluster_tests::hostile::{Capture, Flood, flood, pester};
use cluster_tests::mesh::{Keyring, Mesh, PORT, address};
use cluster_tests::wait;

/// Datagrams per second.
const RATE: u32 = 10_000;
const LENGTH: Duration = Duration::from_secs(2);

#[test]
fn hostile_datagrams_are_counted_and_change_nothing() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let attacker = mesh.add_host();
    let capture = Capture::start(&mesh.hosts[0], PORT);
    for number in 0..50 {
        mesh.nodes[1].admin().ban(address(number)).unwrap();
    }
    mesh.wait_for(address(49), true);
    // Datagrams to replay later: bans that have been unbanned since.
    for number in 0..50 {
        mesh.nodes[2].admin().unban(address(number)).unwrap();
    }
    mesh.wait_for(address(49), false);
    let recorded = capture.finish();
    assert!(recorded.len() > 20, "{} datagrams were recorded", recorded.len());
    let (_, before) = mesh.wait_until_equal(Duration::from_secs(5));

    let to = SocketAddr::new(mesh.hosts[0].address, PORT);
    let admin = mesh.nodes[0].admin();
    let dropped = || admin.metric("banmesh_cluster_datagrams_dropped_total").unwrap();
    for kind in [Flood::Random, Flood::Truncated, Flood::Damaged, Flood::Replayed] {
        let counted = dropped();
        let (sent, slowest) = std::thread::scope(|scope| {
            let flood =
                scope.spawn(|| mesh.hosts[attacker].enter(|| flood(to, kind, &recorded, RATE, LENGTH).unwrap()));
            let mut slowest = Duration::ZERO;
            // Meanwhile the attacked node sends and receives bans and unbans.
            for (number, author) in (0..10).zip([0, 1].into_iter().cycle()) {
                let target = address(1000 + number);
                let start = Instant::now();
                mesh.nodes[author].admin().ban(target).unwrap();
                mesh.wait_for(target, true);
                mesh.nodes[1 - author].admin().unban(target).unwrap();
                mesh.wait_for(target, false);
                slowest = slowest.max(start.elapsed());
            }
            (flood.join().unwrap(), slowest)
        });
        wait::until("the datagrams are counted", wait::SOON, || dropped() > counted);
        println!(
            "mesh: {kind:?}: {sent} datagrams sent, {} counted; slowest ban and unban {slowest:?}",
            dropped() - counted
        );
    }
    println!("mesh: {:#?}", admin.metric_lines("banmesh_cluster_datagrams_dropped_total").unwrap());
    for reason in ["not authentic", "replayed", "truncated"] {
        let name = format!("banmesh_cluster_datagrams_dropped_total{{reason=\"{reason}\"}}");
        // Datagrams of an earlier flood may still wait in the socket of a slow machine, before those of the last one.
        wait::until(reason, wait::SOON, || admin.metric(&name).is_ok_and(|count| count > 0.0));
    }
    mesh.wait_until_joined();
    let (_, after) = mesh.wait_until_equal(Duration::from_secs(5));
    assert!(before.iter().all(|(target, entry)| after.get(target) == Some(entry)), "nothing was changed by it");
    assert_eq!(after.len(), before.len() + 10);
    // The log is not flooded either.
    assert!(mesh.nodes[0].log().lines().filter(|line| line.contains("dropped a gossip datagram")).count() < 20);
}

#[test]
fn repair_works_despite_hostile_connections() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let attacker = mesh.add_host();
    mesh.hosts[2].cut();
    mesh.wait_until_these_are_joined(&[0, 1]);
    let to = SocketAddr::new(mesh.hosts[0].address, PORT);
    // More than the node accepts at once; half of them stay open.
    let open = mesh.hosts[attacker].enter(|| pester(to, 300).unwrap());
    mesh.nodes[0].admin().ban_many((0..5000).map(address)).unwrap();
    mesh.wait_until_these_are_joined(&[0, 1]);
    mesh.hosts[2].join();
    let (took, table) = mesh.wait_until_equal(Duration::from_secs(15));
    println!("mesh: beside {} hostile connections, 5000 bans repaired after {took:?}", open.len());
    assert_eq!(table.len(), 5000);
    let admin = mesh.nodes[0].admin();
    wait::until("the connections are counted", wait::SOON, || {
        admin.metric("banmesh_cluster_connections_dropped_total").unwrap() > 0.0
    });
    println!("mesh: {:#?}", admin.metric_lines("banmesh_cluster_connections_dropped_total").unwrap());
    drop(open);
    // A node joins meanwhile.
    let open = mesh.hosts[attacker].enter(|| pester(to, 100).unwrap());
    mesh.nodes[1].admin().ban(address(9000)).unwrap();
    mesh.wait_for(address(9000), true);
    mesh.nodes[2].process().assert_running();
    drop(open);
}

#[test]
fn nodes_with_another_key_or_cluster_name_cannot_join() {
    let Some(mut mesh) = Mesh::start(2) else { return };
    let other_key = Keyring::new();
    let places = [mesh.add_host(), mesh.add_host(), mesh.add_host()];
    let key = other_key.path().to_string_lossy().into_owned();
    let configs = [
        mesh.config(places[0]).set("cluster.secret_file", key),
        mesh.config(places[1]).set("cluster.name", "another"),
        mesh.config(places[2]).set("cluster.secret_file", "").set("cluster.insecure", true),
    ];
    mesh.nodes[0].admin().ban(address(1)).unwrap();
    let strangers: Vec<_> = configs
        .into_iter()
        .zip(places)
        .map(|(config, place)| config.start_in(Some(&mesh.hosts[place].namespace)))
        .collect();
    for (number, stranger) in (0..).zip(&strangers) {
        stranger.admin().ban(address(100 + number)).unwrap();
        wait::until("the stranger says that its key differs, and is not ready", wait::SOON, || {
            let status = stranger.admin().get("/status").map(|status| status.to_string()).unwrap_or_default();
            !stranger.admin().is_ready()
                && status.contains("a key that the other nodes accept")
                && status.contains("because its key differs from theirs")
        });
    }
    let admin = mesh.nodes[0].admin();
    for reason in ["unknown key", "wrong cluster", "not encrypted"] {
        let name = format!("banmesh_cluster_datagrams_dropped_total{{reason=\"{reason}\"}}");
        wait::until(reason, wait::SOON, || admin.metric(&name).unwrap() > 0.0);
    }
    mesh.wait_until_joined();
    for (number, stranger) in (0..).zip(&strangers) {
        assert!(mesh.nodes.iter().all(|node| !node.is_banned(address(100 + number)).unwrap()));
        assert!(!stranger.is_banned(address(1)).unwrap());
        assert_eq!(stranger.admin().table().unwrap().len(), 1);
    }
    mesh.nodes[1].admin().ban(address(2)).unwrap();
    mesh.wait_for(address(2), true);
}
