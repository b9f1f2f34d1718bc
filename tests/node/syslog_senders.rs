//! Lines from real senders: `logger`, `nc` and rsyslogd. A test whose sender is not installed prints that it is skipped, and passes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::inputs::syslog::{LineSink, Metrics, Protocol, Syslog, SyslogConfig};
use banmesh_syslog::parse;
use banmesh_types::address::Address;
use tokio_util::sync::CancellationToken;

const MESSAGE: &str = "imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<bob>, rip=192.0.2.1";

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<Vec<u8>>>>);

impl LineSink for Lines {
    fn line(&mut self, _sender: Address, line: &[u8]) {
        self.0.lock().unwrap().push(line.to_vec());
    }
}

struct Running {
    lines: Lines,
    udp: SocketAddr,
    tcp: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

fn start() -> Running {
    let (lines, shutdown) = (Lines::default(), CancellationToken::new());
    let config = SyslogConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        protocol: Protocol::Both,
        receive_buffer: 1024 * 1024,
        ..SyslogConfig::default()
    };
    let syslog = Syslog::bind(&config, lines.clone(), &Metrics::default()).unwrap();
    let (udp, tcp) = (syslog.udp_address().unwrap(), syslog.tcp_address().unwrap());
    tokio::spawn(syslog.serve(shutdown.clone()));
    Running { lines, udp, tcp, _stop: shutdown.drop_guard() }
}

impl Running {
    /// Waits for the line that contains `text`.
    async fn line_with(&self, text: &str, what: &str) -> Vec<u8> {
        for _ in 0..1000 {
            let lines = self.lines.0.lock().unwrap().clone();
            if let Some(line) = lines.into_iter().find(|line| memchr::memmem::find(line, text.as_bytes()).is_some()) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: no line with `{text}` within 10 s, but {:?}", self.lines.0.lock().unwrap());
    }
}

/// The path of a program; prints that the test is skipped if there is none.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.find_map(|place| Some(place.join(program)).filter(|path| path.is_file()));
    if found.is_none() {
        eprintln!("skipped: `{program}` is not installed");
    }
    found
}

#[tokio::test]
async fn every_format_of_logger_is_parsed() {
    let Some(logger) = find("logger") else { return };
    let running = start();
    let (udp, tcp) = (["--udp"].as_slice(), ["--tcp"].as_slice());
    let counted = ["--tcp", "--octet-count"].as_slice();
    let mut number = 0;
    for transport in [udp, tcp, counted] {
        for format in ["--rfc3164", "--rfc5424"] {
            number += 1;
            let to = if transport == udp { running.udp } else { running.tcp };
            let what = format!("logger {transport:?} {format}");
            let message = format!("{MESSAGE}, session=<{number}>");
            let status = Command::new(&logger)
                .args(transport)
                .args([format, "--server", "127.0.0.1", "--port", &to.port().to_string()])
                .args(["--tag", "dovecot", "--id=4711", "--priority", "mail.info", "--", &message])
                .status()
                .unwrap();
            assert!(status.success(), "{what}");
            let line = running.line_with(&format!("session=<{number}>"), &what).await;
            let read = parse(&line);
            assert_eq!(read.priority.map(|priority| priority.value()), Some(22), "{what}");
            assert_eq!(read.program, Some(&b"dovecot"[..]), "{what}");
            assert_eq!(read.pid, Some(&b"4711"[..]), "{what}");
            assert_eq!(read.message, message.as_bytes(), "{what}");
            assert!(read.hostname.is_some() && read.timestamp.is_some(), "{what}");
        }
    }
    assert_eq!(running.lines.0.lock().unwrap().len(), number, "every line arrived once");
}

