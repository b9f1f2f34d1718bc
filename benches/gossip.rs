//! How long a ban takes to reach all nodes, and how long a join takes. All nodes run in this process and share its cores, so
//! every figure includes the work of all nodes.
//!
//! ```text
//! cargo bench --bench gossip                     the whole table
//! cargo bench --bench gossip -- 3 10000 1        3 nodes, 10,000 bans/s, by 1 author
//! cargo bench --bench gossip -- join 1000000     a node joins another that has 1,000,000 bans
//! cargo bench --bench gossip -- rest 10 50 200   what clusters of 10, 50 and 200 nodes cost while nothing happens
//! ```
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use banmesh::clock;
use banmesh::cluster::{Cluster, ClusterHandle, ClusterSettings, Metrics, Profile, Timers};
use banmesh::decisions::batch::Source;
use banmesh::decisions::store::{self, Store, StoreHandle};
use banmesh::decisions::view::View;
use banmesh_core::ban::{By, Cause};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_core::seal::{Keyring, key_text};
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(86_400);

struct Node {
    store: StoreHandle,
    cluster: ClusterHandle,
    metrics: Metrics,
    running: tokio::task::AbortHandle,
}

async fn start(id: &str, seeds: Vec<String>, stop: &CancellationToken) -> Node {
    let limits = Limits { max_bans: 10_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new(id.parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (runner, store) = Store::new(ledger, writer, None, Duration::from_secs(60), store::Metrics::default());
    tokio::spawn(runner.serve(stop.clone()));
    let settings = ClusterSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        seeds,
        timers: Timers::of(Profile::Lan),
        keyring: Some(Keyring::parse(&key_text([1; 32])).unwrap()),
        join_timeout: Duration::from_millis(500),
        ..ClusterSettings::new(id.parse().unwrap(), 1)
    };
    let metrics = Metrics::default();
    let cluster = Cluster::bind(settings, store.clone(), metrics.clone()).await.unwrap();
    let handle = cluster.handle();
    let stop = stop.clone();
    // It ends with the runtime, which may drop its tasks first.
    let running = tokio::spawn(async move { drop(cluster.serve(stop).await) }).abort_handle();
    Node { store, cluster: handle, metrics, running }
}

/// When each ban was made, and when it reached the last node.
struct Times {
    start: Instant,
    made: Vec<AtomicU64>,
    seen: Vec<AtomicU64>,
    by: Vec<AtomicU32>,
}

impl Times {
    fn new(bans: usize) -> Self {
        let zeros = || (0..bans).map(|_| AtomicU64::new(0)).collect();
        Self { start: Instant::now(), made: zeros(), seen: zeros(), by: (0..bans).map(|_| AtomicU32::new(0)).collect() }
    }

    fn nanos(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

fn host(n: usize) -> Target {
    Target::host((0x0a00_0000 | n as u32).to_be_bytes().into())
}

fn number(target: Target) -> usize {
    (target.bits() & 0x00ff_ffff) as usize
}

async fn spread(nodes: usize, rate: usize, authors: usize, seconds: usize) {
    let stop = CancellationToken::new();
    let mut all: Vec<Node> = Vec::new();
    for n in 0..nodes {
        let seeds = all.first().map(|first| first.cluster.listen().to_string()).into_iter().collect();
        let node = start(&format!("node-{n}"), seeds, &stop).await;
        all.push(node);
    }
    while !all.iter().all(|node| node.cluster.members().live_peers().count() == nodes - 1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bans = rate * seconds;
    let times = Arc::new(Times::new(bans));
    for node in &all {
        let (mut changes, times) = (node.store.subscribe(), Arc::clone(&times));
        tokio::spawn(async move {
            while let Ok(batch) = changes.recv().await {
                if batch.source == Source::Remote {
                    let now = times.nanos();
                    for change in &batch.changes {
                        let n = number(change.target);
                        times.seen[n].fetch_max(now, Ordering::Relaxed);
                        times.by[n].fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    let cpu = cpu_time();
    let begun = Instant::now();
    let mut makers = Vec::new();
    for (author, node) in all.iter().enumerate().take(authors) {
        let (store, times) = (node.store.clone(), Arc::clone(&times));
        makers.push(tokio::spawn(async move {
            let until = Expiry::at(clock::now().plus(DAY));
            for n in (author..bans).step_by(authors) {
                let due = begun + Duration::from_secs_f64(n as f64 / rate as f64);
                if let Some(wait) = due.checked_duration_since(Instant::now()) {
                    tokio::time::sleep(wait).await;
                }
                times.made[n].store(times.nanos(), Ordering::Relaxed);
                let cause = Cause::new(By::Filter("sshd".into()), "failed-password");
                store.ban(host(n), BanTerms::new(until, DAY), cause).await.unwrap().unwrap();
            }
        }));
    }
    for maker in makers {
        maker.await.unwrap();
    }
    let made = begun.elapsed();
    let complete = |n: &usize| times.by[*n].load(Ordering::Relaxed) as usize >= nodes - 1;
    let deadline = Instant::now() + Duration::from_secs(30);
    while (0..bans).filter(complete).count() < bans && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let cpu = (cpu_time() - cpu) / made.as_secs_f64();
    let missing = bans - (0..bans).filter(complete).count();
    let latency =
        |n: usize| times.seen[n].load(Ordering::Relaxed).saturating_sub(times.made[n].load(Ordering::Relaxed));
    let mut latencies: Vec<u64> = (0..bans).filter(complete).map(latency).collect();
    latencies.sort_unstable();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or(0) as f64 / 1e6;
    let gaps: u64 = all
        .iter()
        .flat_map(|node| {
            ["missed", "overflow", "first contact"].map(|r| Metrics::counted(&node.metrics.recent_changes_gaps, r))
        })
        .sum();
    let flushes: u64 = all.iter().map(|node| node.metrics.recent_changes_flushes.get()).sum();
    println!(
        "{nodes:>5} {rate:>7} {authors:>8} {:>9.0} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {missing:>8} {gaps:>6} {flushes:>8} {cpu:>6.2}",
        bans as f64 / made.as_secs_f64(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.9999),
    );
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// What a cluster costs while nothing happens, and how long it takes until all nodes notice that one has died.
async fn rest(nodes: usize) {
    let stop = CancellationToken::new();
    let mut all: Vec<Node> = Vec::new();
    for n in 0..nodes {
        let seeds = all.iter().take(3).map(|seed| seed.cluster.listen().to_string()).collect();
        all.push(start(&format!("node-{n}"), seeds, &stop).await);
    }
    let live = |node: &Node| node.cluster.members().live_peers().count();
    let begun = Instant::now();
    while !all.iter().all(|node| live(node) == nodes - 1) && begun.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let met = begun.elapsed();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sent = |all: &[Node]| -> (u64, u64) {
        let bytes = all.iter().map(|node| node.metrics.datagram_bytes_sent.get()).sum();
        (bytes, all.iter().map(|node| node.metrics.datagrams_sent.get()).sum())
    };
    let (before, cpu, begun) = (sent(&all), cpu_time(), Instant::now());
    let mut fewest = nodes - 1;
    while begun.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fewest = all.iter().map(live).min().unwrap_or(0).min(fewest);
    }
    let (after, seconds) = (sent(&all), begun.elapsed().as_secs_f64() * nodes as f64);
    let cpu = (cpu_time() - cpu) / seconds * 100.0;
    let last = all.pop().expect("a node");
    last.running.abort();
    let died = Instant::now();
    let mut noticed = Vec::new();
    while noticed.len() < nodes - 1 && died.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = all.iter().filter(|node| live(node) < nodes - 1).count();
        noticed.resize(now.max(noticed.len()), died.elapsed());
    }
    println!(
        "{nodes:>5} {:>10.1} {:>12.1} {:>8.0} {cpu:>8.2} {:>9.1} {:>8.1} {:>8.1} {fewest:>8}",
        (after.0 - before.0) as f64 / seconds / 1000.0,
        (after.1 - before.1) as f64 / seconds,
        (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64,
        met.as_secs_f64(),
        noticed.get(noticed.len() / 2).map_or(f64::NAN, Duration::as_secs_f64),
        noticed.last().filter(|_| noticed.len() == nodes - 1).map_or(f64::NAN, Duration::as_secs_f64),
    );
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(500)).await;
}

async fn join(count: usize) {
    let stop = CancellationToken::new();
    let first = start("first", Vec::new(), &stop).await;
    first.cluster.ready().await;
    let cause = Cause::new(By::Filter("sshd".into()), "failed-password");
    let until = Expiry::at(clock::now().plus(DAY));
    first.store.ban(host(0), BanTerms::new(until, DAY), cause).await.unwrap().unwrap();
    let entry = first.store.entry(host(0)).await.unwrap().unwrap();
    let load = Instant::now();
    for chunk in (1..count).collect::<Vec<_>>().chunks(4096) {
        first.store.merge(chunk.iter().map(|n| (host(*n), entry.clone())).collect()).await.unwrap();
    }
    let load = load.elapsed();
    let begun = Instant::now();
    let late = start("late", vec![first.cluster.listen().to_string()], &stop).await;
    late.cluster.ready().await;
    let ready = begun.elapsed();
    let repair = late.cluster.last_repair();
    println!("join of {count}: merged locally in {load:.2?}; ready {ready:.2?} after its start; {repair:?}");
    assert_eq!(late.store.summary().await.unwrap().entries, count);
    let begun = Instant::now();
    while first.cluster.last_repair().is_none() && late.cluster.last_repair().is_none_or(|last| last.reason == "join") {
        if begun.elapsed() > Duration::from_secs(70) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("and a comparison of equal tables: {:?}", first.cluster.last_repair().or(late.cluster.last_repair()));
    stop.cancel();
}

/// The CPU time of this process in seconds.
fn cpu_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if arguments.first().is_some_and(|first| first == "join") {
        return join(numbers.first().copied().unwrap_or(1_000_000)).await;
    }
    if arguments.first().is_some_and(|first| first == "rest") {
        println!(
            "per node at rest: kB/s and datagrams/s sent, bytes per datagram, % of a core; then seconds until all nodes have met, until"
        );
        println!(
            "half and all of them have noticed that one has died, and the fewest live peers that a node saw meanwhile"
        );
        println!("nodes       kB/s  datagrams/s    bytes      CPU       met     half      all   fewest");
        for nodes in numbers {
            rest(nodes).await;
        }
        return;
    }
    println!("time until all nodes have a ban, in ms; CPU in cores, of all nodes together");
    println!("nodes  bans/s  authors  achieved      p50      p90      p99   p99.99  missing   gaps  flushes    CPU");
    if let [nodes, rate, authors, ..] = numbers[..] {
        return spread(nodes, rate, authors, numbers.get(3).copied().unwrap_or(5)).await;
    }
    for (nodes, rate, authors) in
        [(3, 25, 1), (3, 10_000, 1), (5, 25, 1), (5, 10_000, 1), (10, 25, 1), (10, 10_000, 1), (10, 10_000, 5)]
    {
        spread(nodes, rate, authors, 5).await;
    }
    join(1_000_000).await;
}
