//! The simulated network: datagrams and connections between processes, with delay, loss, duplication, reordering, partitions (also in
//! one direction), slow links, and paths that drop fragments.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use banmesh::net::network::{Datagrams, Listener, Network, Stream, Streams};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::{Pipe, SimStream};
use crate::platform;
use crate::rng::Rng;
use crate::sometimes::Counts;
use crate::trace::Trace;

/// The port of every node.
pub const PORT: u16 = 12350;
/// The receive buffer of a socket, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The longest queue of a slow link.
const LONGEST_QUEUE: Duration = Duration::from_secs(2);
/// The largest datagram that fits into one packet of a path with an MTU of 1,500 bytes.
const UNFRAGMENTED: usize = 1472;
/// Connections that may wait to be accepted.
const BACKLOG: usize = 1024;

/// The address of a node.
pub fn address(node: usize) -> SocketAddr {
    let last = u8::try_from(node % 250 + 1).unwrap_or(u8::MAX);
    let third = u8::try_from(node / 250).unwrap_or(u8::MAX);
    SocketAddr::from(([10, 0, third, last], PORT))
}

/// One direction between two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Nothing passes.
    pub blocked: bool,
    /// The shortest delay.
    pub delay: Duration,
    /// The greatest addition to it. Datagrams overtake each other.
    pub jitter: Duration,
    /// How many of a thousand datagrams are lost. Connections send again after a pause.
    pub loss: u32,
    /// How many of a thousand datagrams arrive twice.
    pub duplicated: u32,
    /// Whether datagrams that do not fit into one packet are lost.
    pub drops_fragments: bool,
    /// In bytes per second; 0 if unlimited.
    pub rate: u64,
}

impl Default for Link {
    fn default() -> Self {
        let (delay, jitter) = (Duration::from_millis(1), Duration::from_millis(1));
        Self { blocked: false, delay, jitter, loss: 0, duplicated: 0, drops_fragments: false, rate: 0 }
    }
}

/// Identifies a process on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(usize);

struct Process {
    node: usize,
    alive: bool,
    inbox: VecDeque<(Vec<u8>, SocketAddr)>,
    inbox_bytes: usize,
    receiver: Option<Waker>,
    accepted: VecDeque<(SimStream, SocketAddr)>,
    acceptor: Option<Waker>,
    pipes: Vec<Weak<Mutex<Pipe>>>,
    /// Different datagrams that reached the process.
    unique: u64,
}

struct Flying {
    at: Instant,
    number: u64,
    /// The datagram, shared by its copies.
    id: u64,
    copied: bool,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Flying {}
impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flying {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct State {
    rng: Rng,
    processes: Vec<Process>,
    bound: BTreeMap<SocketAddr, ProcessId>,
    links: BTreeMap<(usize, usize), Link>,
    /// When each slow link is free.
    free: BTreeMap<(usize, usize), Instant>,
    flying: BinaryHeap<Reverse<Flying>>,
    number: u64,
    arrived_copies: BTreeSet<(u64, ProcessId)>,
    /// Nodes to which no connection is answered.
    hung: BTreeSet<usize>,
    bytes_sent: u64,
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct Net {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    trace: Trace,
    counts: Counts,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").finish_non_exhaustive()
    }
}

impl Net {
    /// A network without faults.
    pub fn new(seed: u64, trace: Trace, counts: Counts) -> Self {
        let state = State {
            rng: Rng::new(seed),
            processes: Vec::new(),
            bound: BTreeMap::new(),
            links: BTreeMap::new(),
            free: BTreeMap::new(),
            flying: BinaryHeap::new(),
            number: 0,
            arrived_copies: BTreeSet::new(),
            hung: BTreeSet::new(),
            bytes_sent: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::default(), trace, counts }
    }

    /// Delivers datagrams, forever.
    pub async fn deliver(self) {
        loop {
            let next = self.deliver_due();
            match next {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn deliver_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state.lock();
        loop {
            let Reverse(next) = state.flying.peek()?;
            if next.at > now {
                return Some(next.at);
            }
            let Some(Reverse(datagram)) = state.flying.pop() else { continue };
            let Flying { id, copied, from, to, bytes, .. } = datagram;
            let Some(receiver) = state.bound.get(&to).copied() else {
                self.counts.add("datagram to a closed port");
                continue;
            };
            self.trace.bytes(format_args!("arrives {from} {to}"), &bytes);
            let first = !copied || state.arrived_copies.insert((id, receiver));
            let Some(process) = state.processes.get_mut(receiver.0).filter(|process| process.alive) else { continue };
            if process.inbox_bytes + bytes.len() > RECEIVE_BUFFER {
                self.counts.add("datagram lost in a full buffer");
                continue;
            }
            process.unique += u64::from(first);
            process.inbox_bytes += bytes.len();
            process.inbox.push_back((bytes, from));
            if let Some(waker) = process.receiver.take() {
                waker.wake();
            }
        }
    }

    /// A process on `node`, whose sockets work until [`Net::kill`].
    pub fn process(&self, node: usize) -> Port {
        let mut state = self.state.lock();
        state.processes.push(Process {
            node,
            alive: true,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            receiver: None,
            accepted: VecDeque::new(),
            acceptor: None,
            pipes: Vec::new(),
            unique: 0,
        });
        Port { net: self.clone(), process: ProcessId(state.processes.len() - 1), node }
    }

    /// Ends a process: its sockets fall silent, and its connections are reset.
    pub fn kill(&self, process: ProcessId) {
        let mut state = self.state.lock();
        state.bound.retain(|_, bound| *bound != process);
        let Some(dead) = state.processes.get_mut(process.0) else { return };
        dead.alive = false;
        dead.inbox.clear();
        let pipes: Vec<_> = dead.pipes.drain(..).filter_map(|pipe| pipe.upgrade()).collect();
        let waiting: Vec<_> = dead.accepted.drain(..).collect();
        for waker in [dead.receiver.take(), dead.acceptor.take()].into_iter().flatten() {
            waker.wake();
        }
        drop(state);
        for pipe in pipes {
            pipe.lock().reset();
        }
        drop(waiting);
    }

    /// Changes one direction.
    pub fn set(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        change(self.state.lock().links.entry((from, to)).or_default());
    }

    /// Removes all faults.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.links.clear();
        state.free.clear();
        state.hung.clear();
    }

    /// From now on, connections to `node` are neither answered nor refused.
    pub fn hang(&self, node: usize) {
        self.state.lock().hung.insert(node);
    }

    /// Whether nothing passes from one node to another.
    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.state.lock().link(from, to).blocked
    }

    /// When bytes of a connection that are sent now arrive.
    pub fn arrival(&self, from: usize, to: usize, length: usize) -> Instant {
        /// When a lost packet is sent again.
        const AGAIN: Duration = Duration::from_millis(200);
        let mut state = self.state.lock();
        let link = state.link(from, to);
        let lost = state.rng.per_mille(link.loss);
        let queued = state.queue(from, to, link, length);
        Instant::now() + link.delay + queued + if lost { AGAIN } else { Duration::ZERO }
    }

    /// How many different datagrams reached the process.
    pub fn unique(&self, process: ProcessId) -> u64 {
        self.state.lock().processes.get(process.0).map_or(0, |process| process.unique)
    }

    /// How many connections of the process are open.
    pub fn connections(&self, process: ProcessId) -> usize {
        let mut state = self.state.lock();
        let Some(process) = state.processes.get_mut(process.0) else { return 0 };
        process.pipes.retain(|pipe| pipe.strong_count() > 0);
        process.pipes.len() / 2
    }

    /// The bytes in all datagrams so far.
    pub fn bytes_sent(&self) -> u64 {
        self.state.lock().bytes_sent
    }

    /// Whether the process runs.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.state.lock().processes.get(process.0).is_some_and(|process| process.alive)
    }
}

impl State {
    fn link(&self, from: usize, to: usize) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or_default()
    }

