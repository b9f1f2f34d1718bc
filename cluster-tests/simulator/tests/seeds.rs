//! Runs whole clusters in simulation: one seed twice, the seeds that once found a bug, and as many seeds from 1000 on as
//! `SIMULATOR_SEEDS` says. Always the same seeds run, however busy the machine is, so the outcome does not depend on it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use simulator::batch::Batch;
use simulator::world::Report;

/// Seeds that found a bug in the node or in the simulator, which is fixed, with the bug.
const FOUND: [(u64, &str); 6] = [
    (7, "after the clock was set back, bans that were in force again were not enforced"),
    (130, "two nodes that were named to each other only by short ids never met"),
    (131, "a process stamped a decision as its predecessor had stamped one that its disk did not take"),
    (298, "the counters of a node that lost its disk after its clock was set back were ignored"),
    (1513, "a clock that was set while its node started was not noticed, so bans in force again were not enforced"),
    (20_290, "the oracle took a ban for an old one that was asked for last, at a node whose clock was behind"),
];

/// How many seeds run without `SIMULATOR_SEEDS`: about a minute of processor time in a debug build.
const SEEDS: u64 = 20;

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_simulate"))
}

fn run(seed: u64) -> Report {
    let output = Command::new(program()).args(["--seed", &seed.to_string(), "--json"]).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program().display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("seed {seed}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_seed_gives_the_same_trace_every_time() {
    for seed in [11, 12, 13, 14] {
        let (first, second) = (run(seed), run(seed));
        assert!(first.events > 500, "seed {seed} has only {} events", first.events);
        assert_eq!((first.trace, first.events), (second.trace, second.events), "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
    assert_ne!(run(11).trace, run(12).trace);
}

#[test]
fn seeds_that_found_a_bug_pass() {
    for (seed, bug) in FOUND {
        assert_eq!(run(seed).violation, None, "seed {seed}: {bug}");
    }
}

/// Found by a seed: HAProxy was told that nobody was banned, while `banmesh list` showed the bans.
#[test]
fn bans_are_enforced_again_after_the_clock_was_set_back() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(simulator::clock_set_back(directory.path()), Ok(()));
}

#[test]
fn a_joining_node_receives_the_bans_of_a_node_that_died_an_hour_ago() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(simulator::late_node(directory.path()), Ok(()));
}

#[test]
fn decisions_hold_in_all_sites_at_once_and_a_death_is_noticed_in_its_site() {
    let directory = tempfile::tempdir().unwrap();
    let quiet = simulator::quiet(9, 3, Duration::from_secs(60), directory.path(), || Duration::ZERO).unwrap();
    // From one site over the hub to the third.
    assert!(quiet.spread.iter().all(|time| *time < Duration::from_millis(500)), "{quiet:?}");
    assert_eq!(quiet.noticed.len(), 2, "{quiet:?}");
    // A comparison per minute and other site, besides the gossip.
    assert!(quiet.most_bytes < 60 * 5_000, "{quiet:?}");
}

#[test]
fn no_seed_violates_anything() {
    let seeds = std::env::var("SIMULATOR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let batch = Batch {
        program: program(),
        first: 1000,
        seeds,
        time: Duration::MAX,
        jobs: 1,
        plant: None,
        until_failure: false,
    };
    let mut failures = Vec::new();
    let outcome =
        batch.run(|seed, violation| failures.push(format!("{violation}\n    {}", batch.command(seed)))).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(outcome.seeds, seeds);
}
