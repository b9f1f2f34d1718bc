//! A real HAProxy next to each node, with one thread. The oracle counts at the clients.
//!
//! The sums are read as a rule reads them, from HAProxy's table. The age of a sum runs from the answer to a request until another HAProxy
//! has a sum with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::measure;
use cluster_tests::site::peers_config;

use crate::NODES;
use crate::clients::Counted;

/// All sums must be exact this long after the last request.
const EXACT_WITHIN: Duration = Duration::from_secs(60);
const COLUMNS: &str = "store http_req_cnt,http_req_rate(10s)";

/// Measures one rate, or several.
pub fn run(rate: Option<u64>, keys: usize, length: Duration) {
    let Some(binary) = Binary::all().pop() else { return };
    let rates = rate.map_or_else(|| vec![1000, 3000, 0], |rate| vec![rate]);
    println!("HAProxy {}, {NODES} of them, {keys} keys, {} s", binary.series(), length.as_secs());
    println!(
        " asked/s     sent/s  age p50      p99      max ms     sums   exact after  gossip MB/s/node  node CPU  memory  HAProxy CPU   µs/request  memory"
    );
    for rate in rates {
        alone(&binary, rate, keys, length);
        together(&binary, rate, keys, length);
    }
}

/// HAProxies whose tables are their own.
fn alone(binary: &Binary, rate: u64, keys: usize, length: Duration) {
    let http: Vec<SocketAddr> = (0..NODES).map(|_| loopback_port()).collect();
    let config = |http: &SocketAddr| {
        let tables = "table bans type ipv6 size 1k expire 1h store gpt0";
        let table = format!("backend req\n    stick-table type integer size {} expire 10m {COLUMNS}\n", keys * 2);
        let config = one_thread(peers_config(loopback_port(), *http, tables, &rules("req", "req")));
        config.replace("frontend site", &format!("{table}frontend site"))
    };
    let mut haproxies: Vec<HaProxy> = http.iter().map(|http| binary.start(config(http))).collect();
    let counted = Arc::new(Counted::new(http, keys));
    let haproxy = load(&counted, rate, length, false, &mut haproxies, || ());
    println!("{rate:>8}  {:>9.0}  without a peers section {:>83}", haproxy.0, haproxy.1);
}

/// HAProxies whose tables are shared by banmesh.
fn together(binary: &Binary, rate: u64, keys: usize, length: Duration) {
    let listen: Vec<SocketAddr> = (0..NODES).map(|_| loopback_port()).collect();
    let http: Vec<SocketAddr> = (0..NODES).map(|_| loopback_port()).collect();
    let mut nodes = crate::nodes(&listen);
    let config = |(listen, http): (&SocketAddr, &SocketAddr)| {
        let table = |name| format!("table {name} type integer size {} expire 10m {COLUMNS}", keys * 2);
        let tables = format!("{}\n    {}", table("req"), table("req.others"));
        one_thread(peers_config(*listen, *http, &tables, &rules("mesh/req", "mesh/req.others")))
    };
    let mut haproxies: Vec<HaProxy> = listen.iter().zip(&http).map(|pair| binary.start(config(pair))).collect();
    for haproxy in &haproxies {
        cluster_tests::wait::until("HAProxy is connected", cluster_tests::wait::SOON, || {
            haproxy.command("show peers").is_ok_and(|answer| answer.contains("last_status=ESTA"))
        });
    }
    let counted = Arc::new(Counted::new(http, keys));
    let mut before = ((0.0, Duration::ZERO), Instant::now());
    let haproxy = load(&counted, rate, length, true, &mut haproxies, || {
        before = (crate::used(&mut nodes), Instant::now());
    });
    let stopped = Instant::now();
    let (before, took) = (before.0, before.1.elapsed().as_secs_f64());
    let after = crate::used(&mut nodes);
    let mut exact = None;
    while exact.is_none() && stopped.elapsed() < EXACT_WITHIN {
        exact = is_exact(&counted, keys, &haproxies).then(|| stopped.elapsed());
    }
    println!(
        "{rate:>8}  {:>9.0} {} {:>7.2} %  {:>11}  {:>16.2}  {:>6.0} %  {:>3} MiB  {}",
        haproxy.0,
        counted.ages(),
        counted.share() * 100.0,
        exact.map_or_else(|| "never".to_owned(), |after| format!("{:.1} s", after.as_secs_f64())),
        (after.0 - before.0) / took / NODES as f64 / 1e6,
        (after.1 - before.1).as_secs_f64() / took / NODES as f64 * 100.0,
        crate::largest(&mut nodes) >> 20,
        haproxy.1,
    );
}

