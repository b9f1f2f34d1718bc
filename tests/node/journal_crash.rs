//! A node that is killed at any moment has every acknowledged change after a restart.
//!
//! The test starts itself as a child that bans and unbans as fast as it can, and prints what was acknowledged.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use banmesh::decisions::journal::{self, Journal, Settings, StoreFile};
use banmesh::decisions::store::{self, Store};
use banmesh::decisions::view::View;
use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::{BanTerms, Limits};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use tokio_util::sync::CancellationToken;

const FILE: &str = "BANMESH_TEST_JOURNAL";
const SEED: &str = "BANMESH_TEST_SEED";
const DAY: Duration = Duration::from_secs(86_400);

fn limits() -> Limits {
    Limits { max_bans: 1_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY }
}

/// The child process; does nothing when it runs as a test.
#[test]
#[ignore = "started by the test below"]
fn child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let seed: u32 = std::env::var(SEED).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let settings = Settings { path: PathBuf::from(path), node: None, may_start_without: false };
        let opened = Journal::open(&settings, limits(), journal::Metrics::default()).unwrap();
        say(&format!("generation {}", opened.identity.generation));
        let (_view, writer) = View::new();
        let (store, handle) = Store::new(opened.ledger, writer, Some(opened.journal), DAY, store::Metrics::default());
        tokio::spawn(store.serve(CancellationToken::new()));
        let tasks: Vec<_> = (0..8u32)
            .map(|task| {
                let store = handle.clone();
                tokio::spawn(async move {
                    for n in 0u32.. {
                        let address = seed.wrapping_mul(1_000_003).wrapping_add(n * 8 + task) % 5_000;
                        let target = Target::host(IpAddr::V4(address.into()).into());
                        let cause = Cause::new(By::Operator(format!("op{task}").into()), &format!("reason {}", n % 50));
                        let done = if n % 5 == 4 {
                            store.unban(target, cause).await.unwrap()
                        } else {
                            store.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause).await.unwrap()
                        };
                        if let Ok(change) = done {
                            let unbanned = change.after.ban_end().is_none();
                            say(&format!("ack {target} {} {unbanned}", change.after.latest().hlc.0));
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Prints a whole line with one write. The parent ignores an incomplete line.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

#[test]
fn acknowledged_changes_survive_a_kill_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data").join(journal::FILE_NAME);
    let mut acknowledged: HashMap<Target, (u64, bool)> = HashMap::new();
    let (mut generation, mut acks) = (0, 0);
    let mut seed = std::process::id();
    let mut rounds = 0;
    while rounds < 12 || acks < 200 {
        rounds += 1;
        assert!(rounds < 100, "no child got an acknowledgement");
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "journal_crash::child"])
            .env(FILE, &path)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        // Sometimes while it starts, mostly while it works.
        let delay = Duration::from_millis(u64::from(seed >> 16) % 400);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            child.kill().unwrap();
            child.wait().unwrap();
        });
        for line in lines.lines().map_while(Result::ok) {
            // The test harness may print before us on the same line.
            let words: Vec<&str> = line.split(' ').collect();
            if let Some(at) = words.iter().position(|word| *word == "generation") {
                let started: u64 = words[at + 1].parse().unwrap();
                assert!(started > generation, "seed {seed}: generation {started} after {generation}");
                generation = started;
            } else if let ["ack", target, hlc, unbanned] = words[..] {
                acks += 1;
                let entry = (hlc.parse().unwrap(), unbanned.parse().unwrap());
                let known = acknowledged.entry(target.parse().unwrap()).or_insert(entry);
                *known = entry.max(*known);
            }
        }
        killer.join().unwrap();
        if !path.exists() {
            assert!(acknowledged.is_empty());
            continue;
        }
        let mut file = StoreFile::open(&path).unwrap();
        assert!(file.header().generation >= generation);
        let clock = file.header().clock.0;
        let mut found = HashMap::new();
        file.scan(|target, entry| {
            assert!(entry.keep > Expiry::at(UnixMillis(0)));
            found.insert(target, (entry.latest().hlc.0, entry.ban_end().is_none()));
        })
        .unwrap();
        for (target, (hlc, unbanned)) in &acknowledged {
            let (stored, is_unbanned) = found.get(target).unwrap_or_else(|| panic!("seed {seed}: {target} is gone"));
            assert!(stored >= hlc && clock >= *hlc, "seed {seed}: {target} went back");
            assert!(stored > hlc || is_unbanned == unbanned, "seed {seed}: {target} has another state");
        }
    }
    eprintln!("{acks} changes acknowledged in {rounds} lives");
}
