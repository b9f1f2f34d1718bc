//! Queries over UDP.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::rate::Rate;
use super::{Answer, Shared, clock, is_allowed};
use crate::enforcement::agent::Verdicts;
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;

/// The longest query. Longer ones are cut by the kernel, and therefore malformed.
const DATAGRAM: usize = 2048;
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
        let (mut query, mut answer) = (vec![0; DATAGRAM], Vec::with_capacity(banmesh_dnsbl::MAX_ANSWER));
        loop {
            let ready = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                ready = self.socket.readable() => ready,
            };
            let taken = ready.and_then(|()| self.burst(&mut query, &mut answer, &mut refusals));
            match taken {
                Ok(BURST) => tokio::task::yield_now().await,
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

    /// Answers up to [`BURST`] queries that have arrived, and returns how many.
    fn burst(&mut self, query: &mut [u8], answer: &mut Vec<u8>, refusals: &mut Rate) -> io::Result<usize> {
        self.verdicts.begin();
        let now = clock::now();
        let mut taken = 0;
        while taken < BURST {
            match self.socket.try_recv_from(query) {
                Ok((length, from)) => {
                    taken += 1;
                    self.query(query.get(..length).unwrap_or_default(), from, now, answer, refusals);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Also a refusal of an earlier answer by its client.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionRefused) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn query(&mut self, query: &[u8], from: SocketAddr, now: UnixMillis, answer: &mut Vec<u8>, refusals: &mut Rate) {
        let (client, queries) = (Address::new(from.ip()), &self.shared.queries);
        if !is_allowed(&self.shared.allowed, client) {
            if !refusals.take(client, now) {
                return queries.count(Answer::Dropped);
            }
            queries.complain(Answer::Refused, Some(client), "it is not in dnsbl.allowed_clients");
            if !banmesh_dnsbl::refuse(query, answer) {
                return;
            }
        } else if !client.is_loopback() && !self.rate.take(client, now) {
            queries.count(Answer::Dropped);
            if !banmesh_dnsbl::truncate(query, answer) {
                return;
            }
        } else {
            self.shared.answer(query, client, now, &mut self.verdicts, answer);
        }
        // A client that gets no answer asks again.
        if !answer.is_empty() && self.socket.try_send_to(answer, from).is_err() {
            queries.count(Answer::Dropped);
        }
    }
}
