//! What outsiders and a busy operator can make a real node use: memory, threads, and its log.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::{client, syslog, wait};
use nix::sys::signal::Signal;
use serde_json::json;

/// A line of `/proc/PID/status`, as a number.
fn status(node: &mut Node, name: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", node.process().id())).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    value.split_whitespace().next().unwrap().parse().unwrap()
}

fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// The status code of a request with a wrong password.
fn guess(from: IpAddr, to: SocketAddr) -> u16 {
    let mut stream = client::connect(from, to).unwrap();
    // ann:wrong
    let head =
        "GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YW5uOndyb25n\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn guessed_passwords_do_not_grow_memory() {
    let port = free_port();
    let mut node = NodeConfig::new()
        .set("api.enabled", true)
        .set("api.port", port)
        .set("api.allowed_ips", json!(["127.0.0.0/8"]))
        .set("api.rate_limiting.enabled", false)
        .set("api.users", json!({ "ann": { "role": "read", "password": "correct horse battery" } }))
        .start();
    let to = SocketAddr::new(loopback(1), port);
    // One check at a time and then many at once, from addresses that may each fail 20 times a minute.
    assert_eq!(guess(loopback(2), to), 401);
    let before = status(&mut node, "VmHWM");
    let guesses = |last: u8| (0..19).map(|_| guess(loopback(last), to)).filter(|code| *code == 401).count();
    let refused: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (2..7).map(|last| scope.spawn(move || guesses(last))).collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    let after = status(&mut node, "VmHWM");
    println!("outsiders: {refused} wrong passwords, VmHWM {before} -> {after} kB");
    assert!(refused >= 80, "{refused} passwords were checked");
    // The memory of a second check, and what the requests themselves need.
    assert!(after < before + 32 * 1024, "{before} -> {after} kB after {refused} wrong passwords");
}

#[test]
fn a_storm_of_reloads_does_not_stop_a_node_from_working() {
    let mut node = NodeConfig::new().start();
    let before = (status(&mut node, "Threads"), status(&mut node, "VmRSS"));
    let mut most = 0;
    for _ in 0..100 {
        for _ in 0..50 {
            node.signal(Signal::SIGHUP);
        }
        most = most.max(status(&mut node, "Threads"));
    }
    let during = std::thread::scope(|scope| {
        // Requests by the API share the reloads.
        let all: Vec<_> =
            (0..20).map(|_| scope.spawn(|| node.admin().request("POST", "/api/v1/reload", None).is_ok())).collect();
        all.into_iter().map(|one| one.join().unwrap()).filter(|done| *done).count()
    });
    most = most.max(status(&mut node, "Threads"));
    let memory = status(&mut node, "VmRSS");
    let reloads = node.log().matches("configuration reloaded").count();
    println!("outsiders: 5000 SIGHUPs, {reloads} reloads, threads {} -> {most}, {} -> {memory} kB", before.0, before.1);
    assert_eq!(during, 20, "each request has an answer");
    // A thread for the reload, and some of the pool for other blocking work.
    assert!(most <= before.0 + 16, "{} -> {most} threads", before.0);
    assert!(memory < before.1 + 100 * 1024, "{} -> {memory} kB", before.1);
    node.ban_by_log("198.51.100.1".parse().unwrap());
    for _ in 0..1000 {
        node.signal(Signal::SIGHUP);
    }
    node.stop();
}

#[test]
fn a_flood_of_bans_is_summarised_in_the_log() {
    let node = NodeConfig::new().set("ban.max_attempts", 1).start();
    let begun = Instant::now();
    let banned = || node.admin().metric("banmesh_bans_total{filter=\"dovecot\"}").unwrap_or_default();
    let mut sent = 0_u32;
    // Over TCP, so that no line is lost on the way.
    while banned() < 5000.0 {
        assert!(begun.elapsed() < 6 * wait::SOON, "{} bans of {sent}", banned());
        let addresses = (sent..sent + 1000).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)));
        let lines: Vec<String> = addresses.map(syslog::dovecot_failure).collect();
        syslog::send_tcp(node.syslog(), lines.iter().map(String::as_str));
        sent += 1000;
    }
    let counted = |log: &str| {
        let lines = log.lines().filter(|line| line.contains(" banned target=")).count() as u64;
        (lines, log.lines().filter_map(|line| summary(line, "banned")).sum::<u64>())
    };
    // Lines that were sent last may still be judged, and a summary comes every second.
    wait::until("every ban is a line or counted", wait::SOON, || {
        let (lines, summed) = counted(&node.log());
        (lines + summed) as f64 == banned()
    });
    let (log, seconds) = (node.log(), begun.elapsed().as_secs() + 1);
    let (lines, summed) = counted(&log);
    println!("outsiders: {} bans in {seconds} s, {lines} lines and {summed} held back, {} bytes", banned(), log.len());
    assert!(lines <= 100 + 10 * seconds, "{lines} lines in {seconds} s");
    assert!(summed > 0);
}

/// The number in a summary of lines that begin with `message`.
fn summary(line: &str, message: &str) -> Option<u64> {
    let found = line.contains("too many log lines of one kind") && line.contains(&format!("like=\"{message}\""));
    let count = line.split("lines=").nth(1).filter(|_| found)?;
    count.split_whitespace().next()?.parse().ok()
}
