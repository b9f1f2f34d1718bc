//! Tests the replicated ban table against intents. An intent is a request that a node accepted, with its time and the intents that the
//! node had received by then. The oracle never looks at the ledger's output: it computes the right answer of a node from the
//! intents that the node has received.
//!
//! The same schedules are checked in two ways. If all clocks agree, time orders all intents, and exactly one answer is right. With
//! skewed clocks, only causality orders them: an intent wins over every intent that its node had received. Of two concurrent intents
//! either may win, but as a whole, and the same one on all nodes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::Duration;

use banmesh_core::ban::{BanEntry, By, Cause, State};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_core::policy::BanPolicy;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use proptest::prelude::*;

const NODES: usize = 4;
const TARGETS: u8 = 3;
const START: UnixMillis = UnixMillis(1_800_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// No retention passes within a schedule: `crdt_model.rs` tests retentions.
const LIMITS: Limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };

#[derive(Clone, Copy, Debug)]
enum Wish {
    /// Enough offences for a ban by a filter.
    Offend,
    /// A ban by an operator, for this many seconds or permanent, that may replace a longer one.
    Ban {
        seconds: Option<u16>,
        replace: bool,
    },
    Unban,
    /// An allowlist entry, for this many seconds or permanent.
    Allow(Option<u16>),
    Disallow,
}

#[derive(Clone, Debug)]
enum Step {
    Ask(usize, u8, Wish),
    /// One of the messages in flight arrives, and stays in flight if `again`.
    Deliver {
        pick: usize,
        again: bool,
    },
    Lose(usize),
    /// Two nodes exchange their tables.
    Repair(usize, usize),
    /// A node restarts from its disk.
    Restart(usize),
    Pass(u16),
}

fn steps() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    let seconds = || proptest::option::weighted(0.8, 1u16..300);
    let wish = prop_oneof![
        4 => Just(Wish::Offend),
        3 => (seconds(), any::<bool>()).prop_map(|(seconds, replace)| Wish::Ban { seconds, replace }),
        3 => Just(Wish::Unban),
        2 => seconds().prop_map(Wish::Allow),
        2 => Just(Wish::Disallow),
    ];
    prop_oneof![
        14 => (node.clone(), 0..TARGETS, wish).prop_map(|(node, target, wish)| Step::Ask(node, target, wish)),
        10 => (any::<usize>(), any::<bool>()).prop_map(|(pick, again)| Step::Deliver { pick, again }),
        2 => any::<usize>().prop_map(Step::Lose),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Repair(a, b)),
        1 => node.prop_map(Step::Restart),
        3 => (1u16..120).prop_map(Step::Pass),
    ]
}

/// A decision with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    FilterBan(Expiry),
    Ban(Expiry),
    Allow(Expiry),
    /// The result of `unban` or `disallow`.
    Free,
}

/// A request that a node accepted.
#[derive(Clone, Debug)]
struct Intent {
    target: u8,
    decided: Decided,
    /// The true time. No two intents have the same.
    at: UnixMillis,
    /// The intents about the target that the node had received, by number.
    received: BTreeSet<usize>,
    /// The step of the escalation after it.
    step: u32,
}

/// The answer of a node about a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Banned(Expiry),
    Allowed(Expiry),
    Free,
}

struct World {
    nodes: Vec<Ledger>,
    /// How far each node's clock is ahead of the true time, in milliseconds; negative if behind.
    skew: Vec<i64>,
    now: UnixMillis,
    intents: Vec<Intent>,
    /// The intents that each node has received, by number.
    received: Vec<BTreeSet<usize>>,
    in_flight: Vec<(usize, Target, BanEntry, BTreeSet<usize>)>,
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
        max_ban_time: 600 * SECOND,
        escalation_factor: 2.0,
        max_memory_ttl: DAY,
    }
}

/// Returns the length of a ban after `earlier` ones, as documented: doubled each time, ten minutes at most.
fn filter_ban(earlier: u32) -> Duration {
    (30 * SECOND * 2u32.pow(earlier.min(10))).min(600 * SECOND)
}

