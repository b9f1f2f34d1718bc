//! A node as a peer of real HAProxy: bans in a stick-table, and limits that hold over all nodes.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use banmesh_peers::table::SERVER_KEY;
use banmesh_peers::{CellKind, Definition, Event, KeyKind, Rate, Session, Value};
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::{BANNED_IN_TABLE, peers_config};
use cluster_tests::{client, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    bans_hold_in_the_table_and_end_on_time,
    haproxy_refuses_everybody_until_it_has_all_bans,
    a_ban_on_one_node_is_refused_by_the_table_of_another,
    an_unban_reaches_a_haproxy_that_was_taught_the_ban_by_an_old_process,
    values_of_every_type_come_back_as_they_were_sent,
    counters_survive_a_restart_of_haproxy,
);

/// A HAProxy with a peers section, and its addresses.
struct Edge {
    haproxy: HaProxy,
    http: SocketAddr,
}

/// The tables of the tests. The period is long, so that a slow machine counts the same.
const TABLES: &str = "table bans type ipv6 size 300k expire 24d store gpt0
    table req type ipv6 size 100k expire 1h store http_req_rate(1h),http_req_cnt,conn_cur
    table req.others type ipv6 size 100k expire 1h store http_req_rate(1h),http_req_cnt,gpc0";

fn config(banmesh: SocketAddr, http: SocketAddr, tables: &str, rules: &str) -> Config {
    peers_config(banmesh, http, tables, &format!("{rules}\n    http-request return status 200"))
}

const LIVE: &str = "acl live str(ff00::1),table_gpt0(mesh/bans),sub(txn.now) -m int gt 0
    http-request deny deny_status 503 if !live";
const LIMITED: &str = "http-request track-sc0 src table mesh/req
    http-request set-var(txn.others) src,table_http_req_rate(mesh/req.others)
    http-request deny deny_status 429 if { sc_http_req_rate(0),add(txn.others) gt 100 }";

impl Edge {
    fn start(binary: &Binary, banmesh: SocketAddr, rules: &str) -> Self {
        let http = loopback_port();
        Self { haproxy: binary.start(config(banmesh, http, TABLES, rules)), http }
    }

    fn status(&self, from: IpAddr) -> u16 {
        client::status(from, self.http)
    }

    /// A value of an entry, as HAProxy shows it.
    fn entry(&self, table: &str, key: &str, column: &str) -> Option<u64> {
        let answer = self.haproxy.command(&format!("show table {table} key {key}")).ok()?;
        let value = answer.split_whitespace().find_map(|word| word.strip_prefix(&format!("{column}=")))?;
        value.parse().ok()
    }
}

/// A node that is a peer, and the address where HAProxy reaches it.
fn node() -> (NodeConfig, SocketAddr) {
    let listen = loopback_port();
    (NodeConfig::new().set("haproxy.peers.listen", listen.to_string()), listen)
}

fn in_step(node: &Node, name: &str) {
    wait::until("HAProxy has all bans", wait::SOON, || {
        let status = node.admin().get("/status").unwrap_or_default();
        let places = status["places"].as_array().cloned().unwrap_or_default();
        places.iter().any(|place| place["name"] == format!("haproxy peer {name}") && place["state"] == "current")
    });
}

fn becomes(edge: &Edge, from: IpAddr, status: u16) {
    wait::until(&format!("{from} gets {status}"), wait::SOON, || edge.status(from) == status);
}

fn bans_hold_in_the_table_and_end_on_time(binary: &Binary) {
    let (config, listen) = node();
    let node = config.start();
    wait::until("the problem", wait::SOON, || node.cli(&["status"]).contains("no HAProxy is connected"));
    let edge = Edge::start(binary, listen, BANNED_IN_TABLE);
    in_step(&node, "lb1");
    assert_eq!(edge.status(CLIENT), 200);
    node.admin().ban(CLIENT).unwrap();
    becomes(&edge, CLIENT, 403);
    assert_eq!(edge.status(OTHER), 200);
    node.admin().unban(CLIENT).unwrap();
    becomes(&edge, CLIENT, 200);
    // A ban ends without the node.
    node.admin().ban_for(OTHER, "3s").unwrap();
    becomes(&edge, OTHER, 403);
    let mut node = node;
    node.kill();
    becomes(&edge, OTHER, 200);
}

