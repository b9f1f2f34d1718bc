//! `banmesh evidence`: what the cluster knows about an account or a name, and the names that are never bait.

use std::path::Path;
use std::process::ExitCode;

use super::client::{self, escaped};
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use crate::app::never_names;
use crate::config::{self, Config};
use crate::operation::api::views::{NameView, ReloadView, SeenView};

/// Arguments of `banmesh evidence`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(after_help = "\
Nodes know accounts by a keyed hash. The node that answers hashes the name that you type.

Examples:
  banmesh evidence bob
  banmesh evidence anna@example.org --json
  banmesh evidence never add postmaster")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    node: NodeArgs,
    /// The name of an account
    name: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Names that strangers may try without being banned at once
    #[command(
        subcommand,
        after_help = "\
Examples:
  banmesh evidence never list
  banmesh evidence never add postmaster"
    )]
    Never(Never),
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Never {
    /// Add names on this host, and reload its node
    #[command(after_help = "\
Each node has names of its own. They are kept in node.data_dir, in addition to evidence.never and evidence.never_files.

Examples:
  banmesh evidence never add postmaster
  banmesh evidence never add info@example.org sales@example.org")]
    Add(NeverArgs),
    /// Remove names that were added with `add`, and reload the node
    #[command(after_help = "\
Examples:
  banmesh evidence never remove postmaster
  banmesh evidence never remove info@example.org sales@example.org")]
    Remove(NeverArgs),
    /// List the names of this host: those added with `add`, and those of the configuration
    #[command(after_help = "\
Examples:
  banmesh evidence never list
  banmesh evidence never list --json")]
    List(NodeArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct NeverArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Names of accounts
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Args {
    /// The options for the node.
    pub const fn node(&mut self) -> &mut NodeArgs {
        match &mut self.command {
            None => &mut self.node,
            Some(Command::Never(Never::Add(args) | Never::Remove(args))) => &mut args.node,
            Some(Command::Never(Never::List(node))) => node,
        }
    }
}

/// Runs `banmesh evidence`.
pub fn run(args: Args, config_file: Option<&Path>) -> ExitCode {
    match (args.command, args.name) {
        (Some(Command::Never(Never::Add(args))), _) => change(&args, config_file, true),
        (Some(Command::Never(Never::Remove(args))), _) => change(&args, config_file, false),
        (Some(Command::Never(Never::List(node))), _) => {
            finished(&node, load(config_file).and_then(|config| list_names(&config, &mut Output::stdout(node.json))))
        }
        (None, name) => about(&args.node, &name.unwrap_or_default()),
    }
}

/// Adds or removes names, and reloads the node.
fn change(args: &NeverArgs, config_file: Option<&Path>, add: bool) -> ExitCode {
    let changed = load(config_file).and_then(|config| {
        let done = never_names::change(&config.node.data_dir, &args.names, add);
        done.map_err(|error| Failure::Usage(error.to_string()))
    });
    let changed = match changed {
        Ok(changed) => changed,
        Err(failure) => return finished(&args.node, Err(failure)),
    };
    if changed == 0 {
        let state = if add { "all of these names are listed already" } else { "none of these names was listed" };
        return finished(&args.node, Output::stdout(args.node.json).line(state).map_err(Failure::from));
    }
    client::run(&args.node, async |client, output| {
        let done: ReloadView = client.post("/api/v1/reload", &serde_json::json!({})).await?;
        if output.json {
            return Ok(output.json(&serde_json::json!({ "changed": changed, "message": done.message }))?);
        }
        let verb = if add { "added" } else { "removed" };
        Ok(output.colored(Tone::Good, &format!("{changed} {verb}; {}", done.message))?)
    })
}

fn load(config_file: Option<&Path>) -> Result<Config, Failure> {
    let loaded = config::load(config_file, config::process_environment());
    loaded.map(|loaded| loaded.config).map_err(|errors| Failure::Usage(errors.to_string()))
}

fn list_names(config: &Config, output: &mut Output) -> Result<(), Failure> {
    let all = never_names::all(config).map_err(|error| Failure::Usage(error.to_string()))?;
    if output.json {
        let rows: Vec<_> = all.iter().map(|(name, from)| serde_json::json!({ "name": name, "from": from })).collect();
        return Ok(output.json(&rows)?);
    }
    if all.is_empty() {
        return Ok(output.colored(Tone::Faint, "no names")?);
    }
    Ok(all.iter().try_for_each(|(name, from)| output.line(&format!("{name}  ({from})")))?)
}

fn finished(node: &NodeArgs, done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(node.json);
            failure.exit_code()
        }
    }
}

/// Shows what is known about a name.
fn about(node: &NodeArgs, name: &str) -> ExitCode {
    client::run(node, async |client, output| {
        let view: NameView = client.get(&format!("/api/v1/evidence/names/{}", escaped(name))).await?;
        if output.json {
            return Ok(output.json(&view)?);
        }
        match (&view.last_login, view.bait, view.never) {
            (Some(at), ..) => {
                output.colored(
                    Tone::Good,
                    &format!("{} is in use: last login {at} (at the grain of a day)", view.name),
                )?;
            }
            (None, _, true) => output.line(&format!("{} is never bait (evidence.never)", view.name))?,
            (None, true, false) => {
                let text = format!("{} is bait: unrelated networks tried it and nobody uses it", view.name);
                output.colored(Tone::Bad, &text)?;
            }
            (None, false, false) => output.line(&format!("no login to {} within 90d", view.name))?,
        }
        if view.wanders {
            output.line("it logs in from more than 12 wide networks, so no address counts as its home")?;
        }
        list("at home at", &view.homes, output)?;
        list("tried by", &view.tried_by, output)?;
        Ok(output.colored(Tone::Faint, &format!("known to nodes as {}", view.account))?)
    })
}

fn list(what: &str, all: &[SeenView], output: &mut Output) -> std::io::Result<()> {
    for SeenView { target, first, last } in all {
        let first = first.as_ref().map_or_else(String::new, |first| format!("since {first}, "));
        output.line(&format!("  {what} {target} ({first}last {last})"))?;
    }
    Ok(())
}
