//! Log files, followed as they grow and as they are rotated.
//!
//! Open files are polled every `POLL`: one `stat` each, and a read of those that changed. Names are checked every `SCAN`.
//! A file is identified by device and inode, whatever its name. A file that lost its name is read until it was quiet for
//! `LINGER`. A truncated file is read from its beginning, after the rest of its copy. Polling works on every file system, and its
//! cost does not depend on how much an outsider makes the services write.

mod followed;
mod positions;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::followed::{Followed, From, Reader, Turn, siblings};
use self::positions::{FileId, Position, Positions};
use crate::clock;
use crate::inputs::syslog::{self, DropReason, Intake, LineSink, Transport};
use crate::net::throttle::LogThrottle;

/// How often open files are polled.
const POLL: Duration = Duration::from_millis(250);

/// How often names are checked.
const SCAN: Duration = Duration::from_secs(1);

/// How long a file that lost its name must be quiet before it is closed.
const LINGER: Duration = Duration::from_secs(60);

/// The limit on followed files.
const MAX_FILES: usize = 1024;

/// How often the positions are saved even if nothing changed, because their age tells how long a node was down.
const KEEP: Duration = Duration::from_secs(60);

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

/// The metrics of followed files; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    followed: Gauge,
    rotations: Counter,
    truncations: Counter,
    failures: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_files_followed", "Open files", self.followed.clone());
        registry.register("banmesh_files_rotations", "Files rotated", self.rotations.clone());
        registry.register("banmesh_files_truncations", "Files truncated", self.truncations.clone());
        registry.register("banmesh_files_failures", "Files that could not be opened or read", self.failures.clone());
    }

    /// Open files.
    pub const fn followed(&self) -> &Gauge {
        &self.followed
    }

    /// Failed attempts to open or read a file; one attempt per file and second.
    pub const fn failures(&self) -> &Counter {
        &self.failures
    }
}

/// Follows files.
#[derive(Debug)]
pub struct Files<S> {
    config: FilesConfig,
    patterns: Vec<(String, Option<Arc<str>>)>,
    reader: Reader<S>,
    metrics: Metrics,
    followed: HashMap<FileId, Followed>,
    /// Files that could not be opened at the start. Once they can be, their content is old.
    denied: HashSet<PathBuf>,
    kept: Vec<Position>,
    kept_at: Instant,
    scanned_at: Option<Instant>,
    throttle: LogThrottle,
}

