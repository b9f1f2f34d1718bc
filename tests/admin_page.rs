//! What the page stands on: its files at the gate, the list by age, the search, the last hour.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod admin {
    #[allow(dead_code, reason = "shared with the other tests")]
    pub mod node;
}

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::node::{Node, start};
use axum::http::StatusCode;
use banmesh::domain::ban::{BanEntry, By, Cause, State};
use banmesh::domain::hlc::{Hlc, Stamp};
use banmesh::domain::netset::NetSet;
use banmesh::domain::target::Target;
use banmesh::domain::time::{Expiry, UnixMillis};
use banmesh::service::admin::views::{ActivityView, BansPage};
use banmesh::service::admin::{HttpConfig, http};
use banmesh::service::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The status and the head of the answer to a GET, and its body.
async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

async fn serve(node: &Node, allowed: &[&str]) -> SocketAddr {
    let allowed: NetSet = allowed.iter().map(|text| text.parse::<Target>().unwrap()).collect();
    let config = HttpConfig {
        allowed,
        users: Some(vec![("ann".to_owned(), "secret".to_owned())]),
        requests_per_minute: Some(2),
    };
    let listener = config.bind("127.0.0.1:0".parse().unwrap(), http::Metrics::default()).await.unwrap();
    let address = listener.address();
    tokio::spawn(listener.serve(node.router.clone(), node.shutdown.clone()));
    address
}

#[tokio::test]
async fn the_page_needs_no_password_and_what_it_shows_does() {
    let node = start(&[]).await;
    let address = serve(&node, &["127.0.0.0/8"]).await;
    // As often as one likes: a page has many files.
    for path in ["/", "/ui/app.js", "/ui/page.css", "/ui/icon.svg", "/"] {
        let (status, head, body) = get(address, path, "").await;
        assert_eq!(status, 200, "{path}");
        assert!(!body.is_empty(), "{path}");
        let policy = head.lines().find(|line| line.starts_with("content-security-policy: ")).unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for header in ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-cache"] {
            assert!(head.contains(header), "{path}: {head}");
        }
    }
    let (_, head, _) = get(address, "/ui/app.js", "").await;
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, _, body) = get(address, "/ui/app.js", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((status, body.as_str()), (304, ""));
    for path in ["/ui/", "/ui/none.js", "/ui/../etc/passwd", "/ui/%2e%2e%2fapp.js", "/uix"] {
        assert!([401, 404].contains(&get(address, path, "").await.0), "{path}");
    }
}

#[tokio::test]
async fn a_page_asks_by_itself_and_the_browser_does_not() {
    let node = start(&[]).await;
    let address = serve(&node, &["127.0.0.0/8"]).await;
    let (status, head, _) = get(address, "/api/v1/status", "X-Requested-With: banmesh\r\n").await;
    assert_eq!(status, 401);
    assert!(!head.contains("www-authenticate"), "{head}");
    let (status, head, _) = get(address, "/api/v1/status", "").await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: basic"), "{head}");
}

#[tokio::test]
async fn the_page_is_for_allowed_addresses_only() {
    let node = start(&[]).await;
    let address = serve(&node, &["192.0.2.0/24"]).await;
    for path in ["/", "/ui/app.js"] {
        assert_eq!(get(address, path, "").await.0, 403, "{path}");
    }
}

fn entry(age: u64, by: &str) -> BanEntry {
    let at = UnixMillis(clock::now().0 - age * 1000);
    let stamp = Stamp { hlc: Hlc::first_of(at), node: "node-b".parse().unwrap() };
    let cause = Arc::new(Cause::new(By::Filter(by.into()), "auth-failed"));
    BanEntry { stamp, state: State::Active { until: Expiry::NEVER }, bans: 1, keep: Expiry::NEVER, cause }
}

async fn page(node: &Node, query: &str) -> BansPage {
    let (status, text) = node.send(axum::http::Method::GET, &format!("/api/v1/bans?{query}"), "", "").await;
    assert_eq!(status, StatusCode::OK, "{query}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_age_every_ban_is_on_one_page_in_order_while_others_come() {
    const STAY: u32 = 20_000;
    let node = start(&[]).await;
    // Many of the same moment, so that pages end among equals.
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
    assert_eq!(view, ActivityView { step_seconds: 10, ..Default::default() });
}
