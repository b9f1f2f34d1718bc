//! The systemd journal, read through `journalctl` as a child process, which knows the file format and follows rotation.
//!
//! The child writes one JSON object per entry. When it ends, it is restarted after a growing pause, and continues after the last entry
//! that was passed on. The cursor of that entry is kept in a file, so that restarts of the node lose nothing either.

mod entry;

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::entry::Entry;
pub use self::entry::{program_and_message, timed_message};
use crate::clock;
use crate::inputs::envelope::{Opener, Wrapping};
use crate::inputs::syslog::{self, DropReason, Intake, LineSink, Record, Transport};
use crate::net::throttle::LogThrottle;
use crate::private;
use banmesh_syslog::envelope::{Content, Envelope, Part};
use banmesh_syslog::{Line, Written, flatten, trim, trim_end};
use banmesh_types::address::Address;

/// The first and the longest pause before the child is restarted.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// After this many runs in a row without an entry, the cursor is considered invalid and dropped.
const PATIENCE: u32 = 4;

/// The shortest interval between writes of the cursor. After a crash, the entries since the last write are read again.
const KEEP: Duration = Duration::from_millis(250);

/// The sender of the lines.
const HERE: Address = Address::LOCALHOST;

/// Room for the other fields of an entry. The message itself takes up to four times its size, as an array of numbers.
const FRAME: usize = 16 * 1024;

/// The name of the cursor file in the data directory.
pub const CURSOR: &str = "inputs-journal.cursor";

/// The settings for the journal.
#[derive(Clone, Debug)]
pub struct JournaldConfig {
    /// `inputs.journal.units`: the units to follow; all when empty.
    pub units: Vec<String>,
    /// `inputs.journal.matches`: fields that entries must have.
    pub matches: Vec<String>,
    /// `inputs.journal.command`: the journalctl program.
    pub command: PathBuf,
    /// The cursor file: [`CURSOR`] in `node.data_dir`.
    pub cursor: PathBuf,
    /// `inputs.catch_up`: older entries are skipped.
    pub catch_up: Duration,
    /// `syslog.max_line`: the longest message in bytes.
    pub max_line: usize,
    /// `inputs.journal.format` and `inputs.journal.format_programs`: which messages have envelopes.
    pub wrapping: Wrapping,
}

/// Why the journal cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum JournaldError {
    /// The program does not exist.
    #[error(
        "inputs.journal.command: cannot find the program `{}`: install systemd, name the program's path, or set \
         inputs.journal.enabled: false", .0.display()
    )]
    Missing(PathBuf),
}

/// The metrics of the journal input; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    starts: Counter,
    old: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_journal_reader_starts", "Starts of journalctl", self.starts.clone());
        registry.register(
            "banmesh_journal_reader_old",
            "Entries of the systemd journal skipped because they were older than inputs.catch_up",
            self.old.clone(),
        );
    }

    /// Starts of the child.
    pub const fn starts(&self) -> &Counter {
        &self.starts
    }

    /// Entries skipped because they were too old.
    pub const fn old(&self) -> &Counter {
        &self.old
    }
}

/// Follows the journal.
#[derive(Debug)]
pub struct Journald<S> {
    config: JournaldConfig,
    program: PathBuf,
    intake: Intake<S>,
    envelopes: Opener,
    malformed: Counter,
    metrics: Metrics,
    cursor: Option<String>,
    kept: Option<String>,
    kept_at: Instant,
    throttle: LogThrottle,
}

/// How a run of the child ended.
enum RunEnd {
    Shutdown,
    /// The child ended, after this many entries.
    Child(u64),
}

