//! Real nginx, Traefik, Caddy and Envoy with the generated configuration, and a cluster of two nodes that they ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::backend::Backend;
use cluster_tests::client::{self, Http};
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::ports::free_port;
use cluster_tests::proxy::{Kind, Proxy};
use cluster_tests::wait;
use nix::sys::signal::Signal;

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

macro_rules! with_every_proxy {
    ($($module:ident $kind:ident: $($test:ident)+;)+) => {
        $(mod $module {
            $(#[test]
            fn $test() {
                let kind = cluster_tests::proxy::Kind::$kind;
                if let Some(program) = kind.find() {
                    super::$test(kind, &program);
                }
            })+
        })+
    };
}

with_every_proxy! {
    nginx Nginx: bans_hold_and_forged_headers_change_nothing the_recipe_has_no_findings dead_nodes_let_clients_pass
        dead_nodes_refuse_clients_if_asked hanging_nodes_let_clients_pass a_node_killed_under_load_causes_no_wrong_answer
        refused_logins_in_the_access_log_ban;
    traefik Traefik: bans_hold_and_forged_headers_change_nothing the_recipe_has_no_findings dead_nodes_let_clients_pass
        dead_nodes_refuse_clients_if_asked hanging_nodes_let_clients_pass a_node_killed_under_load_causes_no_wrong_answer;
    caddy Caddy: bans_hold_and_forged_headers_change_nothing the_recipe_has_no_findings dead_nodes_let_clients_pass
        dead_nodes_refuse_clients_if_asked hanging_nodes_let_clients_pass a_node_killed_under_load_causes_no_wrong_answer;
    envoy Envoy: bans_hold_and_forged_headers_change_nothing the_recipe_has_no_findings dead_nodes_let_clients_pass
        dead_nodes_refuse_clients_if_asked hanging_nodes_let_clients_pass a_node_killed_under_load_causes_no_wrong_answer
        tcp_connections_of_banned_clients_are_closed;
    envoy_http EnvoyHttp: bans_hold_and_forged_headers_change_nothing the_recipe_has_no_findings dead_nodes_let_clients_pass
        dead_nodes_refuse_clients_if_asked hanging_nodes_let_clients_pass a_node_killed_under_load_causes_no_wrong_answer;
}

/// Two nodes with the ban, and the addresses of their endpoints.
struct Nodes {
    nodes: Vec<Node>,
    endpoints: Vec<SocketAddr>,
}

impl Nodes {
    fn start() -> Self {
        let endpoints: Vec<SocketAddr> =
            (0..2).map(|_| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port())).collect();
        let start = |(config, endpoint): (NodeConfig, &SocketAddr)| {
            let config = config.set("verdict.enabled", true).set("verdict.address", endpoint.to_string());
            config.set("verdict.trusted_proxies", vec!["127.0.0.1"]).start()
        };
        let nodes: Vec<Node> = NodeConfig::cluster(2).into_iter().zip(&endpoints).map(start).collect();
        nodes[0].cli(&["ban", "--force", &BANNED.to_string()]);
        nodes[1].wait_for(BANNED, true);
        Self { nodes, endpoints }
    }

    fn signal(&self, signal: Signal) {
        self.nodes.iter().for_each(|node| node.signal(signal));
    }
}

fn bans_hold_and_forged_headers_change_nothing(kind: Kind, program: &Path) {
    let (nodes, web) = (Nodes::start(), Backend::http());
    let proxy = Proxy::start(kind, program, &nodes.endpoints, web.address, &[]);
    wait::until("the banned client is refused", wait::SOON, || client::status(BANNED, proxy.address) == 403);
    let refused = client::get(BANNED, proxy.address, &[]).unwrap();
    assert_eq!((refused.status, refused.body.as_str()), (403, "banned\n"));
    assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()), "{refused:?}");
    assert_eq!(client::status(CLEAN, proxy.address), 200);
    let served = web.served();
    let banned =
        [format!("X-Forwarded-For: {BANNED}"), format!("X-Real-IP: {BANNED}"), format!("Forwarded: for={BANNED}")];
    let clean = [format!("X-Forwarded-For: {CLEAN}"), format!("X-Real-IP: {CLEAN}"), format!("Forwarded: for={CLEAN}")];
    for (own, forged, status) in [(BANNED, &clean, 403), (CLEAN, &banned, 200)] {
        let forged: Vec<&str> = forged.iter().map(String::as_str).collect();
        assert_eq!(client::get(own, proxy.address, &forged).unwrap().status, status, "{own} {forged:?}");
    }
    assert_eq!(web.served(), served + 1, "the server never sees the banned client");

    // Bodies arrive whole, on a connection that stays open, and none is taken for a question.
    let mut kept = Http::connect(CLEAN, proxy.address).unwrap();
    let body = "name=value&".repeat(5_000);
    for _ in 0..3 {
        let answer = kept.post(&[], &body).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.ends_with(&body), "the body arrives");
        assert_eq!(kept.get(&[]).unwrap().status, 200);
    }
    assert_eq!(Http::connect(BANNED, proxy.address).unwrap().post(&[], "a=b").unwrap().status, 403);

    // A ban holds on a connection that is already open, whichever node it was made on, and ends there.
    nodes.nodes[1].cli(&["ban", "--force", &CLEAN.to_string()]);
    wait::until("refused on the open connection", wait::SOON, || {
        kept.get(&[]).or_else(|_| client::get(CLEAN, proxy.address, &[])).unwrap().status == 403
    });
    nodes.nodes[1].cli(&["unban", &CLEAN.to_string()]);
    wait::until("the unbanned client passes", wait::SOON, || client::status(CLEAN, proxy.address) == 200);
    let problems = nodes.nodes[0].admin().request("GET", "/api/v1/status", None).unwrap().json().unwrap();
    assert_eq!(problems["problems"], serde_json::json!([]), "{problems}");
}

