//! `simulate`: runs one seed, or many.

use std::process::ExitCode;
use std::time::Duration;

use simulator::batch::{self, Batch};
use simulator::report::{self, Planted};

const USAGE: &str = "\
simulate --seed 7              one run; --trace prints every event, --log the log of all nodes, --json one line of JSON
simulate --seeds 10000         many runs and a report; --time 60 ends after a minute, --first 500 begins there, --jobs 2 at once
simulate --planted --seeds 1000  seeds until each planted fault is found, at most so many; --plant FAULT plants one
simulate --quiet 10 --hours 1  what ten quiet nodes cost, and how soon they notice a death; or --minutes 5;
                               --sites 2 makes two sites of them";
/// The options that a number or a name follows, and those that stand alone.
const WITH_VALUE: [&str; 10] =
    ["--seed", "--seeds", "--time", "--first", "--jobs", "--plant", "--quiet", "--sites", "--hours", "--minutes"];
const ALONE: [&str; 5] = ["--trace", "--log", "--json", "--planted", "--until-failure"];

struct Words(Vec<String>);

impl Words {
    /// The first word that is neither an option nor the value of one. Refusing it keeps a typing mistake from starting an endless batch.
    fn unknown(&self) -> Option<&str> {
        let mut words = self.0.iter().map(String::as_str);
        while let Some(word) = words.next() {
            if WITH_VALUE.contains(&word) {
                words.next();
            } else if !ALONE.contains(&word) {
                return Some(word);
            }
        }
        None
    }

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
    match words.unknown() {
        None if !words.0.is_empty() => {}
        None | Some("--help" | "-h") => {
            println!("{USAGE}");
            return Ok(true);
        }
        Some(word) => return Err(format!("`{word}` is not an option\n{USAGE}")),
    }
    if let Some(seed) = words.number("--seed")? {
        return one(seed, words);
    }
    if let Some(nodes) = words.number("--quiet")? {
        let hours = words.number("--hours")?.map_or(Duration::ZERO, |hours| Duration::from_secs(hours * 3600));
        let minutes = words.number("--minutes")?.map_or(Duration::ZERO, |minutes| Duration::from_secs(minutes * 60));
        let sites = words.number("--sites")?.unwrap_or(1);
        return quiet(
            (nodes, sites),
            Some(hours + minutes).filter(|time| !time.is_zero()).unwrap_or(Duration::from_secs(3600)),
        );
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
    print!("\n{}", report::text(&outcome));
    Ok(outcome.failures.is_empty() && outcome.never().is_empty())
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

fn quiet((nodes, sites): (u64, u64), time: Duration) -> Result<bool, String> {
    if sites == 0 || !nodes.is_multiple_of(sites) || nodes < 2 * sites {
        return Err(format!("--sites: {nodes} nodes cannot form {sites} sites of equal size, of two nodes or more"));
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let [nodes, sites] = [nodes, sites].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    let quiet = simulator::quiet(nodes, sites, time, directory.path(), || batch::processor_times().0)?;
    let (seconds, used) = (quiet.time.as_secs_f64(), quiet.processor.as_secs_f64());
    let per_node = |count: u64| count as f64 / nodes as f64 / seconds;
    let noticed = |at: usize| quiet.noticed.get(at).map_or(0.0, Duration::as_secs_f64);
    println!(
        "{nodes} nodes in {sites} sites, {:.0} s: {:.1} datagrams/s and {:.1} kB/s sent per node, at most {:.1} kB/s\n\
         {used:.2} s of processor time, {:.1} node-hours per processor minute, {:.1} µs per datagram\n\
         all nodes had met after {:.1} s; a ban was everywhere after {:.3} s, its unban after {:.3} s;\n\
         a death was noticed after {:.1} s (median), {:.1} s (last)",
        seconds,
        per_node(quiet.datagrams),
        per_node(quiet.bytes) / 1000.0,
        quiet.most_bytes as f64 / seconds / 1000.0,
        nodes as f64 * seconds / 60.0 / used.max(0.01),
        used * 1e6 / quiet.datagrams.max(1) as f64,
        quiet.met.as_secs_f64(),
        quiet.spread[0].as_secs_f64(),
        quiet.spread[1].as_secs_f64(),
        noticed(quiet.noticed.len() / 2),
        noticed(quiet.noticed.len().saturating_sub(1)),
    );
    Ok(true)
}

/// Plants one fault after the other, and counts the seeds until it is found.
fn all_planted(batch: &Batch) -> Result<bool, String> {
    let mut all = true;
    for (name, _) in banmesh_core::planted::Fault::ALL {
        let batch = Batch { plant: Some(name.to_owned()), until_failure: true, ..batch.clone() };
        let planted = Planted { name, outcome: batch.run(|_, _| ())? };
        println!("{}", planted.line());
        all &= planted.is_found();
    }
    Ok(all)
}
