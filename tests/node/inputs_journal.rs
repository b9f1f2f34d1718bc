//! The systemd journal, with a fake `journalctl` that writes recorded output of the real one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use banmesh::inputs::envelope::{LineFormat, Wrapping};
use banmesh::inputs::journald::{CURSOR, Journald, JournaldConfig, JournaldError, Metrics};
use banmesh::inputs::syslog::{self, DropReason, LineSink, Record, Transport};
use banmesh_types::address::Address;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl LineSink for Lines {
    fn line(&mut self, _sender: Address, line: &[u8]) {
        self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
    }

    fn message(&mut self, _sender: Address, program: &[u8], message: &[u8]) {
        let (program, message) = (String::from_utf8_lossy(program), String::from_utf8_lossy(message));
        self.0.lock().unwrap().push(format!("[{program}] {message}"));
    }

    fn record(&mut self, _sender: Address, record: Record<'_>) {
        let text = |text: Option<&[u8]>| String::from_utf8_lossy(text.unwrap_or(b"-")).into_owned();
        let (header, program) = (text(record.header.program), text(record.program));
        let nested = if record.nested { " nested" } else { "" };
        self.0.lock().unwrap().push(format!("[{header} {program}{nested}] {}", text(Some(record.text))));
    }
}

struct Place {
    directory: tempfile::TempDir,
    lines: Lines,
    syslog: syslog::Metrics,
    metrics: Metrics,
    wrapping: Wrapping,
}

