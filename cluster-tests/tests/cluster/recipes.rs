//! Every recipe of deploy/haproxy/recipes does what its heading says, with every HAProxy.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::NodeConfig;
use cluster_tests::ports::free_port;
use cluster_tests::process::Process;
use cluster_tests::site::{GREETING, WebSite};
use cluster_tests::{client, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

with_every_haproxy!(
    tls_is_checked_and_plain_http_is_redirected,
    rate_limits_work_in_addition_to_the_check,
    rate_limits_track_ipv6_clients,
    a_connection_is_checked_once,
    a_cached_answer_expires,
    fail_closed_refuses_when_no_agent_answers,
    forwarded_addresses_are_trusted_only_from_trusted_proxies,
    the_proxy_protocol_names_the_client,
    answers_are_shared_through_redis,
);

fn certificate(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let (key, chain) = (folder.join("../site.key"), folder.join("../site.crt"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=example.test", "-addext", "subjectAltName=DNS:example.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&chain)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::write(folder.join("site.pem"), [std::fs::read(&chain).unwrap(), std::fs::read(&key).unwrap()].concat())
        .unwrap();
}

/// Status and protocol version of a verified HTTPS request.
fn https(from: IpAddr, to: SocketAddr, authority: &Path) -> String {
    let output = Command::new("curl")
        .args(["--noproxy", "*", "-s", "-o", "/dev/null", "-m", "10", "-w", "%{http_code} %{http_version}", "--cacert"])
        .arg(authority)
        .args(["--interface", &from.to_string(), "--resolve", &format!("example.test:{}:{}", to.port(), to.ip())])
        .arg(format!("https://example.test:{}/", to.port()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tls_is_checked_and_plain_http_is_redirected(binary: &Binary) {
    let node = NodeConfig::new().start();
    let secure = loopback_port();
    let mut authority = None;
    let site = WebSite::start(binary, "tls", node.spoa(), None, |config| {
        certificate(&config.folder().join("certs"));
        authority = Some(config.folder().join("site.crt"));
        config.replace("bind :::443 v4v6", &format!("bind {secure}"))
    });
    let authority = authority.unwrap();
    assert_eq!(https(CLIENT, secure, &authority), "200 2");
    let redirect = client::get(CLIENT, site.http, &[]).unwrap();
    assert_eq!((redirect.status, redirect.header("location")), (301, Some("https://example.test/")));
    node.ban_by_log(CLIENT);
    assert_eq!(https(CLIENT, secure, &authority), "403 2");
    assert_eq!(client::status(CLIENT, site.http), 403);
    assert_eq!(https(OTHER, secure, &authority), "200 2");
}

fn rate_limits_work_in_addition_to_the_check(binary: &Binary) {
    let node = NodeConfig::new().start();
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, |config| config);
    let mut fast = client::Http::connect(CLIENT, site.http).unwrap();
    let statuses: Vec<u16> = (0..25).map(|_| fast.get(&[]).map_or(0, |response| response.status)).collect();
    assert!(statuses.iter().take(20).all(|status| *status == 200), "{statuses:?}");
    assert_eq!(client::status(CLIENT, site.http), 429, "too fast");
    assert_eq!(client::status(OTHER, site.http), 200, "the limit is one for each client");
    node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, site.http), 403, "the ban comes before the limit");
}

fn rate_limits_track_ipv6_clients(binary: &Binary) {
    let node = NodeConfig::new().start();
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, |config| {
        config.replace("bind :::80 v4v6", "bind :::80 v4v6 accept-proxy")
    });
    let mut last = 0;
    for _ in 0..25 {
        last = named_by_proxy(site.http, PROXY, b"PROXY TCP6 2001:db8::7 ::1 40000 80\r\n").unwrap();
    }
    assert_eq!(last, 429);
    assert_eq!(named_by_proxy(site.http, PROXY, b"PROXY TCP6 2001:db8::8 ::1 40000 80\r\n").unwrap(), 200);
}

/// The number of checks that HAProxy has logged, if it logs every check.
fn checks(haproxy: &HaProxy) -> usize {
    haproxy.log().lines().filter(|line| line.contains("SPOE: [ip-reputation-agent]")).count()
}

const ON_DEMAND: &str = "spoe-ip-reputation-on-demand.conf";

fn a_connection_is_checked_once(binary: &Binary) {
    let node = NodeConfig::new().start();
    let site = WebSite::start(binary, "per-connection", node.spoa(), None, |config| {
        config.replace_in(ON_DEMAND, "    option   dontlog-normal\n", "").replace("-m int ge 10", "-m int ge 3")
    });
    let mut kept_alive = client::Http::connect(CLIENT, site.http).unwrap();
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(kept_alive.get(&[]).unwrap().status, 200);
    }
    // One, plus one per three seconds that a very busy machine may need for 50 requests.
    let most = 1 + usize::try_from(start.elapsed().as_secs()).unwrap() / 2;
    wait::until("the check is logged", wait::SOON, || checks(&site.haproxy) >= 1);
    assert!(checks(&site.haproxy) <= most, "{} checks for 50 requests", checks(&site.haproxy));

    node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, site.http), 403, "a new connection is checked at once");
    wait::until("the open connection is checked again", wait::SOON, || kept_alive.get(&[]).unwrap().status == 403);
}

