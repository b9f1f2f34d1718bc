//! The store: the only task that owns the ledger and changes the ban table.
//!
//! Commands arrive over a bounded channel. When it is full, senders wait; lookups never do. Changes go to the view
//! at once, to the journal in order, and to subscribers: the cluster, the judge, HAProxy's map, webhooks and live updates.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::decisions::batch::{Acknowledgement, Batch, Source};
use crate::decisions::journal::Journal;
use crate::decisions::view::ViewWriter;
use crate::net::throttle::LogThrottle;
use banmesh_core::ban::{BanEntry, Cause, State};
use banmesh_core::clock_step::ClockWatch;
use banmesh_core::exemptions::Exempt;
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::BanOrder;
use banmesh_core::ledger::{Arrival, Author, BanTerms, Change, Ledger, Limits, Refused, cause_of_offence};
use banmesh_core::planted::{Fault, is_planted};
use banmesh_core::retention::Cut;
use banmesh_core::table::{BUCKETS, bucket_of};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, Span, UnixMillis};

mod breadth;
mod bulk;
mod clock_steps;
mod failure;
mod handle;
mod metrics;
mod pending;
mod room;

use breadth::Watch;
pub use breadth::WideBans;
pub use bulk::{Bulk, Outcome, Tolerated};
use failure::Failure;
pub use handle::{ClockSummary, DigestPage, ScanPage, StoreGone, StoreHandle, Summary};
pub use metrics::Metrics;
use pending::{Pending, PendingBatch};

use bulk::{STEPS, Step};
use room::targets_of;

/// Which entries a scan copies.
#[derive(Debug)]
enum Wanted {
    All,
    Buckets(Box<[bool; BUCKETS]>),
    /// Entries whose latest write is in the range.
    Written(RangeInclusive<Hlc>),
}

/// Requests to the store, made by [`StoreHandle`].
#[derive(Debug)]
enum Command {
    Offence(BanOrder),
    SeenAgain(Target, Duration),
    Ban {
        target: Target,
        terms: BanTerms,
        cause: Cause,
        reply: Reply,
    },
    BanForProgram {
        target: Target,
        terms: BanTerms,
        cause: Cause,
        reply: Reply,
    },
    Unban {
        target: Target,
        cause: Cause,
        reply: Reply,
    },
    UnbanOwn {
        target: Target,
        author: Author,
        cause: Cause,
        reply: Reply,
    },
    Allow {
        target: Target,
        until: Expiry,
        cause: Cause,
        reply: Reply,
    },
    Disallow {
        target: Target,
        cause: Cause,
        reply: Reply,
    },
    Allowances {
        after: Option<Target>,
        limit: usize,
        reply: oneshot::Sender<Vec<(Target, BanEntry)>>,
    },
    Merge {
        entries: Vec<(Target, BanEntry)>,
        source: Source,
        reply: Option<oneshot::Sender<usize>>,
    },
    Entry(Target, oneshot::Sender<Option<BanEntry>>),
    Scan {
        below: usize,
        budget: usize,
        wanted: Wanted,
        reply: oneshot::Sender<ScanPage>,
    },
    ScanDigests {
        below: usize,
        budget: usize,
        buckets: Arc<[bool; BUCKETS]>,
        reply: oneshot::Sender<DigestPage>,
    },
    Entries(Vec<Target>, oneshot::Sender<Vec<(Target, BanEntry)>>),
    Digests(oneshot::Sender<(Box<[u64; BUCKETS]>, usize)>),
    Summary(oneshot::Sender<Summary>),
    /// The cut of another node.
    Adopt(Cut),
    /// Counts all entries without effect as absent.
    Discard(oneshot::Sender<usize>),
    Tune(Limits, Duration),
    /// Answered in its turn, after the commands before it were applied.
    Probe(oneshot::Sender<()>),
}

/// The answer to an operator, sent once the journal holds the change.
type Reply = oneshot::Sender<Result<Change, Refused>>;

/// Commands that may wait for the store.
const QUEUE: usize = 4096;
/// Commands that are applied before their changes are published.
const AT_ONCE: usize = 1024;
/// Batches that a subscriber may lag behind. Beyond that it loses the oldest, and receives an error that says so.
const CHANGES: usize = 4096;

