//! Every part of a node panics or hangs while HAProxy queries the node: the node exits with an error that names the part, HAProxy uses
//! the second agent, and no client gets a wrong answer. Parts that the node can run without are restarted.
//!
//! Only debug builds can inject faults; with another build in `BANMESH_BIN` these tests are skipped.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cluster_tests::haproxy::{Binary, loopback_port};
use cluster_tests::load::Load;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::site::WebSite;
use cluster_tests::{wait, with_every_haproxy};
use nix::sys::signal::Signal;
use serde_json::json;

with_every_haproxy!(a_panic_of_the_store_causes_no_wrong_answer);

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const RATE: u32 = 40;
/// The number of sites that run at once.
const AT_ONCE: usize = 8;
/// A node that has noticed a fault exits after `spoa.drain` and the deadlines of its parts.
const ENDED: Duration = Duration::from_secs(60);
/// A hanging part is noticed after 10 s, a hanging journal after 30 s.
const NOTICED: Duration = Duration::from_secs(90);

/// The essential parts of a node.
const ESSENTIAL: [&str; 16] = [
    "store",
    "journal",
    "judge",
    "cluster membership",
    "cluster seeds",
    "cluster publisher",
    "cluster intake",
    "cluster listener",
    "cluster repairer",
    "syslog udp",
    "syslog tcp",
    "files",
    "journald",
    "agent",
    "api",
    "admin socket",
];
/// Also essential, but with a port of its own.
const METRICS: &str = "metrics";
/// The restartable parts. `@` stands for the folder of the test.
const ALONE: [&str; 5] = ["activity", "followers", "follower haproxy @/haproxy.sock", "webhooks", "webhook chat"];

/// The folder of one node, with the file that triggers its fault.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("journalctl");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn strike(&self) {
        std::fs::write(self.path("now"), "").unwrap();
    }

    /// The part's name with this folder in it.
    fn named(&self, part: &str) -> String {
        part.replace('@', &self.0.path().to_string_lossy())
    }

    /// A node with every part there is, one of which is to break.
    fn node(&self, kind: &str, part: &str) -> Node {
        let hook = json!([{ "name": "chat", "url": format!("http://127.0.0.1:{}/", free_port()) }]);
        NodeConfig::cluster(1)
            .remove(0)
            .set("inputs.files", json!([self.text("*.log")]))
            .set("inputs.journal.enabled", true)
            .set("inputs.journal.command", self.text("journalctl"))
            .set("api.enabled", true)
            .set("api.port", free_port())
            .set("api.basic_auth.enabled", true)
            .set("api.basic_auth.username", "ann")
            .set("api.basic_auth.password", "secret")
            .set("prometheus.enabled", true)
            .set("prometheus.port", free_port())
            .set("haproxy.runtime", json!([self.text("haproxy.sock")]))
            .set("haproxy.map", "/etc/haproxy/banmesh.map")
            .set("notifications.webhooks", hook)
            .environment("BANMESH_FAULT", &format!("{kind}:{}", self.named(part)))
            .environment("BANMESH_FAULT_FILE", &self.text("now"))
            .start()
    }
}

/// Whether the build under test can inject faults.
fn can_break(node: &Node) -> bool {
    let can = node.log().contains("this node will break on purpose");
    assert!(can || std::env::var_os("BANMESH_BIN").is_some(), "a debug build must inject the fault:\n{}", node.log());
    if !can {
        eprintln!("skipped: this build has no faults on purpose");
    }
    can
}

