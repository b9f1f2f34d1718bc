//! Every endpoint and every command, on a real cluster of three nodes: a change on one node is visible on the others.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::ports::free_port;
use cluster_tests::wait;
use serde_json::{Value, json};

const READER: &str = "a-token-of-somebody-who-reads";
const BOSS: &str = "a-token-of-an-administrator";

struct Cluster {
    nodes: Vec<Node>,
    ports: Vec<u16>,
    /// Which operations were asked, as the OpenAPI document names them.
    asked: BTreeSet<String>,
}

impl Cluster {
    fn start() -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let tokens =
            json!({ "reader": { "role": "read", "token": READER }, "boss": { "role": "admin", "token": BOSS } });
        let start = |((number, config), port): ((usize, NodeConfig), u16)| {
            config
                .set("node.id", format!("n{}", number + 1))
                .set("api", json!({ "enabled": true, "port": port, "tokens": tokens }))
                .set("api.rate_limiting.enabled", false)
                .start()
        };
        let nodes: Vec<Node> = NodeConfig::cluster(3).into_iter().enumerate().zip(ports).map(start).collect();
        for node in &nodes {
            wait::until("three nodes know each other", wait::SOON, || {
                node.admin().ready_members().is_ok_and(|all| all.len() == 3)
            });
        }
        Self { nodes, ports: ports.to_vec(), asked: BTreeSet::new() }
    }

    /// The status and the body of an answer of node `index`.
    fn send(&self, index: usize, method: &str, path: &str, token: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[index])).unwrap();
        stream.set_read_timeout(Some(wait::SOON)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {answer}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Asks `index` as an administrator for `operation`, a method and a path of the OpenAPI document with its parameter in
    /// `given`, and expects `status`.
    #[track_caller]
    fn ask(&mut self, index: usize, operation: &str, given: &str, body: Value, status: u16) -> Value {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = match path.split_once('{') {
            Some((before, _)) => format!("{before}{given}"),
            None => format!("{path}{given}"),
        };
        let (answered, text) = self.send(index, method, &path, BOSS, &body);
        assert_eq!(answered, status, "{method} {path}: {text}");
        self.asked.insert(operation.to_owned());
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    /// Waits until every node shows `target` in `state`.
    #[track_caller]
    fn wait_for(&self, target: &str, state: &str) {
        for index in 0..3 {
            wait::until(&format!("{target} is {state} on node {index}"), wait::SOON, || {
                let (status, text) = self.send(index, "GET", &format!("/api/v1/bans/{target}"), READER, &Value::Null);
                let entry: Value = serde_json::from_str(&text).unwrap_or_default();
                status == 200 && entry["state"] == state
            });
        }
    }
}

#[test]
fn every_endpoint_works_on_every_node_and_changes_replicate() {
    let mut cluster = Cluster::start();
    let cluster = &mut cluster;
    let document = cluster.ask(0, "GET /api/v1/openapi.json", "", Value::Null, 200);

    // One target with a duration; several targets, one of them invalid; a permanent ban of a network.
    let ban = json!({"target": "198.51.100.1", "duration": "1h30m", "reason": "scan", "by": "ticket 7"});
    let entry = cluster.ask(0, "POST /api/v1/bans", "", ban, 201);
    assert_eq!((&entry["by"], &entry["node"]), (&json!("ticket 7 via boss"), &json!("n1")));
    let many = json!({"targets": ["198.51.100.2", "198.51.100.3", "nowhere"], "duration": "1h"});
    let answer = cluster.ask(1, "POST /api/v1/bans/bulk", "", many, 200);
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(2), &json!("bad_target")));
    cluster.ask(2, "POST /api/v1/bans", "", json!({"target": "2001:db8:bad::/48", "permanent": true}), 201);
    for target in ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8:bad::/48"] {
        cluster.wait_for(target, "active");
    }
    for index in 0..3 {
        let page = cluster.ask(index, "GET /api/v1/bans", "?limit=3", Value::Null, 200);
        let rest = cluster.ask(
            index,
            "GET /api/v1/bans",
            &format!("?limit=3&cursor={}", page["next"].as_str().unwrap()),
            Value::Null,
            200,
        );
        let listed = |page: &Value| page["bans"].as_array().unwrap().len();
        assert_eq!((listed(&page), listed(&rest), &rest["next"]), (3, 1, &Value::Null));
        for (query, count) in [
            ("address=2001:db8:bad::7", 1),
            ("network=198.51.100.0/30", 3),
            ("operator=ticket%207%20via%20boss", 1),
            ("filter=dovecot", 0),
            ("node=n2", 2),
            ("within=1h", 4),
            ("permanent=true", 1),
            ("search=SCAN", 1),
            ("state=unbanned", 0),
            ("sort=newest", 4),
        ] {
            let page = cluster.ask(index, "GET /api/v1/bans", &format!("?{query}"), Value::Null, 200);
            assert_eq!(listed(&page), count, "{query}: {page}");
        }
        let all = cluster.ask(index, "GET /api/v1/bans/export", "?state=all", Value::Null, 200);
        assert_eq!(all.as_str().unwrap().matches("\"target\":").count(), 4, "{all}");
        let entry = cluster.ask(index, "GET /api/v1/bans/{target}", "198.51.100.1", Value::Null, 200);
        let decision = &entry["history"]["decisions"][0];
        assert_eq!((&decision["state"], &decision["remote"]), (&json!("active"), &json!(index != 0)), "{entry}");
        let why = cluster.ask(index, "GET /api/v1/why/{address}", "2001:db8:bad::7", Value::Null, 200);
        assert_eq!((&why["banned"], &why["by_target"]), (&json!(true), &json!("2001:db8:bad::/48")));
    }
    cluster.ask(1, "DELETE /api/v1/bans/{target}", "198.51.100.1?reason=ours&by=ann", Value::Null, 200);
    cluster.wait_for("198.51.100.1", "unbanned");
    let lifts = json!({"targets": ["198.51.100.2", "198.51.100.3", "198.51.100.4"], "reason": "ours"});
    let answer = cluster.ask(2, "POST /api/v1/bans/unban", "", lifts, 200);
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(2), &json!("not_banned")));
    cluster.wait_for("198.51.100.3", "unbanned");

    // The allowlist.
    let partner = json!({"target": "203.0.113.0/28", "duration": "7d", "reason": "a partner"});
    cluster.ask(0, "POST /api/v1/allowlist", "", partner, 201);
    cluster.wait_for("203.0.113.0/28", "allowed");
    for index in 0..3 {
        let list = cluster.ask(index, "GET /api/v1/allowlist", "", Value::Null, 200);
        assert_eq!(list["allowlist"][1]["target"], "203.0.113.0/28", "{list}");
        let member = cluster.ask(index, "GET /api/v1/allowlist/{target}", "203.0.113.0/28", Value::Null, 200);
        assert_eq!((&member["by"], &member["node"]), (&json!("boss"), &json!("n1")));
        let refused = cluster.ask(index, "POST /api/v1/bans", "", json!({"target": "203.0.113.9"}), 409);
        assert_eq!(refused["code"], "allowlisted");
    }
    cluster.ask(2, "DELETE /api/v1/allowlist/{target}", "203.0.113.0/28", Value::Null, 200);
    let partners = json!({"targets": ["203.0.113.64", "nowhere"], "duration": "1h"});
    let answer = cluster.ask(1, "POST /api/v1/allowlist/bulk", "", partners, 200);
    assert_eq!((&answer["done"], &answer["refused"][0]["code"]), (&json!(1), &json!("bad_target")));
    cluster.ask(1, "DELETE /api/v1/allowlist/{target}", "203.0.113.64", Value::Null, 200);
    cluster.wait_for("203.0.113.0/28", "unbanned");

    // The endpoints of WebFail2Ban.
    let ban = json!({"ip_address": "192.0.2.1", "duration": "30m", "reason": "scan", "created_by": "script"});
    cluster.ask(0, "POST /api/ban", "", ban, 200);
    cluster.ask(0, "POST /api/ban", "", json!({"ip_address": "192.0.2.2", "permanent": true}), 200);
    cluster.ask(0, "POST /api/whitelist", "", json!({"ip_address": "192.0.2.3", "reason": "ours"}), 200);
    for (target, state) in [("192.0.2.1", "active"), ("192.0.2.2", "active"), ("192.0.2.3", "allowed")] {
        cluster.wait_for(target, state);
    }
    for index in 0..3 {
        let named = |list: &Value, name: &str| -> Vec<String> {
            let members = list[name].as_array().unwrap_or_else(|| panic!("{list}"));
            members.iter().map(|member| member["ip_address"].as_str().unwrap().to_owned()).collect()
        };
        let list = cluster.ask(index, "GET /api/temp-bans", "", Value::Null, 200);
        assert_eq!(named(&list, "temp_bans"), ["192.0.2.1"]);
        let mut list = named(&cluster.ask(index, "GET /api/blacklist", "", Value::Null, 200), "blacklist");
        list.sort();
        assert_eq!(list, ["192.0.2.2", "2001:db8:bad::/48"]);
        let list = cluster.ask(index, "GET /api/whitelist", "", Value::Null, 200);
        assert_eq!(named(&list, "whitelist"), ["192.0.2.255", "192.0.2.3"]);
    }
    cluster.ask(1, "POST /api/unban", "", json!({"ip_address": "192.0.2.2"}), 200);
    cluster.ask(1, "DELETE /api/whitelist", "", json!({"ip_address": "192.0.2.3"}), 200);
    let purged = cluster.ask(2, "POST /api/purge-bans", "", Value::Null, 200);
    assert_eq!(purged["purged_count"], 1);
    for target in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        cluster.wait_for(target, "unbanned");
    }

    // The endpoints about nodes.
    for index in 0..3 {
        let name = format!("n{}", index + 1);
        let status = cluster.ask(index, "GET /api/v1/status", "", Value::Null, 200);
        assert_eq!((&status["node"], &status["members"]), (&json!(name), &json!(3)));
        let members = cluster.ask(index, "GET /api/v1/cluster", "", Value::Null, 200);
        assert_eq!(members["members"].as_array().unwrap().len(), 3);
        let me = cluster.ask(index, "GET /api/v1/me", "", Value::Null, 200);
        assert_eq!(me, json!({"name": "boss", "role": "admin"}));
        assert_eq!(cluster.ask(index, "GET /api/v1/ping", "", Value::Null, 200)["node"], json!(name));
        assert_eq!(cluster.ask(index, "GET /api/v1/feeds", "", Value::Null, 200)["feeds"], json!([]));
        cluster.ask(index, "POST /api/v1/feeds/update", "", json!({}), 404);
        assert_eq!(cluster.ask(index, "GET /api/v1/tables", "", Value::Null, 200)["tables"], json!([]));
        cluster.ask(index, "GET /api/v1/tables/{name}", "req", Value::Null, 404);
        let name = cluster.ask(index, "GET /api/v1/evidence/names/{name}", "bob", Value::Null, 200);
        assert_eq!((&name["bait"], &name["last_login"]), (&json!(false), &Value::Null));
        let filters = cluster.ask(index, "GET /api/v1/filters", "", Value::Null, 200);
        assert!(filters["filters"].as_array().unwrap().iter().any(|filter| filter["name"] == "dovecot"));
        let activity = cluster.ask(index, "GET /api/v1/activity", "", Value::Null, 200);
        assert_eq!(activity["step_seconds"], 10);
        assert!(cluster.ask(index, "GET /api/v1/top", "", Value::Null, 200)["lists"].is_array());
        assert!(cluster.ask(index, "POST /api/v1/reload", "", Value::Null, 200)["message"].is_string());
        // Tables may still differ for a moment.
        assert!(cluster.ask(index, "POST /api/v1/discard", "?force=true", Value::Null, 200)["discarded"].is_u64());
        let offence = json!({"source": format!("198.51.100.{}", 200 + index), "reason": "waf: sql injection"});
        let counted = cluster.ask(index, "POST /api/v1/offences", "", offence, 202);
        assert_eq!(counted["source"], json!(format!("198.51.100.{}", 200 + index)));
        let metrics = cluster.ask(index, "GET /metrics", "", Value::Null, 200);
        assert!(metrics.as_str().unwrap().contains("banmesh_cluster_live_nodes 3"), "{metrics}");
        assert_eq!(cluster.ask(index, "GET /health/live", "", Value::Null, 200), json!("live\n"));
        assert_eq!(cluster.ask(index, "GET /health/ready", "", Value::Null, 200)["ready"], true);
        for file in ["/", "/ui/app.js"] {
            assert_eq!(cluster.send(index, "GET", file, "", &Value::Null).0, 200, "{file}");
        }
        receive_an_event(cluster, index);
    }

    let documented: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys().filter(|method| *method != "parameters");
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    assert_eq!(cluster.asked, documented, "every operation was asked");
    wrong_roles_and_methods_change_nothing(cluster, &documented);
}

