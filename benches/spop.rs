//! SPOP answers: the agent compared with a minimal server in the same run.
//!
//! `cargo bench --bench spop [-- SECONDS]`. Server and load generator are separate processes, each on its own core. Each of K connections
//! keeps W NOTIFY frames in flight. The raw server is one epoll loop that reads the address from its known offset in the
//! frame, looks it up in the same table, patches a prepared ACK, and writes once per read. Compare only within one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a benchmark may fail")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use banmesh::clock;
use banmesh::decisions::view::{Reader, View, ViewWriter};
use banmesh::enforcement::agent::{Metrics, Spoa, SpoaConfig, Verdicts};
use banmesh_spop::data::{Data, encode_pair, encode_string};
use banmesh_spop::frame;
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

/// The environment variable that makes this program a server: `raw` or `spoa`, and the numbers of banned hosts and networks.
const SERVER: &str = "BANMESH_BENCH_SERVER";
const LOADS: [(usize, usize); 3] = [(1, 1), (32, 1), (4, 64)];
const ROUNDS: usize = 3;
/// Bytes of the ACK to a NOTIFY with two one-byte identifiers.
const ACK_LEN: usize = 35;

fn main() {
    if let Ok(order) = std::env::var(SERVER) {
        return serve(&order);
    }
    let seconds: f64 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1.5);
    pin(1);
    println!(
        "{:<10} {:>12} {:<5} {:>10} {:>11} {:>10} {:>9}",
        "load", "bans", "who", "acks/s", "CPU ns/ack", "CPU ratio", "RSS MB"
    );
    for (bans, networks) in [(0, 0), (1_000_000, 0), (1_000_000, 1000)] {
        let mut raw = Server::start("raw", bans, networks);
        let mut spoa = Server::start("spoa", bans, networks);
        for (connections, window) in LOADS {
            let mut rounds: [Vec<Figures>; 2] = Default::default();
            for _ in 0..ROUNDS {
                rounds[0].push(raw.load(connections, window, seconds));
                rounds[1].push(spoa.load(connections, window, seconds));
            }
            let [limit, ours] = rounds.map(median);
            for (who, figures, server) in [("raw", &limit, &raw), ("spoa", &ours, &spoa)] {
                println!(
                    "{:<10} {:>12} {:<5} {:>10.0} {:>11.0} {:>10.2} {:>9.1}",
                    format!("K{connections} W{window}"),
                    if networks > 0 { format!("{bans}+{networks}") } else { bans.to_string() },
                    who,
                    figures.rate,
                    figures.cpu,
                    figures.cpu / limit.cpu,
                    server.rss_mb(),
                );
            }
        }
    }
}

struct Figures {
    /// Answers per second.
    rate: f64,
    /// Nanoseconds of the server's CPU per answer.
    cpu: f64,
}

fn median(mut rounds: Vec<Figures>) -> Figures {
    rounds.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
    rounds.swap_remove(rounds.len() / 2)
}

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    // Fails on a machine with one core, where it does not matter.
    if cores.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &cores);
    }
}

/// A server process.
struct Server {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start(kind: &str, bans: u32, networks: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(SERVER, format!("{kind} {bans} {networks}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let address = line(&mut answers).parse().unwrap();
        Self { child, orders, answers, address }
    }

    /// The server's CPU time in microseconds.
    fn cpu(&mut self) -> f64 {
        self.orders.write_all(b"\n").unwrap();
        line(&mut self.answers).parse().unwrap()
    }

    fn rss_mb(&self) -> f64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0 / 1e6
    }

    fn load(&mut self, connections: usize, window: usize, seconds: f64) -> Figures {
        let mut generator = Generator::connect(self.address, connections, window);
        generator.run(Duration::from_millis(200));
        let before = self.cpu();
        let start = Instant::now();
        let answers = generator.run(Duration::from_secs_f64(seconds)) as f64;
        let elapsed = start.elapsed().as_secs_f64();
        Figures { rate: answers / elapsed, cpu: (self.cpu() - before) * 1e3 / answers }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(input: &mut impl BufRead) -> String {
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Many connections, driven by one thread.
struct Generator {
    epoll: Epoll,
    streams: Vec<TcpStream>,
    /// W NOTIFY frames. The address is the last four bytes of each.
    batch: Vec<u8>,
    notify: usize,
    random: u32,
    input: Vec<u8>,
    /// By connection, how many bytes of the next answer have arrived.
    partial: Vec<usize>,
    idle: bool,
}

impl Generator {
    fn connect(address: SocketAddr, connections: usize, window: usize) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let hello = hello();
        let notify = notify();
        let mut streams = Vec::new();
        for index in 0..connections {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&hello).unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize]).unwrap();
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).unwrap();
            streams.push(stream);
        }
        Self {
            epoll,
            partial: vec![0; streams.len()],
            streams,
            batch: notify.repeat(window),
            notify: notify.len(),
            random: 1,
            input: vec![0; 64 * 1024],
            idle: true,
        }
    }

    /// Keeps the windows full for `span`. Returns the number of answers.
    fn run(&mut self, span: Duration) -> u64 {
        if std::mem::take(&mut self.idle) {
            for index in 0..self.streams.len() {
                self.ask(index, self.batch.len() / self.notify);
            }
        }
        let end = Instant::now() + span;
        let mut answers = 0;
        let mut events = [EpollEvent::empty(); 64];
        while Instant::now() < end {
            let ready = self.epoll.wait(&mut events, EpollTimeout::from(100u8)).unwrap();
            for event in &events[..ready] {
                let index = usize::try_from(event.data()).unwrap();
                let read = self.streams[index].read(&mut self.input).unwrap();
                assert!(read > 0, "the server closed the connection");
                let bytes = self.partial[index] + read;
                self.partial[index] = bytes % ACK_LEN;
                answers += (bytes / ACK_LEN) as u64;
                self.ask(index, bytes / ACK_LEN);
            }
        }
        answers
    }

    /// Sends `count` NOTIFY frames, each for another address.
    fn ask(&mut self, index: usize, count: usize) {
        let bytes = &mut self.batch[..count * self.notify];
        for notify in bytes.chunks_exact_mut(self.notify) {
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = notify.len() - 4;
            notify[at..].copy_from_slice(&address(self.random % 2_000_000).octets());
        }
        self.streams[index].write_all(bytes).unwrap();
    }
}

