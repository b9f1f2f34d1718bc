//! Queries over UDP.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::rate::Rate;
use super::{Answer, Queries, Shared, clock, is_allowed};
use crate::enforcement::agent::Verdicts;
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;

/// Queries after which the task yields to the other tasks of its thread.
const BURST: usize = 256;
/// Refusals per second and client. They are not longer than the query, and an outsider gets no more of them.
const REFUSALS: u32 = 10;

/// Answers queries over UDP.
pub(super) struct Server<V> {
    pub socket: UdpSocket,
    pub verdicts: V,
    pub shared: Arc<Shared>,
    pub rate: Rate,
}

impl<V: Verdicts> Server<V> {
    /// Answers until `shutdown`.
    pub(super) async fn serve(&mut self, shutdown: CancellationToken) {
        let mut refusals = Rate::new(REFUSALS);
        let mut batch = Batch::new();
        loop {
            let ready = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                ready = self.socket.readable() => ready,
            };
            let taken = ready.and_then(|()| self.burst(&mut batch, &mut refusals));
            match taken {
                Ok(BURST..) => tokio::task::yield_now().await,
                Ok(_) => {}
                // Such as ENOMEM. Trying again at once would use a whole core.
                Err(error) => {
                    let why = format!("the socket failed: {error}");
                    self.shared.queries.complain(Answer::Dropped, None, &why);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Answers the queries that have arrived, [`BURST`] of them or a few more, and returns how many.
    fn burst(&mut self, batch: &mut Batch, refusals: &mut Rate) -> io::Result<usize> {
        let Self { socket, verdicts, shared, rate } = self;
        verdicts.begin();
        let now = clock::now();
        let mut taken = 0;
        while taken < BURST {
            let exchanged = batch.exchange(socket, |query, client, out| {
                let client = Address::new(client);
                if !is_allowed(&shared.allowed, client) {
                    refuse(&shared.queries, query, client, now, refusals, out);
                } else if !client.is_loopback() && !rate.take(client, now) {
                    shared.queries.count(Answer::Dropped);
                    if !banmesh_dnsbl::truncate(query, out) {
                        out.clear();
                    }
                } else {
                    shared.answer(query, client, now, verdicts, out);
                }
            });
            match exchanged {
                Ok((queries, lost)) => {
                    taken += queries;
                    // A client that gets no answer asks again.
                    (0..lost).for_each(|_| shared.queries.count(Answer::Dropped));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Also a refusal of an earlier answer by its client.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionRefused) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}

/// Writes a refusal, unless this client got enough of them.
fn refuse(queries: &Queries, query: &[u8], client: Address, now: UnixMillis, refusals: &mut Rate, out: &mut Vec<u8>) {
    if !refusals.take(client, now) {
        return queries.count(Answer::Dropped);
    }
    queries.complain(Answer::Refused, Some(client), "it is not in dnsbl.allowed_clients");
    if !banmesh_dnsbl::refuse(query, out) {
        out.clear();
    }
}
