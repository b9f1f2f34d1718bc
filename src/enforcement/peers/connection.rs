//! One connection from HAProxy: moves the bytes of its [`Dialogue`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::dialogue::Dialogue;
use crate::clock;
use crate::net::limit::Place;
use banmesh_peers::SessionError;
use banmesh_peers::message::MAX_PAYLOAD;

/// How long HAProxy waits for the answer to its hello is 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// Room for one message and what was read behind it.
const INPUT: usize = MAX_PAYLOAD * 4;
/// While this much waits to be written, nothing more is read.
const MAX_OUTPUT: usize = 1 << 20;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    /// HAProxy closed it.
    #[error("HAProxy closed the connection")]
    ByHaproxy,
    /// The node stops, or another connection took the place.
    #[error("this node ends the session")]
    Here,
    /// An error of the connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The protocol was violated, or nothing arrived.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// HAProxy takes changes so slowly that some are no longer remembered.
    #[error("HAProxy took the changes of bans too slowly; it receives all bans again")]
    Behind,
    /// The node does not know all bans yet.
    #[error("this node does not know all bans yet; HAProxy connects again")]
    Early,
}

/// Serves one connection until it ends.
pub(super) async fn serve(
    (reader, writer): (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send),
    peer: SocketAddr,
    mut place: Place,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let mut dialogue = Dialogue::new(Arc::clone(&shared), Instant::now());
    shared.metrics.sessions.inc();
    let session = async {
        let mut complete = shared.bans.version();
        let wants_bans = !shared.config.bans_table.is_empty();
        // Closing without an answer makes HAProxy connect again after 5 s. Other answers than "200" would end its attempts.
        if wants_bans && timeout(PATIENCE, complete.wait_for(Option::is_some)).await.is_err() {
            return Closed::Early;
        }
        match talk(&mut dialogue, reader, writer, &shared, &mut place).await {
            Ok(()) => Closed::ByHaproxy,
            Err(closed) => closed,
        }
    };
    let closed = tokio::select! {
        () = shutdown.cancelled() => Closed::Here,
        closed = session => closed,
    };
    shared.metrics.sessions.dec();
    if !dialogue.name().is_empty() {
        dialogue.end(Instant::now());
    }
    let from = if dialogue.name().is_empty() { peer.to_string() } else { dialogue.name().to_owned() };
    match closed {
        Closed::ByHaproxy | Closed::Here => {
            tracing::info!(haproxy = from, "a session of HAProxy's peers ended: {closed}")
        }
        Closed::Io(_) => tracing::info!(haproxy = from, "a session of HAProxy's peers ended: {closed}"),
        Closed::Session(_) => {
            shared.metrics.refused("protocol");
            shared.complain(&from, &closed);
        }
        Closed::Behind | Closed::Early => {
            shared.metrics.refused(if matches!(closed, Closed::Early) { "bans incomplete" } else { "behind" });
            shared.complain(&from, &closed);
        }
    }
}

async fn talk(
    dialogue: &mut Dialogue,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    shared: &Shared,
    place: &mut Place,
) -> Result<(), Closed> {
    let (mut bans, mut counters) = (shared.bans.version(), shared.changed.subscribe());
    let (mut input, mut output) = (Vec::with_capacity(INPUT), Vec::new());
    let mut written = 0;
    loop {
        dialogue.fill(Instant::now(), clock::now(), &mut output)?;
        let wakeup = dialogue.next_wakeup();
        tokio::select! {
            _ = &mut place.revoked => return Err(Closed::Here),
            // Reading and writing go on independently: a HAProxy that waits for us to read would not read either.
            read = reader.read_buf(&mut input), if output.len() - written < MAX_OUTPUT => {
                if read? == 0 {
                    return Ok(());
                }
                let (now, wall) = (Instant::now(), clock::now());
                let mut consumed = 0;
                loop {
                    let rest = input.get(consumed..).unwrap_or_default();
                    let result = dialogue.receive(rest, now, wall, &mut output);
                    match result {
                        Ok(0) => break,
                        Ok(length) => consumed += length,
                        Err(closed) => {
                            // Tells HAProxy why, if it still reads.
                            let _ = timeout(Duration::from_millis(100), writer.write_all(output.get(written..).unwrap_or_default())).await;
                            return Err(closed);
                        }
                    }
                }
                input.drain(..consumed);
                place.touch(tokio::time::Instant::now());
                if !dialogue.name().is_empty() {
                    place.mark_useful();
                }
            }
            count = writer.write(output.get(written..).unwrap_or_default()), if written < output.len() => {
                written += count?;
                if written == output.len() {
                    output.clear();
                    written = 0;
                } else if written > MAX_OUTPUT {
                    output.drain(..written);
                    written = 0;
                }
            }
            changed = bans.changed() => if changed.is_err() { return Err(Closed::Here) },
            changed = counters.changed() => if changed.is_err() { return Err(Closed::Here) },
            () = tokio::time::sleep_until(wakeup.into()) => {}
        }
    }
}
