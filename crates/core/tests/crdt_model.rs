//! Tests that the replicated ban table converges. Nodes with skewed clocks write at random, messages arrive late, twice, out of order
//! or not at all, nodes restart and entries expire. Once every pair of nodes has exchanged its tables, all tables must be equal.
//! `intents_model.rs` tests that they contain the right decisions.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_core::policy::BanPolicy;
use banmesh_core::retention::Cut;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use proptest::prelude::*;

const NODES: usize = 4;
const START: UnixMillis = UnixMillis(1_800_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const LIMITS: Limits =
    Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: Duration::from_secs(3600) };

#[derive(Clone, Debug)]
enum Step {
    /// An automatic ban on a node.
    Offend(usize, u8),
    /// An operator's ban, for this many seconds, or permanent.
    Ban(usize, u8, Option<u16>),
    /// An operator's unban.
    Unban(usize, u8),
    /// An operator's allowlist entry, for this many seconds, or permanent.
    Allow(usize, u8, Option<u16>),
    /// An operator removes an allowlist entry.
    Disallow(usize, u8),
    /// One of the messages in flight arrives, and stays in flight if `again`.
    Deliver { pick: usize, again: bool },
    /// One of the messages in flight is lost.
    Lose(usize),
    /// Two nodes exchange their tables.
    Repair(usize, usize),
    /// A node restarts from its disk.
    Restart(usize),
    /// Time passes, in seconds.
    Pass(u16),
    /// A node sweeps.
    Sweep(usize),
    /// The table of a node is full, so it drops all history.
    Full(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    prop_oneof![
        4 => (node.clone(), 0u8..6).prop_map(|(node, target)| Step::Offend(node, target)),
        3 => (node.clone(), 0u8..6, proptest::option::weighted(0.8, 1u16..4000)).prop_map(|(n, t, s)| Step::Ban(n, t, s)),
        3 => (node.clone(), 0u8..6).prop_map(|(node, target)| Step::Unban(node, target)),
        2 => (node.clone(), 0u8..6, proptest::option::weighted(0.8, 1u16..4000))
            .prop_map(|(n, t, s)| Step::Allow(n, t, s)),
        1 => (node.clone(), 0u8..6).prop_map(|(node, target)| Step::Disallow(node, target)),
        8 => (any::<usize>(), any::<bool>()).prop_map(|(pick, again)| Step::Deliver { pick, again }),
        2 => any::<usize>().prop_map(Step::Lose),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Repair(a, b)),
        1 => node.clone().prop_map(Step::Restart),
        2 => (1u16..2000).prop_map(Step::Pass),
        1 => node.clone().prop_map(Step::Sweep),
        2 => node.prop_map(Step::Full),
    ]
}

struct World {
    nodes: Vec<Ledger>,
    /// How far each node's clock is ahead of the true time, in milliseconds; negative if behind.
    skew: Vec<i64>,
    now: UnixMillis,
    in_flight: Vec<(usize, Target, BanEntry)>,
    /// The bans that an operator ended on a node which had received them.
    ended: HashSet<(Target, Stamp)>,
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn target(n: u8) -> Target {
    Target::host(std::net::IpAddr::from([192, 0, 2, n]).into())
}

fn policy() -> BanPolicy {
    BanPolicy {
        max_attempts: 5,
        time_window: 60 * SECOND,
        initial_ban_time: 30 * SECOND,
        max_ban_time: LIMITS.max_ban_time,
        escalation_factor: 2.0,
        max_memory_ttl: 600 * SECOND,
    }
}

fn by(node: usize) -> Cause {
    Cause::new(By::Operator(name(node).into()), "model")
}

fn by_filter(node: usize) -> Cause {
    Cause::new(By::Filter(name(node).into()), "model")
}

impl World {
    fn new(skew: Vec<i64>) -> Self {
        let nodes = (0..NODES).map(|n| Ledger::new(name(n).parse().unwrap(), LIMITS, Hlc::default())).collect();
        Self { nodes, skew, now: START, in_flight: Vec::new(), ended: HashSet::new() }
    }

    fn clock(&self, node: usize) -> UnixMillis {
        UnixMillis(self.now.0.checked_add_signed(self.skew[node]).unwrap())
    }

    fn send(&mut self, from: usize, target: Target, entry: BanEntry) {
        for to in (0..NODES).filter(|to| *to != from) {
            self.in_flight.push((to, target, entry.clone()));
        }
    }

    /// Records the bans that a decision of an operator ended.
    fn end(&mut self, target: Target, before: Option<&BanEntry>) {
        let stamps = before.into_iter().flat_map(BanEntry::stamps);
        self.ended.extend(stamps.map(|stamp| (target, stamp.clone())));
    }

    fn entries(&self, node: usize) -> Vec<(Target, BanEntry)> {
        self.nodes[node].table().scan(usize::MAX, usize::MAX).0.collect()
    }

