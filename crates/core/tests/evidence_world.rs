//! Replays small worlds of honest people and attackers on the pure core. The thresholds are those of docs/detection.md; there are
//! fewer people than in the figures there, so some are looser.
//!
//! `attack_sim.py` makes the worlds; without it or Python, nothing is tested. `BANMESH_WORLD_SEEDS=1,2,3` runs whole worlds of these seeds.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod world;

use std::collections::{HashMap, VecDeque};

use banmesh_core::evidence::{Hour, Mode};
use banmesh_types::target::Target;
use world::{Event, Fleet, Score, Travel, generate, replay, settings};

const OFF: [Mode; 3] = [Mode::Off; 3];
const ALL: [Mode; 3] = [Mode::On; 3];

/// A third of the people, and of the attackers who are many, for seven days.
const SMALL: [&str; 16] = [
    "--days",
    "7",
    "--set",
    "honest.users=400",
    "--set",
    "dictionary.sources_day=60",
    "--set",
    "oneshot.sources=200",
    "--set",
    "stuffing.sources=300",
    "--set",
    "fast.tries=[300,600]",
    "--set",
    "rotate4.days=1",
    "--set",
    "rotate6.days=1",
];

fn world(scenario: &str) -> Option<Vec<Event>> {
    let events = generate(1, scenario, &SMALL);
    if events.is_none() {
        eprintln!("skipped: attack_sim.py or python3 is not there");
    }
    events
}

fn fleet(modes: [Mode; 3]) -> Fleet {
    Fleet::new(1, settings(modes[0], modes[1], modes[2]), Travel::default())
}

fn score(modes: [Mode; 3], events: &[Event]) -> (Score, Vec<bool>) {
    replay(&mut fleet(modes), events, 2.0)
}

#[test]
fn evidence_refuses_more_attempts_and_hurts_fewer_people() {
    let Some(events) = world("mixed") else { return };
    let (today, _) = score(OFF, &events);
    let mut fleet = fleet(ALL);
    let (all, _) = replay(&mut fleet, &events, 2.0);
    assert!(
        all.share() >= 85.0 && all.share() >= today.share() + 20.0,
        "{} today, {} with evidence",
        today.share(),
        all.share()
    );
    assert!(all.hurt.len() <= 4 && all.right_refused <= 13, "{:?}", all.hurt);
    assert!(today.hurt.len() > all.hurt.len(), "{} today", today.hurt.len());
    for (part, least) in [("fast", 99.0), ("slow", 90.0), ("spray", 70.0), ("rotate4", 98.0), ("rotate6", 98.0)] {
        assert!(all.part(part) >= least, "{part}: {}", all.part(part));
    }
    let size = fleet.most;
    assert!(size.bytes <= 1_500_000 && fleet.longest <= 40, "{size:?}, {} bytes", fleet.longest);
}

#[test]
fn who_wants_others_banned_gains_little() {
    let Some(events) = world("poison") else { return };
    let mut fleet = fleet(ALL);
    let (all, _) = replay(&mut fleet, &events, 2.0);
    let (today, _) = score(OFF, &events);
    assert!(all.hurt.len() < today.hurt.len(), "{} today, {} with evidence", today.hurt.len(), all.hurt.len());
    assert_eq!(live_bait(&fleet, &events), 0);
}

/// How many names are bait although somebody logged in to them: none ever should be.
fn live_bait(fleet: &Fleet, events: &[Event]) -> usize {
    let (last, evidence) = (Hour::of(events.last().unwrap().at()), fleet.judges[0].evidence());
    let key = fleet.rules.evidence.key.unwrap();
    let live = events.iter().filter(|event| event.ok && event.logged);
    live.filter(|event| evidence.is_bait(key.account(event.account.as_str()), last)).count()
}

#[test]
fn stolen_accounts_do_not_make_bots_known() {
    let Some(events) = world("insider") else { return };
    let (all, _) = score(ALL, &events);
    assert!(all.part("insider") >= 75.0 && all.part("insider_patient") >= 65.0, "{:?}", all.parts);
}

#[test]
fn without_lines_about_logins_every_decision_is_as_without_evidence() {
    let Some(mut events) = world("mixed") else { return };
    events.iter_mut().filter(|event| event.ok).for_each(|event| event.logged = false);
    assert!(score(OFF, &events).1 == score(ALL, &events).1);
}

/// Counting as README describes it, without anything of the crate but the addresses: five failures within ten minutes ban for five minutes, and
/// each further ban within three days lasts twice as long, at most a day.
#[derive(Default)]
struct Counting(HashMap<Target, (VecDeque<u64>, u32, u64, u64)>);

