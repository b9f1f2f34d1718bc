//! Random faults in a real cluster, in rounds. After each round all tables must be equal and correct.
//!
//! `make soak` runs it. It prints the seed; `SOAK_SEED` repeats a run's choices, `SOAK_SECONDS` sets how long to run,
//! `SOAK_NODES` the number of nodes. It needs root.
//!
//! A round disconnects, kills and restarts some nodes and changes clocks, while all nodes ban and unban; then it undoes all faults.
//! Equal tables are not enough: for targets that only one node decides about, its last acknowledged decision must
//! hold.
#![expect(clippy::expect_used, reason = "a test that runs for long")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::hostile::Noise;
use cluster_tests::mesh::{Mesh, address};

/// The maximum time until all tables are equal after all faults are undone.
const EQUAL: Duration = Duration::from_secs(20);
/// The number of targets that only one node decides about.
const OWN: usize = 60;

fn main() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number in the environment"))
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let seed = number("SOAK_SEED", u64::try_from(now).unwrap_or_default());
    let length = Duration::from_secs(number("SOAK_SECONDS", 600));
    let nodes = u8::try_from(number("SOAK_NODES", 4)).expect("at most 255 nodes");
    println!("soak: seed {seed}, {nodes} nodes, {} s", length.as_secs());
    let clocks: Option<Vec<WrongClock>> = (0..nodes).map(|_| WrongClock::new(Moves::TimeOfDay)).collect();
    if clocks.is_none() {
        println!("soak: clocks stay right: install faketime for wrong ones");
    }
    let configured = Mesh::start_with(nodes, |index, config| {
        // Fewer log lines, because only errors matter.
        let config = config.set("log.level", "warn").set("cluster.repair_interval", "10s");
        match &clocks {
            Some(clocks) => clocks[index].wind(config),
            None => config,
        }
    });
    let Some(mesh) = configured else { std::process::exit(2) };
    let mut soak = Soak { mesh, clocks, noise: Noise::new(seed), decided: BTreeMap::new(), counts: BTreeMap::new() };
    let (start, mut round, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < length {
        round += 1;
        soak.break_things();
        let (took, entries) = soak.mend(seed, round);
        slowest = slowest.max(took);
        println!("soak: round {round}: {entries} entries equal {took:.1?} after all was mended");
    }
    println!("soak: seed {seed}: {round} rounds, slowest {slowest:.1?}: {:?}", soak.counts);
}

struct Soak {
    mesh: Mesh,
    clocks: Option<Vec<WrongClock>>,
    noise: Noise,
    /// The last acknowledged decision for each target that only one node decides about; `None` if its outcome is unknown.
    decided: BTreeMap<IpAddr, Option<bool>>,
    counts: BTreeMap<&'static str, usize>,
}

impl Soak {
    fn break_things(&mut self) {
        let nodes = self.mesh.nodes.len();
        let mut down: Vec<usize> = Vec::new();
        for _ in 0..40 + self.noise.below(80) {
            let (choice, index) = (self.noise.below(100), self.noise.below(nodes));
            let did = match choice {
                0..=2 => {
                    let (left, right): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|_| self.noise.below(2) == 0);
                    self.mesh.partition(&[&left, &right]);
                    "cut"
                }
                3..=4 => {
                    let deaf_to: Vec<_> = (0..nodes).filter(|_| self.noise.below(2) == 0).collect();
                    self.mesh.hosts[index].deafen(deaf_to.iter().map(|other| &self.mesh.hosts[*other]));
                    "cut one way"
                }
                5..=6 => {
                    self.mesh.heal();
                    "heal"
                }
                7..=8 if !down.contains(&index) => {
                    self.mesh.nodes[index].kill();
                    down.push(index);
                    "kill"
                }
                9 if !down.contains(&index) => {
                    self.mesh.nodes[index].stop();
                    down.push(index);
                    "stop"
                }
                10..=12 => match down.pop() {
                    Some(index) => {
                        self.mesh.nodes[index].restart();
                        "start"
                    }
                    None => "nothing",
                },
                13..=15 => match &self.clocks {
                    Some(clocks) => {
                        // Within cluster.max_clock_drift. Beyond it, records wait until the clock has caught up.
                        clocks[index].set_ahead(i64::try_from(self.noise.below(9)).unwrap_or_default() - 4);
                        "skew"
                    }
                    None => "nothing",
                },
                16..=20 => {
                    std::thread::sleep(Duration::from_millis(self.noise.next() % 500));
                    "wait"
                }
                21..=65 => self.decide(index, true, &down),
                66..=85 => self.decide(index, false, &down),
                _ => self.dispute(index, &down),
            };
            *self.counts.entry(did).or_default() += 1;
        }
        for index in down {
            self.mesh.nodes[index].restart();
        }
    }

    /// A node bans or unbans one of its own targets.
    fn decide(&mut self, index: usize, ban: bool, down: &[usize]) -> &'static str {
        if down.contains(&index) {
            return "nothing";
        }
        let target = address(u32::try_from(index * 100_000 + self.noise.below(OWN)).expect("few nodes"));
        if !ban && !self.decided.contains_key(&target) {
            return "nothing";
        }
        let admin = self.mesh.nodes[index].admin();
        let done = if ban { admin.ban(target) } else { admin.unban(target) };
        // A second unban is refused, and changes nothing.
        let was = self.decided.get(&target).copied().flatten();
        match (done, ban, was) {
            (Ok(()), ..) => self.decided.insert(target, Some(ban)),
            (Err(_), false, Some(false)) => None,
            (Err(_), ..) => self.decided.insert(target, None),
        };
        if ban { "ban" } else { "lift" }
    }

    /// A node bans or unbans a shared target.
    fn dispute(&mut self, index: usize, down: &[usize]) -> &'static str {
        if down.contains(&index) {
            return "nothing";
        }
        let target = address(u32::try_from(5_000_000 + self.noise.below(50)).expect("few targets"));
        let admin = self.mesh.nodes[index].admin();
        // The target may already be unbanned; then the unban is refused.
        let _ = if self.noise.below(2) == 0 { admin.ban(target) } else { admin.unban(target) };
        "dispute"
    }

    /// Undoes all faults and compares. Returns the time until all tables were equal, and the number of their entries.
    fn mend(&mut self, seed: u64, round: usize) -> (Duration, usize) {
        self.mesh.heal();
        self.clocks.iter().flatten().for_each(|clock| clock.set_ahead(0));
        println!("soak: round {round}: mended");
        let (took, table) = self.mesh.wait_until_equal(EQUAL);
        let wrong: Vec<_> = self
            .decided
            .iter()
            .filter_map(|(target, decided)| Some((target, (*decided)?)))
            .filter(|(target, banned)| {
                let state = table.get(&target.to_string()).map(|entry| entry["state"] == "banned");
                state != Some(*banned)
            })
            .collect();
        assert!(wrong.is_empty(), "soak: seed {seed}, round {round}: not what was acknowledged last: {wrong:?}");
        (took, table.len())
    }
}
