//! Measures every place where bans hold, in one run: from a log line at one node to the refusal at a place that another node serves,
//! the other node's CPU time, and what the place does while that node is down.
//!
//! `make bench` runs it with a release build. `PLACES_BENCH` selects rows by their names, separated by commas. The firewall needs
//! root, and the rows of HAProxy need `.haproxy` (`make haproxy`).
//!
//! One log line leads to each ban (`ban.max_attempts` is 1). The time runs from sending the line until the first refusal. A place is
//! asked again as soon as it has answered, so half the time of one question is part of each figure. The nodes, the places, and the
//! program that asks share one machine.
#![expect(clippy::expect_used, reason = "a benchmark: what cannot go on ends it")]

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cluster_tests::backend::Backend;
use cluster_tests::client::Http;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::measure::Times;
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::netns::Host;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::{site, syslog, wait};
use serde_json::{Value, json};

/// Bans per row.
const SAMPLES: u8 = 200;
/// Questions per row for the CPU time of one.
const QUESTIONS: u32 = 20_000;
/// Bans per row for the CPU time of a change.
const CHANGES: u32 = 5_000;
/// The time between two packets to the firewall. A program that sent them without a pause would take the processor from the nodes, which
/// do not have to answer it.
const PROBE: Duration = Duration::from_micros(100);
/// The maximum time to wait for a ban.
const PATIENCE: Duration = Duration::from_secs(10);
const KEY: &str = "bm_places-lnmXbvjKxJmVh1Zq3bGg5p";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn main() {
    let chosen = std::env::var("PLACES_BENCH").unwrap_or_default();
    println!(
        "place                  samples      p50      p99      max   ms   µs CPU/question   µs CPU/change   while the node is down"
    );
    let Some(idle) = cost_of_changes(|config| config, |_| Box::new(())) else { return };
    for row in rows() {
        if chosen.is_empty() || chosen.split(',').any(|name| name == row.name) {
            measure(&row, idle);
        }
    }
    if chosen.is_empty() || chosen.split(',').any(|name| name == "firewall") {
        firewall();
    }
}

/// A place: how a node serves it, and how to ask it.
struct Row {
    name: &'static str,
    configure: Box<dyn Fn(NodeConfig) -> NodeConfig>,
    /// Starts what asks the node, if anything does, and returns how to ask. `None` if a program is missing.
    start: fn(&Node, SocketAddr) -> Option<Box<dyn Asks>>,
    /// Whether the place asks the node each time.
    asks_node: bool,
    /// The address that the node listens on for this place.
    listen: SocketAddr,
}

/// Something that can be asked whether it refuses an address.
trait Asks {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool>;
}

