//! Runs every part of the node by name, and notices when one breaks or hangs.
//!
//! It runs on a thread of its own (the main thread, with a runtime of its own), so that parts that block all threads of theirs
//! cannot stop it. Every part is asked each second whether it is at work: store, judge and journal through their queues, every
//! other one by a [`pulse`] in its task. What follows from that is decided in [`policy`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

mod board;
#[cfg(debug_assertions)]
mod fault;
pub mod policy;
mod pulse;

pub use board::Board;
use policy::{Backoff, Broken, Depth, How, PROBE_EVERY, Silence};
use pulse::Pulse;

use super::panics;
use super::shutdown::{ORDER, Stage};
#[cfg(debug_assertions)]
use crate::decisions::journal::Visits;

/// What a part ends with; the error says what it could not do.
type Outcome = Result<(), String>;
/// Asks a part whether it is at work; false when it has ended.
pub type Ask = Box<dyn Fn() -> BoxFuture<'static, bool> + Send>;
/// Starts a part that may be started again.
type Again = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, Outcome> + Send>;

/// After a part broke, the wait for others that ended with it: the one that broke first need not be reported first.
const SETTLE: Duration = Duration::from_millis(100);

/// A part that may fail alone: it can be served again after it broke.
pub trait Restart: Send + 'static {
    /// Serves until `shutdown`.
    fn serve(&mut self, shutdown: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// A part before it runs.
pub struct Part {
    name: Arc<str>,
    stage: Stage,
    depth: Depth,
    ask: Option<Ask>,
    #[cfg(debug_assertions)]
    thread: Option<Visits>,
}

impl Part {
    /// A part that ends with `stage`.
    pub fn new(name: impl Into<Arc<str>>, stage: Stage) -> Self {
        Self {
            name: name.into(),
            stage,
            depth: Depth::Other,
            ask: None,
            #[cfg(debug_assertions)]
            thread: None,
        }
    }

    /// It is asked through its own queue, and others wait for it.
    #[must_use]
    pub fn asked(self, depth: Depth, ask: Ask) -> Self {
        Self { depth, ask: Some(ask), ..self }
    }

    /// Its work is done by a thread, so a fault on purpose strikes there.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn on_thread(self, thread: Visits) -> Self {
        Self { thread: Some(thread), ..self }
    }
}

/// A part that runs, or waits to be started again.
struct Running {
    name: Arc<str>,
    stage: Stage,
    depth: Depth,
    ask: Ask,
    /// Whether an answer is awaited.
    asking: bool,
    pulse: Option<Pulse>,
    silence: Silence,
    task: Option<AbortHandle>,
    begun: Instant,
    again: Option<(Again, Backoff)>,
    /// The thread that does its work, if its task only waits for one: there its fault strikes.
    #[cfg(debug_assertions)]
    thread: Option<Visits>,
    /// It hangs, or did not end in time: nobody waits for it any more.
    given_up: bool,
}

/// All parts.
pub struct Supervisor {
    runtime: Handle,
    board: Board,
    #[cfg(debug_assertions)]
    fault: fault::Fault,
    parts: Vec<Running>,
    tasks: JoinSet<Outcome>,
    by_task: HashMap<Id, usize>,
    ends: HashMap<Stage, CancellationToken>,
    answers: FuturesUnordered<BoxFuture<'static, (usize, bool)>>,
    rests: FuturesUnordered<BoxFuture<'static, usize>>,
    tick: Interval,
    ticked: Instant,
    /// How often systemd is told that the node is alive, once it is ready.
    watchdog: Option<Duration>,
    told: Option<Instant>,
    /// Whether parts were told to end.
    ending: bool,
}

impl Supervisor {
    /// Runs parts on `runtime`. Must be called within the runtime that the supervisor itself uses.
    pub fn new(runtime: Handle, board: Board) -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        let mut tick = tokio::time::interval(watchdog.map_or(PROBE_EVERY, |time| (time / 2).min(PROBE_EVERY)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            runtime,
            board,
            #[cfg(debug_assertions)]
            fault: fault::Fault::from_environment(),
            parts: Vec::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            ends: ORDER.into_iter().map(|stage| (stage, CancellationToken::new())).collect(),
            answers: FuturesUnordered::new(),
            rests: FuturesUnordered::new(),
            tick,
            ticked: Instant::now(),
            watchdog: None,
            told: None,
            ending: false,
        }
    }

    /// Fires when the parts of `stage` are to end.
    pub fn end_of(&self, stage: Stage) -> CancellationToken {
        self.ends.get(&stage).cloned().unwrap_or_default()
    }

    /// Runs a part that the node cannot be without: when it ends before it was asked to, the node does.
    pub fn run<O: Into<Ending>>(&mut self, part: Part, work: impl Future<Output = O> + Send + 'static) {
        let index = self.add(part, None);
        self.spawn(index, Box::pin(async move { work.await.into().0 }));
    }

