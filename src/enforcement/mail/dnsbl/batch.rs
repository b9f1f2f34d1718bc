//! Datagrams that are received, and answers that are sent, with one system call for many. Under load, system calls cost more than
//! answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams per system call.
const BATCH: usize = 32;
/// The longest query. Longer ones are cut by the kernel, and therefore malformed.
const DATAGRAM: usize = 2048;

/// Buffers for the queries and answers of one system call each.
pub(super) struct Batch {
    queries: Vec<[u8; DATAGRAM]>,
    /// The length and the client of each query.
    received: Vec<(usize, Option<SockaddrStorage>)>,
    /// As many answers as `to` has clients are waiting. The rest are empty buffers.
    answers: Vec<Vec<u8>>,
    to: Vec<Option<SockaddrStorage>>,
    /// Queries that the next call takes at most: twice as many as arrived last, because headers cost time also if they stay empty.
    size: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            queries: vec![[0; DATAGRAM]; BATCH],
            received: Vec::with_capacity(BATCH),
            answers: (0..BATCH).map(|_| Vec::with_capacity(banmesh_dnsbl::MAX_ANSWER)).collect(),
            to: Vec::with_capacity(BATCH),
            size: 1,
        }
    }

    /// Receives the queries that have arrived, and sends the answers that `answer` writes for them. Sends nothing for a query if it
    /// writes nothing. Returns the number of queries, and the number of answers that could not be sent.
    ///
    /// # Errors
    /// When nothing was received: [`io::ErrorKind::WouldBlock`] if no query has arrived.
    pub(super) fn exchange(
        &mut self,
        socket: &UdpSocket,
        mut answer: impl FnMut(&[u8], IpAddr, &mut Vec<u8>),
    ) -> io::Result<(usize, usize)> {
        // Not kept for the next exchange: after sending, its headers point to the addresses of the answers.
        let mut headers = MultiHeaders::preallocate(self.size, None);
        socket.try_io(Interest::READABLE, || self.receive(socket, &mut headers))?;
        self.size = (self.received.len() * 2).clamp(1, BATCH);
        self.to.clear();
        for ((length, from), query) in self.received.iter().zip(&self.queries) {
            let Some(client) = from.as_ref().and_then(ip) else { continue };
            let Some(out) = self.answers.get_mut(self.to.len()) else { break };
            out.clear();
            answer(query.get(..*length).unwrap_or_default(), client, out);
            if !out.is_empty() {
                self.to.push(*from);
            }
        }
        let (mut done, mut lost) = (0, 0);
        while done < self.to.len() {
            match socket.try_io(Interest::WRITABLE, || self.send(socket, &mut headers, done)) {
                Ok(sent @ 1..) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    lost += self.to.len() - done;
                    break;
                }
                // The first one of these cannot be sent, such as to a client that has no route.
                Ok(_) | Err(_) => (done, lost) = (done + 1, lost + 1),
            }
        }
        Ok((self.received.len(), lost))
    }

    fn receive(&mut self, socket: &UdpSocket, headers: &mut MultiHeaders<SockaddrStorage>) -> io::Result<()> {
        self.received.clear();
        let mut buffers: Vec<[IoSliceMut<'_>; 1]> =
            self.queries.iter_mut().take(self.size).map(|query| [IoSliceMut::new(query)]).collect();
        let received = recvmmsg(socket.as_raw_fd(), headers, buffers.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        self.received.extend(received.map(|message| (message.bytes, message.address)));
        Ok(())
    }

    /// Sends the answers from number `from` on, and returns how many the kernel took. `headers` must be those of the queries.
    fn send(&self, socket: &UdpSocket, headers: &mut MultiHeaders<SockaddrStorage>, from: usize) -> io::Result<usize> {
        let to = self.to.get(from..).unwrap_or_default();
        let answers: Vec<[IoSlice<'_>; 1]> =
            self.answers.iter().skip(from).take(to.len()).map(|answer| [IoSlice::new(answer)]).collect();
        let sent = sendmmsg(socket.as_raw_fd(), headers, answers.iter(), to, [], MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    async fn answers_reach_their_clients(ip: IpAddr) {
        let socket = UdpSocket::bind((ip, 0)).await.unwrap();
        let to: SocketAddr = socket.local_addr().unwrap();
        let clients: Vec<std::net::UdpSocket> = (0..3).map(|_| std::net::UdpSocket::bind((ip, 0)).unwrap()).collect();
        // More than one batch, and an empty datagram.
        let each = u8::try_from(BATCH).unwrap();
        for number in 0..each {
            for client in &clients {
                client.send_to(&[number], to).unwrap();
            }
        }
        clients[0].send_to(&[], to).unwrap();
        let (mut batch, mut taken, mut empty) = (Batch::new(), 0, 0);
        while taken < 3 * BATCH + 1 {
            socket.readable().await.unwrap();
            let exchanged = batch.exchange(&socket, |query, client, out| {
                assert_eq!(client, ip);
                empty += usize::from(query.is_empty());
                // Every second query gets an answer.
                out.extend(
                    query.iter().filter(|number| number.is_multiple_of(2)).flat_map(|number| [*number, *number]),
                );
            });
            match exchanged {
                Ok((queries, lost)) => (taken, _) = (taken + queries, assert_eq!(lost, 0)),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!((taken, empty), (3 * BATCH + 1, 1));
        let mut buffer = [0; 8];
        for client in &clients {
            for number in (0..each).step_by(2) {
                assert_eq!(client.recv(&mut buffer).unwrap(), 2);
                assert_eq!(buffer[..2], [number, number]);
            }
        }
    }

    #[tokio::test]
    async fn many_queries_in_one_call_are_answered_to_the_clients_that_asked() {
        answers_reach_their_clients(Ipv4Addr::LOCALHOST.into()).await;
        answers_reach_their_clients(Ipv6Addr::LOCALHOST.into()).await;
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_sent_does_not_stop_the_others() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = socket.local_addr().unwrap();
        let client = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for number in 0..3 {
            client.send_to(&[number], to).unwrap();
        }
        socket.readable().await.unwrap();
        let mut batch = Batch { size: BATCH, ..Batch::new() };
        // No datagram can have this length.
        let exchanged = batch.exchange(&socket, |query, _, out| out.resize(if query == [1] { 70_000 } else { 1 }, 7));
        assert_eq!(exchanged.unwrap(), (3, 1));
        let mut buffer = [0; 8];
        (0..2).for_each(|_| assert_eq!(client.recv(&mut buffer).unwrap(), 1));
    }
}
