//! One run: a cluster, and what happens to it, all of it drawn from a seed.

mod counting;
mod faults;
mod quiet;
mod scenarios;
mod settle;
mod work;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use banmesh::cluster::{Metrics, Profile};
use banmesh_core::ban::BanEntry;
use banmesh_types::target::Target;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::network::{Net, address};
use crate::oracle::Oracle;
use crate::platform;
use crate::process::{Build, Common, Entrance, Process};
use crate::rng::Rng;
use crate::sometimes::Counts;
use crate::trace::Trace;
use counting::Counting;
pub use quiet::Quiet;

/// The most members that a node may know, and connections that it may hold open.
const MAX_MEMBERS: usize = 64;
const MAX_CONNECTIONS: usize = 64;
/// The targets that everything is about.
const TARGETS: u8 = 24;
/// A node that notices each second whether its clock was set has noticed after this time.
const CLOCK_NOTICED: Duration = Duration::from_millis(2500);
/// Entries that a scan returns at a time.
const SCAN: usize = 10_000;

/// How a run ended.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The hash of everything that happened.
    pub trace: u64,
    /// How many events the hash is about.
    pub events: u64,
    /// What was violated.
    pub violation: Option<String>,
    /// Faults, checks and situations.
    pub counts: BTreeMap<String, u64>,
    /// Simulated node-milliseconds.
    pub node_ms: u64,
    /// How long it took after the last fault until all tables were equal.
    pub equal_after_ms: u64,
}

struct Node {
    name: String,
    disk: Disk,
    build: Build,
    process: Option<Process>,
    /// When it is to start again.
    start_at: Option<Instant>,
    /// When its clock was last set. The node notices within a second.
    clock_set: Option<Instant>,
    /// When the process was first seen to have missed changes of another node.
    gap_since: Option<Instant>,
    /// Whether it has another address than at the start.
    moved: bool,
    /// Whether its journal was damaged since it last started. An operator then moves away what the node does not accept.
    damaged: bool,
    /// Where its HAProxy connects to, if it has one.
    entrance: Option<Entrance>,
}

/// A run.
pub struct World {
    rng: Rng,
    net: Net,
    trace: Trace,
    counts: Counts,
    oracle: Arc<Mutex<Oracle>>,
    common: Common,
    /// The HAProxies, in some runs.
    counting: Option<Counting>,
    /// The nodes, and the place of a clone.
    nodes: Vec<Node>,
    count: usize,
    node_ms: u64,
    attempts: u64,
    largest_skew: i64,
}

fn target(n: u8) -> Target {
    Target::host(IpAddr::from([192, 0, 2, n]).into())
}

impl World {
    /// A world of `count` nodes, none of which runs.
    pub fn new(seed: u64, count: usize, directory: &std::path::Path, loud: bool) -> Result<Self, String> {
        let (trace, counts) = (Trace::new(loud), Counts::default());
        let mut rng = Rng::new(seed ^ 0x5eed);
        let net = Net::new(rng.next(), trace.clone(), counts.clone());
        let profile = if rng.one_in(3) { Profile::Lan } else { Profile::Wan };
        let encrypted = rng.one_in(6);
        if encrypted {
            counts.add("encrypted");
        }
        let node = |n: usize| {
            let directory = directory.join(format!("node-{n}"));
            std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            let disk = Disk::new(n, directory, trace.clone(), counts.clone());
            Ok(Node {
                name: format!("node-{n}"),
                disk,
                build: Build::This,
                process: None,
                start_at: None,
                clock_set: None,
                gap_since: None,
                moved: false,
                damaged: false,
                entrance: None,
            })
        };
        // The last one is the place of a clone.
        let nodes = (0..=count).map(node).collect::<Result<_, String>>()?;
        let mut world = Self {
            oracle: Arc::new(Mutex::new(Oracle::new(count + 1, counts.clone()))),
            count,
            // Not drawn, so that other seeds do what they did before.
            common: Common::new(count, profile, encrypted, seed > 0 && seed.is_multiple_of(8))?,
            rng,
            net,
            trace,
            counts,
            nodes,
            node_ms: 0,
            attempts: 0,
            largest_skew: 0,
            counting: None,
        };
        // Not drawn either.
        if seed % 4 == 2 {
            world.add_haproxies(seed);
        }
        if seed % 8 == 3 && count >= 4 {
            world.common.sites = 2;
        }
        Ok(world)
    }