    /// Runs a part that may fail alone: it is started again, ever more slowly.
    pub fn run_again(&mut self, part: Part, work: impl Restart) {
        self.board.may_restart(&part.name);
        let work = Arc::new(tokio::sync::Mutex::new(work));
        let again: Again = Box::new(move |end| {
            let work = Arc::clone(&work);
            Box::pin(async move {
                work.lock().await.serve(end).await;
                Ok(())
            })
        });
        let first = again(self.end_of(part.stage));
        let index = self.add(part, Some((again, Backoff::default())));
        self.spawn(index, first);
    }

    /// From now on systemd is told that the node is alive, as often as it wants to hear that.
    pub fn keep_alive(&mut self) {
        self.watchdog = sd_notify::watchdog_enabled();
    }

    /// Watches the parts until `done`.
    ///
    /// # Errors
    /// The part that broke first.
    pub async fn until<T>(&mut self, done: impl Future<Output = T>) -> Result<T, Broken> {
        let mut done = pin!(done);
        loop {
            let broken = tokio::select! {
                done = &mut done => return Ok(done),
                broken = self.next() => broken,
            };
            if let Some(broken) = broken {
                return Err(self.settle(broken).await);
            }
        }
    }

    /// Lets the parts of `stage` end, and returns when they have or `deadline` has passed. A part that breaks meanwhile is
    /// returned; those that did not end are left to themselves: see [`Supervisor::left`].
    pub async fn end(&mut self, stage: Stage, deadline: Duration) -> Option<Broken> {
        self.ending = true;
        self.end_of(stage).cancel();
        let mut broken = Vec::new();
        let ended = async {
            while self.names(|part| part.stage == stage && !part.given_up).next().is_some() {
                // What hangs is named when its time is over.
                broken.extend(self.next().await.filter(|broken| !matches!(broken.how, How::Silent(_))));
            }
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            let late: Vec<&str> = self.names(|part| part.stage == stage && !part.given_up).collect();
            warn!(parts = late.join(", "), ?deadline, "did not end in time; going on without them");
            for part in self.parts.iter_mut().filter(|part| part.stage == stage) {
                part.given_up |= part.task.is_some();
                part.task.iter().for_each(AbortHandle::abort);
            }
        }
        policy::culprit(&broken).cloned()
    }

    /// The parts that still run. Of those that wait for each other only the one that the others wait for.
    pub fn left(&self) -> Vec<String> {
        let deepest = self.parts.iter().filter(|part| part.task.is_some()).map(|part| part.depth).min();
        let waits = |part: &Running| part.depth != Depth::Other && Some(part.depth) != deepest;
        self.names(|part| !waits(part)).map(str::to_owned).collect()
    }

    /// Whether a part that still runs fulfils `what`.
    pub fn any_left(&self, what: impl Fn(Stage) -> bool) -> bool {
        self.names(|part| what(part.stage)).next().is_some()
    }

    /// Whether no part answers: all threads are stuck, and nothing can be ended in order any more.
    pub fn is_paralysed(&self) -> bool {
        let mut tasks = self.parts.iter().filter(|part| part.task.is_some() && part.depth == Depth::Other).peekable();
        tasks.peek().is_some() && tasks.all(|part| part.silence.is_long())
    }

    /// Whether a part of `stage` hangs.
    pub fn is_stuck(&self, stage: Stage) -> bool {
        self.names(|part| part.stage == stage && part.given_up).next().is_some()
    }

    fn names(&self, which: impl Fn(&Running) -> bool) -> impl Iterator<Item = &str> {
        self.parts.iter().filter(move |part| part.task.is_some() && which(part)).map(|part| &*part.name)
    }

    fn add(&mut self, part: Part, again: Option<(Again, Backoff)>) -> usize {
        let Part { name, stage, depth, .. } = part;
        if matches!(depth, Depth::Store | Depth::Judge) {
            self.board.answered(&name, Instant::now().into_std());
        }
        // Replaced by the pulse of its task unless it has a queue.
        let ask = part.ask.unwrap_or_else(|| Box::new(|| Box::pin(std::future::ready(false))));
        self.parts.push(Running {
            name,
            stage,
            depth,
            ask,
            asking: false,
            pulse: None,
            silence: Silence::new(depth),
            task: None,
            begun: Instant::now(),
            again,
            #[cfg(debug_assertions)]
            thread: part.thread,
            given_up: false,
        });
        self.parts.len() - 1
    }

    fn spawn(&mut self, index: usize, work: BoxFuture<'static, Outcome>) {
        let Some(part) = self.parts.get_mut(index) else { return };
        #[cfg(debug_assertions)]
        let work = match part.thread.clone() {
            Some(thread) => {
                self.fault.strike_thread(&part.name, thread, &self.runtime);
                work
            }
            None => Box::pin(self.fault.clone().strike(Arc::clone(&part.name), work)),
        };
        let (pulse, answers) = pulse::pulse();
        part.pulse = Some(pulse.clone());
        if part.depth == Depth::Other {
            part.ask = Box::new(move || pulse.ask());
        }
        (part.asking, part.begun, part.silence) = (false, Instant::now(), Silence::new(part.depth));
        let task = self.tasks.spawn_on(answers.during(work), &self.runtime);
        self.by_task.insert(task.id(), index);
        part.task = Some(task);
    }

