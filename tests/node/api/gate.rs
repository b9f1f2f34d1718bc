//! The access checks of the API: roles, proxies, TLS, hostile clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::api::node::{Node, start};
use banmesh::config::role::Role;
use banmesh::operation::api::credential::TokenHash;
use banmesh::operation::api::login::{Credentials, Token};
use banmesh::operation::api::routes::{ROUTES, Route};
use banmesh::operation::api::{Access, HttpConfig, http};
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) const READ: &str = "bm_read-read-read-read-read";
const REPORT: &str = "bm_report-report-report-report";
const OPERATE: &str = "bm_operate-operate-operate";
pub(super) const ADMIN: &str = "bm_admin-admin-admin-admin";

fn networks(all: &[&str]) -> NetSet {
    all.iter().map(|text| text.parse::<Target>().unwrap()).collect()
}

pub(super) fn access() -> Access {
    let token = |name: &str, token: &str, role| {
        let token = TokenHash::of(token.as_bytes());
        Token { name: name.to_owned(), token, role, expires: None }
    };
    let tokens = vec![
        token("mon", READ, Role::Read),
        token("f2b", REPORT, Role::Report),
        token("ops", OPERATE, Role::Operate),
        token("boss", ADMIN, Role::Admin),
    ];
    let credentials = Some(Arc::new(Credentials::new(Vec::new(), tokens)));
    Access { allowed: networks(&["127.0.0.0/8"]), trusted_proxies: NetSet::default(), credentials }
}

pub(super) struct Served {
    pub(super) address: SocketAddr,
    registry: Registry,
    handle: http::AccessHandle,
}

impl Served {
    pub(super) async fn start(node: &Node, config: HttpConfig) -> Self {
        let (metrics, mut registry) = (http::Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let listener = config.bind("127.0.0.1:0".parse().unwrap(), metrics).await.unwrap();
        let (address, handle) = (listener.address(), listener.access_handle());
        tokio::spawn(listener.serve(node.router.clone(), node.shutdown.clone()));
        Self { address, registry, handle }
    }

    pub(super) async fn with(node: &Node, access: Access) -> Self {
        Self::start(node, HttpConfig { access, ..Default::default() }).await
    }

    /// Sends bytes over a new connection. Returns the status and the whole answer; 0 if there is no answer.
    pub(super) async fn send(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The node may hang up before it has read all.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap_or("0").parse().unwrap(), answer)
    }

    pub(super) async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        self.send(request(method, path, headers, body).as_bytes()).await
    }

    pub(super) fn refused(&self, reason: &str) -> u64 {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).unwrap();
        let start = format!("banmesh_api_refused_total{{reason=\"{reason}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }
}

pub(super) fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    )
}

/// The path of a route with its placeholders filled in.
fn path(route: &Route) -> String {
    route.path.replace("{*target}", "192.0.2.9").replace("{target}", "192.0.2.9").replace("{address}", "192.0.2.9")
}

#[tokio::test]
async fn every_route_requires_its_role() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    for route in ROUTES {
        let path = path(route);
        // An answer without an end.
        if path.ends_with("/events") {
            continue;
        }
        let (status, answer) = served.ask(route.method, &path, "", "{}").await;
        assert_eq!(status == 401, !route.need.is_met_by(None), "{} {path}: {answer}", route.method);
        for (role, token) in
            [(Role::Read, READ), (Role::Report, REPORT), (Role::Operate, OPERATE), (Role::Admin, ADMIN)]
        {
            let (status, answer) = served.ask(route.method, &path, &bearer(token), "{}").await;
            let may = route.need.is_met_by(Some(role));
            let refused = status == 403 && answer.contains("\"code\":\"forbidden\"");
            assert_eq!(refused, !may, "{} {path} as {role}: {answer}", route.method);
            assert!(status != 401 && status < 500, "{} {path} as {role}: {answer}", route.method);
        }
    }
    assert!(served.refused("forbidden") > 5 && served.refused("unauthenticated") > 5);
    // What nobody may, whoever asks.
    for token in [READ, OPERATE, ADMIN] {
        let (status, answer) = served.ask("PUT", "/api/v1/bans", &bearer(token), "{}").await;
        assert!(status == 405 && answer.to_lowercase().contains("allow: get, head, post\r\n"), "{answer}");
        assert_eq!(served.ask("GET", "/api/v1/nothing", &bearer(token), "").await.0, 404);
        assert_eq!(served.ask("BREW", "/api/v1/status", &bearer(token), "").await.0, 405);
    }
    assert_eq!(served.ask("GET", "/api/v1/nothing", "", "").await.0, 401);
}

