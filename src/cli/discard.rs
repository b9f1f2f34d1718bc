//! `banmesh discard`: removes entries without effect before their retention ends.

use std::process::ExitCode;

use super::client;
use super::node_args::NodeArgs;
use super::output::Tone;
use super::people::count;
use crate::operation::api::views::DiscardView;

/// Arguments of `banmesh discard`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Removes what is kept although it has no effect: expired bans and allowlist entries, and unbans.
Bans in force stay. Sources of expired bans start again with the shortest ban.

All nodes must be up and have equal tables, because a node that has not received an unban would bring its ban back.

Examples:
  banmesh cluster status && banmesh discard
  banmesh discard --force")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Discard although a node is down or has another table
    #[arg(long)]
    force: bool,
}

/// Runs `banmesh discard`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let path = if args.force { "/api/v1/discard?force=true" } else { "/api/v1/discard" };
        let done: DiscardView = client.post(path, &serde_json::json!({})).await?;
        if output.json {
            return Ok(output.json(&done)?);
        }
        Ok(output
            .colored(Tone::Good, &format!("discarded {} without effect", count(done.discarded as u64, "entry")))?)
    })
}
