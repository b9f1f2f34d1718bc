//! The simulated disk of a node: a journal's file of which a crash keeps what was synced, and any part of the rest.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banmesh::decisions::journal::{FILE_NAME, Opener};
use parking_lot::Mutex;
use redb::StorageBackend;
use tokio::time::Sleep;

use crate::rng::Rng;
use crate::sometimes::Counts;
use crate::trace::Trace;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// A disk. Clones share it.
#[derive(Clone)]
pub struct Disk {
    node: usize,
    directory: PathBuf,
    state: Arc<Mutex<State>>,
    trace: Trace,
    counts: Counts,
}

#[derive(Default)]
struct State {
    /// The device and number of the file that is open.
    inode: Option<(u64, u64)>,
    /// What programs read.
    cached: Vec<u8>,
    /// What is on the platter.
    durable: Vec<u8>,
    unsynced: Vec<Operation>,
    full: bool,
    failing: bool,
    latency: Duration,
    /// How many writes still succeed before the power fails; `None` if it does not.
    freeze: Option<u64>,
}

#[derive(Clone)]
enum Operation {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Operation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Resize(length) => bytes.resize(*length, 0),
        }
    }
}

impl Disk {
    /// An empty disk whose file is in `directory` while no process runs.
    pub fn new(node: usize, directory: PathBuf, trace: Trace, counts: Counts) -> Self {
        Self { node, directory, state: Arc::default(), trace, counts }
    }

    /// The path of the journal.
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// Opens the journal through this disk.
    pub fn opener(&self) -> Opener {
        let disk = self.clone();
        Arc::new(move |path| disk.open(path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let file = fs::metadata(path)?;
        let inode = Some((file.dev(), file.ino()));
        let mut state = self.state.lock();
        if state.inode != inode {
            let bytes = fs::read(path)?;
            *state = State { inode, cached: bytes.clone(), durable: bytes, unsynced: Vec::new(), ..*state };
        }
        Ok(Box::new(File(self.clone())))
    }

    /// From now on, the disk has no room, or has room again.
    pub fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// From now on, all writes fail, or work again.
    pub fn set_failing(&self, failing: bool) {
        self.state.lock().failing = failing;
    }

    /// From now on, the writer takes this long before it writes.
    pub fn set_latency(&self, latency: Duration) {
        self.state.lock().latency = latency;
    }

    /// After this many more writes, the power fails, so that nothing reaches the disk any more. The process is to be ended soon.
    pub fn freeze_after(&self, writes: u64) {
        self.state.lock().freeze = Some(writes);
    }

    /// Runs `writer` at the speed of this disk.
    pub fn delayed(&self, writer: BoxFuture<usize>) -> Delayed {
        Delayed { disk: self.clone(), writer, busy: None }
    }

    /// The process ended without a loss of power: everything that it wrote is there.
    pub fn keep(&self) {
        let mut state = self.state.lock();
        let operations = std::mem::take(&mut state.unsynced);
        operations.iter().for_each(|operation| operation.apply(&mut state.durable));
        self.store(&mut state);
    }

    /// The power failed: of what was not synced, any part may be there, and sectors may be torn.
    pub fn crash(&self, rng: &mut Rng) {
        let mut state = self.state.lock();
        let operations = std::mem::take(&mut state.unsynced);
        let fate = rng.below(3);
        for operation in &operations {
            let (kept, torn) = match fate {
                0 => (false, false),
                1 => (true, false),
                _ => (rng.one_in(2), rng.one_in(4)),
            };
            match operation {
                Operation::Write(at, data) if kept && torn => {
                    let sectors = rng.below(data.len() / SECTOR + 1) * SECTOR;
                    Operation::Write(*at, data[..sectors.min(data.len())].to_vec()).apply(&mut state.durable);
                    self.counts.add("fault: torn write");
                }
                _ if kept => operation.apply(&mut state.durable),
                _ => self.counts.add("fault: unsynced write lost"),
            }
        }
        self.store(&mut state);
    }

    /// Puts what is on the platter where the next process finds it.
    fn store(&self, state: &mut State) {
        let path = self.path();
        if state.inode.is_some() && path.exists() {
            // A process that is to start without the simulated disk reads the file.
            let _ = fs::write(&path, &state.durable);
        }
        let State { full, failing, latency, .. } = *state;
        *state = State { full, failing, latency, ..State::default() };
    }

    /// Replaces the disk by an empty one. No process may run.
    pub fn wipe(&self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::create_dir_all(&self.directory);
        *self.state.lock() = State::default();
    }

    /// Damages some bytes of the journal. No process may run. Returns false if there is none.
    pub fn corrupt(&self, rng: &mut Rng) -> bool {
        let Ok(mut bytes) = fs::read(self.path()) else { return false };
        if bytes.is_empty() {
            return false;
        }
        for _ in 0..rng.range(1, 40) {
            let at = rng.below(bytes.len());
            bytes[at] ^= rng.byte() | 1;
        }
        fs::write(self.path(), bytes).is_ok()
    }

    /// Copies the journal of `other`. No process of this node may run.
    pub fn copy(&self, other: &Self) {
        let state = other.state.lock();
        let bytes = if state.inode.is_some() { Some(state.durable.clone()) } else { fs::read(other.path()).ok() };
        if let Some(bytes) = bytes {
            let _ = fs::write(self.path(), bytes);
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("node", &self.node).finish_non_exhaustive()
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A writer on a slow disk: see [`Disk::delayed`].
pub struct Delayed {
    disk: Disk,
    writer: BoxFuture<usize>,
    busy: Option<Pin<Box<Sleep>>>,
}

impl Future for Delayed {
    type Output = usize;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        let latency = self.disk.state.lock().latency;
        if self.busy.is_none() && latency > Duration::ZERO {
            self.busy = Some(Box::pin(tokio::time::sleep(latency)));
        }
        if let Some(busy) = &mut self.busy {
            ready!(busy.as_mut().poll(cx));
            self.busy = None;
        }
        self.writer.as_mut().poll(cx)
    }
}

#[derive(Debug)]
struct File(Disk);

impl File {
    fn change(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.0.state.lock();
        if state.failing || state.freeze == Some(0) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        state.freeze = state.freeze.map(|writes| writes - 1);
        if state.full {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        operation.apply(&mut state.cached);
        state.unsynced.push(operation);
        Ok(())
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state.lock().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.state.lock();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = state.cached.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Operation::Resize(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.state.lock();
        if state.failing || state.freeze == Some(0) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let operations = std::mem::take(&mut state.unsynced);
        self.0.trace.event(format_args!("syncs {} {}", self.0.node, operations.len()));
        operations.iter().for_each(|operation| operation.apply(&mut state.durable));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Operation::Write(usize::try_from(offset).map_err(io::Error::other)?, data.to_vec()))
    }
}
