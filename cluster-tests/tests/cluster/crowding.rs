//! Hosts that take all connections they can get do not keep out the others: HAProxy, rsyslog, HTTP clients and the other nodes.
//!
//! On loopback every host is an address of 127.0.0.0/8. `BANMESH_BIN` measures another build.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_tests::busy::Busy;
use cluster_tests::haproxy::Binary;
use cluster_tests::mesh::{Mesh, PORT, address};
use cluster_tests::node::NodeConfig;
use cluster_tests::ports::free_port;
use cluster_tests::process::Process;
use cluster_tests::site::WebSite;
use cluster_tests::{client, in_ci, slow_link, wait, with_every_haproxy};
use serde_json::json;

const BANNED: IpAddr = host(66);

with_every_haproxy!(a_host_that_keeps_all_spop_connections_busy_does_not_disable_enforcement);

const fn host(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, number))
}

fn a_host_that_keeps_all_spop_connections_busy_does_not_disable_enforcement(binary: &Binary) {
    // Busy connections of the other host. `BANMESH_BUSY` is another number, to measure. There are ten times `max_clients` places while all
    // are busy.
    let given = std::env::var("BANMESH_BUSY").ok().and_then(|count| count.parse().ok());
    let connections: usize = given.unwrap_or(200);
    let max_clients = connections / 10;
    let node = NodeConfig::new().set("spoa.max_clients", max_clients).start();
    node.cli(&["ban", &BANNED.to_string(), "--force"]);
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, |config| config.replace("gt 20", "gt 100000"));
    let busy = Busy::start(host(9), node.spoa(), connections + connections / 4);
    let started = std::time::Instant::now();
    while busy.open() < connections * 9 / 10 && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (open, answered, started) = (busy.open(), busy.answered(), std::time::Instant::now());
    let ask = |_: &usize| {
        // HAProxy's connections are idle in between, unlike those of the other host.
        std::thread::sleep(Duration::from_millis(120));
        client::status(BANNED, site.http) != 403
    };
    let let_in = (0..50).filter(ask).count();
    println!(
        "crowding: HAProxy {}, {open} busy connections of another host with {:.0} answers a second: {let_in} of 50 requests of a \
         banned client passed",
        binary.series(),
        (busy.answered() - answered) as f64 / started.elapsed().as_secs_f64()
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
    println!("crowding: {} of 30 senders were received besides {} silent connections", lines(), silent.len() * 250);
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

/// Makes a certificate with openssl: signed by `authority`, or by itself.
fn certificate(folder: &Path, authority: Option<&str>, name: &str) {
    let file = |name: &str, kind: &str| folder.join(format!("{name}.{kind}"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command.args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost"]);
    command.arg("-keyout").arg(file(name, "key")).arg("-out").arg(file(name, "pem"));
    if let Some(authority) = authority {
        command.arg("-CA").arg(file(authority, "pem")).arg("-CAkey").arg(file(authority, "key"));
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    let output = command.output().expect("run openssl");
    assert!(output.status.success(), "{output:?}");
}

/// Whether the node has closed the connection.
fn is_closed(stream: &TcpStream) -> bool {
    let waits = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && !stream.peek(&mut [0]).as_ref().is_err_and(waits)
}

/// Four hosts without a certificate each keep open as many connections as one sender may have, and never begin the handshake.
#[test]
fn hosts_without_a_certificate_do_not_keep_out_syslog_senders_that_have_one() {
    const SENDERS: u8 = 30;
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    certificate(folder.path(), None, "ca");
    for name in ["node", "sender"] {
        certificate(folder.path(), Some("ca"), name);
    }
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let to = SocketAddr::new(host(1), port);
    let tls = json!({"enabled": true, "address": to.to_string(), "certificate": file("node.pem"), "key": file("node.key"),
                     "client_ca": file("ca.pem")});
    let node = NodeConfig::new().set("syslog.tls", tls).start();
    let lines = || node.admin().metric("banmesh_syslog_lines_total{transport=\"tls\"}").unwrap_or_default();
    wait::until("the TLS port is open", wait::SOON, || TcpStream::connect(to).is_ok());
    let enough = AtomicBool::new(false);
    let (received, silent_connections) = std::thread::scope(|scope| {
        let hosts: Vec<_> = (11..15)
            .map(|number| {
                let enough = &enough;
                scope.spawn(move || {
                    let mut held = silent(host(number), to, 250);
                    while !enough.load(Ordering::Relaxed) {
                        for stream in held.iter_mut().filter(|stream| is_closed(stream)) {
                            if let Ok(new) = client::connect(host(number), to) {
                                *stream = new;
                            }
                        }
                        std::thread::sleep(Duration::from_millis(250));
                    }
                    held.len()
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        let send = |number: u8| {
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-quiet", "-verify_return_error", "-connect", &to.to_string()]);
            openssl.args(["-bind", &format!("{}:0", host(101 + number))]);
            openssl.args(["-CAfile", &file("ca.pem"), "-cert", &file("sender.pem"), "-key", &file("sender.key")]);
            openssl.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut sender = openssl.spawn().expect("run openssl");
            let mut stdin = sender.stdin.take().unwrap();
            let _ = stdin.write_all(b"<38>Oct 11 22:14:15 mail test: hello\n");
            sender.stdin = Some(stdin);
            sender
        };
        let mut senders: Vec<Child> = (0..SENDERS).map(send).collect();
        let waited = std::time::Instant::now();
        while lines() < f64::from(SENDERS) && waited.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let received = lines();
        for sender in &mut senders {
            let _ = sender.kill();
            let _ = sender.wait();
        }
        enough.store(true, Ordering::Relaxed);
        (received, hosts.into_iter().map(|host| host.join().unwrap()).sum::<usize>())
    });
    println!(
        "crowding: {received} of {SENDERS} senders with a certificate were received besides {silent_connections} without"
    );
    assert!(received > f64::from(SENDERS) - 0.5);
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
    // A repair waits this long between its connection and its first bytes, unauthenticated. There are 256 places for such connections, so
    // without a limit per address a flood of 100 a second would take its place every time.
    let delay = Duration::from_secs(3);
    for number in 0..200 {
        mesh.nodes[0].admin().ban(address(number)).unwrap();
    }
    let (to, enough) = (SocketAddr::new(mesh.hosts[0].address, PORT), AtomicBool::new(false));
    slow_link::start(&mesh.hosts[1], to, delay);
    let attacker = mesh.hosts[attacker].clone();
    let started = std::time::Instant::now();
    let (connections, failed) = std::thread::scope(|scope| {
        let floods: Vec<_> = (0..4).map(|_| scope.spawn(|| attacker.enter(|| flood(to, &enough)))).collect();
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
    let rate = connections as f64 / started.elapsed().as_secs_f64();
    println!(
        "crowding: {failed} repairs failed in 5 joins over a link with a delay of {delay:?}, while another host opened {rate:.0} \
         connections a second"
    );
    // Otherwise the flood could not have taken all places while a repair waited.
    assert!(rate * delay.as_secs_f64() > 256.0, "the flood was too slow to show anything: {rate:.0} a second");
    assert!(failed < 0.5);
}
