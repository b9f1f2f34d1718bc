//! Bulk requests: acknowledged targets survive a crash, and refused ones are reported with their lines.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cluster_tests::mesh::{Mesh, address};
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::wait;
use serde_json::{Value, json};

/// Generous, because test builds are slow and test machines are busy.
const LONG: Duration = Duration::from_secs(120);

/// The command line for `node`.
fn command(node: &Node, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--config").arg(node.config_file()).args(arguments);
    command
}

fn run(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = command(node, arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

/// A file with these lines.
fn list(folder: &Path, lines: impl IntoIterator<Item = String>) -> String {
    let path = folder.join("list");
    let text = lines.into_iter().fold(String::new(), |text, line| text + &line + "\n");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn entries(node: &Node) -> u64 {
    node.admin().digest().map_or(0, |(_, entries)| entries)
}

#[test]
fn acknowledged_targets_survive_a_kill_during_bulk_requests() {
    const AT_ONCE: u32 = 5000;
    let mut node = NodeConfig::new().set("ban.max_bans", 10_000_000).start();
    let (next, acknowledged) = (AtomicU32::new(0), Mutex::new(Vec::<u32>::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let admin = node.admin();
            let (next, acknowledged) = (&next, &acknowledged);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let first = number * AT_ONCE;
                    match admin.ban_many((first..first + AT_ONCE).map(address)) {
                        Ok(()) => acknowledged.lock().unwrap().push(number),
                        // It was killed.
                        Err(_) => break,
                    }
                }
            });
        }
        // The requests continue until the node is dead, so the kill interrupts some.
        wait::until("many requests are acknowledged", LONG, || acknowledged.lock().unwrap().len() >= 40);
        node.kill();
    });
    let acknowledged = acknowledged.into_inner().unwrap();
    node.restart();
    let table = node.admin().table().unwrap();
    let targets = || acknowledged.iter().flat_map(|number| number * AT_ONCE..(number + 1) * AT_ONCE).map(address);
    let missing = targets().filter(|target| !table.contains_key(&target.to_string())).count();
    assert_eq!(missing, 0, "of {} acknowledged targets; {} are there", targets().count(), table.len());
    let mut agent = node.connect().unwrap();
    assert!(targets().step_by(997).all(|target| agent.is_banned(target).unwrap()));
}

#[test]
fn the_command_line_reports_acknowledged_targets_when_the_node_dies() {
    let mut node = NodeConfig::new().start();
    let folder = tempfile::tempdir().unwrap();
    let file = list(folder.path(), (0..1_000_000).map(|n| address(n).to_string()));
    let mut import = command(&node, &["ban", "--for", "1h", "--file", &file]);
    let import = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait::until("bans arrive", LONG, || entries(&node) > 100_000);
    node.kill();
    let Output { status, stdout, stderr } = import.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(3), "{}", String::from_utf8_lossy(&stderr));
    let said = String::from_utf8(stdout).unwrap();
    let done: u64 = said.strip_prefix("banned ").and_then(|rest| rest.split(' ').next()?.parse().ok()).expect(&said);
    node.restart();
    let kept = entries(&node);
    assert!(done > 0 && done <= kept && kept < 1_000_000, "{said}: {kept} are there");
    // Running the same command again completes it.
    let (code, said) = run(&node, &["ban", "--for", "1h", "--file", &file]);
    assert_eq!((code, said.as_str()), (Some(0), "banned 1000000 of 1000000\n"));
}

