//! The simulated network: datagrams and connections between processes, with delay, loss, duplication, reordering, partitions (also in
//! one direction), slow links, and paths that drop fragments.

mod sockets;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::connection::{Pipe, SimStream};
use crate::rng::Rng;
use crate::sometimes::Counts;
use crate::trace::Trace;
pub use sockets::Port;

/// The port of every node.
pub const PORT: u16 = 12350;
/// The receive buffer of a socket, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The longest queue of a slow link.
const LONGEST_QUEUE: Duration = Duration::from_secs(2);
/// The largest datagram that fits into one packet of a path with an MTU of 1,500 bytes.
const UNFRAGMENTED: usize = 1472;
/// Datagrams that somebody on the path has recorded.
const RECORDED: usize = 256;
/// Connections that may wait to be accepted.
const BACKLOG: usize = 1024;

/// The address of a node, or the one to which it moves.
pub fn address(node: usize, moved: bool) -> SocketAddr {
    let last = u8::try_from(node % 250 + 1).unwrap_or(u8::MAX);
    let third = u8::try_from(node / 250).unwrap_or(u8::MAX);
    SocketAddr::from(([10, u8::from(moved), third, last], PORT))
}

/// The name of a node with its port, as a seed is configured. It resolves to the node's address also after the node moved.
pub fn name(node: usize) -> String {
    format!("node-{node}:{PORT}")
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
    alive: bool,
    inbox: VecDeque<(Vec<u8>, SocketAddr)>,
    inbox_bytes: usize,
    receiver: Option<Waker>,
    accepted: VecDeque<(SimStream, SocketAddr)>,
    acceptor: Option<Waker>,
    pipes: Vec<Weak<Mutex<Pipe>>>,
    /// The hashes of all datagrams that reached the process. Each has a number of its own inside.
    received: HashSet<u64>,
}

struct Flying {
    at: Instant,
    number: u64,
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
    /// The last address of each node, which its name resolves to.
    names: BTreeMap<usize, SocketAddr>,
    links: BTreeMap<(usize, usize), Link>,
    /// When each slow link is free.
    free: BTreeMap<(usize, usize), Instant>,
    flying: BinaryHeap<Reverse<Flying>>,
    number: u64,
    /// The latest datagrams that arrived, for [`Net::replay`].
    recorded: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// Nodes to which no connection is answered.
    hung: BTreeSet<usize>,
    datagrams_sent: u64,
    bytes_sent: u64,
    /// The bytes that each node has sent, in datagrams and over connections.
    sent_by_node: BTreeMap<usize, u64>,
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
            names: BTreeMap::new(),
            links: BTreeMap::new(),
            free: BTreeMap::new(),
            flying: BinaryHeap::new(),
            number: 0,
            recorded: VecDeque::new(),
            hung: BTreeSet::new(),
            datagrams_sent: 0,
            bytes_sent: 0,
            sent_by_node: BTreeMap::new(),
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
            let Flying { from, to, bytes, .. } = datagram;
            let Some(receiver) = state.bound.get(&to).copied() else {
                self.counts.add("datagram to a closed port");
                continue;
            };
            self.trace.bytes(format_args!("arrives {from} {to}"), &bytes);
            let Some(process) = state.processes.get_mut(receiver.0).filter(|process| process.alive) else { continue };
            if process.inbox_bytes + bytes.len() > RECEIVE_BUFFER {
                self.counts.add("datagram lost in a full buffer");
                continue;
            }
            process.received.insert(xxh3_64(&bytes));
            process.inbox_bytes += bytes.len();
            process.inbox.push_back((bytes.clone(), from));
            if let Some(waker) = process.receiver.take() {
                waker.wake();
            }
            state.recorded.push_back((from, to, bytes));
            if state.recorded.len() > RECORDED {
                state.recorded.pop_front();
            }
        }
    }

    /// A process on `node`, whose sockets work until [`Net::kill`].
    pub fn process(&self, node: usize) -> Port {
        let mut state = self.state.lock();
        state.processes.push(Process {
            alive: true,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            receiver: None,
            accepted: VecDeque::new(),
            acceptor: None,
            pipes: Vec::new(),
            received: HashSet::new(),
        });
        Port::new(self.clone(), ProcessId(state.processes.len() - 1), node)
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

    /// Somebody on the path sends recorded datagrams again.
    pub fn replay(&self, first: usize, count: usize) {
        let mut state = self.state.lock();
        let again: Vec<_> = state.recorded.iter().skip(first * 16).take(count + 1).cloned().collect();
        for (from, to, bytes) in again {
            state.fly(Instant::now(), from, to, bytes);
        }
        self.changed.notify_one();
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
        *state.sent_by_node.entry(from).or_default() += length as u64;
        Instant::now() + link.delay + queued + if lost { AGAIN } else { Duration::ZERO }
    }

    /// How many different datagrams reached the process.
    pub fn unique(&self, process: ProcessId) -> u64 {
        self.state.lock().processes.get(process.0).map_or(0, |process| process.received.len() as u64)
    }

    /// How many connections of the process are open.
    pub fn connections(&self, process: ProcessId) -> usize {
        let mut state = self.state.lock();
        let Some(process) = state.processes.get_mut(process.0) else { return 0 };
        process.pipes.retain(|pipe| pipe.strong_count() > 0);
        process.pipes.len() / 2
    }

    /// All datagrams so far, and the bytes in them.
    pub fn sent(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.datagrams_sent, state.bytes_sent)
    }

    /// The bytes that each node has sent, in datagrams and over connections.
    pub fn sent_by_node(&self) -> BTreeMap<usize, u64> {
        self.state.lock().sent_by_node.clone()
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

    /// Adds a datagram to those on their way. Returns whether it is the next to arrive.
    fn fly(&mut self, at: Instant, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) -> bool {
        self.number += 1;
        let flying = Flying { at, number: self.number, from, to, bytes };
        let first = self.flying.peek().is_none_or(|Reverse(next)| flying < *next);
        self.flying.push(Reverse(flying));
        first
    }
}

/// The node with this address, whether it moved or not: see [`address`].
fn node_at(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) if v4.port() == PORT => match v4.ip().octets() {
            [10, 0 | 1, third, last @ 1..=250] => Some(usize::from(third) * 250 + usize::from(last) - 1),
            _ => None,
        },
        _ => None,
    }
}
