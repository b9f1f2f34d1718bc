//! The command line.

pub mod check;
pub mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{app, config};

/// fail2ban for a fleet of HAProxy nodes: syslog in, bans shared by gossip, answers over SPOP.
///
/// Without a command it runs a node.
#[derive(Debug, Parser)]
#[command(name = "banmesh", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration; without it ./config.yaml, then /etc/banmesh/config.yaml, then the defaults
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit, as `banmesh check` does
    #[arg(short = 't')]
    test: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node (the default)
    Run,
    /// Check the configuration: everything that is wrong with it, at once
    Check(check::CheckArgs),
    /// Check, export or import the journal of a stopped node
    Store(store::StoreArgs),
}

/// Does what the arguments of the process say.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let named = cli.config;
    let filters = |config: &config::Config| app::detection(config).map(drop);
    if cli.test {
        return check::run(&check::CheckArgs::default(), named.as_deref(), filters);
    }
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => node(named),
        Command::Check(args) => check::run(&args, named.as_deref(), filters),
        Command::Store(args) => store::run(&args),
    }
}

/// Runs a node; 1 when it cannot start.
fn node(named: Option<PathBuf>) -> ExitCode {
    let loaded = match config::load(named.as_deref(), config::process_environment()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    match app::run(loaded, named) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: {error}");
            ExitCode::FAILURE
        }
    }
}
