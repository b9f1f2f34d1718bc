//! `banmesh watch`: bans and lifts as they happen.

use std::process::ExitCode;

use super::client::{self, Failure, NodeArgs};
use super::output::{Output, Tone, brief};
use crate::service::admin::views::{AuthorKind, EntryView, EventKind, EventView};

/// Show bans and lifts as they happen
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node to talk to.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Show too when an offender is seen again
    #[arg(long, short)]
    all: bool,
}

/// Prints until it is interrupted or the node stops.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let mut lines = client.lines("/api/v1/events").await?;
        while let Some(line) = lines.next().await? {
            // The event's name is in the data too.
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            let event: EventView = serde_json::from_slice(data).map_err(|error| Failure::Output(error.into()))?;
            if event.event == EventKind::Remembered && !args.all {
                continue;
            }
            if output.json {
                output.raw(data)?;
            } else {
                show(&event, output)?;
            }
            output.flush()?;
        }
        Ok(())
    })
}

fn show(event: &EventView, output: &mut Output) -> std::io::Result<()> {
    let Some(entry) = &event.entry else {
        let lost = event.lost.unwrap_or_default();
        return output.colored(Tone::Faint, &format!("too much at once: {lost} batches of changes are not shown"));
    };
    let EntryView { since, target, node, reason, .. } = entry;
    let by = match entry.by_kind {
        AuthorKind::Filter => entry.by.clone(),
        AuthorKind::Operator => format!("operator {}", entry.by),
    };
    let (tone, what) = match event.event {
        EventKind::Banned => {
            let end =
                entry.remaining_seconds.map_or_else(|| "for ever".to_owned(), |left| format!("for {}", brief(left)));
            (Tone::Bad, format!("banned {target} {end}"))
        }
        EventKind::Lifted => (Tone::Good, format!("lifted {target}")),
        EventKind::Allowed => (Tone::Good, format!("allowed {target}")),
        EventKind::Remembered | EventKind::Lost => (Tone::Faint, format!("seen again {target}")),
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    output.colored(tone, &format!("{since} {what} by {by} on {node}{reason}"))
}