/// The generated configuration passes its own check, and a trap in it is found.
fn the_recipe_has_no_findings(kind: Kind, program: &Path) {
    let web = Backend::http();
    let nodes = [free_port(), free_port()].map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let proxy = Proxy::start_as_generated(kind, program, &nodes, web.address, &["--trusted-proxy", "192.0.2.1"]);
    let config = proxy.file("node.yaml");
    std::fs::write(&config, format!("verdict: {{enabled: true, address: '{}'}}\n", nodes[0])).unwrap();
    let check = || {
        let mut command = Command::new(binary());
        command.args([kind.name(), "check", "--strict", "--config"]).arg(&config).args(&proxy.files);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = check();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("0 errors, 0 warnings, 0 notes"), "{text}");
    let (file, from, to, found) = match kind {
        Kind::Nginx => ("banmesh.conf", "X-Forwarded-For $remote_addr", "X-Real-IP $remote_addr", "client-chooses"),
        Kind::Traefik => {
            ("banmesh.yaml", "/api/v1/verdict\"", "/api/v1/verdict\", trustForwardHeader: true", "client-chooses")
        }
        Kind::Caddy => ("Caddyfile", "lb_policy first", "header_up -X-Forwarded-For", "unnamed"),
        Kind::Envoy => ("envoy.yaml", "http2_protocol_options", "http_protocol_options", "no-http2"),
        Kind::EnvoyHttp => ("envoy.yaml", "use_remote_address: true", "use_remote_address: false", "client-chooses"),
    };
    let text = std::fs::read_to_string(proxy.file(file)).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(proxy.file(file), text.replace(from, to)).unwrap();
    let (code, text) = check();
    assert!(code == Some(1) && text.contains(found), "{text}");
}

fn dead_nodes_let_clients_pass(kind: Kind, program: &Path) {
    let (mut nodes, web) = (Nodes::start(), Backend::http());
    let proxy = Proxy::start(kind, program, &nodes.endpoints, web.address, &[]);
    let status = |from| client::status(from, proxy.address);
    wait::until("the banned client is refused", wait::SOON, || status(BANNED) == 403);
    nodes.nodes[0].kill();
    for _ in 0..20 {
        assert_eq!((status(BANNED), status(CLEAN)), (403, 200), "the other node answers");
    }
    nodes.nodes[1].kill();
    // Traefik notices that all are dead by their health check.
    if kind == Kind::Traefik {
        wait::until("clients pass", wait::SOON, || status(CLEAN) == 200);
    }
    for _ in 0..5 {
        assert_eq!((status(BANNED), status(CLEAN)), (200, 200), "no node answers");
    }
    let mut posting = Http::connect(CLEAN, proxy.address).unwrap();
    assert!(posting.post(&[], "a=b").unwrap().body.ends_with("a=b"), "the body arrives without a node, too");
    nodes.nodes[0].restart();
    wait::until("bans hold again", wait::SOON, || status(BANNED) == 403);
    assert_eq!(status(CLEAN), 200);
}

fn dead_nodes_refuse_clients_if_asked(kind: Kind, program: &Path) {
    let (mut nodes, web) = (Nodes::start(), Backend::http());
    let proxy = Proxy::start(kind, program, &nodes.endpoints, web.address, &["--fail-closed"]);
    wait::until("the node answers", wait::SOON, || client::status(CLEAN, proxy.address) == 200);
    nodes.nodes.iter_mut().for_each(Node::kill);
    let served = web.served();
    for _ in 0..5 {
        let status = client::status(CLEAN, proxy.address);
        assert!(status == 403 || status >= 500, "{status}");
    }
    assert_eq!(web.served(), served);
}

