//! Wrong clocks: libfaketime (Debian's package `faketime`) between a node and the system's clock.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::in_ci;
use crate::node::NodeConfig;

/// The clocks that a change moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Only the time of day, as when an operator sets the clock.
    TimeOfDay,
    /// Every clock, as when time really passes. Not for nodes that save changes: libfaketime 0.9.10 then shows the time of day on every
    /// clock, but not to the kernel, so a thread that waits on a condition variable for a limited time, such as the journal's, waits
    /// until something else wakes it. The simulator can let hours pass.
    AllClocks,
}

/// A clock with an offset to the system's, which can change while nodes run.
#[derive(Debug)]
pub struct WrongClock {
    folder: TempDir,
    library: PathBuf,
    moves: Moves,
}

impl WrongClock {
    /// A clock that is correct at first. Prints a message and returns `None` if libfaketime is not installed.
    ///
    /// # Panics
    /// It is not installed in continuous integration.
    pub fn new(moves: Moves) -> Option<Self> {
        let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
        let library = places.map(|place| Path::new(place).join("faketime/libfaketimeMT.so.1"));
        let Some(library) = library.into_iter().find(|library| library.exists()) else {
            assert!(!in_ci(), "the tests with wrong clocks must not be skipped in CI: install faketime");
            eprintln!("skipped: the package faketime is not installed");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("banmesh-clock-").tempdir().expect("create a folder");
        let clock = Self { folder, library, moves };
        clock.set_ahead(0);
        Some(clock)
    }

    /// Sets it ahead of the system's clock by `seconds`; behind if negative.
    ///
    /// # Panics
    /// The file with the offset cannot be written.
    pub fn set_ahead(&self, seconds: i64) {
        self.set_ahead_by_millis(seconds * 1000);
    }

    /// The same in milliseconds.
    ///
    /// # Panics
    /// The file with the offset cannot be written.
    pub fn set_ahead_by_millis(&self, millis: i64) {
        let (new, file) = (self.folder.path().join("new"), self.file());
        let sign = if millis < 0 { '-' } else { '+' };
        let (seconds, rest) = (millis.unsigned_abs() / 1000, millis.unsigned_abs() % 1000);
        std::fs::write(&new, format!("{sign}{seconds}.{rest:03}\n")).expect("write the offset");
        std::fs::rename(new, file).expect("put the offset in place");
    }

    /// The configuration of a node that uses this clock.
    #[must_use]
    pub fn wind(&self, config: NodeConfig) -> NodeConfig {
        config
            .environment("LD_PRELOAD", &self.library.to_string_lossy())
            .environment("FAKETIME_TIMESTAMP_FILE", &self.file().to_string_lossy())
            .environment("FAKETIME_NO_CACHE", "1")
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", if self.moves == Moves::TimeOfDay { "1" } else { "0" })
            .environment("DONT_FAKE_MONOTONIC", if self.moves == Moves::TimeOfDay { "1" } else { "0" })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }
}
