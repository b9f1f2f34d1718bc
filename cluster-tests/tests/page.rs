//! The page in a real Chromium: `tests/page/*.test.mjs` control the browser, and this starts the nodes.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use banmesh_peers::hello::Hello;
use banmesh_peers::table::GPC0;
use banmesh_peers::{Cell, CellKind, Definition, KeyKind, Update, Value};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::{in_ci, mesh, repository_file, wait};

/// Whether all tools for the page's tests are installed; prints which one is missing.
fn tools() -> bool {
    let runs =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    let missing: Vec<&str> = [
        ("chromium", runs(&chromium())),
        ("node", runs("node")),
        ("tests/page/node_modules", repository_file("tests/page/node_modules/playwright-core").is_dir()),
    ]
    .into_iter()
    .filter_map(|(name, there)| (!there).then_some(name))
    .collect();
    if missing.is_empty() {
        return true;
    }
    assert!(!in_ci(), "missing for the page's tests: {missing:?}; scripts/test-page installs what it can");
    eprintln!("skipped: missing {missing:?}; scripts/test-page installs what it can");
    false
}

fn chromium() -> String {
    std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_owned())
}

/// Runs a file of tests with these variables.
#[track_caller]
fn run(tests: &str, variables: &[(&str, String)]) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("node")
        .args(["--test", "--test-reporter=spec", tests])
        .current_dir(repository_file("tests/page"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env("CHROMIUM", chromium())
        .env("TMPDIR", profile.path())
        .env_remove("NODE_OPTIONS")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{tests}: {said}");
    // A file without tests would pass too.
    assert!(said.contains("pass ") && !said.contains("pass 0"), "{said}");
}

/// The token of an administrator. Without a login, the page is read-only.
const TOKEN: &str = "bm_page-tests-Tq7ZcVb2nXw9Ks4";

fn with_api(config: NodeConfig) -> (NodeConfig, String) {
    let port = free_port();
    let config = config
        .set("api.enabled", true)
        .set("api.address", "127.0.0.1")
        .set("api.port", port)
        .set("api.rate_limiting.enabled", false)
        .set("api.tokens", serde_json::json!({ "tester": { "role": "admin", "token": TOKEN } }))
        .set("allowlist", vec!["203.0.113.0/28"]);
    (config, format!("http://127.0.0.1:{port}"))
}

/// The status of the answer to a GET, its head in lower case, and its body.
fn get(url: &str, path: &str, header: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn the_page_needs_no_login_but_its_data_does() {
    let (config, url) = with_api(NodeConfig::new());
    let config = config.set("api.basic_auth.enabled", true).set("api.basic_auth.username", "ann");
    let config = config.set("api.basic_auth.password", "secret").set("api.rate_limiting.enabled", true);
    let _node = config.set("api.rate_limiting.requests_per_minute", 20).start();
    // Without a rate limit, because a page has many files.
    for path in ["/", "/ui/app.js", "/ui/page.css", "/ui/icon.svg"].iter().cycle().take(40) {
        let (status, head, body) = get(&url, path, "");
        assert_eq!(status, 200, "{path}");
        assert!(!body.is_empty(), "{path}");
        let policy = head.lines().find(|line| line.starts_with("content-security-policy: ")).unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for header in ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-cache"] {
            assert!(head.contains(header), "{path}: {head}");
        }
    }
    let (_, head, _) = get(&url, "/ui/app.js", "");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, _, body) = get(&url, "/ui/app.js", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((status, body.as_str()), (304, ""));
    for path in ["/ui/", "/ui/none.js", "/ui/../etc/passwd", "/ui/%2e%2e%2fapp.js", "/ui/%ff", "/uix"] {
        assert!([401, 404].contains(&get(&url, path, "").0), "{path}");
    }
    // No challenge, because the browser would then show its own login in addition to the page's.
    for (header, challenged) in [("X-Requested-With: banmesh\r\n", false), ("", true)] {
        let (status, head, _) = get(&url, "/api/v1/status", header);
        assert_eq!((status, head.contains("www-authenticate: basic")), (401, challenged), "{head}");
    }
}

#[test]
fn the_page_is_served_only_to_allowed_addresses() {
    let (config, url) = with_api(NodeConfig::new());
    let _node = config.set("api.allowed_ips", vec!["192.0.2.0/24"]).start();
    for path in ["/", "/ui/app.js", "/api/v1/activity"] {
        assert_eq!(get(&url, path, "").0, 403, "{path}");
    }
}

#[test]
fn the_pages_of_two_nodes_work() {
    if !tools() {
        return;
    }
    let (mut nodes, mut urls): (Vec<Node>, Vec<String>) = (Vec::new(), Vec::new());
    for (index, config) in NodeConfig::cluster(2).into_iter().enumerate() {
        let (config, url) = with_api(config.set("node.id", format!("edge-{}", index + 1)));
        nodes.push(config.start());
        urls.push(url);
    }
    wait::until("both are ready", wait::SOON, || nodes[0].admin().ready_members().is_ok_and(|ready| ready.len() == 2));
    for last in 1..=30 {
        nodes[0].fail_logins(IpAddr::V4(Ipv4Addr::new(198, 51, 100, last)), 6);
    }
    nodes[0].wait_for(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 30)), true);
    let pictures = std::env::var("BANMESH_PICTURES").unwrap_or_default();
    let syslog = nodes[0].syslog().to_string();
    let process = nodes[0].process().id().to_string();
    let variables = [
        ("ONE", urls[0].clone()),
        ("OTHER", urls[1].clone()),
        ("PID", process),
        ("SYSLOG", syslog),
        ("PICTURES", pictures),
        ("TOKEN", TOKEN.to_owned()),
    ];
    run("page.test.mjs", &variables);
}

