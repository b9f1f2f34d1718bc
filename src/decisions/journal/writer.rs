//! The writer. The database blocks, and the store must not, so the writer runs on a thread of its own, which nothing else uses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::unconstrained;
use tokio::time::timeout;
use tracing::{error, info};

use super::deferred::Opener;
use super::error::JournalError;
use super::file::{Header, StoreFile, Writes};
use super::metrics::{Metrics, Trouble, level};
use super::waiting;
use crate::clock;
use crate::decisions::batch::{Acknowledgement, Batch};
use crate::net::throttle::LogThrottle;
use banmesh_core::hlc::Hlc;
use banmesh_core::planted::{Fault, is_planted};
use banmesh_types::target::Target;

/// How long bulk changes, and changes that no caller waits for, are gathered before they are written. Together with the write this is
/// well under the 50 ms within which a ban must be durable.
const GATHER: Duration = Duration::from_millis(15);
/// About how many entries one transaction may have. A larger one would take too long.
const AT_ONCE: usize = 65_536;
/// The wait before the first retry after a failure. It doubles with each retry, up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(200);
const SLOWEST_RETRY: Duration = Duration::from_secs(10);
/// How often a write is attempted on shutdown.
const LAST_ATTEMPTS: u32 = 4;
/// The longest wait between these attempts. All of them must fit into the time that the node gives the journal to shut down.
const LONGEST_LAST_WAIT: Duration = Duration::from_secs(2);

/// Messages from the store.
pub(super) enum Message {
    Changes {
        batch: Arc<Batch>,
        last: Hlc,
        waiting: Vec<Acknowledgement>,
        since: Instant,
        room: OwnedSemaphorePermit,
    },
    Remove {
        targets: Vec<Target>,
        room: OwnedSemaphorePermit,
    },
    /// A function to run in its turn.
    Run(Box<dyn FnOnce() + Send>),
    Close {
        last: Hlc,
        done: oneshot::Sender<()>,
    },
}

/// The file, and where and what it is.
pub(super) struct Place {
    /// `None` after a failure, until it is reopened.
    pub file: Option<StoreFile>,
    /// The header that the file had when this node last read or wrote it. `None`: the node has never seen the file.
    pub on_disk: Option<Header>,
    pub opener: Opener,
    pub path: PathBuf,
}

pub(super) struct Writer {
    messages: UnboundedReceiver<Message>,
    room: Arc<Semaphore>,
    place: Place,
    header: Header,
    metrics: Metrics,
    alarm: LogThrottle,
    /// Changes that the disk does not have. After a failure they accumulate, but never beyond one per target.
    writes: Writes,
    waiting: Vec<Acknowledgement>,
    /// Whether a caller waits for a single change.
    urgent: bool,
    rooms: Vec<OwnedSemaphorePermit>,
    since: Option<Instant>,
    /// The wait after the last failure, and when it ends. `None` while writing works.
    retry: Option<(Duration, Instant)>,
    ending: Option<Option<oneshot::Sender<()>>>,
}

impl Writer {
    pub(super) fn new(
        place: Place,
        header: Header,
        metrics: Metrics,
        messages: UnboundedReceiver<Message>,
        room: Arc<Semaphore>,
    ) -> Self {
        // A node that starts without its journal is in the same state as one whose disk has just failed.
        let retry = place.file.is_none().then(|| (FIRST_RETRY, Instant::now() + FIRST_RETRY));
        Self {
            messages,
            room,
            place,
            header,
            metrics,
            alarm: LogThrottle::new(Duration::from_secs(10)),
            writes: Writes::default(),
            waiting: Vec::new(),
            urgent: false,
            rooms: Vec::new(),
            since: None,
            retry,
            ending: None,
        }
    }

    /// Writes until the store has ended. Returns how many entries could not be written.
    pub(super) async fn run(mut self) -> usize {
        self.levels();
        while self.ending.is_none() {
            self.gather().await;
            if self.retry.is_some_and(|(_, at)| at > Instant::now()) && self.ending.is_none() {
                self.refuse_waiting();
            } else if !self.writes.is_empty() || self.retry.is_some() || self.ending.is_some() {
                self.commit();
            }
        }
        self.end().await
    }

