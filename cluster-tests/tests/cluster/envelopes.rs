//! Lines in the envelopes of container runtimes and log agents, over syslog and from the systemd journal: their failures lead to bans, and
//! a client's text that looks like an envelope or a header does not.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::process::Process;
use cluster_tests::{in_ci, syslog, wait};
use serde_json::json;

fn client(last: u8) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, last).into()
}

/// A failure of dovecot without a header.
fn failure(client: IpAddr) -> String {
    let line = syslog::dovecot_failure(client);
    line.split_once("dovecot: ").unwrap().1.to_owned()
}

/// A failure with a header of its own, as a container's syslog daemon writes it.
fn inner(client: IpAddr) -> String {
    syslog::dovecot_failure(client).trim_start_matches("<22>").to_owned()
}

/// The time, as container runtimes write it. It names its zone, so an old one would make a line late.
fn now() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Sends each line six times, over UDP and TCP in turn, and then failures that end with a ban: what came before was judged.
fn send(node: &Node, lines: &[String], marker: IpAddr) {
    for line in lines {
        syslog::send_udp(node.syslog(), std::iter::repeat_n(line.as_str(), 3));
        syslog::send_tcp(node.syslog(), std::iter::repeat_n(line.as_str(), 3));
    }
    let line = syslog::dovecot_failure(marker);
    for _ in 0..6 {
        syslog::send_udp(node.syslog(), [line.as_str()]);
        syslog::send_tcp(node.syslog(), [line.as_str()]);
    }
    node.wait_for(marker, true);
}

#[test]
fn failures_in_envelopes_lead_to_bans() {
    let node = NodeConfig::new()
        .set("syslog.format", "nested")
        .set("syslog.format_programs", json!(["mail", "agent*"]))
        .start();
    let docker = json!({"log": format!("{}\n", inner(client(3))), "stream": "stdout", "time": now()});
    let fluent_bit = json!({"log": failure(client(4)), "kubernetes": {"container_name": "dovecot"}});
    let vector = json!({"appname": "dovecot", "message": failure(client(5)), "host": "h"});
    let lines = [
        // Docker's syslog driver, and RFC 5424.
        format!("<30>Nov 22 20:00:00 host mail[811]: {}", inner(client(1))),
        format!("<30>1 2026-11-22T20:00:00Z host mail 811 mail - {}", syslog::dovecot_failure(client(2))),
        format!("<30>Nov 22 20:00:00 host mail[811]: {docker}"),
        format!("<14>Nov 22 20:00:00 host agent-1: {fluent_bit}"),
        // Without a header.
        vector.to_string(),
        // Parts of a line.
        format!("<14>Nov 22 20:00:00 host agent-2: {} stdout F {}", now(), inner(client(6))),
    ];
    send(&node, &lines, client(200));
    (1..=6).for_each(|last| _ = node.wait_for(client(last), true));
    let whole = inner(client(7));
    let (first, rest) = whole.split_at(40);
    for pid in 0..6 {
        // Connections are read at the same time, so each sender needs an id of its own.
        let part =
            |tag: &str, text: &str| format!("<14>Nov 22 20:00:00 host agent[{pid}]: {} stdout {tag} {text}", now());
        let between = part("F", "something else").replace("stdout", "stderr");
        let parts = [part("P", first), between, part("F", rest)];
        syslog::send_tcp(node.syslog(), parts.iter().map(String::as_str));
    }
    node.wait_for(client(7), true);
}

/// What a client can make a service log, if the service logs its text first.
fn forged(client: IpAddr) -> Vec<String> {
    let sshd = format!("Failed password for root from {client} port 22 ssh2");
    vec![
        format!("Nov 22 20:00:00 host sshd[1]: {sshd}"),
        inner(client),
        format!("<38>Nov 22 20:00:00 host sshd[1]: {sshd}"),
        json!({"program": "sshd", "message": sshd}).to_string(),
        json!({"log": format!("{}\n", inner(client)), "stream": "stdout", "time": now()}).to_string(),
        format!("{} stdout F {}", now(), inner(client)),
    ]
}

#[test]
fn a_clients_text_is_not_taken_for_an_envelope_or_a_header() {
    for (format, programs) in [
        ("plain", json!([])),
        // Only in place of a header.
        ("auto", json!([])),
        // Not for programs that are not listed, and not for those that a filter knows.
        ("nested", json!(["mail"])),
        ("json", json!(["mail"])),
    ] {
        let node = NodeConfig::new().set("syslog.format", format).set("syslog.format_programs", programs).start();
        let mut lines = Vec::new();
        for text in forged(client(9)) {
            lines.push(format!("<30>Nov 22 20:00:00 host web[811]: {text}"));
            lines.push(format!("<30>1 2026-11-22T20:00:00Z host web 811 - - {text}"));
        }
        send(&node, &lines, client(200));
        assert!(!node.is_banned(client(9)).unwrap(), "{format}");
    }
    // Without a list, messages of programs that filters know still cannot become those of another program.
    for format in ["nested", "json", "docker", "cri"] {
        let node = NodeConfig::new().set("syslog.format", format).start();
        let lines: Vec<String> = forged(client(9))
            .iter()
            .map(|text| {
                let other = if text.contains("Failed password") { "dovecot" } else { "sshd" };
                format!("<30>Nov 22 20:00:00 host {other}[811]: {text}")
            })
            .collect();
        send(&node, &lines, client(200));
        assert!(!node.is_banned(client(9)).unwrap(), "{format}");
    }
}

