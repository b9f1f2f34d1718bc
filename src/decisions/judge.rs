//! The judge at work: the one task that owns the attempt counters. Sightings come in from the inputs, counts from the other
//! nodes; ban orders go to the store, counts to the cluster.

use std::net::IpAddr;
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
use crate::cluster::{ClusterHandle, RemoteCount};
use crate::decisions::history::{Decided, Evidence, History, Seen};
use crate::decisions::store::{Batch, Source, StoreGone, StoreHandle};
use crate::decisions::view::Reader;
use crate::net::throttle::LogThrottle;
use banmesh_core::ban::State;
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{BanOrder, JailTally, Judge, Kind, Rules, Sighting, Standing, Verdict};
use banmesh_core::ledger::Change;

/// Sightings that may wait; more are dropped and counted, for an input never waits.
const QUEUE: usize = 16_384;

/// Where inputs hand in what their filters saw; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bench {
    sightings: mpsc::Sender<(Sighting, Option<Evidence>)>,
    metrics: Metrics,
    overflow: Arc<LogThrottle>,
}

impl Bench {
    /// Hands in a sighting that no line tells of. When too many wait it is dropped and counted. Returns whether it was taken.
    pub fn hand_in(&self, sighting: Sighting) -> bool {
        self.hand_in_with(sighting, None)
    }

    /// Hands in a sighting with the line that tells of it, for the history. As [`Bench::hand_in`].
    pub fn hand_in_with(&self, sighting: Sighting, evidence: Option<Evidence>) -> bool {
        let filter = FilterLabel { filter: sighting.by.filter.to_string() };
        let counter = match sighting.kind {
            Kind::Offence => &self.metrics.offences,
            Kind::Success => &self.metrics.successes,
        };
        counter.get_or_create(&filter).inc();
        if sighting.kind == Kind::Offence {
            self.metrics.all_offences.inc();
        }
        let taken = self.sightings.try_send((sighting, evidence)).is_ok();
        if !taken {
            self.metrics.dropped.inc();
            if let Some(more) = self.overflow.permit(Instant::now()) {
                warn!(and_more = more, "offences come in faster than they are judged: some are not counted");
            }
        }
        taken
    }
}

/// What the judge knows of a source.
#[derive(Debug, Default)]
pub struct Answer {
    /// What is counted against it.
    pub tallies: Vec<JailTally>,
    /// Lines about it that would now be taken for repetitions.
    pub echoes: u32,
}

/// Questions that may wait.
const QUESTIONS: usize = 64;

#[derive(Debug)]
enum Question {
    About { source: IpAddr, reply: oneshot::Sender<Answer> },
    Probe(oneshot::Sender<()>),
}

/// A way to ask the judge; cheap to clone.
#[derive(Clone, Debug)]
pub struct Inquiry {
    questions: mpsc::Sender<Question>,
}

