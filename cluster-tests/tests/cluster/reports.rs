//! Offences that HAProxy itself reports (deploy/haproxy/recipes/report-offence.cfg): they lead to a ban on every node.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::WebSite;
use cluster_tests::{client, wait, with_every_haproxy};

const GUESSER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const FAST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 68));
const SCANNER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 69));

with_every_haproxy!(
    refused_logins_lead_to_a_ban_on_every_node,
    clients_over_the_rate_limit_are_banned_immediately,
    probes_are_banned_with_the_reason_of_the_rule,
    reports_from_other_addresses_are_ignored,
    a_hanging_agent_delays_no_rule,
    a_check_and_a_report_share_a_frame,
);

/// A web server that answers every request with 401.
fn refusing_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || refuse_all(&stream));
        }
    });
    address
}

fn refuse_all(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        if line == "\r\n" {
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")?;
        }
        line.clear();
    }
    Ok(())
}

/// Makes the recipe's 429 show the outcome of the report.
const TELLING: (&str, &str) = ("deny_status 429 if", "deny_status 429 hdr X-Reported %[var(txn.report.reported)] if");

fn get(from: IpAddr, to: SocketAddr, headers: &[&str]) -> u16 {
    client::get(from, to, headers).unwrap().status
}

const PASSWORD: &str = "Authorization: Basic YWxpY2U6d3Jvbmc=";

/// Accepts reports from this host, as HAProxy is on it.
fn reporting(config: NodeConfig) -> NodeConfig {
    config.set("spoa.reports_from", vec!["127.0.0.0/8"])
}

fn site(binary: &Binary, node: &Node, change: impl FnOnce(Config) -> Config) -> WebSite {
    WebSite::start(binary, "report-offence", node.spoa(), None, change)
}

/// The filter and the reason of the node's ban of an address.
fn cause(node: &Node, address: IpAddr) -> (String, String) {
    let entry = node.admin().get(&format!("/bans/{address}")).unwrap();
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    (text("by"), text("reason"))
}

fn refused_logins_lead_to_a_ban_on_every_node(binary: &Binary) {
    let mut nodes = NodeConfig::cluster(2).into_iter().map(|config| reporting(config).start());
    let (first, second) = (nodes.next().unwrap(), nodes.next().unwrap());
    let server = refusing_server();
    let behind = |config: Config| config.replace("127.0.0.1:8080 check", &server.to_string());
    let http = loopback_port();
    let config =
        behind(Config::shipped("recipes/report-offence.cfg")).listen(80, &http.to_string()).agents(first.spoa(), None);
    let haproxy = binary.start(config);
    haproxy.wait_for_agent("primary", "UP");
    // The challenge that every browser gets is not an offence.
    for _ in 0..10 {
        assert_eq!(get(CLIENT, http, &[]), 401);
    }
    for _ in 0..4 {
        assert_eq!(get(GUESSER, http, &[PASSWORD]), 401);
    }
    assert!(!first.is_banned(GUESSER).unwrap(), "four are not enough");
    assert_eq!(get(GUESSER, http, &[PASSWORD]), 401);
    wait::until("the fifth refused login bans", wait::SOON, || get(GUESSER, http, &[]) == 403);
    second.wait_for(GUESSER, true);
    assert_eq!(get(CLIENT, http, &[]), 401);
    assert!(!second.is_banned(CLIENT).unwrap());
    assert_eq!(cause(&second, GUESSER), ("haproxy".to_owned(), "login".to_owned()));
    let metrics = first.admin().request("GET", "/metrics", None).unwrap();
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("banmesh_spoa_reports_total{result=\"taken\"} 5"), "{metrics}");
}