fn rows() -> Vec<Row> {
    type Start = fn(&Node, SocketAddr) -> Option<Box<dyn Asks>>;
    type Configure = fn(NodeConfig, SocketAddr) -> NodeConfig;
    let row = |name, asks_node, configure: Configure, start: Start| {
        let listen = SocketAddr::new(LOOPBACK, free_port());
        Row { name, configure: Box::new(move |config| configure(config, listen)), start, asks_node, listen }
    };
    vec![
        row("spoe", true, |config, _| config, |node, _| HaProxyAsks::spoe(node)),
        row(
            "haproxy-map",
            false,
            |config, listen| {
                config
                    .set("haproxy.runtime", vec![listen.to_string()])
                    .set("haproxy.map", "#0")
                    .set("haproxy.verify_interval", "1h")
            },
            |_, listen| HaProxyAsks::map(listen),
        ),
        row(
            "stick-table",
            false,
            |config, listen| config.set("haproxy.peers.listen", listen.to_string()),
            |_, listen| HaProxyAsks::table(listen),
        ),
        row(
            "verdict",
            true,
            |config, listen| config.set("verdict.enabled", true).set("verdict.address", listen.to_string()),
            |_, listen| {
                Some(Box::new(Web::new(listen, |web, address| {
                    let answer = web.request("GET", "/", &[&format!("X-Forwarded-For: {address}")], "")?;
                    Ok(answer.status == 403)
                })))
            },
        ),
        row(
            "crowdsec",
            true,
            |config, listen| keyed(config, "crowdsec", listen),
            |_, listen| {
                Some(Box::new(Web::new(listen, |web, address| {
                    let path = format!("/v1/decisions?ip={address}");
                    let answer = web.request("GET", &path, &[&format!("X-Api-Key: {KEY}")], "")?;
                    Ok(answer.body.contains("\"ban\""))
                })))
            },
        ),
        row("lists", true, |config, listen| keyed(config, "lists", listen), |_, listen| Some(Box::new(List(listen)))),
        row(
            "dnsbl",
            true,
            |config, listen| config.set("dnsbl.enabled", true).set("dnsbl.address", listen.to_string()),
            |_, listen| Some(Box::new(Dns::new(listen))),
        ),
        row(
            "policy",
            true,
            |config, listen| config.set("policy.enabled", true).set("policy.address", listen.to_string()),
            |_, listen| Some(Box::new(Policy::new(listen))),
        ),
        row(
            "auth_policy",
            true,
            |config, listen| config.set("auth_policy.enabled", true).set("auth_policy.address", listen.to_string()),
            |_, listen| {
                Some(Box::new(Web::new(listen, |web, address| {
                    let body =
                        json!({"login": "anna", "pwhash": "", "remote": address.to_string(), "protocol": "imap"})
                            .to_string();
                    let length = format!("Content-Length: {}", body.len());
                    let headers = ["Content-Type: application/json", length.as_str()];
                    let answer = web.request("POST", "/?command=allow", &headers, &body)?;
                    let answer: Value = serde_json::from_str(&answer.body).map_err(io::Error::other)?;
                    Ok(answer["status"] == -1)
                })))
            },
        ),
    ]
}

/// The section of a listener whose clients have keys.
fn keyed(config: NodeConfig, section: &str, listen: SocketAddr) -> NodeConfig {
    config
        .set(&format!("{section}.enabled"), true)
        .set(&format!("{section}.address"), listen.ip().to_string())
        .set(&format!("{section}.port"), listen.port())
        .set(&format!("{section}.keys"), json!({ "bench": { "key": KEY } }))
}

/// Two nodes in a cluster. The second serves the place.
fn pair(configure: &dyn Fn(NodeConfig) -> NodeConfig) -> Vec<Node> {
    let nodes: Vec<Node> = NodeConfig::cluster(2)
        .into_iter()
        .enumerate()
        .map(|(index, config)| {
            let config = config.set("ban.max_attempts", 1).set("ban.initial_ban_time", "1h").set("log.level", "error");
            if index == 1 { configure(config).start() } else { config.start() }
        })
        .collect();
    wait::until("the cluster is complete", wait::SOON, || {
        nodes.iter().all(|node| node.admin().ready_members().is_ok_and(|members| members.len() == 2))
    });
    nodes
}

/// The address that sample `number` bans. HAProxy sees it as the source of a connection, so it is a loopback address.
fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, 1, number)
}

fn measure(row: &Row, idle: Duration) {
    let mut nodes = pair(&*row.configure);
    let Some(mut place) = (row.start)(&nodes[1], row.listen) else {
        println!("{:<22} skipped", row.name);
        return;
    };
    wait::until("the place answers", PATIENCE, || place.refuses(client(250)).is_ok());
    let times = time_of_bans(&nodes[0], |address| place.refuses(address).expect("an answer"));
    let question = if row.asks_node {
        let begun = (Instant::now(), cpu(&mut nodes[1]));
        for _ in 0..QUESTIONS {
            assert!(!place.refuses(client(251)).expect("an answer"), "nobody banned it");
        }
        let used = cpu(&mut nodes[1]).saturating_sub(begun.1);
        format!("{:.1}", used.as_secs_f64() * 1e6 / f64::from(QUESTIONS))
    } else {
        "not asked".to_owned()
    };
    nodes[1].kill();
    let down = match place.refuses(client(1)) {
        Ok(true) => "refuses",
        Ok(false) => "lets in",
        Err(_) => "no answer",
    };
    drop((place, nodes));
    let change = match cost_of_changes(&*row.configure, |node| Box::new((row.start)(node, row.listen))) {
        Some(used) => format!("{:.1}", used.saturating_sub(idle).as_secs_f64() * 1e6 / f64::from(CHANGES)),
        None => "-".to_owned(),
    };
    println!("{:<22} {:>7} {} {question:>20} {change:>15}   {down}", row.name, times.len(), times.columns());
}

