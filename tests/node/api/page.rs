//! The API functions that the page uses: the list by age, the search, the last hour. `cluster-tests/tests/page.rs` tests the page.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::api::node::{Node, start};
use axum::http::StatusCode;
use banmesh::clock;
use banmesh::operation::api::views::{ActivityView, BansPage};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

fn entry(age: u64, by: &str) -> BanEntry {
    let at = UnixMillis(clock::now().0 - age * 1000);
    let stamp = Stamp { hlc: Hlc::first_of(at), node: "node-b".parse().unwrap() };
    let cause = Arc::new(Cause::new(By::Filter(by.into()), "auth-failed"));
    BanEntry::by_filter(stamp, Expiry::NEVER, cause, 1, Expiry::NEVER)
}

async fn page(node: &Node, query: &str) -> BansPage {
    let (status, text) = node.send(axum::http::Method::GET, &format!("/api/v1/bans?{query}"), "", "").await;
    assert_eq!(status, StatusCode::OK, "{query}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_by_age_are_complete_and_ordered_during_changes() {
    const STAY: u32 = 20_000;
    let node = start(&[]).await;
    // Many entries with the same time, so that pages end between equal ones.
    let entries =
        (0..STAY).map(|n| (Target::host(std::net::Ipv4Addr::from(n).into()), entry(u64::from(n % 50) + 100, "a")));
    let entries: Vec<_> = entries.collect();
    for some in entries.chunks(5000) {
        assert_eq!(node.store.merge(some.to_vec()).await.unwrap(), some.len());
    }
    let churn = tokio::spawn({
        let (store, shutdown) = (node.store.clone(), node.shutdown.clone());
        async move {
            for n in (0..500_u32).cycle().map(|n| 1 << 24 | n) {
                if shutdown.is_cancelled() {
                    break;
                }
                let target = Target::host(std::net::Ipv4Addr::from(n).into());
                let _ = store.merge(vec![(target, entry(0, "b"))]).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let (mut seen, mut last, mut query) = (HashSet::new(), "9999".to_owned(), "sort=newest&limit=999".to_owned());
    loop {
        let found = page(&node, &query).await;
        let mut listed = HashSet::new();
        for ban in &found.bans {
            assert!(listed.insert(ban.target), "{} twice on a page", ban.target);
            if ban.by == "a" {
                assert!(seen.insert(ban.target), "{} is on two pages", ban.target);
                assert!(ban.since <= last, "{} comes too late", ban.since);
                last.clone_from(&ban.since);
            }
        }
        match found.next {
            Some(next) => query = format!("sort=newest&limit=999&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), STAY as usize);
    node.shutdown.cancel();
    churn.await.unwrap();
}

#[tokio::test]
async fn a_search_finds_targets_authors_nodes_and_reasons() {
    let node = start(&[]).await;
    let all = [("192.0.2.7", "sshd"), ("192.0.2.0/24", "dovecot"), ("2001:db8::/32", "postfix")];
    let entries = all.map(|(target, by)| (target.parse().unwrap(), entry(5, by)));
    node.store.merge(entries.to_vec()).await.unwrap();
    for (search, expected) in [
        ("192.0.2.7", 2),
        ("192.0.2.9", 1),
        ("192.0.0.0/16", 2),
        ("2001:db8::1", 1),
        ("192.0.2.", 2),
        ("DB8", 1),
        ("SSHD", 1),
        ("node-b", 3),
        ("failed", 3),
        ("%20%20", 3),
        ("nothing", 0),
        ("%F0%9F%90%9F", 0),
    ] {
        assert_eq!(page(&node, &format!("search={search}&sort=newest")).await.bans.len(), expected, "{search}");
        assert_eq!(page(&node, &format!("search={search}")).await.bans.len(), expected, "{search}");
    }
    for wrong in ["sort=oldest", "sort=newest&cursor=zz", "cursor=ffffffffffffffff"] {
        let (status, text) = node.send(axum::http::Method::GET, &format!("/api/v1/bans?{wrong}"), "", "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}: {text}");
    }
}

#[tokio::test]
async fn the_last_hour_begins_empty() {
    let node = start(&[]).await;
    let (status, view) = node.get("/api/v1/activity").await;
    assert_eq!(status, StatusCode::OK);
    let view: ActivityView = serde_json::from_value(view).unwrap();
    assert_eq!(view, ActivityView { range: "1h".to_owned(), step_seconds: 10, ..Default::default() });
    for (range, step_seconds) in [("24h", 300), ("7d", 1800)] {
        let (_, view) = node.get(&format!("/api/v1/activity?range={range}")).await;
        assert_eq!((view["range"].as_str(), view["step_seconds"].as_u64()), (Some(range), Some(step_seconds)));
    }
    assert_eq!(
        node.send(axum::http::Method::GET, "/api/v1/activity?range=2h", "", "").await.0,
        StatusCode::BAD_REQUEST
    );
}
