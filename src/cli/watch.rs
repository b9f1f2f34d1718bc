//! `banmesh watch`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::client::{self, Client, LineStream};
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{AuthorKind, EntryView, EventKind, EventView};

/// Arguments of `banmesh watch`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Runs until interrupted, and reconnects if the node restarts.

Examples:
  banmesh watch
  banmesh watch --all --json")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Show further offences of banned sources, too
    #[arg(long, short)]
    all: bool,
}

/// How long to try to reconnect, for example while the node restarts.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before each attempt to reconnect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// Runs `banmesh watch`, until it is interrupted or the node stays away for `RECONNECT_TIMEOUT`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        let mut lines = client.lines("/api/v1/events").await?;
        loop {
            match follow(&mut lines, args.all, output).await {
                Ok(()) | Err(Failure::Broken { .. }) => {}
                Err(failure) => return Err(failure),
            }
            lines = reconnect(client).await?;
            eprintln!("banmesh: reconnected; events during the interruption are not shown");
        }
    })
}

/// Prints events until the connection ends.
async fn follow(lines: &mut LineStream, all: bool, output: &mut Output) -> Result<(), Failure> {
    while let Some(line) = lines.next().await? {
        // Skip `event:` lines: the data has the event's name, too.
        let Some(data) = line.strip_prefix(b"data: ") else { continue };
        let event: EventView = serde_json::from_slice(data).map_err(|error| Failure::Output(error.into()))?;
        if event.event == EventKind::Retained && !all {
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

/// Reconnects as soon as the node answers.
async fn reconnect(client: &mut Client) -> Result<LineStream, Failure> {
    let start = Instant::now();
    loop {
        tokio::time::sleep(RECONNECT_PAUSE).await;
        let outcome = async {
            *client = client.reconnect().await?;
            client.lines("/api/v1/events").await
        };
        match outcome.await {
            Err(Failure::Unreachable { .. } | Failure::RemoteUnreachable { .. } | Failure::Broken { .. })
                if start.elapsed() < RECONNECT_TIMEOUT => {}
            outcome => return outcome,
        }
    }
}

fn show(event: &EventView, output: &mut Output) -> std::io::Result<()> {
    let Some(entry) = &event.entry else {
        let lost = event.lost.unwrap_or_default();
        return output.colored(Tone::Faint, &format!("too many changes at once; {lost} batches are not shown"));
    };
    let EntryView { since, target, node, reason, .. } = entry;
    let by = match entry.by_kind {
        AuthorKind::Filter => entry.by.clone(),
        AuthorKind::Operator => format!("operator {}", entry.by),
    };
    let (tone, what) = match event.event {
        EventKind::Banned => {
            let end =
                entry.remaining_seconds.map_or_else(|| "permanently".to_owned(), |left| format!("for {}", brief(left)));
            (Tone::Bad, format!("banned {target} {end}"))
        }
        EventKind::Unbanned => (Tone::Good, format!("unbanned {target}")),
        EventKind::Allowed => (Tone::Good, format!("allowed {target}")),
        EventKind::Retained | EventKind::Lost => (Tone::Faint, format!("seen again {target}")),
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let since = output.moment(since);
    output.colored(tone, &format!("{since} {what} by {by} on {node}{reason}"))
}
