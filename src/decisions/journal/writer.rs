//! The thread that writes: a database blocks, and the store must not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, info};

use super::error::JournalError;
use super::file::{Header, StoreFile, Writes};
use super::gate::Opener;
use super::metrics::{Metrics, level};
use super::waiting;
use crate::decisions::batch::{Acknowledgement, Batch};
use crate::net::throttle::LogThrottle;
use banmesh_core::hlc::Hlc;
use banmesh_types::target::Target;

/// How long changes that nobody waits for, and those of bulk requests, are gathered before they are written: with the write itself
/// well under the 50 ms within which a ban must be durable.
const GATHER: Duration = Duration::from_millis(15);
/// Entries in one transaction, about: beyond, it would take too long.
const AT_ONCE: usize = 65_536;
/// After a failure the next attempt comes after this time, then after twice as long, up to [`SLOWEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(200);
const SLOWEST_RETRY: Duration = Duration::from_secs(10);
/// Attempts at the end, when there is no later.
const LAST_ATTEMPTS: u32 = 4;
/// The longest wait between them: all of them must fit into the time that the node leaves the journal to end.
const LONGEST_LAST_WAIT: Duration = Duration::from_secs(2);

/// What the store hands over.
pub(super) enum Message {
    Changes {
        batch: Arc<Batch>,
        last: Hlc,
        waiting: Vec<Acknowledgement>,
        since: Instant,
        room: OwnedSemaphorePermit,
    },
    Forget {
        targets: Vec<Target>,
        room: OwnedSemaphorePermit,
    },
    /// Runs on the writer's thread in its turn.
    Visit(Box<dyn FnOnce() + Send>),
    Close {
        last: Hlc,
        done: oneshot::Sender<()>,
    },
}

pub(super) struct Writer {
    messages: Receiver<Message>,
    room: Arc<Semaphore>,
    /// `None` after a failure, until it was opened anew.
    file: Option<StoreFile>,
    opener: Opener,
    path: PathBuf,
    header: Header,
    metrics: Metrics,
    alarm: LogThrottle,
    /// What the disk does not have. After a failure it grows, by one entry a target at most: no more than the table.
    writes: Writes,
    waiting: Vec<Acknowledgement>,
    /// Whether somebody waits for a single change.
    urgent: bool,
    rooms: Vec<OwnedSemaphorePermit>,
    since: Option<Instant>,
    /// The wait after the last failure, and when it ends.
    retry: Option<(Duration, Instant)>,
    ending: Option<Option<oneshot::Sender<()>>>,
}

impl Writer {
    pub(super) fn new(
        file: StoreFile,
        (opener, path): (Opener, PathBuf),
        metrics: Metrics,
        messages: Receiver<Message>,
        room: Arc<Semaphore>,
    ) -> Self {
        let header = file.header().clone();
        Self {
            messages,
            room,
            file: Some(file),
            opener,
            path,
            header,
            metrics,
            alarm: LogThrottle::new(Duration::from_secs(10)),
            writes: Writes::default(),
            waiting: Vec::new(),
            urgent: false,
            rooms: Vec::new(),
            since: None,
            retry: None,
            ending: None,
        }
    }

    /// Writes until the store has ended; returns how many entries could not be written.
    pub(super) fn run(mut self) -> usize {
        self.levels();
        while self.ending.is_none() {
            self.gather();
            if self.retry.is_some_and(|(_, at)| at > Instant::now()) && self.ending.is_none() {
                self.refuse_waiting();
            } else if !self.writes.is_empty() || self.ending.is_some() {
                self.commit();
            }
        }
        self.end()
    }

