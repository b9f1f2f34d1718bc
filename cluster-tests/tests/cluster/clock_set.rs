//! The wall clock of a running node is set, and corrected.

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;

const TARGET: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";

/// How long the ban of `target` still lasts, in seconds, as the node lists it.
fn remaining(node: &Node, target: &str) -> u64 {
    let listing = node.cli(&["list", "--json"]);
    let mut bans = listing.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    bans.find(|ban| ban["target"] == target).unwrap()["remaining_seconds"].as_u64().unwrap()
}

#[test]
fn a_ban_made_in_the_wrong_hour_ends_on_time_once_the_clock_is_corrected() {
    let Some(clock) = WrongClock::new(Moves::TimeOfDay) else { return };
    let node = clock.wind(NodeConfig::new()).start();
    let set =
        |text: &str| node.log().lines().any(|line| line.contains("clock of this node was set") && line.contains(text));
    node.cli(&["ban", OTHER, "--for", "1h"]);
    clock.set_ahead(2 * 3600);
    wait::until("the log says that the clock went forward", wait::SOON, || set("direction=\"forward\""));
    node.cli(&["ban", TARGET, "--for", "5m"]);
    assert!((1..=300).contains(&remaining(&node, TARGET)));
    clock.set_ahead(0);
    wait::until("the log says that the clock went back", wait::SOON, || set("direction=\"back\""));
    assert!(node.cli(&["status"]).contains("set back by"), "{}", node.cli(&["status"]));
    let left = remaining(&node, TARGET);
    assert!((1..=300).contains(&left), "a ban of five minutes still lasts {left} s");
    assert!(node.is_banned(TARGET.parse().unwrap()).unwrap());
    assert!(
        node.is_banned(OTHER.parse().unwrap()).unwrap(),
        "a ban from before is in force in spite of the wrong hour"
    );
}