#[tokio::test]
async fn lines_from_netcat_arrive_as_datagrams_and_streams() {
    let Some(nc) = find("nc") else { return };
    let running = start();
    for (options, to) in [(["-u", "-w1"], running.udp), (["-N", "-w1"], running.tcp)] {
        let what = format!("nc {options:?}");
        let mut child = Command::new(&nc)
            .args(options)
            .args(["127.0.0.1", &to.port().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let line =
            format!("<134>Nov 22 20:00:00 hostname dovecot: auth failed, method=PLAIN, rip=192.0.2.1, {}\n", to.port());
        child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        let line = running.line_with(&format!(", {}", to.port()), &what).await;
        let read = parse(&line);
        assert_eq!((read.hostname, read.program), (Some(&b"hostname"[..]), Some(&b"dovecot"[..])), "{what}");
        assert!(read.message.starts_with(b"auth failed, method=PLAIN, rip=192.0.2.1"), "{what}");
        drop(Ended(child));
    }
}

/// A process that is killed at the end of the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A private rsyslogd, and the socket from which it reads the messages that it forwards.
fn rsyslogd(program: &Path, directory: &Path, action: &str) -> (Ended, PathBuf) {
    let socket = directory.join("log");
    let config = directory.join("rsyslog.conf");
    let text = format!(
        "global(workDirectory=\"{directory}\" localHostname=\"mail.example.org\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{socket}\" RateLimit.Interval=\"0\" useSpecialParser=\"on\")\n\
         {action}\n",
        directory = directory.display(),
        socket = socket.display(),
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new(program)
        .arg("-n")
        .arg("-f")
        .arg(&config)
        .arg("-i")
        .arg(directory.join("pid"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (Ended(child), socket)
}

#[tokio::test]
async fn every_format_of_rsyslogd_is_parsed() {
    let (Some(program), Some(logger)) = (find("rsyslogd"), find("logger")) else { return };
    let running = start();
    let (udp, tcp) = (running.udp.port(), running.tcp.port());
    let mut number = 0;
    for framing in [
        format!("protocol=\"udp\" port=\"{udp}\""),
        format!("protocol=\"tcp\" TCP_Framing=\"octet-counted\" port=\"{tcp}\""),
        format!("protocol=\"tcp\" TCP_Framing=\"traditional\" port=\"{tcp}\""),
    ] {
        for template in ["RSYSLOG_TraditionalForwardFormat", "RSYSLOG_ForwardFormat", "RSYSLOG_SyslogProtocol23Format"]
        {
            number += 1;
            let what = format!("{framing} {template}");
            let directory = tempfile::tempdir().unwrap();
            let action = format!("action(type=\"omfwd\" target=\"127.0.0.1\" template=\"{template}\" {framing})");
            let (_daemon, socket) = rsyslogd(&program, directory.path(), &action);
            for _ in 0..1000 {
                if socket.exists() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let message = format!("{MESSAGE}, session=<{number}>");
            let status = Command::new(&logger)
                .arg("--socket")
                .arg(&socket)
                .args(["--tag", "postfix/smtps/smtpd", "--id=4711", "--priority", "mail.info", "--", &message])
                .status()
                .unwrap();
            assert!(status.success(), "{what}");
            let line = running.line_with(&format!("session=<{number}>"), &what).await;
            let read = parse(&line);
            assert_eq!(read.priority.map(|priority| priority.value()), Some(22), "{what}");
            assert_eq!(read.hostname, Some(&b"mail.example.org"[..]), "{what}");
            // rsyslog ends APP-NAME at the first slash, unless global(parser.permitSlashInProgramName="on").
            let cut = template == "RSYSLOG_SyslogProtocol23Format";
            let program = if cut { "postfix" } else { "postfix/smtps/smtpd" };
            assert_eq!(read.program, Some(program.as_bytes()), "{what}");
            assert_eq!(read.pid, Some(&b"4711"[..]), "{what}");
            assert_eq!(read.message, message.as_bytes(), "{what}");
        }
    }
}

#[tokio::test]
async fn messages_that_rsyslogd_folds_are_recognised_as_repeats() {
    let (Some(program), Some(logger)) = (find("rsyslogd"), find("logger")) else { return };
    let running = start();
    let directory = tempfile::tempdir().unwrap();
    let action = format!(
        "$RepeatedMsgReduction on\nmodule(load=\"builtin:omfwd\" template=\"RSYSLOG_TraditionalForwardFormat\")\n\
         *.* @127.0.0.1:{}",
        running.udp.port()
    );
    let (_daemon, socket) = rsyslogd(&program, directory.path(), &action);
    for _ in 0..1000 {
        if socket.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for message in [MESSAGE, MESSAGE, MESSAGE, MESSAGE, "another one"] {
        let status = Command::new(&logger)
            .arg("--socket")
            .arg(&socket)
            .args(["--tag", "dovecot", "--id=4711", "--priority", "mail.info", "--", message])
            .status()
            .unwrap();
        assert!(status.success());
    }
    running.line_with("another one", "rsyslogd folding").await;
    let folded = running.line_with("message repeated", "rsyslogd folding").await;
    let read = parse(&folded);
    assert_eq!(read.program, Some(&b"dovecot"[..]));
    let repeat = read.repeat().unwrap();
    assert_eq!((repeat.count, repeat.message), (3, Some(MESSAGE.as_bytes())));
}
