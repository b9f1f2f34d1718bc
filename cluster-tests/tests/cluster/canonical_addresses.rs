//! Addresses that stand for others, and addresses that are never banned.

use std::net::IpAddr;
use std::process::Command;

use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::wait;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_client_behind_nat64_is_banned_alone() {
    let node = NodeConfig::new().start();
    node.fail_logins(address("64:ff9b::203.0.113.9"), 6);
    node.wait_for(address("64:ff9b::203.0.113.9"), true);
    assert!(node.is_banned(address("203.0.113.9")).unwrap(), "it is the same client");
    for other in ["64:ff9b::203.0.113.10", "64:ff9b::1", "203.0.113.10"] {
        assert!(!node.is_banned(address(other)).unwrap(), "{other}");
    }
    assert!(node.cli(&["list"]).contains("203.0.113.9"));
    node.cli(&["unban", "64:ff9b::203.0.113.9"]);
    node.wait_for(address("203.0.113.9"), false);
}

#[test]
fn configured_prefixes_of_translators_are_used() {
    let node = NodeConfig::new().set("ban.nat64_prefixes", vec!["2001:db8:64::/96"]).start();
    node.admin().ban(address("203.0.113.9")).unwrap();
    node.wait_for(address("2001:db8:64::203.0.113.9"), true);
    assert!(!node.is_banned(address("64:ff9b::203.0.113.9")).unwrap());
}

#[test]
fn own_addresses_and_addresses_that_are_not_unicast_are_never_banned() {
    let node = NodeConfig::new()
        .set("ban.ignore_self", true)
        .set("spoa.allowed_clients", vec!["127.0.0.0/24", "203.0.113.77/32"])
        .set("syslog.allowed_senders", vec!["127.0.0.0/8", "203.0.113.78/32"])
        .start();
    let never = ["127.0.0.1", "::1", "203.0.113.77", "203.0.113.78", "255.255.255.255", "224.0.0.1", "0.0.0.0"];
    for source in never {
        node.fail_logins(address(source), 10);
    }
    node.ban_by_log(address("203.0.113.79"));
    for source in never {
        assert!(!node.is_banned(address(source)).unwrap(), "{source}");
        let refused = ban(&node, source);
        assert!(
            refused.contains("is an address of this node")
                || refused.contains("clients from the Internet have no such address"),
            "{refused}"
        );
    }
    assert!(node.cli(&["why", "203.0.113.77"]).contains("ban.ignore_self"));
    // An address that is added to an interface follows.
    let added = "127.203.0.99";
    let lo = |action: &str| {
        Command::new("ip")
            .args(["address", action, &format!("{added}/32"), "dev", "lo"])
            .status()
            .is_ok_and(|s| s.success())
    };
    if lo("add") {
        wait::until("the new address is protected", wait::SOON, || node.log().contains(added));
        lo("del");
        node.fail_logins(address("203.0.113.80"), 1);
    }
}

/// The error of `banmesh ban`.
fn ban(node: &Node, target: &str) -> String {
    let mut command = Command::new(binary());
    let output = command.arg("--config").arg(node.config_file()).args(["ban", target]).output().unwrap();
    assert!(!output.status.success(), "{target} was banned");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
