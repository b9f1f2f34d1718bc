//! Many seeds: one process for each, as many at a time as wanted.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sometimes::{ENOUGH, SOMETIMES};
use crate::world::Report;

/// A run that needs more processor time has hung. Debug builds need some seconds.
const HUNG: Duration = Duration::from_secs(300);
/// A run that takes longer waits for something that never comes, however busy the machine is.
const STUCK: Duration = Duration::from_secs(3600);

/// What to run.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The program `simulate`.
    pub program: std::path::PathBuf,
    /// The first seed.
    pub first: u64,
    /// How many seeds at most.
    pub seeds: u64,
    /// How long at most.
    pub time: Duration,
    /// How many at a time.
    pub jobs: usize,
    /// The planted fault.
    pub plant: Option<String>,
    /// Whether to end after the first failure.
    pub until_failure: bool,
}

/// The outcome of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many seeds ran.
    pub seeds: u64,
    /// The failures: seed and violation.
    pub failures: Vec<(u64, String)>,
    /// The sums of all counts.
    pub counts: BTreeMap<String, u64>,
    /// In how many runs something occurred.
    pub runs: BTreeMap<String, u64>,
    /// Simulated node-milliseconds.
    pub node_ms: u64,
    /// The longest time until all tables were equal.
    pub slowest_ms: u64,
    /// Milliseconds until all tables were equal, of all runs together.
    pub equal_ms: u64,
    /// Events in all traces.
    pub events: u64,
    /// How long it took.
    pub took: Duration,
    /// The processor time of all runs.
    pub processor: Duration,
}

impl Outcome {
    /// The situations that should have occurred and did not. None if there were too few runs to tell.
    pub fn never(&self) -> Vec<&'static str> {
        if self.seeds < ENOUGH {
            return Vec::new();
        }
        SOMETIMES.iter().copied().filter(|situation| !self.counts.contains_key(*situation)).collect()
    }

    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.node_ms += report.node_ms;
        self.events += report.events;
        self.slowest_ms = self.slowest_ms.max(report.equal_after_ms);
        self.equal_ms += report.equal_after_ms;
        for (what, count) in report.counts {
            *self.counts.entry(what.clone()).or_default() += count;
            *self.runs.entry(what).or_default() += 1;
        }
        if let Some(violation) = report.violation {
            self.failures.push((report.seed, violation));
        }
    }
}

impl Batch {
    /// The command that repeats a run.
    pub fn command(&self, seed: u64) -> String {
        match &self.plant {
            None => format!("cargo run -p simulator -- --seed {seed}"),
            Some(fault) => format!("cargo run -p simulator --features planted-faults -- --seed {seed} --plant {fault}"),
        }
    }

    /// Runs the seeds and calls `failed` for each failure.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn run(&self, mut failed: impl FnMut(u64, &str)) -> Result<Outcome, String> {
        let (start, mut outcome, mut next) = (Instant::now(), Outcome::default(), self.first);
        let used_before = processor_times().1;
        let mut running: Vec<(u64, Child, Instant, std::thread::JoinHandle<String>)> = Vec::new();
        loop {
            let stop = self.until_failure && !outcome.failures.is_empty();
            while !stop
                && running.len() < self.jobs.max(1)
                && next < self.first + self.seeds
                && start.elapsed() < self.time
            {
                let (child, output) = self.spawn(next)?;
                running.push((next, child, Instant::now(), output));
                next += 1;
            }
            if running.is_empty() {
                break;
            }
            let mut ended = None;
            for (index, (_, child, since, _)) in running.iter_mut().enumerate() {
                let exited = child.try_wait().map_err(|error| error.to_string())?.is_some();
                if exited || since.elapsed() > STUCK || times_of(&child.id().to_string()).0 > HUNG {
                    ended = Some(index);
                    break;
                }
            }
            let Some(index) = ended else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let (seed, mut child, _, output) = running.swap_remove(index);
            let hung = child.try_wait().map_err(|error| error.to_string())?.is_none();
            let _ = child.kill();
            let _ = child.wait();
            let output = output.join().unwrap_or_default();
            let before = outcome.failures.len();
            match output.lines().last().and_then(|line| serde_json::from_str::<Report>(line).ok()) {
                Some(report) => outcome.add(report),
                None => {
                    outcome.seeds += 1;
                    let why = if hung { "the run hangs" } else { "the run panicked" };
                    outcome.failures.push((seed, why.to_owned()));
                }
            }
            if let Some((seed, violation)) = outcome.failures.get(before) {
                failed(*seed, violation);
            }
        }
        outcome.took = start.elapsed();
        outcome.processor = processor_times().1.saturating_sub(used_before);
        Ok(outcome)
    }

    fn spawn(&self, seed: u64) -> Result<(Child, std::thread::JoinHandle<String>), String> {
        let mut command = Command::new(&self.program);
        command.args(["--seed", &seed.to_string(), "--json"]).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(fault) = &self.plant {
            command.args(["--plant", fault]);
        }
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.program.display()))?;
        let mut stdout = child.stdout.take();
        // A full pipe would stop the run.
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stdout) = &mut stdout {
                let _ = std::io::Read::read_to_string(stdout, &mut text);
            }
            text
        });
        Ok((child, output))
    }
}

/// The processor time of this process, and that of its children that have ended.
pub fn processor_times() -> (Duration, Duration) {
    times_of("self")
}

/// As [`processor_times`], of the process `id`.
fn times_of(id: &str) -> (Duration, Duration) {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // After the name in parentheses, user and system time are fields 12 and 13, and those of children 14 and 15, in hundredths of a second.
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(4);
    let times: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    let sum = |at: usize| Duration::from_millis(times.iter().skip(at).take(2).sum::<u64>() * 10);
    (sum(0), sum(2))
}
