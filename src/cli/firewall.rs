//! `banmesh firewall`: shows, checks and removes the bans in the firewall of this host, with or without a running node.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{Output, Tone};
use super::people::count;
use crate::config::{self, Config};
use crate::enforcement::firewall::{self, FirewallError, State};

/// Arguments of `banmesh firewall`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh firewall status
  banmesh firewall check")]
pub struct FirewallArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show the table in the kernel: its sets, how many entries they have and how many packets they dropped
    #[command(after_help = "\
Examples:
  banmesh firewall status
  banmesh firewall status --json")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Find out whether this process may change the firewall and what the kernel can do, without changing anything
    #[command(after_help = "\
Examples:
  banmesh firewall check
  sudo -u banmesh banmesh firewall check")]
    Check,
    /// Remove the table with all its bans. Stop the node or set firewall.enabled to false first
    #[command(after_help = "\
Examples:
  banmesh firewall remove
  sudo banmesh firewall remove")]
    Remove,
}

/// Runs `banmesh firewall`; `path` is the configuration file given with `--config`. The exit code is 1 when there is no table to show or
/// remove, or something is in the way.
pub fn run(args: &FirewallArgs, path: Option<&Path>) -> ExitCode {
    let config = match config::load(path, config::process_environment()) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    let table = config.firewall.table.as_str();
    let done = match args.command {
        Command::Status { json } => status(&config, table, json),
        Command::Check => check(&config),
        Command::Remove => remove(table),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("banmesh: {error}");
            ExitCode::FAILURE
        }
    }
}

fn status(config: &Config, table: &str, json: bool) -> Result<ExitCode, FirewallError> {
    let Some(State { owned, persists, hooks, sets }) = firewall::read(table)? else {
        let why = if config.firewall.enabled { "no node runs here yet" } else { "firewall.enabled is false" };
        eprintln!("there is no table inet {table} on this host: {why}");
        return Ok(ExitCode::FAILURE);
    };
    let mut output = Output::stdout(json);
    let hooks: Vec<&str> = hooks.iter().map(|hook| hook.as_str()).collect();
    if json {
        let sets: Vec<_> = sets
            .iter()
            .map(|(name, entries, packets)| serde_json::json!({ "name": name, "entries": entries, "packets": packets }))
            .collect();
        let answer =
            serde_json::json!({ "table": table, "hooks": hooks, "owned": owned, "persists": persists, "sets": sets });
        return Ok(written(output.json(&answer)));
    }
    let owner = if owned { "kept current by a running node" } else { "no running node; bans hold until they end" };
    let safe = match (persists, owned) {
        (true, true) => "`nft flush ruleset` does not remove it",
        (true, false) => "`nft flush ruleset` removes it while no node runs",
        (false, _) => "`nft flush ruleset` removes it (kernel before 6.9)",
    };
    let mut pairs = vec![
        ("table", format!("inet {table}, at {}", hooks.join(", "))),
        ("owner", owner.to_owned()),
        ("flush", safe.to_owned()),
    ];
    pairs.extend(sets.iter().map(|(name, elements, packets)| {
        let elements = elements.map_or_else(String::new, |elements| format!("{}, ", count(elements as u64, "entry")));
        let done = if name.starts_with("hosts") || name.starts_with("nets") { "dropped" } else { "matched" };
        (&**name, format!("{elements}{} {done}", count(*packets, "packet")))
    }));
    Ok(written(output.pairs(&pairs)))
}

fn check(config: &Config) -> Result<ExitCode, FirewallError> {
    let found = firewall::check()?;
    let mut output = Output::stdout(false);
    let good =
        output.colored(Tone::Good, "this process may change the firewall, and the kernel has all that is needed");
    let persists = if found.persists {
        "tables can have an owner and persist: `nft flush ruleset` does not remove bans"
    } else {
        "tables cannot persist (kernel before 6.9): after `nft flush ruleset` bans are missing until the node notices, about a second"
    };
    let connections = match &found.ends_connections {
        Ok(()) => "connections of banned sources can be ended (firewall.end_connections)".to_owned(),
        Err(error) => format!("connections of banned sources cannot be ended: {error}"),
    };
    let enabled = if config.firewall.enabled {
        "firewall.enabled is true"
    } else {
        "firewall.enabled is false, so no bans are in the firewall"
    };
    let lines = [persists, &connections, enabled];
    Ok(written(good.and_then(|()| lines.into_iter().try_for_each(|line| output.line(line)))))
}

fn remove(table: &str) -> Result<ExitCode, FirewallError> {
    if firewall::remove(table)? {
        return Ok(written(Output::stdout(false).line(&format!("removed the table inet {table} with all its bans"))));
    }
    eprintln!("there is no table inet {table} on this host");
    Ok(ExitCode::FAILURE)
}

fn written(written: std::io::Result<()>) -> ExitCode {
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
