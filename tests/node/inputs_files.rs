//! Followed files: as they grow, as they are rotated by renaming and by truncation, and across restarts.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banmesh::inputs::envelope::LineFormat;
use banmesh::inputs::files::{Files, FilesConfig, Metrics, POSITIONS, Source};
use banmesh::inputs::syslog::{self, DropReason, LineSink, Transport};
use banmesh_types::address::Address;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl LineSink for Lines {
    fn line(&mut self, sender: Address, line: &[u8]) {
        assert!(sender.is_loopback());
        self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
    }

    fn message(&mut self, _sender: Address, program: &[u8], message: &[u8]) {
        let (program, message) = (String::from_utf8_lossy(program), String::from_utf8_lossy(message));
        self.0.lock().unwrap().push(format!("[{program}] {message}"));
    }
}

struct Place {
    directory: tempfile::TempDir,
    lines: Lines,
    syslog: syslog::Metrics,
    metrics: Metrics,
    max_line: usize,
    format: LineFormat,
}

struct Running {
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            lines: Lines::default(),
            syslog: syslog::Metrics::default(),
            metrics: Metrics::default(),
            max_line: 1024,
            format: LineFormat::Plain,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn start(&self, names: &[(&str, Option<&str>)]) -> Running {
        let pattern = |(name, program): &(&str, Option<&str>)| Source {
            path: self.path(name).to_str().unwrap().to_owned(),
            program: program.map(str::to_owned),
            format: self.format,
        };
        let config = FilesConfig {
            patterns: names.iter().map(pattern).collect(),
            positions: self.path(POSITIONS),
            catch_up: Duration::from_secs(600),
            max_line: self.max_line,
        };
        let files = Files::open(config, self.lines.clone(), &self.syslog, self.metrics.clone());
        let shutdown = CancellationToken::new();
        Running { served: tokio::spawn(files.serve(shutdown.clone())), shutdown }
    }

    fn texts(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }

    async fn has(&self, count: usize) -> Vec<String> {
        eventually(|| self.texts().len() >= count, || format!("{count} lines, but {}", self.texts().len())).await;
        self.texts()
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap();
    }
}

async fn eventually(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {}", what());
}

#[tokio::test]
async fn new_lines_are_read_once_they_are_complete() {
    let place = Place::new();
    place.append("mail.log", "old\nhalf of an old line");
    let running = place.start(&[("mail.log", None), ("access.log", Some("nginx"))]);
    place.append("mail.log", " and its end\none\r\n\n\ntw");
    place.append("access.log", "first\n");
    let mut texts = place.has(2).await;
    texts.sort();
    assert_eq!(texts, ["[nginx] first", "one"]);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(place.texts().len(), 2);
    place.append("mail.log", "o\nthree\n");
    assert_eq!(place.has(4).await[2..], ["two", "three"]);
    assert_eq!(place.syslog.lines(Transport::File).get(), 4);
    assert_eq!(place.syslog.dropped(Transport::File, DropReason::Empty).get(), 2);
    assert_eq!(place.metrics.followed().get(), 2);
    running.stop().await;
}

#[tokio::test]
async fn an_endless_line_is_dropped_at_the_limit() {
    let place = Place::new();
    place.append("log", "");
    let running = place.start(&[("log", None)]);
    let long = "x".repeat(1_000_000);
    place.append("log", &format!("{}\n{long}", "y".repeat(1025)));
    let oversized = place.syslog.dropped(Transport::File, DropReason::Oversized);
    eventually(|| oversized.get() == 2, || "two long lines".to_owned()).await;
    place.append("log", "still the long line\nnext\n");
    assert_eq!(place.has(1).await, ["next"]);
    running.stop().await;
}

