//! The journal on disk: every entry, the node's identity and its clock, in one redb file. It survives restarts.
//!
//! The store sends its changes in order. A separate thread writes them in groups, and then answers the callers that wait for
//! them. If the disk is slow, the store waits; lookups do not. If the disk fails, the node keeps
//! banning in memory, logs an error, and retries until everything is written.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::info;

use crate::decisions::batch::{Acknowledgement, Batch};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;

mod deferred;
mod error;
pub mod exchange;
mod file;
mod format;
mod metrics;
mod start;
mod writer;

pub use error::JournalError;
pub use file::{Header, StoreFile};
pub use metrics::{Metrics, Trouble};

pub use deferred::Opener;
use file::file_opener;
use metrics::level;
use writer::{Message, Place, Writer};

/// The name of the journal in `node.data_dir`.
pub const FILE_NAME: &str = "journal.redb";

/// Changes that may be queued for the writer before the store has to wait.
const ROOM: u32 = 262_144;

/// How often a probe checks whether the thread, which has not answered yet, has written something.
const LOOK: Duration = Duration::from_millis(500);

/// A file larger than this may take more than a second to verify.
const LARGE: u64 = 256 << 20;

/// The settings of a journal.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file: [`FILE_NAME`] in `node.data_dir`.
    pub path: PathBuf,
    /// `node.id` if configured. `None`: the id in the file is used, or a new UUID.
    pub node: Option<NodeId>,
    /// Whether the node may start if the disk is full, read-only or failing, or the file is damaged. It then keeps trying to write it.
    pub may_start_without: bool,
}

/// The identity of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's id.
    pub node: NodeId,
    /// Greater than at every previous start, even after a crash.
    pub generation: u64,
}

/// An opened journal.
#[derive(Debug)]
pub struct Opened {
    /// The writing side, for the store.
    pub journal: Journal,
    /// The identity of this node.
    pub identity: Identity,
    /// The ledger with every entry that has not expired. Its clock continues after the last stamp.
    pub ledger: Ledger,
    /// The writer's thread.
    pub thread: Thread,
}

/// A journal whose writer does not run yet.
pub struct Loaded {
    /// The writing side, for the store.
    pub journal: Journal,
    /// The identity of this node.
    pub identity: Identity,
    /// As [`Opened::ledger`].
    pub ledger: Ledger,
    /// The writer. It blocks while it writes. Returns how many entries it could not write.
    pub writer: BoxFuture<'static, usize>,
}

/// The writer's thread, for supervision.
#[derive(Debug)]
pub struct Thread {
    handle: JoinHandle<usize>,
    ended: oneshot::Receiver<()>,
    shared: ThreadHandle,
}

impl Thread {
    /// A handle to the thread while it runs.
    pub fn handle(&self) -> ThreadHandle {
        self.shared.clone()
    }

    /// Waits until the thread has ended. Returns how many entries it could not write, or its panic.
    pub async fn ended(self) -> std::thread::Result<usize> {
        // The thread drops the sender last, even in a panic.
        let _ = self.ended.await;
        self.handle.join()
    }
}

/// Runs functions on the writer's thread; cheap to clone. Does not keep the journal open.
#[derive(Clone, Debug)]
pub struct ThreadHandle {
    messages: Weak<mpsc::UnboundedSender<Message>>,
    metrics: Metrics,
}

impl ThreadHandle {
    /// Runs `act` on the thread, after the changes that were sent before are written. Returns false if the thread has ended.
    pub fn run(&self, act: impl FnOnce() + Send + 'static) -> bool {
        let sender = self.messages.upgrade();
        sender.is_some_and(|sender| sender.send(Message::Run(Box::new(act))).is_ok())
    }

    /// Returns once the thread has answered in its turn or has finished an attempt to write, which shows that it is running
    /// even if its queue is long. `None` when it has ended.
    pub async fn probe(&self) -> Option<()> {
        let attempts = || self.metrics.commits.get() + self.metrics.errors.get();
        let before = attempts();
        let (reply, mut answer) = oneshot::channel();
        let answering = move || {
            let _ = reply.send(());
        };
        self.run(answering).then_some(())?;
        loop {
            match tokio::time::timeout(LOOK, &mut answer).await {
                Ok(answered) => return answered.ok(),
                Err(_) if attempts() != before => return Some(()),
                Err(_) => {}
            }
        }
    }
}

