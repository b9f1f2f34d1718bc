//! The command line: `run`, `check`, `filter`, `haproxy` and `store` work by themselves; the others talk to a running node.

pub mod allow;
pub mod api;
pub mod ban;
mod bulk;
pub mod check;
pub mod client;
pub mod cluster;
mod columns;
pub mod completions;
pub mod filter;
pub mod haproxy;
pub mod list;
pub mod man;
mod output;
pub mod ping;
pub mod purge;
mod refusal;
pub mod reload;
pub mod remote;
mod secret;
pub mod status;
pub mod store;
pub mod unban;
pub mod watch;
pub mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::client::NodeArgs;
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
    /// Try filters on lines, list them, import them from fail2ban
    Filter(filter::FilterArgs),
    /// Check, export or import the journal of a node that is stopped
    Store(store::StoreArgs),
    /// Write HAProxy's side of it, and look for traps in a haproxy.cfg
    Haproxy(haproxy::HaproxyArgs),
    /// Show a running node: bans, memory, cluster
    Status(status::Args),
    /// List the bans
    List(list::Args),
    /// Ban addresses and networks, on every node
    Ban(ban::Args),
    /// Lift bans, on every node
    Unban(unban::Args),
    /// Lift all bans, or those that match, on every node
    Purge(purge::Args),
    /// Never ban an address or network, on every node
    Allow(allow::AllowArgs),
    /// Take an allowance back, on every node
    Disallow(allow::DisallowArgs),
    /// List who is never banned
    Allowlist(allow::ListArgs),
    /// Say why an address is banned, or is not
    Why(why::Args),
    /// The cluster: its members, and keys for it
    Cluster(cluster::Args),
    /// Make passwords' hashes and tokens for the API
    Api(api::Args),
    /// Read the configuration again, as SIGHUP does
    Reload(reload::Args),
    /// Ask whether the node answers
    Ping(ping::Args),
    /// Show bans and lifts as they happen
    Watch(watch::Args),
    /// Print the completions for a shell
    Completions(completions::Args),
    /// Print the manual page
    Man(man::Args),
}

/// Does what the arguments of the process say.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let named = cli.config;
    let filters = |config: &config::Config| app::detection(config).map(drop);
    if cli.test {
        return check::run(&check::CheckArgs::default(), named.as_deref(), filters);
    }
    let mut command = cli.command.unwrap_or(Command::Run);
    if let Some(node) = command.node() {
        find_socket(node, named.as_deref());
    }
    match command {
        Command::Run => node(named),
        Command::Check(args) => check::run(&args, named.as_deref(), filters),
        Command::Filter(args) => filter::run(&args, named.as_deref()),
        Command::Store(args) => store::run(&args),
        Command::Haproxy(args) => haproxy::run(&args, named.as_deref()),
        Command::Status(args) => status::run(args),
        Command::List(args) => list::run(args),
        Command::Ban(args) => ban::run(args),
        Command::Unban(args) => unban::run(args),
        Command::Purge(args) => purge::run(args),
        Command::Allow(args) => allow::allow(args),
        Command::Disallow(args) => allow::disallow(args),
        Command::Allowlist(args) => allow::list(args),
        Command::Why(args) => why::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Api(args) => api::run(&args),
        Command::Reload(args) => reload::run(args),
        Command::Ping(args) => ping::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

impl Command {
    /// Which node the command talks to, if it talks to one.
    const fn node(&mut self) -> Option<&mut NodeArgs> {
        match self {
            Self::Status(args) => Some(&mut args.node),
            Self::List(args) => Some(&mut args.node),
            Self::Ban(args) => Some(&mut args.node),
            Self::Unban(args) => Some(&mut args.node),
            Self::Purge(args) => Some(&mut args.node),
            Self::Allow(args) => Some(&mut args.node),
            Self::Disallow(args) => Some(&mut args.node),
            Self::Allowlist(args) => Some(&mut args.node),
            Self::Why(args) => Some(&mut args.node),
            Self::Cluster(args) => args.node(),
            Self::Reload(args) => Some(&mut args.node),
            Self::Ping(args) => Some(&mut args.node),
            Self::Watch(args) => Some(&mut args.node),
            Self::Run
            | Self::Api(_)
            | Self::Check(_)
            | Self::Filter(_)
            | Self::Store(_)
            | Self::Haproxy(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }
}

/// Where neither an option nor a variable names the socket, the configuration does: the one that the node runs with.
fn find_socket(node: &mut NodeArgs, named: Option<&Path>) {
    if node.url().is_some() || node.socket.is_some() || std::env::var_os("BANMESH_SOCKET").is_some() {
        return;
    }
    match config::load(named, config::process_environment()) {
        Ok(loaded) => node.socket = Some(loaded.config.admin_socket()),
        // Who may talk to the node need not be able to read its configuration; one that was named must be right.
        Err(errors) if named.is_some() => eprintln!("{errors}"),
        Err(_) => {}
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
