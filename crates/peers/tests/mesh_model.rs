//! Nodes with a HAProxy each, and a network that loses, repeats, delays and reorders datagrams and is cut at times. The nodes' clocks are
//! apart and do not run equally fast; HAProxy processes and nodes restart. The oracle knows only who counted what, and when.
//!
//! A world follows from its seed. `BANMESH_PEERS_WORLDS=1000` runs more worlds, and `BANMESH_SEED=7` begins with another seed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation)]

mod model;

use model::{DELAY, KEYS, PERIOD, RARE, World};

/// The time in which things happen, and the time in which the network is whole and nothing is counted, in milliseconds.
const LIVELY: u64 = 60_000;
const QUIET: u64 = 70_000;
const STEP: u64 = 10;

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn sums_never_exceed_what_was_counted_and_converge() {
    let first = number_of("BANMESH_SEED").unwrap_or(1);
    for seed in first..first + number_of("BANMESH_PEERS_WORLDS").unwrap_or(16) {
        let mut world = World::new(seed);
        let mut before = vec![[0; KEYS as usize]; world.nodes.len()];
        while world.time < LIVELY {
            world.disturb();
            world.count();
            world.advance(STEP);
            if world.time.is_multiple_of(100) {
                nothing_exceeds(&world);
                no_count_falls(&world, &mut before);
            }
        }
        world.heal();
        // So that all rates are above 0. The rare key must arrive by repetition alone.
        world.count_everything();
        let lively = world.time;
        while world.time < lively + 2000 {
            world.advance(STEP);
        }
        rates_are_near(&world);
        while world.time < lively + QUIET {
            world.advance(STEP);
            if world.time.is_multiple_of(1000) {
                nothing_exceeds(&world);
            }
        }
        counts_are_exact(&world);
    }
}

/// No node, and no HAProxy, has a sum that is greater than what was counted.
fn nothing_exceeds(world: &World) {
    let (seed, time) = (world.seed, world.time);
    // Clocks differ by up to 0.1 %. A state is as old as it is late, and the windows of a rate that was given back, or summed up for
    // another HAProxy, may turn one period later than those of its parts.
    let reach = 3 * PERIOD + PERIOD / 100 + 2 * DELAY;
    for (at, node) in world.nodes.iter().enumerate() {
        for key in 0..KEYS {
            let (all, recent) = (world.counted(key, None, 0), world.counted(key, None, time.saturating_sub(reach)));
            let sum = node.sum_of_all(key, time);
            assert!(sum.count <= all, "seed {seed}, {time} ms: node {at} has {} of {all} for key {key}", sum.count);
            assert!(sum.rate <= recent, "seed {seed}, {time} ms: node {at} has a rate of {} of {recent}", sum.rate);
            let others = world.counted(key, Some(at), 0);
            let recent = world.counted(key, Some(at), time.saturating_sub(reach));
            let sum = node.haproxy.others(key, node.clock(time));
            assert!(sum.count <= others, "seed {seed}, {time} ms: HAProxy {at} has {} of {others}", sum.count);
            assert!(sum.rate <= recent, "seed {seed}, {time} ms: HAProxy {at} has a rate of {} of {recent}", sum.rate);
        }
        if world.has_been_alone(at) {
            for key in 0..KEYS {
                let (sum, own) = (node.sum_of_all(key, time), node.haproxy.connections(key));
                assert!(sum.connections <= own, "seed {seed}, {time} ms: node {at} is cut off");
            }
        }
    }
}

/// Late states do not replace later ones.
fn no_count_falls(world: &World, before: &mut [[u64; KEYS as usize]]) {
    for (at, node) in world.nodes.iter().enumerate().filter(|_| world.is_calm) {
        for (key, before) in (0..KEYS).zip(&mut before[at]) {
            let count = node.sum_of_all(key, world.time).count;
            assert!(count >= *before, "seed {}, {} ms: node {at} had {before}", world.seed, world.time);
            *before = count;
        }
    }
}

/// What every node has is near what the HAProxies show.
fn rates_are_near(world: &World) {
    let time = world.time;
    for key in 0..RARE {
        let shown: Vec<u64> = world.nodes.iter().map(|node| node.haproxy.shown(key, node.clock(time)).rate).collect();
        let all: u64 = shown.iter().sum();
        for (at, node) in world.nodes.iter().enumerate() {
            let sum = node.sum_of_all(key, time).rate;
            let near = 3 + all / 20;
            assert!(
                sum.abs_diff(all) <= near,
                "seed {}: node {at} has {sum}, HAProxies {all} for key {key}",
                world.seed
            );
            let sum = node.haproxy.others(key, node.clock(time)).rate;
            let others = all - shown[at];
            let near = 3 + others / 10;
            assert!(sum.abs_diff(others) <= near, "seed {}: HAProxy {at} has {sum}, not {others}", world.seed);
        }
    }
}

/// Every node, and every HAProxy, has exactly what the HAProxies show.
fn counts_are_exact(world: &World) {
    for key in 0..KEYS {
        let of = |node: &model::Node| node.haproxy.shown(key, node.clock(world.time));
        let (count, connections): (u64, u64) = (
            world.nodes.iter().map(|node| of(node).count).sum(),
            world.nodes.iter().map(|node| of(node).connections).sum(),
        );
        if world.is_calm {
            assert_eq!(count, world.counted(key, None, 0), "seed {}: HAProxies count everything", world.seed);
        }
        for (at, node) in world.nodes.iter().enumerate() {
            let (sum, own) = (node.sum_of_all(key, world.time), of(node));
            let wanted = model::Shown { count, rate: 0, connections };
            assert_eq!(sum, wanted, "seed {}: node {at}, key {key}", world.seed);
            let others = node.haproxy.others(key, node.clock(world.time));
            let wanted = model::Shown { count: count - own.count, rate: 0, connections: connections - own.connections };
            assert_eq!(others, wanted, "seed {}: HAProxy {at}, key {key}", world.seed);
        }
    }
}