/// The writing side of the journal. If it is dropped without [`Journal::close`], the changes that were sent are still written.
#[derive(Debug)]
pub struct Journal {
    messages: Arc<mpsc::UnboundedSender<Message>>,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

impl Journal {
    /// Opens or creates the journal, loads it, and starts the writer. Blocks for about a second per million entries.
    ///
    /// When it returns, the generation of this start is on the disk.
    ///
    /// # Errors
    /// [`JournalError`]. The file is then unchanged.
    pub fn open(settings: &Settings, limits: Limits, metrics: Metrics) -> Result<Opened, JournalError> {
        Self::open_through(file_opener(), settings, limits, metrics)
    }

    fn open_through(
        opener: Opener,
        settings: &Settings,
        limits: Limits,
        metrics: Metrics,
    ) -> Result<Opened, JournalError> {
        let io = |error| JournalError::io(&settings.path, error);
        let Loaded { journal, identity, ledger, writer } = Self::load(opener, settings, limits, metrics)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(io)?;
        let shared = ThreadHandle { messages: Arc::downgrade(&journal.messages), metrics: journal.metrics.clone() };
        let (ending, ended) = oneshot::channel::<()>();
        let handle = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                let _ending = ending;
                runtime.block_on(writer)
            })
            .map_err(io)?;
        let thread = Thread { handle, ended, shared };
        Ok(Opened { journal, identity, ledger, thread })
    }

    /// Like [`Journal::open`], with files that `opener` opens, and without a thread: the caller runs the writer. For the simulator.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn load(opener: Opener, settings: &Settings, limits: Limits, metrics: Metrics) -> Result<Loaded, JournalError> {
        let (path, start) = (&settings.path, Instant::now());
        let start::Loaded { file, on_disk, header, mut ledger, expired, trouble, set_aside } =
            start::load(&opener, settings, limits)?;
        metrics.set_trouble(trouble.map(|error| Trouble { error: error.to_string(), set_aside }));
        let identity = Identity { node: header.node.clone(), generation: header.generation };
        ledger.begin_process(identity.generation);
        info!(
            path = %path.display(),
            node = %identity.node,
            generation = identity.generation,
            entries = ledger.table().len(),
            expired,
            writable = file.is_some(),
            milliseconds = level(start.elapsed().as_millis()),
            "journal loaded"
        );
        let (messages, receiver) = mpsc::unbounded_channel();
        let messages = Arc::new(messages);
        let room = Arc::new(Semaphore::new(ROOM as usize));
        let writer = Writer::new(
            Place { file, on_disk, opener, path: path.clone() },
            header,
            metrics.clone(),
            receiver,
            Arc::clone(&room),
        );
        Ok(Loaded { journal: Self { messages, room, metrics }, identity, ledger, writer: Box::pin(writer.run()) })
    }

    /// Sends changes and the clock to the writer. The waiting callers are answered once the disk holds the changes, or when they could
    /// not be written ([`Acknowledgement::not_saved`]). Waits only while too many changes are queued.
    pub async fn append(&self, batch: Arc<Batch>, last: Hlc, waiting: Vec<Acknowledgement>) {
        let since = Instant::now();
        let room = self.room(batch.changes.len()).await;
        self.send(room, |room| Message::Changes { batch, last, waiting, since, room });
    }

    /// Removes expired entries.
    pub async fn remove(&self, targets: Vec<Target>) {
        let room = self.room(targets.len()).await;
        self.send(room, |room| Message::Remove { targets, room });
    }

    /// Writes the queued changes and closes the file.
    pub async fn close(self, last: Hlc) {
        let (done, closed) = oneshot::channel();
        if self.messages.send(Message::Close { last, done }).is_ok() {
            // An error means that the writer has ended, and with it the file is closed.
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
        // The writer outlives us unless it panicked. Then no caller may learn that its change is durable.
        if let Err(mpsc::error::SendError(Message::Changes { waiting, .. })) = self.messages.send(message(room)) {
            self.metrics.errors.inc();
            waiting.into_iter().for_each(Acknowledgement::not_saved);
        }
    }
}

/// Changes that hold a permit of `room` and are not on the disk.
fn waiting(room: &Semaphore) -> i64 {
    level((ROOM as usize).saturating_sub(room.available_permits()))
}

#[cfg(test)]
mod tests;
