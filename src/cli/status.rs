//! `banmesh status`.

use std::process::ExitCode;

use super::client;
use super::node_args::NodeArgs;
use super::output::{Tone, brief, size};
use crate::operation::api::views::{ClockStepView, ClusterState, PlaceView, StatusView, presence_text};

/// Arguments of `banmesh status`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh status
  banmesh status --json
  banmesh status --url https://node1.example.org:8888 --user ann")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Runs `banmesh status`.
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
            output.colored(Tone::Bad, &format!("node {} is not ready: waiting for {waiting}", status.node))?;
        }
        for problem in &status.problems {
            output.colored(Tone::Bad, &format!("problem: {}", problem.message))?;
        }
        let nodes = presence_text(status.members, &status.lost_members);
        let cluster = match status.cluster {
            ClusterState::Standalone => "standalone".to_owned(),
            ClusterState::Joining => format!("joining, {nodes}"),
            ClusterState::Ready => nodes,
            ClusterState::Leaving => format!("leaving, {nodes}"),
        };
        let places: Vec<String> = status.places.iter().map(place_text).collect();
        let mut pairs = vec![
            ("version", status.version),
            ("running", format!("for {} (since {}, pid {})", brief(status.uptime_seconds), status.started, status.pid)),
            ("cluster", cluster),
            ("bans", format!("{} in force", status.active_bans)),
            (
                "table",
                format!("{} of {} entries in {}", status.entries, status.max_entries, size(status.table_bytes as u64)),
            ),
            ("digest", status.digest),
        ];
        pairs.extend(places.into_iter().map(|place| ("place", place)));
        if status.entries.saturating_mul(10) >= status.max_entries.saturating_mul(9) {
            pairs.push(("full", "the table is nearly full: raise ban.max_bans and the memory limit".to_owned()));
        }
        if status.dropped_entries > 0 {
            let text = "expired bans were dropped early to make room; raise ban.max_bans or shorten ban.max_memory_ttl";
            pairs.push(("dropped", format!("{} {text}", status.dropped_entries)));
        }
        if status.refused_entries > 0 {
            let text = "bans of this or other nodes were refused by a limit of the table; see the log";
            pairs.push(("refused", format!("{} {text}", status.refused_entries)));
        }
        if status.early_entries > 0 {
            pairs.push((
                "early",
                format!("{} entries are from clocks ahead of this node's clock; check NTP", status.early_entries),
            ));
        }
        if let Some(wide) = status.wide_bans {
            pairs.push(("alarm", wide));
        }
        if let Some(step) = &status.clock_step {
            pairs.push(("clock", clock_text(step)));
        }
        for part in &status.restarted_parts {
            pairs.push((
                "restarted",
                format!("{}: {} times, last at {}: {}", part.part, part.restarts, part.at, part.reason),
            ));
        }
        if status.dry_run {
            pairs.push(("dry run", "no automatic bans (ban.dry_run)".to_owned()));
        }
        Ok(output.pairs(&pairs)?)
    })
}

fn place_text(place: &PlaceView) -> String {
    let PlaceView { name, state, entries, waiting, lag_ms, stale_seconds, error } = place;
    let waiting = if *waiting > 0 { format!(", {waiting} changes wait") } else { String::new() };
    let state = match (&**state, error) {
        ("current", _) => format!("current, {entries} entries, last change after {lag_ms} ms{waiting}"),
        ("polling", _) => format!("asked {} ago, {entries} entries", brief(lag_ms / 1000)),
        (state, Some(error)) => format!("{state} for {}: {error}", brief(*stale_seconds)),
        (state, None) => format!("{state} for {}{waiting}", brief(*stale_seconds)),
    };
    format!("{name}: {state}")
}

fn clock_text(step: &ClockStepView) -> String {
    let direction = if step.by_seconds < 0 { "back" } else { "forward" };
    let by = brief(step.by_seconds.unsigned_abs());
    let keeping = step.keeping_seconds.map(|left| format!("; expired entries are kept for {} more", brief(left)));
    format!("set {direction} by {by} at {}{}; check NTP", step.noticed, keeping.unwrap_or_default())
}
