//! Cost of a syslog line from the sender's socket to the sink, by UDP and by TCP, compared with a raw receive loop in the same run.
//! `cargo bench -p banmesh-syslog` measures the parser and the deframer alone.
//!
//! `cargo bench --bench syslog [-- LINES]`. The sender is a process of its own, so the CPU time per line is the receiver's alone.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a benchmark may fail")]

use std::hint::black_box;
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use banmesh::inputs::syslog::{DropReason, LineSink, Metrics, Protocol, Syslog, SyslogConfig, Transport};
use banmesh_syslog::parse;
use banmesh_types::address::Address;
use tokio_util::sync::CancellationToken;

/// The environment variable that makes this program the sender: transport, address, lines, and lines per second (0: as fast as
/// possible).
const SENDER: &str = "BANMESH_BENCH_SENDER";

const LINES: [&str; 4] = [
    "<134>Nov 22 20:00:00 mail dovecot: auth failed, method=PLAIN, rip=192.0.2.1, lip=198.51.100.1, session=<h3Kx8zP0Vw>, TLS",
    "<22>Nov 22 20:00:00 mx1.example.org postfix/smtps/smtpd[4711]: warning: unknown[192.0.2.1]: SASL LOGIN authentication failed",
    "<13>1 2026-11-22T20:00:00.123456+01:00 mail sshd 811 - [timeQuality tzKnown=\"1\" isSynced=\"1\"] Failed password for root",
    "<30>2026-11-22T20:00:00.123456+00:00 mail systemd[1]: Started Session 4711 of User bob; nothing that anybody looks for here",
];

fn main() {
    if let Ok(order) = std::env::var(SENDER) {
        return send(&order);
    }
    let lines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(600_000);
    println!(
        "{:<44} {:>10} {:>12} {:>10} {:>10} {:>8} {:>8}",
        "receive", "lines/s", "CPU ns/line", "sent", "received", "lost", "counted"
    );
    for rate in [150_000, 0] {
        let pace = if rate == 0 { "as fast as it goes".to_owned() } else { format!("{rate}/s") };
        let raw = raw_udp(lines, rate);
        raw.print(&format!("UDP, raw loop, {pace}"), None);
        service(lines, rate, Transport::Udp, false).print(&format!("UDP to the sink, {pace}"), Some(&raw));
        service(lines, rate, Transport::Udp, true).print(&format!("UDP to the sink and parse, {pace}"), Some(&raw));
    }
    service(lines * 4, 0, Transport::Tcp, true).print("TCP to the sink and parse, as fast as it goes", None);
}

struct Outcome {
    sent: u64,
    received: u64,
    /// Lines that the receiver knows to be lost.
    counted: Option<u64>,
    elapsed: Duration,
    cpu: Duration,
}

impl Outcome {
    fn cpu_per_line(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.received.max(1) as f64
    }

    fn print(&self, name: &str, baseline: Option<&Self>) {
        let ratio =
            baseline.map(|raw| format!("  {:.2}x raw", self.cpu_per_line() / raw.cpu_per_line())).unwrap_or_default();
        let counted = self.counted.map_or_else(|| "-".to_owned(), |counted| counted.to_string());
        println!(
            "{name:<44} {:>10.0} {:>12.0} {:>10} {:>10} {:>8} {counted:>8}{ratio}",
            self.received as f64 / self.elapsed.as_secs_f64(),
            self.cpu_per_line(),
            self.sent,
            self.received,
            self.sent - self.received,
        );
    }
}

/// The CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("no /proc");
    let of_task = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(of_task).sum())
}

fn start_sender(transport: Transport, to: SocketAddr, lines: u64, rate: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .env(SENDER, format!("{} {to} {lines} {rate}", transport.as_str()))
        .stdout(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn send(order: &str) {
    let order: Vec<&str> = order.split(' ').collect();
    let (to, lines, rate): (SocketAddr, u64, u64) =
        (order[1].parse().unwrap(), order[2].parse().unwrap(), order[3].parse().unwrap());
    if order[0] == "tcp" {
        let chunk = LINES.map(|line| format!("{line}\n")).concat().repeat(100);
        let mut stream = TcpStream::connect(to).unwrap();
        for _ in 0..lines / 400 {
            stream.write_all(chunk.as_bytes()).unwrap();
        }
        return;
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    let start = Instant::now();
    for number in 0..lines {
        let line = LINES[usize::try_from(number % 4).unwrap()];
        while socket.send(line.as_bytes()).is_err() {}
        if rate > 0 && number % 100 == 99 {
            let due = Duration::from_secs_f64((number + 1) as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

fn raw_udp(lines: u64, rate: u64) -> Outcome {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    if nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20)).is_err() {
        socket.set_recv_buffer_size(32 << 20).unwrap();
    }
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut child = start_sender(Transport::Udp, socket.local_addr().unwrap(), lines, rate);
    let mut buffer = vec![0; 65_536];
    let (mut received, cpu) = (0, cpu_time());
    let (mut first, mut last) = (None, Instant::now());
    loop {
        match socket.recv_from(&mut buffer) {
            Ok(datagram) => {
                black_box(datagram);
                if received % 256 == 0 {
                    last = Instant::now();
                    first.get_or_insert(last);
                }
                received += 1;
            }
            Err(_) if child.try_wait().unwrap().is_some() => break,
            Err(_) => {}
        }
    }
    let elapsed = last - first.unwrap_or(last);
    Outcome { sent: lines, received, counted: None, elapsed, cpu: cpu_time() - cpu }
}

#[derive(Clone)]
struct Count {
    lines: Arc<AtomicU64>,
    parse: bool,
}

impl LineSink for Count {
    fn line(&mut self, sender: Address, line: &[u8]) {
        if self.parse {
            black_box(parse(line));
        } else {
            black_box((sender, line));
        }
        self.lines.fetch_add(1, Relaxed);
    }
}

fn service(lines: u64, rate: u64, transport: Transport, parse: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (count, metrics) = (Count { lines: Arc::default(), parse }, Metrics::default());
        let protocol = if transport == Transport::Udp { Protocol::Udp } else { Protocol::Tcp };
        let config =
            SyslogConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)), protocol, ..SyslogConfig::default() };
        let syslog = Syslog::bind(&config, count.clone(), &metrics).unwrap();
        let to = syslog.udp_address().or(syslog.tcp_address()).unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(syslog.serve(shutdown.clone()));
        let cpu = cpu_time();
        let mut child = start_sender(transport, to, lines, rate);
        let (mut first, mut last, mut seen) = (None, Instant::now(), 0);
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = count.lines.load(Relaxed);
            if now > seen {
                (seen, last) = (now, Instant::now());
                first.get_or_insert(last);
            } else if last.elapsed() > Duration::from_millis(500) && child.try_wait().unwrap().is_some() {
                break;
            }
        }
        child.wait().unwrap();
        let cpu = cpu_time() - cpu;
        shutdown.cancel();
        served.await.unwrap();
        let counted = metrics.dropped(Transport::Udp, DropReason::Kernel).get();
        Outcome { sent: lines, received: seen, counted: Some(counted), elapsed: last - first.unwrap_or(last), cpu }
    })
}
