//! The API over TCP: access, rate limits, the endpoints of WebFail2Ban, events, the metrics listener.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::api::node::{Node, start};
use banmesh::cli::client::Client;
use banmesh::config::role::Role;
use banmesh::operation::api::login::{self, Credentials, User};
use banmesh::operation::api::views::{BanRequest, EntryView, EventKind, EventView};
use banmesh::operation::api::{Access, HttpConfig, http};
use banmesh::operation::metrics::{MetricsConfig, MetricsError};
use banmesh_core::ledger::BanTerms;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request over a new connection. Returns the status and the whole answer, including its head.
async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap_or("0").parse().unwrap(), answer)
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    )
}

async fn serve(node: &Node, config: HttpConfig) -> (SocketAddr, Registry) {
    let (metrics, mut registry) = (http::Metrics::default(), Registry::default());
    metrics.register(&mut registry);
    let listener = config.bind("127.0.0.1:0".parse().unwrap(), metrics).await.unwrap();
    let address = listener.address();
    tokio::spawn(listener.serve(node.router.clone(), node.shutdown.clone()));
    (address, registry)
}

fn allowing(allowed: NetSet) -> HttpConfig {
    HttpConfig { access: Access { allowed, ..Default::default() }, ..Default::default() }
}

fn loopback() -> NetSet {
    ["127.0.0.0/8", "::1"].iter().map(|text| text.parse::<Target>().unwrap()).collect()
}

#[tokio::test]
async fn only_allowed_addresses_get_in() {
    let node = start(&[]).await;
    let others = ["10.0.0.0/8".parse::<Target>().unwrap()].into_iter().collect();
    let (address, registry) = serve(&node, allowing(others)).await;
    let (status, answer) = ask(address, &request("GET", "/api/v1/status", "", "")).await;
    assert_eq!(status, 403, "{answer}");
    assert_eq!(ask(address, &request("POST", "/api/ban", "", "{}")).await.0, 403);
    assert_eq!(ask(address, &request("GET", "/health/live", "", "")).await.0, 200);
    let mut counted = String::new();
    prometheus_client::encoding::text::encode(&mut counted, &registry).unwrap();
    assert!(counted.contains("banmesh_api_refused_total{reason=\"not_allowed\"} 2"), "{counted}");

    let (address, _) = serve(&node, allowing(loopback())).await;
    assert_eq!(ask(address, &request("GET", "/api/v1/status", "", "")).await.0, 200);
    // A name that a web page made point here, and what claims to come from elsewhere.
    assert_eq!(ask(address, &request("GET", "/api/v1/status", "Host: evil.example\r\n", "")).await.0, 403);
    // Requests that a page of another site can make the operator's browser send.
    let foreign = "Origin: http://evil.example\r\n";
    for path in ["/api/purge-bans", "/api/v1/reload"] {
        let (status, answer) = ask(address, &request("POST", path, foreign, "")).await;
        assert!(status == 403 && answer.contains("foreign_origin"), "{path} {answer}");
    }
    // Its own page gets further, but without a login it may only read.
    let (status, answer) = ask(address, &request("POST", "/api/purge-bans", "Origin: http://localhost\r\n", "")).await;
    assert!(status == 403 && answer.contains("login_needed"), "{answer}");
    let (address, _) = serve(&node, allowing(NetSet::default())).await;
    assert_eq!(ask(address, &request("GET", "/api/v1/status", "X-Forwarded-For: 127.0.0.1\r\n", "")).await.0, 403);
}