impl World {
    fn new(skew: Vec<i64>) -> Self {
        let nodes = (0..NODES).map(|n| Ledger::new(name(n).parse().unwrap(), LIMITS, Hlc::default())).collect();
        let received = vec![BTreeSet::new(); NODES];
        Self { nodes, skew, now: START, intents: Vec::new(), received, in_flight: Vec::new() }
    }

    fn clock(&self, node: usize) -> UnixMillis {
        UnixMillis(self.now.0.checked_add_signed(self.skew[node]).unwrap())
    }

    /// Returns the intents about `n` among `numbers`.
    fn about(&self, n: u8, numbers: &BTreeSet<usize>) -> BTreeSet<usize> {
        numbers.iter().copied().filter(|number| self.intents[*number].target == n).collect()
    }

    /// Returns the intents that may win: those that no other one of `numbers` had received, or only the last one if all clocks agree.
    fn latest(&self, numbers: &[usize]) -> Vec<usize> {
        if self.skew.iter().all(|skew| *skew == 0) {
            return numbers.iter().copied().max_by_key(|number| self.intents[*number].at).into_iter().collect();
        }
        let beaten = |number: &usize| numbers.iter().any(|other| self.intents[*other].received.contains(number));
        numbers.iter().copied().filter(|number| !beaten(number)).collect()
    }

    /// Returns all answers that a node with these intents may give at `now`.
    fn answers(&self, numbers: &BTreeSet<usize>, now: UnixMillis) -> Vec<Answer> {
        let of_filter = |number: &usize| matches!(self.intents[*number].decided, Decided::FilterBan(_));
        let (filters, operators): (Vec<usize>, Vec<usize>) = numbers.iter().copied().partition(of_filter);
        let some = |numbers: Vec<usize>| -> Vec<Option<usize>> {
            if numbers.is_empty() { vec![None] } else { numbers.into_iter().map(Some).collect() }
        };
        let mut answers = Vec::new();
        for operator in some(self.latest(&operators)) {
            for filter in some(self.latest(&filters)) {
                answers.extend(self.combined(operator, filter, now));
            }
        }
        answers
    }

    /// Returns the possible answers for an operator's decision and a filter's ban: two if neither node had received the other's.
    fn combined(&self, operator: Option<usize>, filter: Option<usize>, now: UnixMillis) -> Vec<Answer> {
        let in_force = |end: Expiry| (!end.has_passed(now)).then_some(end);
        let decided = |number: usize| self.intents[number].decided;
        let by_filter = filter.and_then(|filter| match decided(filter) {
            Decided::FilterBan(end) => in_force(end),
            _ => None,
        });
        let Some(operator) = operator else { return vec![by_filter.map_or(Answer::Free, Answer::Banned)] };
        let counts = filter.map_or_else(Vec::new, |filter| {
            let (ban, decision) = (&self.intents[filter], &self.intents[operator]);
            if self.skew.iter().all(|skew| *skew == 0) {
                vec![ban.at > decision.at]
            } else if ban.received.contains(&operator) {
                vec![true]
            } else if decision.received.contains(&filter) {
                vec![false]
            } else {
                vec![true, false]
            }
        });
        let counts = if counts.is_empty() { vec![false] } else { counts };
        let answer = |counts: bool| {
            let by_filter = by_filter.filter(|_| counts);
            match decided(operator) {
                Decided::Allow(end) if in_force(end).is_some() => Answer::Allowed(end),
                Decided::Ban(end) if in_force(end).is_some() => {
                    Answer::Banned(by_filter.map_or(end, |later| later.max(end)))
                }
                _ => by_filter.map_or(Answer::Free, Answer::Banned),
            }
        };
        counts.into_iter().map(answer).collect()
    }

    /// Returns the actual answer of the node about `n`.
    fn answer(&self, node: usize, n: u8) -> Answer {
        let now = self.clock(node);
        let exempt = self.nodes[node].exemptions().exempt().contains(target(n).address().into());
        match self.nodes[node].table().entry(target(n)).map(|entry| entry.state(now)) {
            Some(State::Banned { until }) => Answer::Banned(until),
            Some(State::Allowed { until }) => {
                assert!(exempt, "the allowlist must agree with the entry");
                Answer::Allowed(until)
            }
            _ => Answer::Free,
        }
    }

