//! Clients of the HAProxies over keep-alive connections: some count requests, one measures ages, some compare sums with what was counted.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::measure::Times;

use crate::NODES;

/// Requests that a client sends before it reads their answers.
const TOGETHER: usize = 16;
/// The time between two measurements of an age, and between two looks at a sum that is awaited.
const PROBE_EVERY: Duration = Duration::from_millis(20);
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// The time between two comparisons.
const COMPARE_EVERY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(10);

/// What was counted where, by the clients.
#[derive(Debug)]
pub struct Counted {
    http: Vec<SocketAddr>,
    /// By HAProxy and key. After the keys, one for each HAProxy, with which ages are measured.
    counts: Vec<Vec<AtomicU32>>,
    keys: usize,
    requests: AtomicU64,
    /// All requests, also those that measure.
    answers: AtomicU64,
    ends: AtomicBool,
    ages: Mutex<Times>,
    /// The sums of the HAProxies, and what they should have been, of all keys that were compared.
    compared: (AtomicU64, AtomicU64),
}

impl Counted {
    /// Nothing was counted yet by the HAProxies at `http`.
    pub fn new(http: Vec<SocketAddr>, keys: usize) -> Self {
        let zeros = || (0..keys + NODES).map(|_| AtomicU32::new(0)).collect();
        Self {
            counts: http.iter().map(|_| zeros()).collect(),
            http,
            keys,
            requests: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            ages: Mutex::default(),
            compared: (AtomicU64::new(0), AtomicU64::new(0)),
        }
    }

    /// Sends requests until [`Counted::end`], `rate` per second to each HAProxy (0: as many as possible).
    pub fn send(&self, at: usize, rate: u64) {
        let mut client = Client::connect(self.http[at]);
        let (mut random, mut sent, start) = (at as u64 + 1, 0u64, Instant::now());
        while !self.ends.load(Ordering::Relaxed) {
            let due = if rate == 0 { u64::MAX } else { start.elapsed().as_micros() as u64 * rate / 1_000_000 };
            let together = usize::try_from(due - sent.min(due)).unwrap_or(usize::MAX).min(TOGETHER);
            if together == 0 {
                std::thread::sleep(Duration::from_micros(500));
                continue;
            }
            let keys: Vec<usize> = (0..together).map(|_| next(&mut random) as usize % self.keys).collect();
            client.count(&keys);
            for key in keys {
                self.counts[at][key].fetch_add(1, Ordering::Relaxed);
            }
            sent += together as u64;
            self.requests.fetch_add(together as u64, Ordering::Relaxed);
            self.answered(together);
        }
    }

    /// Measures how long it takes until another HAProxy has a sum with a request that HAProxy `at` has answered.
    pub fn probe(&self, at: usize) {
        let key = self.keys + at;
        let others = (0..self.http.len()).filter(|other| *other != at);
        let mut others: Vec<Client> = others.map(|other| Client::connect(self.http[other])).collect();
        let mut own = Client::connect(self.http[at]);
        while !self.ends.load(Ordering::Relaxed) {
            own.count(&[key]);
            let counted = self.counts[at][key].fetch_add(1, Ordering::Relaxed) + 1;
            let answered = Instant::now();
            for other in &mut others {
                while other.sum(key) < counted && !self.ends.load(Ordering::Relaxed) {
                    self.answered(1);
                    std::thread::sleep(LOOK_EVERY);
                }
                if !self.ends.load(Ordering::Relaxed) {
                    self.ages.lock().expect("ages").add(answered.elapsed());
                }
            }
            std::thread::sleep(PROBE_EVERY);
        }
    }

    /// Compares sums of HAProxy `at` with what the clients of the others have counted.
    pub fn compare(&self, at: usize) {
        let mut client = Client::connect(self.http[at]);
        let mut random = at as u64 + 77;
        while !self.ends.load(Ordering::Relaxed) {
            let key = next(&mut random) as usize % self.keys;
            let counted = self.others(at, key);
            let sum = client.sum(key);
            self.answered(1);
            self.compared.0.fetch_add(sum.min(counted).into(), Ordering::Relaxed);
            self.compared.1.fetch_add(counted.into(), Ordering::Relaxed);
            std::thread::sleep(COMPARE_EVERY);
        }
    }

    /// What the clients of all HAProxies but `at` have counted for `key`.
    pub fn others(&self, at: usize, key: usize) -> u32 {
        let others = self.counts.iter().enumerate().filter(|(other, _)| *other != at);
        others.map(|(_, counts)| counts[key].load(Ordering::Relaxed)).sum()
    }

    /// Ends all clients.
    pub fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    /// The requests that were counted so far, and all requests.
    pub fn requests(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.answers.load(Ordering::Relaxed))
    }

    fn answered(&self, requests: usize) {
        self.answers.fetch_add(requests as u64, Ordering::Relaxed);
    }

    /// The ages that were measured, for a table.
    pub fn ages(&self) -> String {
        self.ages.lock().expect("ages").columns()
    }

    /// The sums that were compared, as a share of what they should have been.
    pub fn share(&self) -> f64 {
        self.compared.0.load(Ordering::Relaxed) as f64 / self.compared.1.load(Ordering::Relaxed).max(1) as f64
    }
}

const fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// A keep-alive connection.
struct Client {
    stream: BufReader<TcpStream>,
    output: Vec<u8>,
    line: String,
}

impl Client {
    fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).expect("connect to HAProxy");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream: BufReader::with_capacity(16_384, stream), output: Vec::new(), line: String::new() }
    }

    /// Sends a request for each key, and waits for the answers.
    fn count(&mut self, keys: &[usize]) {
        self.ask("/", keys);
        keys.iter().for_each(|_| drop(self.answer().expect("an answer of HAProxy")));
    }

    /// The sum that a rule of HAProxy would see.
    fn sum(&mut self, key: usize) -> u32 {
        self.ask("/sum", &[key]);
        self.answer().expect("an answer of HAProxy").parse().unwrap_or_default()
    }

    fn ask(&mut self, path: &str, keys: &[usize]) {
        self.output.clear();
        for key in keys {
            write!(self.output, "GET {path} HTTP/1.1\r\nhost: a\r\nx-key: {key}\r\n\r\n").expect("write to memory");
        }
        self.stream.get_mut().write_all(&self.output).expect("write to HAProxy");
    }

    /// The body of the next answer.
    fn answer(&mut self) -> io::Result<String> {
        let mut length = 0;
        for number in 0.. {
            self.line.clear();
            if self.stream.read_line(&mut self.line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = self.line.trim_end();
            if number == 0 && !line.contains(" 200") {
                return Err(io::Error::other(line.to_owned()));
            }
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
    }
}