    /// Lets faults and work happen for `time`, ends all faults, and checks that the tables become equal.
    pub async fn run(mut self, seed: u64, time: Duration) -> Report {
        tokio::spawn(self.net.clone().deliver());
        let (violation, equal_after) = match self.live(time).await {
            Ok(equal_after) => (None, equal_after),
            Err(violation) => (Some(violation), Duration::ZERO),
        };
        self.report(seed, violation, equal_after)
    }

    fn report(&self, seed: u64, violation: Option<String>, equal_after: Duration) -> Report {
        let (trace, events) = self.trace.hash();
        Report {
            seed,
            trace,
            events,
            violation,
            counts: self.counts.all(),
            node_ms: self.node_ms,
            equal_after_ms: u64::try_from(equal_after.as_millis()).unwrap_or(u64::MAX),
        }
    }

    async fn live(&mut self, time: Duration) -> Result<Duration, String> {
        for node in 0..self.count {
            self.start(node).await?;
        }
        self.start_haproxies();
        let start = Instant::now();
        let pace = self.rng.range(50, 600);
        let mut checked = start;
        while start.elapsed() < time {
            let pause = Duration::from_millis(self.rng.range(1, pace));
            self.pass(pause).await;
            self.act().await?;
            self.requests();
            if checked.elapsed() >= Duration::from_secs(1) {
                checked = Instant::now();
                self.check(false).await?;
            }
        }
        self.settle().await
    }

    async fn pass(&mut self, time: Duration) {
        let running = self.nodes.iter().filter(|node| node.process.is_some()).count() as u64;
        self.node_ms += running * u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tokio::time::sleep(time).await;
    }

    async fn act(&mut self) -> Result<(), String> {
        let now = Instant::now();
        for node in 0..self.nodes.len() {
            if self.nodes[node].start_at.is_some_and(|at| at <= now) {
                self.start(node).await?;
            }
        }
        let node = self.rng.below(self.count);
        match self.rng.below(1000) {
            0..4 => self.clone_fault(node).await?,
            4..330 => self.ask(node),
            330..350 => self.race(node),
            350..600 => self.offend(node),
            600..780 => self.network_fault(),
            780..840 => self.disk_fault(node),
            840..890 => self.clock_fault(node),
            890..970 => self.process_fault(node).await,
            _ => {
                for _ in 0..self.rng.range(20, 400) {
                    self.ask(node);
                }
            }
        }
        Ok(())
    }

