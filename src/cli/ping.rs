//! `banmesh ping`: whether a node answers.

use std::process::ExitCode;
use std::time::Instant;

use super::client::{self, NodeArgs};
use crate::service::admin::views::PingView;

/// See whether the node answers
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Asks the node, and prints.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let asked = Instant::now();
        let pong: PingView = client.get("/api/v1/ping").await?;
        if output.json {
            return Ok(output.json(&pong)?);
        }
        let took = asked.elapsed().as_micros();
        Ok(output.line(&format!("{} from {} (banmesh {}) in {took} µs", pong.answer, pong.node, pong.version))?)
    })
}
