//! Keeps the lists of feeds current: asks for them, checks them, and puts them in use.
//!
//! One task asks one feed after the other, so only one list is in memory beside the table. What is decided is in `banmesh_feeds`.

mod copies;
mod fetch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::copies::Copies;
use self::copies::Copy;
pub use self::copies::Validators;
pub use self::fetch::{Answer, fetch};
use crate::clock;
use crate::decisions::feeds::{Feeds, Metrics};
use crate::net::dial::{Endpoint, Trust};
use crate::net::throttle::LogThrottle;
use banmesh_feeds::keeping::{Failure, How, Outcome, Pace, Progress};
use banmesh_feeds::list::{self, Format, Length, List, Refusal};
use banmesh_feeds::table::Table;
use banmesh_types::time::UnixMillis;

/// The longest sleep. The wall clock may be set meanwhile.
const NAP: Duration = Duration::from_secs(30);
/// How long an operator waits for an answer. The API ends requests after 30 seconds.
const PATIENCE: Duration = Duration::from_secs(25);
/// Requests of operators that may wait.
const QUEUE: usize = 16;
/// The most entries of all lists together, which bounds the memory.
const MOST: usize = 4_000_000;

/// How a feed is asked.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// Its name; also that of its copy on the disk.
    pub name: Arc<str>,
    /// Where its list is.
    pub source: Source,
    /// The format of the list.
    pub format: Format,
    /// How often it is asked for, and how long a list counts.
    pub pace: Pace,
}

/// Where a list is.
#[derive(Clone, Debug)]
pub enum Source {
    /// On a server.
    Server {
        /// The server and the path.
        endpoint: Endpoint,
        /// The certificates that the server may present.
        trust: Trust,
        /// The header with the publisher's key.
        key: Option<(HeaderName, HeaderValue)>,
        /// The time limit of one question.
        timeout: Duration,
    },
    /// In a file of this host.
    File(PathBuf),
}

impl Source {
    /// What tells this source from another one, without secrets in the clear.
    fn identity(&self, format: Format) -> String {
        use std::hash::BuildHasher as _;
        let place = match self {
            Self::Server { endpoint, .. } => endpoint.url().to_owned(),
            Self::File(path) => path.display().to_string(),
        };
        format!("{format}:{:016x}", foldhash::quality::FixedState::with_seed(7).hash_one(place))
    }
}

/// What an operator gets to know about a feed that was asked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Updated {
    /// The feed.
    pub feed: String,
    /// What came of it.
    pub outcome: UpdateOutcome,
    /// Entries in use now.
    pub entries: usize,
    /// What is wrong, and what to do; empty if nothing is.
    #[serde(default)]
    pub message: String,
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateOutcome {
    /// There is a new list.
    Changed,
    /// The list is the one in use.
    Unchanged,
    /// There is no usable list.
    Failed,
    /// The publisher does not allow to ask again so soon.
    Early,
}

/// A request of an operator.
#[derive(Debug)]
struct Request {
    /// The number of the feed; `None` for all.
    feed: Option<usize>,
    /// Whether a list counts that changed too much at once.
    accept: bool,
    reply: oneshot::Sender<Vec<Updated>>,
}

/// Asks the task that keeps the feeds; cheap to clone.
#[derive(Clone, Debug)]
pub struct FeedsHandle {
    requests: mpsc::Sender<Request>,
    names: Arc<[Arc<str>]>,
}

/// Why an operator's request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// There is no such feed.
    #[error("there is no feed `{name}` here; the feeds are {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// The node stops, or too many requests wait.
    #[error("the feeds are not updated now, because the node stops or many requests wait")]
    Busy,
    /// The servers take long.
    #[error("the feeds are still being asked, which goes on")]
    Slow,
}

impl FeedsHandle {
    /// Asks a feed now, or all. A feed whose publisher does not allow it yet is not asked, unless its list is to be accepted.
    ///
    /// # Errors
    /// When there is no such feed, or the task does not answer.
    pub async fn update(&self, name: Option<&str>, accept: bool) -> Result<Vec<Updated>, UpdateError> {
        let position = |name: &str| {
            self.names.iter().position(|known| **known == *name).ok_or_else(|| UpdateError::Unknown {
                name: name.chars().take(40).collect(),
                known: self.names.join(", "),
            })
        };
        let feed = name.map(position).transpose()?;
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request { feed, accept, reply }).map_err(|_| UpdateError::Busy)?;
        let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| UpdateError::Slow)?;
        answer.map_err(|_| UpdateError::Busy)
    }
}

/// The task; [`FeedKeeper::serve`] runs it.
#[derive(Debug)]
pub struct FeedKeeper {
    all: Vec<Kept>,
    feeds: Feeds,
    copies: Copies,
    requests: mpsc::Receiver<Request>,
    metrics: Metrics,
    log: LogThrottle,
    restored: bool,
}

#[derive(Debug)]
struct Kept {
    settings: FeedSettings,
    progress: Progress,
    validators: Validators,
    /// When the server was last asked and gave an answer.
    asked: Option<UnixMillis>,
}