/// Counts in `counted`, and answers `/sum` from `sums`.
fn rules(counted: &str, sums: &str) -> String {
    format!(
        "http-request return status 200 content-type text/plain lf-string %[req.hdr(x-key),table_http_req_cnt({sums})] if {{ path /sum }}
    http-request track-sc0 req.hdr(x-key) table {counted}
    http-request return status 200"
    )
}

fn one_thread(config: Config) -> Config {
    config.replace("    localpeer lb1\n", "    localpeer lb1\n    nbthread 1\n")
}

/// Sends requests for `length` after a second in which all keys are new. `begins` is called after that second. Returns the requests per
/// second of all HAProxies together, and what they used.
fn load(
    counted: &Arc<Counted>,
    rate: u64,
    length: Duration,
    compares: bool,
    haproxies: &mut [HaProxy],
    begins: impl FnOnce(),
) -> (f64, String) {
    let spawn = |run: fn(&Counted, usize, u64), at| {
        let counted = Arc::clone(counted);
        std::thread::spawn(move || run(&counted, at, rate))
    };
    let mut threads = Vec::new();
    for at in 0..NODES {
        threads.push(spawn(Counted::send, at));
        if compares {
            threads.push(spawn(|counted, at, _| counted.probe(at), at));
            threads.push(spawn(|counted, at, _| counted.compare(at), at));
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let time = |haproxies: &mut [HaProxy]| -> Duration {
        haproxies.iter_mut().map(|haproxy| measure::processor_time_of(haproxy.process())).sum()
    };
    let (before, sent, began) = (time(haproxies), counted.requests(), Instant::now());
    begins();
    std::thread::sleep(length.saturating_sub(began.elapsed()));
    let (used, took) = (time(haproxies) - before, began.elapsed().as_secs_f64());
    let (all, answered) = counted.requests();
    let (sent, answered) = (all - sent.0, answered - sent.1);
    counted.end();
    threads.into_iter().for_each(|thread| thread.join().expect("a client"));
    let memory = haproxies.iter_mut().map(|haproxy| measure::memory_of(haproxy.process())).max().unwrap_or_default();
    let columns = format!(
        "{:>9.0} %  {:>11.1}  {:>3} MiB",
        used.as_secs_f64() / took / NODES as f64 * 100.0,
        used.as_secs_f64() * 1e6 / answered.max(1) as f64,
        memory >> 20,
    );
    (sent as f64 / took, columns)
}

/// Whether every HAProxy has the exact sum of every key.
fn is_exact(counted: &Counted, keys: usize, haproxies: &[HaProxy]) -> bool {
    haproxies.iter().enumerate().all(|(at, haproxy)| {
        let mut sums = vec![0; keys];
        for line in haproxy.command("show table mesh/req.others").expect("HAProxy's table").lines() {
            let value = |name| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u32>().ok());
            if let (Some(key), Some(count)) = (value("key="), value("http_req_cnt="))
                && let Some(sum) = sums.get_mut(key as usize)
            {
                *sum = count;
            }
        }
        (0..keys).all(|key| sums[key] == counted.others(at, key))
    })
}