    async fn start(&mut self, node: usize) -> Result<(), String> {
        let Node { name, disk, build, process, start_at, moved, gap_since, entrance, .. } = &mut self.nodes[node];
        *start_at = None;
        if process.is_some() {
            return Ok(());
        }
        *gap_since = None;
        self.trace.event(format_args!("starts {node} {build:?}"));
        let port = self.net.process(node);
        let started = platform::on(
            node,
            Process::start(&self.common, (node, name), (port, address(node, *moved)), disk, *build, entrance.as_ref()),
        )
        .await;
        let started = match started {
            Err(_) if std::mem::take(&mut self.nodes[node].damaged) => {
                self.counts.add("a damaged journal is moved away");
                self.nodes[node].disk.wipe();
                return Box::pin(self.start(node)).await;
            }
            started => started.map_err(|error| format!("node {node} does not start: {error}"))?,
        };
        let Node { name, process, damaged, .. } = &mut self.nodes[node];
        *damaged = false;
        self.oracle.lock().loaded(name, &started.loaded);
        let (oracle, name, mut changes) = (Arc::clone(&self.oracle), name.clone(), started.store.subscribe());
        tokio::spawn(async move {
            loop {
                match changes.recv().await {
                    Ok(batch) => oracle.lock().published(node, &name, &batch),
                    Err(RecvError::Lagged(_)) => oracle.lock().violate("the simulator lost changes".to_owned()),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        *process = Some(started);
        Ok(())
    }

    /// Checks all running nodes. `complete` is whether all tables are equal.
    async fn check(&mut self, complete: bool) -> Result<(), String> {
        // The shortest packets of the network hold 1,472 bytes, and `cluster.max_datagram` is 1,200.
        if self.counts.of("datagram in fragments") > 0 {
            return Err("a node sent a datagram that does not fit into one packet".to_owned());
        }
        for node in 0..self.nodes.len() {
            let Some(process) = &mut self.nodes[node].process else { continue };
            if let Some(part) = process.broken() {
                return Err(format!("the {part} of node {node} has ended"));
            }
            let decisions = self.oracle.lock().decisions();
            let Some(entries) = table(node, process).await else { continue };
            self.oracle.lock().check_table(node, &entries, decisions, complete);
            for n in 0..TARGETS {
                let (target, address) = (target(n), IpAddr::from([192, 0, 2, n]));
                let Some(process) = &mut self.nodes[node].process else { continue };
                let Ok(before) = platform::on(node, process.store.entry(target)).await else { continue };
                let answer = process.is_banned(address);
                let Ok(entry) = platform::on(node, process.store.entry(target)).await else { continue };
                let settled = self.nodes[node].clock_set.is_none_or(|set| set.elapsed() > CLOCK_NOTICED);
                if before == entry && settled {
                    self.oracle.lock().check_answer(node, target, answer, entry.as_ref());
                }
            }
            let Some(process) = &self.nodes[node].process else { continue };
            check_bounds(node, process, &self.net, entries.len())?;
            let early = platform::on(node, process.store.summary()).await.map_or(0, |summary| summary.early);
            observe(process, early, &self.counts);
            if gaps(&process.metrics) > 0 {
                self.nodes[node].gap_since.get_or_insert_with(Instant::now);
            }
        }
        self.check_sums()?;
        self.oracle.lock().violation().map_or(Ok(()), |violation| Err(violation.to_owned()))
    }
}

/// All entries of a process. `None` if it is ending.
async fn table(node: usize, process: &Process) -> Option<BTreeMap<Target, BanEntry>> {
    let page = platform::on(node, process.store.scan(usize::MAX, SCAN, None)).await.ok()?;
    Some(page.entries.into_iter().collect())
}

fn check_bounds(node: usize, process: &Process, net: &Net, entries: usize) -> Result<(), String> {
    let members = process.cluster.members().nodes.len();
    let connections = net.connections(process.port.id());
    let (received, unique) = (process.metrics.datagrams_received.get(), net.unique(process.port.id()));
    if entries > TARGETS.into() {
        return Err(format!("node {node} has {entries} entries about {TARGETS} targets"));
    }
    if members > MAX_MEMBERS {
        return Err(format!("node {node} knows {members} members"));
    }
    if connections > MAX_CONNECTIONS {
        return Err(format!("node {node} holds {connections} connections"));
    }
    if received > unique {
        return Err(format!("node {node} has accepted {received} datagrams, but only {unique} different ones arrived"));
    }
    Ok(())
}

/// How often a process missed changes of another node, each of which must cause a repair.
fn gaps(metrics: &Metrics) -> u64 {
    let counted = |reason| Metrics::counted(&metrics.recent_changes_gaps, reason);
    counted("missed") + counted("first contact")
}

/// Notes rare situations.
fn observe(process: &Process, early: usize, counts: &Counts) {
    let metrics = &process.metrics;
    let situations = [
        ("sometimes: a gap is repaired", Metrics::counted(&metrics.repairs, "gap")),
        ("sometimes: a replay is refused", Metrics::counted(&metrics.datagrams_dropped, "replayed")),
        (
            "sometimes: a repair fails",
            Metrics::counted(&metrics.repairs_failed, "connection")
                + Metrics::counted(&metrics.repairs_failed, "timeout"),
        ),
        ("sometimes: tables that differ are repaired", Metrics::counted(&metrics.repairs, "differs")),
        ("sometimes: a nudge is lost and a repair brings the change", metrics.repair_received.get()),
        ("sometimes: a stamp waits", early as u64),
    ];
    for (what, count) in situations {
        if count > 0 {
            counts.add(what);
        }
    }
}
