//! `banmesh unban`: takes bans back, on every node.

use std::path::PathBuf;
use std::process::ExitCode;

use super::bulk::{self, Bulk};
use super::client::{self, NodeArgs, caller, escaped};
use super::output::Tone;
use crate::service::admin::views::{EntryView, LiftRequest};

/// Take bans back, on every node
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks, exactly as they were banned
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one a line (`-` is standard input); what follows a `#` is left out
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who lifts [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Tells the node, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let by = args.by.or_else(caller);
        if let (None, [target]) = (&args.file, args.targets.as_slice()) {
            let mut path = format!("/api/v1/bans/{}?reason={}", escaped(target), escaped(&args.reason));
            if let Some(by) = &by {
                path.push_str(&format!("&by={}", escaped(by)));
            }
            let entry: EntryView = client.delete(&path).await?;
            if output.json {
                return Ok(output.json(&entry)?);
            }
            return Ok(output.colored(Tone::Good, &format!("lifted the ban of {}", entry.target))?);
        }
        let body = |targets| LiftRequest { targets, reason: args.reason.clone(), by: by.clone() };
        let bulk = Bulk { path: "/api/v1/bans/lift", body, done: "lifted", moot: &[] };
        bulk::send(client, output, &bulk, bulk::targets(args.targets, args.file.as_deref())?).await
    })
}
