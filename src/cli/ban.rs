//! `banmesh ban`: bans addresses and networks, on every node.

use std::path::PathBuf;
use std::process::ExitCode;

use super::bulk::{self, Bulk};
use super::client::{self, NodeArgs, caller};
use super::output::{Tone, brief};
use crate::operation::api::views::{BanRequest, EntryView};

/// Ban addresses and networks, on every node
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one per line (`-` is standard input); `#` begins a comment
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// For how long, such as 30m, 12h or 7d [default: ban.initial_ban_time]
    #[arg(long = "for", value_name = "TIME", conflicts_with = "permanent")]
    duration: Option<String>,
    /// For ever
    #[arg(long)]
    permanent: bool,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who bans [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Ban also what is in the allowlist or very wide
    #[arg(long)]
    force: bool,
    /// Replace bans that end later, too
    #[arg(long)]
    replace: bool,
}

/// Tells the node, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let request = BanRequest {
            target: None,
            targets: Vec::new(),
            duration: args.duration,
            permanent: args.permanent,
            reason: args.reason,
            by: args.by.or_else(caller),
            force: args.force,
            replace: args.replace,
        };
        if let (None, [target]) = (&args.file, args.targets.as_slice()) {
            let request = BanRequest { target: Some(target.clone()), ..request };
            let entry: EntryView = client.post("/api/v1/bans", &request).await?;
            if output.json {
                return Ok(output.json(&entry)?);
            }
            let end =
                entry.remaining_seconds.map_or_else(|| "for ever".to_owned(), |left| format!("for {}", brief(left)));
            let banned = format!("banned {} {end}", entry.target);
            let Some(member) = entry.exempt_by else { return Ok(output.colored(Tone::Good, &banned)?) };
            output.line(&format!("{banned}, but not on this node ({})", entry.node))?;
            return Ok(output.colored(
                Tone::Bad,
                &format!("the ban is recorded for the cluster and has no effect here: this node's configuration allows {member}"),
            )?);
        }
        let body = |targets: Vec<String>| BanRequest { targets, ..request.clone() };
        let bulk = Bulk { path: "/api/v1/bans/bulk", body, done: "banned", moot: &[] };
        bulk::send(client, output, &bulk, bulk::targets(args.targets, args.file.as_deref())?).await
    })
}
