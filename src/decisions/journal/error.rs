//! Why a journal cannot be used, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a journal cannot be used. Whatever it says, the file was left as it was found.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error(
        "{} is in use by another process: does a second banmesh run with the same node.data_dir? Give every node its own; \
         for `banmesh store`, stop the node first", .0.display()
    )]
    Locked(PathBuf),
    /// There is no such file: for the tools only, as a node makes a new one.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The file system does not let us.
    #[error("{} cannot be opened for reading and writing: permission denied. It must belong to the user that banmesh runs as", .0.display())]
    Permission(PathBuf),
    /// It is empty, or something else than a journal.
    #[error("{} is no banmesh journal: {detail}. Move it away, or set node.data_dir to another directory", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        detail: String,
    },
    /// It was written by a newer build.
    #[error(
        "{} was written by a newer banmesh: {detail}. Start that version again, or move the file away: the node then takes \
         the bans from its peers", .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is newer.
        detail: String,
    },
    /// It was written by an older build, in a format that this one does not read.
    #[error(
        "{} was written by an older banmesh, in format {found}; this version reads format {reads}. Nothing was written to it. Start \
         the older version again, or move the file away: in a cluster the node then receives the bans from its peers", .path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format that this build reads and writes.
        reads: u32,
    },
    /// It was a journal.
    #[error(
        "{} is damaged: {detail}. Nothing was written to it. Restore a copy, or move it away and start: the node then takes \
         the bans from its peers", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The disk said no.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl JournalError {
    pub(super) fn corrupt(path: &Path, detail: impl ToString) -> Self {
        Self::Corrupt { path: path.to_owned(), detail: detail.to_string() }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission(path),
            // What redb says of a file that ends before the data that it refers to.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::corrupt(&path, source),
            _ => Self::Io { path, source },
        }
    }

    pub(super) fn redb(path: &Path, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::Locked(path.to_owned()),
            redb::Error::Io(source) => Self::io(path, source),
            redb::Error::Corrupted(detail) => Self::corrupt(path, detail),
            other => Self::corrupt(path, other),
        }
    }
}