fn clients_over_the_rate_limit_are_banned_immediately(binary: &Binary) {
    let node = reporting(NodeConfig::new()).start();
    let site = site(binary, &node, |config| config.replace("gt 100", "gt 20").replace(TELLING.0, TELLING.1));
    let mut fast = client::Http::connect(FAST, site.http).unwrap();
    for _ in 0..20 {
        assert_eq!(fast.get(&[]).unwrap().status, 200);
    }
    let refused = fast.get(&[]).unwrap();
    assert_eq!((refused.status, refused.header("x-reported")), (429, Some("1")));
    wait::until("one report is enough", wait::SOON, || fast.get(&[]).unwrap().status == 403);
    assert_eq!(cause(&node, FAST), ("haproxy".to_owned(), "too-fast".to_owned()));
    assert_eq!(get(CLIENT, site.http, &[]), 200);
}

fn probes_are_banned_with_the_reason_of_the_rule(binary: &Binary) {
    let node = reporting(NodeConfig::new()).start();
    // The harness requests only `/`.
    let site = site(binary, &node, |config| {
        config
            .replace("path_beg -i /.env /.git/ /wp-login.php /phpmyadmin", "req.hdr(x-probe) -m found")
            .replace("set-var(txn.offence) str(probe)", "set-var(txn.offence) req.hdr(x-probe)")
    });
    assert_eq!(get(SCANNER, site.http, &["X-Probe: first"]), 404);
    assert!(!node.is_banned(SCANNER).unwrap(), "three of five");
    let long = format!("X-Probe: {}", "x".repeat(500));
    assert_eq!(get(SCANNER, site.http, &[&long]), 404);
    node.wait_for(SCANNER, true);
    assert_eq!(get(SCANNER, site.http, &[]), 403);
    assert_eq!(cause(&node, SCANNER), ("haproxy".to_owned(), "x".repeat(64)));
    assert_eq!(get(CLIENT, site.http, &[]), 200);
}

fn reports_from_other_addresses_are_ignored(binary: &Binary) {
    let node = NodeConfig::new().set("spoa.reports_from", vec!["192.0.2.10"]).start();
    let site = site(binary, &node, |config| config.replace("gt 100", "gt 5").replace(TELLING.0, TELLING.1));
    for _ in 0..30 {
        get(FAST, site.http, &[]);
    }
    assert!(!node.is_banned(FAST).unwrap());
    let refused = client::get(FAST, site.http, &[]).unwrap();
    assert_eq!((refused.status, refused.header("x-reported")), (429, Some("0")), "HAProxy's own rule still holds");
    assert!(node.log().contains("spoa.reports_from"), "{}", node.log());
}

fn a_hanging_agent_delays_no_rule(binary: &Binary) {
    let node = reporting(NodeConfig::new()).start();
    let site = site(binary, &node, |config| config.with_shipped_timeouts().replace("gt 100", "gt 5"));
    for _ in 0..5 {
        assert_eq!(get(FAST, site.http, &[]), 200);
    }
    node.signal(nix::sys::signal::Signal::SIGSTOP);
    assert_eq!(get(FAST, site.http, &[]), 429);
    node.signal(nix::sys::signal::Signal::SIGCONT);
}

fn a_check_and_a_report_share_a_frame(binary: &Binary) {
    let node = reporting(NodeConfig::new()).start();
    let both =
        "\nspoe-message report-offence-every-request\n    args src=src attempts=int(3)\n    event on-client-session\n";
    let site = site(binary, &node, |config| {
        config
            .replace_in(
                "spoe-ip-reputation.conf",
                "    messages check-ip\n",
                "    messages check-ip report-offence-every-request\n",
            )
            .replace_in("spoe-ip-reputation.conf", "\n# The second try.", &format!("{both}\n# The second try."))
    });
    assert_eq!(get(FAST, site.http, &[]), 200, "three of five");
    assert_eq!(get(FAST, site.http, &[]), 200, "six, and the answer was given before");
    node.wait_for(FAST, true);
    assert_eq!(get(FAST, site.http, &[]), 403);
    assert_eq!(get(CLIENT, site.http, &[]), 200);
    assert_eq!(cause(&node, FAST), ("haproxy".to_owned(), "reported".to_owned()));
}
