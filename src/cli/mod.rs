//! The command line. Most commands talk to a running node; `run`, `check`, `filter`, `haproxy`, `firewall`, `store`,
//! `api` and `cluster keygen` need none.

pub mod allow;
pub mod api;
pub mod ban;
mod bulk;
pub mod check;
pub mod client;
pub mod cluster;
mod columns;
pub mod completions;
pub mod discard;
pub mod doctor;
pub mod evidence;
pub mod failure;
pub mod feeds;
pub mod filter;
mod findings;
pub mod firewall;
mod groups;
pub mod haproxy;
pub mod list;
pub mod man;
pub mod migrate;
mod names;
pub mod node_args;
mod output;
mod people;
pub mod ping;
pub mod proxy;
pub mod purge;
mod refusal;
pub mod reload;
pub mod remote;
mod repeat;
pub mod replay;
mod secret;
pub mod status;
pub mod store;
pub mod top;
pub mod unban;
pub mod watch;
pub mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};

use self::node_args::NodeArgs;
use self::proxy::Proxy;
use crate::{app, config};

/// fail2ban for a fleet of HAProxy load balancers
///
/// Without a command, banmesh runs a node.
#[derive(Debug, Parser)]
#[command(
    name = "banmesh",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  banmesh check
  banmesh -c /etc/banmesh/config.yaml
  banmesh status
  banmesh ban 198.51.100.7 --for 12h --reason 'password guessing'

`banmesh help COMMAND` shows examples for each command."
)]
pub struct Cli {
    /// Configuration file [default: ./config.yaml, else /etc/banmesh/config.yaml, else built-in defaults]
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
    #[command(after_help = "\
Examples:
  banmesh run
  banmesh run --config /etc/banmesh/config.yaml
  banmesh run --without-journal")]
    Run(RunArgs),
    /// Check the configuration and report all errors at once
    #[command(aliases = ["validate", "configtest"])]
    Check(check::CheckArgs),
    /// Test filters on log lines, list filters, import filters from fail2ban
    #[command(aliases = ["filters", "jail", "jails"])]
    Filter(filter::FilterArgs),
    /// Take over the configuration and the bans of fail2ban
    Migrate(migrate::Args),
    /// Show what a node would have decided about archived logs
    Replay(replay::Args),
    /// Check, export or import the journal of a stopped node
    Store(store::StoreArgs),
    /// Generate and check HAProxy configuration
    Haproxy(haproxy::HaproxyArgs),
    /// Generate and check nginx configuration that asks for verdicts
    Nginx(proxy::ProxyArgs),
    /// Generate and check Traefik configuration that asks for verdicts
    Traefik(proxy::ProxyArgs),
    /// Generate and check Caddy configuration that asks for verdicts
    Caddy(proxy::ProxyArgs),
    /// Generate and check Envoy configuration that asks for verdicts
    Envoy(proxy::ProxyArgs),
    /// Show, check or remove the bans in this host's firewall
    Firewall(firewall::FirewallArgs),
    /// Show whether a node and its cluster work: inputs, filters, HAProxy, nodes, disk, problems
    #[command(aliases = ["health", "info"])]
    Status(status::Args),
    /// Show the most frequent sources, networks, filters, authors of bans and nodes of the last hour
    #[command(alias = "stats")]
    Top(top::Args),
    /// Run all checks that the documentation describes, and print what to do
    #[command(aliases = ["diagnose", "troubleshoot"])]
    Doctor(doctor::Args),
    /// List bans
    #[command(aliases = ["ls", "bans", "banned"])]
    List(list::Args),
    /// Ban addresses and networks, on every node
    #[command(aliases = ["block", "banip"])]
    Ban(ban::Args),
    /// Remove the bans of addresses and networks, on every node
    #[command(aliases = ["unblock", "unbanip", "pardon"])]
    Unban(unban::Args),
    /// Remove all bans, or those that match, on every node
    #[command(aliases = ["flush", "clear"])]
    Purge(purge::Args),
    /// Remove expired bans and old unbans that are still kept, on every node
    Discard(discard::Args),
    /// Add addresses and networks to the allowlist, on every node
    #[command(alias = "permit")]
    Allow(allow::AllowArgs),
    /// Remove an address or network from the allowlist, on every node
    #[command(aliases = ["unallow", "disallow-ip"])]
    Disallow(allow::DisallowArgs),
    /// List the addresses and networks that are never banned
    #[command(aliases = ["allowed", "whitelist", "allow-list", "ignoreip"])]
    Allowlist(allow::ListArgs),
    /// Show whether an address is banned, and why
    #[command(aliases = ["explain", "check-ip", "lookup"])]
    Why(why::Args),
    /// Show what is known about an account or a name
    Evidence(evidence::Args),
    /// Show, update and test the feeds of bad addresses
    Feeds(feeds::Args),
    /// Show the cluster's members, generate cluster keys
    #[command(aliases = ["nodes", "members"])]
    Cluster(cluster::Args),
    /// Generate password hashes and tokens for the API
    Api(api::Args),
    /// Reload the configuration, as SIGHUP does
    Reload(reload::Args),
    /// Check that a node answers
    Ping(ping::Args),
    /// Print bans and unbans as they happen
    #[command(aliases = ["events", "follow", "tail"])]
    Watch(watch::Args),
    /// Print the completion script for a shell
    Completions(completions::Args),
    /// Print the manual page
    Man(man::Args),
}