    /// Waits for something to do and takes all there is.
    fn gather(&mut self) {
        let first = match self.retry {
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some((_, at)) => self.messages.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match first {
            Ok(message) => self.take(message),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => self.ending = Some(None),
        }
        let gathered = Instant::now() + GATHER;
        while self.ending.is_none() && self.writes.len() < AT_ONCE {
            // When somebody waits for a single change, or a failure is tried again later, it does not wait for more.
            let more = if !self.urgent && self.retry.is_none() {
                gathered.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match self.messages.recv_timeout(more) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => self.ending = Some(None),
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
                self.waiting.extend(waiting);
                self.rooms.push(room);
                self.since.get_or_insert(since);
            }
            Message::Forget { targets, room } => {
                for target in targets {
                    // While nothing can be written, it is enough not to write it: a load drops what is over, too.
                    if self.retry.is_some() {
                        self.writes.remove(&target);
                    } else {
                        self.writes.insert(target, None);
                    }
                }
                self.rooms.push(room);
            }
            Message::Visit(act) => act(),
            Message::Close { last, done } => {
                self.header.clock = last;
                self.ending = Some(Some(done));
            }
        }
    }

    /// Writes what was gathered and answers those who wait.
    fn commit(&mut self) {
        let start = Instant::now();
        match self.attempt() {
            Ok(()) => {
                self.metrics.commits.inc();
                self.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
                if self.retry.take().is_some() {
                    info!(entries = self.writes.len(), "the journal is written again: nothing was lost");
                }
                self.writes.clear();
                self.waiting.drain(..).for_each(Acknowledgement::saved);
                self.urgent = false;
                self.rooms.clear();
                self.metrics.lag(self.since.take().map_or(Duration::ZERO, |since| since.elapsed()));
            }
            Err(error) => {
                self.metrics.errors.inc();
                self.file = None;
                // As when it is forgotten later.
                self.writes.retain(|_, entry| entry.is_some());
                self.refuse_waiting();
                let wait = self.retry.map_or(FIRST_RETRY, |(wait, _)| (wait * 2).min(SLOWEST_RETRY));
                self.retry = Some((wait, Instant::now() + wait));
                if let Some(more) = self.alarm.permit(Instant::now()) {
                    error!(
                        %error,
                        unsaved = self.writes.len(),
                        and_more = more,
                        "the journal cannot be written: bans stay in force and are shared, but those unsaved are lost if \
                         this node ends before its disk recovers"
                    );
                }
            }
        }
        self.levels();
    }

    fn attempt(&mut self) -> Result<(), JournalError> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(reopen(&self.opener, &self.path, &self.header)?),
        };
        file.write(&self.writes, self.header.clone())
    }

    /// Tells those who wait that the change is made but not durable. The store goes on.
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
        if let Some(file) = &self.file {
            self.metrics.entries.set(level(file.entries()));
            self.metrics.bytes.set(level(file.bytes()));
        }
    }

    /// The store has ended: what is left goes to the disk, or is lost with a word.
    fn end(mut self) -> usize {
        for _ in 1..LAST_ATTEMPTS {
            let Some((wait, _)) = self.retry else { break };
            std::thread::sleep(wait.min(LONGEST_LAST_WAIT));
            self.commit();
        }
        let lost = if self.retry.is_some() { self.writes.len() } else { 0 };
        if lost > 0 {
            error!(entries = lost, "the journal could not be written: these entries are lost on this node");
        }
        if let Some(Err(error)) = self.file.take().map(StoreFile::close) {
            error!(%error, "the journal could not be closed in order; what it acknowledged is safe");
        }
        if let Some(Some(done)) = self.ending.take() {
            let _ = done.send(());
        }
        lost
    }
}

/// Opens the file after a failure, if it still is the one that was there.
fn reopen(opener: &Opener, path: &Path, header: &Header) -> Result<StoreFile, JournalError> {
    let mut file = StoreFile::open_through(opener, path)?;
    let found = file.header();
    if (found.created, &found.node, found.generation) != (header.created, &header.node, header.generation) {
        return Err(JournalError::Foreign {
            path: path.to_owned(),
            detail: "it was replaced while the node ran".into(),
        });
    }
    file.scan(|_, _| {})?;
    file.release()?;
    Ok(file)
}