    fn repair(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let (cut, now) = (self.nodes[from].cut(), self.clock(to));
            self.nodes[to].adopt(cut, now);
        }
        for (from, to) in [(a, b), (b, a)] {
            for (target, entry) in self.entries(from) {
                self.arrive(to, target, entry);
            }
        }
    }

    fn arrive(&mut self, to: usize, target: Target, entry: BanEntry) {
        let now = self.clock(to);
        self.nodes[to].merge(target, entry, now);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offend(node, n) => {
                let (now, cause) = (self.clock(node), by_filter(node));
                let allowed = self.nodes[node].table().entry(target(n)).is_some_and(|entry| entry.is_allowed(now));
                if let Ok(change) = self.nodes[node].ban_offender(target(n), cause, &policy(), now) {
                    assert!(!allowed, "a filter never bans a target that an operator has allowed");
                    self.send(node, change.target, change.after);
                }
            }
            Step::Ban(node, n, seconds) => {
                let now = self.clock(node);
                let until = seconds.map_or(Expiry::NEVER, |s| Expiry::at(now.plus(u32::from(s) * SECOND)));
                let terms = BanTerms { until, remember: 600 * SECOND, replace: n % 2 == 0 };
                if let Ok(change) = self.nodes[node].ban(target(n), terms, by(node), now) {
                    assert!(change.before.as_ref().is_none_or(|before| change.after.latest() > before.latest()));
                    let longer = |before: &&BanEntry| before.ban_end() > change.after.operator_ban();
                    self.end(change.target, change.before.as_ref().filter(longer));
                    self.send(node, change.target, change.after);
                }
            }
            Step::Unban(node, n) => {
                let now = self.clock(node);
                let before = self.nodes[node].table().entry(target(n));
                if let Ok(change) = self.nodes[node].unban(target(n), by(node), now) {
                    let before = before.unwrap();
                    assert!(
                        change.after.latest() > before.latest(),
                        "an unban wins over every ban that its node has received"
                    );
                    assert!(change.after.keep >= before.keep, "and is kept as long as the ban");
                    self.end(change.target, Some(&before));
                    self.send(node, change.target, change.after);
                }
            }
            Step::Allow(node, n, seconds) => {
                let now = self.clock(node);
                let until = seconds.map_or(Expiry::NEVER, |s| Expiry::at(now.plus(u32::from(s) * SECOND)));
                let change = self.nodes[node].allow(target(n), until, by(node), now).unwrap();
                assert!(change.before.as_ref().is_none_or(|before| change.after.latest() > before.latest()));
                self.end(change.target, change.before.as_ref());
                self.send(node, change.target, change.after);
            }
            Step::Disallow(node, n) => {
                let now = self.clock(node);
                if let Ok(change) = self.nodes[node].disallow(target(n), by(node), now) {
                    assert!(change.before.is_some_and(|before| before.is_allowed(now)));
                    self.send(node, change.target, change.after);
                }
            }
            Step::Deliver { pick, again } => {
                if !self.in_flight.is_empty() {
                    let at = pick % self.in_flight.len();
                    let (to, target, entry) =
                        if again { self.in_flight[at].clone() } else { self.in_flight.swap_remove(at) };
                    self.arrive(to, target, entry);
                }
            }
            Step::Lose(pick) => {
                if !self.in_flight.is_empty() {
                    let at = pick % self.in_flight.len();
                    self.in_flight.swap_remove(at);
                }
            }
            Step::Repair(a, b) => self.repair(a, b),
            Step::Restart(node) => {
                let disk = self.entries(node);
                let last = self.nodes[node].last_stamp();
                self.nodes[node] = Ledger::new(name(node).parse().unwrap(), LIMITS, last);
                let now = self.clock(node);
                for (target, entry) in disk {
                    self.nodes[node].restore(target, &entry, now);
                }
            }
            Step::Pass(seconds) => self.now = self.now.plus(u32::from(seconds) * SECOND),
            Step::Sweep(node) => {
                let now = self.clock(node);
                self.nodes[node].sweep(now, usize::MAX);
            }
            Step::Full(node) => {
                let now = self.clock(node);
                let in_force = |ledger: &Ledger| {
                    let (found, _) = ledger.table().scan(usize::MAX, usize::MAX);
                    found.filter(|(_, e)| e.is_banned(now) || e.is_allowed(now)).map(|(target, _)| target).collect()
                };
                let before: HashSet<Target> = in_force(&self.nodes[node]);
                self.nodes[node].make_room(1, now);
                assert_eq!(before, in_force(&self.nodes[node]), "nothing in force is dropped");
            }
        }
    }

    /// Corrects all clocks, delivers every message in flight, and lets every pair of nodes repair.
    fn settle(&mut self) {
        self.skew = vec![0; NODES];
        self.now = self.now.plus(20 * SECOND);
        for (to, target, entry) in std::mem::take(&mut self.in_flight) {
            self.arrive(to, target, entry);
        }
        let cut = self.nodes.iter().fold(Cut::default(), |cut, node| cut.join(node.cut()));
        for node in 0..NODES {
            let now = self.clock(node);
            self.nodes[node].adopt(cut, now);
            self.nodes[node].merge_due(now);
            self.nodes[node].sweep(now, usize::MAX);
        }
        for _ in 0..3 {
            for a in 0..NODES {
                for b in 0..a {
                    self.repair(a, b);
                }
            }
        }
        for node in 0..NODES {
            let now = self.clock(node);
            assert_eq!(self.nodes[node].early(), 0, "no entry is held back once the clock has caught up");
            self.nodes[node].sweep(now, usize::MAX);
            for (target, entry) in self.entries(node).into_iter().filter(|(_, entry)| entry.is_banned(now)) {
                let stamp = entry.effective(now).stamp.clone();
                assert!(
                    !self.ended.contains(&(target, stamp)),
                    "a ban that an operator ended never returns: {entry:?}"
                );
            }
            let held: Vec<Target> = self.nodes[node].exemptions().after(None).collect();
            let mut allowed: Vec<Target> =
                self.entries(node).into_iter().filter(|(_, e)| e.is_allowed(now)).map(|(target, _)| target).collect();
            allowed.sort_unstable();
            self.nodes[node].take_exempt(now);
            assert!(
                allowed.iter().all(|target| held.contains(target)),
                "the allowlist has every entry that the table has"
            );
            assert_eq!(self.nodes[node].exemptions().after(None).collect::<Vec<_>>(), allowed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn all_replicas_converge(
        skew in proptest::collection::vec(-9_000i64..9_000, NODES),
        schedule in proptest::collection::vec(steps(), 1..80),
    ) {
        let mut world = World::new(skew);
        for step in &schedule {
            world.step(step);
        }
        world.settle();
        let first: HashMap<Target, BanEntry> = world.entries(0).into_iter().collect();
        for node in 1..NODES {
            prop_assert_eq!(&first, &world.entries(node).into_iter().collect());
            prop_assert_eq!(world.nodes[0].table().digests(), world.nodes[node].table().digests());
        }
    }
}

#[test]
fn a_ban_that_arrives_after_its_unban_has_no_effect() {
    let mut world = World::new(vec![0, -5_000, 0, 0]);
    world.step(&Step::Ban(0, 1, None));
    let (_, _, ban) = world.in_flight[0].clone();
    let now = world.clock(1);
    world.nodes[1].merge(target(1), ban.clone(), now);
    world.step(&Step::Unban(1, 1));
    world.settle();
    let now = world.now;
    for node in &mut world.nodes {
        node.merge(target(1), ban.clone(), now);
        assert!(!node.table().entry(target(1)).unwrap().is_banned(now));
    }
}

/// Returns a generator of numbers below a bound, determined by the seed (xorshift64*, Vigna 2016).
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |bound| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound as u64).unwrap()
    }
}