fn haproxy_refuses_everybody_until_it_has_all_bans(binary: &Binary) {
    let (config, listen) = node();
    let edge = Edge::start(binary, listen, &format!("{LIVE}\n    {BANNED_IN_TABLE}"));
    assert_eq!(edge.status(CLIENT), 503, "banmesh has never been there");
    let node = config.start();
    node.admin().ban(OTHER).unwrap();
    becomes(&edge, CLIENT, 200);
    // HAProxy may have connected before the ban, which then follows as a change.
    becomes(&edge, OTHER, 403);
    // A new process has no entries: it never lets a banned client through.
    drop(edge);
    let edge = Edge::start(binary, listen, &format!("{LIVE}\n    {BANNED_IN_TABLE}"));
    wait::until("the table", wait::SOON, || {
        let status = edge.status(OTHER);
        assert_ne!(status, 200);
        status == 403
    });
    assert_eq!(edge.status(CLIENT), 200);
}

fn a_ban_on_one_node_is_refused_by_the_table_of_another(binary: &Binary) {
    let peers: Vec<SocketAddr> = (0..2).map(|_| loopback_port()).collect();
    let configs = NodeConfig::cluster(2).into_iter().zip(&peers);
    let nodes: Vec<Node> =
        configs.map(|(config, listen)| config.set("haproxy.peers.listen", listen.to_string()).start()).collect();
    let edges: Vec<Edge> = peers.iter().map(|listen| Edge::start(binary, *listen, BANNED_IN_TABLE)).collect();
    in_step(&nodes[1], "lb1");
    nodes[0].admin().ban(CLIENT).unwrap();
    becomes(&edges[1], CLIENT, 403);
    becomes(&edges[0], CLIENT, 403);
}

fn an_unban_reaches_a_haproxy_that_was_taught_the_ban_by_an_old_process(binary: &Binary) {
    let (config, listen) = node();
    let mut node = config.start();
    let edge = Edge::start(binary, listen, BANNED_IN_TABLE);
    in_step(&node, "lb1");
    node.admin().ban(CLIENT).unwrap();
    becomes(&edge, CLIENT, 403);
    // HAProxy keeps the entry while the node is away, and a node without its journal does not know that the ban was there.
    let data = node.data_dir();
    node.stop();
    std::fs::remove_dir_all(data).unwrap();
    node.restart();
    becomes(&edge, CLIENT, 200);
}

/// Tables with every type of column and key that all versions have.
const EVERY_TYPE: [(&str, &str); 6] = [
    (
        "numbers",
        "type ipv6 size 1k expire 1h store gpt0,gpc0,gpc1,conn_cnt,sess_cnt,http_req_cnt,http_err_cnt,http_fail_cnt,bytes_in_cnt,bytes_out_cnt",
    ),
    (
        "rates",
        "type ip size 1k expire 1h store gpc0_rate(1h),gpc1_rate(1h),conn_rate(1h),sess_rate(1h),http_req_rate(1h),http_err_rate(1h),http_fail_rate(1h),bytes_in_rate(1h),bytes_out_rate(1h)",
    ),
    ("arrays", "type integer size 1k expire 1h store gpt(3),gpc(4),gpc_rate(2,1h)"),
    ("texts", "type string len 32 size 1k expire 1h store gpc0,server_id"),
    ("bytes", "type binary len 20 size 1k expire 1h store gpc0,http_req_rate(1h)"),
    ("mapped", "type ipv6 size 1k expire 1h store gpc0"),
];