#[tokio::test]
async fn a_glob_matches_new_files_but_rotated_files_are_read_once() {
    let place = Place::new();
    place.append("a.access.log", "old\n");
    let running = place.start(&[("*access.log*", None)]);
    place.append("a.access.log", "one\n");
    place.has(1).await;
    place.append("b.access.log", "two\n");
    place.append("c.access.log.gz", "packed\n");
    place.append(".hidden.access.log", "hidden\n");
    assert_eq!(place.has(2).await, ["one", "two"]);
    fs::rename(place.path("a.access.log"), place.path("a.access.log.1")).unwrap();
    place.append("a.access.log", "three\n");
    assert_eq!(place.has(3).await, ["one", "two", "three"]);
    fs::copy(place.path("b.access.log"), place.path("b.access.log.1")).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    place.append("b.access.log", "four\n");
    assert_eq!(place.has(4).await, ["one", "two", "three", "four"]);
    running.stop().await;
}

#[tokio::test]
async fn a_restart_continues_at_the_saved_position() {
    let place = Place::new();
    place.append("log", "old\n");
    let running = place.start(&[("log", None)]);
    place.append("log", "one\nhal");
    place.has(1).await;
    running.stop().await;
    // While the node is down, the file grows, is rotated, and grows again.
    place.append("log", "f\ntwo\n");
    fs::rename(place.path("log"), place.path("log.1")).unwrap();
    place.append("log.1", "three\n");
    place.append("log", "four\n");
    let running = place.start(&[("log", None)]);
    let mut texts = place.has(5).await;
    texts.sort();
    assert_eq!(texts, ["four", "half", "one", "three", "two"]);
    place.append("log", "five\n");
    assert_eq!(place.has(6).await[5], "five");
    running.stop().await;
    // Truncated, and longer than before at the next poll.
    fs::write(place.path("log"), "six is longer than what was there\nseven\n").unwrap();
    let running = place.start(&[("log", None)]);
    assert_eq!(place.has(8).await[6..], ["six is longer than what was there", "seven"]);
    running.stop().await;
}

#[tokio::test]
async fn old_or_damaged_positions_are_ignored() {
    let place = Place::new();
    place.append("log", "");
    place.start(&[("log", None)]).stop().await;
    let kept = fs::read_to_string(place.path(POSITIONS)).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&kept).unwrap();
    value["saved"] = (value["saved"].as_u64().unwrap() - 700_000).into();
    for broken in [value.to_string(), "{".to_owned(), String::new()] {
        place.append("log", "while away\n");
        fs::write(place.path(POSITIONS), broken).unwrap();
        place.start(&[("log", None)]).stop().await;
        assert_eq!(place.texts(), [""; 0]);
    }
    place.append("log", "while away for a moment\n");
    place.start(&[("log", None)]).stop().await;
    assert_eq!(place.texts(), ["while away for a moment"]);
}

