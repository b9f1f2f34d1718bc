//! `banmesh status`: the node in a few lines.

use std::process::ExitCode;

use super::client::{self, NodeArgs};
use super::output::{Tone, brief, size};
use crate::operation::api::views::{ClockStepView, ClusterState, StatusView};

/// Show how the node is doing
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Asks the node, and prints.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let status: StatusView = client.get("/api/v1/status").await?;
        if output.json {
            return Ok(output.json(&status)?);
        }
        let ready = &status.readiness;
        if ready.ready {
            output.colored(Tone::Good, &format!("node {} is ready", status.node))?;
        } else {
            let waiting = ready.waiting_for.join(", ");
            output.colored(Tone::Bad, &format!("node {} is not ready: it waits for {waiting}", status.node))?;
        }
        let cluster = match status.cluster {
            ClusterState::Standalone => "standalone".to_owned(),
            ClusterState::Joining => format!("joining, {} members", status.members),
            ClusterState::Ready => format!("{} members", status.members),
            ClusterState::Leaving => format!("leaving, {} members", status.members),
        };
        let mut pairs = vec![
            ("version", status.version),
            ("running", format!("for {} (since {}, pid {})", brief(status.uptime_seconds), status.started, status.pid)),
            ("cluster", cluster),
            ("bans", format!("{} in force", status.active_bans)),
            ("table", format!("{} entries in {}", status.entries, size(status.table_bytes as u64))),
            ("digest", status.digest),
        ];
        if status.early_entries > 0 {
            pairs.push((
                "early",
                format!("{} entries come from a clock ahead of ours: check NTP", status.early_entries),
            ));
        }
        if let Some(step) = &status.clock_step {
            pairs.push(("clock", clock_text(step)));
        }
        for part in &status.restarted_parts {
            pairs.push((
                "restarted",
                format!("{}: {} times, last at {}: it {}", part.part, part.restarts, part.at, part.reason),
            ));
        }
        if status.dry_run {
            pairs.push(("dry run", "offenders are not banned (ban.dry_run)".to_owned()));
        }
        Ok(output.pairs(&pairs)?)
    })
}

fn clock_text(step: &ClockStepView) -> String {
    let direction = if step.by_seconds < 0 { "back" } else { "forward" };
    let by = brief(step.by_seconds.unsigned_abs());
    let keeping = step.keeping_seconds.map(|left| format!("; expired entries are kept for {} more", brief(left)));
    format!("set {direction} by {by} at {}{}; check NTP", step.noticed, keeping.unwrap_or_default())
}