/// Calls `act` for every part, [`AT_ONCE`] at a time, and fails when it panics for any of them.
fn for_each<'a>(parts: impl IntoIterator<Item = &'a str>, act: impl Fn(&str) + Sync) {
    let parts = Mutex::new(parts.into_iter().collect::<VecDeque<_>>());
    let next = || parts.lock().unwrap().pop_front();
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(part) = next() {
                    if std::panic::catch_unwind(AssertUnwindSafe(|| act(part))).is_err() {
                        failed.lock().unwrap().push(part);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed, see above: {failed:?}");
}

/// Asserts that a node exits because its part broke.
fn assert_ended(node: &mut Node, part: &str, how: &str, limit: Duration) {
    let status = node.process().wait_for_exit(limit);
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{part}: {log}");
    let named =
        log.lines().any(|line| line.starts_with("banmesh: ") && line.contains(&format!("the part `{part}` {how}")));
    assert!(named, "{part} {how}: {log}");
}

/// A site whose primary agent breaks under load.
fn breaks_under_load(binary: &Binary, backup: &Node, kind: &str, part: &str, how: &str) {
    let folder = Folder::new();
    let mut primary = folder.node(kind, part);
    if !can_break(&primary) {
        return;
    }
    primary.cli(&["ban", "--force", &BANNED.to_string()]);
    let imap = loopback_port();
    let site = WebSite::start(binary, "primary-backup", primary.spoa(), Some(backup.spoa()), |config| {
        // The first try ends after the shipped 200 ms. If the second agent answers late, the machine is busy.
        config
            .with_shipped_timeouts()
            .listen(143, &imap.to_string())
            .replace("timeout check   500ms", "timeout check   5s")
            .replace_in("spoe-ip-reputation-second.conf", "processing 200ms", "processing 5s")
    });
    let load = Load::start(site.http, BANNED, CLEAN, RATE, NOTICED + ENDED);
    std::thread::sleep(Duration::from_secs(1));
    let struck = Instant::now();
    folder.strike();
    assert_ended(&mut primary, &folder.named(part), how, NOTICED);
    let ended = struck.elapsed();
    site.haproxy.wait_for_agent("primary", "DOWN");
    let outcome = load.stop();
    println!(
        "broken parts: HAProxy {}, {kind} {part}: ended after {:.1} s, {} requests, {} wrong, slowest {} ms",
        binary.series(),
        ended.as_secs_f64(),
        outcome.requests,
        outcome.wrong(),
        outcome.slowest.as_millis()
    );
    assert_eq!(outcome.wrong(), 0, "{part}: {outcome:?}");
}

/// With every version of HAProxy, but only one part, because the version makes no difference to the node.
fn a_panic_of_the_store_causes_no_wrong_answer(binary: &Binary) {
    breaks_under_load(binary, &backup(), "panic", "store", "panicked: a fault on purpose");
}

/// A second agent that has the ban and keeps running.
fn backup() -> Node {
    let backup = NodeConfig::new().start();
    backup.cli(&["ban", "--force", &BANNED.to_string()]);
    backup
}

/// The newest installed HAProxy, for the tests of all parts.
fn newest() -> Option<Binary> {
    Binary::all().pop()
}

#[test]
fn a_panic_of_an_essential_part_stops_the_node_without_wrong_answers() {
    let Some(binary) = newest() else { return };
    let backup = backup();
    for_each(ESSENTIAL.into_iter().chain([METRICS]), |part| {
        breaks_under_load(&binary, &backup, "panic", part, "panicked: a fault on purpose");
    });
}

#[test]
fn a_hang_of_an_essential_part_stops_the_node_without_wrong_answers() {
    let Some(binary) = newest() else { return };
    let backup = backup();
    for_each(ESSENTIAL.into_iter().chain([METRICS]).chain(ALONE), |part| {
        breaks_under_load(&binary, &backup, "hang", part, "has not answered for");
    });
}

#[test]
fn a_stalled_part_with_a_queue_stops_the_node() {
    let Some(binary) = newest() else { return };
    let backup = backup();
    for_each(["store", "judge"], |part| {
        breaks_under_load(&binary, &backup, "stall", part, "has not answered for");
    });
}

#[test]
fn an_essential_part_that_returns_stops_the_node() {
    for_each(["store", "judge", "syslog tcp", "cluster repairer", "agent"], |part| {
        let folder = Folder::new();
        let mut node = folder.node("end", part);
        if can_break(&node) {
            folder.strike();
            assert_ended(&mut node, part, "ended without being asked", ENDED);
        }
    });
}

#[test]
fn a_restartable_part_is_restarted_and_reported() {
    for_each(ALONE, |part| {
        let folder = Folder::new();
        let mut node = folder.node("panic", part);
        if !can_break(&node) {
            return;
        }
        let part = folder.named(part);
        folder.strike();
        let restarted = || node.admin().get("/status").unwrap()["restarted_parts"][0].clone();
        wait::until(&format!("{part} is started again"), wait::SOON, || restarted()["restarts"].as_u64() >= Some(1));
        std::fs::remove_file(folder.path("now")).unwrap();
        assert_eq!(restarted()["part"], part.as_str());
        assert_eq!(restarted()["reason"], "panicked: a fault on purpose");
        let status = node.cli(&["status"]);
        assert!(status.contains("restarted") && status.contains(&part), "{status}");
        let page = String::from_utf8(node.admin().request("GET", "/metrics", None).unwrap().body).unwrap();
        let counted = page.lines().any(|line| {
            line.starts_with("banmesh_part_restarts_total") && line.contains(&part) && !line.ends_with(" 0")
        });
        assert!(counted, "{page}");
        assert!(page.lines().any(|line| line.starts_with("banmesh_panics_total") && !line.ends_with(" 0")), "{page}");
        // The other parts kept running.
        node.ban_by_log(BANNED);
        node.stop();
    });
}

#[test]
fn a_node_is_alive_only_while_store_and_judge_answer() {
    for_each(["store", "judge"], |part| {
        let folder = Folder::new();
        let mut node = folder.node("stall", part);
        if !can_break(&node) {
            return;
        }
        let live = || node.admin().request("GET", "/health/live", None).map(|answer| answer.status);
        assert_eq!(live().unwrap(), 200);
        folder.strike();
        wait::until("the node says that it is not alive", wait::SOON, || live().is_ok_and(|status| status == 503));
        let answer = node.admin().request("GET", "/health/live", None).unwrap();
        assert!(String::from_utf8_lossy(&answer.body).contains(&format!("does not answer: {part}")), "{answer:?}");
        assert_ended(&mut node, part, "has not answered for", NOTICED);
    });
}

/// A node with a journal that hangs like a disk without answers, after the signal to stop.
fn told_to_end_with_a_hung_journal() -> Option<(Folder, Node)> {
    let folder = Folder::new();
    let node = folder.node("hang", "journal");
    if !can_break(&node) {
        return None;
    }
    folder.strike();
    // Nothing answers this any more.
    let waiting = node.admin();
    let ban = std::thread::spawn(move || waiting.ban(BANNED));
    node.wait_for(BANNED, true);
    node.signal(Signal::SIGTERM);
    wait::until("the node stops", wait::SOON, || node.log().contains("stopping: received a signal"));
    drop(ban);
    Some((folder, node))
}

#[test]
fn a_hanging_disk_does_not_delay_the_stop() {
    let Some((_folder, mut node)) = told_to_end_with_a_hung_journal() else { return };
    let status = node.process().wait_for_exit(ENDED);
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("stopped, but journal did not stop in time: the latest changes may be lost"), "{log}");
}

#[test]
fn a_second_signal_stops_a_node_with_a_hanging_journal_immediately() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let Some((_folder, mut node)) = told_to_end_with_a_hung_journal() else { return };
        let begun = Instant::now();
        node.signal(signal);
        let status = node.process().wait_for_exit(wait::SOON);
        let (log, took) = (node.log(), begun.elapsed());
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("stopped immediately by a second signal; still running: "), "{log}");
        println!("broken parts: a second {signal} ended the node after {took:?}");
    }
}