/// The n-th address, with neighbours far apart. The table contains the first ones, so that half of two million are banned.
fn address(n: u32) -> Ipv4Addr {
    n.wrapping_mul(0x9e37_79b1).into()
}

fn framed(kind: u8, ids: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(7 + payload.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, 0, 0, 0, 1, ids[0], ids[1]]);
    bytes.extend_from_slice(payload);
    bytes
}

fn hello() -> Vec<u8> {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(b"2.0"), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(16380), &mut payload);
    encode_pair("capabilities", &Data::String(b"pipelining,async"), &mut payload);
    framed(1, [0, 0], &payload)
}

/// What HAProxy sends for `args src_ip=src`.
fn notify() -> Vec<u8> {
    let mut payload = Vec::new();
    encode_string(b"check-client-ip", &mut payload);
    payload.push(1);
    encode_pair("src_ip", &Data::Ipv4(Ipv4Addr::LOCALHOST), &mut payload);
    framed(3, [5, 1], &payload)
}

/// The server process: prints its address, then its CPU time for every line of input.
fn serve(order: &str) {
    let order: Vec<&str> = order.split(' ').collect();
    let [kind, bans, networks] = order[..] else { panic!("{order:?}") };
    pin(0);
    // Kept alive, because the writer owns the table.
    let (lookup, _writer) = table(bans.parse().unwrap(), networks.parse().unwrap());
    let report = || {
        std::thread::spawn(|| {
            for line in std::io::stdin().lines() {
                line.unwrap();
                let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
                println!("{}", usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
            }
            std::process::exit(0);
        });
    };
    if kind == "raw" {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        println!("{}", listener.local_addr().unwrap());
        report();
        raw(&listener, lookup);
    } else {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let config = SpoaConfig { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..SpoaConfig::default() };
            let spoa = Spoa::bind(config, lookup, Metrics::default()).unwrap();
            println!("{}", spoa.local_addr().unwrap());
            report();
            spoa.serve(CancellationToken::new()).await;
        });
    }
}

/// Bans hosts, and a /24, a /56 and a /48 for each of `networks`, as evidence does.
fn table(bans: u32, networks: u32) -> (Lookup, ViewWriter) {
    let (view, mut writer) = View::new();
    let now = clock::now();
    let until = Expiry::at(now.plus(Duration::from_secs(86_400)));
    for n in 0..bans {
        writer.set(Target::host(IpAddr::V4(address(n)).into()), until, now);
    }
    for n in 0..networks {
        let v6 = IpAddr::V6(Ipv6Addr::from_bits(0x2a00 << 112 | u128::from(n) << 80));
        for target in [Target::of_source(IpAddr::V4(address(!n)).into(), 24, 64)]
            .into_iter()
            .chain([48, 56].map(|prefix| Target::of_source(v6.into(), 32, prefix)))
        {
            writer.set(target, until, now);
        }
    }
    (Lookup { reader: view.reader(), now }, writer)
}

/// The lookup in the ban table that both servers use.
#[derive(Clone)]
struct Lookup {
    reader: Reader,
    now: UnixMillis,
}

impl Verdicts for Lookup {
    fn begin(&mut self) {
        self.now = clock::now();
    }

    fn is_banned(&mut self, address: Address) -> bool {
        self.reader.banned_until(address, self.now).is_some()
    }
}

/// The minimal server.
fn raw(listener: &TcpListener, mut lookup: Lookup) {
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX)).unwrap();
    let mut streams: Vec<Option<(TcpStream, Vec<u8>)>> = Vec::new();
    let mut events = [EpollEvent::empty(); 64];
    let (mut input, mut output) = (vec![0; 16 * 1024], Vec::with_capacity(64 * 1024));
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        for event in &events[..ready] {
            let Ok(index @ 0..0x1_0000) = usize::try_from(event.data()) else {
                let (stream, _) = listener.accept().unwrap();
                stream.set_nodelay(true).unwrap();
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64)).unwrap();
                streams.push(Some((stream, Vec::new())));
                continue;
            };
            let Some((stream, rest)) = &mut streams[index] else { continue };
            // The rest of the last read comes before this one.
            let kept = rest.len();
            input[..kept].copy_from_slice(rest);
            rest.clear();
            let read = match stream.read(&mut input[kept..]) {
                Ok(read @ 1..) => kept + read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => {
                    streams[index] = None;
                    continue;
                }
            };
            let mut bytes = &input[..read];
            output.clear();
            lookup.begin();
            while let Some(length) = bytes.first_chunk::<4>() {
                let end = 4 + u32::from_be_bytes(*length) as usize;
                let Some(one) = bytes.get(..end) else { break };
                bytes = &bytes[end..];
                if one[4] == 1 {
                    frame::encode_hello(16380, true, &mut output);
                } else {
                    let octets = *one.last_chunk::<4>().unwrap();
                    let banned = lookup.is_banned(IpAddr::V4(octets.into()).into());
                    frame::encode_verdict(&one[9..11], banned, &mut output);
                }
            }
            rest.extend_from_slice(bytes);
            stream.write_all(&output).unwrap();
        }
    }
}
