//! Replays worlds of `attack_sim.py` and prints what the decisions were worth, a row for each world and set of mechanisms.
//!
//! ```text
//! cargo run --release -p banmesh-core --example world -- SCENARIO SEED… [--modes KNOWN,NAMES,NETWORKS]… [--nodes N] [--set PART.NAME=JSON]…
//! cargo run --release -p banmesh-core --example world -- --events FILE [--decisions FILE] [--modes …]
//! ```
//! A mode is `off`, `observe` or `on`; without `--modes`, all sets of mechanisms are compared. Other options: `--lost N` (one record in N is
//! lost), `--repair SECONDS`, `--cut DAY,DAY`, `--wipe DAY`, `--unlogged` (no login is logged), `--from-day N`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_precision_loss, missing_docs)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::indexing_slicing)]

#[path = "../tests/world/mod.rs"]
mod world;

use banmesh_core::evidence::Mode;
use world::{Event, Fleet, Travel, replay, settings};

const SETS: [(&str, [Mode; 3]); 6] = [
    ("today", [Mode::Off; 3]),
    ("known", [Mode::On, Mode::Off, Mode::Off]),
    ("names", [Mode::Off, Mode::On, Mode::Off]),
    ("networks", [Mode::Off, Mode::Off, Mode::On]),
    ("known + names", [Mode::On, Mode::On, Mode::Off]),
    ("all", [Mode::On; 3]),
];

fn mode(text: &str) -> Mode {
    match text {
        "on" => Mode::On,
        "observe" => Mode::Observe,
        _ => Mode::Off,
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut words, mut sets, mut more) = (Vec::new(), Vec::new(), Vec::new());
    let (mut travel, mut nodes, mut unlogged, mut from_day) = (Travel::default(), 1, false, 2.0);
    let (mut events_file, mut decisions_file) = (None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("an option needs a value");
        match arg.as_str() {
            "--modes" => sets.push(value()),
            "--nodes" => nodes = value().parse().unwrap(),
            "--lost" => travel.lost_one_in = value().parse().unwrap(),
            "--repair" => travel.repair_every = value().parse().unwrap(),
            "--wipe" => travel.wiped_at = value().parse::<f64>().unwrap() * 86_400.0,
            "--cut" => {
                let text = value();
                let (a, b) = text.split_once(',').unwrap();
                travel.cut = (a.parse::<f64>().unwrap() * 86_400.0, b.parse::<f64>().unwrap() * 86_400.0);
            }
            "--set" => more.extend(["--set".to_owned(), value()]),
            "--unlogged" => unlogged = true,
            "--from-day" => from_day = value().parse().unwrap(),
            "--events" => events_file = Some(value()),
            "--decisions" => decisions_file = Some(value()),
            _ => words.push(arg),
        }
    }
    let sets: Vec<(String, [Mode; 3])> = if sets.is_empty() {
        SETS.iter().map(|(name, modes)| ((*name).to_owned(), *modes)).collect()
    } else {
        let parse = |text: &String| {
            let modes: Vec<Mode> = text.split(',').map(mode).collect();
            (text.clone(), [modes[0], modes[1], modes[2]])
        };
        sets.iter().map(parse).collect()
    };
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let worlds: Vec<(String, Vec<Event>)> = match events_file {
        Some(file) => vec![(file.clone(), world::read(std::path::Path::new(&file)))],
        None => {
            let (scenario, seeds) = words.split_first().expect("name a scenario and seeds");
            let world = |seed: &String| {
                let events = world::generate(seed.parse().unwrap(), scenario, &more);
                (format!("{scenario} {seed}"), events.expect("attack_sim.py and python3 are needed"))
            };
            seeds.iter().map(world).collect()
        }
    };
    println!("world | mechanisms | refused % | users hurt | logins refused | parts | records | kB | µs/event");
    for (name, mut events) in worlds {
        if unlogged {
            events.iter_mut().filter(|event| event.ok).for_each(|event| event.logged = false);
        }
        for (set, [known, names, networks]) in &sets {
            let mut fleet = Fleet::new(nodes, settings(*known, *names, *networks), travel);
            let begun = std::time::Instant::now();
            let (score, decisions) = replay(&mut fleet, &events, from_day);
            let each = begun.elapsed().as_secs_f64() * 1e6 / events.len() as f64;
            let parts: Vec<String> = score.parts.keys().map(|part| format!("{part} {:.2}", score.part(part))).collect();
            println!(
                "{name} | {set} | {:.2} | {} | {} | {} | {} ({} B) | {} used {} | {each:.2}",
                score.share(),
                score.hurt.len(),
                score.right_refused,
                parts.join(", "),
                fleet.records,
                fleet.longest,
                fleet.most.bytes / 1000,
                fleet.most.used / 1000,
            );
            if let Some(file) = &decisions_file {
                let text: String = decisions.iter().map(|refused| if *refused { "1\n" } else { "0\n" }).collect();
                std::fs::write(file, text).unwrap();
            }
        }
    }
}
