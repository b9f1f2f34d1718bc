//! The journal on this disk: how fast a table loads, how fast changes become durable, and how large an entry is.
//!
//! `cargo bench --bench journal [-- ENTRIES [DIRECTORY]]`; the defaults are 1,000,000 entries and the system's temporary directory.
//! The disk determines most figures, so the time of a plain write and fsync is printed as well.
#![allow(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a benchmark ends by panicking; its numbers are small, and bits are meant to be cut"
)]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh::decisions::batch::{Acknowledgement, Batch, Source};
use banmesh::decisions::journal::{FILE_NAME, Journal, Metrics, Opened, Settings};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{Change, Ledger, Limits};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use tokio::sync::oneshot;

const DAY: Duration = Duration::from_secs(86_400);

/// Bans like those of a fleet of five nodes: mostly IPv4 hosts, some IPv6 networks, by a few filters, in random order.
struct Bans {
    nodes: Vec<NodeId>,
    causes: Vec<Arc<Cause>>,
}

impl Bans {
    fn new() -> Self {
        let nodes =
            (0..5).map(|n| format!("3f2b8a70-1c55-4e0e-9d3b-5f1d2c3b4a0{n}").parse().expect("a node id")).collect();
        let causes = ["sshd", "dovecot", "postfix", "sogo"]
            .map(|filter| Arc::new(Cause::new(By::Filter(filter.into()), "failed-password")))
            .to_vec();
        Self { nodes, causes }
    }

    fn change(&self, n: u64) -> Change {
        let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let target = if n % 10 < 7 {
            Target::host(std::net::Ipv4Addr::from_bits((scattered >> 32) as u32).into())
        } else {
            Target::from_bits(u128::from(scattered) << 64 | 0x2001 << 112, 64)
        };
        let until = Expiry::from_seconds(4_000_000_000 + (scattered as u32 % 100_000));
        let stamp = Stamp { hlc: Hlc(n << 16), node: self.nodes[n as usize % 5].clone() };
        let cause = Arc::clone(&self.causes[n as usize % 4]);
        let after = BanEntry::by_filter(stamp, until, cause, 1, Expiry::from_seconds(4_200_000_000));
        Change { target, before: None, after }
    }

    fn batch(&self, numbers: std::ops::Range<u64>) -> Arc<Batch> {
        Arc::new(Batch { source: Source::Remote, changes: numbers.map(|n| self.change(n)).collect() })
    }
}

/// Appends `batch` and waits until it is on disk.
async fn durable(journal: &Journal, batch: Arc<Batch>) {
    let (reply, answer) = oneshot::channel();
    let change = batch.changes.last().cloned().expect("a batch of something");
    journal.append(batch, Hlc(1), vec![Acknowledgement::one(reply, change)]).await;
    answer.await.expect("an answer").expect("a disk that works");
}

fn row(what: &str, value: String, more: &str) {
    println!("{what:<52} {value:>14}   {more}");
}

/// The CPU time of this process, in steps of 10 ms (proc(5), `/proc/pid/stat`, fields 14 and 15). On a busy machine it is more
/// meaningful than the wall clock.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    Duration::from_millis(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let entries: u64 = arguments.next().map_or(1_000_000, |text| text.parse().expect("a number of entries"));
    let base = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base).expect("a directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(run(entries, directory.path().join(FILE_NAME)));
}

async fn run(entries: u64, path: PathBuf) {
    let bans = Bans::new();
    let limits = Limits { max_bans: 10_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let settings = Settings { path: path.clone(), node: None, may_start_without: false };
    let open = || Journal::open(&settings, limits, Metrics::default()).expect("a journal");

    println!("{entries} entries in {}", path.display());
    let mut probe = File::create(path.with_extension("probe")).expect("a file");
    let mut bare: Vec<_> = (0..100)
        .map(|_| {
            let start = Instant::now();
            probe.write_all(&[7; 4096]).and_then(|()| probe.sync_data()).expect("a write");
            start.elapsed()
        })
        .collect();
    bare.sort();
    let bare = percentile(&bare, 0.5);
    row("bare write of 4 KiB and fsync, p50", millis(bare), "");

    let Opened { journal, .. } = open();
    let start = Instant::now();
    for first in (0..entries).step_by(10_000) {
        journal.append(bans.batch(first..(first + 10_000).min(entries)), Hlc(1), vec![]).await;
    }
    durable(&journal, bans.batch(0..1)).await;
    let took = start.elapsed();
    row("all entries durable, scattered", millis(took), &format!("{:.0}/s", entries as f64 / took.as_secs_f64()));
    journal.close(Hlc(1)).await;
    let bytes = std::fs::metadata(&path).expect("the file").len();
    row("bytes an entry on the disk", format!("{:.1}", bytes as f64 / entries as f64), &format!("{bytes} in all"));

    let mut ledger = Ledger::new("bench".parse().expect("a node id"), limits, Hlc::default());
    let start = Instant::now();
    for n in 0..entries {
        let change = bans.change(n);
        ledger.restore(change.target, &change.after, UnixMillis(0));
    }
    let only_ledger = start.elapsed();
    row("the ledger alone, entries made on the way", millis(only_ledger), "");
    let digest = ledger.table().digest();
    drop(ledger);
    for state in ["closed in order", "again"] {
        let (start, before) = (Instant::now(), processor());
        let Opened { journal, ledger, .. } = open();
        let (took, used) = (start.elapsed(), processor() - before);
        assert_eq!(ledger.table().digest(), digest, "the loaded table differs from the written one");
        row(
            &format!("load, file {state}: verified, in the ledger"),
            millis(took),
            &format!(
                "{:.0}/s, {:.1} x the ledger alone, processor {}",
                entries as f64 / took.as_secs_f64(),
                took.as_secs_f64() / only_ledger.as_secs_f64(),
                millis(used)
            ),
        );
        journal.close(Hlc(1)).await;
    }

    let Opened { journal, .. } = open();
    let mut times = Vec::new();
    for n in 0..300 {
        let start = Instant::now();
        durable(&journal, bans.batch(n * 7..n * 7 + 1)).await;
        times.push(start.elapsed());
    }
    times.sort();
    let p50 = percentile(&times, 0.5);
    row(
        "one acknowledged change after the other, p50",
        millis(p50),
        &format!("{:.1} x bare", p50.as_secs_f64() / bare.as_secs_f64()),
    );
    row("the same, p99", millis(percentile(&times, 0.99)), "");

    let journal = Arc::new(journal);
    let start = Instant::now();
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let bans = Bans::new();
                for n in 0..50 {
                    let n = entries + task * 50 + n;
                    durable(&journal, bans.batch(n..n + 1)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task that ends");
    }
    let took = start.elapsed();
    row("64 operators at once, acknowledged changes", format!("{:.0}/s", 3200.0 / took.as_secs_f64()), "");

    // 10,000 automatic bans per second for 5 s, in batches of 50. Now and then, a caller waits until its ban is durable.
    let mut lags = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    for step in 0..1000u64 {
        tick.tick().await;
        let first = entries + 10_000 + step * 50;
        journal.append(bans.batch(first..first + 50), Hlc(1), vec![]).await;
        if step % 10 == 9 {
            let start = Instant::now();
            durable(&journal, bans.batch(first..first + 1)).await;
            lags.push(start.elapsed());
        }
    }
    lags.sort();
    row("an acknowledged change during 10,000 bans/s, p50", millis(percentile(&lags, 0.5)), "");
    row("the same, p99", millis(percentile(&lags, 0.99)), "");
    if let Ok(journal) = Arc::try_unwrap(journal) {
        journal.close(Hlc(1)).await;
    }
}
