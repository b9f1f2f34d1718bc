//! `banmesh purge`: removes all bans that match.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde::Deserialize;

use super::bulk::{self, Bulk};
use super::client::{self, Client, caller, escaped};
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::people::count;
use super::refusal;
use crate::operation::api::views::UnbanRequest;
use banmesh_types::target::Target;

/// Arguments of `banmesh purge`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Without options, all bans are removed except permanent ones.

Examples:
  banmesh purge --filter sshd
  banmesh purge --network 198.51.100.0/24 --permanent
  banmesh purge --yes --reason 'false alarm'")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Only bans made by this filter
    #[arg(long, short, value_name = "NAME", conflicts_with = "operator")]
    filter: Option<String>,
    /// Only bans made by this operator
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Only bans inside this network
    #[arg(long, short, value_name = "NETWORK")]
    network: Option<String>,
    /// Include permanent bans
    #[arg(long)]
    permanent: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Reason to record
    #[arg(long, short, value_name = "TEXT", default_value = "purged")]
    reason: String,
    /// Name to record as the author [default: the current user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// The part of an exported entry that is needed here.
#[derive(Deserialize)]
struct Line {
    target: Target,
}

/// Runs `banmesh purge`.
pub fn run(args: Args) -> ExitCode {
    let read = || args.network.as_deref().map(bulk::parsed).transpose();
    client::run_with(&args.node, read, async |client, output, _| {
        let targets = matching(&args, client).await?;
        if let Some(filter) = args.filter.as_deref().filter(|_| targets.is_empty()) {
            refusal::unless_filter(client, filter).await?;
        }
        if !targets.is_empty() && !args.yes {
            confirm(targets.len())?;
        }
        let by = args.by.clone().or_else(caller);
        let body =
            |targets| UnbanRequest { targets, reason: args.reason.clone(), by: by.clone(), ..UnbanRequest::default() };
        // Bans that expired since the export need no unban.
        let unchanged_codes = &["not_banned", "banned_with_network"];
        let bulk = Bulk { path: "/api/v1/bans/unban", body, done: "unbanned", unchanged_codes };
        bulk::send(client, output, &bulk, targets.into_iter().map(|target| Ok(target.into()))).await
    })
}

async fn matching(args: &Args, client: &mut Client) -> Result<Vec<Target>, Failure> {
    let mut path = "/api/v1/bans/export?state=active".to_owned();
    for (name, value) in [("filter", &args.filter), ("operator", &args.operator), ("network", &args.network)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", escaped(value)));
        }
    }
    if !args.permanent {
        path.push_str("&permanent=false");
    }
    let mut lines = client.lines(&path).await?;
    let mut targets = Vec::new();
    while let Some(line) = lines.next().await? {
        let Line { target } = serde_json::from_slice(line).map_err(|error| Failure::Output(error.into()))?;
        targets.push(target);
    }
    Ok(targets)
}

/// Asks for confirmation on the terminal.
fn confirm(bans: usize) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "this removes {} on every node; use --yes to confirm",
            count(bans as u64, "ban")
        )));
    }
    let mut answer = String::new();
    eprint!("Remove {} on every node? [y/N] ", count(bans as u64, "ban"));
    io::stderr().flush()?;
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Usage("cancelled; no bans were removed".to_owned())),
    }
}