/// Runs hours of simulated time with faults of all kinds, and checks at regular intervals that the tables converge once the faults stop.
/// `make soak` runs 24 hours (`BANMESH_SIMULATED_HOURS`) with another seed (`BANMESH_SEED`), which is printed.
#[test]
fn replicas_converge_repeatedly_over_hours_of_random_faults() {
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (hours, seed) = (asked("BANMESH_SIMULATED_HOURS").unwrap_or(2), asked("BANMESH_SEED").unwrap_or(1));
    println!("{hours} simulated hours, seed {seed}");
    let mut below = numbers(seed);
    let mut world = World::new(vec![0; NODES]);
    let end = START.plus(u32::try_from(hours).unwrap() * 3600 * SECOND);
    let mut rounds = 0;
    while world.now < end {
        world.skew = (0..NODES).map(|_| i64::try_from(below(18_000)).unwrap() - 9_000).collect();
        for _ in 0..400 {
            let (a, b, n) = (below(NODES), below(NODES), u8::try_from(below(6)).unwrap());
            let step = match below(100) {
                0..12 => Step::Offend(a, n),
                12..20 => Step::Ban(a, n, (below(5) > 0).then(|| u16::try_from(1 + below(900)).unwrap())),
                20..26 => Step::Unban(a, n),
                26..29 => Step::Allow(a, n, (below(5) > 0).then(|| u16::try_from(1 + below(900)).unwrap())),
                29..31 => Step::Disallow(a, n),
                31..66 => Step::Deliver { pick: below(usize::MAX), again: below(3) == 0 },
                66..80 => Step::Lose(below(usize::MAX)),
                80..83 => Step::Repair(a, b),
                83..85 => Step::Restart(a),
                85..87 => Step::Full(a),
                87..95 => Step::Pass(u16::try_from(1 + below(20)).unwrap()),
                _ => Step::Sweep(a),
            };
            world.step(&step);
        }
        world.settle();
        let first: HashMap<Target, BanEntry> = world.entries(0).into_iter().collect();
        for node in 1..NODES {
            let other: HashMap<Target, BanEntry> = world.entries(node).into_iter().collect();
            assert_eq!(first, other, "seed {seed}, round {rounds}, node {node}");
        }
        rounds += 1;
    }
    assert!(rounds > 0);
    println!("{rounds} rounds");
}
