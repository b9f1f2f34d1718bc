//! Key rotation while the cluster runs.

use std::net::IpAddr;
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address, new_key};
use cluster_tests::traffic::Banner;

#[test]
fn keys_are_rotated_without_a_restart_or_a_lost_ban() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let admins = mesh.nodes.iter().map(|node| node.admin()).collect();
    let banner = Banner::start(admins, 0, Duration::from_millis(10));
    let old = mesh.keyring().keys().remove(0);
    let new = new_key();
    let mut number = 10_000;
    let mut propagates = |mesh: &Mesh| {
        number += 1;
        mesh.nodes[number as usize % 3].admin().ban(address(number)).unwrap();
        mesh.wait_for(address(number), true)
    };
    let keys = |mesh: &Mesh| -> Vec<String> {
        let all = mesh.nodes.iter().map(|node| node.admin().get("/cluster").unwrap()["keys"].to_string());
        all.collect()
    };
    let before = keys(&mesh);
    for (step, ring) in [
        ("the new key opens", [old.as_str(), &new].as_slice()),
        ("the new key seals", &[&new, &old]),
        ("the old key is gone", &[&new]),
    ] {
        mesh.keyring().write(ring);
        // One node after the other, so that in between some are a step ahead.
        mesh.reload_all();
        println!("mesh: {step}: a ban is answered by all after {:?}", propagates(&mesh));
    }
    let after = keys(&mesh);
    assert!(after.iter().all(|keys| *keys == after[0] && *keys != before[0]), "{before:?} {after:?}");
    let (acknowledged, refused) = banner.finish();
    assert_eq!(refused, 0);
    let (_, table) = mesh.wait_until_equal(Duration::from_secs(5));
    let missing: Vec<&IpAddr> = acknowledged.iter().filter(|target| !table.contains_key(&target.to_string())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for node in &mesh.nodes {
        let dropped = node.admin().metric_lines("banmesh_cluster_datagrams_dropped").unwrap();
        let lost = dropped.iter().filter(|line| !line.contains("our own") && !line.ends_with(" 0"));
        assert_eq!(lost.count(), 0, "no datagram was dropped for its key: {dropped:?}");
    }

    // A node with only the old key cannot join, and receives nothing.
    let stranger = mesh.add_host();
    mesh.keyring().write(&[&old]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old");
    std::fs::copy(mesh.keyring().path(), &file).unwrap();
    mesh.keyring().write(&[&new]);
    let config = mesh.config(stranger).set("cluster.secret_file", file.to_string_lossy().into_owned());
    let outside = config.set("cluster.join_timeout", "1s").start_in(Some(&mesh.hosts[stranger].namespace));
    outside.admin().ban(address(20_000)).unwrap();
    propagates(&mesh);
    cluster_tests::wait::until("the stranger's datagrams are counted", cluster_tests::wait::SOON, || {
        mesh.nodes[0].admin().metric("banmesh_cluster_datagrams_dropped_total{reason=\"unknown key\"}").unwrap() > 0.0
    });
    assert_eq!(outside.admin().table().unwrap().len(), 1);
    assert!(mesh.nodes.iter().all(|node| !node.is_banned(address(20_000)).unwrap()));
}
