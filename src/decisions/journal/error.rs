//! Errors of the journal, which say what to do about them.

use std::io;
use std::path::{Path, PathBuf};

/// Why a journal cannot be used. In every case, the file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error(
        "{} is in use by another process: does a second banmesh run with the same node.data_dir? Give every node its own; \
         stop the node before you use `banmesh store`", .0.display()
    )]
    Locked(PathBuf),
    /// The file does not exist. Only the tools report this; a node creates the file.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The process lacks the permission.
    #[error("{} cannot be opened for reading and writing: permission denied. The user that runs banmesh must own it", .0.display())]
    Permission(PathBuf),
    /// The disk can only be read.
    #[error("{} cannot be written: the file system is read-only. Check the disk, and mount it for writing", .0.display())]
    ReadOnly(PathBuf),
    /// The file is empty.
    #[error("{} is not a banmesh journal: it is empty. Move it away, or set node.data_dir to another directory", .0.display())]
    Empty(PathBuf),
    /// The file is not a journal.
    #[error("{} is not a banmesh journal: {detail}. Move it away, or set node.data_dir to another directory", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What the file is instead.
        detail: String,
    },
    /// A newer build wrote the file.
    #[error(
        "{} was written by a newer banmesh: {detail}. Start that version again, or move the file away: the node then \
         receives the bans from its peers", .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is newer than this build.
        detail: String,
    },
    /// An older build wrote the file, in a format that this one does not read.
    #[error(
        "{} was written by an older banmesh, in format {found}; this version reads format {reads}. Nothing was written to it. Start \
         the older version again, or move the file away: in a cluster the node then receives the bans from its peers", .path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The file's format.
        found: u32,
        /// The format that this build reads and writes.
        reads: u32,
    },
    /// The file is a damaged journal.
    #[error(
        "{} is damaged: {detail}. Nothing was written to it. Restore a copy, or move it away and start: the node then \
         receives the bans from its peers", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is damaged.
        detail: String,
    },
    /// An input or output error.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl JournalError {
    /// Whether the disk is the cause: it is full, read-only or failing. The journal may be intact.
    pub const fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::ReadOnly(_) | Self::Io { .. } | Self::Missing(_))
    }

    /// Whether the file has lost what it held.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Empty(_) | Self::Corrupt { .. })
    }

    pub(super) fn corrupt(path: &Path, detail: impl ToString) -> Self {
        Self::Corrupt { path: path.to_owned(), detail: detail.to_string() }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied => Self::Permission(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            // redb reports these for a file that ends before the data that it refers to.
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
