//! What survives a restart: every entry, the node's identity and its clock, in one file (redb).
//!
//! The store hands its changes over in order; a thread of its own writes them in groups and answers those who wait once
//! the disk has them. When the disk is slow the store waits, and readers do not notice. When it fails, the node goes on
//! banning in memory, says so, and tries again until the disk takes everything.

use std::path::PathBuf;
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{info, warn};

use crate::clock;
use crate::decisions::batch::{Acknowledgement, Batch};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;

mod error;
pub mod exchange;
mod file;
mod format;
mod gate;
mod metrics;
mod writer;

pub use error::JournalError;
pub use file::{Header, StoreFile};
pub use metrics::Metrics;

use file::{Writes, file_opener};
use gate::Opener;
use metrics::level;
use writer::{Message, Writer};

/// The journal's name in `node.data_dir`.
pub const FILE_NAME: &str = "journal.redb";

/// Changes that may wait for the writer before the store does.
const ROOM: u32 = 262_144;

/// How often it is looked whether a thread that has not answered yet has written something.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes that may take more than a second to verify.
const LARGE: u64 = 256 << 20;

/// What a journal is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file; [`FILE_NAME`] in `node.data_dir`.
    pub path: PathBuf,
    /// `node.id`, when it is configured. Without, the file's is used, or a new UUID.
    pub node: Option<NodeId>,
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub node: NodeId,
    /// The number of this start: greater than at every start before, also after a crash.
    pub generation: u64,
}

/// What an opened journal gives to the node.
#[derive(Debug)]
pub struct Opened {
    /// For the store.
    pub journal: Journal,
    /// Who we are.
    pub identity: Identity,
    /// The ledger with every entry that is still to be remembered and the clock that goes on after the last stamp.
    pub ledger: Ledger,
    /// The thread that writes.
    pub thread: Thread,
}

/// The thread that writes, as those see it who must know when it ends.
#[derive(Debug)]
pub struct Thread {
    handle: JoinHandle<usize>,
    ended: oneshot::Receiver<()>,
    visits: Visits,
}

impl Thread {
    /// A way to the thread while it runs.
    pub fn visits(&self) -> Visits {
        self.visits.clone()
    }

    /// Returns when the thread has ended: how many entries it could not write, or what it panicked with.
    pub async fn ended(self) -> std::thread::Result<usize> {
        // Dropped by the thread as the last thing it does, also in a panic.
        let _ = self.ended.await;
        self.handle.join()
    }
}

/// Runs something on the journal's thread; cheap to clone. It does not keep the journal open.
#[derive(Clone, Debug)]
pub struct Visits {
    messages: Weak<mpsc::Sender<Message>>,
    metrics: Metrics,
}

impl Visits {
    /// Runs `act` on the thread once what was handed over before is written; false when it has ended.
    pub fn visit(&self, act: impl FnOnce() + Send + 'static) -> bool {
        let sender = self.messages.upgrade();
        sender.is_some_and(|sender| sender.send(Message::Visit(Box::new(act))).is_ok())
    }

    /// Returns once the thread has come to this call in its queue, or has ended an attempt to write meanwhile: it is at work,
    /// however much is before this call. `None` when it has ended.
    pub async fn probe(&self) -> Option<()> {
        let attempts = || self.metrics.commits.get() + self.metrics.errors.get();
        let before = attempts();
        let (reply, mut answer) = oneshot::channel();
        let answering = move || {
            let _ = reply.send(());
        };
        self.visit(answering).then_some(())?;
        loop {
            match tokio::time::timeout(LOOK, &mut answer).await {
                Ok(answered) => return answered.ok(),
                Err(_) if attempts() != before => return Some(()),
                Err(_) => {}
            }
        }
    }
}

/// The journal's writing side. Dropped without [`Journal::close`], it still writes what was handed over.
#[derive(Debug)]
pub struct Journal {
    messages: Arc<mpsc::Sender<Message>>,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

impl Journal {
    /// Opens the journal, or makes a new one, loads it, and starts the writer. Blocks: about a second for a million entries.
    ///
    /// When it returns, the generation of this start is on the disk.
    ///
    /// # Errors
    /// [`JournalError`]; then the file is as it was found.
    pub fn open(settings: &Settings, limits: Limits, metrics: Metrics) -> Result<Opened, JournalError> {
        Self::open_through(file_opener(), settings, limits, metrics)
    }