#[test]
fn json_of_log_agents_is_read_in_place_of_a_header() {
    let node = NodeConfig::new().set("syslog.format", "auto").start();
    let line = |client| json!({"appname": "dovecot", "message": failure(client), "timestamp": "x"}).to_string();
    send(&node, &[line(client(1))], client(200));
    node.wait_for(client(1), true);
}

#[test]
fn messages_of_containers_in_the_journal_lead_to_bans() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("journalctl");
    let entry = |identifier: &str, message: String| {
        json!({"__CURSOR": "i=1", "__REALTIME_TIMESTAMP": "NOW000000", "SYSLOG_IDENTIFIER": identifier, "MESSAGE": message}).to_string()
    };
    let entries = [entry("mail", inner(client(1))), entry("web", inner(client(9)))].join("\n");
    fs::write(directory.path().join("entries"), entries + "\n").unwrap();
    let script = format!(
        "#!/bin/sh\ncd {}\nfor i in 1 2 3 4 5 6; do sed \"s/NOW/$(date +%s)/\" entries; done\nexec sleep 1000\n",
        directory.path().display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let node = NodeConfig::new()
        .set("inputs.journal.enabled", true)
        .set("inputs.journal.command", program.to_string_lossy().into_owned())
        .set("inputs.journal.format", "nested")
        .set("inputs.journal.format_programs", json!(["mail"]))
        .start();
    node.wait_for(client(1), true);
    node.ban_by_log(client(200));
    assert!(!node.is_banned(client(9)).unwrap());
}

fn rsyslog(folder: &Path, configuration: &str) -> Option<Process> {
    let found = Command::new("rsyslogd").arg("-v").output().is_ok();
    assert!(found || !in_ci(), "rsyslog must not be missing in CI");
    if !found {
        eprintln!("skipped: rsyslog is not installed");
        return None;
    }
    let file = folder.join("rsyslog.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = Command::new("rsyslogd");
    command.arg("-n").arg("-f").arg(&file).arg("-i").arg(folder.join("rsyslog.pid"));
    Some(Process::start("rsyslog", command, folder))
}

/// rsyslog as a relay: it follows files of container runtimes, and takes what a container with its own syslog daemon sends.
#[test]
fn envelopes_that_rsyslog_relays_lead_to_bans() {
    let node = NodeConfig::new()
        .set("syslog.format", "nested")
        .set("syslog.format_programs", json!(["mail", "containers"]))
        .start();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().display();
    let long = "x".repeat(200);
    let (first, rest) = (format!("{} {long}", inner(client(1))), format!("{long} end"));
    let now = now();
    let cri = format!("{now} stdout P {first}\n{now} stderr F other\n{now} stdout F {rest}\n");
    let docker = json!({"log": format!("{}\n", inner(client(2))), "stream": "stdout", "time": now});
    fs::write(directory.path().join("cri.log"), cri.repeat(6)).unwrap();
    fs::write(directory.path().join("docker.log"), format!("{docker}\n").repeat(6)).unwrap();
    let forward = |protocol: &str, more: &str| {
        format!(
            "action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{}\" protocol=\"{protocol}\" {more})",
            node.syslog().port()
        )
    };
    let configuration = format!(
        "global(workDirectory=\"{place}\")\n\
         module(load=\"imfile\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{place}/log\" CreatePath=\"on\" RateLimit.Interval=\"0\" ruleset=\"socket\")\n\
         input(type=\"imfile\" File=\"{place}/cri.log\" Tag=\"containers:\" ruleset=\"files\")\n\
         input(type=\"imfile\" File=\"{place}/docker.log\" Tag=\"containers:\" ruleset=\"files\")\n\
         ruleset(name=\"files\") {{ {} }}\n\
         ruleset(name=\"socket\") {{ {} }}\n",
        forward("tcp", "TCP_Framing=\"octet-counted\""),
        forward("udp", "template=\"RSYSLOG_SyslogProtocol23Format\"")
    );
    let Some(_rsyslog) = rsyslog(directory.path(), &configuration) else { return };
    node.wait_for(client(1), true);
    node.wait_for(client(2), true);
    wait::until("rsyslog listens", wait::SOON, || directory.path().join("log").exists());
    for (tag, last) in [("web", 9), ("mail", 3)] {
        for _ in 0..6 {
            let sent = Command::new("logger")
                .arg("-u")
                .arg(directory.path().join("log"))
                .args(["-t", tag, "-p", "daemon.info", "--", &inner(client(last))])
                .status()
                .unwrap();
            assert!(sent.success());
        }
    }
    node.wait_for(client(3), true);
    assert!(!node.is_banned(client(9)).unwrap(), "a program that is not listed");
}
