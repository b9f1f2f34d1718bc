//! Log files, followed as they grow and as they are rotated.
//!
//! inotify reports which files were written, and when names change. Every `POLL`, the reported files are read. Files in directories that
//! cannot be watched, as on network file systems, are polled: one `stat` each, and a read of those that changed. Because a
//! report may be missing, all files are polled every `POLL_ALL`, or less often if there are many, and names are checked every `SCAN_ALL`.
//!
//! A file is identified by device and inode, whatever its name. A file that lost its name is read until it was quiet for
//! `LINGER`. A truncated file is read from its beginning, after the rest of its copy, and a rewritten file after the last line that is
//! known.

mod followed;
mod metrics;
mod patterns;
mod positions;
mod rewritten;
mod watch;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::followed::{Followed, From, Lines, Reader, Turn, place_of, resume, siblings};
pub use self::metrics::Metrics;
use self::metrics::fix;
use self::patterns::{Patterns, id_of};
use self::positions::{FileId, Position, Positions};
use self::watch::Watch;
use crate::clock;
use crate::inputs::envelope::LineFormat;
use crate::inputs::syslog::{self, DropReason, Intake, LineSink, Transport};
use crate::net::throttle::LogThrottle;

/// How often open files are polled.
const POLL: Duration = Duration::from_millis(250);

/// How often files are polled whose writes are reported.
const POLL_ALL: Duration = Duration::from_secs(5);

/// The same for many files, for each of them: at most 250 files are polled per second, however many there are.
const POLL_ALL_PER_FILE: Duration = Duration::from_millis(4);

/// How often names are checked at most, and how often in directories that cannot be watched.
const SCAN: Duration = Duration::from_secs(1);

/// How often names are checked of files that could not be opened.
const SCAN_FAILED: Duration = Duration::from_secs(5);

/// How often names are checked in directories that are watched.
const SCAN_ALL: Duration = Duration::from_secs(30);

/// How long a file that lost its name must be quiet before it is closed.
const LINGER: Duration = Duration::from_secs(60);

/// The limit on followed files. Half of the process's limit on open files, if that is lower.
const MAX_FILES: usize = 16_384;

/// How often the positions are saved even if nothing changed, because their age tells how long a node was down.
const KEEP: Duration = Duration::from_secs(60);

/// How long positions that changed are not saved, for each followed file.
const KEEP_PER_FILE: Duration = Duration::from_micros(500);

/// How long a shutdown waits for a disk that does not answer.
const LAST_ROUND: Duration = Duration::from_secs(3);

/// The name of the positions file in the data directory.
pub const POSITIONS: &str = "inputs-files.json";

/// One element of `inputs.files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A path or a glob pattern.
    pub path: String,
    /// The program that writes the file, if its lines do not name one.
    pub program: Option<String>,
    /// What is around its lines.
    pub format: LineFormat,
}

/// The settings for followed files.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// `inputs.files`: the files to follow.
    pub patterns: Vec<Source>,
    /// The positions file: [`POSITIONS`] in `node.data_dir`.
    pub positions: PathBuf,
    /// `inputs.catch_up`: after a longer downtime, files are read from their ends.
    pub catch_up: Duration,
    /// `syslog.max_line`: the longest line in bytes.
    pub max_line: usize,
}

/// Follows files.
#[derive(Debug)]
pub struct Files<S> {
    config: FilesConfig,
    patterns: Patterns,
    reader: Reader<S>,
    metrics: Metrics,
    followed: HashMap<FileId, Followed>,
    /// Files that could not be opened at the start. Once they can be, their content is old.
    denied: HashSet<PathBuf>,
    watch: Watch,
    /// The files in watched directories, by directory and name.
    places: HashMap<(PathBuf, OsString), FileId>,
    /// The files whose writes are not reported.
    polled: Vec<FileId>,
    /// The files of which there is more to read.
    unfinished: Vec<FileId>,
    /// The limit on followed files.
    max_files: usize,
    /// Files that could not be opened at the last scan.
    unread: Vec<(PathBuf, String)>,
    names_changed: bool,
    /// Whether every directory that the patterns name is watched.
    all_watched: bool,
    changed: bool,
    kept_at: Instant,
    polled_at: Option<Instant>,
    scanned_at: Option<Instant>,
    throttle: LogThrottle,
}