#[tokio::test]
async fn files_that_cannot_be_opened_are_counted_and_retried() {
    let place = Place::new();
    // A name that exists but cannot be opened, not even by root.
    std::os::unix::fs::symlink(place.path("loop"), place.path("loop")).unwrap();
    fs::create_dir(place.path("directory")).unwrap();
    nix::unistd::mkfifo(&place.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let running = place.start(&[("loop", None), ("directory", None), ("pipe", None), ("none", None)]);
    eventually(|| place.metrics.failures().get() > 0, || "a failure".to_owned()).await;
    fs::remove_file(place.path("loop")).unwrap();
    place.append("none", "one\n");
    place.has(1).await;
    // Lines from before the file could be opened are old; later ones are not.
    place.append("loop", "old\n");
    eventually(|| place.metrics.followed().get() == 2, || "the file to be followed".to_owned()).await;
    place.append("loop", "two\n");
    assert_eq!(place.has(2).await, ["one", "two"]);
    running.stop().await;
}

#[tokio::test]
async fn a_rewritten_file_is_read_on_after_the_last_known_line() {
    let place = Place::new();
    let old: String = (0..50).map(|day| format!("Oct 12 03:00:{day:02} host sshd[1]: failure\n")).collect();
    place.append("log", &old);
    let running = place.start(&[("log", None)]);
    place.append("log", "Nov 22 20:00:00 host sshd[1]: one\n");
    place.has(1).await;
    // `sed -i` writes a new file and gives it the name of the old one.
    fs::write(place.path("new"), format!("{}Nov 22 20:00:00 host sshd[1]: one\n", old.replace("host", "other")))
        .unwrap();
    fs::rename(place.path("new"), place.path("log")).unwrap();
    place.append("log", "the second line\n");
    assert_eq!(place.has(2).await[1..], ["the second line"]);
    // An editor may write into the same file.
    let content = fs::read_to_string(place.path("log")).unwrap();
    fs::write(place.path("log"), content.split_once('\n').unwrap().1.to_owned() + "three\n").unwrap();
    assert_eq!(place.has(3).await[2..], ["three"]);
    running.stop().await;
}

#[tokio::test]
async fn lines_of_a_container_runtime_are_unwrapped() {
    let mut place = Place::new();
    place.format = LineFormat::Auto;
    place.append("container.log", "2026-11-22T20:00:00.1Z stdout F old\n");
    let running = place.start(&[("container.log", Some("nginx")), ("plain.log", None)]);
    place.append("container.log", "2026-11-22T20:00:00.1Z stdout P on\n2026-11-22T20:00:00.2Z stdout F e\n");
    assert_eq!(place.has(1).await, ["[nginx] one"]);
    let forged = "2026-11-22T20:00:00.1Z stdout F forged";
    place.append("plain.log", &format!("started\n{forged}\n"));
    assert_eq!(place.has(3).await[1..], ["started", forged]);
    running.stop().await;
}

#[tokio::test]
async fn the_rest_of_a_split_line_is_not_taken_for_a_line_after_a_restart() {
    let mut place = Place::new();
    place.format = LineFormat::Cri;
    place.append("container.log", "2026-11-22T20:00:00.1Z stdout P user=\n");
    let running = place.start(&[("container.log", Some("nginx"))]);
    running.stop().await;
    let running = place.start(&[("container.log", Some("nginx"))]);
    place.append("container.log", "2026-11-22T20:00:00.1Z stderr F other\n2026-11-22T20:00:00.2Z stdout F forged\n");
    assert_eq!(place.has(2).await, ["[nginx] other", "[nginx] user=forged"]);
    running.stop().await;
}

#[tokio::test]
async fn thousands_of_files_are_read() {
    let place = Place::new();
    for number in 0..3000 {
        place.append(&format!("{number}.log"), "old\n");
    }
    let running = place.start(&[("*.log", None)]);
    assert_eq!(place.metrics.followed().get(), 3000);
    for number in (0..3000).step_by(100) {
        place.append(&format!("{number}.log"), "new\n");
    }
    place.append("3000.log", "new\n");
    assert_eq!(place.has(31).await, vec!["new"; 31]);
    assert_eq!(place.metrics.unread().get(), 0);
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_read_is_reported() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.path("loop"), place.path("loop")).unwrap();
    let running = place.start(&[("loop", None)]);
    eventually(|| place.metrics.unread().get() == 1, || "one file that is not read".to_owned()).await;
    let problem = place.metrics.problem().unwrap();
    assert!(problem.starts_with("1 files of inputs.files are not read: ") && problem.contains("loop"), "{problem}");
    fs::remove_file(place.path("loop")).unwrap();
    eventually(|| place.metrics.unread().get() == 0, || "nothing that is not read".to_owned()).await;
    assert_eq!(place.metrics.problem(), None);
    running.stop().await;
}