/// A ban on the next node arrives as a live update on node `index`.
fn receive_an_event(cluster: &mut Cluster, index: usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.ports[index])).unwrap();
    stream.set_read_timeout(Some(wait::SOON)).unwrap();
    let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READER}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "HTTP/1.1 200 OK");
    let target = format!("198.51.100.10{index}");
    cluster.ask((index + 1) % 3, "POST /api/v1/bans", "", json!({"target": target}), 201);
    let data = lines.find(|line| line.starts_with("data: ") && line.contains(&target)).unwrap();
    let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&event["event"], &event["remote"]), (&json!("banned"), &json!(true)));
    cluster.asked.insert("GET /api/v1/events".to_owned());
}

/// No operation accepts a wrong role or method.
fn wrong_roles_and_methods_change_nothing(cluster: &Cluster, operations: &BTreeSet<String>) {
    let table = |cluster: &Cluster| cluster.nodes[0].admin().table().unwrap();
    let before = table(cluster);
    for operation in operations {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = path.split_once('{').map_or(path.to_owned(), |(before, _)| format!("{before}198.51.100.100"));
        let body = json!({"target": "198.51.100.200", "targets": ["198.51.100.200"], "ip_address": "198.51.100.200"});
        let open = path.starts_with("/health/");
        let stranger = cluster.send(0, method, &path, "", &body);
        assert_eq!(stranger.0, if open { 200 } else { 401 }, "{operation}: {}", stranger.1);
        if method != "GET" {
            let reader = cluster.send(0, method, &path, READER, &body);
            assert_eq!(reader.0, 403, "{operation}: {}", reader.1);
        }
        let wrong = cluster.send(0, "PATCH", &path, BOSS, &body);
        assert_eq!(wrong.0, 405, "{operation}: {}", wrong.1);
        assert!(wrong.1.contains(&path), "{}", wrong.1);
    }
    assert_eq!(table(cluster), before);
}