    /// The next part that broke, or none when something else happened.
    async fn next(&mut self) -> Option<Broken> {
        tokio::select! {
            Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            Some((index, at_work)) = self.answers.next() => {
                self.answered(index, at_work);
                None
            }
            Some(index) = self.rests.next() => {
                self.start_again(index);
                None
            }
            _ = self.tick.tick() => self.look(),
        }
    }

    async fn settle(&mut self, first: Broken) -> Broken {
        let mut broken = vec![first.clone()];
        let more = async {
            loop {
                broken.extend(self.next().await);
            }
        };
        let _: Result<(), _> = tokio::time::timeout(SETTLE, more).await;
        let culprit = policy::culprit(&broken).unwrap_or(&first);
        for other in broken.iter().filter(|other| other.part != culprit.part) {
            warn!(part = other.part, because_of = culprit.part, "ended as well: {}", other.how);
        }
        culprit.clone()
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) -> Option<Broken> {
        let (id, how) = match ended {
            Ok((id, Ok(()))) => (id, How::Returned),
            Ok((id, Err(message))) => (id, How::Failed(message)),
            Err(error) => {
                let id = error.id();
                let Ok(panic) = error.try_into_panic() else {
                    // It was given up.
                    if let Some(part) = self.by_task.remove(&id).and_then(|index| self.parts.get_mut(index)) {
                        part.task = None;
                    }
                    return None;
                };
                (id, How::Panicked(panics::message(panic.as_ref())))
            }
        };
        let index = self.by_task.remove(&id)?;
        let asked = self.parts.get(index).is_some_and(|part| self.end_of(part.stage).is_cancelled());
        let part = self.parts.get_mut(index)?;
        part.task = None;
        self.board.ended(&part.name);
        if asked && how == How::Returned {
            debug!(part = &*part.name, "ended");
            return None;
        }
        if let Some((_, backoff)) = &mut part.again
            && !asked
        {
            let wait = backoff.after(part.begun.elapsed());
            error!(part = &*part.name, again_in = ?wait, "a part that may fail alone {how}");
            self.board.restarted(&part.name, &how);
            self.rests.push(Box::pin(async move {
                tokio::time::sleep(wait).await;
                index
            }));
            return None;
        }
        error!(part = &*part.name, "a part of this node {how}");
        Some(Broken { part: part.name.to_string(), depth: part.depth, how })
    }

    fn start_again(&mut self, index: usize) {
        let Some(part) = self.parts.get(index) else { return };
        let end = self.end_of(part.stage);
        if let Some((again, _)) = part.again.as_ref().filter(|_| !end.is_cancelled()) {
            let work = again(end);
            self.spawn(index, work);
        }
    }

    fn answered(&mut self, index: usize, at_work: bool) {
        let Some(part) = self.parts.get_mut(index) else { return };
        part.asking = false;
        if at_work && part.task.is_some() {
            part.silence.end();
            if matches!(part.depth, Depth::Store | Depth::Judge) {
                self.board.answered(&part.name, Instant::now().into_std());
            }
        }
    }

    /// Asks all parts, and says which one hangs.
    fn look(&mut self) -> Option<Broken> {
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.ticked, now));
        let runs = |part: &&mut Running| part.task.is_some() && !part.given_up;
        let silent = self.parts.iter_mut().filter(runs).filter(|part| part.asking).map(|part| &mut part.silence);
        policy::pass(silent, time);
        for (index, part) in self.parts.iter_mut().enumerate().filter(|(_, part)| part.task.is_some() && !part.asking) {
            part.asking = true;
            let answer = (part.ask)();
            self.answers.push(Box::pin(async move { (index, answer.await) }));
        }
        self.tell_systemd(now);
        let hangs = |part: &&mut Running| runs(part) && part.silence.too_long().is_some();
        // Others may be silent because the one that is stuck holds the thread they need.
        let stuck = |part: &Running| part.pulse.as_ref().is_some_and(Pulse::is_at_work);
        let part = self.parts.iter_mut().filter(hangs).min_by_key(|part| (!stuck(part), part.depth))?;
        let how = How::Silent(part.silence.too_long()?);
        part.given_up = true;
        if self.ending {
            debug!(part = &*part.name, "a part of this node {how}");
        } else {
            error!(part = &*part.name, "a part of this node {how}");
        }
        Some(Broken { part: part.name.to_string(), depth: part.depth, how })
    }

    fn tell_systemd(&mut self, now: Instant) {
        let Some(interval) = self.watchdog else { return };
        let due = self.told.is_none_or(|told| now.duration_since(told) >= interval.min(PROBE_EVERY * 10) / 3);
        if due && self.board.silent(now.into_std()).is_empty() {
            self.told = Some(now);
            super::tell_systemd(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// What a part ended with.
pub struct Ending(Outcome);

impl From<()> for Ending {
    fn from((): ()) -> Self {
        Self(Ok(()))
    }
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        Self(outcome)
    }
}

#[cfg(test)]
mod tests;