impl<S: LineSink> Journald<S> {
    /// Finds the program and loads the cursor. Without a usable cursor, it starts like a node that never followed the journal.
    ///
    /// # Errors
    /// When the program does not exist.
    pub fn bind(
        config: JournaldConfig,
        sink: S,
        lines: &syslog::Metrics,
        metrics: Metrics,
    ) -> Result<Self, JournaldError> {
        let program = find(&config.command).ok_or_else(|| JournaldError::Missing(config.command.clone()))?;
        let cursor = load_cursor(&config.cursor);
        Ok(Self {
            program,
            intake: Intake::new(sink, lines, Transport::Journal, config.max_line),
            envelopes: Opener::new(config.wrapping.clone(), config.max_line),
            malformed: lines.dropped(Transport::Journal, DropReason::Malformed),
            metrics,
            kept: cursor.clone(),
            cursor,
            kept_at: Instant::now(),
            throttle: LogThrottle::new(Duration::from_secs(60)),
            config,
        })
    }

    /// Follows the journal until `shutdown`.
    pub async fn serve(mut self, shutdown: CancellationToken) {
        info!(units = ?self.config.units, matches = ?self.config.matches, "following the systemd journal");
        let (mut pause, mut in_vain) = (PAUSES.0, 0);
        loop {
            let entries = match self.run(&shutdown).await {
                Ok(RunEnd::Shutdown) => break,
                Ok(RunEnd::Child(entries)) => entries,
                Err(error) => {
                    error!(program = %self.program.display(), %error, "cannot run the program of inputs.journal.command");
                    0
                }
            };
            if entries > 0 {
                (pause, in_vain) = (PAUSES.0, 0);
            } else {
                in_vain += 1;
            }
            if in_vain >= PATIENCE && self.cursor.take().is_some() {
                warn!("journalctl fails to continue after the last entry that was read; reading only new entries");
            }
            warn!(again_in_ms = pause.as_millis(), "journalctl ended; restarting it");
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        self.keep();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--follow", "--output=json", "--all", "--no-pager", "--quiet"]);
        command.arg(format!("--output-fields={}", entry::FIELDS));
        match &self.cursor {
            Some(cursor) => command.arg(format!("--after-cursor={cursor}")).arg("--lines=all"),
            None => command.arg("--lines=0"),
        };
        command.args(self.config.units.iter().map(|unit| format!("--unit={unit}")));
        command.args(&self.config.matches);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs the child until it ends or `shutdown`.
    async fn run(&mut self, shutdown: &CancellationToken) -> io::Result<RunEnd> {
        let mut child = self.command().spawn()?;
        self.metrics.starts.inc();
        let logging = child.stderr.take().map(|stderr| tokio::spawn(log_stderr(stderr)));
        let entries = match child.stdout.take() {
            Some(stdout) => self.entries(stdout, shutdown).await,
            None => Some(0),
        };
        stop(&mut child).await;
        if let Some(logging) = logging {
            // A process that the child started may keep the pipe open.
            let abort = logging.abort_handle();
            if tokio::time::timeout(Duration::from_secs(1), logging).await.is_err() {
                abort.abort();
            }
        }
        self.keep();
        Ok(entries.map_or(RunEnd::Shutdown, RunEnd::Child))
    }

    /// Passes on what the child writes and returns the number of entries; `None` on shutdown.
    async fn entries(&mut self, stdout: ChildStdout, shutdown: &CancellationToken) -> Option<u64> {
        let mut reader = BufReader::with_capacity(64 * 1024, stdout);
        let longest = 4 * self.config.max_line + FRAME;
        let (mut line, mut too_long, mut entries) = (Vec::new(), false, 0);
        loop {
            let read = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                read = reader.fill_buf() => read,
                () = tokio::time::sleep(KEEP), if self.kept != self.cursor => {
                    self.keep();
                    continue;
                }
            };
            let bytes = match read {
                Ok([]) => return Some(entries),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Some(entries),
            };
            let end = memchr::memchr(b'\n', bytes);
            let used = end.map_or(bytes.len(), |end| end + 1);
            if !too_long {
                line.extend_from_slice(bytes.get(..used).unwrap_or_default());
                too_long = line.len() > longest;
            }
            if too_long {
                line.clear();
            }
            reader.consume(used);
            if end.is_none() {
                continue;
            }
            if std::mem::take(&mut too_long) {
                self.intake.oversized(HERE, 1);
            } else if !trim(&line).is_empty() {
                entries += u64::from(self.entry(&line));
            }
            line.clear();
            if self.kept_at.elapsed() >= KEEP {
                self.keep();
            }
        }
    }

    /// Passes on one entry. Returns whether the line was an entry.
    fn entry(&mut self, line: &[u8]) -> bool {
        let Some(entry) = Entry::parse(line) else {
            self.malformed.inc();
            if let Some(held_back) = self.throttle.permit(Instant::now()) {
                warn!(held_back, "journalctl wrote a line that is not an entry");
            }
            return false;
        };
        self.cursor = Some(entry.cursor);
        let age = clock::now().0.saturating_sub(entry.written.0);
        if u128::from(age) > self.config.catch_up.as_millis() {
            self.metrics.old.inc();
            return true;
        }
        let length = trim_end(&entry.message).len();
        let mut text = entry.message;
        if entry.part == Part::Last {
            text.truncate(length);
        }
        let (source, part) = (entry.source, entry.part);
        let written = i64::try_from(entry.written.0).ok().map(Written::Exact);
        let whole = Envelope { source: Vec::new(), part, written, program: None, text };
        match self.envelopes.join(&source, whole) {
            Content::Line(mut line) if !trim(&line.text).is_empty() => {
                flatten(&mut line.text);
                let header = Line { program: entry.program.as_deref(), ..Line::default() };
                let record = Record { written, header, text: trim_end(&line.text), ..Record::default() };
                self.envelopes.message(HERE, &source, record, &mut self.intake);
            }
            // Empty, too long, or not complete yet.
            content => self.intake.content(HERE, content, Record::default()),
        }
        true
    }

    /// Saves the cursor if it changed. The file is written under another name and renamed.
    fn keep(&mut self) {
        self.kept_at = Instant::now();
        if self.kept == self.cursor {
            return;
        }
        let new = self.config.cursor.with_extension("new");
        let text = self.cursor.clone().unwrap_or_default();
        let written = private::create(&new).and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written.and_then(|()| fs::rename(&new, &self.config.cursor))
            && let Some(held_back) = self.throttle.permit(Instant::now())
        {
            warn!(file = %self.config.cursor.display(), %error, held_back, "cannot save the cursor of the journal");
        }
        self.kept.clone_from(&self.cursor);
    }
}

/// Ends the child and waits until it is gone.
async fn stop(child: &mut Child) {
    // An error means that it has ended already, or that nothing can be done.
    let _ = child.start_kill();
    let _ = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
}

/// Logs what the child writes to stderr, up to a limit.
async fn log_stderr(stderr: ChildStderr) {
    use tokio::io::AsyncReadExt as _;

    const MOST: u64 = 4096;
    let mut text = Vec::new();
    let mut stderr = stderr;
    // It ends with the child.
    let _ = (&mut stderr).take(MOST).read_to_end(&mut text).await;
    let text = String::from_utf8_lossy(&text);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()).take(5) {
        warn!("journalctl: {line}");
    }
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
}

/// The path of the program: as given, or in one of the directories of `PATH`.
/// The longest cursor that is used; those of systemd have about 150 bytes.
const MAX_CURSOR: usize = 1024;

/// The saved cursor. A file that cannot be read, or that holds something else, must not keep the node from starting.
fn load_cursor(path: &Path) -> Option<String> {
    let unusable = |error: &dyn std::fmt::Display| {
        warn!(file = %path.display(), %error, "cannot use the saved cursor of the journal; following it from its end");
        None
    };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return unusable(&error),
    };
    let text = bytes.trim_ascii();
    if text.len() > MAX_CURSOR || !text.iter().all(u8::is_ascii_graphic) {
        return unusable(&"it is not a cursor");
    }
    std::str::from_utf8(text).ok().filter(|cursor| !cursor.is_empty()).map(str::to_owned)
}

fn find(command: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if command.components().count() > 1 {
        return Some(command.to_owned()).filter(runs);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]);
    places.map(|place| place.join(command)).find(runs)
}
