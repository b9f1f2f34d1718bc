//! Hosts that take all connections they can get do not keep out the others: HAProxy, rsyslog, HTTP clients and the other nodes.
//!
//! On loopback every host is an address of 127.0.0.0/8. `BANMESH_BIN` measures another build.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::haproxy::Binary;
use cluster_tests::mesh::{Mesh, PORT, address};
use cluster_tests::node::NodeConfig;
use cluster_tests::ports::free_port;
use cluster_tests::process::Process;
use cluster_tests::site::WebSite;
use cluster_tests::spop::Connection;
use cluster_tests::{client, in_ci, wait, with_every_haproxy};
use serde_json::json;

const BANNED: IpAddr = host(66);

with_every_haproxy!(a_host_that_keeps_all_spop_connections_busy_does_not_disable_enforcement);

const fn host(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, number))
}

/// Keeps `count` SPOP connections from `from` busy until `enough`. Reconnects those that the agent closes.
fn keep_busy(from: IpAddr, agent: SocketAddr, count: usize, open: &AtomicUsize, enough: &AtomicBool) {
    let connect = || client::connect(from, agent).and_then(Connection::over).ok();
    let mut held: Vec<Option<Connection>> = (0..count).map(|_| None).collect();
    while !enough.load(Ordering::Relaxed) {
        for place in &mut held {
            if enough.load(Ordering::Relaxed) {
                return;
            }
            let was_open = place.is_some();
            if place.as_mut().is_none_or(|connection| connection.is_banned(host(1)).is_err()) {
                *place = connect();
            }
            match (was_open, place.is_some()) {
                (false, true) => drop(open.fetch_add(1, Ordering::Relaxed)),
                (true, false) => drop(open.fetch_sub(1, Ordering::Relaxed)),
                _ => {}
            }
        }
    }
}

fn a_host_that_keeps_all_spop_connections_busy_does_not_disable_enforcement(binary: &Binary) {
    // At most 200 connections, so that the other host can keep more of them busy than there are places.
    let node = NodeConfig::new().set("spoa.max_clients", 20).start();
    node.cli(&["ban", &BANNED.to_string(), "--force"]);
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, |config| {
        config.replace("gt 20", "gt 100000").replace_in("spoe-ip-reputation.conf", "processing 200ms", "processing 2s")
    });
    let (open, enough, agent) = (AtomicUsize::new(0), AtomicBool::new(false), node.spoa());
    let let_in = std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| keep_busy(host(9), agent, 25, &open, &enough));
        }
        let started = std::time::Instant::now();
        while open.load(Ordering::Relaxed) < 180 && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ask = |_: &usize| {
            // HAProxy's connections are idle in between, unlike those of the other host.
            std::thread::sleep(Duration::from_millis(120));
            client::status(BANNED, site.http) != 403
        };
        let let_in = (0..50).filter(ask).count();
        enough.store(true, Ordering::Relaxed);
        let_in
    });
    println!(
        "crowding: HAProxy {}, {} busy connections of another host: {let_in} of 50 requests of a banned client passed",
        binary.series(),
        open.load(Ordering::Relaxed)
    );
    assert_eq!(let_in, 0);
}

/// Opens silent connections. Those that are refused count as well.
fn silent(from: IpAddr, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| client::connect(from, to).ok()).collect()
}