#[tokio::test]
async fn files_behind_symbolic_links_are_read() {
    let place = Place::new();
    for directory in ["pods", "containers"] {
        fs::create_dir(place.path(directory)).unwrap();
    }
    place.append("pods/0.log", "");
    std::os::unix::fs::symlink(place.path("pods/0.log"), place.path("containers/a.log")).unwrap();
    let running = place.start(&[("containers/*.log", None)]);
    place.append("pods/0.log", "one\n");
    place.has(1).await;
    // The runtime rotates the file; the link stays.
    fs::rename(place.path("pods/0.log"), place.path("pods/0.log.1")).unwrap();
    place.append("pods/0.log", "two\n");
    assert_eq!(place.has(2).await, ["one", "two"]);
    running.stop().await;
}

const ROTATIONS: usize = 6;

/// Writes numbered lines continuously, in pieces of any length. Rotates only after lines of the new file were received,
/// because a file that is rotated twice between two polls is never seen.
fn write(path: &Path, lines: &Lines, mut rotate: impl FnMut(File, usize) -> File) -> usize {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    let (start, mut number, mut rotated, mut wanted) = (Instant::now(), 0, 0, String::new());
    while rotated < ROTATIONS {
        assert!(start.elapsed() < Duration::from_secs(60), "rotated {rotated} times in a minute");
        let first = number;
        for _ in 0..20 {
            let line = format!("line {number:08} of a service that has much to say\n");
            let (first, second) = line.split_at(number % line.len());
            file.write_all(first.as_bytes()).unwrap();
            file.write_all(second.as_bytes()).unwrap();
            number += 1;
        }
        if wanted.is_empty() {
            wanted = format!("line {first:08} of a service that has much to say");
        } else if lines.0.lock().unwrap().contains(&wanted) {
            rotated += 1;
            wanted.clear();
            file = rotate(file, rotated);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    number
}

async fn every_line_once(place: &Place, written: usize) {
    let mut texts = place.has(written).await;
    assert_eq!(texts.len(), written);
    texts.sort();
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(*text, format!("line {number:08} of a service that has much to say"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_renaming_under_a_busy_writer_loses_nothing() {
    let place = Place::new();
    let running = place.start(&[("log", None)]);
    let (path, lines) = (place.path("log"), place.lines.clone());
    let writer = tokio::task::spawn_blocking(move || {
        write(&path, &lines, |mut old, rotated| {
            fs::rename(&path, path.with_extension(rotated.to_string())).unwrap();
            let mut new = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            // A service keeps writing to the old file until it reopens its log.
            std::thread::sleep(Duration::from_millis(20));
            old.flush().unwrap();
            new.flush().unwrap();
            new
        })
    });
    let written = writer.await.unwrap();
    every_line_once(&place, written).await;
    assert_eq!(place.syslog.dropped(Transport::File, DropReason::Incomplete).get(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_under_a_busy_writer_loses_nothing() {
    let place = Place::new();
    let running = place.start(&[("log", None)]);
    let (path, lines) = (place.path("log"), place.lines.clone());
    let writer = tokio::task::spawn_blocking(move || {
        write(&path, &lines, |file, rotated| {
            // Like `copytruncate`, but without losing the lines written between copy and truncation.
            fs::copy(&path, path.with_file_name(format!("log.{rotated}"))).unwrap();
            file.set_len(0).unwrap();
            file
        })
    });
    let written = writer.await.unwrap();
    every_line_once(&place, written).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_under_a_busy_writer_lose_nothing() {
    let place = Place::new();
    place.append("log", "");
    let mut running = place.start(&[("log", None)]);
    let (path, lines) = (place.path("log"), place.lines.clone());
    let writer = tokio::task::spawn_blocking(move || {
        write(&path, &lines, |_, rotated| {
            fs::rename(&path, path.with_extension(rotated.to_string())).unwrap();
            OpenOptions::new().append(true).create(true).open(&path).unwrap()
        })
    });
    while !writer.is_finished() {
        tokio::time::sleep(Duration::from_millis(230)).await;
        running.stop().await;
        running = place.start(&[("log", None)]);
    }
    let written = writer.await.unwrap();
    every_line_once(&place, written).await;
    running.stop().await;
}
