//! The judge's task, which owns the attempt counters.
//!
//! It receives offences from the inputs and attempt counts from other nodes. It sends ban orders to the store and its own counts to
//! the cluster.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::decisions::batch::{Batch, Source};
use crate::decisions::history::{Evidence, History, JudgedOffence, RecordedChange};
use crate::decisions::store::{StoreGone, StoreHandle};
use crate::decisions::view::Reader;
use crate::net::throttle::LogThrottle;
use banmesh_core::attempts::{RemoteCount, SlotCount};
use banmesh_core::ban::State;
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{BanOrder, JailAttempts, Judge, Kind, Offence, Rules, Standing, Verdict};
use banmesh_core::ledger::Change;
use banmesh_types::address::Address;

/// Offences that may wait for the judge. More are dropped and counted, because an input must never wait.
const QUEUE: usize = 16_384;

/// Sends offences to the judge; cheap to clone.
#[derive(Clone, Debug)]
pub struct OffenceSender {
    offences: mpsc::Sender<(Offence, Option<Evidence>)>,
    metrics: Metrics,
    overflow: Arc<LogThrottle>,
}

impl OffenceSender {
    /// Sends an offence that has no log line. Drops and counts it when the queue is full. Returns whether it was queued.
    pub fn send(&self, offence: Offence) -> bool {
        self.send_with_evidence(offence, None)
    }

    /// Like [`OffenceSender::send`], with the log line as evidence for the history.
    pub fn send_with_evidence(&self, offence: Offence, evidence: Option<Evidence>) -> bool {
        let filter = FilterLabel { filter: offence.by.filter.to_string() };
        let counter = match offence.kind {
            Kind::Failure => &self.metrics.offences,
            Kind::Success => &self.metrics.successes,
        };
        counter.get_or_create(&filter).inc();
        if offence.kind == Kind::Failure {
            self.metrics.all_offences.inc();
        }
        let taken = self.offences.try_send((offence, evidence)).is_ok();
        if !taken {
            self.metrics.dropped.inc();
            if let Some(more) = self.overflow.permit(Instant::now()) {
                warn!(and_more = more, "offences arrive faster than they are judged; some are not counted");
            }
        }
        taken
    }
}

/// The judge's state for one source.
#[derive(Debug, Default)]
pub struct SourceStatus {
    /// Its attempts in each jail.
    pub tallies: Vec<JailAttempts>,
    /// How many more lines about it may be treated as duplicates of counted ones.
    pub echoes: u32,
}

/// Queries that may wait for the judge.
const QUERIES: usize = 64;

#[derive(Debug)]
enum Query {
    About { source: Address, reply: oneshot::Sender<SourceStatus> },
    Probe(oneshot::Sender<()>),
}

/// Queries a running judge; cheap to clone.
#[derive(Clone, Debug)]
pub struct JudgeHandle {
    queries: mpsc::Sender<Query>,
}