    /// Asserts that the answer of `node` about `n` follows from the intents that it has received, and returns it.
    fn check(&self, node: usize, n: u8) -> Answer {
        let numbers = self.about(n, &self.received[node]);
        let (answer, may) = (self.answer(node, n), self.answers(&numbers, self.clock(node)));
        let received: Vec<_> = numbers.iter().map(|number| (number, &self.intents[*number])).collect();
        assert!(
            may.contains(&answer),
            "node {node} answers {answer:?}, may answer {may:?}; it has received {received:#?}"
        );
        let entry = self.nodes[node].table().entry(target(n));
        let step = numbers.iter().map(|number| self.intents[*number].step).max().unwrap_or(0);
        assert_eq!(entry.map_or(0, |entry| entry.bans), step, "the step of the escalation");
        answer
    }

    fn check_all(&self, node: usize) {
        for n in 0..TARGETS {
            self.check(node, n);
        }
    }

    fn ask(&mut self, node: usize, n: u8, wish: Wish) {
        // Intents never share a millisecond, because those would be concurrent by design (docs/cluster.md).
        self.now = UnixMillis(self.now.0 + 1);
        let before = self.check(node, n);
        let (now, number) = (self.clock(node), self.intents.len());
        let by = Cause::new(By::Operator("ann".into()), &number.to_string());
        let end = |seconds: Option<u16>| {
            seconds.map_or(Expiry::NEVER, |seconds| Expiry::at(now.plus(u32::from(seconds) * SECOND)))
        };
        let received = self.about(n, &self.received[node]);
        let step = received.iter().map(|number| self.intents[*number].step).max().unwrap_or(0);
        let banned_longer = |until: Expiry| matches!(before, Answer::Banned(end) if end > until);
        // The expected result of the wish, given the answer before it.
        let (expected, step) = match wish {
            Wish::Offend => {
                let until = Expiry::at(now.plus(filter_ban(step)));
                ((before == Answer::Free).then_some(Decided::FilterBan(until)), step + 1)
            }
            Wish::Ban { seconds, replace } => {
                let asked = end(seconds);
                // A ban that ends later by at most max_clock_drift counts as the same request, made on another node.
                let repeated = |known: Expiry| {
                    let later = known.seconds().saturating_sub(asked.seconds());
                    known != Expiry::NEVER && u64::from(later) <= LIMITS.max_clock_drift.as_secs()
                };
                let until = match before {
                    Answer::Banned(known) if known > asked && !replace && repeated(known) => known,
                    _ => asked,
                };
                let refused = banned_longer(until) && !replace;
                ((!refused).then_some(Decided::Ban(until)), step + u32::from(!matches!(before, Answer::Banned(_))))
            }
            Wish::Unban => (matches!(before, Answer::Banned(_)).then_some(Decided::Free), step),
            Wish::Allow(seconds) => (Some(Decided::Allow(end(seconds))), step),
            Wish::Disallow => (matches!(before, Answer::Allowed(_)).then_some(Decided::Free), step),
        };
        let ledger = &mut self.nodes[node];
        let result = match wish {
            Wish::Offend => {
                let by = Cause::new(By::Filter("sshd".into()), &number.to_string());
                ledger.ban_offender(target(n), by, &policy(), now)
            }
            Wish::Ban { seconds, replace } => {
                ledger.ban(target(n), BanTerms { until: end(seconds), remember: DAY, replace }, by, now)
            }
            Wish::Unban => ledger.unban(target(n), by, now),
            Wish::Allow(seconds) => ledger.allow(target(n), end(seconds), by, now),
            Wish::Disallow => ledger.disallow(target(n), by, now),
        };
        assert_eq!(result.is_ok(), expected.is_some(), "{wish:?} after {before:?}: {result:?}");
        let (Ok(change), Some(decided)) = (result, expected) else { return };
        self.intents.push(Intent { target: n, decided, at: self.now, received: received.clone(), step });
        self.received[node].insert(number);
        let with = self.about(n, &self.received[node]);
        for to in (0..NODES).filter(|to| *to != node) {
            self.in_flight.push((to, change.target, change.after.clone(), with.clone()));
        }
        self.check(node, n);
    }

