//! Clocks that are wrong: libfaketime (Debian's package `faketime`) between a node and the system's clock.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::in_ci;
use crate::node::NodeConfig;

/// What a clock change moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// The time of day alone, as when somebody sets the clock.
    TimeOfDay,
    /// Every clock, as when time really passes.
    AllClocks,
}

/// A clock that stands off the system's, and can be moved while nodes run on it.
#[derive(Debug)]
pub struct WrongClock {
    folder: TempDir,
    library: PathBuf,
    moves: Moves,
}

impl WrongClock {
    /// A clock that is right so far, or none, with a message, where libfaketime is not installed.
    ///
    /// # Panics
    /// In continuous integration, where it must be installed.
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

    /// Lets it be ahead of the system's clock by so many seconds; behind, when negative.
    ///
    /// # Panics
    /// When the file that says so cannot be written.
    pub fn set_ahead(&self, seconds: i64) {
        let (new, file) = (self.folder.path().join("new"), self.file());
        std::fs::write(&new, format!("{seconds:+}\n")).expect("write the offset");
        std::fs::rename(new, file).expect("put the offset in place");
    }

    /// The configuration of a node that goes by this clock.
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