/// The times from a line at `author` until `refuses` says so.
fn time_of_bans(author: &Node, mut refuses: impl FnMut(Ipv4Addr) -> bool) -> Times {
    let socket = UdpSocket::bind((LOOPBACK, 0)).expect("bind");
    let mut times = Times::default();
    for number in 1..=SAMPLES {
        let banned = client(number);
        assert!(!refuses(banned), "{banned} is not banned yet");
        let begun = Instant::now();
        socket.send_to(syslog::dovecot_failure(banned.into()).as_bytes(), author.syslog()).expect("send");
        while !refuses(banned) {
            assert!(begun.elapsed() < PATIENCE, "{banned} is not refused");
        }
        times.extend([begun.elapsed()]);
    }
    times
}

/// The CPU time of a node so far, by the kernel's nanoseconds of each thread.
fn cpu(node: &mut Node) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{}/task", node.process().id())).expect("list the threads");
    let spent = |thread: std::fs::DirEntry| {
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(spent).sum())
}

/// The second node's CPU time for bans that the first one makes. `start` starts what follows the second node.
fn cost_of_changes<T: ?Sized>(
    configure: impl Fn(NodeConfig) -> NodeConfig,
    start: impl FnOnce(&Node) -> Box<T>,
) -> Option<Duration> {
    let mut nodes = pair(&configure);
    let _place = start(&nodes[1]);
    let before = cpu(&mut nodes[1]);
    nodes[0].admin().ban_many((0..CHANGES).map(address)).expect("bans");
    wait::until("both nodes hold all", PATIENCE, || {
        nodes[1].admin().digest().is_ok_and(|(_, entries)| entries >= u64::from(CHANGES))
    });
    std::thread::sleep(Duration::from_secs(2));
    Some(cpu(&mut nodes[1]).saturating_sub(before))
}

/// Requests at a real HAProxy, over a connection from the address in question.
struct HaProxyAsks {
    http: SocketAddr,
    connection: Option<(Ipv4Addr, Http)>,
    _haproxy: HaProxy,
    _servers: Vec<Backend>,
}

impl HaProxyAsks {
    fn spoe(node: &Node) -> Option<Box<dyn Asks>> {
        let (binary, http, servers) =
            (Binary::find("3.4")?, loopback_port(), vec![Backend::http(), Backend::mail(site::GREETING)]);
        let config = Config::shipped("haproxy.cfg")
            .with_shipped_timeouts()
            .listen(80, &http.to_string())
            .listen(143, &loopback_port().to_string())
            .listen(25, &loopback_port().to_string())
            .replace("127.0.0.1:8404", &loopback_port().to_string())
            .server(8080, servers[0].address)
            .server(8081, servers[0].address)
            .server(10143, servers[1].address)
            .server(10144, servers[1].address)
            .server(10025, servers[1].address)
            .server(10026, servers[1].address)
            .agents(node.spoa(), None);
        let haproxy = binary.start(config);
        haproxy.wait_for_agent("primary", "UP");
        Some(Box::new(Self { http, connection: None, _haproxy: haproxy, _servers: servers }))
    }