/// The store's task, not yet running; [`Store::serve`] runs it.
#[derive(Debug)]
pub struct Store {
    ledger: Ledger,
    view: ViewWriter,
    journal: Option<Journal>,
    commands: mpsc::Receiver<Command>,
    /// Parts of bulk requests. They have their own queue, so that they do not delay other commands.
    steps: mpsc::Receiver<Step>,
    changes: broadcast::Sender<Arc<Batch>>,
    /// The operators' allowlist, for lookups.
    exempt: Arc<ArcSwap<Exempt>>,
    metrics: Metrics,
    cleanup_interval: Duration,
    sweep_left: usize,
    full: LogThrottle,
    dropped: LogThrottle,
    refused: LogThrottle,
    failed: LogThrottle,
    early: LogThrottle,
    clock: ClockWatch,
    breadth: Watch,
    /// When the wall clock was last set, or this process started.
    clock_since: UnixMillis,
}

impl Store {
    /// A store over `ledger`. Writes the bans in force to `view`. Without a journal, nothing survives a restart.
    pub fn new(
        mut ledger: Ledger,
        mut view: ViewWriter,
        journal: Option<Journal>,
        cleanup_interval: Duration,
        metrics: Metrics,
    ) -> (Self, StoreHandle) {
        // Before the view is filled by this time, so that a clock that is set while the node starts is noticed, too.
        let mut clock_watch = ClockWatch::default();
        let _ = clock::reading().and_then(|reading| clock_watch.read(reading));
        let now = clock::now();
        let (found, _) = ledger.table().scan(usize::MAX, usize::MAX);
        for (target, entry) in found {
            if let Some(until) = entry.ban_end().filter(|until| !until.has_passed(now)) {
                view.set(target, until, now);
            }
        }
        metrics.table(&mut ledger, &view, now);
        let (sender, commands) = mpsc::channel(QUEUE);
        let (bulk, steps) = mpsc::channel(STEPS);
        let (changes, _) = broadcast::channel(CHANGES);
        let exempt = Arc::new(ArcSwap::from_pointee(ledger.take_exempt(now).unwrap_or_default()));
        let handle = StoreHandle::new(sender, bulk, changes.clone(), Arc::clone(&exempt));
        let minute = Duration::from_secs(60);
        let store = Self {
            ledger,
            view,
            journal,
            commands,
            steps,
            changes,
            exempt,
            metrics,
            cleanup_interval,
            sweep_left: 0,
            full: LogThrottle::new(minute),
            dropped: LogThrottle::new(minute),
            refused: LogThrottle::new(minute),
            failed: LogThrottle::new(minute),
            early: LogThrottle::new(minute),
            clock: clock_watch,
            breadth: Watch::default(),
            clock_since: now,
        };
        (store, handle)
    }

    /// Raises an alarm when more than `percent` of all IPv4 addresses are banned (`ban.alarm_ipv4_percent`). Without this, never.
    #[must_use]
    pub fn with_alarm_at(self, percent: f64) -> Self {
        Self { breadth: Watch::new(percent), ..self }
    }

    /// Applies commands until `shutdown`, then those that are already queued, and closes the journal.
    pub async fn serve(mut self, shutdown: CancellationToken) {
        let mut commands = Vec::with_capacity(AT_ONCE);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut swept = tokio::time::Instant::now();
        loop {
            // Not biased: under constant load, commands would starve the ticks, the sweep and the shutdown.
            tokio::select! {
                n = self.commands.recv_many(&mut commands, AT_ONCE) => {
                    if n == 0 {
                        break;
                    }
                    self.make_room(targets_of(&commands)).await;
                    self.apply(commands.drain(..)).await;
                }
                Some(step) = self.steps.recv() => self.step(step).await,
                () = shutdown.cancelled() => break,
                _ = second.tick() => {
                    self.tick().await;
                    if swept.elapsed() >= self.cleanup_interval {
                        swept = tokio::time::Instant::now();
                        self.sweep_left = self.ledger.table().len();
                    }
                }
                () = std::future::ready(()), if self.sweep_left > 0 => self.sweep().await,
            }
        }
        self.steps.close();
        while let Some(step) = self.steps.recv().await {
            self.step(step).await;
        }
        self.commands.close();
        while self.commands.recv_many(&mut commands, AT_ONCE).await > 0 {
            self.make_room(targets_of(&commands)).await;
            self.apply(commands.drain(..)).await;
        }
        if let Some(journal) = self.journal.take() {
            journal.close(self.ledger.last_stamp()).await;
        }
    }

