//! One run: a cluster, and what happens to it, all of it drawn from a seed.

mod faults;
mod scenarios;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use banmesh::cluster::{Metrics, Profile, Timers};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::ledger::BanTerms;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::network::{Net, address};
use crate::oracle::{Oracle, Wish};
use crate::platform;
use crate::process::{Build, Process, Site};
use crate::rng::Rng;
use crate::sometimes::Counts;
use crate::trace::Trace;

/// After the last fault, all tables must be equal within this time.
pub const EQUAL_WITHIN: Duration = Duration::from_secs(60);
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
    /// Whether it has another address than at the start.
    moved: bool,
}

/// A run.
pub struct World {
    rng: Rng,
    net: Net,
    trace: Trace,
    counts: Counts,
    oracle: Arc<Mutex<Oracle>>,
    site: Site,
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
                moved: false,
            })
        };
        // The last one is the place of a clone.
        let nodes = (0..=count).map(node).collect::<Result<_, String>>()?;
        Ok(Self {
            oracle: Arc::new(Mutex::new(Oracle::new(count + 1, counts.clone()))),
            count,
            site: Site::new(count, profile, encrypted)?,
            rng,
            net,
            trace,
            counts,
            nodes,
            node_ms: 0,
            attempts: 0,
            largest_skew: 0,
        })
    }

    /// Runs without faults and without work for `time`: what a quiet cluster costs.
    pub async fn quiet(mut self, time: Duration) -> Result<Report, String> {
        (self.site.timers, self.site.encrypted) = (Timers::of(Profile::Lan), true);
        tokio::spawn(self.net.clone().deliver());
        for node in 0..self.count {
            self.start(node).await?;
        }
        tokio::time::sleep(time).await;
        self.node_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX) * self.count as u64;
        self.counts.add_many("bytes in datagrams", self.net.bytes_sent());
        Ok(self.report(0, None, Duration::ZERO))
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
        let start = Instant::now();
        let pace = self.rng.range(50, 600);
        let mut checked = start;
        while start.elapsed() < time {
            let pause = Duration::from_millis(self.rng.range(1, pace));
            self.pass(pause).await;
            self.act().await?;
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
            4..350 => self.ask(node),
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

    /// An operator asks a node for something.
    fn ask(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let store = process.store.clone();
        let target = target(u8::try_from(self.rng.below(TARGETS.into())).unwrap_or_default());
        let wish = *self.rng.pick(&[Wish::Ban, Wish::Ban, Wish::Unban, Wish::Unban, Wish::Allow, Wish::Disallow]);
        let seconds = *self.rng.pick(&[None, Some(3), Some(20), Some(90), Some(600)]);
        let replace = self.rng.one_in(3);
        let end = move || {
            let now = UnixMillis(platform::wall(node));
            seconds.map_or(Expiry::NEVER, |seconds| Expiry::at(now.plus(Duration::from_secs(seconds))))
        };
        let oracle = Arc::clone(&self.oracle);
        let (request, disk) = {
            let mut oracle = oracle.lock();
            (oracle.requested(target, wish), oracle.disk(node))
        };
        self.trace.event(format_args!("asks {node} {request} {wish:?} {target}"));
        let (trace, counts) = (self.trace.clone(), self.counts.clone());
        let cause = Cause::new(By::Operator("ann".into()), &request.to_string());
        tokio::spawn(platform::on(node, async move {
            let answer = match wish {
                Wish::Ban => {
                    let terms = BanTerms { until: end(), remember: Duration::from_secs(300), replace };
                    store.ban(target, terms, cause).await
                }
                Wish::Unban => store.unban(target, cause).await,
                Wish::Allow => store.allow(target, end(), cause).await,
                Wish::Disallow => store.disallow(target, cause).await,
            };
            match answer {
                Ok(Ok(change)) => {
                    trace.event(format_args!("acknowledged {node} {request} {:?}", change.after));
                    oracle.lock().acknowledged(request, node, disk, &change);
                }
                Ok(Err(banmesh_core::ledger::Refused::NotSaved { .. })) => counts.add("decision made but not saved"),
                Ok(Err(_)) => counts.add("decision refused"),
                Err(_) => counts.add("decision not answered"),
            }
        }));
    }

    /// Lines about a source reach a node, or several.
    fn offend(&mut self, node: usize) {
        let source = [192, 0, 2, u8::try_from(self.rng.below(TARGETS.into())).unwrap_or_default()];
        let spread = self.rng.one_in(3);
        for _ in 0..self.rng.range(1, 4) {
            self.attempts += 1;
            let node = if spread { self.rng.below(self.count) } else { node };
            let Some(process) = &mut self.nodes[node].process else { continue };
            self.oracle.lock().offence(target(source[3]));
            self.trace.event(format_args!("logs {node} {source:?}"));
            process.failed_login(source.into(), self.attempts);
        }
    }

    async fn start(&mut self, node: usize) -> Result<(), String> {
        let Node { name, disk, build, process, start_at, moved, .. } = &mut self.nodes[node];
        *start_at = None;
        if process.is_some() {
            return Ok(());
        }
        self.trace.event(format_args!("starts {node} {build:?}"));
        let port = self.net.process(node);
        let started =
            platform::on(node, Process::start(&self.site, (node, name), (port, address(node, *moved)), disk, *build))
                .await;
        let started = started.map_err(|error| format!("node {node} does not start: {error}"))?;
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
                let before = process.is_banned(address);
                let Ok(entry) = platform::on(node, process.store.entry(target)).await else { continue };
                let settled = self.nodes[node].clock_set.is_none_or(|set| set.elapsed() > CLOCK_NOTICED);
                let Some(process) = &mut self.nodes[node].process else { continue };
                if process.is_banned(address) == before && settled {
                    self.oracle.lock().check_answer(node, target, before, entry.as_ref());
                }
            }
            let Some(process) = &self.nodes[node].process else { continue };
            check_bounds(node, process, &self.net, entries.len())?;
            let early = platform::on(node, process.store.summary()).await.map_or(0, |summary| summary.early);
            observe(process, early, &self.counts);
        }
        self.oracle.lock().violation().map_or(Ok(()), |violation| Err(violation.to_owned()))
    }

    /// Ends all faults, waits until all tables are equal, and checks everything again. Returns how long it took.
    async fn settle(&mut self) -> Result<Duration, String> {
        self.net.heal();
        self.end_clone();
        let mut longest = EQUAL_WITHIN;
        // What a clock that was far ahead has stamped waits until the others reach it.
        longest += Duration::from_millis(u64::try_from(self.largest_skew).unwrap_or_default());
        for node in 0..self.count {
            let skew = i64::try_from(self.rng.range(0, 2000)).unwrap_or_default() - 1000;
            if platform::skew(node).abs() > 4_900 {
                self.set_clock(node, skew);
            }
            self.nodes[node].disk.set_full(false);
            self.nodes[node].disk.set_failing(false);
            self.nodes[node].disk.set_latency(Duration::ZERO);
            self.start(node).await?;
        }
        if self.count > 2 && self.rng.one_in(4) {
            let hung = self.rng.below(self.count);
            self.net.hang(hung);
            self.counts.add("fault: one node answers no connections to the end");
        }
        self.trace.event(format_args!("settles"));
        let start = Instant::now();
        let mut equal_since: Option<Instant> = None;
        loop {
            self.pass(Duration::from_millis(500)).await;
            self.check(false).await?;
            match self.difference().await {
                None => {
                    let since = *equal_since.get_or_insert_with(Instant::now);
                    // Nothing may come later.
                    if since.elapsed() >= Duration::from_secs(5) {
                        let equal_after = since - start;
                        self.check(true).await?;
                        return Ok(equal_after);
                    }
                }
                Some(difference) => {
                    equal_since = None;
                    if start.elapsed() > longest {
                        return Err(format!("{longest:?} after the last fault, tables still differ: {difference}"));
                    }
                }
            }
        }
    }

    /// A difference between the tables of two nodes.
    async fn difference(&self) -> Option<String> {
        let mut tables = Vec::new();
        for (node, process) in self.nodes.iter().enumerate().filter_map(|(n, node)| Some((n, node.process.as_ref()?))) {
            tables.push(table(node, process).await?);
        }
        let latest = (0..self.nodes.len()).map(platform::wall).max().unwrap_or_default();
        let kept = |entry: &BanEntry| !entry.keep.has_passed(UnixMillis(latest + 1000));
        let (first, others) = tables.split_first()?;
        for (n, other) in others.iter().enumerate() {
            for target in first.keys().chain(other.keys()) {
                let (a, b) = (first.get(target), other.get(target));
                if a != b && a.or(b).is_some_and(kept) {
                    return Some(format!("{target}: node 0 has {a:?}, node {} has {b:?}", n + 1));
                }
            }
        }
        None
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
