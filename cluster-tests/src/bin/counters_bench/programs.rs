//! Programs that speak HAProxy's peers protocol as HAProxy would, and know what they have counted: more updates than HAProxies on the same
//! machine could make.
//!
//! The age of a sum is measured with one key per node that only this node counts, every 10 ms: from the update until the other two
//! programs have received a sum with it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banmesh_peers::hello::Hello;
use banmesh_peers::message::{self, Kind, Message};
use banmesh_peers::{Cell, CellKind, Definition, KeyKind, Rate, Update, Value};
use cluster_tests::haproxy::loopback_port;
use cluster_tests::measure::Times;

use crate::NODES;

const PERIOD: u64 = 10_000;
/// The bits of `http_req_cnt` and `http_req_rate`.
const COLUMNS: [u8; 2] = [9, 10];
const PROBE_EVERY: Duration = Duration::from_millis(10);
const BURST_EVERY: Duration = Duration::from_millis(2);

/// Measures one rate, or several.
pub fn run(rate: Option<u64>, keys: usize, length: Duration) {
    let rates = rate.map_or_else(|| vec![1000, 5000, 10_000, 20_000, 50_000], |rate| vec![rate]);
    println!(
        "asked/s  sent/s/node    keys  age p50      p99      max ms  total at end  exact after  gossip MB/s/node  node CPU     memory  bytes/key"
    );
    for rate in rates {
        measure(rate, keys, length);
    }
}

fn table(id: u64, name: &str) -> Definition {
    let cell = |bit: &u8| {
        let kind = if *bit == 10 { CellKind::Rate(PERIOD) } else { CellKind::Number };
        Cell { bit: *bit, element: 0, kind }
    };
    let cells = COLUMNS.iter().map(cell).collect();
    Definition { id, name: format!("/{name}"), key: KeyKind::Ipv6, expire: 600_000, cells }
}

/// A key as HAProxy has it for an IPv4 client.
fn key(number: usize) -> [u8; 16] {
    let mut key = [0; 16];
    key[10..12].fill(0xff);
    key[12..].copy_from_slice(&(0x0b00_0000 + number as u32).to_be_bytes());
    key
}

fn number(key: &[u8]) -> Option<usize> {
    let number = u32::from_be_bytes(key.get(12..16)?.try_into().ok()?);
    usize::try_from(number.checked_sub(0x0b00_0000)?).ok()
}

/// What one program has counted, and which sums it has received.
struct Edge {
    counted: Vec<AtomicU32>,
    others: Vec<AtomicU32>,
    sent: AtomicU64,
    /// When the probe had each count, in microseconds since the start.
    probes: Mutex<Vec<u64>>,
}

impl Edge {
    fn new(keys: usize) -> Self {
        let zeros = || (0..keys + NODES).map(|_| AtomicU32::new(0)).collect();
        Self { counted: zeros(), others: zeros(), sent: AtomicU64::new(0), probes: Mutex::default() }
    }
}

struct Bench {
    edges: Vec<Edge>,
    start: Instant,
    keys: usize,
    ages: Mutex<Times>,
    counts: AtomicBool,
    ends: AtomicBool,
}