fn hanging_nodes_let_clients_pass(kind: Kind, program: &Path) {
    let (nodes, web) = (Nodes::start(), Backend::http());
    let proxy = Proxy::start_as_generated(kind, program, &nodes.endpoints, web.address, &[]);
    let status = |from| client::status(from, proxy.address);
    wait::until("the banned client is refused", wait::SOON, || status(BANNED) == 403);
    nodes.nodes[0].signal(Signal::SIGSTOP);
    // The first questions may find only the hanging node; after that the other one is asked.
    wait::until("the other node answers", wait::SOON, || status(BANNED) == 403);
    for _ in 0..10 {
        assert_eq!((status(BANNED), status(CLEAN)), (403, 200), "the other node answers");
    }
    nodes.signal(Signal::SIGSTOP);
    wait::until("clients pass", wait::SOON, || status(CLEAN) == 200);
    for _ in 0..3 {
        assert_eq!(status(CLEAN), 200, "no node answers");
    }
    nodes.signal(Signal::SIGCONT);
    wait::until("bans hold again", wait::SOON, || status(BANNED) == 403);
}

fn a_node_killed_under_load_causes_no_wrong_answer(kind: Kind, program: &Path) {
    let (mut nodes, web) = (Nodes::start(), Backend::http());
    let proxy = Proxy::start(kind, program, &nodes.endpoints, web.address, &[]);
    wait::until("the banned client is refused", wait::SOON, || client::status(BANNED, proxy.address) == 403);
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let clients = [(BANNED, 403), (CLEAN, 200)].map(|(from, expected)| {
            let (stop, asked, to) = (&stop, &asked, proxy.address);
            scope.spawn(move || {
                let mut wrong = Vec::new();
                let mut connection = Http::connect(from, to).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    match connection.get(&[]) {
                        Ok(response) if response.status == expected => {}
                        Ok(response) => wrong.push(format!("{from}: {}", response.status)),
                        // A proxy may end a connection after a refusal.
                        Err(_) => connection = Http::connect(from, to).unwrap(),
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            })
        });
        let more = |count: usize| {
            let goal = asked.load(Ordering::Relaxed) + count;
            wait::until("requests are answered", Duration::from_secs(60), || asked.load(Ordering::Relaxed) >= goal);
        };
        more(200);
        nodes.nodes[0].kill();
        more(400);
        nodes.nodes[0].restart();
        nodes.nodes[0].wait_for(BANNED, true);
        // A proxy does not ask a node again for some time after it failed. With both failed, clients would pass.
        wait::until("the node is asked again", wait::SOON, || checks(&nodes.nodes[0]) > 0);
        more(400);
        // SIGTERM: the node drains.
        nodes.nodes[1].stop();
        more(200);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {}: {:?}",
        wrong.len(),
        asked.load(Ordering::Relaxed),
        &wrong[..wrong.len().min(10)]
    );
}

/// Logins that the server behind nginx refuses are offences, by nginx's log, and the ban holds at nginx.
fn refused_logins_in_the_access_log_ban(kind: Kind, program: &Path) {
    let (endpoint, web) = (SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()), Backend::refusing());
    let proxy = Proxy::start(kind, program, &[endpoint], web.address, &[]);
    let log = serde_json::json!([{ "path": proxy.file("access.log"), "program": "nginx" }]);
    let node = NodeConfig::new()
        .set("verdict.enabled", true)
        .set("verdict.address", endpoint.to_string())
        .set("inputs.files", log)
        .set("filters.enabled", vec!["nginx"])
        .start();
    wait::until("nginx asks the node", wait::SOON, || {
        client::status(BANNED, proxy.address);
        checks(&node) > 0
    });
    // `bob:wrong`
    let login = ["Authorization: Basic Ym9iOndyb25n"];
    wait::until("the client is refused", wait::SOON, || {
        client::get(BANNED, proxy.address, &login).is_ok_and(|answer| answer.status == 403)
    });
    assert_eq!(client::get(CLEAN, proxy.address, &[]).unwrap().status, 401);
    assert!(node.cli(&["why", &BANNED.to_string()]).contains("nginx"));
}

/// The number of verdicts that a node has given since its start.
fn checks(node: &Node) -> u64 {
    let metrics = node.admin().request("GET", "/metrics", None).unwrap();
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let counts = text.lines().filter(|line| line.starts_with("banmesh_verdict_checks_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Envoy's filter for connections, by gRPC.
fn tcp_connections_of_banned_clients_are_closed(kind: Kind, program: &Path) {
    let (mut nodes, echo) = (Nodes::start(), Backend::echo());
    let proxy = Proxy::start(kind, program, &nodes.endpoints, echo.address, &["--tcp"]);
    let answer = |from| client::speak_first(from, proxy.address, "hello").unwrap();
    wait::until("the banned client is closed", wait::SOON, || answer(BANNED).is_none());
    assert_eq!(answer(CLEAN).as_deref(), Some("hello"));
    nodes.nodes[0].kill();
    for _ in 0..10 {
        assert_eq!((answer(BANNED), answer(CLEAN).as_deref()), (None, Some("hello")));
    }
    nodes.nodes[1].kill();
    wait::until("clients pass", wait::SOON, || answer(CLEAN).is_some() && answer(BANNED).is_some());
}
