//! Runs every part of the node by name, and detects when one breaks or hangs.
//!
//! The supervisor runs on the main thread with its own runtime, so that parts that block all their threads cannot stop it. It
//! probes every part each second: store, judge and journal through their queues, all others with a [`task_probe`] in their task.
//! [`policy`] decides what to do about the result.

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

#[cfg(debug_assertions)]
mod fault;
mod health;
pub mod policy;
mod task_probe;

pub use health::PartHealth;
use policy::{Backoff, Broken, Depth, How, PROBE_EVERY, Silence};
use task_probe::TaskProbe;

use super::panics;
use super::shutdown::{ORDER, Stage};
use super::systemd;
#[cfg(debug_assertions)]
use crate::decisions::journal::ThreadHandle;

/// The result of a part; the error says why it failed.
type Outcome = Result<(), String>;
/// Probes a part; false when it has ended.
pub type Probe = Box<dyn Fn() -> BoxFuture<'static, bool> + Send>;
/// Starts a part that can be restarted.
type StartPart = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, Outcome> + Send>;

/// How long to wait after a part broke for others that broke with it. The first one reported need not be the cause.
const SETTLE: Duration = Duration::from_millis(100);

/// The same as long as all of them merely returned. The cause is then probably a panic, and on a busy machine it takes long until its
/// backtrace is logged and the part counts as ended.
const CAUSE_WITHIN: Duration = Duration::from_secs(2);

