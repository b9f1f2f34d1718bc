//! `banmesh ping`: whether a node answers, and whether it is ready. What probes and health checks run.

use std::process::ExitCode;
use std::time::Instant;

use super::client::{self, Failure, NodeArgs};
use crate::operation::api::views::{ErrorView, PingView, Readiness};

/// See whether the node answers
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Succeed only when the node is ready: it serves, and it has the bans of the others
    #[arg(long)]
    pub ready: bool,
}

/// Asks the node, and prints.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let asked = Instant::now();
        let pong: PingView = client.get("/api/v1/ping").await?;
        if args.ready {
            client.get::<Readiness>("/health/ready").await.map_err(not_ready)?;
        }
        if output.json {
            return Ok(output.json(&pong)?);
        }
        let took = asked.elapsed().as_micros();
        Ok(output.line(&format!("{} from {} (banmesh {}) in {took} µs", pong.answer, pong.node, pong.version))?)
    })
}

/// The answer to the question for readiness is no error message; one is made of it.
fn not_ready(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(_) => Failure::Refused(ErrorView {
            banned_by: None,
            error: "the node answers, and is not ready".to_owned(),
            hint: "`banmesh status` says what it waits for".to_owned(),
            code: "not_ready".to_owned(),
        }),
        other => other,
    }
}