fn a_cached_answer_expires(binary: &Binary) {
    let node = NodeConfig::new().start();
    let site = WebSite::start(binary, "cache", node.spoa(), None, |config| {
        config.replace_in(ON_DEMAND, "    option   dontlog-normal\n", "").replace("-m int lt 10", "-m int lt 3")
    });
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(client::status(CLIENT, site.http), 200);
    }
    let most = 1 + usize::try_from(start.elapsed().as_secs()).unwrap() / 2;
    wait::until("the check is logged", wait::SOON, || checks(&site.haproxy) >= 1);
    assert!(checks(&site.haproxy) <= most, "{} checks for 20 connections", checks(&site.haproxy));

    node.ban_by_log(CLIENT);
    wait::until("the cached answer is too old, and the ban is seen", wait::SOON, || {
        client::status(CLIENT, site.http) == 403
    });
    node.cli(&["unban", &CLIENT.to_string()]);
    wait::until("the end of the ban is seen", wait::SOON, || client::status(CLIENT, site.http) == 200);
}

fn fail_closed_refuses_when_no_agent_answers(binary: &Binary) {
    let mut node = NodeConfig::new().start();
    let imap_server = Backend::mail(GREETING);
    let imap = loopback_port();
    let site = WebSite::start(binary, "fail-closed", node.spoa(), None, |config| {
        config.listen(143, &imap.to_string()).server(10143, imap_server.address)
    });
    assert_eq!(client::status(OTHER, site.http), 200);
    assert_eq!(client::banner(OTHER, imap).unwrap().as_deref(), Some(GREETING));
    node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, site.http), 403);
    assert_eq!(client::banner(CLIENT, imap).unwrap(), None);

    node.kill();
    site.haproxy.wait_for_agent("primary", "DOWN");
    let refused = client::get(OTHER, site.http, &[]).unwrap();
    assert_eq!((refused.status, refused.header("x-ip-status")), (503, Some("unknown")));
    assert_eq!(client::banner(OTHER, imap).unwrap(), None);

    node.restart();
    site.haproxy.wait_for_agent("primary", "UP");
    wait::until("clients pass again", wait::SOON, || client::status(OTHER, site.http) == 200);
    assert_eq!(client::banner(OTHER, imap).unwrap().as_deref(), Some(GREETING));
}

fn forwarded_addresses_are_trusted_only_from_trusted_proxies(binary: &Binary) {
    let node = NodeConfig::new().start();
    let site = WebSite::start(binary, "x-forwarded-for", node.spoa(), None, |config| config);
    let real: IpAddr = "192.168.1.100".parse().unwrap();
    let status = |from, forwarded: &str| {
        client::get(from, site.http, &[&format!("X-Forwarded-For: {forwarded}")]).unwrap().status
    };
    assert_eq!(status(PROXY, "192.168.1.100"), 200);
    node.ban_by_log(real);
    assert_eq!(status(PROXY, "192.168.1.100"), 403, "the client that the proxy names is banned");
    assert_eq!(status(PROXY, "203.0.113.5"), 200, "the proxy itself is not");
    assert_eq!(status(PROXY, "203.0.113.5, 192.168.1.100"), 403, "the last address counts");
    assert_eq!(status(PROXY, "192.168.1.100, 203.0.113.5"), 200, "what the client wrote before it does not");
    assert_eq!(client::status(PROXY, site.http), 200, "no header");

    // An untrusted client may send any address, but it can neither get another client refused nor itself accepted.
    assert_eq!(status(CLIENT, "192.168.1.100"), 200);
    node.ban_by_log(CLIENT);
    assert_eq!(status(CLIENT, "203.0.113.5"), 403);
    // The same header gives the addresses of IPv6 clients.
    node.ban_by_log("2001:db8::7".parse().unwrap());
    assert_eq!(status(PROXY, "2001:db8::7"), 403);
    assert_eq!(status(PROXY, "::ffff:192.168.1.100"), 403, "a mapped address");
}

/// A PROXY protocol header, version 2, for a TCP client over IPv4.
fn proxy_v2(client: Ipv4Addr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&client.octets());
    header.extend_from_slice(&[127, 0, 0, 1]);
    header.extend_from_slice(&40_000_u16.to_be_bytes());
    header.extend_from_slice(&80_u16.to_be_bytes());
    header
}

fn named_by_proxy(to: SocketAddr, from: IpAddr, header: &[u8]) -> io::Result<u16> {
    client::Http::connect(from, to)?.preamble(header)?.get(&[]).map(|response| response.status)
}

