//! Lines from anything that can be read as a stream.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::intake::{Intake, LineSink};
use banmesh_syslog::Deframer;

/// After so many lines the other connections of the thread have their turn.
const BURST: usize = 256;

/// How long at most what has arrived is handed over on shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// On shutdown, a stream that has had nothing for so long has nothing.
const QUIET: Duration = Duration::from_millis(20);

/// Why a stream was no longer read.
#[derive(Debug)]
pub enum End {
    /// The sender closed it.
    Closed,
    /// A line was not complete in time.
    Stalled,
    /// We are shutting down, and what had arrived is handed over.
    Shutdown,
    /// It broke.
    Failed(io::Error),
}

/// Reads `reader` to its end and hands its lines over as `sender`'s.
///
/// A line must be complete within `idle_timeout` after its beginning; between lines there is no limit. A line that the
/// sender ended by closing the stream counts as complete; one that was cut off by anything else does not, because half an
/// address is somebody else's.
pub async fn read_stream<R, S>(
    mut reader: R,
    sender: IpAddr,
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
            let lines = hand_over(&mut deframer, count, sender, intake).await;
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

/// Hands over the lines that `count` more bytes complete; how many they were.
async fn hand_over<S: LineSink>(
    deframer: &mut Deframer,
    count: usize,
    sender: IpAddr,
    intake: &mut Intake<S>,
) -> usize {
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
    lines
}

/// Counts the lines that were too long.
fn too_long<S: LineSink>(deframer: &mut Deframer, sender: IpAddr, intake: &Intake<S>) {
    let oversized = deframer.take_oversized();
    if oversized > 0 {
        intake.oversized(sender, oversized);
    }
}

/// Reads what the kernel already has.
async fn drain<R, S>(reader: &mut R, deframer: &mut Deframer, sender: IpAddr, intake: &mut Intake<S>)
where
    R: AsyncRead + Unpin + Send,
    S: LineSink,
{
    let deadline = Instant::now() + DRAIN;
    while let Ok(Ok(count @ 1..)) =
        timeout_at(deadline.min(Instant::now() + QUIET), reader.read(deframer.space())).await
    {
        hand_over(deframer, count, sender, intake).await;
    }
}