    fn map(socket: SocketAddr) -> Option<Box<dyn Asks>> {
        let (binary, http, servers) =
            (Binary::find("3.4")?, loopback_port(), vec![Backend::http(), Backend::mail(site::GREETING)]);
        let config = Config::shipped("recipes/mirror.cfg")
            .listen(80, &http.to_string())
            .listen(143, &loopback_port().to_string())
            .server(8080, servers[0].address)
            .server(10143, servers[1].address)
            .replace("    stats timeout", &format!("    stats socket {socket} level admin\n    stats timeout"));
        Some(Box::new(Self { http, connection: None, _haproxy: binary.start(config), _servers: servers }))
    }

    fn table(peer: SocketAddr) -> Option<Box<dyn Asks>> {
        let (binary, http) = (Binary::find("3.4")?, loopback_port());
        let rules = format!("{}\n    http-request return status 200", site::BANNED_IN_TABLE);
        let tables = "table bans type ipv6 size 300k expire 24d store gpt0";
        let haproxy = binary.start(site::peers_config(peer, http, tables, &rules));
        // Its first session begins when it has found the node.
        wait::until("HAProxy has all bans", wait::SOON, || {
            haproxy.command("show table mesh/bans key ff00::1").is_ok_and(|entry| entry.contains("gpt0="))
        });
        Some(Box::new(Self { http, connection: None, _haproxy: haproxy, _servers: Vec::new() }))
    }
}

impl Asks for HaProxyAsks {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        let mut connection = match self.connection.take() {
            Some((of, connection)) if of == address => connection,
            _ => Http::connect(address.into(), self.http)?,
        };
        let refused = connection.get(&[])?.status == 403;
        self.connection = Some((address, connection));
        Ok(refused)
    }
}

/// Requests over one connection to a listener that speaks HTTP.
struct Web<F> {
    listen: SocketAddr,
    connection: Option<Http>,
    ask: F,
}

impl<F: FnMut(&mut Http, Ipv4Addr) -> io::Result<bool>> Web<F> {
    fn new(listen: SocketAddr, ask: F) -> Self {
        Self { listen, connection: None, ask }
    }
}

impl<F: FnMut(&mut Http, Ipv4Addr) -> io::Result<bool>> Asks for Web<F> {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Http::connect(LOOPBACK, self.listen)?,
        };
        let answer = (self.ask)(&mut connection, address)?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// Fetches the list of IPv4 bans, each time over a new connection.
struct List(SocketAddr);

impl Asks for List {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        let mut stream = TcpStream::connect(self.0)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET /{KEY}/ipv4.txt HTTP/1.0\r\n\r\n").as_bytes())?;
        let (mut answer, address) = (String::new(), address.to_string());
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().any(|line| line == address))
    }
}

/// Queries to the block list over UDP.
struct Dns {
    socket: UdpSocket,
}

impl Dns {
    fn new(listen: SocketAddr) -> Self {
        let socket = UdpSocket::bind((LOOPBACK, 0)).expect("bind");
        socket.connect(listen).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        Self { socket }
    }
}

impl Asks for Dns {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        let [a, b, c, d] = address.octets();
        let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in format!("{d}.{c}.{b}.{a}.bl.banmesh.internal").split('.') {
            query.push(u8::try_from(label.len()).unwrap_or_default());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        self.socket.send(&query)?;
        let mut answer = [0; 512];
        let length = self.socket.recv(&mut answer)?;
        // The number of answers.
        Ok(length > 12 && answer[6..8] != [0, 0])
    }
}

/// Requests of Postfix over one connection.
struct Policy {
    listen: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Policy {
    const fn new(listen: SocketAddr) -> Self {
        Self { listen, connection: None }
    }
}

impl Asks for Policy {
    fn refuses(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.listen)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        let request = format!(
            "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address={address}\n\n"
        );
        connection.get_mut().write_all(request.as_bytes())?;
        let (mut action, mut end) = (String::new(), String::new());
        if connection.read_line(&mut action)? == 0 || connection.read_line(&mut end)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.connection = Some(connection);
        Ok(action != "action=DUNNO\n")
    }
}