struct Running {
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Place {
    /// A place with a `journalctl` that records its arguments and runs `script`.
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journalctl");
        let text = format!("#!/bin/sh\ncd {}\necho \"$*\" >>calls\n{script}\n", directory.path().display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            directory,
            lines: Lines::default(),
            syslog: syslog::Metrics::default(),
            metrics: Metrics::default(),
            wrapping: Wrapping::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> JournaldConfig {
        JournaldConfig {
            units: vec!["ssh.service".to_owned()],
            matches: vec!["_UID=0".to_owned()],
            command: self.path("journalctl"),
            cursor: self.path(CURSOR),
            catch_up: Duration::from_secs(600),
            max_line: 1024,
            wrapping: self.wrapping.clone(),
        }
    }

    fn start(&self) -> Running {
        let journal = Journald::bind(self.config(), self.lines.clone(), &self.syslog, self.metrics.clone()).unwrap();
        let shutdown = CancellationToken::new();
        Running { served: tokio::spawn(journal.serve(shutdown.clone())), shutdown }
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.path("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {what}");
}

/// An entry as `journalctl --output=json` writes it, including the fields that it always writes.
fn entry(number: u32, age: Duration, fields: &str) -> String {
    let written = (SystemTime::now() - age).duration_since(UNIX_EPOCH).unwrap().as_micros();
    format!(
        r#"{{"__CURSOR":"s=5f1c;i={number};b=9a0e;m=1d2;t=63;x=77","__REALTIME_TIMESTAMP":"{written}","__MONOTONIC_TIMESTAMP":"1122","_BOOT_ID":"9a0e",{fields}}}"#
    )
}

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn entries_become_lines_and_invalid_ones_are_counted() {
    let place = Place::new("cat entries\nexec sleep 60");
    let long = format!(r#""MESSAGE":"{}""#, "x".repeat(1025));
    let huge = format!(r#""MESSAGE":"{}""#, "x".repeat(100_000));
    let entries = [
        entry(
            1,
            NOW,
            r#""MESSAGE":"Failed password for root from 192.0.2.1 port 22 ssh2","SYSLOG_IDENTIFIER":"sshd","_COMM":"sshd-session""#,
        ),
        entry(2, NOW, r#""MESSAGE":[98,252,10,97],"_COMM":"dovecot""#),
        "no entry".to_owned(),
        entry(3, NOW, &long),
        entry(4, NOW, &huge),
        entry(5, NOW, r#""MESSAGE":null,"_COMM":"x""#),
        entry(6, Duration::from_secs(700), r#""MESSAGE":"old","_COMM":"x""#),
        entry(7, NOW, r#""MESSAGE":"nobody's""#),
    ];
    fs::write(place.path("entries"), entries.join("\n") + "\n").unwrap();
    let running = place.start();
    eventually("the last entry", || place.texts().len() == 3).await;
    assert_eq!(
        place.texts(),
        ["[sshd] Failed password for root from 192.0.2.1 port 22 ssh2", "[dovecot] b\u{fffd} a", "nobody's"]
    );
    let dropped = |reason| place.syslog.dropped(Transport::Journal, reason).get();
    assert_eq!(dropped(DropReason::Malformed), 1);
    assert_eq!(dropped(DropReason::Oversized), 2);
    assert_eq!(dropped(DropReason::Empty), 1);
    assert_eq!(place.metrics.old().get(), 1);
    assert_eq!(place.syslog.lines(Transport::Journal).get(), 3);
    let calls = place.calls();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].starts_with("--follow --output=json --all"), "{calls:?}");
    assert!(calls[0].ends_with("--lines=0 --unit=ssh.service _UID=0"), "{calls:?}");
    running.stop().await;
    assert!(fs::read_to_string(place.path(CURSOR)).unwrap().starts_with("s=5f1c;i=7;"));
}

#[tokio::test]
async fn messages_of_containers_are_joined_and_opened() {
    let mut place = Place::new("cat entries\nexec sleep 60");
    let programs = ["mail", "agent"].map(|name| glob::Pattern::new(name).unwrap());
    place.wrapping = Wrapping { format: LineFormat::Nested, programs: programs.to_vec() };
    let id = "0123456789abcdef".repeat(4);
    let container = |number, message: &str, more: &str| {
        let fields = format!(
            r#""MESSAGE":{message:?},"SYSLOG_IDENTIFIER":"{}","CONTAINER_ID_FULL":"{id}","CONTAINER_NAME":"mail","_PID":"7","PRIORITY":"6"{more}"#,
            &id[..12]
        );
        entry(number, NOW, &fields)
    };
    let part = r#","CONTAINER_PARTIAL_MESSAGE":"true""#;
    let entries = [
        container(1, "Nov 22 20:00:00 mail postfix/smtpd[7]: one", ""),
        container(2, "Nov 22 20:00:00 mail postfix/smtpd[7]: t", part),
        entry(3, NOW, r#""MESSAGE":"Nov 22 20:00:00 h sshd[1]: forged","SYSLOG_IDENTIFIER":"web""#),
        container(4, "w", part),
        container(5, "o", ""),
        entry(6, NOW, r#""MESSAGE":"{\"log\":\"three\",\"ident\":\"sshd\"}","SYSLOG_IDENTIFIER":"agent""#),
        container(7, "rest", r#","CONTAINER_PARTIAL_ORDINAL":"2","CONTAINER_PARTIAL_LAST":"true""#),
        entry(8, NOW, r#""MESSAGE":"end","SYSLOG_IDENTIFIER":"web""#),
    ];
    fs::write(place.path("entries"), entries.join("\n") + "\n").unwrap();
    let running = place.start();
    eventually("the last entry", || place.texts().len() == 5).await;
    assert_eq!(
        place.texts(),
        [
            "[mail - nested] Nov 22 20:00:00 mail postfix/smtpd[7]: one",
            "[web] Nov 22 20:00:00 h sshd[1]: forged",
            "[mail - nested] Nov 22 20:00:00 mail postfix/smtpd[7]: two",
            "[agent sshd nested] three",
            "[web] end",
        ]
    );
    assert_eq!(place.syslog.dropped(Transport::Journal, DropReason::Incomplete).get(), 1);
    running.stop().await;
}

#[tokio::test]
async fn journalctl_is_restarted_after_the_last_entry() {
    let place = Place::new(
        "case \"$*\" in *i=1*) cat second; exec sleep 60;; *after-cursor*) exit 1;; *) cat first; exit 3;; esac",
    );
    fs::write(place.path("first"), entry(1, NOW, r#""MESSAGE":"one","_COMM":"a""#) + "\n").unwrap();
    fs::write(place.path("second"), entry(2, NOW, r#""MESSAGE":"two","_COMM":"a""#) + "\n").unwrap();
    let running = place.start();
    eventually("both entries", || place.texts().len() == 2).await;
    assert_eq!(place.texts(), ["[a] one", "[a] two"]);
    assert!(place.calls()[1].contains("--after-cursor=s=5f1c;i=1;b=9a0e;m=1d2;t=63;x=77 --lines=all"));
    eventually("the cursor", || fs::read_to_string(place.path(CURSOR)).is_ok_and(|text| text.contains("i=2"))).await;
    running.stop().await;
    assert_eq!(place.metrics.starts().get(), 2);
    // The cursor survives a restart of the node.
    let running = place.start();
    eventually("the third start", || place.calls().len() > 2).await;
    assert!(place.calls()[2].contains("--after-cursor=s=5f1c;i=2;"));
    running.stop().await;
}

#[tokio::test]
async fn a_cursor_that_does_not_work_is_dropped() {
    let place = Place::new(
        "case \"$*\" in *after-cursor*) echo 'Failed to seek' >&2; exit 1;; esac\ncat entries; exec sleep 60",
    );
    fs::write(place.path("entries"), entry(9, NOW, r#""MESSAGE":"new","_COMM":"a""#) + "\n").unwrap();
    fs::write(place.path(CURSOR), "of=another;journal\n").unwrap();
    let running = place.start();
    eventually("an entry", || place.texts().len() == 1).await;
    assert!(place.calls().len() > 2);
    running.stop().await;
}

#[test]
fn without_journalctl_the_error_says_what_to_do() {
    let place = Place::new("");
    for command in [PathBuf::from("no-such-journalctl"), place.path("no-such-journalctl")] {
        let config = JournaldConfig { command: command.clone(), ..place.config() };
        let error = Journald::bind(config, Lines::default(), &place.syslog, Metrics::default()).unwrap_err();
        assert!(matches!(&error, JournaldError::Missing(path) if *path == command));
        let text = error.to_string();
        assert!(text.contains("inputs.journal.command") && text.contains("inputs.journal.enabled: false"), "{text}");
    }
}