impl Counting {
    /// Returns whether the attempt was refused. Times are in milliseconds; bans end on whole seconds.
    fn play(&mut self, event: &Event) -> bool {
        let now = event.at().0;
        let (failures, bans, until, kept) = self.0.entry(Target::of_source(event.source, 32, 64)).or_default();
        if now < *until {
            return true;
        }
        if !event.logged || event.ok {
            return false;
        }
        failures.push_back(now);
        failures.retain(|at| now - at < 600_000);
        if failures.len() >= 5 {
            failures.clear();
            *bans = if now < *kept { *bans } else { 0 };
            let time = (300_000_u64 << (*bans).min(20)).min(86_400_000);
            *bans += 1;
            *until = (now + time).div_ceil(1000) * 1000;
            // Entries are kept in whole minutes.
            *kept = (now + 3 * 86_400_000).max(*until).div_ceil(60_000) * 60_000;
        }
        false
    }
}

#[test]
fn with_all_off_every_decision_is_that_of_counting() {
    for scenario in ["mixed", "quiet", "poison"] {
        let Some(events) = world(scenario) else { return };
        let mut counting = Counting::default();
        let expected: Vec<bool> = events.iter().map(|event| counting.play(event)).collect();
        let (_, decisions) = score(OFF, &events);
        let differs =
            events.iter().zip(expected.iter().zip(&decisions)).find(|(_, (expected, found))| expected != found);
        assert!(differs.is_none(), "{scenario}: {differs:?}");
        assert!(expected.contains(&true));
    }
}

#[test]
fn observing_changes_no_decision() {
    let Some(events) = world("mixed") else { return };
    assert!(score(OFF, &events).1 == score([Mode::Observe; 3], &events).1);
}

#[test]
fn lost_records_and_a_partition_cost_little_and_repair_makes_tables_equal() {
    let Some(events) = world("mixed") else { return };
    let settings = || settings(Mode::On, Mode::On, Mode::On);
    let (one, _) = replay(&mut Fleet::new(1, settings(), Travel::default()), &events, 2.0);
    let lossy = Travel { lost_one_in: 5, repair_every: 3600.0, ..Travel::default() };
    let cut = Travel { repair_every: 3600.0, cut: (3.0 * 86_400.0, 5.0 * 86_400.0), ..Travel::default() };
    for travel in [lossy, cut] {
        let mut fleet = Fleet::new(3, settings(), travel);
        let (five, _) = replay(&mut fleet, &events, 2.0);
        assert!((five.share() - one.share()).abs() <= 0.5, "{} and {}", one.share(), five.share());
        assert!(five.hurt.len() <= one.hurt.len() + 3, "{:?}", five.hurt);
        let hour = Hour::of(events.last().unwrap().at());
        for judge in &mut fleet.judges {
            judge.evidence_mut().sweep(Hour(hour.0 + 1));
        }
        (0..3).for_each(|_| fleet.repair(false, Hour(hour.0 + 1)));
        let digests = fleet.judges[0].evidence().digests();
        assert!(fleet.judges.iter().all(|judge| judge.evidence().digests() == digests));
    }
}

#[test]
fn whole_worlds_reach_the_figures_of_the_documentation() {
    let Ok(seeds) = std::env::var("BANMESH_WORLD_SEEDS") else { return };
    for seed in seeds.split(',').map(|seed| seed.parse().unwrap()) {
        let world = |scenario| generate(seed, scenario, &[]).unwrap();
        let mut fleet = fleet(ALL);
        let (mixed, _) = replay(&mut fleet, &world("mixed"), 2.0);
        println!(
            "mixed {seed}: {:.2} %, {} users, {} logins, {} records, {:?}",
            mixed.share(),
            mixed.hurt.len(),
            mixed.right_refused,
            fleet.records,
            fleet.most
        );
        assert!(mixed.share() >= 90.5 && mixed.hurt.len() <= 12 && mixed.right_refused <= 30);
        let parts = [
            ("dictionary", 75.0),
            ("fast", 99.5),
            ("slow", 93.0),
            ("spray", 73.0),
            ("rotate4", 99.3),
            ("rotate6", 99.4),
        ];
        for (part, least) in parts {
            assert!(mixed.part(part) >= least, "{part}: {}", mixed.part(part));
        }
        assert!(fleet.records <= 70_000 && fleet.longest <= 40 && fleet.most.bytes <= 1_500_000);
        let (quiet, _) = score(ALL, &world("quiet"));
        assert!(quiet.hurt.len() <= 12 && quiet.right_refused <= 30, "{} users", quiet.hurt.len());
        println!("quiet {seed}: {} users, {} logins", quiet.hurt.len(), quiet.right_refused);
        let events = world("poison");
        let mut fleet = self::fleet(ALL);
        let (poison, _) = replay(&mut fleet, &events, 2.0);
        let listed = live_bait(&fleet, &events);
        println!(
            "poison {seed}: {:.2} %, {} users, {listed} names of live accounts",
            poison.share(),
            poison.hurt.len()
        );
        assert_eq!(listed, 0);
        assert!(poison.share() >= 80.0 && poison.hurt.len() <= 80, "{} %, {} users", poison.share(), poison.hurt.len());
        let (insider, _) = score(ALL, &world("insider"));
        println!("insider {seed}: {:.2}, {:.2} %", insider.part("insider"), insider.part("insider_patient"));
        assert!(insider.part("insider") >= 78.0 && insider.part("insider_patient") >= 70.0, "{:?}", insider.parts);
    }
}
