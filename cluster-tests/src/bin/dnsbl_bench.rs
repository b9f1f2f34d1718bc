//! Measures the DNS block list of a node over UDP on the loopback: answers per second, and per second of the node's CPU time.
//!
//! `target/release/dnsbl_bench [SECONDS]`; `make bench` runs it. `BANMESH_BIN` names the node's binary, to compare two builds. The
//! queries that are in flight at the same time decide how many the node takes with one system call. Clients and node share the machine.
#![expect(clippy::expect_used, reason = "a benchmark: what cannot go on ends it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::measure::processor_time;
use cluster_tests::mesh::address;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::wait;

const BANS: u32 = 100_000;
/// The maximum time to wait for an answer. One that was lost is asked for again.
const PATIENCE: Duration = Duration::from_millis(200);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3.0);
    let listen = SocketAddr::new(LOOPBACK, free_port());
    let config = NodeConfig::new().set("dnsbl.enabled", true).set("dnsbl.address", listen.to_string());
    let mut node = config.set("log.level", "error").start();
    node.admin().ban_many((0..BANS).map(address)).expect("bans");
    wait::until("the node has all bans", wait::SOON, || {
        node.admin().digest().is_ok_and(|(_, entries)| entries >= u64::from(BANS))
    });
    println!("{BANS} bans; every second query is about a banned address");
    println!("{:>10} {:>12} {:>22} {:>14}", "in flight", "answers/s", "µs of CPU per answer", "answers/s/core");
    for (clients, window) in [(1, 1), (1, 8), (2, 32), (2, 64)] {
        row(&mut node, listen, clients, window, Duration::from_secs_f64(seconds));
    }
}

fn row(node: &mut Node, listen: SocketAddr, clients: usize, window: u16, length: Duration) {
    let stop = AtomicBool::new(false);
    let (begun, before) = (Instant::now(), processor_time(node));
    let answers: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(|| ask(listen, window, &stop))).collect();
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).sum()
    });
    let (wall, cpu) = (begun.elapsed(), processor_time(node).saturating_sub(before));
    let each = cpu.as_secs_f64() / answers.max(1) as f64;
    println!(
        "{:>10} {:>12.0} {:>22.2} {:>14.0}",
        clients * usize::from(window),
        answers as f64 / wall.as_secs_f64(),
        each * 1e6,
        1.0 / each
    );
}

/// Keeps `window` queries in flight, and returns the number of answers.
fn ask(listen: SocketAddr, window: u16, stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind((LOOPBACK, 0)).expect("bind");
    socket.connect(listen).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let queries: Vec<Vec<u8>> = (0..4096).map(query).collect();
    let mut asked = queries.iter().cycle();
    let (mut answers, mut buffer) = (0, [0; 512]);
    while !stop.load(Ordering::Relaxed) {
        for query in asked.by_ref().take(window.into()) {
            socket.send(query).expect("send");
        }
        for _ in 0..window {
            if socket.recv(&mut buffer).is_err() {
                break;
            }
            answers += 1;
        }
    }
    answers
}

/// A query about a banned address, or, if `number` is odd, about one that is not banned.
fn query(number: u16) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let about = if number.is_multiple_of(2) {
        address(u32::from(number) * 16)
    } else {
        Ipv4Addr::new(198, 18, high, low).into()
    };
    let IpAddr::V4(about) = about else { unreachable!("an IPv4 address") };
    let mut query = number.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let octets = about.octets().into_iter().rev().map(|octet| octet.to_string());
    for label in octets.chain(["bl", "banmesh", "internal"].map(str::to_owned)) {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}