    /// Waits for a message and receives all that are queued.
    async fn gather(&mut self) {
        let first = match self.retry {
            None => Ok(self.messages.recv().await),
            Some((_, at)) => timeout(at.saturating_duration_since(Instant::now()), self.messages.recv()).await,
        };
        match first {
            Ok(Some(message)) => self.take(message),
            Err(_) => return,
            Ok(None) => self.ending = Some(None),
        }
        let gathered = Instant::now() + GATHER;
        while self.ending.is_none() && self.writes.len() < AT_ONCE {
            // Does not wait for more messages if a caller waits for a single change, or before a retry.
            let more = if !self.urgent && self.retry.is_none() {
                gathered.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            // With no time left, this still receives what is queued.
            match timeout(more, unconstrained(self.messages.recv())).await {
                Ok(Some(message)) => self.take(message),
                Err(_) => break,
                Ok(None) => self.ending = Some(None),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Changes { batch, last, waiting, since, room } => {
                for change in &batch.changes {
                    self.writes.insert(change.target, Some(change.after.clone()));
                }
                self.header.clock = last;
                self.urgent |= waiting.iter().any(|one| !one.is_bulk());
                if is_planted(Fault::AcknowledgeEarly) {
                    waiting.into_iter().for_each(Acknowledgement::saved);
                } else {
                    self.waiting.extend(waiting);
                }
                self.rooms.push(room);
                self.since.get_or_insert(since);
            }
            Message::Remove { targets, room } => {
                for target in targets {
                    // Before a retry, it is enough not to write the entry, because loading drops expired entries anyway.
                    if self.retry.is_some() {
                        self.writes.remove(&target);
                    } else {
                        self.writes.insert(target, None);
                    }
                }
                self.rooms.push(room);
            }
            Message::Run(act) => act(),
            Message::Close { last, done } => {
                self.header.clock = last;
                self.ending = Some(Some(done));
            }
        }
    }

    /// Writes the gathered changes and answers the waiting callers.
    fn commit(&mut self) {
        let start = Instant::now();
        match self.attempt() {
            Ok(()) => {
                self.metrics.commits.inc();
                self.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
                if self.retry.take().is_some() {
                    info!(entries = self.writes.len(), "the journal can be written again; nothing was lost");
                    self.metrics.set_trouble(None);
                }
                self.writes.clear();
                self.waiting.drain(..).for_each(Acknowledgement::saved);
                self.urgent = false;
                self.rooms.clear();
                self.metrics.lag(self.since.take().map_or(Duration::ZERO, |since| since.elapsed()));
            }
            Err(error) => {
                self.metrics.errors.inc();
                self.place.file = None;
                self.metrics.set_trouble(Some(Trouble { error: error.to_string(), set_aside: None }));
                // Removals need not be retried: see `Message::Remove`.
                self.writes.retain(|_, entry| entry.is_some());
                self.refuse_waiting();
                let wait = self.retry.map_or(FIRST_RETRY, |(wait, _)| (wait * 2).min(SLOWEST_RETRY));
                self.retry = Some((wait, Instant::now() + wait));
                if let Some(more) = self.alarm.permit(Instant::now()) {
                    error!(
                        %error,
                        unsaved = self.writes.len(),
                        and_more = more,
                        "the journal cannot be written: bans stay in force and are replicated, but unsaved ones are lost if \
                         this node stops before its disk recovers"
                    );
                }
            }
        }
        self.levels();
    }

    fn attempt(&mut self) -> Result<(), JournalError> {
        if self.place.file.is_none() {
            let file = reopen(&self.place, &mut self.header, &mut self.writes)?;
            self.place.on_disk = Some(file.header().clone());
            self.place.file = Some(file);
        }
        if let Some(file) = &mut self.place.file {
            file.write(&self.writes, self.header.clone())?;
            self.place.on_disk = Some(self.header.clone());
        }
        Ok(())
    }

    /// Answers the waiting callers that their changes are made but not durable. The store continues.
    fn refuse_waiting(&mut self) {
        self.metrics.unsaved.set(level(self.writes.len()));
        self.waiting.drain(..).for_each(Acknowledgement::not_saved);
        self.urgent = false;
        self.rooms.clear();
        self.metrics.lag(self.since.map_or(Duration::ZERO, |since| since.elapsed()));
    }

    fn levels(&self) {
        self.metrics.waiting.set(waiting(&self.room));
        self.metrics.unsaved.set(if self.retry.is_some() { level(self.writes.len()) } else { 0 });
        if let Some(file) = &self.place.file {
            self.metrics.entries.set(level(file.entries()));
            self.metrics.bytes.set(level(file.bytes()));
        }
    }

    /// Writes what is left after the store has ended, or logs how much is lost.
    async fn end(mut self) -> usize {
        for _ in 1..LAST_ATTEMPTS {
            let Some((wait, _)) = self.retry else { break };
            tokio::time::sleep(wait.min(LONGEST_LAST_WAIT)).await;
            self.commit();
        }
        let lost = if self.retry.is_some() { self.writes.len() } else { 0 };
        if lost > 0 {
            error!(entries = lost, "the journal could not be written: these entries are lost on this node");
        }
        if let Some(Err(error)) = self.place.file.take().map(StoreFile::close) {
            error!(%error, "the journal could not be closed properly; everything that it acknowledged is safe");
        }
        if let Some(Some(done)) = self.ending.take() {
            let _ = done.send(());
        }
        lost
    }
}

/// Reopens the file after a failure, unless it was replaced. If the node has never seen the file, creates it, or merges what it holds.
fn reopen(place: &Place, header: &mut Header, writes: &mut Writes) -> Result<StoreFile, JournalError> {
    let Place { on_disk, opener, path, .. } = place;
    let exists = path.try_exists().map_err(|error| JournalError::io(path, error))?;
    if on_disk.is_none() && !exists {
        StoreFile::create(path, Some(header.node.clone()), clock::now())?;
        info!(path = %path.display(), "created a new journal");
    }
    let mut file = StoreFile::open_through(opener, path)?;
    let found = file.header();
    let same = match on_disk {
        Some(known) => {
            let identity = (found.created, &found.node, found.generation);
            // A failed write of the first header may or may not have reached the disk.
            [known, &*header].iter().any(|known| identity == (known.created, &known.node, known.generation))
        }
        None => found.node == header.node,
    };
    if !same {
        return Err(JournalError::Foreign {
            path: path.to_owned(),
            detail: "it was replaced while the node ran, or belongs to another node".into(),
        });
    }
    header.created = found.created;
    let merges = on_disk.is_none();
    file.scan(|target, entry| {
        if merges && let Some(Some(written)) = writes.get_mut(&target) {
            *written = written.join(&entry);
        }
    })?;
    file.release()?;
    Ok(file)
}