fn the_proxy_protocol_names_the_client(binary: &Binary) {
    let node = NodeConfig::new().start();
    let imap = loopback_port();
    // The server receives the client's address by the same protocol, and echoes that line.
    let imap_server = Backend::echo();
    let site = WebSite::start(binary, "proxy-protocol", node.spoa(), None, |config: Config| {
        config
            .listen(143, &imap.to_string())
            .replace("127.0.0.1:10143 check send-proxy-v2", &format!("{} check send-proxy", imap_server.address))
    });
    let banned = Ipv4Addr::new(203, 0, 113, 9);
    let v1 = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 80\r\n";
    let v1_other = b"PROXY TCP4 203.0.113.10 127.0.0.1 40000 80\r\n";
    assert_eq!(named_by_proxy(site.http, PROXY, v1).unwrap(), 200);
    assert_eq!(named_by_proxy(site.http, PROXY, &proxy_v2(banned)).unwrap(), 200);
    node.ban_by_log(banned.into());
    assert_eq!(named_by_proxy(site.http, PROXY, v1).unwrap(), 403);
    assert_eq!(named_by_proxy(site.http, PROXY, &proxy_v2(banned)).unwrap(), 403);
    assert_eq!(named_by_proxy(site.http, PROXY, v1_other).unwrap(), 200);
    assert_ne!(named_by_proxy(site.http, CLIENT, v1_other).unwrap_or(0), 200, "strangers may not speak it");
    assert_eq!(client::status(CLIENT, site.http), 200, "they are asked about themselves");

    // The header is also passed on to the server behind a TCP frontend.
    let through = |header: &[u8]| {
        let mut stream = client::connect(PROXY, imap).unwrap();
        stream.write_all(header).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(stream), &mut line).map(|_| line).unwrap_or_default()
    };
    assert!(through(v1_other).starts_with("PROXY TCP4 203.0.113.10 "));
    assert_eq!(through(v1), "");
}

fn answers_are_shared_through_redis(binary: &Binary) {
    if Command::new("redis-server").arg("--version").output().is_err() {
        assert!(!cluster_tests::in_ci(), "redis-server must not be missing in CI");
        eprintln!("skipped: redis-server is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = || {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        command.current_dir(folder.path());
        let redis = Process::start("redis", command, folder.path());
        wait::until("Redis listens", wait::SOON, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        redis
    };
    let mut redis = start();
    let node = NodeConfig::new().start();
    let through = free_port();
    let site = WebSite::start(binary, "redis-cache", node.spoa(), None, |config| {
        config
            .replace_in(ON_DEMAND, "    option   dontlog-normal\n", "")
            .replace("127.0.0.1:6379", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:6380", &format!("127.0.0.1:{through}"))
            .replace_in("redis-cache.lua", "\"127.0.0.1\", 6380", &format!("\"127.0.0.1\", {through}"))
            .replace_in("redis-cache.lua", "local seconds = 10", "local seconds = 3")
    });
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(client::status(CLIENT, site.http), 200);
    }
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 2;
    wait::until("the check is logged", wait::SOON, || checks(&site.haproxy) >= 1);
    assert!(checks(&site.haproxy) <= most, "{} checks for 20 connections", checks(&site.haproxy));

    node.ban_by_log(CLIENT);
    wait::until("the cached answer is too old, and the ban is seen", wait::SOON, || {
        client::status(CLIENT, site.http) == 403
    });
    node.cli(&["unban", &CLIENT.to_string()]);
    wait::until("the end of the ban is seen", wait::SOON, || client::status(CLIENT, site.http) == 200);

    // If Redis is down or hangs, every request queries the agent, and no client is refused or waits. Lua alone would wait for two
    // seconds or more every time; a busy machine is slow now and then.
    let redis_is = |status: &str| {
        wait::until(&format!("Redis is {status}"), wait::SOON, || {
            site.haproxy.stat("redis", "redis", "status").is_some_and(|now| now.starts_with(status))
        });
    };
    let without_redis = || {
        wait::until("no request waits for Redis", wait::SOON, || {
            let (before, start) = (checks(&site.haproxy), Instant::now());
            assert_eq!((client::status(CLIENT, site.http), client::status(OTHER, site.http)), (403, 200));
            let took = start.elapsed();
            wait::until("both ask", wait::SOON, || checks(&site.haproxy) >= before + 2);
            took < Duration::from_secs(2)
        });
    };
    node.ban_by_log(CLIENT);
    wait::until("the cached answer is too old, and the ban is seen", wait::SOON, || {
        client::status(CLIENT, site.http) == 403
    });
    redis.signal(nix::sys::signal::Signal::SIGSTOP);
    redis_is("DOWN");
    without_redis();
    redis.kill();
    without_redis();

    let _redis = start();
    redis_is("UP");
    wait::until("it is used again", wait::SOON, || {
        let before = checks(&site.haproxy);
        for _ in 0..5 {
            assert_eq!((client::status(CLIENT, site.http), client::status(OTHER, site.http)), (403, 200));
        }
        checks(&site.haproxy) == before
    });
}
