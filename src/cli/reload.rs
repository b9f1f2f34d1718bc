//! `banmesh reload`.

use std::process::ExitCode;

use super::client;
use super::node_args::NodeArgs;
use super::output::Tone;
use crate::operation::api::views::ReloadView;

/// Arguments of `banmesh reload`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Prints the settings that changed and those that need a restart. An invalid configuration changes nothing.

Examples:
  banmesh reload
  banmesh check && banmesh reload")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Runs `banmesh reload`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let done: ReloadView = client.post("/api/v1/reload", &serde_json::json!({})).await?;
        if output.json {
            return Ok(output.json(&done)?);
        }
        Ok(output.colored(Tone::Good, &done.message)?)
    })
}
