//! `banmesh haproxy check`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::load::load;
use super::{VersionArgs, installed, node};
use crate::cli::findings;
use crate::cli::output::Output;
use crate::config;
use banmesh_haproxy::{Finding, Node, Severity, Version, check};

/// Arguments of `banmesh haproxy check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit codes: 0 no errors, 1 errors (with --strict also warnings), 2 a file cannot be read.

Examples:
  banmesh haproxy check
  banmesh haproxy check --strict --haproxy 3.0 /etc/haproxy/haproxy.cfg
  banmesh haproxy check -f /etc/haproxy/haproxy.cfg -f /etc/haproxy/conf.d --json")]
pub struct CheckArgs {
    /// Files and directories in HAProxy's order; - is standard input [default: /etc/haproxy/haproxy.cfg]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File or directory to read before the arguments, as for haproxy; may be repeated
    #[arg(short = 'f', value_name = "FILE")]
    more: Vec<PathBuf>,
    /// SPOE file to read instead of those that the filters name; may be repeated
    #[arg(long, value_name = "FILE")]
    spoe: Vec<PathBuf>,
    #[command(flatten)]
    version: VersionArgs,
    /// Exit with 1 on warnings, too
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the findings. Exit code 0: no errors; 1: errors (or warnings, if `strict`); 2: a file cannot be read.
pub fn run(args: &CheckArgs, path: Option<&Path>) -> ExitCode {
    let outcome = match examine(args, path) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let mut out = Output::stdout(args.json);
    // A closed pipe is not an error.
    let _ = report(&outcome, &mut out).and_then(|()| out.flush());
    let worst = if args.strict { Severity::Warning } else { Severity::Error };
    ExitCode::from(u8::from(outcome.findings.iter().any(|finding| finding.severity <= worst)))
}

/// The findings about `file` and the SPOE files that it names, for the installed HAProxy and the node that `path` configures.
///
/// # Errors
/// When a file cannot be read.
pub fn findings_about(file: &Path, path: Option<&Path>) -> Result<Vec<Finding>, String> {
    let version = installed().unwrap_or(Version::NEWEST);
    let environment = config::process_environment().collect();
    let loaded = load(&[file.to_owned()], &[], version, environment).map_err(|error| error.to_string())?;
    Ok(check(&loaded.configuration, &loaded.spoe, version, &node_of(path)?))
}

struct Outcome {
    version: Version,
    /// Whether the version is a guess: none was given, and no HAProxy is installed.
    assumed: bool,
    findings: Vec<Finding>,
}

fn examine(args: &CheckArgs, path: Option<&Path>) -> Result<Outcome, String> {
    let (version, assumed) = match args.version.version()? {
        Some(version) => (version, false),
        None => installed().map_or((Version::NEWEST, true), |version| (version, false)),
    };
    let node = node_of(path)?;
    let mut files: Vec<PathBuf> = args.more.iter().chain(&args.files).cloned().collect();
    if files.is_empty() {
        files.push(PathBuf::from("/etc/haproxy/haproxy.cfg"));
    }
    let environment = config::process_environment().collect();
    let loaded = load(&files, &args.spoe, version, environment).map_err(|error| error.to_string())?;
    let findings = check(&loaded.configuration, &loaded.spoe, version, &node);
    Ok(Outcome { version, assumed, findings })
}

/// The agent that HAProxy should query. A configuration given with `--config` must be valid; otherwise the defaults are the fallback.
fn node_of(path: Option<&Path>) -> Result<Node, String> {
    match config::load(path, config::process_environment()) {
        Ok(loaded) => Ok(node(&loaded)),
        Err(errors) if path.is_some() => Err(errors.to_string()),
        Err(_) => {
            let loaded = config::resolve(None, []).map_err(|errors| errors.to_string())?;
            Ok(node(&loaded))
        }
    }
}

fn report(outcome: &Outcome, out: &mut Output) -> io::Result<()> {
    let found = &outcome.findings;
    if out.json {
        return out.json(&serde_json::json!({
            "ok": findings::count(found, Severity::Error) == 0, "haproxy": outcome.version.to_string(),
            "findings": findings::rows(found),
        }));
    }
    let assumed = if outcome.assumed { ", assumed; use --haproxy to choose another" } else { "" };
    findings::print(found, &format!("HAProxy {}{assumed}", outcome.version), out)
}
