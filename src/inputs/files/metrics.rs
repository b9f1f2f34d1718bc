//! What followed files count, and what they report about files that cannot be read.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::warn;

use crate::net::throttle::LogThrottle;

/// The metrics of followed files; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) followed: Gauge,
    pub(super) rotations: Counter,
    pub(super) truncations: Counter,
    pub(super) failures: Counter,
    pub(super) checks: Counter,
    pub(super) unread: Gauge,
    pub(super) unread_example: Arc<Mutex<Option<String>>>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_files_followed", "Open files", self.followed.clone());
        registry.register("banmesh_files_rotations", "Files rotated", self.rotations.clone());
        registry.register("banmesh_files_truncations", "Files truncated", self.truncations.clone());
        registry.register(
            "banmesh_files_checks",
            "Times that an open file was checked for new lines; quiet files are checked seldom",
            self.checks.clone(),
        );
        registry.register("banmesh_files_failures", "Files that could not be opened or read", self.failures.clone());
        registry.register(
            "banmesh_files_unread",
            "Files of inputs.files that are not read, because they cannot be opened or are too many",
            self.unread.clone(),
        );
    }

    /// Publishes what is not read.
    pub(super) fn report_unread(&self, unread: &[(PathBuf, String)]) {
        self.unread.set(i64::try_from(unread.len()).unwrap_or(i64::MAX));
        let example = unread.first().map(|(path, reason)| format!("{}: {reason}", path.display()));
        *self.unread_example.lock() = example;
    }

    /// Counts and logs a file that could not be opened or read.
    pub(super) fn failed(&self, throttle: &LogThrottle, path: &Path, error: &io::Error) {
        self.failures.inc();
        if let Some(held_back) = throttle.permit(Instant::now()) {
            let fix = fix(error);
            warn!(file = %path.display(), held_back, "cannot use a file of inputs.files: {error}{fix}; trying again");
        }
    }

    /// What to tell an operator about files that are not read.
    pub fn problem(&self) -> Option<String> {
        let count = self.unread.get();
        let example = self.unread_example.lock().clone().filter(|_| count > 0)?;
        Some(format!("{count} files of inputs.files are not read: {example}"))
    }

    /// Files that are not read.
    pub const fn unread(&self) -> &Gauge {
        &self.unread
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

/// What to do about an error, for the end of its message.
pub(super) fn fix(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "; make it readable for this user, for example by adding the user to the group adm if that group owns the file"
        }
        _ => "",
    }
}
