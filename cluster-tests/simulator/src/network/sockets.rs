//! The sockets of a process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use banmesh::net::network::{Datagrams, Listener, Network, Stream, Streams};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{BACKLOG, LONGEST_QUEUE, Net, ProcessId, State, UNFRAGMENTED, address, node_at};
use crate::connection::{Pipe, SimStream};
use crate::platform;

/// The sockets of one process.
#[derive(Clone, Debug)]
pub struct Port {
    net: Net,
    process: ProcessId,
    node: usize,
}

impl Port {
    pub(super) const fn new(net: Net, process: ProcessId, node: usize) -> Self {
        Self { net, process, node }
    }

    /// The process.
    pub const fn id(&self) -> ProcessId {
        self.process
    }

    /// Registers the directions of a connection.
    fn own(&self, state: &mut State, pipes: [&Arc<Mutex<Pipe>>; 2]) {
        if let Some(process) = state.processes.get_mut(self.process.0) {
            process.pipes.retain(|pipe| pipe.strong_count() > 0);
            process.pipes.extend(pipes.map(Arc::downgrade));
        }
    }
}

#[async_trait]
impl Network for Port {
    async fn listen(&self, address: SocketAddr) -> io::Result<(Listener, Arc<dyn Datagrams>)> {
        platform::adopt(self.node);
        {
            let mut state = self.net.state.lock();
            state.bound.insert(address, self.process);
            state.names.insert(self.node, address);
        }
        let socket = Socket { port: self.clone(), address };
        Ok((Listener::new(socket.clone()), Arc::new(socket)))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        platform::adopt(self.node);
        let (net, from) = (&self.net, self.node);
        let Some(node) = node_at(to) else { return Err(io::ErrorKind::HostUnreachable.into()) };
        net.trace.event(format_args!("connects {from} {to}"));
        let one_way = |from, to| net.state.lock().link(from, to).delay;
        tokio::time::sleep(one_way(from, node)).await;
        while net.is_blocked(from, node) || net.is_blocked(node, from) || net.state.lock().hung.contains(&node) {
            net.counts.add("connection not answered");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (near, far) = {
            let mut state = net.state.lock();
            let receiver = state.bound.get(&to).copied();
            let alive = |process: ProcessId| state.processes.get(process.0).is_some_and(|process| process.alive);
            let Some(receiver) = receiver.filter(|receiver| alive(*receiver)) else {
                net.counts.add("connection refused");
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let (out, back) = (Pipe::shared(from, node), Pipe::shared(node, from));
            let other = Self { net: net.clone(), process: receiver, node };
            self.own(&mut state, [&out, &back]);
            other.own(&mut state, [&out, &back]);
            let near = SimStream::new(net.clone(), self.process, Arc::clone(&back), Arc::clone(&out));
            (near, (SimStream::new(net.clone(), receiver, out, back), receiver))
        };
        {
            let mut state = net.state.lock();
            let (stream, receiver) = far;
            let Some(process) = state.processes.get_mut(receiver.0) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if process.accepted.len() >= BACKLOG {
                drop(state);
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            process.accepted.push_back((stream, SocketAddr::new(address(from, false).ip(), 40_000)));
            if let Some(waker) = process.acceptor.take() {
                waker.wake();
            }
        }
        tokio::time::sleep(one_way(node, from)).await;
        Ok(Stream::new(near))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        platform::adopt(self.node);
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let node = name.strip_prefix("node-").and_then(|rest| rest.split_once(':')?.0.parse().ok());
        let found: Option<SocketAddr> = node.and_then(|node: usize| self.net.state.lock().names.get(&node).copied());
        found.map(|address| vec![address]).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn source_to(&self, _remote: SocketAddr) -> Option<IpAddr> {
        Some(address(self.node, false).ip())
    }
}

/// Both sockets of a process.
#[derive(Clone, Debug)]
struct Socket {
    port: Port,
    address: SocketAddr,
}

#[async_trait]
impl Datagrams for Socket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        platform::adopt(self.port.node);
        Ok(self.address)
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        let Port { net, process, node: from } = &self.port;
        platform::adopt(*from);
        let mut state = net.state.lock();
        if !state.processes.get(process.0).is_some_and(|process| process.alive) {
            return Ok(datagram.len());
        }
        let Some(node) = node_at(to) else { return Err(io::ErrorKind::HostUnreachable.into()) };
        let link = state.link(*from, node);
        net.trace.bytes(format_args!("sends {from} {node}"), datagram);
        state.datagrams_sent += 1;
        state.bytes_sent += datagram.len() as u64;
        *state.sent_by_node.entry(*from).or_default() += datagram.len() as u64;
        if datagram.len() > UNFRAGMENTED {
            net.counts.add("datagram in fragments");
        }
        let lost = if link.blocked {
            Some("datagram lost: partition")
        } else if link.drops_fragments && datagram.len() > UNFRAGMENTED {
            Some("datagram lost: fragments dropped")
        } else if state.rng.per_mille(link.loss) {
            Some("datagram lost: at random")
        } else {
            None
        };
        let queued = state.queue(*from, node, link, datagram.len());
        if let Some(lost) = lost.or((queued > LONGEST_QUEUE).then_some("datagram lost: slow link")) {
            net.counts.add(lost);
            return Ok(datagram.len());
        }
        let copied = state.rng.per_mille(link.duplicated);
        let mut next = false;
        for copy in 0..=u8::from(copied) {
            let delay = link.delay
                + state.rng.time(link.jitter)
                + if copy > 0 { Duration::from_millis(5) } else { Duration::ZERO };
            next |= state.fly(Instant::now() + queued + delay, self.address, to, datagram.to_vec());
        }
        if copied {
            net.counts.add("datagram duplicated");
        }
        drop(state);
        if next {
            net.changed.notify_one();
        }
        Ok(datagram.len())
    }

    async fn recv_from(&self, datagram: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        std::future::poll_fn(|cx| {
            platform::adopt(self.port.node);
            let mut state = self.port.net.state.lock();
            let Some(process) = state.processes.get_mut(self.port.process.0) else { return Poll::Pending };
            if !process.alive {
                // Ends the tasks that a killed process has left behind.
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let Some((bytes, from)) = process.inbox.pop_front() else {
                process.receiver = Some(cx.waker().clone());
                return Poll::Pending;
            };
            process.inbox_bytes -= bytes.len();
            let length = bytes.len().min(datagram.len());
            datagram[..length].copy_from_slice(&bytes[..length]);
            Poll::Ready(Ok((length, from)))
        })
        .await
    }
}

#[async_trait]
impl Streams for Socket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        std::future::poll_fn(|cx| {
            platform::adopt(self.port.node);
            let mut state = self.port.net.state.lock();
            let Some(process) = state.processes.get_mut(self.port.process.0) else { return Poll::Pending };
            match process.accepted.pop_front() {
                Some((stream, from)) => Poll::Ready(Ok((Stream::new(stream), from))),
                None => {
                    process.acceptor = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}