/// A peer that pushes one entry into every table, asks for all entries in another session, and compares.
fn values_of_every_type_come_back_as_they_were_sent(binary: &Binary) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tables: Vec<String> = EVERY_TYPE.iter().map(|(name, layout)| format!("table {name} {layout}")).collect();
    let http = loopback_port();
    let _haproxy = binary.start(config(listener.local_addr().unwrap(), http, &tables.join("\n    "), ""));
    let mut pushed: Vec<(String, Vec<u8>, Vec<Value>)> = Vec::new();
    // In the first session everything is pushed and acknowledged.
    talk(&listener, |session, _, now, output| {
        if pushed.is_empty() && session.tables().count() == EVERY_TYPE.len() {
            let all: Vec<Definition> = session.tables().cloned().collect();
            for table in all {
                let (key, values) = sample(&table);
                assert!(session.push(table.id, Some(600_000), &key, &values, now, output));
                pushed.push((table.short_name().to_owned(), key, values));
            }
        }
        !pushed.is_empty() && session.room() == banmesh_peers::session::WINDOW
    });
    // In the second, HAProxy sends what it has.
    let mut taught: Vec<(String, Vec<u8>, Vec<Value>)> = Vec::new();
    talk(&listener, |_, events, _, _| {
        taught.append(events);
        taught.len() >= pushed.len()
    });
    for (name, key, values) in &pushed {
        let (_, _, back) = taught
            .iter()
            .find(|(other, other_key, _)| other == name && other_key == key)
            .unwrap_or_else(|| panic!("{name}: the entry did not come back: {taught:?}"));
        for (sent, back) in values.iter().zip(back) {
            match (sent, back) {
                (Value::Rate(sent), Value::Rate(back)) => {
                    assert_eq!((sent.curr, sent.prev), (back.curr, back.prev), "{name}");
                    // The lowest bit is lost, and time passes.
                    assert!(back.age + 1 >= sent.age && back.age < sent.age + 60_000, "{name}: {sent:?} {back:?}");
                }
                _ => assert_eq!(sent, back, "{name}"),
            }
        }
    }
}

/// An entry for a table, with a value of its own in every cell.
fn sample(table: &Definition) -> (Vec<u8>, Vec<Value>) {
    let key = match table.key {
        KeyKind::Integer => 77u32.to_be_bytes().to_vec(),
        KeyKind::Ipv4 => vec![192, 0, 2, 1],
        KeyKind::Ipv6 => Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets().to_vec(),
        KeyKind::Text(_) => b"an API key of a client".to_vec(),
        KeyKind::Binary(length) => (1..=u8::try_from(length).unwrap()).collect(),
    };
    let value = |(at, cell): (u64, &banmesh_peers::Cell)| match cell.kind {
        CellKind::Server => Value::Server(0),
        // `conn_cur` is not learned, and `server_id` names a server of the configuration.
        CellKind::Number if matches!(cell.bit, 0 | 6) => Value::Number(0),
        CellKind::Number if (13..17).contains(&cell.bit) => Value::Number((1 << 40) + at),
        CellKind::Number => Value::Number(300 + at),
        CellKind::Rate(_) => Value::Rate(Rate { age: 120_000, curr: 1000 + at, prev: 5 + at }),
    };
    (key, (0..).zip(&table.cells).filter(|(_, cell)| cell.bit != SERVER_KEY).map(value).collect())
}

/// Accepts one session of HAProxy and runs it until `step` returns true. `step` is called after every read.
fn talk(
    listener: &TcpListener,
    mut step: impl FnMut(&mut Session, &mut Vec<(String, Vec<u8>, Vec<Value>)>, Instant, &mut Vec<u8>) -> bool,
) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut session, end) = (Session::new(Instant::now()), Instant::now() + wait::SOON);
    let (mut input, mut output, mut events) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap_or(0);
        input.extend_from_slice(&buffer[..count]);
        let now = Instant::now();
        let read = session.receive(&input, now, &mut output, &mut |event| {
            if let Event::Updated { table, update } = event {
                events.push((table.short_name().to_owned(), update.key.to_vec(), update.values.to_vec()));
            }
        });
        input.drain(..read.unwrap());
        session.tick(now, &mut output).unwrap();
        let done = step(&mut session, &mut events, now, &mut output);
        stream.write_all(&output).unwrap();
        output.clear();
        if done {
            return;
        }
        assert!(now < end, "HAProxy did not do what was expected in time");
    }
}

fn counters_survive_a_restart_of_haproxy(binary: &Binary) {
    let (config, listen) = node();
    let node = config.start();
    let edge = Edge::start(binary, listen, LIMITED);
    in_step(&node, "lb1");
    for _ in 0..7 {
        assert_eq!(edge.status(CLIENT), 200);
    }
    let key = "::ffff:127.0.0.66";
    wait::until("the counters arrive", wait::SOON, || {
        node.admin().metric("banmesh_peers_keys").is_ok_and(|keys| keys >= 1.0)
    });
    drop(edge);
    let edge = Edge::start(binary, listen, LIMITED);
    wait::until("the counters come back", wait::SOON, || edge.entry("mesh/req", key, "http_req_cnt") == Some(7));
    assert_eq!(edge.status(CLIENT), 200);
    assert_eq!(edge.entry("mesh/req", key, "http_req_cnt"), Some(8));
    assert_eq!(edge.entry("mesh/req", key, "http_req_rate(3600000)"), Some(8));
}