    /// How long `length` bytes wait for a slow link, and occupy it.
    fn queue(&mut self, from: usize, to: usize, link: Link, length: usize) -> Duration {
        if link.rate == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let free = self.free.entry((from, to)).or_insert(now);
        *free = (*free).max(now) + Duration::from_micros(length as u64 * 1_000_000 / link.rate);
        *free - now
    }

    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        (0..250).find(|node| crate::network::address(*node) == address)
    }
}

/// The sockets of one process.
#[derive(Clone, Debug)]
pub struct Port {
    net: Net,
    process: ProcessId,
    node: usize,
}

impl Port {
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
        self.net.state.lock().bound.insert(address, self.process);
        let socket = Socket { port: self.clone(), address };
        Ok((Listener::new(socket.clone()), Arc::new(socket)))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        platform::adopt(self.node);
        let (net, from) = (&self.net, self.node);
        let Some(node) = net.state.lock().node_at(to) else { return Err(io::ErrorKind::HostUnreachable.into()) };
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
            process.accepted.push_back((stream, SocketAddr::new(address(from).ip(), 40_000)));
            if let Some(waker) = process.acceptor.take() {
                waker.wake();
            }
        }
        tokio::time::sleep(one_way(node, from)).await;
        Ok(Stream::new(near))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        platform::adopt(self.node);
        name.parse().map(|address| vec![address]).map_err(|_| io::ErrorKind::NotFound.into())
    }

    async fn source_to(&self, _remote: SocketAddr) -> Option<IpAddr> {
        Some(address(self.node).ip())
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
        let Some(node) = state.node_at(to) else { return Err(io::ErrorKind::HostUnreachable.into()) };
        let link = state.link(*from, node);
        net.trace.bytes(format_args!("sends {from} {node}"), datagram);
        state.bytes_sent += datagram.len() as u64;
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
        let id = state.number;
        for copy in 0..=u8::from(copied) {
            let delay = link.delay
                + state.rng.time(link.jitter)
                + if copy > 0 { Duration::from_millis(5) } else { Duration::ZERO };
            state.number += 1;
            let flying = Flying {
                at: Instant::now() + queued + delay,
                number: state.number,
                id,
                copied,
                from: self.address,
                to,
                bytes: datagram.to_vec(),
            };
            state.flying.push(Reverse(flying));
        }
        if copied {
            net.counts.add("datagram duplicated");
        }
        drop(state);
        net.changed.notify_one();
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
