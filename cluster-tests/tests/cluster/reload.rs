//! SIGHUP: patterns, ban policy, allowlist and log level change while connections stay open; an invalid file changes nothing.

use std::net::IpAddr;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{spop, syslog, wait};
use nix::sys::signal::Signal;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Edits the node's configuration, sends SIGHUP, and waits until the log has `expected` once more.
fn reload(node: &Node, expected: &str, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut values: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(node.config_file()).unwrap()).unwrap();
    edit(&mut values);
    std::fs::write(node.config_file(), values.to_string()).unwrap();
    hang_up(node, expected);
}

fn hang_up(node: &Node, expected: &str) {
    let count = || node.log().matches(expected).count();
    let before = count();
    node.signal(Signal::SIGHUP);
    wait::until(&format!("the log says `{expected}`"), wait::SOON, || count() > before);
}

/// Sends one failure of each of `addresses`, then enough failures of another one for a ban. When that ban is in force, the earlier lines
/// have been judged.
fn fail(node: &Node, addresses: &[&str], marker: &str) {
    let lines: Vec<String> = addresses.iter().map(|address| syslog::dovecot_failure(ip(address))).collect();
    syslog::send_udp(node.syslog(), lines.iter().map(String::as_str));
    node.ban_by_log(ip(marker));
}

#[test]
fn a_reload_changes_policy_allowlist_patterns_and_log_level_without_dropping_a_connection() {
    let node = NodeConfig::new().start();
    let mut connection = spop::Connection::open(node.spoa()).unwrap();
    fail(&node, &["198.51.100.1"; 2], "192.0.2.1");
    assert!(!connection.is_banned(ip("198.51.100.1")).unwrap());

    reload(&node, "configuration reloaded", |values| {
        values["ban"] = serde_json::json!({ "max_attempts": 3 });
        values["allowlist"] = serde_json::json!(["192.0.2.0/28", "127.0.0.1"]);
        values["log"] = serde_json::json!({ "level": "debug" });
        values["syslog"]["patterns"] =
            serde_json::json!([{ "name": "shop", "regex": "shop: wrong voucher from ([0-9.]+)" }]);
    });
    // The new policy applies to offences counted before. The earlier ban is no longer answered, because its address is allowed now.
    fail(&node, &["198.51.100.1", "192.0.2.2", "192.0.2.2", "192.0.2.2"], "203.0.113.1");
    assert!(connection.is_banned(ip("198.51.100.1")).unwrap(), "banned at the third failure");
    assert!(!connection.is_banned(ip("192.0.2.1")).unwrap(), "allowed by now");
    assert!(!connection.is_banned(ip("192.0.2.2")).unwrap(), "allowed before it was counted");
    syslog::send_udp(node.syslog(), ["<134>Nov 22 20:00:00 web shop: wrong voucher from 203.0.113.9"; 3]);
    node.wait_for(ip("203.0.113.9"), true);
    assert!(node.log().contains("DEBUG"), "the log level changed");
    assert!(connection.is_banned(ip("203.0.113.9")).unwrap(), "the connection from before still works");
}

#[test]
fn an_invalid_file_keeps_the_old_configuration_and_is_reported() {
    let node = NodeConfig::new().start();
    let good = std::fs::read_to_string(node.config_file()).unwrap();
    std::fs::write(node.config_file(), "ban:\n  max_atempts: 1\n").unwrap();
    hang_up(&node, "was not reloaded");
    assert!(node.log().contains("did you mean ban.max_attempts?"), "{}", node.log());
    fail(&node, &["198.51.100.1"], "192.0.2.1");
    assert!(!node.is_banned(ip("198.51.100.1")).unwrap());

    // Changes that need a restart are reported, and the others apply.
    std::fs::write(node.config_file(), good).unwrap();
    reload(&node, "configuration reloaded", |values| {
        values["spoa"]["max_clients"] = 7.into();
        values["ban"] = serde_json::json!({ "max_attempts": 2 });
    });
    assert!(node.log().contains("takes effect only after a restart"), "{}", node.log());
    fail(&node, &["198.51.100.1"], "192.0.2.3");
    assert!(node.is_banned(ip("198.51.100.1")).unwrap());
}

/// What the node knows about an account: `None` without evidence.
fn about(node: &Node, name: &str) -> Option<serde_json::Value> {
    let answer = node.admin().request("GET", &format!("/api/v1/evidence/names/{name}"), None).unwrap();
    (answer.status != 404).then(|| answer.json().unwrap())
}

fn log_in(node: &Node, name: &str) {
    let line = format!(
        "<22>dovecot: imap-login: Login: user=<{name}>, method=PLAIN, rip=198.51.100.9, lip=192.0.2.1, mpid=7, TLS, session=<q1w2e3r4>"
    );
    syslog::send_udp(node.syslog(), [line.as_str()]);
}

#[test]
fn evidence_begins_with_a_reload_and_keeps_what_it_knows_over_others() {
    let modes = |mode: &str| serde_json::json!({ "known": mode, "names": mode, "networks": mode });
    let node = NodeConfig::new().set("evidence", modes("off")).start();
    log_in(&node, "early");
    node.ban_by_log(ip("203.0.113.1"));
    assert_eq!(about(&node, "early"), None);

    // Filters recognise logins from the reload on, and not before.
    reload(&node, "configuration reloaded", |values| values["evidence"] = modes("observe"));
    log_in(&node, "anna");
    wait::until("the login is known", wait::SOON, || about(&node, "anna").unwrap()["last_login"].is_string());
    assert!(about(&node, "early").unwrap()["last_login"].is_null());

    // Other settings of the evidence change at once, and lose nothing.
    reload(&node, "configuration reloaded", |values| {
        values["evidence"] = modes("on");
        values["evidence"]["never"] = serde_json::json!(["anna"]);
    });
    let anna = about(&node, "anna").unwrap();
    assert!(anna["never"] == true && anna["last_login"].is_string(), "{anna}");

    // A file that is missing changes none of them.
    reload(&node, "the old one stays in force", |values| {
        values["evidence"] = modes("observe");
        values["evidence"]["never_files"] = serde_json::json!(["/nonexistent"]);
    });
    assert_eq!(about(&node, "anna").unwrap(), anna);

    // While all are off, logins are not recorded, and what is known stays.
    reload(&node, "configuration reloaded", |values| values["evidence"] = modes("off"));
    assert_eq!(about(&node, "anna"), None);
    log_in(&node, "late");
    node.ban_by_log(ip("203.0.113.2"));
    reload(&node, "configuration reloaded", |values| values["evidence"] = modes("on"));
    let again = about(&node, "anna").unwrap();
    assert!(again["never"] == false && again["last_login"] == anna["last_login"], "{again}");
    assert!(about(&node, "late").unwrap()["last_login"].is_null());
}