#[tokio::test]
async fn requires_a_password_and_records_the_user() {
    let node = start(&[]).await;
    let ann = User { name: "ann".to_owned(), password: login::hash(b"secret").unwrap(), role: Role::Admin };
    let credentials = Some(Arc::new(Credentials::new(vec![ann], Vec::new())));
    let access = Access { allowed: loopback(), credentials, ..Default::default() };
    let (address, _) = serve(&node, HttpConfig { access, ..Default::default() }).await;
    let (status, answer) = ask(address, &request("GET", "/api/v1/bans", "", "")).await;
    assert_eq!(status, 401);
    assert!(answer.to_lowercase().contains("www-authenticate: basic"), "{answer}");
    // ann:wrong
    let wrong = "Authorization: Basic YW5uOndyb25n\r\n";
    assert_eq!(ask(address, &request("GET", "/api/v1/bans", wrong, "")).await.0, 401);
    // ann:secret
    let right = "Authorization: Basic YW5uOnNlY3JldA==\r\nHost: bans.example\r\n";
    for (body, by) in [
        (json!({"target": "192.0.2.1"}), "ann"),
        (json!({"target": "192.0.2.2", "by": "ticket 7"}), "ticket 7 via ann"),
    ] {
        let (status, answer) = ask(address, &request("POST", "/api/v1/bans", right, &body.to_string())).await;
        assert_eq!(status, 201, "{answer}");
        assert!(answer.contains(&format!("\"by\":\"{by}\"")), "{answer}");
    }
    assert_eq!(ask(address, &request("GET", "/health/ready", "", "")).await.0, 200);
}

