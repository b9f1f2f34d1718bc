//! The acceptance test in WebFail2Ban's integration guide: six lines sent by `nc -u`, in its exact format.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use cluster_tests::node::NodeConfig;
use cluster_tests::{in_ci, syslog};

/// Sends one line by the guide's own command. (`-q 0`: the guide's nc ended by itself.)
fn guide_line(to: SocketAddr, address: IpAddr) {
    let script = format!(
        r#"echo "<134>$(date '+%b %d %H:%M:%S') hostname dovecot: auth failed, method=PLAIN, rip={address}" | nc -q 0 -u {} {}"#,
        to.ip(),
        to.port()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn has_netcat() -> bool {
    let found = Command::new("nc").arg("-h").output().is_ok();
    assert!(found || !in_ci(), "nc (netcat-openbsd) must not be missing in CI");
    if !found {
        eprintln!("skipped: nc (netcat-openbsd) is not installed");
    }
    found
}

#[test]
fn the_fifth_line_of_the_guide_bans_and_the_sixth_changes_nothing() {
    if !has_netcat() {
        return;
    }
    // Everything relevant has its default, including the allowlist.
    let node = NodeConfig::new().unset("allowlist").start();
    let attacker: IpAddr = "192.168.1.100".parse().unwrap();

    for _ in 0..4 {
        guide_line(node.syslog(), attacker);
    }
    all_lines_have_been_read(&node, "198.51.100.1");
    assert!(!node.is_banned(attacker).unwrap(), "four failures are below the default of five");

    guide_line(node.syslog(), attacker);
    node.wait_for(attacker, true);
    let bans = ban_lines(&node, attacker);
    assert_eq!(bans.len(), 1, "{bans:?}");

    guide_line(node.syslog(), attacker);
    all_lines_have_been_read(&node, "198.51.100.2");
    assert!(node.is_banned(attacker).unwrap());
    assert_eq!(ban_lines(&node, attacker), bans, "the sixth line changes nothing");
}

/// Sends enough failures of another client for a ban, and waits for it. Then all earlier lines have been read.
fn all_lines_have_been_read(node: &cluster_tests::node::Node, marker: &str) {
    let marker = marker.parse().unwrap();
    let line = syslog::dovecot_failure(marker);
    syslog::send_udp(node.syslog(), [line.as_str(); 6]);
    node.wait_for(marker, true);
}

fn ban_lines(node: &cluster_tests::node::Node, address: IpAddr) -> Vec<String> {
    let address = address.to_string();
    node.log().lines().filter(|line| line.contains(&address) && line.contains("ban")).map(str::to_owned).collect()
}
