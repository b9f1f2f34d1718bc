//! Mail servers on other hosts: rsyslog forwards their logs to a node over UDP and TCP, and the HAProxy in front of them refuses clients
//! that fail there. The hosts are network namespaces.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::netns::{Host, Network};
use cluster_tests::node::NodeConfig;
use cluster_tests::ports::free_port;
use cluster_tests::process::Process;
use cluster_tests::{client, in_ci, syslog, wait, with_every_haproxy};

const ATTACKER: &str = "198.51.100.7";

with_every_haproxy!(
    haproxy_refuses_clients_that_fail_at_the_mail_server_over_udp,
    haproxy_refuses_clients_that_fail_at_the_mail_server_over_tcp
);

/// Starts rsyslog on a host. It reads from the socket `log` in the folder and forwards everything with `action`.
fn rsyslog(host: &Host, folder: &Path, action: &str) -> Process {
    let place = folder.display();
    let configuration = format!(
        "global(workDirectory=\"{place}\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{place}/log\" CreatePath=\"on\" RateLimit.Interval=\"0\" \
         IgnoreTimestamp=\"off\" UseSysTimeStamp=\"off\")\n\
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

/// Logs a failure as dovecot does.
fn fail_to_log_in(folder: &Path, attempt: usize, from: &str) {
    let message = format!(
        "imap-login: Disconnected: Connection closed (auth failed, {attempt} attempts in 2 secs): user=<alice@example.org>, \
         method=PLAIN, rip={from}, lip=192.0.2.1, TLS, session=<q1w2e3r4>"
    );
    let output = Command::new("logger")
        .arg("-u")
        .arg(folder.join("log"))
        .args(["-t", "dovecot", "-p", "mail.info", "--", &message])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn has_rsyslog() -> bool {
    let found = Command::new("rsyslogd").arg("-v").output().is_ok();
    assert!(found || !in_ci(), "rsyslog must not be missing in CI");
    if !found {
        eprintln!("skipped: rsyslog is not installed");
    }
    found
}

fn failures_are_forwarded_and_lead_to_a_ban(action: impl FnOnce(SocketAddr) -> String) {
    if !has_rsyslog() {
        return;
    }
    let Some((_network, hosts)) = Network::new(2) else { return };
    let [balancer, mail] = hosts.as_slice() else { panic!("two hosts") };
    let node = NodeConfig::at(balancer.address).start_on(balancer);
    let folder = tempfile::tempdir().unwrap();
    let _rsyslog = rsyslog(mail, folder.path(), &action(node.syslog()));
    for attempt in 1..=6 {
        fail_to_log_in(folder.path(), attempt, ATTACKER);
    }
    node.wait_for(ATTACKER.parse().unwrap(), true);
    assert!(!node.is_banned("198.51.100.8".parse().unwrap()).unwrap());
}

#[test]
fn rsyslog_forwards_over_udp() {
    failures_are_forwarded_and_lead_to_a_ban(|to| format!("*.* @{to}"));
}

#[test]
fn rsyslog_forwards_over_tcp() {
    failures_are_forwarded_and_lead_to_a_ban(|to| format!("*.* @@{to}"));
}

#[test]
fn rsyslog_forwards_over_tcp_with_octet_counting_in_rfc_5424() {
    failures_are_forwarded_and_lead_to_a_ban(|to| {
        format!(
            "*.* action(type=\"omfwd\" target=\"{}\" port=\"{}\" protocol=\"tcp\" TCP_Framing=\"octet-counted\" \
             template=\"RSYSLOG_SyslogProtocol23Format\")",
            to.ip(),
            to.port()
        )
    });
}

/// Writes a message with the time `ago` before now to rsyslog, which keeps the time.
fn log_at(folder: &Path, ago: Duration, text: &str) {
    let output =
        Command::new("date").args(["-d", &format!("-{} seconds", ago.as_secs()), "+%b %e %T"]).output().unwrap();
    let stamp = String::from_utf8(output.stdout).unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(format!("<22>{} dovecot: {text}", stamp.trim_end()).as_bytes(), folder.join("log")).unwrap();
}

fn failure(from: &str) -> String {
    let line = syslog::dovecot_failure(from.parse().unwrap());
    line.split_once("dovecot: ").unwrap().1.to_owned()
}

/// An `omfwd` action with the queue of docs/inputs.md and `more` parameters.
fn queued(to: SocketAddr, more: &str) -> String {
    format!(
        "*.* action(type=\"omfwd\" target=\"{}\" port=\"{}\" protocol=\"tcp\" queue.type=\"LinkedList\" \
         queue.size=\"10000\" queue.timeoutEnqueue=\"0\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\" {more})",
        to.ip(),
        to.port()
    )
}

/// Five failures within 55 minutes, all delivered by rsyslog's queue when the node is back.
fn failures_during_an_outage_are_not_counted_together(template: &str) {
    if !has_rsyslog() {
        return;
    }
    let Some((_network, hosts)) = Network::new(2) else { return };
    let [balancer, mail] = hosts.as_slice() else { panic!("two hosts") };
    let mut node = NodeConfig::at(balancer.address).start_on(balancer);
    let folder = tempfile::tempdir().unwrap();
    let _rsyslog = rsyslog(mail, folder.path(), &queued(node.syslog(), template));
    node.stop();
    for minutes in [55, 44, 33, 22, 11] {
        log_at(folder.path(), Duration::from_secs(minutes * 60), &failure(ATTACKER));
    }
    node.restart();
    for _ in 0..6 {
        log_at(folder.path(), Duration::ZERO, &failure("198.51.100.9"));
    }
    node.wait_for("198.51.100.9".parse().unwrap(), true);
    wait::until("the late failures are left out", wait::SOON, || {
        node.log().contains("its line is older than the time window")
    });
    assert!(!node.is_banned(ATTACKER.parse().unwrap()).unwrap());
}

#[test]
fn failures_that_rsyslog_delivers_after_an_outage_are_not_counted_together() {
    failures_during_an_outage_are_not_counted_together("");
}

#[test]
fn failures_that_rsyslog_delivers_after_an_outage_in_rfc_5424_are_not_counted_together() {
    failures_during_an_outage_are_not_counted_together(
        "TCP_Framing=\"octet-counted\" template=\"RSYSLOG_SyslogProtocol23Format\"",
    );
}

#[test]
fn a_number_in_a_message_with_line_breaks_hides_no_line_that_rsyslog_forwards() {
    if !has_rsyslog() {
        return;
    }
    let Some((_network, hosts)) = Network::new(2) else { return };
    let [balancer, mail] = hosts.as_slice() else { panic!("two hosts") };
    let node = NodeConfig::at(balancer.address).start_on(balancer);
    let folder = tempfile::tempdir().unwrap();
    let action = format!("global(parser.escapeControlCharactersOnReceive=\"off\")\n{}", queued(node.syslog(), ""));
    let _rsyslog = rsyslog(mail, folder.path(), &action);
    log_at(folder.path(), Duration::ZERO, "first");
    for number in ["999999999 x", "60000 x", "60000 <22>x", "900 <22>x"] {
        log_at(folder.path(), Duration::ZERO, &format!("a client's text\n{number}"));
    }
    for _ in 0..6 {
        log_at(folder.path(), Duration::ZERO, &failure(ATTACKER));
    }
    node.wait_for(ATTACKER.parse().unwrap(), true);
}

/// An IMAP server that refuses every login. It logs the client's address, which HAProxy sends in the PROXY protocol.
fn strict_mail_server(host: &Host, log: PathBuf) -> SocketAddr {
    let listener = host.enter(|| TcpListener::bind((host.address, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        static ATTEMPTS: AtomicUsize = AtomicUsize::new(1);
        let serve = |mut stream: &TcpStream| -> io::Result<()> {
            let mut lines = BufReader::new(stream).lines();
            let head = lines.next().unwrap_or_else(|| Ok(String::new()))?;
            // HAProxy's health check is "PROXY UNKNOWN".
            let Some(from) = head.strip_prefix("PROXY TCP4 ").and_then(|rest| rest.split(' ').next()) else {
                return Ok(());
            };
            stream.write_all(b"* OK IMAP ready\r\n")?;
            for line in lines {
                if line?.contains("LOGIN") {
                    fail_to_log_in(&log, ATTEMPTS.fetch_add(1, Ordering::Relaxed), from);
                    stream.write_all(b"a NO wrong\r\n")?;
                }
            }
            Ok(())
        };
        // A client may close its connection at any time.
        listener.incoming().flatten().for_each(|stream| drop(serve(&stream)));
    });
    address
}

/// The server's answers to a client behind HAProxy and to its login; `None` if HAProxy refuses the client.
fn log_in(from: &Host, to: SocketAddr) -> io::Result<Option<(String, String)>> {
    from.enter(|| {
        let mut stream = client::connect(from.address, to)?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let greeting = match lines.next() {
            None => return Ok(None),
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Some(line) => line?,
        };
        stream.write_all(b"a LOGIN alice wrong\r\n")?;
        Ok(Some((greeting, lines.next().unwrap_or_else(|| Ok(String::new()))?)))
    })
}

/// Four hosts: HAProxy with a node, the mail server behind it, an attacker, and another client.
fn haproxy_refuses_clients_that_fail_at_the_mail_server(binary: &Binary, forward: &str) {
    if !has_rsyslog() {
        return;
    }
    let Some((_network, hosts)) = Network::new(4) else { return };
    let [balancer, mail, attacker, other] = hosts.as_slice() else { panic!("four hosts") };
    let node = NodeConfig::at(balancer.address).start_on(balancer);
    let folder = tempfile::tempdir().unwrap();
    let _rsyslog = rsyslog(mail, folder.path(), &format!("*.* {forward}{}", node.syslog()));
    let server = strict_mail_server(mail, folder.path().to_owned());
    let (http, imap) = balancer.enter(|| (loopback_port(), SocketAddr::new(balancer.address, free_port())));
    let config = Config::shipped("recipes/fail-closed.cfg")
        .listen(80, &http.to_string())
        .listen(143, &imap.to_string())
        .replace("127.0.0.1:10143 check", &format!("{server} send-proxy check"))
        .agents(node.spoa(), None);
    let haproxy = binary.start_on(balancer, config);
    haproxy.wait_for_agent("primary", "UP");
    wait::until("the mail server is UP", wait::SOON, || {
        haproxy.stat("imap-backend", "dovecot1", "status").is_some_and(|status| status.starts_with("UP"))
    });
    let served = Some(("* OK IMAP ready".to_owned(), "a NO wrong".to_owned()));
    for attempt in 1..=5 {
        assert_eq!(log_in(attacker, imap).unwrap(), served, "attempt {attempt} of five");
    }
    node.wait_for(attacker.address, true);
    assert_eq!(log_in(attacker, imap).unwrap(), None, "no banner");
    assert_eq!(log_in(other, imap).unwrap(), served, "another client");
    let (balancer, mail): (IpAddr, IpAddr) = (balancer.address, mail.address);
    assert!(!node.is_banned(balancer).unwrap() && !node.is_banned(mail).unwrap(), "not those in between");
}

fn haproxy_refuses_clients_that_fail_at_the_mail_server_over_udp(binary: &Binary) {
    haproxy_refuses_clients_that_fail_at_the_mail_server(binary, "@");
}

fn haproxy_refuses_clients_that_fail_at_the_mail_server_over_tcp(binary: &Binary) {
    haproxy_refuses_clients_that_fail_at_the_mail_server(binary, "@@");
}