    async fn apply(&mut self, commands: impl Iterator<Item = Command> + Send) {
        let mut pending = Pending::default();
        for command in commands {
            match command {
                Command::Offence(order) => pending.add(Source::Local, self.offence(&order)),
                Command::SeenAgain(target, remember) => {
                    pending.add(Source::Local, self.ledger.seen_again(target, remember, clock::now()));
                }
                Command::Ban { target, terms, cause, reply } => {
                    let result = self.ledger.ban(target, terms, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::BanForProgram { target, terms, cause, reply } => {
                    let result = self.ledger.ban_for_program(target, terms, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::UnbanOwn { target, author, cause, reply } => {
                    let result = self.ledger.unban_own(target, &author, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::Unban { target, cause, reply } => {
                    let result = self.ledger.unban(target, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::Allow { target, until, cause, reply } => {
                    let result = self.ledger.allow(target, until, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::Disallow { target, cause, reply } => {
                    let result = self.ledger.disallow(target, cause, clock::now());
                    Self::answer(result, reply, &mut pending);
                }
                Command::Allowances { after, limit, reply } => {
                    let targets = self.ledger.exemptions().after(after).take(limit);
                    let entry = |target| Some((target, self.ledger.table().entry(target)?));
                    let _ = reply.send(targets.filter_map(entry).collect());
                }
                Command::Merge { entries, source, reply } => {
                    let changed = self.merge(entries, source, &mut pending);
                    if let Some(reply) = reply {
                        let _ = reply.send(changed);
                    }
                }
                // The caller may be gone.
                Command::Entry(target, reply) => {
                    let _ = reply.send(self.ledger.table().entry(target));
                }
                Command::Scan { below, budget, wanted, reply } => {
                    let _ = reply.send(self.scan(below, budget, &wanted));
                }
                Command::ScanDigests { below, budget, buckets, reply } => {
                    let (found, below) = self.ledger.table().scan_digests(below, budget, &buckets);
                    let _ = reply.send(DigestPage { digests: found.collect(), below });
                }
                Command::Entries(targets, reply) => {
                    let entry = |target| Some((target, self.ledger.table().entry(target)?));
                    let _ = reply.send(targets.into_iter().filter_map(entry).collect());
                }
                Command::Digests(reply) => {
                    let table = self.ledger.table();
                    let _ = reply.send((Box::new(*table.digests()), table.len()));
                }
                Command::Summary(reply) => {
                    let now = clock::now();
                    let clock = ClockSummary::of(&self.clock);
                    let wide = self.breadth.wide_bans();
                    let (dropped, refused) = (self.metrics.all_dropped(), self.metrics.all_refused());
                    let _ = reply.send(Summary {
                        clock,
                        wide,
                        dropped,
                        refused,
                        ..Summary::of(&mut self.ledger, &self.view, now)
                    });
                }
                Command::Adopt(cut) => {
                    if self.ledger.adopt(cut, clock::now()) {
                        self.sweep_left = self.ledger.table().len();
                    }
                }
                Command::Discard(reply) => {
                    let removed = self.ledger.discard(clock::now());
                    self.sweep_left = self.ledger.table().len();
                    // The caller may be gone.
                    let _ = reply.send(removed);
                }
                Command::Tune(limits, cleanup_interval) => {
                    self.ledger.set_limits(limits);
                    self.cleanup_interval = cleanup_interval;
                }
                Command::Probe(reply) => {
                    let _ = reply.send(());
                }
            }
        }
        // All of them before the first is given to the journal, which can make the store wait.
        pending.0.iter().for_each(|batch| self.show(&batch.changes));
        for PendingBatch { source, changes, waiting } in pending.0 {
            self.send(source, changes, waiting).await;
        }
    }

    fn offence(&mut self, order: &BanOrder) -> Option<Change> {
        let now = clock::now();
        let cause = cause_of_offence(&order.by.filter, &order.by.rule);
        match self.ledger.ban_offender(order.target, cause, &order.policy, now) {
            Ok(change) => {
                let length = change.after.ban_end().and_then(|until| until.remaining(now)).unwrap_or_default();
                // Expiries are rounded up to the second, so the intended duration is the second below.
                let whole = Duration::from_secs(length.as_secs());
                info!(
                    target = %change.target,
                    filter = &*order.by.filter,
                    rule = &*order.by.rule,
                    attempts = order.attempts,
                    duration = %Span(whole),
                    step = change.after.bans,
                    "banned"
                );
                self.metrics.banned(&order.by.filter);
                Some(change)
            }
            Err(Refused::AlreadyBanned { .. }) => {
                self.ledger.seen_again(order.target, order.policy.max_memory_ttl, now)
            }
            Err(refused @ Refused::Allowed { .. }) => {
                self.metrics.refused_allowed();
                debug!(%refused, filter = &*order.by.filter, "not banned");
                None
            }
            Err(refused @ Refused::Full { .. }) => {
                self.metrics.refused_full();
                if let Some(more) = self.full.permit(std::time::Instant::now()) {
                    error!(
                        %refused,
                        and_more = more,
                        "every entry is in force or an operator's decision: remove bans that are no longer needed, or raise ban.max_bans \
                         and the memory limit"
                    );
                }
                None
            }
            Err(refused) => {
                let Failure { reason, fix } = Failure::of(&refused);
                self.metrics.failed(reason);
                if let Some(more) = self.failed.permit(std::time::Instant::now()) {
                    error!(%refused, filter = &*order.by.filter, and_more = more, "an offender was not banned: {fix}");
                }
                None
            }
        }
    }

    fn answer(result: Result<Change, Refused>, reply: Reply, pending: &mut Pending) {
        match result {
            Ok(change) => {
                let Change { target, after, .. } = &change;
                let effective = after.effective(clock::now());
                let (by, reason) = (&effective.cause.by, &*effective.cause.reason);
                match effective.state {
                    State::Expired { until } => info!(%target, %until, %by, reason, "ban ended by command"),
                    State::Banned { until } => info!(%target, %until, %by, reason, "banned by command"),
                    State::Allowed { until } => info!(%target, %until, %by, reason, "allowed by command"),
                    State::Unbanned if change.before.as_ref().is_some_and(|entry| entry.allowed_until().is_some()) => {
                        info!(%target, %by, reason, "allowlist entry removed by command");
                    }
                    State::Unbanned => info!(%target, %by, reason, "unbanned by command"),
                }
                pending.add(Source::Local, [change.clone()]);
                pending.wait(Acknowledgement::one(reply, change));
            }
            Err(refused) => {
                let _ = reply.send(Err(refused));
            }
        }
    }

    fn merge(&mut self, entries: Vec<(Target, BanEntry)>, source: Source, pending: &mut Pending) -> usize {
        let now = clock::now();
        let mut changes = Vec::new();
        for (target, entry) in entries {
            let (node, hlc) = (entry.latest().node.clone(), entry.latest().hlc);
            let arrival = self.ledger.merge(target, entry, now);
            self.metrics.arrived(&arrival);
            match arrival {
                Arrival::Changed(change) => changes.push(change),
                Arrival::Early | Arrival::Dropped => {
                    if let Some(more) = self.early.permit(std::time::Instant::now()) {
                        let ahead = Span(hlc.ahead_of(now));
                        warn!(%node, %ahead, and_more = more, "the clock of another node is ahead: its bans take effect when this node's clock reaches their time. Check NTP on both nodes");
                    }
                }
                Arrival::Refused(limit) => self.refuse(limit, target, &node),
                Arrival::Known | Arrival::PastRetention => {}
            }
        }
        let changed = changes.len();
        pending.add(source, changes);
        changed
    }

    fn scan(&self, below: usize, budget: usize, wanted: &Wanted) -> ScanPage {
        let (found, below) = self.ledger.table().scan_where(below, budget, |target, written| match wanted {
            Wanted::All => true,
            Wanted::Buckets(buckets) => buckets[bucket_of(target)],
            Wanted::Written(times) => times.contains(&written),
        });
        ScanPage { entries: found.collect(), below }
    }

    async fn tick(&mut self) {
        self.watch_clock().await;
        let now = clock::now();
        let changes = self.ledger.merge_due(now);
        self.publish(Source::Remote, changes, Vec::new()).await;
        self.publish_exempt();
        self.metrics.table(&mut self.ledger, &self.view, now);
        self.breadth.look(self.ledger.table(), &self.metrics, now);
    }

    fn publish_exempt(&mut self) {
        if is_planted(Fault::StaleAllowlist) {
            return;
        }
        if let Some(exempt) = self.ledger.take_exempt(clock::now()) {
            self.exempt.store(Arc::new(exempt));
        }
    }

    /// Publishes changes. Waiting callers are answered once the journal holds them.
    async fn publish(&mut self, source: Source, changes: Vec<Change>, waiting: Vec<Acknowledgement>) {
        self.show(&changes);
        self.send(source, changes, waiting).await;
    }

    /// Shows changes to lookups.
    fn show(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        // Before the view, so that a target that an operator allows is never reported as banned in between.
        self.publish_exempt();
        let now = clock::now();
        for Change { target, after, .. } in changes {
            self.view.set(*target, after.ban_end().unwrap_or(Expiry::PAST), now);
        }
    }

    /// Sends changes that are shown to the journal and to subscribers.
    async fn send(&self, source: Source, changes: Vec<Change>, waiting: Vec<Acknowledgement>) {
        if changes.is_empty() {
            return;
        }
        let batch = Arc::new(Batch { source, changes });
        self.metrics.changed(&batch, clock::now());
        // An error means that there are no subscribers.
        let _ = self.changes.send(Arc::clone(&batch));
        match &self.journal {
            Some(journal) => journal.append(batch, self.ledger.last_stamp(), waiting).await,
            None => waiting.into_iter().for_each(Acknowledgement::saved),
        }
    }
}

#[cfg(test)]
mod tests;
