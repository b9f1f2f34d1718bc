//! The alerts of deploy/prometheus/haproxy-spoe.rules.yaml use metrics that HAProxy exports, and the metrics change when the agents
//! fail.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cluster_tests::haproxy::{Binary, loopback_port};
use cluster_tests::node::NodeConfig;
use cluster_tests::site::{Site, WebSite};
use cluster_tests::{client, repository_file, wait, with_every_haproxy};
use nix::sys::signal::Signal;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

with_every_haproxy!(
    the_metrics_of_the_alerts_are_exported_and_show_dead_agents,
    failed_connections_are_counted_while_health_checks_pass,
);

/// A selector of an alert: `metric{label="value",…}`.
#[derive(Debug, PartialEq, Eq)]
struct Selector {
    metric: String,
    labels: Vec<String>,
}

/// Every selector in the rules' expressions.
fn selectors() -> Vec<Selector> {
    let rules = std::fs::read_to_string(repository_file("deploy/prometheus/haproxy-spoe.rules.yaml")).unwrap();
    let mut found = Vec::new();
    let mut rest = rules.as_str();
    while let Some(start) = rest.find("haproxy_") {
        let text = &rest[start..];
        let end = text.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len());
        let (metric, after) = text.split_at(end);
        rest = after;
        if let Some((labels, tail)) = after.strip_prefix('{').and_then(|labels| labels.split_once('}')) {
            rest = tail;
            let labels = labels.split(',').map(str::to_owned).collect();
            found.push(Selector { metric: metric.to_owned(), labels });
        }
    }
    found
}

/// The values of all series that a selector matches.
fn values(page: &str, metric: &str, labels: &[&str]) -> Vec<f64> {
    let of_metric = page.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} "));
    of_metric
        .filter(|(found, _)| labels.iter().all(|label| found.split(',').any(|one| one == *label)))
        .map(|(_, value)| value.trim().parse().unwrap())
        .collect()
}

fn scrape(stats: SocketAddr) -> String {
    let mut stream = client::connect(LOOPBACK, stats).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200") || page.starts_with("HTTP/1.0 200"), "{page}");
    page
}

/// The lines in docs/haproxy.md for BanmeshChecksUnanswered: a table, and the rule that fills it.
fn documented() -> (String, String) {
    let page = std::fs::read_to_string(repository_file("docs/haproxy.md")).unwrap();
    let block = page.split("```haproxy\n").find(|block| block.starts_with("backend unanswered")).expect("the block");
    let block = block.split("```").next().unwrap();
    let (table, rest) = block.split_once("\n\n").unwrap();
    (format!("{table}\n\n"), rest.lines().find(|line| line.contains("track-sc")).unwrap().to_owned())
}

fn the_metrics_of_the_alerts_are_exported_and_show_dead_agents(binary: &Binary) {
    let stats = loopback_port();
    let (table, rule) = documented();
    let mut site = Site::start_with(binary, |config| {
        config
            .with_shipped_timeouts()
            .replace("    bind 127.0.0.1:8404\n", &format!("    bind {stats}\n    bind 127.0.0.1:8404\n"))
            .replace("frontend http-frontend\n", &format!("{table}frontend http-frontend\n"))
            .replace("    default_backend http-backend\n", &format!("{rule}\n    default_backend http-backend\n"))
    });
    assert_eq!(client::status(CLIENT, site.http), 200);
    let selectors = selectors();
    assert!(selectors.len() >= 8, "{selectors:?}");
    let backend = r#"proxy="spoe-ip-reputation""#;
    let server = r#"server="primary""#;
    let up = r#"state="UP""#;
    let unanswered = r#"name="unanswered""#;
    let check = |page: &str| {
        for Selector { metric, labels } in &selectors {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            assert!(!values(page, metric, &labels).is_empty(), "nothing is {metric}{labels:?} in\n{page}");
        }
    };

    let page = scrape(stats);
    check(&page);
    assert_eq!(values(&page, "haproxy_backend_status", &[backend, up]), [1.0]);
    assert_eq!(values(&page, "haproxy_server_status", &[backend, server, up]), [1.0]);
    assert_eq!(values(&page, "haproxy_server_status", &[backend, server, r#"state="MAINT""#]), [0.0]);
    assert_eq!(values(&page, "haproxy_sticktable_used", &[unanswered]), [0.0]);
    let flaps = |page: &str| values(page, "haproxy_server_check_up_down_total", &[backend, server])[0];
    let before = flaps(&page);

    // The agent hangs. The health check has not noticed yet, so the client is not checked.
    site.node.signal(Signal::SIGSTOP);
    wait::until("a client without an answer is in the table", wait::SOON, || {
        client::status(CLIENT, site.http);
        values(&scrape(stats), "haproxy_sticktable_used", &[unanswered]) == [1.0]
    });
    site.node.signal(Signal::SIGCONT);
    site.node.kill();
    site.haproxy.wait_for_agent("primary", "DOWN");
    let page = scrape(stats);
    check(&page);
    assert_eq!(values(&page, "haproxy_backend_status", &[backend, up]), [0.0]);
    assert_eq!(values(&page, "haproxy_server_status", &[backend, server, up]), [0.0]);
    assert!(flaps(&page) > before);
    site.node.restart();
    site.haproxy.wait_for_agent("primary", "UP");
    assert_eq!(values(&scrape(stats), "haproxy_backend_status", &[backend, up]), [1.0]);
}

/// The case of BanmeshConnectionErrorsInHAProxy: health checks reach an agent, but checks of clients do not. `econ` is exported as
/// haproxy_backend_connection_errors_total.
fn failed_connections_are_counted_while_health_checks_pass(binary: &Binary) {
    let (node, nobody) = (NodeConfig::new().start(), loopback_port());
    let site = WebSite::start(binary, "rate-limit", nobody, None, |config| {
        let port = format!("default-server check port {} inter", node.spoa().port());
        config.with_shipped_timeouts().replace("default-server check inter", &port)
    });
    let errors = || {
        let count = site.haproxy.stat("spoe-ip-reputation", "BACKEND", "econ").unwrap();
        count.parse::<u64>().unwrap()
    };
    let before = errors();
    assert_eq!(client::status(CLIENT, site.http), 200);
    wait::until("the errors are counted", wait::SOON, || errors() > before);
    let is_up = || site.haproxy.stat("spoe-ip-reputation", "BACKEND", "status").unwrap().starts_with("UP");
    wait::until("health checks pass", wait::SOON, is_up);
}
