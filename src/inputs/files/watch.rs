//! Watches the directories of followed files with inotify, so that quiet files cost nothing.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{self, FsType};

/// The limit on reads from the kernel's queue per round, of at most 4 KiB each.
const READS: usize = 64;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Watch {
    /// `None` if the system has none left.
    inotify: Option<Inotify>,
    directories: HashMap<PathBuf, WatchDescriptor>,
    paths: HashMap<WatchDescriptor, PathBuf>,
    /// Why a directory is not watched.
    refused: Option<Errno>,
}

/// What happened since the last round.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Whether files were created, renamed or deleted, or their permissions changed.
    pub names: bool,
    /// The directories and names of files that were written.
    pub written: HashSet<(PathBuf, OsString)>,
    /// Whether events were lost, so that any file may have changed.
    pub incomplete: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let refused = inotify.as_ref().err().copied();
        Self { inotify: inotify.ok(), directories: HashMap::new(), paths: HashMap::new(), refused }
    }

    /// Watches exactly `wanted`, except for directories that cannot be watched.
    pub(super) fn cover(&mut self, wanted: &HashSet<PathBuf>) {
        let Some(inotify) = &self.inotify else { return };
        let gone: Vec<PathBuf> = self.directories.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            if let Some(watch) = self.directories.remove(&path) {
                self.paths.remove(&watch);
                // It fails if the directory does not exist any more.
                let _ = inotify.rm_watch(watch);
            }
        }
        self.refused = None;
        for path in wanted {
            if self.directories.contains_key(path) || !reports_all_writes(path) {
                continue;
            }
            let flags = AddWatchFlags::IN_MODIFY
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVE
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            match inotify.add_watch(path, flags) {
                // Two paths of one directory share a watch. The second one is polled.
                Ok(watch) if self.paths.contains_key(&watch) => {}
                Ok(watch) => {
                    self.paths.insert(watch, path.clone());
                    self.directories.insert(path.clone(), watch);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => {}
                Err(error) => self.refused = Some(error),
            }
        }
    }

    /// Whether writes in this directory are reported.
    pub(super) fn covers(&self, directory: &Path) -> bool {
        self.directories.contains_key(directory)
    }

    /// Why directories are polled that could be watched.
    pub(super) const fn refused(&self) -> Option<Errno> {
        self.refused
    }

    /// What happened since the last call.
    pub(super) fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        let Some(inotify) = &self.inotify else { return changes };
        let names = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        for _ in 0..READS {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                // EAGAIN: there are no more.
                Err(_) => return changes,
            };
            for event in events {
                changes.incomplete |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                changes.names |= event.mask.intersects(names);
                if event.mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF) {
                    if let Some(path) = self.paths.remove(&event.wd) {
                        self.directories.remove(&path);
                    }
                    changes.incomplete = true;
                } else if let (Some(directory), Some(name)) = (self.paths.get(&event.wd), event.name) {
                    changes.written.insert((directory.clone(), name));
                }
            }
        }
        changes.incomplete = true;
        changes
    }
}

/// Whether the kernel sees every write. Other machines can write to network file systems, and other processes to those of FUSE.
fn reports_all_writes(directory: &Path) -> bool {
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const CEPH: i64 = 0x00c3_6400;
    const NINE_P: i64 = 0x0102_1997;
    let Ok(found) = statfs::statfs(directory) else { return false };
    let remote = [statfs::NFS_SUPER_MAGIC, statfs::SMB_SUPER_MAGIC, statfs::FUSE_SUPER_MAGIC];
    let others = [CIFS, SMB2, CEPH, NINE_P].map(|magic| FsType(magic as _));
    !remote.contains(&found.filesystem_type()) && !others.contains(&found.filesystem_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_names_in_watched_directories_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        std::fs::write(path.join("log"), "a\n").unwrap();
        let mut watch = Watch::new();
        watch.cover(&HashSet::from([path.clone(), path.join("none")]));
        if !watch.covers(&path) {
            eprintln!("skipped: this file system is not watched");
            return;
        }
        assert!(!watch.covers(&path.join("none")));
        let changes = watch.changes();
        assert!(!changes.names && changes.written.is_empty() && !changes.incomplete);
        std::fs::write(path.join("log"), "a\nb\n").unwrap();
        let changes = watch.changes();
        assert!(!changes.names && !changes.incomplete);
        assert_eq!(changes.written, HashSet::from([(path.clone(), "log".into())]));
        std::fs::rename(path.join("log"), path.join("log.1")).unwrap();
        assert!(watch.changes().names);
        // A directory that is replaced is no longer covered, and what happened in it is unknown.
        std::fs::remove_dir_all(&path).unwrap();
        assert!(watch.changes().incomplete && !watch.covers(&path));
    }
}