#[tokio::test]
async fn requests_are_rate_limited_per_client() {
    let node = start(&[]).await;
    let config = HttpConfig { requests_per_minute: Some(3), ..allowing(loopback()) };
    let (address, _) = serve(&node, config).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let (status, answer) = ask(address, &request("GET", "/api/v1/ping", "", "")).await;
        assert_eq!(status == 429, answer.to_lowercase().contains("retry-after:"));
        statuses.push(status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
}

#[tokio::test]
async fn garbage_only_ends_its_connection() {
    let node = start(&[]).await;
    let (address, _) = serve(&node, allowing(loopback())).await;
    for garbage in ["HELO mail\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n"] {
        let (status, _) = ask(address, garbage).await;
        assert!(status == 0 || status == 400, "{garbage:?} {status}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The node may have hung up before all of it was sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.contains(" 414 ") || answer.contains(" 431 "), "{answer}");
    assert_eq!(ask(address, &request("GET", "/api/v1/ping", "", "")).await.0, 200);
}

#[tokio::test]
async fn the_endpoints_of_webfail2ban_work() {
    let node = start(&["127.0.0.0/8"]).await;
    let ban = json!({
        "ip_address": "192.0.2.1", "duration": "30m", "permanent": false, "reason": "scan", "created_by": "admin"
    });
    let (status, answer) = node.post("/api/ban", ban).await;
    assert_eq!((status.as_u16(), &answer["success"], &answer["ip_address"]), (200, &json!(true), &json!("192.0.2.1")));
    // Its clients send a duration with a permanent ban too.
    let ban = json!({"ip_address": "192.0.2.2", "duration": "30m", "permanent": true});
    assert_eq!(node.post("/api/ban", ban).await.1["success"], true);
    for (body, status) in [
        (json!({"ip_address": "banana"}), 400),
        (json!({"ip_address": " "}), 400),
        (json!({"address": "192.0.2.1"}), 400),
        (json!({"ip_address": "127.0.0.1"}), 409),
        (json!({"ip_address": "192.0.2.9", "duration": "long"}), 400),
        (json!([1]), 400),
    ] {
        let (answer, error) = node.post("/api/ban", body.clone()).await;
        assert_eq!((answer.as_u16(), &error["success"]), (status, &json!(false)), "{body}");
        assert!(error["message"].is_string());
    }
    for path in ["/api/ban", "/api/unban", "/api/whitelist"] {
        let (_, error) = node.post(path, json!({})).await;
        assert_eq!(error["message"], "`ip_address` is missing", "{path}");
    }
    // The lists under the names, and with the fields, that its clients read.
    let (_, list) = node.get("/api/temp-bans").await;
    assert_eq!((&list["success"], &list["count"], &list["message"]), (&json!(true), &json!(1), &json!("")));
    let ban = &list["temp_bans"][0];
    assert_eq!((&ban["ip_address"], &ban["created_by"]), (&json!("192.0.2.1"), &json!("admin")));
    let left: banmesh_types::time::Span = ban["duration_remaining"].as_str().unwrap().parse().unwrap();
    assert!((Duration::from_secs(1780)..=Duration::from_secs(1801)).contains(&left.0), "{ban}");
    assert!(ban["expires_at"].as_str().unwrap().ends_with('Z'), "{ban}");
    let (_, list) = node.get("/api/blacklist").await;
    assert_eq!((&list["success"], &list["count"]), (&json!(true), &json!(1)));
    let ban = &list["blacklist"][0];
    assert_eq!((&ban["ip_address"], &ban["reason"]), (&json!("192.0.2.2"), &json!("")));
    assert!(ban["created_at"].is_string() && ban["created_by"].is_string(), "{ban}");
    let (_, list) = node.get("/api/whitelist").await;
    let member = json!({
        "ip_address": "127.0.0.0/8", "reason": "", "created_at": null, "created_by": "configuration", "expires_at": "never"
    });
    assert_eq!(list, json!({"success": true, "message": "", "count": 1, "whitelist": [member]}));
    let (status, answer) = node.post("/api/whitelist", json!({"ip_address": "192.0.2.77"})).await;
    assert_eq!((status.as_u16(), &answer["ip_address"]), (200, &json!("192.0.2.77")));
    let (_, list) = node.get("/api/whitelist").await;
    assert_eq!((&list["count"], &list["whitelist"][1]["ip_address"]), (&json!(2), &json!("192.0.2.77")));
    assert!(list["whitelist"][1]["created_at"].is_string(), "{list}");

    let (_, answer) = node.post("/api/purge-bans", Value::Null).await;
    assert_eq!((&answer["success"], &answer["purged_count"]), (&json!(true), &json!(1)));
    assert_eq!(node.get("/api/temp-bans").await.1["temp_bans"], json!([]));
    let (status, answer) = node.post("/api/unban", json!({"ip_address": "192.0.2.2"})).await;
    assert_eq!((status.as_u16(), &answer["success"]), (200, &json!(true)));
    let (status, answer) = node.post("/api/unban", json!({"ip_address": "192.0.2.2"})).await;
    assert_eq!((status.as_u16(), &answer["success"], &answer["ip_address"]), (404, &json!(false), &json!("192.0.2.2")));
}

#[tokio::test]
async fn events_report_every_change() {
    let node = start(&[]).await;
    let mut watching = Client::connect(&node.socket).await.unwrap();
    let mut lines = watching.lines("/api/v1/events").await.unwrap();
    let mut client = Client::connect(&node.socket).await.unwrap();
    let ban = BanRequest { target: Some("192.0.2.1".to_owned()), ..Default::default() };
    let _: EntryView = client.post("/api/v1/bans", &ban).await.unwrap();
    let _: EntryView = client.delete("/api/v1/bans/192.0.2.1").await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(30), lines.next()).await.unwrap();
        if let Some(data) = next.unwrap().unwrap().strip_prefix(b"data: ") {
            let event: EventView = serde_json::from_slice(data).unwrap();
            assert_eq!(event.entry.unwrap().target, "192.0.2.1".parse::<Target>().unwrap());
            heard.push(event.event);
        }
    }
    assert_eq!(heard, [EventKind::Banned, EventKind::Unbanned]);
    // The node does not wait for those who watch.
    node.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), node.stopped()).await.unwrap();
    while let Ok(Some(_)) = lines.next().await {}
}

