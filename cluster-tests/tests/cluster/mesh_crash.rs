//! Nodes that are killed: every node has the acknowledged changes afterwards.

use std::net::IpAddr;
use std::time::Duration;

use cluster_tests::mesh::Mesh;
use cluster_tests::traffic::Banner;
use cluster_tests::wait;

/// Within this all tables are equal after a node is back.
const EQUAL: Duration = Duration::from_secs(20);

#[test]
fn acknowledged_bans_survive_a_kill_under_load() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let mut acknowledged: Vec<IpAddr> = Vec::new();
    for round in 0..3 {
        let victim = round as usize;
        // Several at a time, so that one commit acknowledges several.
        let banners: Vec<Banner> = (0..4)
            .map(|lane| {
                let first = 100_000 * round + 20_000 * lane;
                Banner::start(vec![mesh.nodes[victim].admin()], first, Duration::ZERO)
            })
            .collect();
        let count = || banners.iter().map(|banner| banner.acknowledged().lock().unwrap().len()).sum::<usize>();
        wait::until("bans are being acknowledged", wait::SOON, || count() > 200);
        mesh.nodes[victim].kill();
        let (mut here, mut refused) = (Vec::<IpAddr>::new(), 0);
        for banner in banners {
            let (targets, unanswered) = banner.finish();
            refused += unanswered;
            here.extend(targets);
        }
        // Not each of them: one may have stopped between two bans.
        assert!(refused > 0, "it was killed while bans were asked for");
        mesh.nodes[victim].restart();
        // Immediately, from its own journal.
        let own = mesh.nodes[victim].admin().table().unwrap();
        let missing: Vec<_> = here.iter().filter(|target| !own.contains_key(&target.to_string())).collect();
        assert!(missing.is_empty(), "{} of {} acknowledged bans are missing: {missing:?}", missing.len(), here.len());
        acknowledged.extend(here);
        let (took, table) = mesh.wait_until_equal(EQUAL);
        println!(
            "mesh: n{} killed under load, {} acknowledged in all, {} entries equal after {took:?}",
            victim + 1,
            acknowledged.len(),
            table.len()
        );
        for target in &acknowledged {
            assert_eq!(table.get(&target.to_string()).map(|entry| &entry["state"]), Some(&"banned".into()), "{target}");
        }
    }
    for node in &mesh.nodes {
        let mut agent = node.connect().unwrap();
        assert!(acknowledged.iter().all(|target| agent.is_banned(*target).unwrap()));
    }
}
