//! `banmesh watch`: bans and lifts as they happen.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::client::{self, Client, Failure, Lines, NodeArgs};
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{AuthorKind, EntryView, EventKind, EventView};

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

/// For how long a node that has gone away is asked again: it may be restarted, or have read another configuration.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Prints until it is interrupted, or the node has gone away and does not come back.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let mut lines = client.lines("/api/v1/events").await?;
        loop {
            match follow(&mut lines, args.all, output).await {
                Ok(()) | Err(Failure::Broken { .. }) => {}
                Err(failure) => return Err(failure),
            }
            lines = again(client).await?;
            eprintln!("banmesh: the connection broke off and stands again: what happened meanwhile is not shown");
        }
    })
}

/// Prints what happens until the connection ends.
async fn follow(lines: &mut Lines, all: bool, output: &mut Output) -> Result<(), Failure> {
    while let Some(line) = lines.next().await? {
        // The event's name is in the data too.
        let Some(data) = line.strip_prefix(b"data: ") else { continue };
        let event: EventView = serde_json::from_slice(data).map_err(|error| Failure::Output(error.into()))?;
        if event.event == EventKind::Remembered && !all {
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
}

/// Connects anew, as soon as the node answers.
async fn again(client: &mut Client) -> Result<Lines, Failure> {
    let start = Instant::now();
    loop {
        tokio::time::sleep(PAUSE).await;
        let outcome = async {
            *client = client.again().await?;
            client.lines("/api/v1/events").await
        };
        match outcome.await {
            Err(Failure::Unreachable { .. } | Failure::NotReached { .. } | Failure::Broken { .. })
                if start.elapsed() < PATIENCE => {}
            outcome => return outcome,
        }
    }
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
