//! `banmesh allow`, `disallow` and `allowlist`: the allowlist of the cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use super::bulk::{self, Bulk};
use super::client::{self, Client, caller, escaped};
use super::columns::Columns;
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{
    AllowManyRequest, AllowRequest, AllowedSource, AllowedView, AllowlistView, EntryView,
};
use banmesh_types::target::Target;

/// Arguments of `banmesh allow`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Filters never ban an allowed address. An existing ban of the same target ends.

Examples:
  banmesh allow 203.0.113.0/24 --for 7d --reason 'a partner'
  banmesh allow 198.51.100.7 2001:db8:7::/48 --for 12h
  banmesh allow --file partners.txt
  banmesh allow --remove 203.0.113.0/24")]
pub struct AllowArgs {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks to allow
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one per line; `-` is standard input, `#` starts a comment
    #[arg(long, short, value_name = "FILE", conflicts_with = "remove")]
    file: Option<PathBuf>,
    /// How long, such as 12h or 7d [default: permanently]
    #[arg(long = "for", aliases = ["duration", "ttl", "time", "bantime"], value_name = "TIME", conflicts_with = "remove")]
    duration: Option<String>,
    /// Reason to record
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Name to record as the author [default: the current user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Allow very wide networks, too
    #[arg(long, conflicts_with = "remove")]
    force: bool,
    /// Remove the target from the allowlist, as `disallow` does
    #[arg(long)]
    remove: bool,
}

/// Arguments of `banmesh disallow`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh disallow 203.0.113.0/24
  banmesh disallow 203.0.113.0/24 --reason 'contract ended'")]
pub struct DisallowArgs {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Address or network, exactly as it was allowed
    target: String,
    /// Reason to record
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Name to record as the author [default: the current user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Arguments of `banmesh allowlist`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Lists the allowlist of the node's configuration and the entries that operators have added.

Examples:
  banmesh allowlist
  banmesh allowlist --json")]
pub struct ListArgs {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Runs `banmesh allow`.
pub fn allow(args: AllowArgs) -> ExitCode {
    let AllowArgs { node, targets, file, duration, reason, by, force, remove } = args;
    let read = || match bulk::Targets::read(targets, file)? {
        targets if remove && targets.one().is_none() => {
            Err(Failure::Usage("--remove takes exactly one target".to_owned()))
        }
        targets => Ok(targets),
    };
    client::run_with(&node, read, async |client, output, targets| {
        let by = by.or_else(caller);
        if let Some(target) = targets.one() {
            if remove {
                return disallow_one(client, output, target, &reason, by).await;
            }
            let request = AllowRequest { target: target.to_owned(), duration, reason, by, force };
            let entry: EntryView = client.post("/api/v1/allowlist", &request).await?;
            if output.json {
                return Ok(output.json(&entry)?);
            }
            let end =
                entry.remaining_seconds.map_or_else(|| "permanently".to_owned(), |left| format!("for {}", brief(left)));
            output.colored(Tone::Good, &format!("allowed {} {end}", entry.target))?;
            for ban in &entry.exceptions {
                output.colored(Tone::Bad, &format!("still banned by an operator: {ban}"))?;
            }
            return Ok(());
        }
        let all_or_none = targets.are_arguments();
        let request = AllowManyRequest { targets: Vec::new(), duration, reason, by, force, all_or_none };
        let body = |targets| AllowManyRequest { targets, ..request.clone() };
        let bulk = Bulk { path: "/api/v1/allowlist/bulk", body, done: "allowed", unchanged_codes: &[] };
        bulk::send(client, output, &bulk, targets).await
    })
}

/// Runs `banmesh disallow`.
pub fn disallow(args: DisallowArgs) -> ExitCode {
    let DisallowArgs { node, target, reason, by } = args;
    let read = || bulk::parsed(&target).map(|_| ());
    client::run_with(&node, read, async |client, output, ()| {
        disallow_one(client, output, &target, &reason, by.or_else(caller)).await
    })
}

async fn disallow_one(
    client: &mut Client,
    output: &mut Output,
    target: &str,
    reason: &str,
    by: Option<String>,
) -> Result<(), Failure> {
    let mut path = format!("/api/v1/allowlist/{}?reason={}", escaped(target), escaped(reason));
    if let Some(by) = by {
        path.push_str(&format!("&by={}", escaped(&by)));
    }
    let entry: EntryView = client.delete(&path).await?;
    if output.json {
        return Ok(output.json(&entry)?);
    }
    Ok(output.line(&format!("removed {} from the allowlist", entry.target))?)
}

/// Runs `banmesh allowlist`.
pub fn list(args: ListArgs) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let entries = all(client).await?;
        if output.json {
            return Ok(output.json(&AllowlistView { allowlist: entries, next: None })?);
        }
        show(&entries, output)
    })
}

async fn all(client: &mut Client) -> Result<Vec<AllowedView>, Failure> {
    let mut entries = Vec::new();
    let mut after: Option<Target> = None;
    loop {
        let from = after.map(|target| format!("&after={}", escaped(&target.to_string()))).unwrap_or_default();
        let page: AllowlistView = client.get(&format!("/api/v1/allowlist?limit=10000{from}")).await?;
        entries.extend(page.allowlist);
        let Some(next) = page.next else { return Ok(entries) };
        after = Some(next);
    }
}

fn show(entries: &[AllowedView], output: &mut Output) -> Result<(), Failure> {
    if entries.is_empty() {
        return Ok(output.colored(Tone::Faint, "the allowlist is empty")?);
    }
    let mut table = Columns::new(&["TARGET", "ENDS IN", "BY", "NODE", "REASON"]);
    for entry in entries {
        let by = match entry.source {
            AllowedSource::Configuration => "configuration".to_owned(),
            AllowedSource::Own => "own address".to_owned(),
            AllowedSource::Operator => format!("operator {}", entry.by.as_deref().unwrap_or_default()),
        };
        table.row([
            entry.target.to_string(),
            entry.remaining_seconds.map_or_else(|| "never".to_owned(), brief),
            by,
            entry.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            entry.reason.clone(),
        ]);
    }
    output.colored(Tone::Heading, &table.heading())?;
    table.lines().try_for_each(|line| output.line(&line))?;
    Ok(())
}