#[test]
fn every_command_works_on_any_node() {
    let mut cluster = Cluster::start();
    let mut given = BTreeSet::new();
    let folder = tempfile::tempdir().unwrap();
    let mut run = |index: usize, arguments: &[&str], input: &str, code: i32| -> String {
        let mut command = Command::new(binary());
        command.arg("--config").arg(cluster.nodes[index].config_file()).args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("BANMESH_URL")
            .env_remove("BANMESH_SOCKET")
            .spawn()
            .unwrap();
        // The command may exit without reading its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        given.insert(arguments[0].to_owned());
        said
    };
    assert!(run(0, &["status"], "", 0).contains("3 nodes alive"));
    assert!(run(1, &["cluster", "status"], "", 0).contains("n3"));
    assert!(run(2, &["ping", "--ready"], "", 0).contains("pong from n3"));
    run(0, &["ban", "198.51.100.1", "--for", "1h", "--reason", "by hand"], "", 0);
    // A list with invalid lines: valid lines are applied, and invalid ones are reported with their numbers.
    let list = "# a list\n198.51.100.2\n198.51.100.3 # one more\n\nbanana\n10.0.0.0/33\n192.0.2.255\n198.51.100.0/28\n";
    let said = run(1, &["ban", "--file", "-", "--permanent", "--reason", "a list"], list, 1);
    for note in
        ["line 5: `banana`", "line 6: a prefix of /33", "line 7: 192.0.2.255 is in the allowlist", "banned 3 of 6"]
    {
        assert!(said.contains(note), "{note}: {said}");
    }
    for target in ["198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.0/28"] {
        cluster.wait_for(target, "active");
    }
    // On the third node, sorted and filtered.
    let listed = run(2, &["list", "--sort", "target"], "", 0);
    let order: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(order, ["198.51.100.0/28", "198.51.100.1", "198.51.100.2", "198.51.100.3"]);
    let ending = run(2, &["list", "--sort", "until", "--csv", "-n", "1"], "", 0);
    assert!(ending.lines().nth(1).unwrap().starts_with("198.51.100.1,active,"), "{ending}");
    for (filter, count) in [
        (&["--network", "198.51.100.2/31"][..], 2),
        (&["--address", "198.51.100.9"], 1),
        (&["--node-id", "n2"], 3),
        (&["--within", "1h", "--filter", "sshd"], 0),
        (&["--state", "unbanned"], 0),
        (&["--search", "A List"], 3),
        (&["--sort", "none"], 4),
    ] {
        let found = run(2, &[&["list", "--json"], filter].concat(), "", 0);
        assert_eq!(found.lines().count(), count, "{filter:?}: {found}");
        assert!(found.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }
    let why = run(2, &["why", "198.51.100.9"], "", 0);
    assert!(why.contains("is banned permanently as part of 198.51.100.0/28") && why.contains("a list"), "{why}");
    let said = run(2, &["unban", "198.51.100.1", "--reason", "ours"], "", 0);
    assert!(said.contains("still banned as part of 198.51.100.0/28"), "{said}");
    assert!(run(2, &["unban", "198.51.100.1"], "", 1).contains("is banned as part of 198.51.100.0/28"));
    assert!(run(2, &["unban", "198.51.100.99"], "", 1).contains("is not banned"));
    let file = folder.path().join("wrongly");
    std::fs::write(&file, "198.51.100.2\n198.51.100.99\n").unwrap();
    let said = run(0, &["unban", "--file", &file.to_string_lossy()], "", 1);
    assert!(said.contains("line 2: 198.51.100.99 is not banned") && said.contains("unbanned 1 of 2"), "{said}");
    cluster.wait_for("198.51.100.2", "unbanned");

    run(1, &["allow", "203.0.113.7", "--for", "1h", "--reason", "a partner"], "", 0);
    cluster.wait_for("203.0.113.7", "allowed");
    assert!(run(2, &["allowlist"], "", 0).contains("a partner"));
    assert!(run(2, &["list", "--state", "allowed"], "", 0).contains("203.0.113.7"));
    assert!(run(0, &["ban", "203.0.113.7"], "", 1).contains("was allowed by an operator"));
    run(2, &["disallow", "203.0.113.7"], "", 0);
    cluster.wait_for("203.0.113.7", "unbanned");
    assert!(run(0, &["purge"], "", 0).contains("unbanned 0 of 0"), "what never ends is spared");
    assert!(run(0, &["purge", "--permanent"], "", 2).contains("--yes"));
    assert!(run(0, &["purge", "--permanent", "--yes"], "", 0).contains("unbanned 2 of 2"));
    cluster.wait_for("198.51.100.0/28", "unbanned");
    run(1, &["reload"], "", 0);
    // Operators' bans have authors; there were no offences.
    let top = run(2, &["top"], "", 0);
    assert!(top.contains("AUTHORS (") && top.contains("SOURCES (0 offences)"), "{top}");
    assert!(run(2, &["top", "--table"], "", 0).contains("no HAProxy has counted anything"));
    assert!(run(2, &["evidence", "bob"], "", 0).contains("bob"));
    assert!(run(2, &["evidence", "never", "add", "Bob", "eve"], "", 0).contains("2 added; "));
    assert!(run(2, &["evidence", "bob"], "", 0).contains("bob is never bait"));
    assert!(run(2, &["evidence", "never", "list"], "", 0).contains("bob  (added)"));
    assert!(run(2, &["evidence", "never", "remove", "bob"], "", 0).contains("1 removed; "));
    assert!(run(2, &["evidence", "never", "remove", "bob"], "", 0).contains("none of these names was listed"));
    assert!(run(2, &["evidence", "bob"], "", 0).contains("no login to bob within 90d"));
    assert!(run(2, &["feeds", "status"], "", 0).contains("no feeds"));
    let doctor = run(2, &["doctor", "--haproxy", "/nonexistent"], "", 0);
    assert!(doctor.contains("no log line has arrived"), "{doctor}");
    run(0, &["why", "--quiet", "198.51.100.0"], "", 1);
    // Tables may still differ for a moment.
    assert!(run(1, &["discard", "--force"], "", 0).contains("discarded"));
    assert!(run(0, &["completions", "bash"], "", 0).contains("_banmesh()"));
    assert!(run(0, &["man"], "", 0).contains(".TH"));
    watched(&mut cluster);
    given.insert("watch".to_owned());

    // Every command in the help has been run, except those that need no running node and are tested elsewhere.
    let apart = [
        "run", "check", "filter", "store", "haproxy", "nginx", "traefik", "caddy", "envoy", "firewall", "api",
        "migrate", "replay", "help",
    ];
    let help = Command::new(binary()).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    // The commands are in groups.
    let commands = help.split_once("\nOptions:").unwrap().0;
    let named = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    for name in named.filter(|name| !apart.contains(name)) {
        assert!(given.contains(name), "`{name}` was not run");
    }
}

/// `watch` shows bans of another node live, even after the node was restarted.
fn watched(cluster: &mut Cluster) {
    let mut watching = Command::new(binary())
        .arg("--config")
        .arg(cluster.nodes[2].config_file())
        .args(["watch", "--json"])
        .env_remove("BANMESH_URL")
        .env_remove("BANMESH_SOCKET")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(watching.stdout.take().unwrap()).lines();
    for network in [113, 114] {
        let received = std::thread::scope(|scope| {
            let next = scope.spawn(|| {
                events.find(|line| line.as_ref().is_ok_and(|line| line.contains(&format!("203.0.{network}."))))
            });
            // The command may not be connected yet when the first ban is made.
            for last in 1..=250u8 {
                if next.is_finished() {
                    break;
                }
                cluster.nodes[0].admin().ban([203, 0, network, last].into()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            next.join().unwrap().unwrap().unwrap()
        });
        let event: Value = serde_json::from_str(&received).unwrap();
        assert_eq!((&event["event"], &event["remote"]), (&json!("banned"), &json!(true)), "{received}");
        if network == 113 {
            cluster.nodes[2].restart();
        }
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn bulk_bans_show_a_progress_bar_on_a_terminal() {
    let node = NodeConfig::new().start();
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("many");
    let targets: String = (0..5000).map(|n| format!("11.9.{}.{}\n", n / 250, n % 250)).collect();
    std::fs::write(&list, targets).unwrap();
    let ban = format!(
        "{} --config {} ban --for 1d --file {}",
        binary().display(),
        node.config_file().display(),
        list.display()
    );
    // `script` provides a terminal.
    let output = Command::new("script").args(["-qec", &ban, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("/5,000") && said.contains("left"), "{said:?}");
    assert!(said.contains("banned 5000 of 5000"), "{said:?}");
    // Without a terminal there is no progress bar.
    let output = Command::new("sh").args(["-c", &ban]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