#[tokio::test]
async fn each_role_can_do_what_it_is_for() {
    let node = start(&["10.1.2.3"]).await;
    let served = Served::with(&node, access()).await;
    let (status, answer) = served.ask("GET", "/api/v1/me", &bearer(OPERATE), "").await;
    assert!(status == 200 && answer.ends_with(r#"{"name":"ops","role":"operate"}"#), "{answer}");
    let ban = |target: &str, force: bool| format!(r#"{{"target": "{target}", "force": {force}}}"#);
    for (token, target, force, expected) in [
        (READ, "192.0.2.1", false, 403),
        (OPERATE, "192.0.2.1", false, 201),
        (OPERATE, "192.0.2.0/24", false, 201),
        (OPERATE, "10.1.2.3", false, 409),
        (OPERATE, "10.1.2.3", true, 403),
        (OPERATE, "192.0.2.7", true, 403),
        (ADMIN, "10.1.2.3", true, 201),
    ] {
        let (status, answer) = served.ask("POST", "/api/v1/bans", &bearer(token), &ban(target, force)).await;
        assert_eq!(status, expected, "{target} {answer}");
        if status == 201 {
            assert!(answer.contains(r#""by":"ops""#) || answer.contains(r#""by":"boss""#), "{answer}");
        }
    }
    let bulk = r#"{"targets": ["192.0.2.3"], "force": true}"#;
    assert_eq!(served.ask("POST", "/api/v1/bans/bulk", &bearer(OPERATE), bulk).await.0, 403);
    assert_eq!(served.ask("DELETE", "/api/v1/bans/192.0.2.1", &bearer(READ), "").await.0, 403);
    assert_eq!(served.ask("DELETE", "/api/v1/bans/192.0.2.1", &bearer(OPERATE), "").await.0, 200);
    // By the socket nobody is asked.
    let (status, me) = node.get("/api/v1/me").await;
    assert_eq!((status.as_u16(), &me["role"]), (200, &serde_json::json!("admin")));
}

#[tokio::test]
async fn without_users_and_tokens_the_api_over_tcp_only_answers_queries() {
    let node = start(&[]).await;
    let access = Access { credentials: None, ..access() };
    let served = Served::with(&node, access).await;
    for route in ROUTES {
        let path = path(route);
        if path.ends_with("/events") {
            continue;
        }
        let (status, answer) = served.ask(route.method, &path, "", "{}").await;
        let may = route.need.is_met_by(Some(Role::Read));
        assert_eq!(
            status == 403 && answer.contains("\"code\":\"login_needed\""),
            !may,
            "{} {path}: {answer}",
            route.method
        );
        assert!(may || answer.contains("api.tokens") && answer.contains("socket"), "it says what to do: {answer}");
    }
    for (method, path, body) in [
        ("POST", "/api/v1/bans", r#"{"target": "0.0.0.0/0", "permanent": true, "force": true}"#),
        ("POST", "/api/v1/allowlist", r#"{"target": "0.0.0.0/0", "force": true}"#),
        ("POST", "/api/v1/reload", ""),
        ("POST", "/api/ban", r#"{"ip_address": "192.0.2.1"}"#),
    ] {
        assert_eq!(served.ask(method, path, "", body).await.0, 403, "{path}");
    }
    let (_, me) = served.ask("GET", "/api/v1/me", "", "").await;
    assert!(me.ends_with(r#"{"name":"127.0.0.1","role":"read"}"#), "{me}");
    assert_eq!(node.store.summary().await.unwrap().entries, 0);
    // The socket, which asks the system who is calling, works as before.
    let (status, _) = node.post("/api/v1/bans", serde_json::json!({"target": "192.0.2.1"})).await;
    assert_eq!(status.as_u16(), 201);
}

#[tokio::test]
async fn the_role_report_neither_shortens_nor_ends_what_others_decided() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let ban = async |token: &str, body: &str| served.ask("POST", "/api/v1/bans", &bearer(token), body).await;
    let end = async |token: &str, target: &str| {
        served.ask("DELETE", &format!("/api/v1/bans/{target}"), &bearer(token), "").await
    };
    assert_eq!(ban(OPERATE, r#"{"target": "192.0.2.1", "duration": "7d"}"#).await.0, 201);
    // What fail2ban's action does: it bans for 20 seconds, and then ends the ban.
    let (status, kept) = ban(REPORT, r#"{"target": "192.0.2.1", "duration": "20s", "by": "fail2ban"}"#).await;
    assert!(status == 200 && kept.contains(r#""by":"ops""#), "{status} {kept}");
    let (status, refused) = end(REPORT, "192.0.2.1").await;
    assert!(status == 409 && refused.contains("other_author"), "{status} {refused}");
    let (_, entry) = node.get("/api/v1/bans/192.0.2.1").await;
    assert_eq!((&entry["state"], &entry["by"]), (&serde_json::json!("active"), &serde_json::json!("ops")));
    assert!(entry["remaining_seconds"].as_u64().unwrap() > 6 * 86_400, "{entry}");
    // Its own bans.
    assert_eq!(ban(REPORT, r#"{"target": "192.0.2.2", "duration": "20s", "by": "fail2ban"}"#).await.0, 201);
    assert_eq!(end(REPORT, "192.0.2.2").await.0, 200);
    assert_eq!(end(REPORT, "192.0.2.2").await.0, 404);
    for (body, status) in [
        (r#"{"target": "192.0.2.3", "permanent": true}"#, 403),
        (r#"{"target": "192.0.2.3", "duration": "30d"}"#, 403),
        (r#"{"target": "192.0.2.3", "replace": true}"#, 403),
        (r#"{"target": "192.0.2.3", "force": true}"#, 403),
        (r#"{"target": "192.0.2.3", "wide": true}"#, 403),
        (r#"{"target": "192.0.2.0/24"}"#, 403),
        (r#"{"target": "192.0.2.3", "duration": "1h"}"#, 201),
        (r#"{"target": "2001:db8::/64", "duration": "1h"}"#, 201),
    ] {
        assert_eq!(ban(REPORT, body).await.0, status, "{body}");
    }
    let many = r#"{"targets": ["192.0.2.1", "192.0.2.4", "192.0.2.0/28"], "duration": "1h"}"#;
    let (status, answer) = served.ask("POST", "/api/v1/bans/bulk", &bearer(REPORT), many).await;
    assert!(status == 200 && answer.contains(r#""done":1,"kept":1"#) && answer.contains("forbidden"), "{answer}");
    let many = r#"{"targets": ["192.0.2.1", "192.0.2.4"]}"#;
    let (status, answer) = served.ask("POST", "/api/v1/bans/unban", &bearer(REPORT), many).await;
    assert!(status == 200 && answer.contains(r#""done":1"#) && answer.contains("other_author"), "{answer}");
}

#[tokio::test]
async fn reported_offences_count_like_log_lines() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let report = async |token: &str, body: &str| served.ask("POST", "/api/v1/offences", &bearer(token), body).await;
    let body = r#"{"source": "192.0.2.66", "reason": "waf: sql injection"}"#;
    assert_eq!(report(READ, body).await.0, 403);
    for _ in 0..5 {
        let (status, answer) = report(REPORT, body).await;
        assert!(status == 202 && answer.contains(r#"{"source":"192.0.2.66"}"#), "{answer}");
    }
    let login = r#"{"source": "192.0.2.67", "account": "bob", "success": true}"#;
    for _ in 0..6 {
        assert_eq!(report(REPORT, login).await.0, 202);
    }
    let both = r#"{"source": "192.0.2.67", "account": "bob", "success": true, "unknown": true}"#;
    assert_eq!(report(REPORT, both).await.0, 400);
    let banned = async {
        loop {
            let (status, entry) = node.get("/api/v1/bans/192.0.2.66").await;
            if status.is_success() {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let entry = tokio::time::timeout(Duration::from_secs(30), banned).await.unwrap();
    assert_eq!((&entry["by"], &entry["reason"]), (&serde_json::json!("api"), &serde_json::json!("waf: sql injection")));
    assert_eq!(node.get("/api/v1/bans/192.0.2.67").await.0, 404, "a reported login counted as an offence");
}

#[tokio::test]
async fn answers_are_not_stored_by_caches() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    for (path, token) in
        [("/api/v1/bans", READ), ("/api/v1/bans", "wrong"), ("/api/v1/nothing", READ), ("/metrics", READ)]
    {
        let (_, answer) = served.ask("GET", path, &bearer(token), "").await;
        assert!(answer.to_lowercase().contains("cache-control: no-store\r\n"), "{path}: {answer}");
    }
    let (_, page) = served.ask("GET", "/", "", "").await;
    assert!(page.to_lowercase().contains("cache-control: no-cache\r\n"), "{page}");
}

#[tokio::test]
async fn a_reload_changes_access() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let ask = async |token| served.ask("GET", "/api/v1/ping", &bearer(token), "").await.0;
    assert_eq!(ask(READ).await, 200);
    let only = |token: &str| {
        let token =
            Token { name: "new".to_owned(), token: TokenHash::of(token.as_bytes()), role: Role::Read, expires: None };
        Access { credentials: Some(Arc::new(Credentials::new(Vec::new(), vec![token]))), ..access() }
    };
    served.handle.renew(only("another"));
    assert_eq!((ask(READ).await, ask("another").await), (401, 200));
    served.handle.renew(Access { allowed: NetSet::default(), ..only("another") });
    assert_eq!(ask("another").await, 403);
}

#[tokio::test]
async fn event_streams_end_when_access_is_revoked() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    assert_eq!(served.ask("GET", "/api/v1/events", "", "").await.0, 401);
    let open = async |token: &str| {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(request("GET", "/api/v1/events", &bearer(token), "").as_bytes()).await.unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200 OK");
        stream
    };
    let ended = async |mut stream: TcpStream| {
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    };
    let (first, second) = (open(READ).await, open(ADMIN).await);
    let token = |token: &str, expires| {
        let token = TokenHash::of(token.as_bytes());
        Token { name: "new".to_owned(), token, role: Role::Read, expires }
    };
    let soon = UnixMillis(banmesh::clock::now().0 + 2000);
    let tokens = vec![token(ADMIN, None), token(OPERATE, Some(soon))];
    served.handle.renew(Access { credentials: Some(Arc::new(Credentials::new(Vec::new(), tokens))), ..access() });
    // Who may still hear them asks again.
    ended(first).await;
    ended(second).await;
    assert_eq!(served.ask("GET", "/api/v1/events", &bearer(READ), "").await.0, 401);
    let (mut lasting, expiring) = (open(ADMIN).await, open(OPERATE).await);
    ended(expiring).await;
    node.post("/api/v1/bans", serde_json::json!({"target": "192.0.2.1"})).await;
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("192.0.2.1") {
        let next = tokio::time::timeout(Duration::from_secs(30), lasting.read_buf(&mut heard)).await.unwrap();
        assert_ne!(next.unwrap(), 0, "it ended: {}", String::from_utf8_lossy(&heard));
    }
}

#[tokio::test]
async fn only_trusted_proxies_set_the_client_address() {
    let node = start(&[]).await;
    let inside = networks(&["10.0.0.0/8"]);
    let forwarded = |from: &str| format!("{}X-Forwarded-For: {from}\r\n", bearer(READ));
    // No proxy: whatever the header says, it is the loopback that asks.
    let direct = Served::with(&node, Access { allowed: inside.clone(), ..access() }).await;
    assert_eq!(direct.ask("GET", "/api/v1/ping", &forwarded("10.0.0.1"), "").await.0, 403);
    let access = Access { allowed: inside, trusted_proxies: networks(&["127.0.0.1"]), ..access() };
    let config = HttpConfig { access, requests_per_minute: Some(6), ..Default::default() };
    let behind = Served::start(&node, config).await;
    for (from, expected) in [
        ("10.0.0.1", 200),
        ("192.0.2.1", 403),
        // What the client says it is stands before what the proxy saw.
        ("10.0.0.1, 192.0.2.1", 403),
        ("192.0.2.1, 10.0.0.1", 200),
        ("10.0.0.1, banana", 400),
    ] {
        assert_eq!(behind.ask("GET", "/api/v1/ping", &forwarded(from), "").await.0, expected, "{from}");
    }
    assert_eq!(behind.refused("bad_forwarded"), 1);
    // The limit is each client's own.
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(behind.ask("GET", "/api/v1/ping", &forwarded("10.0.0.1"), "").await.0);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429]);
    assert_eq!(behind.ask("GET", "/api/v1/ping", &forwarded("10.0.0.2"), "").await.0, 200);
}

#[tokio::test]
async fn guessing_credentials_is_rate_limited() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let mut guesses = 0;
    while served.ask("GET", "/api/v1/ping", &bearer("guess"), "").await.0 == 401 {
        guesses += 1;
        assert!(guesses < 1000, "nobody stops it");
    }
    assert!(guesses >= 20, "{guesses}");
    // Who knows the token is let in all the same.
    assert_eq!(served.ask("GET", "/api/v1/ping", &bearer(READ), "").await.0, 200);
    assert!(served.refused("bad_credentials") == guesses && served.refused("login_rate") == 1);
}
