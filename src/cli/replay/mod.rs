//! `banmesh replay`: what a node would have decided about archived logs.

mod difference;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use self::difference::Difference;
use self::report::{Replayed, Suggestion};
use super::failure::Failure;
use super::output::Output;
use crate::app::{Decisions, decisions, uses_logins};
use crate::config::{self, Config};
use crate::replay::archive::Archive;
use crate::replay::pipeline::{self, Reading};
use crate::replay::scan::Scanner;
use crate::replay::tally::Tally;
use crate::replay::thresholds::{ATTEMPTS, MAX_OFFENCES, Remembered, Trial, WINDOWS, trial};
use crate::replay::virtual_node::VirtualNode;
use crate::replay::{picture, thresholds};
use banmesh_core::judge::Rules;
use banmesh_core::ledger::Limits;
use banmesh_core::node::NodeId;

/// Arguments of `banmesh replay`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
The files are read together, in the order of the times in their lines. A node is not needed
and nothing is changed.

Examples:
  banmesh replay /var/log/auth.log /var/log/auth.log.*.gz
  banmesh replay mail.log.zst --config new.yaml --against /etc/banmesh/config.yaml
  banmesh replay auth.log --suggest --svg replay.svg
  journalctl -u ssh -o json | banmesh replay - --json")]
pub struct Args {
    /// Logs: plain, gzip or zstd, in the format of syslog, a web server or `journalctl -o json`; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Also replay with this configuration, and show what differs
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Program that wrote the lines, for lines that do not name one, as in `inputs.files`
    #[arg(long)]
    program: Option<String>,
    /// Zone of times that name none, such as +02:00
    #[arg(long, value_name = "OFFSET", default_value = "+00:00", allow_hyphen_values = true)]
    zone: String,
    /// List every ban, not only those that hurt
    #[arg(long)]
    bans: bool,
    /// Try other values of ban.max_attempts and ban.time_window
    #[arg(long)]
    suggest: bool,
    /// Write a picture to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `banmesh replay`.
pub fn run(args: &Args, config_file: Option<&Path>) -> ExitCode {
    match replay(args, config_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(args.json);
            failure.exit_code()
        }
    }
}

/// A configuration to replay with.
struct Side {
    name: String,
    config: Config,
    rules: Rules,
    limits: Limits,
    /// The number of its scanner.
    scanner: usize,
}

impl Side {
    fn node(&self, id: &NodeId) -> VirtualNode {
        let ban = &self.config.ban;
        VirtualNode::new(id.clone(), self.rules.clone(), self.limits, ban.max_tracked, ban.cleanup_interval.0)
    }

    fn node_with(&self, id: &NodeId, max_attempts: u32, time_window: Duration) -> VirtualNode {
        let mut rules = self.rules.clone();
        let general = Arc::make_mut(&mut rules.general);
        (general.max_attempts, general.time_window) = (max_attempts, time_window);
        let ban = &self.config.ban;
        VirtualNode::new(id.clone(), rules, self.limits, ban.max_tracked, ban.cleanup_interval.0)
    }
}