/// A part that can be restarted after it broke, while the node goes on.
pub trait Restart: Send + 'static {
    /// Serves until `shutdown`.
    fn serve(&mut self, shutdown: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// A part that is not running yet.
pub struct Part {
    name: Arc<str>,
    stage: Stage,
    depth: Depth,
    probe: Option<Probe>,
    #[cfg(debug_assertions)]
    thread: Option<ThreadHandle>,
}

impl Part {
    /// Creates a part that stops with `stage`.
    pub fn new(name: impl Into<Arc<str>>, stage: Stage) -> Self {
        Self {
            name: name.into(),
            stage,
            depth: Depth::Other,
            probe: None,
            #[cfg(debug_assertions)]
            thread: None,
        }
    }

    /// Probes the part through its own queue. Other parts wait for it.
    #[must_use]
    pub fn probed_by(self, depth: Depth, probe: Probe) -> Self {
        Self { depth, probe: Some(probe), ..self }
    }

    /// Injects test faults into the thread that does the part's work.
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn on_thread(self, thread: ThreadHandle) -> Self {
        Self { thread: Some(thread), ..self }
    }
}

/// A part that runs, or waits for its restart.
struct Running {
    name: Arc<str>,
    stage: Stage,
    depth: Depth,
    probe: Probe,
    /// Whether a probe is unanswered.
    probing: bool,
    task_probe: Option<TaskProbe>,
    silence: Silence,
    task: Option<AbortHandle>,
    begun: Instant,
    again: Option<(StartPart, Backoff)>,
    /// The thread that does its work, if its task only waits for one. Test faults are injected there.
    #[cfg(debug_assertions)]
    thread: Option<ThreadHandle>,
    /// Whether it hangs or did not stop in time, so that nothing waits for it.
    given_up: bool,
}

/// All parts.
pub struct Supervisor {
    runtime: Handle,
    health: PartHealth,
    #[cfg(debug_assertions)]
    fault: fault::Fault,
    parts: Vec<Running>,
    tasks: JoinSet<Outcome>,
    by_task: HashMap<Id, usize>,
    ends: HashMap<Stage, CancellationToken>,
    answers: FuturesUnordered<BoxFuture<'static, (usize, bool)>>,
    pauses: FuturesUnordered<BoxFuture<'static, usize>>,
    tick: Interval,
    ticked: Instant,
    /// The watchdog interval of systemd; `None` before the node is ready, or without a watchdog.
    watchdog: Option<Duration>,
    notified: Option<Instant>,
    /// Whether the node is stopping.
    ending: bool,
}

impl Supervisor {
    /// Creates a supervisor whose parts run on `runtime`. Must be called within the supervisor's own runtime.
    pub fn new(runtime: Handle, health: PartHealth) -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        let mut tick = tokio::time::interval(watchdog.map_or(PROBE_EVERY, |time| (time / 2).min(PROBE_EVERY)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            runtime,
            health,
            #[cfg(debug_assertions)]
            fault: fault::Fault::from_environment(),
            parts: Vec::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            ends: ORDER.into_iter().map(|stage| (stage, CancellationToken::new())).collect(),
            answers: FuturesUnordered::new(),
            pauses: FuturesUnordered::new(),
            tick,
            ticked: Instant::now(),
            watchdog: None,
            notified: None,
            ending: false,
        }
    }

    /// The token that is cancelled when the parts of `stage` must stop.
    pub fn end_of(&self, stage: Stage) -> CancellationToken {
        self.ends.get(&stage).cloned().unwrap_or_default()
    }

    /// Runs a part that the node needs. If it ends early, the node stops.
    pub fn run<O: Into<PartResult>>(&mut self, part: Part, work: impl Future<Output = O> + Send + 'static) {
        let index = self.add(part, None);
        self.spawn(index, Box::pin(async move { work.await.into().0 }));
    }

    /// Runs a part that is restarted when it ends early, with growing pauses.
    pub fn run_again(&mut self, part: Part, work: impl Restart) {
        self.health.may_restart(&part.name);
        let work = Arc::new(tokio::sync::Mutex::new(work));
        let again: StartPart = Box::new(move |end| {
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

    /// Starts to send systemd's watchdog notifications.
    pub fn keep_alive(&mut self) {
        self.watchdog = sd_notify::watchdog_enabled();
    }

    /// Watches the parts until `done`.
    ///
    /// # Errors
    /// The part that broke; if several did, the likely cause.
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

    /// Stops the parts of `stage`, and returns when they have ended or `deadline` has passed. Returns a part that breaks in that
    /// time. Parts that did not end are in [`Supervisor::left`].
    pub async fn end(&mut self, stage: Stage, deadline: Duration) -> Option<Broken> {
        self.ending = true;
        self.end_of(stage).cancel();
        let mut broken = Vec::new();
        let ended = async {
            while self.names(|part| part.stage == stage && !part.given_up).next().is_some() {
                // A part that hangs is reported after the deadline.
                broken.extend(self.next().await.filter(|broken| !matches!(broken.how, How::Silent(_))));
            }
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            let late: Vec<&str> = self.names(|part| part.stage == stage && !part.given_up).collect();
            warn!(parts = late.join(", "), ?deadline, "did not stop in time; continuing without them");
            for part in self.parts.iter_mut().filter(|part| part.stage == stage) {
                part.given_up |= part.task.is_some();
                part.task.iter().for_each(AbortHandle::abort);
            }
        }
        policy::culprit(&broken).cloned()
    }

    /// The parts that still run. Of parts that wait for each other, only the one that the others wait for.
    pub fn left(&self) -> Vec<String> {
        let deepest = self.parts.iter().filter(|part| part.task.is_some()).map(|part| part.depth).min();
        let waits = |part: &Running| part.depth != Depth::Other && Some(part.depth) != deepest;
        self.names(|part| !waits(part)).map(str::to_owned).collect()
    }

    /// Whether a part of a stage that satisfies `what` still runs.
    pub fn any_left(&self, what: impl Fn(Stage) -> bool) -> bool {
        self.names(|part| what(part.stage)).next().is_some()
    }

    /// Whether no part answers: all threads are blocked, so nothing can stop in order.
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

    fn add(&mut self, part: Part, again: Option<(StartPart, Backoff)>) -> usize {
        let Part { name, stage, depth, .. } = part;
        if matches!(depth, Depth::Store | Depth::Judge) {
            self.health.answered(&name, Instant::now().into_std());
        }
        // A part without a queue gets the probe of its task in `spawn`.
        let probe = part.probe.unwrap_or_else(|| Box::new(|| Box::pin(std::future::ready(false))));
        self.parts.push(Running {
            name,
            stage,
            depth,
            probe,
            probing: false,
            task_probe: None,
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
        let (probe, responder) = task_probe::task_probe();
        part.task_probe = Some(probe.clone());
        if part.depth == Depth::Other {
            part.probe = Box::new(move || probe.ask());
        }
        (part.probing, part.begun, part.silence) = (false, Instant::now(), Silence::new(part.depth));
        let task = self.tasks.spawn_on(responder.during(work), &self.runtime);
        self.by_task.insert(task.id(), index);
        part.task = Some(task);
    }

    /// Waits for the next event. Returns the part that broke, or `None` for other events.
    async fn next(&mut self) -> Option<Broken> {
        tokio::select! {
            Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            Some((index, at_work)) = self.answers.next() => {
                self.answered(index, at_work);
                None
            }
            Some(index) = self.pauses.next() => {
                self.start_again(index);
                None
            }
            _ = self.tick.tick() => self.look(),
        }
    }

    async fn settle(&mut self, first: Broken) -> Broken {
        let mut broken = vec![first.clone()];
        let begun = Instant::now();
        loop {
            let unexplained = broken.iter().all(|broken| broken.how == How::Returned);
            let end = begun + if unexplained { CAUSE_WITHIN } else { SETTLE };
            match tokio::time::timeout_at(end, self.next()).await {
                Ok(more) => broken.extend(more),
                Err(_) => break,
            }
        }
        let culprit = policy::culprit(&broken).unwrap_or(&first);
        for other in broken.iter().filter(|other| other.part != culprit.part) {
            warn!(part = other.part, because_of = culprit.part, "also ended: {}", other.how);
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
                    // It was aborted after the deadline.
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
        self.health.ended(&part.name);
        if asked && how == How::Returned {
            debug!(part = &*part.name, "ended");
            return None;
        }
        if let Some((_, backoff)) = &mut part.again
            && !asked
        {
            let wait = backoff.after(part.begun.elapsed());
            error!(part = &*part.name, restart_in = ?wait, "a part {how}; restarting it");
            self.health.restarted(&part.name, &how);
            self.pauses.push(Box::pin(async move {
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
        part.probing = false;
        if at_work && part.task.is_some() {
            part.silence.end();
            if matches!(part.depth, Depth::Store | Depth::Judge) {
                self.health.answered(&part.name, Instant::now().into_std());
            }
        }
    }

    /// Probes all parts, and returns one that hangs.
    fn look(&mut self) -> Option<Broken> {
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.ticked, now));
        let runs = |part: &&mut Running| part.task.is_some() && !part.given_up;
        let silent = self.parts.iter_mut().filter(runs).filter(|part| part.probing).map(|part| &mut part.silence);
        policy::pass(silent, time);
        for (index, part) in self.parts.iter_mut().enumerate().filter(|(_, part)| part.task.is_some() && !part.probing)
        {
            part.probing = true;
            let answer = (part.probe)();
            self.answers.push(Box::pin(async move { (index, answer.await) }));
        }
        self.notify_watchdog(now);
        let hangs = |part: &&mut Running| runs(part) && part.silence.too_long().is_some();
        // Prefer a part that is blocked in its work: others may be silent because it holds their thread.
        let stuck = |part: &Running| part.task_probe.as_ref().is_some_and(TaskProbe::is_at_work);
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

    fn notify_watchdog(&mut self, now: Instant) {
        let Some(interval) = self.watchdog else { return };
        let due =
            self.notified.is_none_or(|notified| now.duration_since(notified) >= interval.min(PROBE_EVERY * 10) / 3);
        if due && self.health.silent(now.into_std()).is_empty() {
            self.notified = Some(now);
            systemd::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// The result of a part's work.
pub struct PartResult(Outcome);

impl From<()> for PartResult {
    fn from((): ()) -> Self {
        Self(Ok(()))
    }
}

impl From<Outcome> for PartResult {
    fn from(outcome: Outcome) -> Self {
        Self(outcome)
    }
}

#[cfg(test)]
mod tests;
