//! The systemd journal, by `journalctl` as a child: it knows the format of the files, and follows them as they are rotated.
//!
//! The child writes one JSON object an entry. It is started again when it ends, with a growing pause, after the entry that was
//! handed over last: its cursor is kept in a file over restarts of ours, too.

mod entry;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
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
pub use self::entry::program_and_message;
use crate::clock;
use crate::inputs::syslog::{self, DropReason, Intake, LineSink, Transport};
use crate::net::throttle::LogThrottle;
use banmesh_syslog::{flatten, trim, trim_end};

/// How long the first pause is before the child is started again, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// After so many ends in a row without an entry the cursor is to blame, and is given up.
const PATIENCE: u32 = 4;

/// How often the cursor is written, at most: what came since is read twice after a crash.
const KEEP: Duration = Duration::from_millis(250);

/// Whose lines they are.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What an entry has beside its message, which as an array of numbers takes four times its size.
const FRAME: usize = 16 * 1024;

/// Under which name the cursor lies in the data directory.
pub const CURSOR: &str = "inputs-journal.cursor";

/// What is followed.
#[derive(Clone, Debug)]
pub struct JournaldConfig {
    /// `inputs.journal.units`: only these; all, where there are none.
    pub units: Vec<String>,
    /// `inputs.journal.matches`: only entries with these fields.
    pub matches: Vec<String>,
    /// `inputs.journal.command`: what is run.
    pub command: PathBuf,
    /// Where the cursor is kept: [`CURSOR`] in `node.data_dir`.
    pub cursor: PathBuf,
    /// `inputs.catch_up`: older entries are passed over.
    pub catch_up: Duration,
    /// `syslog.max_line`: the longest message in bytes.
    pub max_line: usize,
}

/// Why the journal cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum JournaldError {
    /// There is no such program.
    #[error(
        "inputs.journal.command: cannot find the program `{}`: install systemd, name the program's path, or set \
         inputs.journal.enabled: false", .0.display()
    )]
    Missing(PathBuf),
    /// The cursor cannot be read.
    #[error("cannot read {} (in node.data_dir): {source}", path.display())]
    Cursor {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is counted beside the lines; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    starts: Counter,
    old: Counter,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_journal_reader_starts", "Starts of journalctl", self.starts.clone());
        registry.register(
            "banmesh_journal_reader_old",
            "Entries of the systemd journal skipped because they were older than inputs.catch_up",
            self.old.clone(),
        );
    }

    /// How often the child was started.
    pub const fn starts(&self) -> &Counter {
        &self.starts
    }

    /// Entries that were too old.
    pub const fn old(&self) -> &Counter {
        &self.old
    }
}

/// A journal to be followed.
#[derive(Debug)]
pub struct Journald<S> {
    config: JournaldConfig,
    program: PathBuf,
    intake: Intake<S>,
    empty: Counter,
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
    /// It ended after so many entries.
    Child(u64),
}

impl<S: LineSink> Journald<S> {
    /// Finds the program and the cursor.
    ///
    /// # Errors
    /// When there is no such program, or the cursor cannot be read.
    pub fn bind(
        config: JournaldConfig,
        sink: S,
        lines: &syslog::Metrics,
        metrics: Metrics,
    ) -> Result<Self, JournaldError> {
        let program = find(&config.command).ok_or_else(|| JournaldError::Missing(config.command.clone()))?;
        let cursor = match fs::read_to_string(&config.cursor) {
            Ok(text) => Some(text.trim().to_owned()).filter(|cursor| !cursor.is_empty()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(JournaldError::Cursor { path: config.cursor, source }),
        };
        Ok(Self {
            program,
            intake: Intake::new(sink, lines, Transport::Journal, config.max_line),
            empty: lines.dropped(Transport::Journal, DropReason::Empty),
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
                warn!(
                    "journalctl ends at once after the last entry that was read; going on with the entries from now on"
                );
            }
            warn!(again_in_ms = pause.as_millis(), "journalctl ended; starting it again");
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
        command.arg("--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_COMM");
        match &self.cursor {
            Some(cursor) => command.arg(format!("--after-cursor={cursor}")).arg("--lines=all"),
            None => command.arg("--lines=0"),
        };
        command.args(self.config.units.iter().map(|unit| format!("--unit={unit}")));
        command.args(&self.config.matches);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs the child until one of us ends.
    async fn run(&mut self, shutdown: &CancellationToken) -> io::Result<RunEnd> {
        let mut child = self.command().spawn()?;
        self.metrics.starts.inc();
        let complaints = child.stderr.take().map(|stderr| tokio::spawn(complaints(stderr)));
        let entries = match child.stdout.take() {
            Some(stdout) => self.entries(stdout, shutdown).await,
            None => Some(0),
        };
        stop(&mut child).await;
        if let Some(complaints) = complaints {
            // Something that the child left behind may hold its end open.
            let abort = complaints.abort_handle();
            if tokio::time::timeout(Duration::from_secs(1), complaints).await.is_err() {
                abort.abort();
            }
        }
        self.keep();
        Ok(entries.map_or(RunEnd::Shutdown, RunEnd::Child))
    }

    /// Hands over what the child writes, and says how many entries it were; `None` when we are to end.
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

    /// Hands over one entry; whether it was one.
    fn entry(&mut self, line: &[u8]) -> bool {
        let Some(entry) = Entry::parse(line) else {
            self.malformed.inc();
            if let Some(held_back) = self.throttle.permit(Instant::now()) {
                warn!(held_back, "journalctl wrote what is no entry");
            }
            return false;
        };
        self.cursor = Some(entry.cursor);
        let age = clock::now().0.saturating_sub(entry.written.0);
        if u128::from(age) > self.config.catch_up.as_millis() {
            self.metrics.old.inc();
            return true;
        }
        let mut message = entry.message;
        let length = trim_end(&message).len();
        message.truncate(length);
        if trim(&message).is_empty() {
            self.empty.inc();
        } else if message.len() > self.intake.max_line() {
            self.intake.oversized(HERE, 1);
        } else {
            flatten(&mut message);
            match entry.program {
                Some(program) => self.intake.message(HERE, &program, &message),
                None => self.intake.line(HERE, &message),
            }
        }
        true
    }

    /// Writes the cursor where it changed. It is one small file, written beside itself and renamed.
    fn keep(&mut self) {
        self.kept_at = Instant::now();
        if self.kept == self.cursor {
            return;
        }
        let beside = self.config.cursor.with_extension("new");
        let text = self.cursor.clone().unwrap_or_default();
        if let Err(error) = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.config.cursor))
            && let Some(held_back) = self.throttle.permit(Instant::now())
        {
            warn!(file = %self.config.cursor.display(), %error, held_back, "cannot keep how far the journal was read");
        }
        self.kept.clone_from(&self.cursor);
    }
}

/// Ends the child and waits until it is gone.
async fn stop(child: &mut Child) {
    // It has ended already, or there is nothing to be done about it.
    let _ = child.start_kill();
    let _ = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
}

/// Logs what the child complains about, bounded.
async fn complaints(stderr: ChildStderr) {
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

/// Where the program is: as named, or in one of the directories of `PATH`.
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
