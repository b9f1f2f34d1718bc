//! Listings are complete and without duplicates during changes, and need little memory with a million entries.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::node::{Node, start};
use banmesh::cli::client::Client;
use banmesh::clock;
use banmesh::operation::api::views::{BansPage, EntryView};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::BanTerms;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

fn target(n: u32) -> Target {
    let address = if n.is_multiple_of(3) { IpAddr::V6((u128::from(n) << 40).into()) } else { IpAddr::V4(n.into()) };
    Target::host(address.into())
}

fn entry(until: Expiry, keep: Expiry, cause: &Arc<Cause>) -> BanEntry {
    let stamp = Stamp { hlc: Hlc::first_of(clock::now()), node: "node-b".parse().unwrap() };
    BanEntry::by_filter(stamp, until, Arc::clone(cause), 1, keep)
}

/// Bans the targets of `numbers` permanently.
async fn fill(node: &Node, numbers: std::ops::Range<u32>) {
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "failed-password"));
    let all: Vec<u32> = numbers.collect();
    for some in all.chunks(10_000) {
        let entries = some.iter().map(|n| (target(*n), entry(Expiry::NEVER, Expiry::NEVER, &cause))).collect();
        assert_eq!(node.store.merge(entries).await.unwrap(), some.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_complete_during_changes() {
    const STAY: u32 = 100_000;
    let node = start(&[]).await;
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "soon-forgotten"));
    // Every tenth goes within seconds: then rows from the end move into their places, under the feet of the listing.
    let soon = |n: u32| Expiry::at(UnixMillis(clock::now().0 + 300 + u64::from(n % 5) * 300));
    for from in (0..STAY).step_by(10_000) {
        let doomed = (0..1000).map(|n| (target(1 << 24 | (from + n)), entry(soon(n), soon(n), &cause))).collect();
        node.store.merge(doomed).await.unwrap();
        fill(&node, from..from + 10_000).await;
    }
    let doomed = Arc::clone(&cause);
    let churn = tokio::spawn({
        let (store, shutdown) = (node.store.clone(), node.shutdown.clone());
        async move {
            // From a small set, so that the table does not grow without bound.
            for n in (0..2000).cycle().map(|n| 1 << 25 | n) {
                if shutdown.is_cancelled() {
                    break;
                }
                let _ = store.merge(vec![(target(n), entry(soon(n), soon(n), &doomed))]).await;
                let operator = Cause::new(By::Operator("ann".into()), "");
                let _ = store
                    .ban(target(1 << 26 | n), BanTerms::new(Expiry::NEVER, Duration::from_secs(60)), operator.clone())
                    .await;
                let _ = store.unban(target(1 << 26 | (n - 1)), operator).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut client = Client::connect(&node.socket).await.unwrap();
    let mut seen: HashMap<Target, EntryView> = HashMap::new();
    let (mut pages, mut next) = (0, Some(String::new()));
    while let Some(cursor) = next {
        let cursor = if cursor.is_empty() { String::new() } else { format!("&cursor={cursor}") };
        let page: BansPage = client.get(&format!("/api/v1/bans?state=all&limit=5000{cursor}")).await.unwrap();
        assert!(page.bans.len() <= 5000);
        for ban in page.bans {
            assert!(seen.insert(ban.target, ban).is_none(), "a duplicate");
        }
        next = page.next;
        pages += 1;
    }
    assert!(pages >= 20, "{pages}");
    assert_eq!((0..STAY).filter(|n| !seen.contains_key(&target(*n))).count(), 0);

    // The same of an export.
    let mut lines = client.lines("/api/v1/bans/export?state=all").await.unwrap();
    let mut exported = HashSet::new();
    while let Some(line) = lines.next().await.unwrap() {
        let ban: EntryView = serde_json::from_slice(line).unwrap();
        assert!(exported.insert(ban.target), "a duplicate");
    }
    assert_eq!((0..STAY).filter(|n| !exported.contains(&target(*n))).count(), 0);
    node.shutdown.cancel();
    churn.await.unwrap();
}

/// The peak memory of this process since the last call, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kib << 10
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Times with a million entries: `cargo test --release --test node api::listing -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_million_entries() {
    let node = start(&[]).await;
    fill(&node, 0..1_000_000).await;
    let mut client = Client::connect(&node.socket).await.unwrap();
    for path in [
        "/api/v1/status",
        "/api/v1/bans?limit=100",
        "/api/v1/bans?limit=10000",
        "/api/v1/bans?network=0.0.1.0/24",
        "/api/v1/bans?sort=newest&limit=250",
        "/api/v1/bans?sort=newest&limit=5000",
        "/api/v1/bans?sort=newest&search=nobody",
        "/api/v1/why/0.0.0.1",
    ] {
        let mut cursor = String::new();
        for number in 1..=3 {
            let before = resident();
            peak();
            let begin = Instant::now();
            let page: serde_json::Value = client.get(&format!("{path}{cursor}")).await.unwrap();
            let (taken, grown) = (begin.elapsed(), peak().saturating_sub(before));
            println!("{path} page {number}: {taken:?}, {} KiB more at the peak", grown >> 10);
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
    }
    // How long others wait for the store while pages are made.
    let store = node.store.clone();
    let pages = tokio::spawn(async move {
        for _ in 0..20 {
            let _: serde_json::Value = client.get("/api/v1/bans?sort=newest&limit=250").await.unwrap();
        }
        client
    });
    let mut waits = Vec::new();
    while !pages.is_finished() {
        let begin = Instant::now();
        store.summary().await.unwrap();
        waits.push(begin.elapsed());
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let mut client = pages.await.unwrap();
    waits.sort_unstable();
    println!("waiting for the store: median {:?}, longest {:?}", waits[waits.len() / 2], waits[waits.len() - 1]);
    let begin = Instant::now();
    let mut lines = client.lines("/api/v1/bans/export").await.unwrap();
    let mut count = 0;
    while lines.next().await.unwrap().is_some() {
        count += 1;
    }
    println!("export of {count}: {:?}", begin.elapsed());
    assert_eq!(count, 1_000_000);
}
