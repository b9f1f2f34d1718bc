//! Measurements: percentiles, memory, bytes on the network, and the join of a node to a cluster with many bans.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::admin::Admin;
use crate::mesh::{Mesh, address};
use crate::netns::Host;
use crate::node::Node;
use crate::process::Process;
use crate::wait;

/// A collection of times.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The number of times.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no times.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time that `share` (0 to 1) of all times do not exceed; zero if there are none.
    pub fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the length")]
        let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// p50, p99 and the maximum, in milliseconds, for a table.
    pub fn columns(&self) -> String {
        let ms = |share| self.at(share).as_secs_f64() * 1e3;
        format!("{:>8.2} {:>8.2} {:>8.2}", ms(0.5), ms(0.99), ms(1.0))
    }
}

impl Extend<Duration> for Times {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, times: T) {
        self.0.extend(times);
    }
}

/// The resident memory of a node, in bytes.
pub fn memory(node: &mut Node) -> u64 {
    memory_of(node.process())
}

/// The resident memory of a process, in bytes.
pub fn memory_of(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// The processor time that a node has used so far, in the steps of the kernel's clock (10 ms).
pub fn processor_time(node: &mut Node) -> Duration {
    processor_time_of(node.process())
}

/// The processor time that a process has used so far, in the same steps.
pub fn processor_time_of(process: &Process) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap_or_default();
    // After the name in parentheses, user and system time are fields 12 and 13, in hundredths of a second.
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// How often the threads of a process have woken up so far, after they had nothing to do.
pub fn wakeups(process: &Process) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.id())).into_iter().flatten().flatten();
    let statuses = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    let counts = statuses.filter_map(|status| {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
    });
    counts.sum()
}

/// The bytes that a host has received and sent so far.
///
/// # Panics
/// The counters cannot be read.
pub fn traffic(host: &Host) -> (u64, u64) {
    let output = host.command("cat").arg("/proc/net/dev").output().expect("run cat");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).unwrap_or_default();
    let mut fields = line.split_whitespace().map(|field| field.parse().unwrap_or_default());
    (fields.next().unwrap_or_default(), fields.nth(7).unwrap_or_default())
}

/// The cost of a join.
#[derive(Debug)]
pub struct Join {
    /// The number of entries before the join.
    pub entries: usize,
    /// The time from the start of the new node's process until it was ready.
    pub took: Duration,
    /// Bytes that the new node received.
    pub received: u64,
    /// The memory of the old node before and after, and of the new node.
    pub memory: [u64; 3],
    /// The times of the old node's answers before the join.
    pub idle: Times,
    /// The same during the join.
    pub old_node: Times,
    /// The times of the new node's answers during the join.
    pub new_node: Times,
}

/// Fills two nodes with bans and makes a third one join. Prints a message and returns `None` without root.
///
/// # Panics
/// The third node does not receive all of them.
pub fn join(entries: u32, limit: Duration) -> Option<Join> {
    let mut mesh = Mesh::start_with(2, |_, config| config.set("log.level", "warn"))?;
    let start = Instant::now();
    mesh.nodes[0].admin().ban_many((0..entries).map(address)).expect("bans");
    let filling = start.elapsed();
    let count = |admin: &Admin| admin.digest().map_or(0, |(_, entries)| entries);
    for node in &mesh.nodes {
        wait::until("both nodes hold all", limit, || count(&node.admin()) == u64::from(entries));
    }
    println!("join: {entries} bans acknowledged in {filling:.1?}, held by both nodes after {:.1?}", start.elapsed());
    let old_before = memory(&mut mesh.nodes[0]);
    let stop = AtomicBool::new(true);
    let idle = ask(&mesh.nodes[0], &stop, 2000);
    mesh.add_host();
    let before = traffic(&mesh.hosts[2]).0;
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    mesh.add_node(|config| config);
    let (old, new) = (&mesh.nodes[0], &mesh.nodes[2]);
    let (took, old_node, new_node) = std::thread::scope(|scope| {
        let old_node = scope.spawn(|| ask(old, &stop, 0));
        let new_node = scope.spawn(|| ask(new, &stop, 0));
        let admin = new.admin();
        wait::until("the new node holds all and is ready", limit, || {
            admin.is_ready() && count(&admin) == u64::from(entries)
        });
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        (took, old_node.join().expect("asks"), new_node.join().expect("asks"))
    });
    let received = traffic(&mesh.hosts[2]).0 - before;
    let [first, _, third] = mesh.nodes.as_mut_slice() else { return None };
    let memory = [old_before, memory(first), memory(third)];
    let sample = (0..entries).step_by(997).map(address);
    let mut agent = third.connect().expect("connect");
    assert!(sample.into_iter().all(|target| agent.is_banned(target).expect("an answer")), "not all bans arrived");
    Some(Join { entries: entries as usize, took, received, memory, idle, old_node, new_node })
}

/// Queries a node sequentially, until `stop` is set and at least `least` queries are done.
fn ask(node: &Node, stop: &AtomicBool, least: usize) -> Times {
    let mut times = Times::default();
    let Ok(mut agent) = node.connect() else { return times };
    let clean: IpAddr = Ipv4Addr::new(198, 51, 100, 7).into();
    while !stop.load(Ordering::Relaxed) || times.len() < least {
        let start = Instant::now();
        if agent.is_banned(clean).is_err() {
            break;
        }
        times.add(start.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    times
}

impl std::fmt::Display for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let [before, after, new] = self.memory.map(mib);
        writeln!(
            f,
            "join: {} entries in {:.2} s, from the start of the process",
            self.entries,
            self.took.as_secs_f64()
        )?;
        let each = self.received as f64 / self.entries.max(1) as f64;
        writeln!(f, "join: received {:.1} MiB, {each:.0} bytes an entry", mib(self.received))?;
        writeln!(f, "join: memory of the old node {before:.0} -> {after:.0} MiB, of the new one {new:.0} MiB")?;
        writeln!(f, "join: SPOP answers, ms          p50      p99      max")?;
        writeln!(f, "join:   old node, idle     {}", self.idle.columns())?;
        writeln!(f, "join:   old node, joining  {}", self.old_node.columns())?;
        write!(f, "join:   new node, joining  {}", self.new_node.columns())
    }
}
