//! A node that reads a file, the systemd journal and syslog over TLS: each of them leads to a ban.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cluster_tests::node::NodeConfig;
use cluster_tests::ports::free_port;
use cluster_tests::{syslog, wait};
use nix::sys::signal::Signal;
use serde_json::json;

fn client(last: u8) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, last).into()
}

/// Six failures of `client`, one per line, without a syslog priority.
fn failures(client: IpAddr) -> String {
    let line = syslog::dovecot_failure(client);
    format!("{}\n", line.trim_start_matches("<22>")).repeat(6)
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A self-signed certificate and its key.
fn certificate(directory: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=banmesh.example.org", "-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Sends `text` over TLS to a server with the certificate that is in `directory` now.
fn send_tls(directory: &Path, port: u16, text: &str) -> bool {
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-no_ign_eof", "-verify_return_error", "-CAfile", "certificate.pem"])
        .args(["-connect", &format!("127.0.0.1:{port}")])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The server may have closed the connection already, as it does after an invalid certificate.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait().unwrap().success()
}

#[test]
fn files_the_journal_and_syslog_over_tls_lead_to_bans() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let message = "imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<a@example.org>, \
                   method=PLAIN, rip=203.0.113.2, lip=192.0.2.1, TLS, session=<q1w2e3r4>";
    let script = format!(
        "#!/bin/sh\nfor i in 1 2 3 4 5 6; do\n  echo '{{\"__CURSOR\":\"i='$i'\",\"__REALTIME_TIMESTAMP\":\"'$(date +%s)'000000\",\
         \"SYSLOG_IDENTIFIER\":\"dovecot\",\"MESSAGE\":\"{message}\"}}'\ndone\nexec sleep 1000\n"
    );
    fs::write(path("journalctl"), script).unwrap();
    fs::set_permissions(path("journalctl"), fs::Permissions::from_mode(0o755)).unwrap();
    certificate(directory.path());
    append(&path("mail.log"), &failures(client(9)));
    let port = free_port();
    let place = |name: &str| path(name).to_string_lossy().into_owned();
    let mut node = NodeConfig::new()
        .set("inputs.files", json!([place("*.log")]))
        .set("inputs.journal.enabled", true)
        .set("inputs.journal.command", place("journalctl"))
        .set("syslog.tls.enabled", true)
        .set("syslog.tls.address", format!("127.0.0.1:{port}"))
        .set("syslog.tls.certificate", place("certificate.pem"))
        .set("syslog.tls.key", place("key.pem"))
        .start();
    append(&path("mail.log"), &failures(client(1)));
    node.wait_for(client(1), true);
    node.wait_for(client(2), true);
    assert!(send_tls(directory.path(), port, &failures(client(3))));
    node.wait_for(client(3), true);
    assert!(!node.is_banned(client(9)).unwrap(), "what was in the file before the start is not read");

    // A reload replaces the certificate.
    certificate(directory.path());
    node.signal(Signal::SIGHUP);
    wait::until("the new certificate", wait::SOON, || send_tls(directory.path(), port, &failures(client(4))));
    node.wait_for(client(4), true);

    // Lines that were written while the node was down.
    node.signal(Signal::SIGTERM);
    node.process().wait_for_exit(wait::SOON);
    append(&path("mail.log"), &failures(client(5)));
    node.restart();
    node.wait_for(client(5), true);
}