impl<S: LineSink> Files<S> {
    /// Opens the existing files at their saved positions, or at their ends. Blocks while the disk does.
    pub fn open(config: FilesConfig, sink: S, lines: &syslog::Metrics, metrics: Metrics) -> Self {
        let intake = Intake::new(sink, lines, Transport::File, config.max_line);
        let empty = lines.dropped(Transport::File, DropReason::Empty);
        let mut files = Self {
            patterns: Patterns::new(&config.patterns),
            reader: Reader::new(intake, empty, metrics.truncations.clone()),
            metrics,
            followed: HashMap::new(),
            denied: HashSet::new(),
            watch: Watch::new(),
            places: HashMap::new(),
            polled: Vec::new(),
            unfinished: Vec::new(),
            max_files: max_files(),
            unread: Vec::new(),
            names_changed: false,
            all_watched: false,
            changed: true,
            kept_at: Instant::now(),
            polled_at: None,
            scanned_at: None,
            throttle: LogThrottle::new(Duration::from_secs(60)),
            config,
        };
        files.start();
        files
    }

    /// The metrics.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The paths of the open files.
    pub fn paths(&self) -> Vec<&Path> {
        self.followed.values().map(|file| file.path.as_path()).collect()
    }

    /// Reads until `shutdown`, then reads what is left and saves the positions.
    pub async fn serve(self, shutdown: CancellationToken) {
        let mut files = self;
        loop {
            let round = tokio::task::spawn_blocking(move || {
                let more = files.round();
                files.keep(false);
                (files, more)
            });
            let more = tokio::select! {
                round = round => match round {
                    Ok((returned, more)) => { files = returned; more }
                    Err(panicked) => {
                        error!(%panicked, "files are no longer followed");
                        return;
                    }
                },
                // The round continues in its thread. A disk that does not answer must not delay the shutdown.
                () = async { shutdown.cancelled().await; tokio::time::sleep(LAST_ROUND).await } => return,
            };
            if shutdown.is_cancelled() {
                break;
            }
            if !more {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            }
        }
        let last = tokio::task::spawn_blocking(move || files.keep(true));
        let _ = tokio::time::timeout(LAST_ROUND, last).await;
    }

    /// Checks the names if it is time, and reads the files that may have changed. Returns whether there is more to read.
    fn round(&mut self) -> bool {
        let changes = self.watch.changes();
        self.names_changed |= changes.names || changes.incomplete;
        let period = match (self.names_changed || !self.all_watched, self.unread.is_empty()) {
            (true, _) => SCAN,
            (false, false) => SCAN_FAILED,
            (false, true) => SCAN_ALL,
        };
        if self.scanned_at.is_none_or(|at| at.elapsed() >= period) {
            self.scan();
        }
        let poll_all = poll_all(self.followed.len());
        let due: HashSet<FileId> = if changes.incomplete || self.polled_at.is_none_or(|at| at.elapsed() >= poll_all) {
            self.polled_at = Some(Instant::now());
            self.followed.keys().copied().collect()
        } else {
            let written = changes.written.iter().filter_map(|place| self.places.get(place));
            written.chain(&self.polled).chain(&self.unfinished).copied().collect()
        };
        self.unfinished.clear();
        let mut closed = Vec::new();
        for id in due {
            let Some(file) = self.followed.get_mut(&id) else { continue };
            self.metrics.checks.inc();
            match file.turn(&mut self.reader) {
                Ok(Turn::Idle) => {}
                Ok(turn) => {
                    self.changed = true;
                    if turn == Turn::More {
                        self.unfinished.push(id);
                    }
                }
                Err(error) => self.metrics.failed(&self.throttle, &file.path, &error),
            }
            if file.retired && file.quiet_since.elapsed() >= LINGER {
                file.close(&self.reader);
                closed.push(file.id);
            }
        }
        for id in &closed {
            self.followed.remove(id);
        }
        if !closed.is_empty() {
            self.changed = true;
            self.watch_directories();
        }
        self.count();
        !self.unfinished.is_empty()
    }

