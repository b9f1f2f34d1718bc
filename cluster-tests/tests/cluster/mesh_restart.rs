//! Clusters that are stopped, started, and restarted under traffic.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::traffic::{Banner, Checker};
use cluster_tests::wait;

const EQUAL: Duration = Duration::from_secs(20);

#[test]
fn every_ban_survives_a_cluster_restart_and_a_power_failure() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let targets: Vec<IpAddr> = (0..300).map(address).collect();
    for (part, node) in targets.chunks(100).zip(&mesh.nodes) {
        node.admin().ban_many(part.iter().copied()).unwrap();
    }
    let (unbanned, remaining) = targets.split_first().unwrap();
    mesh.nodes[2].wait_for(*unbanned, true);
    mesh.nodes[2].admin().unban(*unbanned).unwrap();
    let (_, before) = mesh.wait_until_equal(EQUAL);

    mesh.nodes.iter_mut().for_each(|node| node.stop());
    mesh.nodes.iter_mut().for_each(|node| node.restart());
    mesh.wait_until_joined();
    let (_, after) = mesh.wait_until_equal(EQUAL);
    assert_eq!(before, after);

    // A power failure: all nodes at once, with a ban that was just acknowledged.
    let last = address(1000);
    mesh.nodes[1].admin().ban(last).unwrap();
    mesh.nodes.iter_mut().for_each(|node| node.kill());
    mesh.nodes.iter_mut().for_each(|node| node.restart());
    mesh.wait_until_joined();
    let (_, after) = mesh.wait_until_equal(EQUAL);
    assert_eq!(after.len(), before.len() + 1);
    for node in &mesh.nodes {
        let mut agent = node.connect().unwrap();
        assert!(remaining.iter().chain([&last]).all(|target| agent.is_banned(*target).unwrap()));
        assert!(!agent.is_banned(*unbanned).unwrap());
    }
}

#[test]
fn a_rolling_restart_under_traffic_causes_no_wrong_answer() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let admins = mesh.nodes.iter().map(|node| node.admin()).collect();
    let banner = Banner::start(admins, 0, Duration::from_millis(5));
    // A ban reaches every node within milliseconds; a second allows for a busy machine.
    let age = Duration::from_secs(1);
    let checkers: Vec<Checker> =
        mesh.nodes.iter().map(|node| Checker::start(node, banner.acknowledged(), age)).collect();
    std::thread::sleep(Duration::from_secs(1));
    for index in 0..3 {
        let start = Instant::now();
        mesh.nodes[index].stop();
        let stopped = start.elapsed();
        mesh.nodes[index].restart();
        let admin = mesh.nodes[index].admin();
        wait::until("the node is ready again", wait::SOON, || admin.is_ready());
        println!("mesh: n{} stopped in {stopped:?}, ready again after {:?}", index + 1, start.elapsed());
        mesh.wait_until_joined();
    }
    std::thread::sleep(Duration::from_secs(1));
    let answers: Vec<_> = checkers.into_iter().map(Checker::finish).collect();
    let (acknowledged, refused) = banner.finish();
    println!("mesh: rolling restart, {} bans acknowledged, {refused} not", acknowledged.len());
    for (number, answers) in (1..).zip(&answers) {
        println!("mesh: rolling restart, n{number}: {answers:?}");
        assert_eq!((answers.let_in, answers.kept_out), (0, 0), "n{number}");
        assert!(answers.asked > 50, "n{number} was asked all the time");
    }
    let (_, table) = mesh.wait_until_equal(EQUAL);
    assert!(acknowledged.iter().all(|target| table.contains_key(&target.to_string())));
}

#[test]
fn a_stopping_node_sends_all_acknowledged_changes() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let leaving = mesh.nodes[0].admin();
    let banners: Vec<Banner> =
        (0..4).map(|lane| Banner::start(vec![leaving.clone()], 20_000 * lane, Duration::ZERO)).collect();
    let count = || banners.iter().map(|banner| banner.acknowledged().lock().unwrap().len()).sum::<usize>();
    wait::until("bans are being acknowledged", wait::SOON, || count() > 100);
    mesh.nodes[0].stop();
    let acknowledged: Vec<IpAddr> = banners.into_iter().flat_map(|banner| banner.finish().0).collect();
    // The node does not come back, but its last ban must have arrived.
    for node in &mesh.nodes[1..] {
        let mut agent = node.connect().unwrap();
        wait::until("the others have all of them", wait::SOON, || {
            acknowledged.iter().all(|target| agent.is_banned(*target).unwrap())
        });
    }
    println!("mesh: a node stopped under load, its {} acknowledged bans are with the others", acknowledged.len());
}