/// Three nodes, each with a HAProxy of another version.
fn three_nodes(period: &str) -> Option<(Vec<Node>, Vec<Edge>)> {
    let binaries = Binary::all();
    if binaries.is_empty() {
        return None;
    }
    let peers: Vec<SocketAddr> = (0..3).map(|_| loopback_port()).collect();
    let configs = NodeConfig::cluster(3).into_iter().zip(&peers);
    let nodes: Vec<Node> =
        configs.map(|(config, listen)| config.set("haproxy.peers.listen", listen.to_string()).start()).collect();
    let edge = |(at, listen): (usize, &SocketAddr)| {
        let http = loopback_port();
        let config = config(*listen, http, &TABLES.replace("1h)", period), LIMITED);
        Edge { haproxy: binaries[(at * 3 / 2) % binaries.len()].start(config), http }
    };
    let edges: Vec<Edge> = peers.iter().enumerate().map(edge).collect();
    for node in &nodes {
        in_step(node, "lb1");
        wait::until("all nodes know each other", wait::SOON, || {
            node.admin().ready_members().is_ok_and(|members| members.len() == 3)
        });
    }
    Some((nodes, edges))
}

#[test]
fn one_limit_holds_over_three_nodes_with_different_haproxies() {
    let Some((mut nodes, edges)) = three_nodes("1h)") else { return };
    for edge in &edges {
        for _ in 0..33 {
            assert_eq!(edge.status(CLIENT), 200);
        }
    }
    let key = "::ffff:127.0.0.66";
    for edge in &edges {
        wait::until("the sum of the others", wait::SOON, || {
            edge.entry("mesh/req.others", key, "http_req_cnt") == Some(66)
        });
    }
    assert_eq!(edges[0].status(CLIENT), 200, "the hundredth");
    wait::until("the sum with the hundredth", wait::SOON, || {
        edges[1].entry("mesh/req.others", key, "http_req_cnt") == Some(67)
            && edges[2].entry("mesh/req.others", key, "http_req_cnt") == Some(67)
    });
    for edge in &edges {
        assert_eq!(edge.status(CLIENT), 429);
        assert_eq!(edge.status(OTHER), 200);
    }
    // A node that is gone is named.
    nodes[2].kill();
    wait::until("the status names the lost HAProxy", wait::SOON, || {
        nodes[0].admin().metric("banmesh_peers_stale").is_ok_and(|stale| stale >= 1.0)
    });
}

/// `BANMESH_MEASURE_LIMIT=1 cargo test --test cluster peers::measured -- --nocapture`
#[test]
fn measured_overshoot_of_a_limit() {
    if std::env::var_os("BANMESH_MEASURE_LIMIT").is_none() {
        return;
    }
    for (rate, total) in [(300u32, 1200u32), (12, 120)] {
        let Some((_nodes, edges)) = three_nodes("10s)") else { return };
        let (begun, mut passed) = (Instant::now(), 0);
        let mut clients: Vec<client::Http> =
            edges.iter().map(|edge| client::Http::connect(CLIENT, edge.http).unwrap()).collect();
        let within = Duration::from_secs(10).min(Duration::from_secs(u64::from(total / rate)));
        let mut sent = 0;
        for number in 0..total {
            std::thread::sleep(
                (begun + Duration::from_secs(1) * number / rate).saturating_duration_since(Instant::now()),
            );
            if begun.elapsed() > within {
                break;
            }
            let at = usize::try_from(number).unwrap() % edges.len();
            let status = match clients[at].get(&[]) {
                Ok(answer) => answer.status,
                Err(_) => {
                    clients[at] = client::Http::connect(CLIENT, edges[at].http).unwrap();
                    clients[at].get(&[]).unwrap().status
                }
            };
            sent += 1;
            passed += u32::from(status == 200);
        }
        println!("limit 100 in 10 s, {rate}/s over three nodes: {passed} of {sent} passed in {:.1?}", begun.elapsed());
    }
}