impl FeedKeeper {
    /// Keeps `feeds`, which has them in the order of `settings`, with copies in `copies`.
    pub fn new(settings: Vec<FeedSettings>, feeds: Feeds, copies: Copies, metrics: Metrics) -> (Self, FeedsHandle) {
        let names = settings.iter().map(|feed| Arc::clone(&feed.name)).collect();
        let now = clock::now();
        let kept = |settings: FeedSettings| {
            let progress = Progress::new(settings.pace, now);
            Kept { settings, progress, validators: Validators::default(), asked: None }
        };
        let (sender, requests) = mpsc::channel(QUEUE);
        let log = LogThrottle::new(Duration::from_secs(60));
        let all = settings.into_iter().map(kept).collect();
        (Self { all, feeds, copies, requests, metrics, log, restored: false }, FeedsHandle { requests: sender, names })
    }

    /// Keeps the lists current until `shutdown`. Can be called again after a panic.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        if !std::mem::replace(&mut self.restored, true) {
            for feed in 0..self.all.len() {
                self.restore(feed).await;
            }
        }
        loop {
            let now = clock::now();
            self.drop_ended(now).await;
            let due = self.all.iter().position(|kept| kept.progress.next() <= now);
            if let Some(feed) = due {
                if shutdown.run_until_cancelled(self.ask(feed, false)).await.is_none() {
                    return;
                }
                continue;
            }
            let next = self.all.iter().flat_map(|kept| [Some(kept.progress.next()), kept.progress.ends()]);
            let wait =
                next.flatten().map(|at| at.since(now)).min().unwrap_or(NAP).clamp(Duration::from_millis(50), NAP);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                request = self.requests.recv() => {
                    let Some(request) = request else { return };
                    let carried_out = self.carry_out(&request);
                    match shutdown.run_until_cancelled(carried_out).await {
                        // The operator may have gone.
                        Some(updated) => _ = request.reply.send(updated),
                        None => return,
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, request: &Request) -> Vec<Updated> {
        let mut updated = Vec::new();
        for feed in (0..self.all.len()).filter(|feed| request.feed.is_none_or(|wanted| wanted == *feed)) {
            let Some(kept) = self.all.get(feed) else { continue };
            let now = clock::now();
            // Who accepts a list has looked at it just now, and cannot wait for an hour.
            let asked = kept.asked.filter(|_| !request.accept);
            let allowed = asked.map(|asked| asked.plus(kept.settings.pace.floor)).filter(|allowed| *allowed > now);
            let (outcome, message) = match allowed {
                Some(allowed) => (UpdateOutcome::Early, format!("its publisher allows the next question at {allowed}")),
                None => self.ask(feed, request.accept).await,
            };
            let Some(kept) = self.all.get(feed) else { continue };
            let entries = kept.progress.entries();
            updated.push(Updated { feed: kept.settings.name.to_string(), outcome, entries, message });
        }
        updated
    }

    /// Puts the copy of a feed in use that is on the disk.
    async fn restore(&mut self, feed: usize) {
        let Some(kept) = self.all.get_mut(feed) else { return };
        let Source::Server { .. } = kept.settings.source else { return };
        let (copies, settings) = (self.copies.clone(), kept.settings.clone());
        let identity = settings.source.identity(settings.format);
        let read = tokio::task::spawn_blocking(move || {
            let copy = copies.read(&settings.name, &identity)?;
            let list = list::read(&copy.bytes, settings.format, Length::Announced).ok()?;
            Some((copy.validators, copy.confirmed, list))
        });
        let Ok(Some((validators, confirmed, list))) = read.await else { return };
        let now = clock::now();
        let restored = kept.progress.clone().restored(confirmed, list.entries, list.left_out, now);
        if restored.has_ended(now) {
            return;
        }
        info!(feed = &*kept.settings.name, entries = list.entries, %confirmed, "the list from the disk is in use");
        (kept.progress, kept.validators, kept.asked) = (restored, validators, Some(confirmed));
        self.put_in_use(feed, Some(list)).await;
    }

    /// Drops the lists whose time has ended.
    async fn drop_ended(&mut self, now: UnixMillis) {
        for feed in 0..self.all.len() {
            let Some(kept) = self.all.get_mut(feed).filter(|kept| kept.progress.has_ended(now)) else { continue };
            warn!(feed = &*kept.settings.name, "the list is too old and has no effect any more");
            kept.progress.drop_list();
            kept.validators = Validators::default();
            self.put_in_use(feed, None).await;
        }
    }

    /// Asks a feed, and puts its list in use.
    async fn ask(&mut self, feed: usize, accept: bool) -> (UpdateOutcome, String) {
        let Some(kept) = self.all.get_mut(feed) else { return (UpdateOutcome::Failed, String::new()) };
        let name = Arc::clone(&kept.settings.name);
        // A list that was held back would be answered with "not modified" only if it were the one in use, so validators stay true.
        let answer = fetch(&kept.settings, &kept.validators).await;
        let now = clock::now();
        let unreached = matches!(&answer, Err(Failure { how: How::Unreached, .. }));
        kept.asked = if unreached { kept.asked } else { Some(now) };
        let before = kept.progress.confirmed().map(|_| kept.progress.entries());
        let others: usize = self.all.iter().map(|kept| kept.progress.entries()).sum::<usize>() - before.unwrap_or(0);
        let read = match answer {
            Ok(Answer::Unchanged) => Ok(None),
            Ok(Answer::New { bytes, length, validators }) => {
                self.read(feed, bytes, length, accept, before, others).await.map(|found| {
                    let (list, bytes) = found;
                    Some((list, bytes, validators))
                })
            }
            Err(failure) => Err(failure),
        };
        let (outcome, replacement) = match read {
            Ok(None) => (Outcome::Unchanged, None),
            Ok(Some((list, bytes, validators))) => {
                let outcome = Outcome::Changed { entries: list.entries, left_out: list.left_out };
                (outcome, Some((list, bytes, validators)))
            }
            Err(failure) => (Outcome::Failed(failure), None),
        };
        self.metrics.fetched(&name, &outcome);
        let told = match &outcome {
            Outcome::Changed { entries, left_out } => {
                info!(feed = &*name, entries, left_out, "a new list is in use");
                (UpdateOutcome::Changed, String::new())
            }
            Outcome::Unchanged => (UpdateOutcome::Unchanged, String::new()),
            Outcome::Failed(failure) => {
                if let Some(more) = self.log.permit(Instant::now()) {
                    warn!(feed = &*name, more, "no new list: {}", failure.message);
                }
                (UpdateOutcome::Failed, failure.message.clone())
            }
        };
        let Some(kept) = self.all.get_mut(feed) else { return told };
        kept.progress.after(outcome, now, jitter());
        let list = replacement.map(|(list, bytes, validators)| {
            kept.validators = validators;
            (list, bytes)
        });
        let good = told.0 != UpdateOutcome::Failed;
        let (list, bytes) = list.unzip();
        let replaced = list.is_some();
        if replaced {
            self.put_in_use(feed, list).await;
        } else {
            self.publish(feed, None);
        }
        if good {
            self.save(feed, bytes, now).await;
        }
        told
    }

    /// Reads a list apart from the tasks of the runtime. Returns its bytes too, for the copy.
    async fn read(
        &self,
        feed: usize,
        bytes: Vec<u8>,
        length: Length,
        accept: bool,
        before: Option<usize>,
        others: usize,
    ) -> Result<(List, Vec<u8>), Failure> {
        let refused = |message: String| Failure { how: How::Refused, message, retry_after: None };
        let Some(format) = self.all.get(feed).map(|kept| kept.settings.format) else {
            return Err(refused("there is no such feed".to_owned()));
        };
        let read = tokio::task::spawn_blocking(move || {
            let list = list::read(&bytes, format, length)?;
            if let Some(before) = before.filter(|_| !accept) {
                list::plausible(&list, before)?;
            }
            Ok::<_, Refusal>((list, bytes))
        });
        let read = read.await.map_err(|error| refused(format!("the list cannot be read: {error}")))?;
        let (list, bytes) = read.map_err(|refusal| refused(format!("the list is not used: {refusal}")))?;
        if others + list.entries > MOST {
            return Err(refused(format!(
                "the list is not used, because all lists together would have more than {MOST} entries; remove a feed"
            )));
        }
        Ok((list, bytes))
    }

    /// Makes the next table apart from the tasks of the runtime, and swaps it in.
    async fn put_in_use(&self, feed: usize, list: Option<List>) {
        let table = self.feeds.table();
        let made = tokio::task::spawn_blocking(move || table.replaced(feed, list.as_ref())).await;
        self.publish(feed, made.ok());
    }

    fn publish(&self, feed: usize, table: Option<Table>) {
        if let Some(kept) = self.all.get(feed) {
            self.feeds.publish(feed, table, kept.progress.clone());
        }
    }

    /// Saves that the list of a feed was confirmed at `now`, and the list itself if it is new.
    async fn save(&self, feed: usize, bytes: Option<Vec<u8>>, now: UnixMillis) {
        let Some(kept) = self.all.get(feed) else { return };
        let Source::Server { .. } = kept.settings.source else { return };
        let identity = kept.settings.source.identity(kept.settings.format);
        let copy = Copy { bytes: bytes.unwrap_or_default(), validators: kept.validators.clone(), confirmed: now };
        let (copies, name) = (self.copies.clone(), Arc::clone(&kept.settings.name));
        let saved = tokio::task::spawn_blocking(move || copies.write(&name, &identity, &copy)).await;
        if let Ok(Err(error)) = saved
            && let Some(more) = self.log.permit(Instant::now())
        {
            let feed = &*kept.settings.name;
            warn!(feed, more, %error, "the list cannot be saved, so it is asked for again after a restart; check node.data_dir");
        }
    }
}

/// A random number, so that nodes do not ask at the same moment.
fn jitter() -> u8 {
    let mut byte = [0];
    // A failure only makes it constant.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