#[test]
fn the_page_works_with_a_hundred_thousand_bans() {
    if !tools() {
        return;
    }
    let (config, url) = with_api(NodeConfig::new());
    let node = config.start();
    node.admin().ban_many((0..100_000).map(mesh::address)).unwrap();
    run("many.test.mjs", &[("ONE", url), ("TOKEN", TOKEN.to_owned())]);
}

#[test]
fn users_sign_in_on_the_page() {
    if !tools() {
        return;
    }
    let (config, url) = with_api(NodeConfig::new());
    let node = config
        .set("api.basic_auth.enabled", true)
        .set("api.basic_auth.username", "ann")
        .set("api.basic_auth.password", "sécret: 1")
        .start();
    node.admin().ban(mesh::address(1)).unwrap();
    run("login.test.mjs", &[("ONE", url)]);
}

#[test]
fn the_npm_lock_file_names_no_host() {
    let lock = std::fs::read_to_string(repository_file("tests/page/package-lock.json")).unwrap();
    assert!(lock.contains("\"integrity\"") && !lock.contains("\"resolved\"") && !lock.contains("http"), "see .npmrc");
    assert!(Path::new(&repository_file("tests/page/.npmrc")).is_file());
}

/// A HAProxy that sends the entries of two tables, and leaves.
fn send_tables(to: std::net::SocketAddr) {
    let mut bytes = Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid: 1 }.encode();
    let cells = vec![Cell { bit: GPC0, element: 0, kind: CellKind::Number }];
    let req =
        Definition { id: 1, name: "/req".to_owned(), key: KeyKind::Ipv6, expire: 3_600_000, cells: cells.clone() };
    let tokens = Definition { id: 2, name: "/tokens".to_owned(), key: KeyKind::Text(64), expire: 3_600_000, cells };
    let address = |last| Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().octets().to_vec();
    for (table, key, count) in
        [(&req, address(1), 7), (&req, address(2), 3000), (&tokens, b"<img src=x onerror=alert(1)>".to_vec(), 1)]
    {
        table.encode(&mut bytes);
        Update { number: Some(1), expire: None, key: &key, values: &[Value::Number(count)] }.encode(table, &mut bytes);
    }
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(&bytes).unwrap();
    // The answer shows that the node has read it.
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn the_page_shows_what_haproxies_count() {
    if !tools() {
        return;
    }
    let peers = std::net::SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
    let (config, url) = with_api(NodeConfig::new());
    let config = config.set("haproxy.peers.listen", peers.to_string()).set("haproxy.peers.bans_table", "");
    let node = config.start();
    send_tables(peers);
    wait::until("the node has the counters", wait::SOON, || {
        node.admin().metric("banmesh_peers_keys").is_ok_and(|keys| keys >= 3.0)
    });
    run("tables.test.mjs", &[("ONE", url), ("TOKEN", TOKEN.to_owned())]);
}