impl Inquiry {
    /// What the judge knows of `source` (canonical); `None` when it has ended. Waits while others ask.
    pub async fn ask(&self, source: IpAddr) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::About { source, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Returns once the judge has come to this call in its queue: it is at work; `None` when it has ended.
    pub async fn probe(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Probe(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// What the cluster exchanges with the judge.
#[derive(Debug)]
pub struct Sharing {
    /// Tells the other nodes.
    pub cluster: ClusterHandle,
    /// What they tell.
    pub counts: mpsc::Receiver<RemoteCount>,
}

/// The judge before it sits.
#[derive(Debug)]
pub struct Court {
    judge: Judge,
    rules: Arc<ArcSwap<Rules>>,
    seen_rules: Arc<Rules>,
    sightings: mpsc::Receiver<(Sighting, Option<Evidence>)>,
    questions: mpsc::Receiver<Question>,
    inquiry: Inquiry,
    history: History,
    store: StoreHandle,
    changes: broadcast::Receiver<Arc<Batch>>,
    reader: Reader,
    exempt: Arc<ArcSwap<Exempt>>,
    sharing: Option<Sharing>,
    metrics: Metrics,
}

impl Court {
    /// A judge who counts at most `max_tracked` targets, and the bench before it.
    pub fn new(
        max_tracked: usize,
        rules: Arc<ArcSwap<Rules>>,
        store: StoreHandle,
        reader: Reader,
        sharing: Option<Sharing>,
        metrics: Metrics,
    ) -> (Self, Bench) {
        let (sender, sightings) = mpsc::channel(QUEUE);
        let overflow = Arc::new(LogThrottle::new(Duration::from_secs(60)));
        let bench = Bench { sightings: sender, metrics: metrics.clone(), overflow };
        let changes = store.subscribe();
        let judge = Judge::new(max_tracked);
        let seen_rules = rules.load_full();
        let exempt = store.exempt();
        let (asked, questions) = mpsc::channel(QUESTIONS);
        let court = Self {
            judge,
            rules,
            seen_rules,
            sightings,
            questions,
            inquiry: Inquiry { questions: asked },
            history: History::new(0),
            store,
            changes,
            reader,
            exempt,
            sharing,
            metrics,
        };
        (court, bench)
    }

    /// Keeps what it judges and hears of in `history`; without this it keeps nothing.
    #[must_use]
    pub fn with_history(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// A way to ask it while it serves.
    pub fn inquiry(&self) -> Inquiry {
        self.inquiry.clone()
    }

    /// Judges until `shutdown`, then what is waiting already.
    pub async fn serve(mut self, shutdown: CancellationToken) {
        let mut sightings = Vec::with_capacity(256);
        // Whether somebody is left who can hand in sightings.
        let mut seen = true;
        let store = self.store.clone();
        loop {
            // Not biased: under constant load the arms before them would keep sightings and the end waiting.
            let served = tokio::select! {
                batch = self.changes.recv() => self.settle(batch),
                Some(question) = self.questions.recv() => {
                    self.answer(question);
                    Ok(())
                }
                share = received(&mut self.sharing) => self.shared(share).await,
                n = self.sightings.recv_many(&mut sightings, 256), if seen => {
                    // A node without inputs still settles bans, answers questions and takes counts of others.
                    seen = n > 0;
                    self.judge_all(&mut sightings).await
                }
                () = store.gone() => Err(StoreGone),
                () = shutdown.cancelled() => Err(StoreGone),
            };
            if served.is_err() {
                break;
            }
        }
        self.sightings.close();
        while self.sightings.recv_many(&mut sightings, 256).await > 0 {
            if self.judge_all(&mut sightings).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, question: Question) {
        let (source, reply) = match question {
            Question::About { source, reply } => (source, reply),
            Question::Probe(reply) => {
                let _ = reply.send(());
                return;
            }
        };
        let (rules, now) = (self.rules.load_full(), clock::now());
        let tallies = self.judge.tallies(&rules, source, now);
        // Whoever asked may have gone.
        let _ = reply.send(Answer { tallies, echoes: self.judge.echoes(source, now) });
    }

    async fn judge_all(&mut self, sightings: &mut Vec<(Sighting, Option<Evidence>)>) -> Result<(), StoreGone> {
        let rules = self.current_rules();
        let exempt = self.exempt.load_full();
        for (sighting, evidence) in sightings.drain(..) {
            let now = clock::now();
            let standing = match exempt.matching(sighting.source) {
                Some(member) => Standing::Allowed(member),
                None if self.reader.banned_until(sighting.source, now).is_some() => Standing::Banned,
                None => Standing::Free,
            };
            let (verdict, share) = self.judge.judge(&rules, &sighting, standing, now);
            if let (Some(share), Some(sharing)) = (share, &self.sharing) {
                sharing.cluster.tell(share);
            }
            let outcome = outcome_of(&verdict);
            self.metrics.verdict(outcome);
            self.carry_out(verdict, &sighting).await?;
            if sighting.kind == Kind::Offence {
                self.history.saw(Seen { at: now, sighting, outcome, evidence });
            }
        }
        self.gauge();
        Ok(())
    }

    /// The rules in force; after a reload what depends on the old filters is dropped.
    fn current_rules(&mut self) -> Arc<Rules> {
        let rules = self.rules.load_full();
        if !Arc::ptr_eq(&rules, &self.seen_rules) {
            self.judge.forget_echoes();
            self.seen_rules = Arc::clone(&rules);
        }
        rules
    }

    async fn carry_out(&self, verdict: Verdict, sighting: &Sighting) -> Result<(), StoreGone> {
        let (source, by) = (sighting.source, &sighting.by);
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
            Verdict::Repeated => debug!(%source, filter = &*by.filter, rule = &*by.rule, "tells of a counted offence"),
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
            // A judge that fell behind misses some: then a few offences of banned targets still count, which is harmless.
            Err(broadcast::error::RecvError::Lagged(_)) => return Ok(()),
        };
        let rules = self.rules.load_full();
        let now = clock::now();
        let remote = batch.source == Source::Remote;
        let decided = |change: &Change| Decided { target: change.target, entry: change.after.clone(), remote };
        self.history.heard(batch.changes.iter().map(decided));
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

/// What came of a sighting, in a word.
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

/// The next count of another node; never, without a cluster.
async fn received(sharing: &mut Option<Sharing>) -> Option<RemoteCount> {
    match sharing {
        Some(sharing) => sharing.counts.recv().await,
        None => std::future::pending().await,
    }
}

/// What the judge counts; clones share it.
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
    /// How many sightings were not judged because too many were waiting.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Makes the counters known under their names.
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

    /// Offences that were recognised, of all filters.
    pub fn all_offences(&self) -> u64 {
        self.all_offences.get()
    }

    /// Offences and successes that `filter` recognised since the start.
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