#[test]
fn a_second_signal_stops_a_draining_node_immediately() {
    let node = NodeConfig::new().set("spoa.drain", "5m").start();
    // Only a connection that has sent HELLO is drained.
    let mut connection = node.connect().unwrap();
    assert!(!connection.is_banned(CLEAN).unwrap());
    let mut node = node;
    node.signal(Signal::SIGTERM);
    wait::until("the node drains", wait::SOON, || node.log().contains("health checks of HAProxy now fail"));
    node.signal(Signal::SIGINT);
    let status = node.process().wait_for_exit(wait::SOON);
    assert_eq!(status.code(), Some(1), "{}", node.log());
    assert!(node.log().contains("still running: "), "{}", node.log());
}

#[test]
fn a_release_build_ignores_injected_faults() {
    let module = std::fs::read_to_string(cluster_tests::repository_file("src/app/supervisor.rs")).unwrap();
    let declared = module.find("mod fault;").expect("the module");
    let before = &module[..declared];
    assert!(before.trim_end().ends_with("#[cfg(debug_assertions)]"), "it must not be in a release build");
    let sources = |folder: &str| -> Vec<PathBuf> {
        let mut found = vec![cluster_tests::repository_file(folder)];
        let mut files = Vec::new();
        while let Some(path) = found.pop() {
            if path.is_dir() {
                found.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files.push(path);
            }
        }
        files
    };
    let names = |path: &&PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains("BANMESH_FAULT"));
    let named: Vec<PathBuf> = sources("src").iter().filter(names).cloned().collect();
    assert_eq!(named, [Path::new(&cluster_tests::repository_file("src/app/supervisor/fault.rs"))]);
}
