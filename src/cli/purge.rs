//! `banmesh purge`: lifts many bans at once, on every node.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use serde::Deserialize;

use super::bulk::{AT_ONCE, progress};
use super::client::{self, Client, Failure, NodeArgs, caller, escaped};
use super::output::{Output, Tone};
use crate::service::admin::views::{BulkAnswer, LiftRequest};

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
    target: String,
}

/// Finds them, asks, lifts them, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let targets = matching(&args, client).await?;
        if !targets.is_empty() && !args.yes {
            confirm(targets.len())?;
        }
        lift(&args, &targets, client, output).await
    })
}

async fn matching(args: &Args, client: &mut Client) -> Result<Vec<String>, Failure> {
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

async fn lift(args: &Args, targets: &[String], client: &mut Client, output: &mut Output) -> Result<(), Failure> {
    let bar = progress(targets.len());
    let by = args.by.clone().or_else(caller);
    let mut total = BulkAnswer::default();
    for some in targets.chunks(AT_ONCE) {
        let body = LiftRequest { targets: some.to_vec(), reason: args.reason.clone(), by: by.clone() };
        let answer: BulkAnswer = client.post("/api/v1/bans/lift", &body).await?;
        total.done += answer.done;
        // What ended meanwhile is as good as lifted.
        total.refused.extend(answer.refused.into_iter().filter(|one| one.why.code != "not_banned"));
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    if output.json {
        output.json(&total)?;
    } else {
        for refused in &total.refused {
            output.colored(Tone::Bad, &refused.why.error)?;
        }
        output.line(&format!("lifted {} of {}", total.done, targets.len()))?;
    }
    if total.refused.is_empty() {
        Ok(())
    } else {
        Err(Failure::Some { refused: total.refused.len(), all: targets.len() })
    }
}