/// The kernel's firewall: packets from a third host to the second node's.
fn firewall() {
    let configure = |index: usize, config: NodeConfig| {
        let config = config.set("ban.max_attempts", 1).set("ban.initial_ban_time", "1h").set("log.level", "error");
        if index == 1 { config.set("firewall.enabled", true) } else { config }
    };
    let Some(mut mesh) = Mesh::start_with(2, configure) else { return };
    let index = mesh.add_host();
    let clients = mesh.hosts[index].clone();
    // Every address of this network is one of the host of the clients.
    ip(&clients, "route add local 10.77.1.0/24 dev lo");
    ip(&mesh.hosts[1], &format!("route add 10.77.1.0/24 via {}", clients.address));
    wait::until("the firewall has all bans", PATIENCE, || {
        mesh.nodes[1].admin().metric("banmesh_follower_current{place=\"firewall\"}").is_ok_and(|current| current >= 1.0)
    });
    let to = SocketAddr::new(mesh.hosts[1].address, 5000);
    let receiver = mesh.hosts[1].enter(|| UdpSocket::bind(to).expect("bind"));
    let author = mesh.nodes[0].on_its_host(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    let mut times = Times::default();
    for number in 1..=SAMPLES {
        let source = Ipv4Addr::new(10, 77, 1, number);
        let sender = clients.enter(|| UdpSocket::bind((source, 0)).expect("bind"));
        assert!(passes(&sender, &receiver, to, Duration::from_secs(1)), "{source} is not banned yet");
        let begun = Instant::now();
        author.send_to(syslog::dovecot_failure(source.into()).as_bytes(), mesh.nodes[0].syslog()).expect("send");
        // A packet is lost if it has not arrived after so long. The time of the first lost one counts.
        while {
            let sent = Instant::now();
            let passed = passes(&sender, &receiver, to, Duration::from_millis(5));
            if !passed {
                times.extend([sent.duration_since(begun)]);
            }
            passed
        } {
            assert!(begun.elapsed() < PATIENCE, "{source} is not dropped");
            std::thread::sleep(PROBE);
        }
    }
    mesh.nodes[1].kill();
    let sender = clients.enter(|| UdpSocket::bind((Ipv4Addr::new(10, 77, 1, 1), 0)).expect("bind"));
    let down = if passes(&sender, &receiver, to, Duration::from_millis(200)) { "lets in" } else { "refuses" };
    mesh.nodes[1].restart();
    let used = |mesh: &mut Mesh| {
        let before = cpu(&mut mesh.nodes[1]);
        mesh.nodes[0].admin().ban_many((0..CHANGES).map(address)).expect("bans");
        wait::until("the kernel has all", PATIENCE, || {
            let entries = mesh.nodes[1].admin().metric("banmesh_follower_entries{place=\"firewall\"}");
            entries.is_ok_and(|entries| entries >= f64::from(CHANGES))
        });
        std::thread::sleep(Duration::from_secs(2));
        cpu(&mut mesh.nodes[1]).saturating_sub(before)
    };
    let change = used(&mut mesh).as_secs_f64() * 1e6 / f64::from(CHANGES);
    println!(
        "{:<22} {:>7} {} {:>20} {change:>15.1}   {down}",
        "firewall (with gossip)",
        times.len(),
        times.columns(),
        "not asked"
    );
}

/// Whether a packet that is sent now arrives.
fn passes(sender: &UdpSocket, receiver: &UdpSocket, to: SocketAddr, limit: Duration) -> bool {
    let mut buffer = [0; 8];
    receiver.set_nonblocking(true).expect("a mode");
    while receiver.recv(&mut buffer).is_ok() {}
    receiver.set_nonblocking(false).expect("a mode");
    receiver.set_read_timeout(Some(limit)).expect("a timeout");
    // A refusal of an earlier packet would be reported here.
    let _ = sender.send_to(&[1], to);
    receiver.recv(&mut buffer).is_ok()
}

fn ip(host: &Host, arguments: &str) {
    let output = std::process::Command::new("ip")
        .args(["-n", &host.namespace])
        .args(arguments.split(' '))
        .output()
        .expect("run ip");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}