impl JudgeHandle {
    /// The judge's state for `source`; `None` when the judge has ended. Waits while the queue is full.
    pub async fn ask(&self, source: Address) -> Option<SourceStatus> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::About { source, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Returns once the judge has answered this call in its turn, which shows that it is running; `None` when it has ended.
    pub async fn probe(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Probe(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What the cluster exchanges with the judge.
#[derive(Debug)]
pub struct Sharing {
    /// Publishes the counts of this node; `None` if `cluster.count_attempts` is off.
    pub local: Option<mpsc::Sender<SlotCount>>,
    /// Receives the counts of the other nodes.
    pub remote: mpsc::Receiver<RemoteCount>,
}

/// The judge's task, not yet running; [`JudgeTask::serve`] runs it.
#[derive(Debug)]
pub struct JudgeTask {
    judge: Judge,
    rules: Arc<ArcSwap<Rules>>,
    seen_rules: Arc<Rules>,
    offences: mpsc::Receiver<(Offence, Option<Evidence>)>,
    queries: mpsc::Receiver<Query>,
    handle: JudgeHandle,
    history: History,
    store: StoreHandle,
    changes: broadcast::Receiver<Arc<Batch>>,
    reader: Reader,
    exempt: Arc<ArcSwap<Exempt>>,
    sharing: Option<Sharing>,
    metrics: Metrics,
}

impl JudgeTask {
    /// A judge that counts at most `max_tracked` targets, and the sender for its offences.
    pub fn new(
        max_tracked: usize,
        rules: Arc<ArcSwap<Rules>>,
        store: StoreHandle,
        reader: Reader,
        sharing: Option<Sharing>,
        metrics: Metrics,
    ) -> (Self, OffenceSender) {
        let (sender, offences) = mpsc::channel(QUEUE);
        let overflow = Arc::new(LogThrottle::new(Duration::from_secs(60)));
        let offence_sender = OffenceSender { offences: sender, metrics: metrics.clone(), overflow };
        let changes = store.subscribe();
        let judge = Judge::new(max_tracked);
        let seen_rules = rules.load_full();
        let exempt = store.exempt();
        let (asked, queries) = mpsc::channel(QUERIES);
        let judge = Self {
            judge,
            rules,
            seen_rules,
            offences,
            queries,
            handle: JudgeHandle { queries: asked },
            history: History::new(0),
            store,
            changes,
            reader,
            exempt,
            sharing,
            metrics,
        };
        (judge, offence_sender)
    }

    /// Records judged offences and table changes in `history`; without this, nothing is recorded.
    #[must_use]
    pub fn with_history(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// A handle to query the judge while it serves.
    pub fn handle(&self) -> JudgeHandle {
        self.handle.clone()
    }

    /// Judges until `shutdown`, then judges the offences that are already queued.
    pub async fn serve(mut self, shutdown: CancellationToken) {
        let mut offences = Vec::with_capacity(256);
        // False once every sender of offences is gone.
        let mut has_senders = true;
        let store = self.store.clone();
        loop {
            // Not biased: under constant load the first arms would starve the others.
            let served = tokio::select! {
                batch = self.changes.recv() => self.settle(batch),
                Some(query) = self.queries.recv() => {
                    self.answer(query);
                    Ok(())
                }
                share = received(&mut self.sharing) => self.shared(share).await,
                n = self.offences.recv_many(&mut offences, 256), if has_senders => {
                    // A node without inputs still settles bans, answers queries and receives counts.
                    has_senders = n > 0;
                    self.judge_all(&mut offences).await
                }
                () = store.gone() => Err(StoreGone),
                () = shutdown.cancelled() => Err(StoreGone),
            };
            if served.is_err() {
                break;
            }
        }
        self.offences.close();
        while self.offences.recv_many(&mut offences, 256).await > 0 {
            if self.judge_all(&mut offences).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, query: Query) {
        let (source, reply) = match query {
            Query::About { source, reply } => (source, reply),
            Query::Probe(reply) => {
                let _ = reply.send(());
                return;
            }
        };
        let (rules, now) = (self.rules.load_full(), clock::now());
        let source = rules.scope.nat64.address(source);
        let tallies = self.judge.attempts_by_jail(&rules, source, now);
        // The caller may be gone.
        let _ = reply.send(SourceStatus { tallies, echoes: self.judge.expected_duplicates(source, now) });
    }

    async fn judge_all(&mut self, offences: &mut Vec<(Offence, Option<Evidence>)>) -> Result<(), StoreGone> {
        let rules = self.current_rules();
        let exempt = self.exempt.load_full();
        for (mut offence, evidence) in offences.drain(..) {
            offence.source = rules.scope.nat64.address(offence.source);
            let now = clock::now();
            let standing = match exempt.matching(offence.source) {
                Some(member) => Standing::Allowed(member),
                None if self.reader.banned_until(offence.source, now).is_some() => Standing::Banned,
                None => Standing::Free,
            };
            let (verdict, share) = self.judge.judge(&rules, &offence, standing, now);
            if let (Some(share), Some(local)) =
                (share, self.sharing.as_ref().and_then(|sharing| sharing.local.as_ref()))
            {
                // A count that does not fit is dropped. The next one for the same slot includes it.
                let _ = local.try_send(share);
            }
            let outcome = outcome_of(&verdict);
            self.metrics.verdict(outcome);
            self.carry_out(verdict, &offence).await?;
            if offence.kind == Kind::Failure {
                self.history.record_offence(JudgedOffence { at: now, offence, outcome, evidence });
            }
        }
        self.gauge();
        Ok(())
    }

    /// The rules in force. After a reload, drops the state that depends on the old filters.
    fn current_rules(&mut self) -> Arc<Rules> {
        let rules = self.rules.load_full();
        if !Arc::ptr_eq(&rules, &self.seen_rules) {
            self.judge.reset_repeats();
            self.seen_rules = Arc::clone(&rules);
        }
        rules
    }

    async fn carry_out(&self, verdict: Verdict, offence: &Offence) -> Result<(), StoreGone> {
        let (source, by) = (offence.source, &offence.by);
        match verdict {
            Verdict::Allowed(member) => {
                debug!(%source, filter = &*by.filter, rule = &*by.rule, allowlist = %member, "not counted: allowed");
            }
            Verdict::StillBanned(target, policy) => self.store.seen_again(target, policy.max_memory_ttl).await?,
            Verdict::Counted { target, attempts, of } => {
                debug!(%target, %source, filter = &*by.filter, rule = &*by.rule, attempts, of, "offence");
            }
            Verdict::Ban(order) => self.order(order).await?,
            Verdict::WouldBan(BanOrder { target, attempts, .. }) => {
                info!(%target, filter = &*by.filter, rule = &*by.rule, attempts, "would ban (ban.dry_run)");
            }
            Verdict::Cleared(target) => debug!(%target, filter = &*by.filter, "cleared by a success"),
            Verdict::Repeated => {
                debug!(%source, filter = &*by.filter, rule = &*by.rule, "duplicate of a counted offence")
            }
            Verdict::Nothing => {}
        }
        Ok(())
    }

    async fn order(&self, order: BanOrder) -> Result<(), StoreGone> {
        self.store.offence(order).await
    }

    async fn shared(&mut self, count: Option<RemoteCount>) -> Result<(), StoreGone> {
        let Some(RemoteCount { from, share }) = count else {
            self.sharing = None;
            return Ok(());
        };
        let rules = self.rules.load_full();
        let order = self.judge.shared(&rules, from, share, clock::now());
        self.gauge();
        match order {
            Some(order) => self.order(order).await,
            None => Ok(()),
        }
    }

    fn settle(&mut self, batch: Result<Arc<Batch>, broadcast::error::RecvError>) -> Result<(), StoreGone> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(broadcast::error::RecvError::Closed) => return Err(StoreGone),
            // A judge that lags misses changes. Then a few offences of banned targets still count, which is harmless.
            Err(broadcast::error::RecvError::Lagged(_)) => return Ok(()),
        };
        let rules = self.rules.load_full();
        let now = clock::now();
        let remote = batch.source == Source::Remote;
        let recorded = |change: &Change| RecordedChange { target: change.target, entry: change.after.clone(), remote };
        self.history.record_changes(batch.changes.iter().map(recorded));
        for change in &batch.changes {
            if !matches!(change.after.state(now), State::Unbanned) {
                self.judge.settled(&rules, change.target, now);
            }
        }
        Ok(())
    }

    fn gauge(&self) {
        let attempts = self.judge.attempts();
        self.metrics.tracked.set(i64::try_from(attempts.len()).unwrap_or(i64::MAX));
        self.metrics.evicted.set(i64::try_from(attempts.evicted()).unwrap_or(i64::MAX));
    }
}

/// The verdict as one word, for metrics and the history.
const fn outcome_of(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed(_) => "allowed",
        Verdict::StillBanned(..) => "still_banned",
        Verdict::Repeated => "repeated",
        Verdict::Counted { .. } => "counted",
        Verdict::Ban(_) => "ban",
        Verdict::WouldBan(_) => "would_ban",
        Verdict::Cleared(_) => "cleared",
        Verdict::Nothing => "nothing",
    }
}

/// The next count from another node; never ready without a cluster.
async fn received(sharing: &mut Option<Sharing>) -> Option<RemoteCount> {
    match sharing {
        Some(sharing) => sharing.remote.recv().await,
        None => std::future::pending().await,
    }
}

/// The judge's metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    offences: Family<FilterLabel, Count>,
    successes: Family<FilterLabel, Count>,
    all_offences: Count,
    verdicts: Family<VerdictLabel, Count>,
    dropped: Count,
    tracked: Gauge<i64, AtomicI64>,
    evicted: Gauge<i64, AtomicI64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FilterLabel {
    filter: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

impl Metrics {
    /// Offences dropped because the judge's queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_offences", "Offences recognised, by filter", self.offences.clone());
        registry.register("banmesh_successes", "Successful logins recognised, by filter", self.successes.clone());
        registry.register("banmesh_verdicts", "Offences by outcome", self.verdicts.clone());
        registry.register(
            "banmesh_offences_dropped",
            "Offences not counted because too many were waiting",
            self.dropped.clone(),
        );
        registry.register("banmesh_tracked_targets", "Targets whose attempts are being counted", self.tracked.clone());
        registry.register(
            "banmesh_tracked_targets_evicted",
            "Targets no longer counted because ban.max_tracked was reached",
            self.evicted.clone(),
        );
    }

    /// Offences recognised by all filters since the start.
    pub fn all_offences(&self) -> u64 {
        self.all_offences.get()
    }

    /// Offences and successes recognised by `filter` since the start.
    pub fn recognised(&self, filter: &str) -> (u64, u64) {
        let label = FilterLabel { filter: filter.to_owned() };
        let counted = |family: &Family<FilterLabel, Count>| family.get(&label).map_or(0, |count| count.get());
        (counted(&self.offences), counted(&self.successes))
    }

    fn verdict(&self, verdict: &'static str) {
        self.verdicts.get_or_create(&VerdictLabel { verdict }).inc();
    }
}

#[cfg(test)]
mod tests;
