//! Queries over TCP (RFC 7766): each with its length before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Answer, Shared, clock};
use crate::enforcement::agent::Verdicts;
use crate::enforcement::mail::listener::{MailClient, MailListener};
use banmesh_types::address::Address;

/// The longest query.
const MESSAGE: usize = 2048;
/// How long a connection may be idle, and how long writing an answer may take.
const IDLE: Duration = Duration::from_secs(10);

/// Answers queries over TCP.
pub(super) struct Server<V> {
    pub listener: MailListener,
    pub verdicts: V,
    pub shared: Arc<Shared>,
}

impl<V: Verdicts + Sync> Server<V> {
    /// Answers until `shutdown`.
    pub(super) async fn serve(&mut self, shutdown: CancellationToken) {
        let (verdicts, shared) = (&self.verdicts, &self.shared);
        let serve = |client, shutdown| connection(client, verdicts.clone(), Arc::clone(shared), shutdown);
        self.listener.serve(shutdown, serve).await;
    }
}

async fn connection<V: Verdicts>(
    mut connection: MailClient,
    mut verdicts: V,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    // A TCP connection always has an address.
    let client = connection.address.unwrap_or(Address::LOCALHOST);
    let (mut input, mut answer, mut output) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let read = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = &mut connection.place.revoked => return,
            read = timeout(IDLE, connection.stream.read_buf(&mut input)) => read,
        };
        let Ok(Ok(1..)) = read else { return };
        let (mut consumed, mut is_valid) = (0, true);
        verdicts.begin();
        let now = clock::now();
        while let Some((length, rest)) = input.get(consumed..).and_then(<[u8]>::split_first_chunk::<2>) {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > MESSAGE {
                shared.queries.complain(Answer::Unreadable, Some(client), "its query is too long");
                is_valid = false;
                break;
            }
            let Some(query) = rest.get(..length) else { break };
            shared.answer(query, client, now, &mut verdicts, &mut answer);
            output.extend_from_slice(&u16::try_from(answer.len()).unwrap_or_default().to_be_bytes());
            output.extend_from_slice(&answer);
            consumed += 2 + length;
            if answer.is_empty() {
                is_valid = false;
                break;
            }
            connection.place.touch(tokio::time::Instant::now());
            connection.place.mark_useful();
        }
        input.drain(..consumed);
        if !matches!(timeout(IDLE, connection.stream.write_all(&output)).await, Ok(Ok(()))) || !is_valid {
            return;
        }
        output.clear();
    }
}