    fn open_through(
        opener: Opener,
        settings: &Settings,
        limits: Limits,
        metrics: Metrics,
    ) -> Result<Opened, JournalError> {
        let (path, start) = (&settings.path, Instant::now());
        if !path.try_exists().map_err(|error| JournalError::io(path, error))? {
            StoreFile::create(path, settings.node.clone(), clock::now())?;
            info!(path = %path.display(), "a new journal: this node starts without bans of its own");
        }
        if std::fs::metadata(path).is_ok_and(|file| file.len() > LARGE) {
            info!(path = %path.display(), "verifying a large journal");
        }
        let mut file = StoreFile::open_through(&opener, path)?;
        let mut header = file.header().clone();
        if let Some(node) = settings.node.as_ref().filter(|node| **node != header.node) {
            warn!(old = %header.node, new = %node, "the node has another id than before (node.id)");
            header.node = node.clone();
        }
        let now = clock::now();
        let mut ledger = Ledger::new(header.node.clone(), limits, header.clock);
        let mut over = Writes::default();
        file.scan(|target, entry| {
            if entry.keep.has_passed(now) {
                over.insert(target, None);
            } else {
                ledger.restore(target, &entry, now);
            }
        })?;
        // Not simply the next number: a node that lost its disk begins a new file, and must still rise above what the others
        // remember of it.
        header.generation = (header.generation + 1).max(now.0);
        file.release()?;
        file.write(&over, header.clone())?;
        let identity = Identity { node: header.node, generation: header.generation };
        info!(
            path = %path.display(),
            node = %identity.node,
            generation = identity.generation,
            entries = ledger.table().len(),
            forgotten = over.len(),
            milliseconds = level(start.elapsed().as_millis()),
            "journal loaded"
        );
        let (messages, receiver) = mpsc::channel();
        let messages = Arc::new(messages);
        let room = Arc::new(Semaphore::new(ROOM as usize));
        let writer = Writer::new(file, (opener, path.clone()), metrics.clone(), receiver, Arc::clone(&room));
        let (ending, ended) = oneshot::channel::<()>();
        let handle = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                let _ending = ending;
                writer.run()
            })
            .map_err(|error| JournalError::io(path, error))?;
        let visits = Visits { messages: Arc::downgrade(&messages), metrics: metrics.clone() };
        let thread = Thread { handle, ended, visits };
        let journal = Self { messages, room, metrics };
        Ok(Opened { journal, identity, ledger, thread })
    }

    /// Hands over what changed and the clock. Those who wait are answered once the disk has it, or when it could not be
    /// written ([`Acknowledgement::not_saved`]). Waits itself only while too much is on its way.
    pub async fn append(&self, batch: Arc<Batch>, last: Hlc, waiting: Vec<Acknowledgement>) {
        let since = Instant::now();
        let room = self.room(batch.changes.len()).await;
        self.send(room, |room| Message::Changes { batch, last, waiting, since, room });
    }

    /// Removes entries whose time is over.
    pub async fn forget(&self, targets: Vec<Target>) {
        let room = self.room(targets.len()).await;
        self.send(room, |room| Message::Forget { targets, room });
    }

    /// Writes what is waiting and closes the file.
    pub async fn close(self, last: Hlc) {
        let (done, closed) = oneshot::channel();
        if self.messages.send(Message::Close { last, done }).is_ok() {
            // An error means that the writer is gone, and so is the file.
            let _ = closed.await;
        }
    }

    async fn room(&self, changes: usize) -> Option<OwnedSemaphorePermit> {
        let changes = u32::try_from(changes).unwrap_or(ROOM).min(ROOM);
        // The semaphore is never closed.
        let room = Arc::clone(&self.room).acquire_many_owned(changes).await.ok();
        self.metrics.waiting.set(waiting(&self.room));
        room
    }

    fn send(&self, room: Option<OwnedSemaphorePermit>, message: impl FnOnce(OwnedSemaphorePermit) -> Message) {
        let Some(room) = room else { return };
        // The writer outlives us unless it panicked. Then nobody who waits may hear that it is durable.
        if let Err(mpsc::SendError(Message::Changes { waiting, .. })) = self.messages.send(message(room)) {
            self.metrics.errors.inc();
            waiting.into_iter().for_each(Acknowledgement::not_saved);
        }
    }
}

/// Changes that have taken their place in `room` and are not on the disk.
fn waiting(room: &Semaphore) -> i64 {
    level((ROOM as usize).saturating_sub(room.available_permits()))
}

#[cfg(test)]
mod tests;
