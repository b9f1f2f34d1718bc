//! The world of the model: nodes, the network between them, and what happens to both.

mod haproxy;
mod node;

use std::time::Instant;

pub use haproxy::Shown;
pub use node::Node;

/// The period of the rate, in milliseconds.
pub const PERIOD: u64 = 3000;
/// The life of an entry. Counts are repeated until a quarter of it has passed.
pub const EXPIRE: u64 = 600_000;
/// The longest that a datagram is on its way.
pub const DELAY: u64 = 100;
/// How many keys are counted. The last one is counted rarely.
pub const KEYS: u32 = 6;
pub const RARE: u32 = KEYS - 1;
/// A node of which nothing arrived for this long is lost.
const LOST: u64 = 3000;

/// Numbers that follow from a seed (xorshift64*, Vigna 2016).
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    /// Whether something happens whose probability is `share` of 10,000.
    fn happens(&mut self, share: u64) -> bool {
        self.below(10_000) < share
    }
}

/// A datagram on its way.
struct Datagram {
    from: usize,
    to: usize,
    arrives: u64,
    version: (u64, u64),
    bytes: Vec<u8>,
}

pub struct World {
    pub seed: u64,
    /// The true time, in milliseconds.
    pub time: u64,
    pub nodes: Vec<Node>,
    /// Whether no HAProxy process loses entries, and no node its memory.
    pub is_calm: bool,
    numbers: Numbers,
    /// When each HAProxy counted each key, by key and node.
    events: Vec<Vec<Vec<u64>>>,
    network: Vec<Datagram>,
    /// How many of 10,000 datagrams are lost.
    loss: u64,
    /// The nodes on one side of a cut, and since when; 0 is whole.
    cut: (u64, u64),
    /// When a datagram of a node arrived at another one last.
    heard: Vec<Vec<u64>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = 2 + numbers.below(3) as usize;
        let base = Instant::now();
        let nodes = (0..count).map(|number| Node::new(number, base, &mut numbers)).collect();
        let loss = [0, 500, 5000][numbers.below(3) as usize];
        Self {
            seed,
            time: 0,
            nodes,
            is_calm: seed.is_multiple_of(3),
            numbers,
            events: vec![vec![Vec::new(); count]; KEYS as usize],
            network: Vec::new(),
            loss,
            cut: (0, 0),
            heard: vec![vec![0; count]; count],
        }
    }

    /// How often `key` was counted since `since`, without node `but`.
    pub fn counted(&self, key: u32, but: Option<usize>, since: u64) -> u64 {
        let of = |times: &Vec<u64>| (times.len() - times.partition_point(|time| *time < since)) as u64;
        let nodes = self.events[key as usize].iter().enumerate().filter(|(node, _)| Some(*node) != but);
        nodes.map(|(_, times)| of(times)).sum()
    }

    /// Whether nothing has arrived at a node for so long that other nodes' connections do not count there.
    pub fn has_been_alone(&self, at: usize) -> bool {
        self.heard[at].iter().enumerate().all(|(from, heard)| from == at || self.time > heard + 12_000)
    }

    /// Cuts the network, heals it, or restarts something.
    pub fn disturb(&mut self) {
        let everybody = (1 << self.nodes.len()) - 1;
        if self.numbers.happens(5) {
            let side = self.numbers.below(everybody);
            self.cut = (side, self.time);
        }
        if self.cut.0 != 0 && self.numbers.happens(5) {
            self.cut = (0, self.time);
        }
        let (at, time) = (self.numbers.below(self.nodes.len() as u64) as usize, self.time);
        if !self.is_calm && self.numbers.happens(4) {
            self.nodes[at].restart_haproxy(time);
        }
        if self.numbers.happens(4) {
            self.nodes[at].reload_haproxy(time);
        }
        if !self.is_calm && self.numbers.happens(2) {
            self.nodes[at].restart(time);
            self.heard[at].fill(time);
        }
    }

    /// Clients send requests and open connections.
    pub fn count(&mut self) {
        for node in 0..self.nodes.len() {
            if self.numbers.happens(5000) {
                // Some keys are counted often, and some rarely.
                let key = self.numbers.below(u64::from(RARE)).min(self.numbers.below(u64::from(RARE))) as u32;
                self.count_one(node, key);
            }
            if self.numbers.happens(10) {
                (0..3).for_each(|_| self.count_one(node, RARE));
            }
        }
    }

    /// Counts every key everywhere, but not the rare one.
    pub fn count_everything(&mut self) {
        for node in 0..self.nodes.len() {
            (0..RARE).for_each(|key| self.count_one(node, key));
        }
    }

    fn count_one(&mut self, node: usize, key: u32) {
        let connections = self.numbers.below(4);
        self.nodes[node].count(key, connections, self.time);
        self.events[key as usize][node].push(self.time);
    }

    /// From now on the network is whole.
    pub fn heal(&mut self) {
        (self.loss, self.cut) = (0, (0, self.time));
    }

    /// Lets time pass.
    pub fn advance(&mut self, step: u64) {
        self.time += step;
        let time = self.time;
        // A third of all datagrams overtakes others.
        let (arrived, under_way) = std::mem::take(&mut self.network).into_iter().partition(|one| one.arrives <= time);
        self.network = under_way;
        let arrived: Vec<Datagram> = arrived;
        for Datagram { from, to, version, bytes, .. } in arrived {
            self.heard[to][from] = time;
            self.nodes[to].receive(from, version, &bytes, time);
        }
        for from in 0..self.nodes.len() {
            let live = (0..self.nodes.len()).filter(|to| *to != from && time <= self.heard[from][*to] + LOST).collect();
            let delay = self.numbers.below(4) * 5;
            for (version, bytes) in self.nodes[from].advance(live, delay, time) {
                self.send(from, version, &bytes);
            }
        }
    }

    fn send(&mut self, from: usize, version: (u64, u64), bytes: &[u8]) {
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let is_cut = (self.cut.0 >> from & 1) != (self.cut.0 >> to & 1);
            if is_cut || self.numbers.happens(self.loss) {
                continue;
            }
            for _ in 0..1 + u64::from(self.numbers.happens(300)) {
                let late = if self.numbers.happens(3000) { self.numbers.below(DELAY) } else { 1 };
                self.network.push(Datagram { from, to, arrives: self.time + late, version, bytes: bytes.to_vec() });
            }
        }
    }
}