    fn arrive(&mut self, to: usize, target: Target, entry: BanEntry, with: &BTreeSet<usize>) {
        let now = self.clock(to);
        self.nodes[to].merge(target, entry, now);
        self.received[to].extend(with);
    }

    fn entries(&self, node: usize) -> Vec<(Target, BanEntry)> {
        self.nodes[node].table().scan(usize::MAX, usize::MAX).0.collect()
    }

    fn repair(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let with = self.received[from].clone();
            for (target, entry) in self.entries(from) {
                self.arrive(to, target, entry, &with);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask(node, n, wish) => self.ask(node, n, wish),
            Step::Deliver { pick, again } if !self.in_flight.is_empty() => {
                let at = pick % self.in_flight.len();
                let one = if again { self.in_flight[at].clone() } else { self.in_flight.swap_remove(at) };
                self.arrive(one.0, one.1, one.2, &one.3);
                self.check_all(one.0);
            }
            Step::Lose(pick) if !self.in_flight.is_empty() => {
                let at = pick % self.in_flight.len();
                self.in_flight.swap_remove(at);
            }
            Step::Deliver { .. } | Step::Lose(_) => {}
            Step::Repair(a, b) => self.repair(a, b),
            Step::Restart(node) => {
                let (disk, last, now) = (self.entries(node), self.nodes[node].last_stamp(), self.clock(node));
                self.nodes[node] = Ledger::new(name(node).parse().unwrap(), LIMITS, last);
                for (target, entry) in disk {
                    self.nodes[node].restore(target, &entry, now);
                }
                self.check_all(node);
            }
            Step::Pass(seconds) => {
                self.now = self.now.plus(u32::from(seconds) * SECOND);
                for node in 0..NODES {
                    let now = self.clock(node);
                    self.nodes[node].take_exempt(now);
                    self.check_all(node);
                }
            }
        }
    }

    /// Lets every pair of nodes exchange its tables, and asserts that all tables are equal and follow from all intents.
    fn settle(&mut self) {
        for _ in 0..2 {
            for a in 0..NODES {
                (0..a).for_each(|b| self.repair(a, b));
            }
        }
        let digest = self.nodes[0].table().digest();
        for node in 0..NODES {
            assert_eq!(self.nodes[node].table().digest(), digest, "node {node} has a different table");
            assert_eq!(self.received[node].len(), self.intents.len(), "an intent was lost");
            self.check_all(node);
        }
    }
}

fn run(skew: Vec<i64>, schedule: &[Step]) {
    let mut world = World::new(skew);
    schedule.iter().for_each(|step| world.step(step));
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_100, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn with_equal_clocks_every_node_gives_the_one_right_answer(schedule in proptest::collection::vec(steps(), 1..60)) {
        run(vec![0; NODES], &schedule);
    }

    /// The skew is less than `max_clock_drift`, so that no entry is held back: `crdt_model.rs` tests those.
    #[test]
    fn with_skewed_clocks_every_answer_follows_from_the_received_intents(
        skew in proptest::collection::vec(-4_900i64..4_900, NODES),
        schedule in proptest::collection::vec(steps(), 1..60),
    ) {
        run(skew, &schedule);
    }
}

/// `allow` on A. A disconnects. `disallow` and five offences on B. A reconnects: the allowlist entry must not return.
#[test]
fn an_allowlist_entry_removed_while_its_node_was_disconnected_does_not_return() {
    let away = [Step::Ask(0, 1, Wish::Allow(None)), Step::Repair(0, 1)];
    let meanwhile = [Step::Pass(10), Step::Ask(1, 1, Wish::Disallow), Step::Ask(1, 1, Wish::Offend)];
    run(vec![0; NODES], &[&away[..], &meanwhile[..], &[Step::Repair(0, 1)]].concat());
}

/// `ban --permanent` on A. A disconnects. A filter bans for some seconds on B. A reconnects: the ban must stay permanent.
#[test]
fn a_permanent_ban_is_not_shortened_by_a_filter_that_had_not_received_it() {
    let mine = Step::Ask(0, 1, Wish::Ban { seconds: None, replace: false });
    run(vec![0; NODES], &[mine, Step::Pass(10), Step::Ask(1, 1, Wish::Offend), Step::Repair(0, 1), Step::Pass(60)]);
}
