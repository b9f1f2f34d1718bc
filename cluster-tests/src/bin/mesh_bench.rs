//! Measures how long it takes until all nodes answer 1: real nodes in network namespaces, and HAProxy's own `peers` in the same run.
//!
//! `make bench` runs it with release builds. It needs root. `MESH_BENCH` selects parts: `latency`, `rate`, `peers`, `many`
//! (50 nodes), `rest` (10 nodes that do nothing), `join` (1,000,000 bans); without it, all of them.
//!
//! A log line leads to each ban (`ban.max_attempts` is 1). The time runs from sending the line until the last node
//! has answered 1. All nodes share one machine with the generator.
#![expect(clippy::expect_used, reason = "a benchmark: what cannot go on ends it")]

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::measure::{self, Times};
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::peers::Peers;
use cluster_tests::spop::Connection;
use cluster_tests::{syslog, wait};

/// The maximum time to wait for a ban.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum time of a row. A slow machine gives fewer samples.
const LENGTH: Duration = Duration::from_secs(15);
const HEAD: &str = "                              bans/s   samples      p50      p99      max   ms";

fn main() {
    let chosen = std::env::var("MESH_BENCH").unwrap_or_default();
    let wants = |part: &str| chosen.is_empty() || chosen.split(',').any(|name| name == part);
    println!("{HEAD}");
    if wants("latency") {
        for nodes in [3, 5, 10] {
            mesh(nodes, 0, 300);
        }
    }
    if wants("rate") {
        for nodes in [3, 5, 10] {
            mesh(nodes, 10_000, 150);
        }
    }
    if wants("peers") {
        for rate in [0, 10_000] {
            peers(3, rate, 300);
        }
    }
    if wants("many") {
        mesh(50, 0, 60);
    }
    if wants("rest") {
        rest(10);
    }
    if wants("join")
        && let Some(join) = measure::join(1_000_000, Duration::from_secs(300))
    {
        println!("{join}");
    }
}

fn row(name: &str, rate: u32, times: &Times) {
    let rate = if rate == 0 { "single".to_owned() } else { rate.to_string() };
    println!("{name:<28}{rate:>8} {:>9} {}", times.len(), times.columns());
}

/// The times of `samples` sequential bans, during `rate` other bans per second from the same node.
fn mesh(nodes: u8, rate: u32, samples: u32) {
    let started = Mesh::start_with(nodes, |_, config| {
        config.set("ban.max_attempts", 1).set("ban.initial_ban_time", "1h").set("log.level", "error")
    });
    let Some(mesh) = started else { return };
    let mut agents: Vec<Connection> = mesh.nodes.iter().map(|node| node.connect().expect("connect")).collect();
    let author = &mesh.nodes[0];
    let socket = author.on_its_host(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    let send = |socket: &UdpSocket, target: IpAddr| {
        socket.send_to(syslog::dovecot_failure(target).as_bytes(), author.syslog()).expect("send");
    };
    let stop = AtomicBool::new(false);
    let (times, sent) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let socket = author.on_its_host(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
            steadily(rate, &stop, |number| send(&socket, address(1_000_000 + number)))
        });
        std::thread::sleep(Duration::from_millis(500));
        let (mut times, begun) = (Times::default(), Instant::now());
        for number in (0..samples).take_while(|_| begun.elapsed() < LENGTH) {
            let target = address(number);
            let start = Instant::now();
            send(&socket, target);
            for agent in &mut agents {
                while !agent.is_banned(target).expect("an answer") && start.elapsed() < PATIENCE {}
            }
            times.add(start.elapsed());
            std::thread::sleep(Duration::from_millis(u64::from(10 + number % 7)));
        }
        stop.store(true, Ordering::Relaxed);
        (times, load.join().expect("the load ends"))
    });
    row(&format!("banmesh, {nodes} nodes"), rate, &times);
    let start = Instant::now();
    let entries = |node: &cluster_tests::node::Node| node.admin().digest().map_or(0, |(_, entries)| entries);
    let all = sent as usize + times.len();
    let lines = author.admin().metric("banmesh_syslog_lines_total").unwrap_or_default();
    wait::until("all nodes hold the same", Duration::from_secs(60), || {
        let first = mesh.nodes[0].admin().digest().ok();
        first.is_some() && mesh.nodes.iter().all(|node| node.admin().digest().ok() == first)
    });
    let held = entries(author);
    println!("    {all} lines sent, {lines:.0} counted, {held} bans on all nodes {:.1?} later", start.elapsed());
}