    /// Watches the directories of the followed files and of the patterns.
    fn watch_directories(&mut self) {
        let mut directories: HashSet<PathBuf> =
            self.followed.values().filter_map(|file| Some(file.place.as_ref()?.0.clone())).collect();
        let named = self.patterns.directories();
        self.all_watched = named.is_some();
        directories.extend(named.iter().flatten().cloned());
        self.watch.cover(&directories);
        self.all_watched &= named.iter().flatten().all(|directory| self.watch.covers(directory));
        self.places.clear();
        self.polled.clear();
        for file in self.followed.values() {
            match &file.place {
                Some(place) if !file.retired && self.watch.covers(&place.0) => {
                    self.places.insert(place.clone(), file.id);
                }
                _ => self.polled.push(file.id),
            }
        }
        if let Some(error) = self.watch.refused()
            && let Some(held_back) = self.throttle.permit(Instant::now())
        {
            warn!(
                %error, held_back,
                "cannot watch all directories of inputs.files, so their files are polled, which costs more; raise \
                 fs.inotify.max_user_watches and fs.inotify.max_user_instances"
            );
        }
    }

    fn count(&self) {
        self.metrics.followed.set(i64::try_from(self.followed.len()).unwrap_or(i64::MAX));
    }

    /// Opens the files that exist when the node starts.
    fn start(&mut self) {
        let kept = Positions::load(&self.config.positions).unwrap_or_else(|error| {
            let file = self.config.positions.display();
            warn!(%file, %error, "cannot read the saved positions; reading files from their ends");
            None
        });
        let now = clock::now();
        let kept = match kept {
            None => Positions::default(),
            Some(kept) if u128::from(now.0.saturating_sub(kept.saved().0)) > self.config.catch_up.as_millis() => {
                info!("this node was down for longer than inputs.catch_up; reading files from their ends");
                Positions::default()
            }
            Some(kept) => kept,
        };
        self.watch_directories();
        let mut known: HashMap<FileId, Position> = kept.files.into_iter().map(|file| (file.id, file)).collect();
        let names: HashMap<PathBuf, Position> =
            known.values().map(|position| (position.path.clone(), position.clone())).collect();
        let mut programs: HashMap<PathBuf, Lines> = HashMap::new();
        let (found, failures) = self.patterns.find();
        for (path, id, program) in found {
            let from = match (known.remove(&id), names.get(&path)) {
                (Some(position), _) => From::Position(position.offset, position.tail),
                // It replaced a known file while the node was down.
                (None, Some(old)) => resume(&path, old.offset, &old.tail, false),
                (None, None) => From::End,
            };
            programs.insert(path.clone(), program.clone());
            self.follow(&path, program, from);
        }
        for position in known.into_values() {
            // It may have been rotated while the node was down, and may have unread lines.
            let renamed = siblings(&position.path).find(|path| id_of(path).is_ok_and(|id| id == Some(position.id)));
            if let (Some(renamed), Some(program)) = (renamed, programs.get(&position.path)) {
                self.follow(&renamed, program.clone(), From::Position(position.offset, position.tail));
            }
        }
        for (path, error) in failures {
            if self.denied.len() < MAX_FILES && error.kind() != ErrorKind::NotFound {
                self.denied.insert(path.clone());
            }
            self.failed(&path, &error);
        }
        self.watch_directories();
        self.metrics.report_unread(&self.unread);
        for path in self.patterns.missing() {
            info!(file = path, "does not exist yet; once it does, it is read from its beginning");
        }
        self.count();
        info!(files = self.followed.len(), "following files");
    }

