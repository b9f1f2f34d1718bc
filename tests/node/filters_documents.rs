//! The examples in docs/filters.md work: every filter recognises its lines after they pass through a real rsyslog, and through
//! syslog-ng if it is installed.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::inputs::syslog::{LineSink, Metrics, Protocol, Syslog, SyslogConfig};
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, Mode, Scratch, TestLine, Verdict, Writer};
use banmesh_syslog::parse;
use banmesh_types::address::Address;
use tokio_util::sync::CancellationToken;

/// The document's code blocks in `language`.
fn blocks(language: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/filters.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    page.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// A line that must be recognised, and the lines before it.
struct Sample {
    filter: String,
    program: String,
    lines: Vec<String>,
    source: Address,
}

/// Up to three offences of every filter, taken from the examples of its first rules, for a program with a fixed name.
fn samples(library: &FilterLibrary) -> Vec<Sample> {
    library.iter().flat_map(|loaded| samples_of(&loaded.filter)).collect()
}

fn samples_of(filter: &Filter) -> Vec<Sample> {
    let named = |test: &TestLine| {
        let program = test.program.as_ref().or_else(|| filter.services.first())?;
        let plain =
            !program.is_empty() && program.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/".contains(&byte));
        plain.then(|| program.clone())
    };
    let offences = filter.tests.iter().filter(|test| test.expected() == Verdict::Failure && test.mode == Mode::Normal);
    offences
        .filter_map(|test| {
            let lines = test.after.iter().chain([&test.line]).map(|line| MarkedLine::parse(line).example()).collect();
            Some(Sample { filter: filter.name.clone(), program: named(test)?, lines, source: test.source? })
        })
        // Skips lines that a shell or a log daemon would change on the way.
        .filter(|sample: &Sample| sample.lines.iter().all(|line| line.is_ascii() && line.trim() == line))
        .take(3)
        .collect()
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<Vec<u8>>>>);

impl LineSink for Lines {
    fn line(&mut self, _: Address, line: &[u8]) {
        self.0.lock().unwrap().push(line.to_vec());
    }
}

/// A log daemon that is killed at the end of the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Place {
    directory: tempfile::TempDir,
    lines: Lines,
    address: SocketAddr,
    detector: Detector,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    fn new(library: &FilterLibrary) -> Self {
        let (lines, stop) = (Lines::default(), CancellationToken::new());
        let config = SyslogConfig {
            address: "127.0.0.1:0".parse().unwrap(),
            protocol: Protocol::Udp,
            receive_buffer: 4 * 1024 * 1024,
            ..SyslogConfig::default()
        };
        let syslog = Syslog::bind(&config, lines.clone(), &Metrics::default()).unwrap();
        let address = syslog.udp_address().unwrap();
        tokio::spawn(syslog.serve(stop.clone()));
        let detector = library.detector(&["all".to_owned()], Mode::Normal, &[]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, lines, address, detector, _stop: stop.drop_guard() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts `program` with the configuration `text`, which must be valid.
    fn start(&self, program: &str, check: &[&str], run: &[&str], text: &str) -> Daemon {
        let config = self.path("daemon.conf");
        fs::write(&config, text).unwrap();
        let with = |arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(
                arguments.iter().map(|argument| argument.replace("DIR", &self.directory.path().display().to_string())),
            );
            command.arg("-f").arg(&config).stdin(Stdio::null());
            command
        };
        let checked = with(check).output().unwrap();
        assert!(checked.status.success(), "{}\n{text}", String::from_utf8_lossy(&checked.stderr));
        Daemon(with(run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Writes every sample's lines to a separate file. Returns the files with their programs.
    fn files(&self, samples: &[Sample]) -> Vec<(PathBuf, String)> {
        let write = |(number, sample): (usize, &Sample)| {
            let path = self.path(&format!("{}-{number}.log", sample.filter));
            fs::write(&path, sample.lines.join("\n") + "\n").unwrap();
            (path, sample.program.clone())
        };
        samples.iter().enumerate().map(write).collect()
    }

    /// Waits until all lines have arrived. Returns the samples that were not recognised.
    async fn judge(&self, samples: &[Sample]) -> Vec<String> {
        let expected: usize = samples.iter().map(|sample| sample.lines.len()).sum();
        for _ in 0..2000 {
            if self.lines.0.lock().unwrap().len() >= expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let lines = self.lines.0.lock().unwrap().clone();
        // The lines of a file arrive in order; those of different files may be interleaved.
        let mut scratch = Scratch::new();
        let mut seen: Vec<(Vec<u8>, Address)> = Vec::new();
        for line in &lines {
            let read = parse(line);
            let writer = Writer { hostname: read.hostname, pid: read.pid, ..Writer::default() };
            let view = LineView { program: read.program, message: read.message, raw: line, writer };
            if let Some(offence) = self.detector.detect(view, &mut scratch) {
                // rsyslog writes a tab that arrives over a socket as #011.
                let message = String::from_utf8_lossy(read.message).replace("#011", "\t").into_bytes();
                seen.push((message, offence.source));
            }
        }
        samples
            .iter()
            .filter(|sample| {
                let last = sample.lines.last().unwrap().as_bytes();
                !seen.iter().any(|(message, source)| message.as_slice() == last && *source == sample.source)
            })
            .map(|sample| format!("{}: {} {}", sample.filter, sample.program, sample.lines.join(" / ")))
            .collect()
    }
}

/// Whether `program` is installed; prints that the test is skipped if not.
fn is_here(program: &str, needed: bool) -> bool {
    let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(found || !needed || std::env::var_os("CI").is_none(), "{program} is not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

#[test]
fn every_filter_has_samples_and_a_row_in_the_document() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let samples = samples(&library);
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/filters.md")).unwrap();
    let rows: String =
        page.lines().filter(|line| line.starts_with("| ")).map(|line| line.split('|').nth(1).unwrap()).collect();
    for loaded in library.iter() {
        let name = &loaded.filter.name;
        assert!(samples.iter().any(|sample| sample.filter == *name), "{name} has no line that can be sent");
        assert!(rows.replace(',', " ").split_whitespace().any(|word| word == name), "{name} has no row");
    }
}

#[test]
fn the_document_says_where_the_bans_of_every_filter_can_hold() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/enforcement.md")).unwrap();
    let named: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with("| service | filters |"))
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(2).unwrap().split('`').skip(1).step_by(2))
        .collect();
    for loaded in library.iter() {
        let rows = named.iter().filter(|name| **name == loaded.filter.name).count();
        assert_eq!(rows, 1, "rows of {}", loaded.filter.name);
    }
    assert_eq!(named.len(), library.iter().count(), "a row names a filter that does not exist");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_in_files_read_by_rsyslog_are_recognised() {
    if !is_here("rsyslogd", true) {
        return;
    }
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let (place, samples) = (Place::new(&library), samples(&library));
    let block = blocks("rsyslog").into_iter().find(|block| block.contains("imfile")).unwrap();
    let (before, rest) = block.split_once("input(").unwrap();
    let (input, after) = rest.split_once('\n').unwrap();
    let mut text =
        format!("global(workDirectory=\"{}\" localHostname=\"mx\")\n{before}", place.directory.path().display());
    for (path, program) in place.files(&samples) {
        let input = input.replace("/var/log/nginx/error.log", &path.display().to_string());
        let _ = writeln!(text, "input({}", input.replace("Tag=\"nginx:\"", &format!("Tag=\"{program}:\"")));
    }
    text += &after.replace("port=\"514\"", &format!("port=\"{}\"", place.address.port()));
    let _daemon = place.start("rsyslogd", &["-N1"], &["-n", "-i", "DIR/pid"], &text);
    let missed = place.judge(&samples).await;
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), samples.len(), missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_received_and_forwarded_by_rsyslog_are_recognised() {
    if !is_here("rsyslogd", true) || !is_here("logger", true) {
        return;
    }
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let (place, samples) = (Place::new(&library), samples(&library));
    let block = blocks("rsyslog").into_iter().find(|block| !block.contains("imfile")).unwrap();
    let socket = place.path("log");
    let text = format!(
        "global(workDirectory=\"{}\" localHostname=\"mx\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         input(type=\"imuxsock\" Socket=\"{}\" RateLimit.Interval=\"0\" useSpecialParser=\"on\")\n{}",
        place.directory.path().display(),
        socket.display(),
        block.replace("127.0.0.1:514", &place.address.to_string()),
    );
    let _daemon = place.start("rsyslogd", &["-N1"], &["-n", "-i", "DIR/pid"], &text);
    for _ in 0..1000 {
        if socket.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (number, sample) in samples.iter().enumerate() {
        let facility = ["auth", "authpriv", "mail", "ftp", "daemon", "user", "local1", "local4"][number % 8];
        for line in &sample.lines {
            let status = Command::new("logger")
                .arg("--socket")
                .arg(&socket)
                .args(["--tag", &sample.program, "--id=4711", "--priority", &format!("{facility}.info"), "--", line])
                .status()
                .unwrap();
            assert!(status.success());
        }
    }
    let missed = place.judge(&samples).await;
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), samples.len(), missed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_in_files_read_by_syslog_ng_are_recognised() {
    if !is_here("syslog-ng", false) {
        return;
    }
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let (place, samples) = (Place::new(&library), samples(&library));
    let block = blocks("syslog-ng").remove(0);
    let mut lines = block.lines();
    let (source, destination, log) = (lines.next().unwrap(), lines.next().unwrap(), lines.next().unwrap());
    let mut text = "@version: 3.38\n".to_owned();
    let _ = writeln!(text, "{}", destination.replace("514", &place.address.port().to_string()));
    for (number, (path, program)) in place.files(&samples).iter().enumerate() {
        let source = source
            .replace("/var/log/nginx/error.log", &path.display().to_string())
            .replace("program-override(\"nginx\")", &format!("program-override(\"{program}\")"));
        let named = |text: &str| text.replace("s_nginx", &format!("s_{number}"));
        let _ = writeln!(text, "{}\n{}", named(&source), named(log));
    }
    let run = ["-F", "--no-caps", "-p", "DIR/pid", "-c", "DIR/ctl", "-R", "DIR/persist"];
    let _daemon = place.start("syslog-ng", &["-s", "--no-caps"], &run, &text);
    let missed = place.judge(&samples).await;
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), samples.len(), missed.join("\n"));
}
