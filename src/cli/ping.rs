//! `banmesh ping`: checks that a node answers, for probes and health checks.

use std::process::ExitCode;
use std::time::Instant;

use super::client;
use super::failure::Failure;
use super::node_args::NodeArgs;
use crate::operation::api::views::{ErrorView, PingView};
use crate::operation::readiness::Readiness;

/// Arguments of `banmesh ping`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 the node answers (and is ready, with --ready), 1 it is not ready or refuses, 3 no answer.

Examples:
  banmesh ping
  banmesh ping --ready
  banmesh ping --url https://node1.example.org:8888 --ca ca.pem --token-file token")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Succeed only if the node is ready: it serves, and has received the bans of the other nodes
    #[arg(long)]
    pub ready: bool,
}

/// Runs `banmesh ping`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let start = Instant::now();
        let pong: PingView = client.get("/api/v1/ping").await?;
        if args.ready {
            client.get::<Readiness>("/health/ready").await.map_err(not_ready)?;
        }
        if output.json {
            return Ok(output.json(&pong)?);
        }
        let took = start.elapsed().as_micros();
        let PingView { answer, node, name, version } = pong;
        // Older nodes send no name.
        let name = if name.is_empty() { node.to_string() } else { name };
        Ok(output.line(&format!("{answer} from {name} (banmesh {version}) in {took} µs"))?)
    })
}

/// Gives the refusal of `/health/ready` an error message, because its body has none.
fn not_ready(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(_) => Failure::Refused(ErrorView {
            banned_by: None,
            error: "the node answers, but is not ready".to_owned(),
            hint: "`banmesh status` shows what it is waiting for".to_owned(),
            code: "not_ready".to_owned(),
        }),
        other => other,
    }
}