    /// Opens new files and retires files that lost their name.
    fn scan(&mut self) {
        self.scanned_at = Some(Instant::now());
        self.names_changed = false;
        self.unread.clear();
        // Before the names are read, so that none appears unnoticed in between.
        self.watch_directories();
        let (found, failures) = self.patterns.find();
        let names: HashMap<FileId, &PathBuf> = found.iter().map(|(path, id, _)| (*id, path)).collect();
        for file in self.followed.values_mut() {
            match names.get(&file.id) {
                Some(path) => {
                    if file.path != **path {
                        file.path.clone_from(path);
                        file.place = place_of(path);
                        self.changed = true;
                    }
                    file.retired = false;
                }
                None if !file.retired => {
                    file.retired = true;
                    file.quiet_since = Instant::now();
                    self.metrics.rotations.inc();
                }
                None => {}
            }
        }
        for (path, id, program) in found {
            if self.followed.contains_key(&id) {
                continue;
            }
            // The content of a copy was read, or is read when the file is truncated.
            let is_copy =
                self.followed.values().any(|file| file.path.parent() == path.parent() && file.is_copied_in(&path));
            let from = if self.denied.contains(&path) || is_copy {
                From::End
            } else {
                let replaced = self.followed.values().find(|file| file.retired && file.path == path);
                replaced.map_or(From::Start, |old| old.resume_in(&path))
            };
            self.follow(&path, program, from);
        }
        for (path, error) in failures {
            self.failed(&path, &error);
        }
        self.watch_directories();
        self.metrics.report_unread(&self.unread);
    }

    fn follow(&mut self, path: &Path, program: Lines, from: From) {
        if self.followed.len() >= self.max_files {
            let error = io::Error::other(format!(
                "{} files are followed already, which is the limit; list fewer in inputs.files{}",
                self.max_files,
                if self.max_files < MAX_FILES {
                    ", or raise the process's limit on open files (LimitNOFILE)"
                } else {
                    ""
                }
            ));
            return self.failed(path, &error);
        }
        match Followed::open(path, program, from, self.config.max_line) {
            Ok(file) => {
                self.denied.remove(path);
                self.changed = true;
                self.followed.insert(file.id, file);
            }
            Err(error) => {
                if self.scanned_at.is_none() && self.denied.len() < MAX_FILES {
                    self.denied.insert(path.to_owned());
                }
                self.failed(path, &error);
            }
        }
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        self.unread.push((path.to_owned(), format!("{error}{}", fix(error))));
        self.metrics.failed(&self.throttle, path, error);
    }

    /// Saves the positions if they changed, and every [`KEEP`]. Many positions are saved less often, because all are written.
    fn keep(&mut self, durably: bool) {
        let pause = if self.changed {
            KEEP_PER_FILE.saturating_mul(u32::try_from(self.followed.len()).unwrap_or(u32::MAX))
        } else {
            KEEP
        };
        if !durably && self.kept_at.elapsed() < pause {
            return;
        }
        let positions = self.followed.values().map(Followed::position).collect();
        let kept = Positions::new(clock::now(), positions);
        if let Err(error) = kept.save(&self.config.positions, durably) {
            self.metrics.failed(&self.throttle, &self.config.positions, &error);
        }
        (self.changed, self.kept_at) = (false, Instant::now());
    }
}

/// How often all of `files` files are polled.
fn poll_all(files: usize) -> Duration {
    POLL_ALL.max(POLL_ALL_PER_FILE.saturating_mul(u32::try_from(files).unwrap_or(u32::MAX)))
}

/// The limit on followed files.
fn max_files() -> usize {
    let open = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft / 2);
    usize::try_from(open).unwrap_or(usize::MAX).min(MAX_FILES)
}

#[cfg(test)]
mod tests;
