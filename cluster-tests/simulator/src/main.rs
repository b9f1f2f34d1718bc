//! `simulate`: runs one seed, or many.
//!
//! ```text
//! simulate --seed 7              one run; --trace prints every event, --json one line of JSON
//! simulate --seeds 10000         many runs and a report; --time 60 ends after a minute, --first 500 begins there
//! simulate --quiet 10 --hours 1  what ten quiet nodes cost
//! ```

use std::process::ExitCode;
use std::time::Duration;

use simulator::batch::{Batch, Outcome};

struct Words(Vec<String>);

impl Words {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|word| word == name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|word| word == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        self.text(name).map(|text| text.parse().map_err(|_| format!("{name}: `{text}` is not a number"))).transpose()
    }
}

fn main() -> ExitCode {
    match run(&Words(std::env::args().skip(1).collect())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &Words) -> Result<bool, String> {
    if let Some(seed) = words.number("--seed")? {
        return one(seed, words);
    }
    if let Some(nodes) = words.number("--quiet")? {
        return quiet(nodes, words.number("--hours")?.unwrap_or(1));
    }
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let batch = Batch {
        program: std::env::current_exe().map_err(|error| error.to_string())?,
        first: words.number("--first")?.unwrap_or(1),
        seeds: words.number("--seeds")?.unwrap_or(u64::MAX / 2),
        time: words.number("--time")?.map_or(Duration::MAX, Duration::from_secs),
        jobs: usize::try_from(words.number("--jobs")?.unwrap_or(jobs as u64)).unwrap_or(jobs),
        plant: words.text("--plant").map(str::to_owned),
        until_failure: words.has("--until-failure"),
    };
    if words.has("--planted") {
        return all_planted(&batch);
    }
    let outcome = batch.run(|seed, violation| println!("seed {seed}: {violation}\n    {}", batch.command(seed)))?;
    report(&outcome);
    Ok(outcome.failures.is_empty())
}

fn one(seed: u64, words: &Words) -> Result<bool, String> {
    if words.has("--log") {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_ansi(false)
            .without_time()
            .init();
    }
    if let Some(name) = words.text("--plant") {
        plant(name)?;
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let report = simulator::run(seed, directory.path(), words.has("--trace"))?;
    if words.has("--json") {
        println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
        return Ok(report.violation.is_none());
    }
    for (what, count) in &report.counts {
        println!("{count:>9}  {what}");
    }
    println!("seed {seed}: trace {:016x} of {} events", report.trace, report.events);
    println!(
        "{:.1} node-minutes; tables equal {} ms after the last fault",
        report.node_ms as f64 / 60_000.0,
        report.equal_after_ms
    );
    match &report.violation {
        None => println!("nothing violated"),
        Some(violation) => println!("VIOLATED: {violation}"),
    }
    Ok(report.violation.is_none())
}

#[cfg(feature = "planted-faults")]
fn plant(name: &str) -> Result<(), String> {
    use banmesh_core::planted;
    let names = planted::Fault::ALL.map(|(name, _)| name).join(", ");
    let known = planted::Fault::ALL.iter().find(|(known, _)| *known == name);
    let (_, fault) = known.ok_or_else(|| format!("--plant: `{name}` is not one of {names}"))?;
    planted::plant(*fault);
    Ok(())
}

#[cfg(not(feature = "planted-faults"))]
fn plant(_: &str) -> Result<(), String> {
    Err("--plant needs the feature planted-faults: cargo run -p simulator --features planted-faults".to_owned())
}

fn quiet(nodes: u64, hours: u64) -> Result<bool, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let nodes = usize::try_from(nodes).map_err(|error| error.to_string())?;
    let report = simulator::quiet(nodes, Duration::from_secs(hours * 3600), directory.path())?;
    let used = processor_time();
    let hours = report.node_ms as f64 / 3_600_000.0;
    println!(
        "{hours:.1} quiet node-hours in {used:.1} s of processor time: {:.1} node-hours per minute",
        hours * 60.0 / used
    );
    let bytes = report.counts.get("bytes in datagrams").copied().unwrap_or_default();
    println!("{:.1} kB/s per node", bytes as f64 / 1000.0 / (hours * 3600.0));
    Ok(true)
}

/// The processor time of this process, in seconds.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses, user and system time are fields 12 and 13, in hundredths of a second.
    let fields: Vec<f64> = text
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

/// Plants one fault after the other, and counts the seeds until it is found.
fn all_planted(batch: &Batch) -> Result<bool, String> {
    let mut all = true;
    for (name, _) in banmesh_core::planted::Fault::ALL {
        let batch = Batch { plant: Some(name.to_owned()), until_failure: true, ..batch.clone() };
        let outcome = batch.run(|_, _| ())?;
        let never = outcome.never();
        match (outcome.failures.first(), never.first()) {
            (Some((seed, violation)), _) => {
                let violation: String = violation.chars().take(160).collect();
                println!("{name}: found after {} seeds, by seed {seed}: {violation}", outcome.seeds);
            }
            (None, Some(never)) => println!("{name}: found, because in {} seeds never: {never}", outcome.seeds),
            (None, None) => {
                println!("{name}: NOT FOUND in {} seeds", outcome.seeds);
                all = false;
            }
        }
    }
    Ok(all)
}

fn report(outcome: &Outcome) {
    println!("\n{:>12} {:>8}  what", "times", "in runs");
    for (what, count) in &outcome.counts {
        println!("{count:>12} {:>8}  {what}", outcome.runs.get(what).copied().unwrap_or_default());
    }
    let hours = outcome.node_ms as f64 / 3_600_000.0;
    println!(
        "\n{} seeds, {} failures, {} events, {hours:.1} node-hours in {:.0} s",
        outcome.seeds,
        outcome.failures.len(),
        outcome.events,
        outcome.took.as_secs_f64()
    );
    println!(
        "tables equal after {:.1} s on average, {:.1} s at most",
        outcome.equal_ms as f64 / 1000.0 / outcome.seeds.max(1) as f64,
        outcome.slowest_ms as f64 / 1000.0
    );
    for never in outcome.never() {
        println!("NEVER: {never}");
    }
}
