//! `--watch`: shows something again and again.

use std::time::Duration;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;

/// The options of commands that can repeat what they show.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct WatchArgs {
    /// Show it again every 2 seconds, or every SECONDS, until interrupted
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", require_equals = true,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Calls `show` once, or with `--watch` until it is interrupted. If the node goes away, keeps trying.
pub async fn show<F>(args: &WatchArgs, client: &mut Client, output: &mut Output, show: F) -> Result<(), Failure>
where
    F: AsyncFn(&mut Client, &mut Output) -> Result<(), Failure>,
{
    let Some(seconds) = args.watch else { return show(client, output).await };
    loop {
        output.clear()?;
        match show(client, output).await {
            Ok(()) => {}
            Err(
                failure @ (Failure::Unreachable { .. } | Failure::RemoteUnreachable { .. } | Failure::Broken { .. }),
            ) => {
                failure.report(output.json);
                if let Ok(again) = client.reconnect().await {
                    *client = again;
                }
            }
            Err(failure) => return Err(failure),
        }
        output.flush()?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}