fn replay(args: &Args, config_file: Option<&Path>) -> Result<(), Failure> {
    let zone = zone(&args.zone).ok_or_else(|| {
        Failure::Usage(format!("--zone {}: write the offset from UTC, such as +02:00 or -0500", args.zone))
    })?;
    let named = args.against.iter().map(|path| Some(path.as_path())).chain([config_file]);
    let mut scanners: Vec<Scanner> = Vec::new();
    let mut sides: Vec<Side> = Vec::new();
    for path in named {
        let loaded =
            config::load(path, config::process_environment()).map_err(|error| Failure::Usage(error.to_string()))?;
        let name = loaded.path.as_ref().map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
        let config = loaded.config;
        let Decisions { detection, with_successes, rules, limits } = decisions(&config).map_err(|errors| {
            Failure::Usage(errors.iter().map(|error| format!("{name}: {error}")).collect::<Vec<_>>().join("\n"))
        })?;
        let same = sides.iter().find(|side| scans_alike(&side.config, &config)).map(|side| side.scanner);
        let scanner = same.unwrap_or(scanners.len());
        if same.is_none() {
            scanners.push(Scanner {
                detection: Arc::new(detection),
                with_successes: with_successes.map(Arc::new),
                program: args.program.as_ref().map(|program| program.as_bytes().into()),
            });
        }
        sides.push(Side { name, config, rules, limits, scanner });
    }
    let id: NodeId =
        "replay".parse().map_err(|error: banmesh_core::node::NodeIdError| Failure::Usage(error.to_string()))?;
    let archives: Vec<Archive> = args
        .files
        .iter()
        .map(|path| Archive::open(path).map_err(|error| Failure::Usage(error.to_string())))
        .collect::<Result<_, _>>()?;
    let workers = thread::available_parallelism().map_or(2, usize::from);
    let max_line = sides.iter().map(|side| side.config.syslog.max_line.0).max().unwrap_or_default();
    let mut nodes: Vec<VirtualNode> = sides.iter().map(|side| side.node(&id)).collect();
    let mut tallies = vec![Tally::default(); sides.len()];
    let mut remembered = Vec::new();
    let own = sides.last().map_or(0, |side| side.scanner);
    let start = Instant::now();
    let totals = pipeline::run(archives, &scanners, &Reading { max_line, zone, workers }, |at, found| {
        for ((side, node), tally) in sides.iter().zip(&mut nodes).zip(&mut tallies) {
            if side.scanner == found.scanner {
                let decision = node.judge(&found.offence, found.real, at);
                tally.add(&found.offence, decision, at);
                node.take_networks().into_iter().for_each(|ban| tally.network(ban, at));
                node.take_would().iter().for_each(|would| tally.would(would));
            }
        }
        if args.suggest && found.scanner == own && remembered.len() < MAX_OFFENCES {
            remembered.push(Remembered { at, offence: found.offence, real: found.real });
        }
    })
    .map_err(|error| Failure::Usage(error.to_string()))?;
    let elapsed = start.elapsed();
    let trials = match sides.last() {
        Some(side) if args.suggest => trials(side, &id, &remembered, workers),
        _ => Vec::new(),
    };
    if let Some(path) = &args.svg {
        let named: Vec<(&str, &Tally)> = sides.iter().map(|side| &*side.name).zip(&tallies).collect();
        std::fs::write(path, picture::svg(&named, &trials))
            .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", path.display())))?;
    }
    let replayed: Vec<Replayed<'_>> = sides
        .iter()
        .zip(&tallies)
        .zip(&mut nodes)
        .map(|((side, tally), node)| Replayed { name: &side.name, tally, active: node.active() })
        .collect();
    let difference = match tallies.as_slice() {
        [old, new] => Some(Difference::between(old, new)),
        _ => None,
    };
    let suggestion = sides.last().filter(|_| args.suggest).map(|side| Suggestion {
        trials: &trials,
        best: thresholds::best(&trials),
        current: (side.config.ban.max_attempts, side.config.ban.time_window.0),
        partly: remembered.len() >= MAX_OFFENCES,
    });
    let mut output = Output::stdout(args.json);
    let summary = report::Summary { files: args.files.len(), totals: &totals, elapsed };
    if args.json {
        output.json(&report::json(&summary, &replayed, difference.as_ref(), suggestion.as_ref()))?;
    } else {
        report::text(&mut output, &summary, &replayed, difference.as_ref(), suggestion.as_ref(), args.bans)?;
    }
    Ok(output.flush()?)
}

/// Whether two configurations find the same offences, so that lines need only be examined once.
fn scans_alike(one: &Config, other: &Config) -> bool {
    one.filters == other.filters
        && one.syslog.patterns == other.syslog.patterns
        && uses_logins(one) == uses_logins(other)
}

/// Tries all limits, on all processors.
fn trials(side: &Side, id: &NodeId, offences: &[Remembered], workers: usize) -> Vec<Trial> {
    let all: Vec<(u32, Duration)> = ATTEMPTS
        .into_iter()
        .flat_map(|attempts| WINDOWS.map(|seconds| (attempts, Duration::from_secs(seconds))))
        .collect();
    let own = (side.config.ban.max_attempts, side.config.ban.time_window.0);
    let all = if all.contains(&own) { all } else { [all, vec![own]].concat() };
    let share = all.len().div_ceil(workers.max(1)).max(1);
    let try_all = |limits: &[(u32, Duration)]| -> Vec<Trial> {
        let node = |attempts, window| side.node_with(id, attempts, window);
        limits.iter().map(|(attempts, window)| trial(offences, *attempts, *window, node)).collect()
    };
    thread::scope(|scope| {
        let running: Vec<_> = all.chunks(share).map(|limits| scope.spawn(move || try_all(limits))).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

/// Reads an offset from UTC, in milliseconds.
fn zone(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ if text == "UTC" || text == "Z" => return Some(0),
        _ => return None,
    };
    let digits: String = rest.chars().filter(|c| *c != ':').collect();
    let (hours, minutes) = match digits.len() {
        2 => (digits.parse::<i64>().ok()?, 0),
        4 => (digits.get(..2)?.parse::<i64>().ok()?, digits.get(2..)?.parse::<i64>().ok()?),
        _ => return None,
    };
    (hours <= 14 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_offsets_from_utc() {
        for (text, minutes) in [("+00:00", 0), ("+02:00", 120), ("-0530", -330), ("+05", 300), ("UTC", 0)] {
            assert_eq!(zone(text), Some(minutes * 60_000), "{text}");
        }
        for wrong in ["", "2", "CET", "+2", "+99:00", "+02:61", "+ab:cd"] {
            assert_eq!(zone(wrong), None, "{wrong}");
        }
    }
}
