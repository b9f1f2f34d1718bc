//! Mail servers on other hosts: rsyslog forwards their logs to a node, by UDP and by TCP. Hosts are network namespaces.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use cluster_tests::netns::{Host, Network};
use cluster_tests::node::NodeConfig;
use cluster_tests::process::Process;
use cluster_tests::{in_ci, wait};

const ATTACKER: &str = "198.51.100.7";

/// Starts rsyslog on a host. It reads from the socket `log` in the folder and forwards everything with `action`.
fn rsyslog(host: &Host, folder: &Path, action: &str) -> Process {
    let place = folder.display();
    let configuration = format!(
        "global(workDirectory=\"{place}\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{place}/log\" CreatePath=\"on\" RateLimit.Interval=\"0\")\n\
         {action}\n"
    );
    let file = folder.join("rsyslog.conf");
    std::fs::write(&file, configuration).unwrap();
    let mut command = host.command("rsyslogd");
    command.arg("-n").arg("-f").arg(&file).arg("-i").arg(folder.join("rsyslog.pid"));
    let process = Process::start("rsyslog", command, folder);
    wait::until("rsyslog listens", wait::SOON, || folder.join("log").exists());
    process
}

/// Logs a failure on a host as dovecot does.
fn fail_to_log_in(folder: &Path, attempt: usize) {
    let message = format!(
        "imap-login: Disconnected: Connection closed (auth failed, {attempt} attempts in 2 secs): user=<alice@example.org>, \
         method=PLAIN, rip={ATTACKER}, lip=192.0.2.1, TLS, session=<q1w2e3r4>"
    );
    let output = Command::new("logger")
        .arg("-u")
        .arg(folder.join("log"))
        .args(["-t", "dovecot", "-p", "mail.info", "--", &message])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn forwards(action: impl FnOnce(SocketAddr) -> String) {
    if Command::new("rsyslogd").arg("-v").output().is_err() {
        assert!(!in_ci(), "rsyslog must not be missing in CI");
        eprintln!("skipped: rsyslog is not installed");
        return;
    }
    let Some((_network, hosts)) = Network::new(2) else { return };
    let [balancer, mail] = hosts.as_slice() else { panic!("two hosts") };
    let node = NodeConfig::at(balancer.address).start_on(balancer);
    let folder = tempfile::tempdir().unwrap();
    let _rsyslog = rsyslog(mail, folder.path(), &action(node.syslog()));
    for attempt in 1..=6 {
        fail_to_log_in(folder.path(), attempt);
    }
    node.wait_for(ATTACKER.parse().unwrap(), true);
    assert!(!node.is_banned("198.51.100.8".parse().unwrap()).unwrap());
}

#[test]
fn rsyslog_forwards_by_udp() {
    forwards(|to| format!("*.* @{to}"));
}

#[test]
fn rsyslog_forwards_by_tcp() {
    forwards(|to| format!("*.* @@{to}"));
}

#[test]
fn rsyslog_forwards_by_tcp_with_octet_counting_in_rfc_5424() {
    forwards(|to| {
        format!(
            "*.* action(type=\"omfwd\" target=\"{}\" port=\"{}\" protocol=\"tcp\" TCP_Framing=\"octet-counted\" \
             template=\"RSYSLOG_SyslogProtocol23Format\")",
            to.ip(),
            to.port()
        )
    });
}
