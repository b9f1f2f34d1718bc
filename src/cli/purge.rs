//! `banmesh purge`: lifts many bans at once, on every node.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde::Deserialize;

use super::bulk::{self, Bulk};
use super::client::{self, Client, Failure, NodeArgs, caller, escaped};
use crate::operation::api::views::LiftRequest;
use banmesh_types::target::Target;

/// Lift all bans, or those that match, on every node
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Only bans by this filter
    #[arg(long, short, value_name = "NAME", conflicts_with = "operator")]
    filter: Option<String>,
    /// Only bans by this operator
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Only bans within this network
    #[arg(long, short, value_name = "NETWORK")]
    network: Option<String>,
    /// Also bans that never end
    #[arg(long)]
    permanent: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "purged")]
    reason: String,
    /// Who lifts [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// One line of the export: all that is needed of it.
#[derive(Deserialize)]
struct Line {
    target: Target,
}

/// Finds them, asks, lifts them, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let targets = matching(&args, client).await?;
        if !targets.is_empty() && !args.yes {
            confirm(targets.len())?;
        }
        let by = args.by.clone().or_else(caller);
        let body = |targets| LiftRequest { targets, reason: args.reason.clone(), by: by.clone() };
        // A ban that has ended meanwhile needs no unban.
        let moot = &["not_banned", "banned_with_network"];
        let bulk = Bulk { path: "/api/v1/bans/lift", body, done: "lifted", moot };
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

/// Asks on the terminal.
fn confirm(bans: usize) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{bans} bans would be lifted on every node: say --yes if that is meant")));
    }
    let mut answer = String::new();
    eprint!("Lift {bans} bans on every node? [y/N] ");
    io::stderr().flush()?;
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Usage("nothing was lifted".to_owned())),
    }
}