/// What nodes cost that do nothing: processor time and bytes on the network, of the median node and of the greatest.
fn rest(nodes: u8) {
    const SETTLED: Duration = Duration::from_secs(10);
    const MEASURED: Duration = Duration::from_secs(30);
    let Some(mut mesh) = Mesh::start_with(nodes, |_, config| config.set("log.level", "error")) else { return };
    std::thread::sleep(SETTLED);
    let start = Instant::now();
    // Of each node: the seconds of processor time, the bytes sent, and the times that it woke up.
    let mut sample = || -> Vec<[f64; 3]> {
        let nodes = mesh.nodes.iter_mut().zip(&mesh.hosts);
        let of = nodes.map(|(node, host)| {
            let used = measure::processor_time(node).as_secs_f64();
            [used, measure::traffic(host).1 as f64, measure::wakeups(node.process()) as f64]
        });
        of.collect()
    };
    let before = sample();
    std::thread::sleep(MEASURED);
    let after = sample();
    let seconds = start.elapsed().as_secs_f64();
    // The median and the greatest, per second.
    let rates = |of: usize| -> (f64, f64) {
        let mut rates: Vec<f64> =
            before.iter().zip(&after).map(|(before, after)| (after[of] - before[of]) / seconds).collect();
        rates.sort_by(f64::total_cmp);
        (rates[rates.len() / 2], rates[rates.len() - 1])
    };
    let ((used, most_used), (sent, most_sent), (woken, most_woken)) = (rates(0), rates(1), rates(2));
    println!(
        "banmesh, {nodes} nodes at rest: {:.2} % of a core per node (at most {:.2} %), {:.1} kB/s sent with all headers (at most {:.1}), \
         {woken:.0} wake-ups per second (at most {most_woken:.0})",
        used * 100.0,
        most_used * 100.0,
        sent / 1000.0,
        most_sent / 1000.0
    );
}

/// Calls `act` about `rate` times per second until it is stopped; returns the number of calls.
fn steadily(rate: u32, stop: &AtomicBool, mut act: impl FnMut(u32)) -> u32 {
    let (start, mut count) = (Instant::now(), 0);
    while rate > 0 && !stop.load(Ordering::Relaxed) {
        if f64::from(count) > start.elapsed().as_secs_f64() * f64::from(rate) {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        act(count);
        count += 1;
    }
    count
}

/// The same with HAProxy's peers: sets an entry in one stick table, and waits until all have it.
fn peers(nodes: u8, rate: u32, samples: u32) {
    let Some(peers) = Peers::start(nodes) else { return };
    let stop = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lines = Vec::new();
            steadily(rate / 50, &stop, |number| {
                lines.clear();
                lines.extend((0..50).map(|part| address(1_000_000 + number * 50 + part)));
                peers.set(0, &lines);
            })
        });
        std::thread::sleep(Duration::from_millis(500));
        let (mut times, begun) = (Times::default(), Instant::now());
        for number in (0..samples).take_while(|_| begun.elapsed() < LENGTH) {
            let target = address(number);
            let start = Instant::now();
            peers.set(0, &[target]);
            for node in 0..usize::from(nodes) {
                while !peers.holds(node, target) && start.elapsed() < PATIENCE {}
            }
            times.add(start.elapsed());
            std::thread::sleep(Duration::from_millis(u64::from(10 + number % 7)));
        }
        stop.store(true, Ordering::Relaxed);
        times
    });
    row(&format!("HAProxy peers, {nodes} nodes"), rate, &times);
}
