//! `banmesh reload`: the node reads its configuration again.

use std::process::ExitCode;

use super::client::{self, NodeArgs};
use super::output::Tone;
use crate::operation::api::views::ReloadView;

/// Make the node read its configuration again
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Tells the node, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let done: ReloadView = client.post("/api/v1/reload", &serde_json::json!({})).await?;
        if output.json {
            return Ok(output.json(&done)?);
        }
        Ok(output.colored(Tone::Good, &done.message)?)
    })
}