impl<S: LineSink> Files<S> {
    /// Opens the existing files at their saved positions, or at their ends. Blocks while the disk does.
    pub fn open(config: FilesConfig, sink: S, lines: &syslog::Metrics, metrics: Metrics) -> Self {
        let intake = Intake::new(sink, lines, Transport::File, config.max_line);
        let empty = lines.dropped(Transport::File, DropReason::Empty);
        let patterns = config.patterns.iter().map(|one| (one.path.clone(), one.program.as_deref().map(Arc::from)));
        let mut files = Self {
            patterns: patterns.collect(),
            reader: Reader::new(intake, empty, metrics.truncations.clone()),
            metrics,
            followed: HashMap::new(),
            denied: HashSet::new(),
            kept: Vec::new(),
            kept_at: Instant::now(),
            scanned_at: None,
            throttle: LogThrottle::new(Duration::from_secs(60)),
            config,
        };
        files.start();
        files
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

    /// Checks the names if it is time, and reads every file. Returns whether there is more to read.
    fn round(&mut self) -> bool {
        if self.scanned_at.is_none_or(|at| at.elapsed() >= SCAN) {
            self.scan();
        }
        let mut more = false;
        let mut closed = Vec::new();
        for file in self.followed.values_mut() {
            match file.turn(&mut self.reader) {
                Ok(turn) => more |= turn == Turn::More,
                Err(error) => failed(&self.metrics, &self.throttle, &file.path, &error),
            }
            if file.retired && file.quiet_since.elapsed() >= LINGER {
                file.close(&self.reader);
                closed.push(file.id);
            }
        }
        for id in closed {
            self.followed.remove(&id);
        }
        self.count();
        more
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
        let mut known: HashMap<FileId, Position> = kept.files.into_iter().map(|file| (file.id, file)).collect();
        let names: HashSet<PathBuf> = known.values().map(|position| position.path.clone()).collect();
        let mut programs: HashMap<PathBuf, Option<Arc<str>>> = HashMap::new();
        let (found, failures) = self.find();
        for (path, id, program) in found {
            let from = match known.remove(&id) {
                Some(position) => From::Position(position.offset, position.tail),
                // It replaced a known file while the node was down.
                None if names.contains(&path) => From::Start,
                None => From::End,
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
        for (pattern, _) in &self.patterns {
            if !is_glob(pattern) && !Path::new(pattern).exists() {
                info!(file = pattern, "does not exist yet; once it does, it is read from its beginning");
            }
        }
        self.count();
        info!(files = self.followed.len(), "following files");
    }

    /// Opens new files and retires files that lost their name.
    fn scan(&mut self) {
        self.scanned_at = Some(Instant::now());
        let (found, failures) = self.find();
        let names: HashMap<FileId, &PathBuf> = found.iter().map(|(path, id, _)| (*id, path)).collect();
        for file in self.followed.values_mut() {
            match names.get(&file.id) {
                Some(path) => {
                    if file.path != **path {
                        file.path.clone_from(path);
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
            let from = if self.denied.contains(&path) || is_copy { From::End } else { From::Start };
            self.follow(&path, program, from);
        }
        for (path, error) in failures {
            self.failed(&path, &error);
        }
    }

    /// The files that match the patterns, each once, and those that cannot be examined.
    #[expect(clippy::type_complexity, reason = "two lists that the caller destructures")]
    fn find(&self) -> (Vec<(PathBuf, FileId, Option<Arc<str>>)>, Vec<(PathBuf, io::Error)>) {
        let (mut found, mut failures, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut look = |path: PathBuf, program: &Option<Arc<str>>| match id_of(&path) {
            Ok(Some(id)) => {
                if seen.insert(id) {
                    found.push((path, id, program.clone()));
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => failures.push((path, error)),
        };
        for (pattern, program) in &self.patterns {
            if !is_glob(pattern) {
                look(PathBuf::from(pattern), program);
                continue;
            }
            let options = glob::MatchOptions {
                require_literal_leading_dot: true,
                require_literal_separator: true,
                ..glob::MatchOptions::default()
            };
            for path in glob::glob_with(pattern, options).into_iter().flatten().filter_map(Result::ok) {
                if !is_compressed(&path) {
                    look(path, program);
                }
            }
        }
        (found, failures)
    }

    fn follow(&mut self, path: &Path, program: Option<Arc<str>>, from: From) {
        if self.followed.len() >= MAX_FILES {
            let error = io::Error::other(format!("{MAX_FILES} files are followed already; list fewer in inputs.files"));
            return self.failed(path, &error);
        }
        match Followed::open(path, program, from) {
            Ok(file) => {
                self.denied.remove(path);
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

    fn failed(&self, path: &Path, error: &io::Error) {
        failed(&self.metrics, &self.throttle, path, error);
    }

    /// Saves the positions if they changed, and every [`KEEP`].
    fn keep(&mut self, durably: bool) {
        let positions: Vec<Position> = self.followed.values().map(Followed::position).collect();
        if !durably && self.kept == positions && self.kept_at.elapsed() < KEEP {
            return;
        }
        let kept = Positions::new(clock::now(), positions);
        if let Err(error) = kept.save(&self.config.positions, durably) {
            failed(&self.metrics, &self.throttle, &self.config.positions, &error);
        }
        (self.kept, self.kept_at) = (kept.files, Instant::now());
    }
}

fn failed(metrics: &Metrics, throttle: &LogThrottle, path: &Path, error: &io::Error) {
    metrics.failures.inc();
    if let Some(held_back) = throttle.permit(Instant::now()) {
        let fix = match error.kind() {
            ErrorKind::PermissionDenied => {
                "; make it readable for this user, for example by adding the user to the group adm if that group owns the file"
            }
            _ => "",
        };
        warn!(file = %path.display(), held_back, "cannot use a file of inputs.files: {error}{fix}; trying again");
    }
}

/// The id of `path`, if it is a regular file.
fn id_of(path: &Path) -> io::Result<Option<FileId>> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file().then(|| FileId::of(&metadata)))
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// Whether it is a compressed rotated file.
fn is_compressed(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["gz", "bz2", "xz", "zst", "lz4", "Z"].iter().any(|known| extension == *known))
}