#[test]
fn refused_targets_are_reported_in_the_order_of_their_lines() {
    let node = NodeConfig::new().start();
    let folder = tempfile::tempdir().unwrap();
    // More than two requests. Every 1,000th line is invalid, in ways that the client or the node detects.
    let wrong = |n: u32| match n / 1000 % 3 {
        0 => (format!("nonsense-{n}"), "is neither an IP address nor a network"),
        1 => ("0.0.0.0/3".to_owned(), "is wider than /16"),
        _ => ("192.0.2.255".to_owned(), "is in the allowlist"),
    };
    let lines = |n: u32| if n.is_multiple_of(1000) { wrong(n).0 } else { address(n.reverse_bits() >> 9).to_string() };
    let file = list(folder.path(), (1..=35_000).map(lines));
    let (code, said) = run(&node, &["ban", "--for", "1h", "--file", &file]);
    assert_eq!(code, Some(1));
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said.len(), 36, "{said:#?}");
    for (n, line) in (1..).map(|k| k * 1000).zip(&said[..35]) {
        assert!(line.starts_with(&format!("line {n}: ")) && line.contains(wrong(n).1), "{line}");
    }
    assert_eq!(said[35], "banned 34965 of 35000");
    assert_eq!(entries(&node), 34_965);
    // The log has one line per request, not per target.
    let log = node.log();
    assert!(!log.contains("banned by command"), "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("audit") && line.contains("action=\"ban\"")).count(), 4);

    let (code, said) = run(&node, &["unban", "--json", "--file", &file]);
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &answer["done"]), (Some(1), &json!(34_965)));
    let refused: Vec<&str> =
        answer["refused"].as_array().unwrap().iter().map(|one| one["target"].as_str().unwrap()).collect();
    assert_eq!(refused, (1..=35).map(|k| wrong(k * 1000).0).collect::<Vec<_>>());
}

#[test]
fn a_file_of_addresses_is_allowed_and_a_purge_unbans_the_rest() {
    let node = NodeConfig::new().start();
    let folder = tempfile::tempdir().unwrap();
    let targets = || (0..30_000).map(|n| address(n).to_string());
    let file = list(folder.path(), targets());
    assert_eq!(run(&node, &["ban", "--for", "1h", "--file", &file]).1, "banned 30000 of 30000\n");
    let partners = list(folder.path(), targets().take(12_000).chain(["192.0.0.0/4".to_owned(), "x".to_owned()]));
    let (code, said) = run(&node, &["allow", "--reason", "partners", "--file", &partners]);
    let mut lines = said.lines();
    assert!(lines.next().unwrap().starts_with("line 12001: 192.0.0.0/4 is wider than /8"), "{said}");
    assert!(lines.next().unwrap().starts_with("line 12002: `x` is neither"), "{said}");
    assert_eq!((code, lines.next(), lines.next()), (Some(1), Some("allowed 12000 of 12002"), None));
    let mut agent = node.connect().unwrap();
    assert!(!agent.is_banned(address(0)).unwrap() && agent.is_banned(address(29_999)).unwrap());
    assert_eq!(node.admin().get("/status").unwrap()["active_bans"], 18_000);
    assert_eq!(run(&node, &["purge", "--yes"]), (Some(0), "unbanned 18000 of 18000\n".to_owned()));
    assert!(!agent.is_banned(address(29_999)).unwrap());
    assert_eq!(node.admin().get("/status").unwrap()["active_bans"], 0);
    assert_eq!(run(&node, &["purge", "--yes"]), (Some(0), "unbanned 0 of 0\n".to_owned()));
    assert_eq!(run(&node, &["allow", "--file", "/dev/null"]).0, Some(2));
}

/// The import exceeds the recent-changes log, so repair transfers the rest.
#[test]
fn an_import_converges_while_the_node_keeps_answering() {
    let Some(mesh) = Mesh::start(3) else { return };
    let (node, banned): (&Node, IpAddr) = (&mesh.nodes[0], "198.51.100.7".parse().unwrap());
    node.admin().ban(banned).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = list(folder.path(), (0..100_000).map(|n| address(n).to_string()));
    let mut answers = 0;
    std::thread::scope(|scope| {
        let import = scope.spawn(|| run(node, &["ban", "--for", "24h", "--file", &file]));
        let mut agent = node.connect().unwrap();
        while !import.is_finished() {
            match agent.is_banned(banned) {
                Ok(answer) => {
                    assert!(answer);
                    answers += 1;
                }
                // On a busy machine the time of an answer means nothing. Only wrong answers count.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if let Ok(another) = node.connect() {
                        agent = another;
                    }
                }
                Err(error) => panic!("the agent does not answer: {error}"),
            }
        }
        assert_eq!(import.join().unwrap(), (Some(0), "banned 100000 of 100000\n".to_owned()));
    });
    assert!(answers > 0);
    let (took, table) = mesh.wait_until_equal(LONG);
    assert_eq!(table.len(), 100_001);
    println!("bulk: equal {took:?} after an import of 100,000, with {answers} checks answered meanwhile");
}
