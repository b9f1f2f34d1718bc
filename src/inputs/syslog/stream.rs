//! Reads lines from a stream.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::intake::{Intake, LineSink};
use banmesh_syslog::Deframer;
use banmesh_types::address::Address;

/// Lines after which the task yields to the other tasks of its thread.
const BURST: usize = 256;

/// How long lines that have arrived are still read on shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// On shutdown, a stream without input for this long is considered empty.
const QUIET: Duration = Duration::from_millis(20);

/// Why reading a stream ended.
#[derive(Debug)]
pub enum End {
    /// The sender closed the stream.
    Closed,
    /// A line did not arrive completely in time.
    Stalled,
    /// The node shuts down. Lines that had arrived are passed on.
    Shutdown,
    /// Reading failed.
    Failed(io::Error),
}

/// Reads `reader` to its end and passes on its lines as those of `sender`.
///
/// A line must arrive completely within `idle_timeout`; between lines there is no timeout. A line that the
/// sender ended by closing the stream is complete. A line that was cut off otherwise is dropped, because half an
/// address is a different address.
pub async fn read_stream<R, S>(
    mut reader: R,
    sender: Address,
    intake: &mut Intake<S>,
    idle_timeout: Duration,
    shutdown: &CancellationToken,
) -> End
where
    R: AsyncRead + Unpin + Send,
    S: LineSink,
{
    let mut deframer = Deframer::new(intake.max_line());
    let end = {
        let mut cancelled = pin!(shutdown.cancelled());
        let mut mid_line_since = None;
        loop {
            let read = async {
                match mid_line_since {
                    Some(since) => timeout_at(since + idle_timeout, reader.read(deframer.space())).await.ok(),
                    None => Some(reader.read(deframer.space()).await),
                }
            };
            let count = tokio::select! {
                biased;
                () = &mut cancelled => break End::Shutdown,
                read = read => match read {
                    None => break End::Stalled,
                    Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Some(Err(error)) => break End::Failed(error),
                    Some(Ok(0)) => break End::Closed,
                    Some(Ok(count)) => count,
                },
            };
            let lines = pass_on(&mut deframer, count, sender, intake).await;
            mid_line_since = match mid_line_since {
                _ if !deframer.is_mid_line() => None,
                Some(since) if lines == 0 => Some(since),
                _ => Some(Instant::now()),
            };
        }
    };
    match end {
        End::Shutdown => drain(&mut reader, &mut deframer, sender, intake).await,
        End::Closed => {
            if let Some(line) = deframer.finish() {
                intake.line(sender, line);
            }
            too_long(&mut deframer, sender, intake);
        }
        End::Stalled => intake.stalled(),
        End::Failed(_) => {}
    }
    if deframer.is_mid_line() {
        intake.incomplete();
    }
    end
}

/// Passes on the lines that `count` more bytes complete. Returns how many.
async fn pass_on<S: LineSink>(deframer: &mut Deframer, count: usize, sender: Address, intake: &mut Intake<S>) -> usize {
    deframer.filled(count);
    let mut lines = 0;
    while let Some(line) = deframer.frame() {
        intake.line(sender, line);
        lines += 1;
        if lines % BURST == 0 {
            tokio::task::yield_now().await;
        }
    }
    too_long(deframer, sender, intake);
    if lines > 0 {
        intake.has_received_lines();
    }
    lines
}

/// Counts lines that were too long.
fn too_long<S: LineSink>(deframer: &mut Deframer, sender: Address, intake: &Intake<S>) {
    let oversized = deframer.take_oversized();
    if oversized > 0 {
        intake.oversized(sender, oversized);
    }
}

/// Reads what the kernel has already received.
async fn drain<R, S>(reader: &mut R, deframer: &mut Deframer, sender: Address, intake: &mut Intake<S>)
where
    R: AsyncRead + Unpin + Send,
    S: LineSink,
{
    let deadline = Instant::now() + DRAIN;
    while let Ok(Ok(count @ 1..)) =
        timeout_at(deadline.min(Instant::now() + QUIET), reader.read(deframer.space())).await
    {
        pass_on(deframer, count, sender, intake).await;
    }
}
