//! The alerts for Prometheus and the dashboard for Grafana use only metrics that a node exports, and the alerts pass their unit
//! tests.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{in_ci, repository_file, wait};
use serde_json::{Value, json};

const KEY: &str = "the-key-of-a-client-that-fetches";
const RULES: &str = "deploy/prometheus/banmesh.rules.yaml";
const UNIT_TESTS: &str = "deploy/prometheus/banmesh.rules.test.yaml";
const DASHBOARD: &str = "deploy/grafana/banmesh.json";

/// Families without samples until they count, for events that a healthy pair of nodes does not have. Their names must be
/// registered somewhere in `src`.
const QUIET: [&str; 5] = [
    "banmesh_shadow_bans",
    "banmesh_cluster_repairs_failed",
    "banmesh_cluster_recent_changes_gaps",
    "banmesh_cluster_datagrams_dropped",
    "banmesh_cluster_records_refused",
];

fn text(path: &str) -> String {
    std::fs::read_to_string(repository_file(path)).unwrap()
}

/// The text after `key` on every line that has it, without quotes.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key)).map(str::trim).collect()
}

/// The names of metrics in a query.
fn metrics_of(query: &str) -> BTreeSet<String> {
    let names = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    names.filter(|word| word.starts_with("banmesh_") || word.starts_with("process_")).map(str::to_owned).collect()
}

fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(query) if key == "expr" || key == "query" || key == "definition" => {
                        found.push(query.to_owned())
                    }
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The names of all samples that a node exports.
fn exported_by(node: &Node) -> BTreeSet<String> {
    let page = node.admin().request("GET", "/metrics", None).unwrap();
    let page = String::from_utf8(page.body).unwrap();
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn every_metric_in_alerts_and_dashboard_is_exported() {
    let mut configs = NodeConfig::cluster(2).into_iter();
    let [api, crowdsec, lists] = std::array::from_fn(|_| cluster_tests::ports::free_port());
    let node = configs
        .next()
        .unwrap()
        .set("api.enabled", true)
        .set("api.port", api)
        .set("api.basic_auth.enabled", true)
        .set("api.basic_auth.username", "ann")
        .set("api.basic_auth.password", "secret")
        .set("inputs.files", vec!["/nowhere/*.log"])
        .set("dnsbl.enabled", true)
        .set("dnsbl.address", "127.0.0.1:0")
        .set("crowdsec.enabled", true)
        .set("crowdsec.port", crowdsec)
        .set("crowdsec.keys.edge.key", KEY)
        .set("lists.enabled", true)
        .set("lists.port", lists)
        .set("lists.keys.edge.key", KEY)
        .set("haproxy.peers.listen", "127.0.0.1:0")
        .start();
    let _other = configs.next().unwrap().start();
    wait::until("both are ready", wait::SOON, || node.admin().ready_members().is_ok_and(|ready| ready.len() == 2));
    // These metrics are exported only after they have counted something.
    node.ban_by_log(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)));
    let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, api)).unwrap();
    stranger.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut nonsense = TcpStream::connect(node.spoa()).unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    for (port, path) in [(crowdsec, "/v1/decisions/stream?startup=true"), (lists, "/all.txt")] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        );
        wait::until("bans are fetched", wait::SOON, || {
            let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
        });
    }
    wait::until("all of that is counted", wait::SOON, || {
        let exported = exported_by(&node);
        ["banmesh_bans_total", "banmesh_api_refused_total", "banmesh_spoa_frames_refused_total"]
            .iter()
            .all(|name| exported.contains(*name))
    });
    let exported = exported_by(&node);

    let mut all = Vec::new();
    queries(&serde_json::from_str(&text(DASHBOARD)).unwrap(), &mut all);
    assert!(all.len() > 30, "{} queries", all.len());
    let alerts = text(RULES);
    all.extend(values(&alerts, "expr:").into_iter().map(str::to_owned));
    let registered = ["src/cluster/metrics.rs", "src/decisions/judge/metrics.rs"].map(text).concat();
    let mut named = 0;
    for query in &all {
        for name in metrics_of(query) {
            let quiet = QUIET.iter().find(|quiet| name == format!("{quiet}_total"));
            let known =
                exported.contains(&name) || quiet.is_some_and(|quiet| registered.contains(&format!("\"{quiet}\"")));
            assert!(known, "no node exports {name}, which is used in {query}; it exports {exported:#?}");
            named += 1;
        }
    }
    assert!(named > 50, "{named} names");
}

#[test]
fn every_alert_has_a_unit_test_and_a_section_in_the_guide() {
    let (rules, tests) = (text(RULES), text(UNIT_TESTS));
    let alerts = values(&rules, "alert:");
    assert!(alerts.len() >= 12, "{alerts:?}");
    for alert in &alerts {
        assert!(values(&tests, "name:").contains(alert), "{alert} has no unit test in {UNIT_TESTS}");
    }
    let links = values(&rules, "runbook_url:");
    assert_eq!(links.len(), alerts.len());
    for link in links {
        let (page, anchor) = link.split_once('#').unwrap();
        let guide = text(page.strip_prefix("https://github.com/banmesh/banmesh/blob/main/").unwrap());
        let headings: BTreeSet<String> = guide.lines().filter(|line| line.starts_with('#')).map(self::anchor).collect();
        assert!(headings.contains(anchor), "{link}: there are {headings:#?}");
    }
    for text in ["summary:", "description:"] {
        assert_eq!(values(&rules, text).len(), alerts.len(), "{text}");
    }
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// `promtool` of this host, or the one that `scripts/install-test-tools` unpacked.
fn promtool() -> Option<PathBuf> {
    let unpacked = repository_file(".prometheus/usr/bin/promtool");
    [PathBuf::from("promtool"), unpacked]
        .into_iter()
        .find(|path| Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success()))
}

#[test]
fn prometheus_accepts_the_alerts_and_their_unit_tests_pass() {
    let Some(promtool) = promtool() else {
        assert!(!in_ci(), "there is no promtool: scripts/install-test-tools fetches it");
        eprintln!("skipped: there is no promtool; scripts/install-test-tools fetches it");
        return;
    };
    let run = |arguments: [&str; 2], file: &str| {
        let output = Command::new(&promtool)
            .args(arguments)
            .arg(file)
            .current_dir(repository_file("deploy/prometheus"))
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        said
    };
    let said = run(["check", "rules"], "banmesh.rules.yaml");
    assert!(said.contains(&format!("{} rules found", values(&text(RULES), "alert:").len())), "{said}");
    run(["test", "rules"], "banmesh.rules.test.yaml");
    run(["check", "rules"], "haproxy-spoe.rules.yaml");
    run(["test", "rules"], "haproxy-spoe.rules.test.yaml");

    // The dashboard's queries as rules, with Grafana's variables replaced.
    let mut all = Vec::new();
    queries(&serde_json::from_str(&text(DASHBOARD)).unwrap(), &mut all);
    let rules: Vec<Value> = all
        .iter()
        .filter(|query| !query.starts_with("label_values(") && *query != "prometheus")
        .map(|query| query.replace("$__rate_interval", "5m"))
        .enumerate()
        .map(|(number, query)| json!({ "record": format!("query:{number}"), "expr": query }))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.yaml");
    std::fs::write(&file, json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()).unwrap();
    let said = run(["check", "rules"], &file.to_string_lossy());
    assert!(said.contains(&format!("{} rules found", rules.len())), "{said}");
}