fn measure(rate: u64, keys: usize, length: Duration) {
    let listen: Vec<SocketAddr> = (0..NODES).map(|_| loopback_port()).collect();
    let mut nodes = crate::nodes(&listen);
    let empty = crate::largest(&mut nodes);
    let bench = Arc::new(Bench {
        edges: (0..NODES).map(|_| Edge::new(keys)).collect(),
        start: Instant::now(),
        keys,
        ages: Mutex::default(),
        counts: AtomicBool::new(true),
        ends: AtomicBool::new(false),
    });
    let threads: Vec<_> = listen
        .iter()
        .enumerate()
        .map(|(at, listen)| {
            let (bench, listen) = (Arc::clone(&bench), *listen);
            std::thread::spawn(move || bench.run(at, listen, rate))
        })
        .collect();
    // The first second, in which all keys are new, is left out of the traffic.
    std::thread::sleep(Duration::from_secs(1));
    let (before, begun) = (crate::used(&mut nodes), Instant::now());
    std::thread::sleep(length);
    let (after, took) = (crate::used(&mut nodes), begun.elapsed().as_secs_f64());
    bench.counts.store(false, Ordering::Relaxed);
    let stopped = Instant::now();
    let share = bench.share();
    let mut exact = None;
    while stopped.elapsed() < Duration::from_secs(60) {
        if bench.is_exact() {
            exact = Some(stopped.elapsed());
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.ends.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("a program"));
    let sent: u64 = bench.edges.iter().map(|edge| edge.sent.load(Ordering::Relaxed)).sum();
    let full = crate::largest(&mut nodes);
    println!(
        "{rate:>7}  {:>11.0} {keys:>7} {}  {:>11.2} %  {:>11}  {:>16.2}  {:>6.0} %  {:>5} MiB  {:>9}",
        sent as f64 / NODES as f64 / (took + 1.0),
        bench.ages.lock().expect("ages").columns(),
        share * 100.0,
        exact.map_or_else(|| "never".to_owned(), |after| format!("{:.0} ms", after.as_secs_f64() * 1e3)),
        (after.0 - before.0) / took / NODES as f64 / 1e6,
        (after.1 - before.1).as_secs_f64() / took / NODES as f64 * 100.0,
        full / (1 << 20),
        full.saturating_sub(empty) / keys as u64,
    );
}

impl Bench {
    /// All sums that were received as a share of what was counted elsewhere.
    fn share(&self) -> f64 {
        let sum =
            |of: &[AtomicU32]| of.iter().map(|count| u64::from(count.load(Ordering::Relaxed))).sum::<u64>() as f64;
        let received: f64 = self.edges.iter().map(|edge| sum(&edge.others)).sum();
        let counted: f64 = self.edges.iter().map(|edge| sum(&edge.counted)).sum();
        received / counted / (NODES - 1) as f64
    }

    /// Whether every program has the exact sum of every key.
    fn is_exact(&self) -> bool {
        (0..self.keys).all(|key| {
            let counts: Vec<u32> = self.edges.iter().map(|edge| edge.counted[key].load(Ordering::Relaxed)).collect();
            let all: u32 = counts.iter().sum();
            let pairs = self.edges.iter().zip(counts);
            pairs.into_iter().all(|(edge, own)| edge.others[key].load(Ordering::Relaxed) == all - own)
        })
    }

    /// One program: sends updates at a rate, acknowledges sums, and notes them.
    fn run(&self, at: usize, listen: SocketAddr, rate: u64) {
        let mut stream = TcpStream::connect(listen).expect("connect");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
        let hello = Hello { called: "banmesh".to_owned(), caller: format!("lb{at}"), pid: 1 }.encode();
        stream.write_all(&hello).expect("hello");
        let tables = [table(1, "req"), table(2, "req.others")];
        let (mut input, mut output) = (Vec::new(), Vec::new());
        let (mut opened, mut current) = (false, None);
        let (mut random, mut sent) = (at as u64 + 1, 0u64);
        let (mut next_probe, mut next_burst) = (Instant::now(), Instant::now());
        let mut began = None;
        while !self.ends.load(Ordering::Relaxed) {
            self.read(&mut stream, &mut input);
            if !opened && input.starts_with(b"200\n") {
                input.drain(..4);
                opened = true;
                tables.iter().rev().for_each(|table| table.encode(&mut output));
                message::control(Kind::ResyncFinished, &mut output);
            }
            if !opened {
                continue;
            }
            let read = self.receive(at, &input, &tables, &mut current, &mut output);
            input.drain(..read);
            let now = Instant::now();
            if self.counts.load(Ordering::Relaxed) && now >= next_burst {
                next_burst = now + BURST_EVERY;
                let began = *began.get_or_insert(now);
                let due = (now - began).as_micros() as u64 * rate / 1_000_000;
                // What cannot be sent in time is not made up for without end.
                for _ in 0..due.saturating_sub(sent).min(5000) {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    self.count(at, random as usize % self.keys, now, &tables[0], &mut output);
                    sent += 1;
                }
            }
            if now >= next_probe && self.counts.load(Ordering::Relaxed) {
                next_probe = now + PROBE_EVERY;
                self.probes(at, self.start.elapsed());
                self.count(at, self.keys + at, now, &tables[0], &mut output);
            }
            stream.write_all(&output).expect("write");
            output.clear();
        }
        self.edges[at].sent.store(sent, Ordering::Relaxed);
    }

    fn read(&self, stream: &mut TcpStream, input: &mut Vec<u8>) {
        let mut buffer = [0; 65_536];
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the node closed the session"),
            Ok(count) => input.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => panic!("read: {error}"),
        }
    }

    fn probes(&self, at: usize, since: Duration) {
        self.edges[at].probes.lock().expect("probes").push(since.as_micros() as u64);
    }

    /// Counts a key once, and sends its state.
    fn count(&self, at: usize, key_number: usize, now: Instant, table: &Definition, output: &mut Vec<u8>) {
        let count = u64::from(self.edges[at].counted[key_number].fetch_add(1, Ordering::Relaxed)) + 1;
        let rate = Rate { age: (now - self.start).as_millis() as u64 % PERIOD, curr: count, prev: 0 };
        let values = [Value::Number(count), Value::Rate(rate)];
        // The definition comes before every burst only in HAProxy; repeating it is cheap for the reader.
        if output.is_empty() {
            table.encode(output);
        }
        Update { number: None, expire: None, key: &key(key_number), values: &values }.encode(table, output);
    }

    /// Takes what the node sent. Returns how many bytes were read.
    fn receive(
        &self,
        at: usize,
        input: &[u8],
        tables: &[Definition],
        current: &mut Option<u64>,
        output: &mut Vec<u8>,
    ) -> usize {
        let (mut read, mut last, mut values) = (0, None, Vec::new());
        let before = output.len();
        while let Some((message, length)) = Message::read(&input[read..]).expect("a message") {
            read += length;
            match message.kind {
                Kind::Define => *current = Definition::read(message.payload).ok().flatten().map(|table| table.id),
                Kind::Update { numbered, timed } => {
                    let Some(table) = tables.iter().find(|table| Some(table.id) == *current) else { continue };
                    let update =
                        Update::read((numbered, timed), message.payload, table, &mut values).expect("an update");
                    last = update.number.map(|number| (table.id, number));
                    if let (Some(key), Some(Value::Number(sum))) = (number(update.key), update.values.first()) {
                        self.sum(at, key, *sum);
                    }
                }
                _ => {}
            }
        }
        if let Some((table, number)) = last {
            message::acknowledge(table, number, output);
        }
        if output.len() > before {
            // Acknowledgements do not change the current table, but the first update must follow a definition.
            tables[0].encode(output);
        }
        read
    }

    fn sum(&self, at: usize, key: usize, sum: u64) {
        let Some(others) = self.edges[at].others.get(key) else { return };
        let before = others.swap(sum as u32, Ordering::Relaxed);
        let Some(from) = key.checked_sub(self.keys) else { return };
        let probes = self.edges[from].probes.lock().expect("probes");
        let now = self.start.elapsed().as_micros() as u64;
        let mut ages = self.ages.lock().expect("ages");
        // Every count that this sum has for the first time.
        for sent in probes.iter().take(sum as usize).skip(before as usize) {
            ages.add(Duration::from_micros(now.saturating_sub(*sent)));
        }
    }
}
