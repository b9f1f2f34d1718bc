//! Clocks that are wrong by much.

use std::time::Duration;

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::mesh::{Mesh, address, wait_until_equal};
use cluster_tests::wait;

const EQUAL: Duration = Duration::from_secs(5);

#[test]
fn entries_from_a_fast_clock_raise_an_alarm_and_wait_until_it_is_corrected() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    clock.set_ahead(600);
    let Some(mesh) = Mesh::start_with(3, |index, config| if index == 2 { clock.wind(config) } else { config }) else {
        return;
    };
    let (good, ahead) = (&mesh.nodes[..2], &mesh.nodes[2]);
    for node in good {
        wait::until("the alarm", wait::SOON, || {
            node.admin().metric("banmesh_cluster_skewed_nodes").is_ok_and(|nodes| nodes >= 1.0)
        });
        wait::until("the log says whose clock", wait::SOON, || {
            node.log().lines().any(|line| line.contains("ERROR") && line.contains("clock") && line.contains("n3"))
        });
    }
    // Its entries wait, and do not hide entries of the others for the same target.
    let (theirs, ours, both) = (address(1), address(2), address(3));
    ahead.admin().ban(theirs).unwrap();
    ahead.admin().ban(both).unwrap();
    good[0].admin().ban(ours).unwrap();
    good[0].admin().ban(both).unwrap();
    mesh.wait_for(ours, true);
    mesh.wait_for(both, true);
    assert!(ahead.is_banned(theirs).unwrap());
    for node in good {
        wait::until("what the wrong clock stamped waits", wait::SOON, || {
            node.admin().metric("banmesh_table_early_entries").is_ok_and(|entries| entries >= 1.0)
        });
        assert!(!node.is_banned(theirs).unwrap(), "a stamp ten minutes ahead is not believed yet");
    }
    good[1].admin().unban(ours).unwrap();
    mesh.wait_for(ours, false);
    // The two nodes with correct clocks stay equal.
    for number in 100..150 {
        good[number as usize % 2].admin().ban(address(number)).unwrap();
    }
    let (took, _) = wait_until_equal(&[&good[0], &good[1]], EQUAL);
    println!("mesh: beside a node ten minutes ahead, the others are equal after {took:?}");
    mesh.wait_for(address(149), true);
}

#[test]
fn a_clock_that_jumps_back_loses_no_ban_and_keeps_the_order() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    clock.set_ahead(5);
    let Some(mesh) = Mesh::start_with(3, |index, config| if index == 0 { clock.wind(config) } else { config }) else {
        return;
    };
    let jumper = &mesh.nodes[0];
    let (early, unbanned) = (address(1), address(2));
    jumper.admin().ban(early).unwrap();
    jumper.admin().ban(unbanned).unwrap();
    mesh.wait_for(unbanned, true);
    // Ten seconds back: by this clock its own bans are in the future.
    clock.set_ahead(-5);
    jumper.admin().unban(unbanned).unwrap();
    mesh.wait_for(unbanned, false);
    for number in 100..120 {
        jumper.admin().ban(address(number)).unwrap();
        mesh.nodes[1].wait_for(address(number), true);
        mesh.nodes[1].admin().unban(address(number)).unwrap();
        jumper.wait_for(address(number), false);
        jumper.admin().ban(address(number)).unwrap();
    }
    mesh.wait_for(address(119), true);
    let (took, table) = mesh.wait_until_equal(EQUAL);
    println!("mesh: after a clock jumped back, equal after {took:?}");
    assert_eq!(table[&unbanned.to_string()]["state"], "unbanned");
    assert!((100..120).all(|number| table[&address(number).to_string()]["state"] == "banned"));
    mesh.wait_for(early, true);
    // Ten minutes back, while everything runs on.
    clock.set_ahead(-600);
    jumper.admin().ban(address(200)).unwrap();
    mesh.wait_for(address(200), true);
    // Bans end at a time of day. A ban of five minutes by this clock has already expired on the others.
    jumper.fail_logins(address(201), 6);
    jumper.wait_for(address(201), true);
    let (_, table) = mesh.wait_until_equal(EQUAL);
    assert!(table.contains_key(&address(201).to_string()));
    assert!(!mesh.nodes[1].is_banned(address(201)).unwrap());
}

#[test]
fn a_node_with_a_clock_an_hour_off_is_isolated_until_it_is_corrected() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    let Some(mesh) = Mesh::start_with(3, |index, config| if index == 0 { clock.wind(config) } else { config }) else {
        return;
    };
    let jumper = &mesh.nodes[0];
    jumper.admin().ban(address(1)).unwrap();
    mesh.wait_for(address(1), true);
    // Beyond the time within which a node accepts datagrams as not replayed.
    clock.set_ahead(-3600);
    mesh.wait_until_these_are_joined(&[1, 2]);
    for (node, reason) in [(jumper, "from the future"), (&mesh.nodes[1], "too old")] {
        let name = format!("banmesh_cluster_datagrams_dropped_total{{reason=\"{reason}\"}}");
        wait::until(reason, wait::SOON, || node.admin().metric(&name).unwrap() > 0.0);
        wait::until("the log names the clocks", wait::SOON, || node.log().contains("compare the clocks"));
    }
    // Both sides keep working. A ban of an hour by this clock would have expired on the others.
    jumper.admin().ban_for(address(2), "3h").unwrap();
    mesh.nodes[1].admin().ban(address(3)).unwrap();
    mesh.nodes[2].wait_for(address(3), true);
    assert!(jumper.is_banned(address(2)).unwrap() && jumper.is_banned(address(1)).unwrap());
    clock.set_ahead(0);
    let (took, table) = mesh.wait_until_equal(EQUAL);
    println!("mesh: after a clock was an hour off, equal after {took:?}");
    assert_eq!(table.len(), 3);
    mesh.wait_for(address(2), true);
    mesh.wait_for(address(3), true);
}
