//! A node with a million bans: how long lists, exports and metrics take, and how they delay checks and bans.
//!
//! Run `cargo run --release -p cluster-tests --bin big_table` after a release build of banmesh; `BIG_TABLE=100000` for fewer bans. Every
//! row repeats one request for a while; meanwhile one connection queries over SPOP without a pause, and bans and unbans are made one at a
//! time. In the last row eight clients guess passwords, each from ever new addresses. All processes share one machine.
#![expect(clippy::expect_used, reason = "a benchmark: what cannot go on ends it")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cluster_tests::measure::{self, Times};
use cluster_tests::mesh::address;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// How long a request is repeated.
const LENGTH: Duration = Duration::from_secs(5);
const HEAD: &str = "                                     request ms           check ms                   ban or lift ms
                                 n      p50      max      p50      p99      max      p50      p99      max";

fn main() {
    let bans: u32 = std::env::var("BIG_TABLE").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let port = free_port();
    let users = json!({ "ann": { "role": "read", "password": "her password" } });
    let mut node = NodeConfig::new()
        .set("ban.max_bans", bans * 2)
        .set("ban.initial_ban_time", "1d")
        .set("api", json!({ "enabled": true, "port": port, "allowed_ips": ["127.0.0.0/8"], "users": users }))
        .start();
    let start = Instant::now();
    node.admin().ban_many((0..bans).map(address)).expect("ban");
    println!("{bans} bans over the API in {:.1} s", start.elapsed().as_secs_f64());
    println!("memory of the node: {} MiB", measure::memory(&mut node) >> 20);
    println!("{HEAD}");
    row(&node, "nothing", &|| {
        std::thread::sleep(Duration::from_millis(100));
        false
    });
    let half = middle(&node);
    for (name, path) in [
        ("page of 1000", "/bans?limit=1000"),
        ("page of 10000", "/bans?limit=10000"),
        ("page of 1000, in the middle", &format!("/bans?limit=1000&cursor={half}")),
        ("filter that has none", "/bans?filter=nobody"),
        ("operator that has all", "/bans?operator=test&limit=1000"),
        ("one network of 256", "/bans?network=11.128.7.0/24"),
        ("newest 250, as the page", "/bans?sort=newest&limit=250"),
        ("newest 5000, as the page", "/bans?sort=newest&limit=5000"),
        ("search of an address", "/bans?sort=newest&limit=250&search=11.128.100.7"),
        ("search of a text", "/bans?sort=newest&limit=250&search=nobody"),
        ("search of part of an address", "/bans?sort=newest&limit=250&search=128.77."),
        ("temp-bans", "/api/temp-bans"),
        ("export", "/bans/export"),
        ("export, permanent=false", "/bans/export?permanent=false"),
        ("status", "/status"),
        ("why", "/why/11.128.0.7"),
        ("metrics", "/metrics"),
    ] {
        let whole = path == "/metrics" || path.starts_with("/api/");
        let path = if whole { path.to_owned() } else { format!("/api/v1{path}") };
        row(&node, name, &|| {
            let answer = node.admin().request("GET", &path, None).expect("an answer");
            assert_eq!(answer.status, 200, "{path}");
            true
        });
    }
    guessed(&node, port);
}

/// Guesses passwords from so many addresses that none of them reaches the rate limit.
fn guessed(node: &Node, port: u16) {
    let (ended, address) = (AtomicBool::new(false), AtomicU32::new(0));
    let guess = || {
        let number = address.fetch_add(1, Ordering::Relaxed);
        let from = Ipv4Addr::from(0x7f01_0000 | (number & 0xffff));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(from.into(), 0).into()).expect("an address of the loopback");
        socket.connect(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port).into()).expect("connect");
        let mut stream = std::net::TcpStream::from(socket);
        // ann:wrong
        let head = "GET /api/v1/ping HTTP/1.0\r\nHost: localhost\r\nAuthorization: Basic YW5uOndyb25n\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.0 401") || answer.starts_with("HTTP/1.0 503"), "{answer}");
    };
    std::thread::scope(|scope| {
        for _ in 0..7 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    guess();
                }
            });
        }
        row(node, "guessed passwords", &|| {
            guess();
            true
        });
        ended.store(true, Ordering::Relaxed);
    });
    println!("{} passwords were guessed", address.load(Ordering::Relaxed));
}

/// The cursor in the middle of a listing.
fn middle(node: &Node) -> String {
    // A cursor names the bucket, of 4,096, in hexadecimal.
    let page = node.admin().get("/bans?limit=1&cursor=800").expect("a page");
    page["next"].as_str().unwrap_or("800").to_owned()
}

/// Repeats `request`, which returns whether it counts.
fn row(node: &Node, name: &str, request: &dyn Fn() -> bool) {
    let ended = AtomicBool::new(false);
    let (checks, changes) = (Mutex::new(Times::default()), Mutex::new(Times::default()));
    let mut requests = Times::default();
    std::thread::scope(|scope| {
        scope.spawn(|| *checks.lock().expect("times") = ask(node, &ended));
        scope.spawn(|| *changes.lock().expect("times") = change(node, &ended));
        let start = Instant::now();
        while start.elapsed() < LENGTH {
            let asked = Instant::now();
            if request() {
                requests.extend([asked.elapsed()]);
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    let ms = |share| requests.at(share).as_secs_f64() * 1e3;
    let (checks, changes) = (checks.into_inner().expect("times"), changes.into_inner().expect("times"));
    let of_requests = format!("{:>5} {:>8.1} {:>8.1}", requests.len(), ms(0.5), ms(1.0));
    println!("{name:<29}{of_requests} {} {}", checks.columns(), changes.columns());
}

/// Queries over SPOP without a pause.
fn ask(node: &Node, ended: &AtomicBool) -> Times {
    let mut connection = node.connect().expect("connect");
    let mut times = Times::default();
    let mut number = 0;
    while !ended.load(Ordering::Relaxed) {
        number = (number + 1) % 1000;
        let asked = Instant::now();
        assert!(connection.is_banned(address(number)).expect("an answer"), "{number} is banned");
        times.extend([asked.elapsed()]);
    }
    times
}

/// Bans and unbans addresses, one at a time.
fn change(node: &Node, ended: &AtomicBool) -> Times {
    let target: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    let mut times = Times::default();
    while !ended.load(Ordering::Relaxed) {
        for ban in [true, false] {
            let asked = Instant::now();
            let admin = node.admin();
            if ban { admin.ban(target) } else { admin.unban(target) }.expect("done");
            times.extend([asked.elapsed()]);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    times
}
