//! `banmesh allow`, `disallow` and `allowlist`: who is never banned, on every node.

use std::path::PathBuf;
use std::process::ExitCode;

use super::bulk::{self, Bulk};
use super::client::{self, Client, Failure, NodeArgs, caller, escaped};
use super::columns::Columns;
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{
    AllowManyRequest, AllowRequest, AllowedSource, AllowedView, AllowlistView, EntryView,
};
use banmesh_types::target::Target;

/// Never ban a target, on every node; a ban of exactly it ends
#[derive(Clone, Debug, clap::Args)]
pub struct AllowArgs {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one per line (`-` is standard input); `#` begins a comment
    #[arg(long, short, value_name = "FILE", conflicts_with = "remove")]
    file: Option<PathBuf>,
    /// For how long, such as 12h or 7d [default: for ever]
    #[arg(long = "for", value_name = "TIME", conflicts_with = "remove")]
    duration: Option<String>,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who allows [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Allow also what is very wide
    #[arg(long, conflicts_with = "remove")]
    force: bool,
    /// Take the allowance back, as `disallow` does
    #[arg(long)]
    remove: bool,
}

/// Take an allowance back, on every node
#[derive(Clone, Debug, clap::Args)]
pub struct DisallowArgs {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The address or network, exactly as it was allowed
    target: String,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who takes it back [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// List who is never banned, by the configuration or by an operator
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `banmesh allow`.
pub fn allow(args: AllowArgs) -> ExitCode {
    let AllowArgs { node, targets, file, duration, reason, by, force, remove } = args;
    client::run(&node, async |client, output| {
        let by = by.or_else(caller);
        if let (None, [target]) = (&file, targets.as_slice()) {
            if remove {
                return disallow_one(client, output, target, &reason, by).await;
            }
            let request = AllowRequest { target: target.clone(), duration, reason, by, force };
            let entry: EntryView = client.post("/api/v1/allowlist", &request).await?;
            if output.json {
                return Ok(output.json(&entry)?);
            }
            let end =
                entry.remaining_seconds.map_or_else(|| "for ever".to_owned(), |left| format!("for {}", brief(left)));
            output.colored(Tone::Good, &format!("allowed {} {end}", entry.target))?;
            for ban in &entry.exceptions {
                output.colored(Tone::Bad, &format!("still banned within it, by an operator: {ban}"))?;
            }
            return Ok(());
        }
        if remove {
            return Err(Failure::Usage("--remove needs exactly one target".to_owned()));
        }
        let request = AllowManyRequest { targets: Vec::new(), duration, reason, by, force };
        let body = |targets| AllowManyRequest { targets, ..request.clone() };
        let bulk = Bulk { path: "/api/v1/allowlist/bulk", body, done: "allowed", moot: &[] };
        bulk::send(client, output, &bulk, bulk::targets(targets, file.as_deref())?).await
    })
}

/// `banmesh disallow`.
pub fn disallow(args: DisallowArgs) -> ExitCode {
    let DisallowArgs { node, target, reason, by } = args;
    client::run(&node, async |client, output| disallow_one(client, output, &target, &reason, by.or_else(caller)).await)
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
    Ok(output.line(&format!("took the allowance of {} back", entry.target))?)
}

/// `banmesh allowlist`.
pub fn list(args: ListArgs) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let members = all(client).await?;
        if output.json {
            return Ok(output.json(&AllowlistView { allowlist: members, next: None })?);
        }
        show(&members, output)
    })
}

async fn all(client: &mut Client) -> Result<Vec<AllowedView>, Failure> {
    let mut members = Vec::new();
    let mut after: Option<Target> = None;
    loop {
        let from = after.map(|target| format!("&after={}", escaped(&target.to_string()))).unwrap_or_default();
        let page: AllowlistView = client.get(&format!("/api/v1/allowlist?limit=10000{from}")).await?;
        members.extend(page.allowlist);
        let Some(next) = page.next else { return Ok(members) };
        after = Some(next);
    }
}

fn show(members: &[AllowedView], output: &mut Output) -> Result<(), Failure> {
    if members.is_empty() {
        return Ok(output.colored(Tone::Faint, "nobody is allowed: everybody can be banned")?);
    }
    let mut table = Columns::new(&["TARGET", "ENDS IN", "BY", "NODE", "REASON"]);
    for member in members {
        let by = match member.source {
            AllowedSource::Configuration => "configuration".to_owned(),
            AllowedSource::Operator => format!("operator {}", member.by.as_deref().unwrap_or_default()),
        };
        table.row([
            member.target.to_string(),
            member.remaining_seconds.map_or_else(|| "never".to_owned(), brief),
            by,
            member.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            member.reason.clone(),
        ]);
    }
    output.colored(Tone::Heading, &table.heading())?;
    table.lines().try_for_each(|line| output.line(&line))?;
    Ok(())
}