/// Arguments of `banmesh run`.
#[derive(Clone, Debug, Default, clap::Args)]
struct RunArgs {
    /// Start even if the journal is damaged, or the disk full or read-only
    ///
    /// The node then starts with the bans that it can read, keeps new ones in memory, and writes them when the disk works again. A damaged
    /// journal is moved away. In a cluster, a node always does this.
    #[arg(long)]
    without_journal: bool,
}

/// Runs the command that the arguments of the process name.
pub fn run() -> ExitCode {
    let matches = groups::grouped(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let config_file = cli.config;
    let filters = app::examine_filters;
    if cli.test {
        return check::run(&check::CheckArgs::default(), config_file.as_deref(), filters);
    }
    let mut command = cli.command.unwrap_or(Command::Run(RunArgs::default()));
    if let Some(node) = command.node() {
        find_socket(node, config_file.as_deref());
    }
    match command {
        Command::Run(args) => node(config_file, &args),
        Command::Check(args) => check::run(&args, config_file.as_deref(), filters),
        Command::Filter(args) => filter::run(&args, config_file.as_deref()),
        Command::Migrate(args) => migrate::run(args),
        Command::Replay(args) => replay::run(&args, config_file.as_deref()),
        Command::Store(args) => store::run(&args),
        Command::Haproxy(args) => haproxy::run(&args, config_file.as_deref()),
        Command::Nginx(args) => proxy::run(Proxy::Nginx, &args, config_file.as_deref()),
        Command::Traefik(args) => proxy::run(Proxy::Traefik, &args, config_file.as_deref()),
        Command::Caddy(args) => proxy::run(Proxy::Caddy, &args, config_file.as_deref()),
        Command::Envoy(args) => proxy::run(Proxy::Envoy, &args, config_file.as_deref()),
        Command::Firewall(args) => firewall::run(&args, config_file.as_deref()),
        Command::Status(args) => status::run(args),
        Command::Doctor(args) => doctor::run(&args, config_file.as_deref(), filters),
        Command::List(args) => list::run(args),
        Command::Ban(args) => ban::run(args),
        Command::Unban(args) => unban::run(args),
        Command::Purge(args) => purge::run(args),
        Command::Discard(args) => discard::run(args),
        Command::Allow(args) => allow::allow(args),
        Command::Disallow(args) => allow::disallow(args),
        Command::Allowlist(args) => allow::list(args),
        Command::Why(args) => why::run(args),
        Command::Evidence(args) => evidence::run(args, config_file.as_deref()),
        Command::Feeds(args) => feeds::run(args, config_file.as_deref()),
        Command::Cluster(args) => cluster::run(args),
        Command::Api(args) => api::run(&args),
        Command::Reload(args) => reload::run(args),
        Command::Ping(args) => ping::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Top(args) => top::run(args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

impl Command {
    /// The options for the node that the command talks to; `None` if it needs no running node.
    const fn node(&mut self) -> Option<&mut NodeArgs> {
        match self {
            Self::Status(args) => Some(&mut args.node),
            Self::Doctor(args) => Some(&mut args.node),
            Self::List(args) => Some(&mut args.node),
            Self::Ban(args) => Some(&mut args.node),
            Self::Unban(args) => Some(&mut args.node),
            Self::Purge(args) => Some(&mut args.node),
            Self::Discard(args) => Some(&mut args.node),
            Self::Allow(args) => Some(&mut args.node),
            Self::Disallow(args) => Some(&mut args.node),
            Self::Allowlist(args) => Some(&mut args.node),
            Self::Why(args) => Some(&mut args.node),
            Self::Evidence(args) => Some(args.node()),
            Self::Feeds(args) => args.node(),
            Self::Cluster(args) => args.node(),
            Self::Reload(args) => Some(&mut args.node),
            Self::Ping(args) => Some(&mut args.node),
            Self::Migrate(args) => args.node(),
            Self::Watch(args) => Some(&mut args.node),
            Self::Top(args) => Some(&mut args.node),
            Self::Run(_)
            | Self::Api(_)
            | Self::Check(_)
            | Self::Filter(_)
            | Self::Firewall(_)
            | Self::Replay(_)
            | Self::Store(_)
            | Self::Haproxy(_)
            | Self::Nginx(_)
            | Self::Traefik(_)
            | Self::Caddy(_)
            | Self::Envoy(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }
}

/// Fills in the socket from the configuration, unless an option or a variable names a node.
fn find_socket(node: &mut NodeArgs, config_file: Option<&Path>) {
    if node.url().is_some() || node.socket.is_some() || std::env::var_os("BANMESH_SOCKET").is_some() {
        return;
    }
    match config::load(config_file, config::process_environment()) {
        Ok(loaded) => node.socket = Some(loaded.config.admin_socket()),
        // An operator may use the socket without being able to read the configuration. A file given with --config must be valid.
        Err(errors) if config_file.is_some() => eprintln!("{errors}"),
        Err(_) => {}
    }
}

/// Runs a node. The exit code is 1 when it cannot start or fails.
fn node(config_file: Option<PathBuf>, args: &RunArgs) -> ExitCode {
    let loaded = match config::load(config_file.as_deref(), config::process_environment()) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    match app::run(loaded, config_file, app::Options { without_journal: args.without_journal }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command and subcommand with its path, such as `banmesh cluster status`.
    fn commands(command: clap::Command, parents: &str) -> Vec<(String, clap::Command)> {
        let path = format!("{parents} {}", command.get_name()).trim().to_owned();
        let subcommands = command.get_subcommands().cloned().flat_map(|command| commands(command, &path));
        let mut all: Vec<_> = subcommands.collect();
        all.push((path, command));
        all
    }

    /// The words of a command line with single quotes, up to a pipe or a redirection.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(['|', '>', '&']).next().unwrap_or_default().trim();
        let parts = line.split('\'').enumerate();
        parts
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn every_help_has_examples_that_parse() {
        for (path, mut command) in commands(Cli::command(), "") {
            let help = command.render_long_help().to_string();
            let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{path}: no examples"));
            let lines: Vec<&str> = examples.lines().take_while(|line| line.starts_with("  ")).collect();
            assert!(lines.iter().any(|line| line.contains(&path)), "{path}: {lines:?}");
            assert!(lines.len() >= 2, "{path}: two examples say more than one: {lines:?}");
            for line in lines {
                // After a user of the same name.
                let line = line.replace("sudo -u banmesh ", "");
                let start = line.find("banmesh ").unwrap_or_else(|| panic!("{path}: {line}"));
                let parsed = Cli::try_parse_from(words(&line[start..]));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn words_that_people_try_are_understood() {
        for line in [
            "banmesh bans",
            "banmesh whitelist",
            "banmesh flush --yes",
            "banmesh ban 192.0.2.1 --duration 1h",
            "banmesh ban 192.0.2.1 --ttl 1h",
            "banmesh allow 192.0.2.1 192.0.2.2 --duration 1h",
            "banmesh list --limit 5 --utc",
            "banmesh status --watch=5",
        ] {
            assert!(Cli::try_parse_from(words(line)).is_ok(), "{line}");
        }
        let help = groups::grouped(Cli::command()).render_long_help().to_string();
        for alias in ["whitelist", "flush", "banip"] {
            assert!(!help.contains(alias), "{alias} is hidden");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        groups::grouped(Cli::command()).debug_assert();
    }
}