#[test]
fn silent_syslog_connections_do_not_keep_out_rsyslog_and_other_senders() {
    let node = NodeConfig::new().start();
    let lines = || node.admin().metric("banmesh_syslog_lines_total{transport=\"tcp\"}").unwrap_or_default();
    let silent: Vec<_> = (11..15).map(|number| silent(host(number), node.syslog(), 250)).collect();
    wait::until("all places are taken", wait::SOON, || {
        node.admin().metric("banmesh_syslog_connections ").is_ok_and(|open| open >= 1000.0)
    });
    let mut senders = Vec::new();
    for number in 101..131 {
        let mut sender = client::connect(host(number), node.syslog()).unwrap();
        // A refused sender notices it when it writes.
        let _ = sender.write_all(b"<38>Oct 11 22:14:15 mail test: hello\n");
        senders.push(sender);
    }
    let started = std::time::Instant::now();
    while lines() < 30.0 && started.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("crowding: {} of 30 senders were heard besides {} silent connections", lines(), silent.len() * 250);
    assert!((lines() - 30.0).abs() < 0.5);

    if Command::new("rsyslogd").arg("-v").output().is_err() {
        assert!(!in_ci(), "rsyslog must not be missing in CI");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let file = folder.path().join("rsyslog.conf");
    let configuration = format!(
        "global(workDirectory=\"{place}\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{place}/log\" CreatePath=\"on\" RateLimit.Interval=\"0\")\n*.* @@{}\n",
        node.syslog()
    );
    std::fs::write(&file, configuration).unwrap();
    let mut command = Command::new("rsyslogd");
    command.arg("-n").arg("-f").arg(&file).arg("-i").arg(folder.path().join("rsyslog.pid"));
    let _rsyslog = Process::start("rsyslog", command, folder.path());
    wait::until("rsyslog listens", wait::SOON, || folder.path().join("log").exists());
    for attempt in 1..=6 {
        let message = format!(
            "imap-login: Disconnected: Connection closed (auth failed, {attempt} attempts in 2 secs): \
             user=<alice@example.org>, method=PLAIN, rip=198.51.100.7, lip=192.0.2.1, TLS, session=<q1w2e3r4>"
        );
        let log = folder.path().join("log");
        let mut logger = Command::new("logger");
        logger.arg("-u").arg(&log).args(["-t", "dovecot", "-p", "mail.info", "--", &message]);
        assert!(logger.status().unwrap().success());
    }
    node.wait_for("198.51.100.7".parse().unwrap(), true);
}

/// The answer to a request, within three seconds.
fn get(from: IpAddr, to: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = client::connect(from, to)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn answered(from: IpAddr, to: SocketAddr, path: &str) -> usize {
    let is_good = |_: &usize| get(from, to, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
    (0..16).filter(is_good).count()
}

#[test]
fn outsiders_with_many_connections_do_not_keep_out_health_checks_and_operators() {
    let port = free_port();
    let api = SocketAddr::new(host(1), port);
    let _node = NodeConfig::new()
        .set("api.enabled", true)
        .set("api.port", port)
        .set("api.allowed_ips", json!(["127.0.0.1"]))
        .start();
    wait::until("the API answers", wait::SOON, || get(host(1), api, "/health/live").is_ok());
    let _held: Vec<_> = (11..16).map(|number| silent(host(number), api, 64)).collect();
    // From another outsider, and from an address that may use the API.
    let (outsider, operator) = (answered(host(20), api, "/health/live"), answered(host(1), api, "/health/live"));
    println!("crowding: {outsider} of 16 health checks of an outsider were answered, {operator} of 16 of an operator");
    assert_eq!((outsider, operator), (16, 16));
}

#[test]
fn one_host_with_many_connections_does_not_keep_out_prometheus() {
    let port = free_port();
    let metrics = SocketAddr::new(host(1), port);
    let _node = NodeConfig::new()
        .set("prometheus.enabled", true)
        .set("prometheus.address", "127.0.0.1")
        .set("prometheus.port", port)
        .start();
    wait::until("the metrics are served", wait::SOON, || get(host(1), metrics, "/metrics").is_ok());
    let _held = silent(host(9), metrics, 200);
    let scrapes = answered(host(1), metrics, "/metrics");
    println!("crowding: {scrapes} of 16 scrapes were answered");
    assert_eq!(scrapes, 16);
}

/// Opens connections as fast as it can until `enough`. The last thousand stay open.
fn flood(to: SocketAddr, enough: &AtomicBool) -> usize {
    let (mut held, mut count) = (std::collections::VecDeque::new(), 0);
    while !enough.load(Ordering::Relaxed) {
        if let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            held.push_back(stream);
            count += 1;
        }
        if held.len() > 1000 {
            held.pop_front();
        }
    }
    count
}

#[test]
fn a_flood_of_connections_does_not_stop_repairs() {
    let Some(mut mesh) = Mesh::start(2) else { return };
    let attacker = mesh.add_host();
    // 50 ms there and back.
    let slow = |program: &str| {
        let output = mesh.hosts[1]
            .command(program)
            .args(["qdisc", "add", "dev", "eth0", "root", "netem", "delay", "50ms"])
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let link = if slow("tc") { "50 ms" } else { "without delay, because the kernel has no netem" };
    for number in 0..200 {
        mesh.nodes[0].admin().ban(address(number)).unwrap();
    }
    let (to, enough) = (SocketAddr::new(mesh.hosts[0].address, PORT), AtomicBool::new(false));
    let attacker = mesh.hosts[attacker].clone();
    let (connections, failed) = std::thread::scope(|scope| {
        let floods: Vec<_> = (0..2).map(|_| scope.spawn(|| attacker.enter(|| flood(to, &enough)))).collect();
        std::thread::sleep(Duration::from_millis(500));
        // A node that starts repairs with another before it is ready.
        let failed: f64 = (0..5)
            .map(|_| {
                mesh.nodes[1].stop();
                mesh.nodes[1].restart();
                wait::until("it has joined", wait::SOON, || mesh.nodes[1].admin().is_ready());
                mesh.nodes[1].admin().metric("banmesh_cluster_repairs_failed_total").unwrap_or_default()
            })
            .sum();
        enough.store(true, Ordering::Relaxed);
        (floods.into_iter().map(|flood| flood.join().unwrap()).sum::<usize>(), failed)
    });
    println!(
        "crowding: {failed} repairs failed in 5 joins over a link ({link}), while another host opened {connections} connections"
    );
    assert!(failed < 0.5);
}