/// Requests the events on the socket without reading the answer.
async fn watch(node: &Node) -> tokio::net::UnixStream {
    let mut stream = tokio::net::UnixStream::connect(&node.socket).await.unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Reads the events of `stream` until one is about `target`.
async fn read_until(stream: &mut tokio::net::UnixStream, target: &str) -> Vec<EventView> {
    let (mut text, mut read, mut events) = (Vec::new(), 0, Vec::new());
    let mut part = vec![0; 65_536];
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut part)).await.unwrap().unwrap();
        assert!(next > 0, "it ended after {} events", events.len());
        text.extend_from_slice(&part[..next]);
        while let Some(length) = memchr::memchr(b'\n', &text[read..]) {
            let line = &text[read..read + length];
            read += length + 1;
            if let Some(data) = line.strip_prefix(b"data: ") {
                let event: EventView = serde_json::from_slice(data).unwrap();
                let told = event.entry.as_ref().is_some_and(|entry| entry.target.to_string() == target);
                events.push(event);
                if told {
                    return events;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_events_gets_lost_and_delays_nobody() {
    use banmesh_core::ban::{By, Cause};
    use banmesh_types::time::Expiry;
    let node = start(&[]).await;
    let mut slow = watch(&node).await;
    let mut quick = watch(&node).await;
    let (store, all) = (node.store.clone(), 10_000u32);
    let banning = tokio::spawn(async move {
        for number in 0..all {
            let target = Target::host(std::net::Ipv4Addr::from(0x0a00_0000 | number).into());
            let cause = Cause::new(By::Operator("ann".into()), "why not");
            store.ban(target, BanTerms::new(Expiry::NEVER, Duration::from_secs(60)), cause).await.unwrap().unwrap();
        }
    });
    let last = std::net::Ipv4Addr::from(0x0a00_0000 | (all - 1)).to_string();
    // Whoever reads hears the last one while the other one reads nothing.
    read_until(&mut quick, &last).await;
    banning.await.unwrap();
    let heard = read_until(&mut slow, &last).await;
    let lost: u64 = heard.iter().filter_map(|event| event.lost).sum();
    let told = heard.iter().filter(|event| event.event == EventKind::Banned).count() as u64;
    assert!(lost > 0 && told + lost >= u64::from(all), "{lost} lost, {told} told of {all}");
    assert!(heard.iter().all(|event| (event.event == EventKind::Lost) == event.lost.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_get_the_same_events() {
    let node = start(&[]).await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        readers.push(watch(&node).await);
    }
    // Half of them go without a word.
    readers.truncate(25);
    let (status, _) = node.post("/api/v1/bans", json!({"target": "192.0.2.1"})).await;
    assert_eq!(status.as_u16(), 201);
    for reader in &mut readers {
        let heard = read_until(reader, "192.0.2.1").await;
        assert_eq!(heard.len(), 1);
    }
    // Their places are free again: more than there are come, one after the other.
    for _ in 0..80 {
        drop(watch(&node).await);
    }
}

#[tokio::test]
async fn the_metrics_listener_serves_only_metrics() {
    let node = start(&[]).await;
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = |listen: SocketAddr, path: &str| MetricsConfig { listen, path: path.to_owned() };
    let listener = config(local, "/the/metrics").bind().await.unwrap();
    let address = listener.address();
    assert!(matches!(config(address, "/metrics").bind().await, Err(MetricsError::Listen(_))));
    for path in ["", "metrics", "/{x}", "/*", "/a b"] {
        assert!(matches!(config(local, path).bind().await, Err(MetricsError::Path(_))), "{path}");
    }
    let registry = banmesh::operation::metrics::registry(&"n1".parse().unwrap(), "1.2.3", banmesh::clock::now());
    tokio::spawn(listener.serve(Arc::new(registry), node.shutdown.clone()));
    let (status, answer) = ask(address, &request("GET", "/the/metrics", "", "")).await;
    assert_eq!(status, 200);
    assert!(answer.contains("banmesh_build_info{version=\"1.2.3\",node=\"n1\"} 1"), "{answer}");
    assert!(answer.contains("process_start_time_seconds 1"), "{answer}");
    for (method, path, expected) in
        [("GET", "/", 404), ("GET", "/metrics", 404), ("GET", "/api/v1/status", 404), ("POST", "/the/metrics", 405)]
    {
        assert_eq!(ask(address, &request(method, path, "", "")).await.0, expected, "{method} {path}");
    }
}
