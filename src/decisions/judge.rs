//! The judge's task, which owns the attempt counters.
//!
//! It receives offences from the inputs and attempt counts from other nodes. It sends ban orders to the store and its own counts to
//! the cluster.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::decisions::batch::{Batch, Source};
use crate::decisions::evidence_log::EvidenceLog;
use crate::decisions::feeds::ForJudge;
use crate::decisions::geo::Geo;
use crate::decisions::history::{Evidence, History, JudgedOffence, RecordedChange};
use crate::decisions::rankings::Rankings;
use crate::decisions::store::{StoreGone, StoreHandle};
use crate::decisions::view::Reader;
use crate::net::throttle::LogThrottle;
use banmesh_core::attempts::{RemoteCount, SlotCount};
use banmesh_core::ban::State;
use banmesh_core::evidence::{AccountKey, EvidenceRecord, Hour};
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{BanOrder, Judge, Kind, Mechanism, Offence, Rules, SideEffects, Standing, Verdict, Would};
use banmesh_core::ledger::Change;
use banmesh_types::time::UnixMillis;

mod handle;
mod keeper;
mod metrics;

use handle::Query;
pub use handle::{JudgeHandle, OffenceSender, SourceStatus};
use keeper::Keeper;
pub use metrics::Metrics;

/// Offences that may wait for the judge. More are dropped and counted, because an input must never wait.
const QUEUE: usize = 16_384;

/// Queries that may wait for the judge.
const QUERIES: usize = 64;

/// What the cluster exchanges with the judge.
#[derive(Debug)]
pub struct Sharing {
    /// Publishes the counts of this node; `None` if `cluster.count_attempts` is off.
    pub local: Option<mpsc::Sender<SlotCount>>,
    /// Receives the counts of the other nodes.
    pub remote: mpsc::Receiver<RemoteCount>,
    /// Publishes the evidence of this node.
    pub evidence_out: mpsc::Sender<EvidenceRecord>,
    /// Receives the evidence of the other nodes.
    pub evidence_in: mpsc::Receiver<EvidenceRecord>,
}

impl Sharing {
    /// Exchanges counts over the first two channels, and evidence over the others.
    pub const fn new(
        local: Option<mpsc::Sender<SlotCount>>,
        remote: mpsc::Receiver<RemoteCount>,
        evidence_out: mpsc::Sender<EvidenceRecord>,
        evidence_in: mpsc::Receiver<EvidenceRecord>,
    ) -> Self {
        Self { local, remote, evidence_out, evidence_in }
    }
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
    rankings: Rankings,
    store: StoreHandle,
    changes: broadcast::Receiver<Arc<Batch>>,
    reader: Reader,
    exempt: Arc<ArcSwap<Exempt>>,
    sharing: Option<Sharing>,
    feeds: Option<ForJudge>,
    geo: Option<Geo>,
    keeper: Keeper,
    /// The fingerprint of the key of the accounts in the evidence; 0 while there is none.
    accounts_key: u64,
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
            rankings: Rankings::default(),
            store,
            changes,
            reader,
            exempt,
            sharing,
            feeds: None,
            geo: None,
            keeper: Keeper::default(),
            accounts_key: 0,
            metrics,
        };
        (judge, offence_sender)
    }

    /// Records judged offences and table changes in `history`; without this, nothing is recorded.
    #[must_use]
    pub fn with_history(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// Counts judged offences and bans in `rankings`.
    #[must_use]
    pub fn with_rankings(self, rankings: Rankings) -> Self {
        Self { rankings, ..self }
    }

    /// Weighs first failures by feeds, and notes logins for them.
    #[must_use]
    pub fn with_feeds(self, feeds: Option<ForJudge>) -> Self {
        Self { feeds, ..self }
    }

    /// Applies the rules about countries and networks.
    #[must_use]
    pub fn with_geo(self, geo: Option<Geo>) -> Self {
        Self { geo, ..self }
    }

    /// Uses the evidence of `log`, and keeps it there; without this, evidence does not survive a restart.
    #[must_use]
    pub fn with_evidence(self, log: EvidenceLog) -> Self {
        let accounts_key = log.fingerprint();
        let EvidenceLog { evidence, writer } = log;
        let (judge, keeper) = (self.judge.with_evidence(evidence), Keeper::new(writer));
        Self { judge, keeper, accounts_key, ..self }
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
        let mut minute = tokio::time::interval(Duration::from_secs(60));
        minute.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                _ = minute.tick() => {
                    self.keep_evidence();
                    Ok(())
                }
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
        self.keeper.finish(self.judge.evidence_mut()).await;
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
            Query::Name { name, reply } => {
                let _ = reply.send(self.judge.name_facts(&self.rules.load(), &name, clock::now()));
                return;
            }
            Query::Mechanisms { filters, reply } => {
                let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
                let _ = reply.send(self.judge.mechanisms(&self.rules.load(), &filters, clock::now()));
                return;
            }
        };
        let (rules, now) = (self.rules.load_full(), clock::now());
        let source = rules.scope.nat64.address(source);
        let tallies = self.judge.attempts_by_jail(&rules, source, now);
        // The caller may be gone.
        let evidence = self.judge.explain(&rules, source, now);
        let known = if rules.evidence.known.acts() { self.judge.known(&rules, source, now) } else { 0 };
        let _ =
            reply.send(SourceStatus { tallies, echoes: self.judge.expected_duplicates(source, now), evidence, known });
    }

    async fn judge_all(&mut self, offences: &mut Vec<(Offence, Option<Evidence>)>) -> Result<(), StoreGone> {
        let rules = self.current_rules();
        self.follow_key(&rules).await;
        let exempt = self.exempt.load_full();
        for (mut offence, evidence) in offences.drain(..) {
            offence.source = rules.scope.nat64.address(offence.source);
            let now = clock::now();
            let standing = match exempt.matching(offence.source) {
                Some(member) => Standing::Allowed(member),
                None if self.reader.banned_until(offence.source, now).is_some() => Standing::Banned,
                None => Standing::Free,
            };
            let weighed = self.weighed(&rules, &offence, standing, now);
            let (verdict, share) = self.judge.judge(&rules, weighed.as_ref().unwrap_or(&offence), standing, now);
            if let (Some(share), Some(local)) =
                (share, self.sharing.as_ref().and_then(|sharing| sharing.local.as_ref()))
            {
                // A count that does not fit is dropped. The next one for the same slot includes it.
                let _ = local.try_send(share);
            }
            self.send_aside().await?;
            let outcome = outcome_of(&verdict, offence.jail.is_shadow());
            if offence.jail.is_shadow() && matches!(verdict, Verdict::WouldBan(_)) {
                self.metrics.shadow_ban(&offence.by.filter);
            }
            self.metrics.verdict(outcome);
            self.carry_out(verdict, &offence).await?;
            if offence.kind == Kind::Failure {
                self.rankings.offence(&offence, now);
                if let Some(name) = offence.account.as_ref().filter(|name| self.judge.is_attacked(&rules, name, now)) {
                    self.rankings.attacked(name, now);
                }
                self.history.record_offence(JudgedOffence { at: now, offence, outcome, evidence });
            }
        }
        self.gauge();
        Ok(())
    }

    /// The offence with what it counts because of its source; `None` if it counts what it says. Notes logins.
    fn weighed(&mut self, rules: &Rules, offence: &Offence, standing: Standing, now: UnixMillis) -> Option<Offence> {
        let Offence { source, kind, times, .. } = *offence;
        if kind == Kind::Success {
            if let Some(ForJudge { notes, .. }) = &mut self.feeds {
                notes.note(source, now);
            }
            return None;
        }
        if standing != Standing::Free || rules.scope.exempting(source).is_some() {
            return None;
        }
        let each = self.geo.as_ref().map_or(1, |geo| geo.weight(source));
        let first = self.judge.is_first(rules, offence, now);
        let (weight, feed) = self.feeds.as_mut().map_or((1, None), |feeds| feeds.reader.weigh(source, first, now));
        if let Some(feed) = feed {
            debug!(%source, feed = &*feed, weight, "a first failure of a source in a feed");
        }
        let weighed = times.saturating_mul(each).max(weight);
        (weighed != times).then(|| Offence { times: weighed, ..offence.clone() })
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

    /// After a reload with another key, hashes under the old one say nothing.
    async fn follow_key(&mut self, rules: &Rules) {
        let Some(key) = rules.evidence.key.as_ref().map(AccountKey::fingerprint) else { return };
        if key == self.accounts_key {
            return;
        }
        if self.accounts_key != 0 {
            self.judge.evidence_mut().clear();
            warn!("the first key of the cluster has changed: the evidence about accounts is collected anew");
        }
        self.keeper.rekey(key).await;
        self.accounts_key = key;
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
                let why = if offence.jail.is_shadow() { "mode: shadow" } else { "ban.dry_run" };
                info!(%target, filter = &*by.filter, rule = &*by.rule, attempts, "would ban ({why})");
            }
            Verdict::WouldBeBanned(target) => {
                debug!(%target, filter = &*by.filter, rule = &*by.rule, "would be banned already (mode: shadow)");
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
        let order = match &self.geo {
            Some(geo) => geo.adjusted(order),
            None => order,
        };
        self.store.offence(order).await
    }

    /// Publishes what judging an offence gave besides its verdict, and orders the bans of networks.
    async fn send_aside(&mut self) -> Result<(), StoreGone> {
        let SideEffects { records, shares, orders, would } = self.judge.take_side_effects();
        if let Some(sharing) = &self.sharing {
            for record in records {
                // What is lost here is found by a comparison of digests.
                if sharing.evidence_out.try_send(record).is_err() {
                    self.metrics.evidence_lost.inc();
                }
            }
            for (share, local) in shares.into_iter().zip(std::iter::repeat(&sharing.local)) {
                let _ = local.as_ref().map(|local| local.try_send(share));
            }
        }
        for Would { mechanism, target, by } in would {
            let would = if mechanism == Mechanism::Known { "would not ban" } else { "would ban" };
            info!(%target, filter = &*by.filter, rule = &*by.rule, mechanism = mechanism.as_str(), "{would} (evidence: observe)");
            self.metrics.would(mechanism);
        }
        for order in orders {
            self.order(order).await?;
        }
        Ok(())
    }

    /// Once a minute: writes changed evidence to the disk, removes expired entries, compares digests with the other nodes, and tells
    /// feeds where accounts are at home.
    fn keep_evidence(&mut self) {
        let hour = Hour::of(clock::now());
        let shares = self.rules.load().evidence.any();
        let evidence = self.judge.evidence_mut();
        evidence.sweep(hour);
        self.keeper.write(evidence, &self.metrics.evidence_unsaved);
        if let Some(sharing) = self.sharing.as_ref().filter(|_| shares) {
            for record in self.keeper.repair(evidence, hour) {
                if sharing.evidence_out.try_send(record).is_err() {
                    self.metrics.evidence_lost.inc();
                }
            }
        }
        if let Some(ForJudge { homes, .. }) = &self.feeds {
            homes.replace(self.judge.evidence().homes(hour));
        }
        self.metrics.evidence(&self.judge.evidence().size());
        self.metrics.attacked(self.judge.attacked(clock::now()));
    }

    async fn shared(&mut self, received: Received) -> Result<(), StoreGone> {
        let RemoteCount { from, share } = match received {
            Received::Count(count) => count,
            Received::Evidence(record) => {
                self.keeper.received(self.judge.evidence_mut(), record, Hour::of(clock::now()));
                return Ok(());
            }
            Received::Ended => {
                self.sharing = None;
                return Ok(());
            }
        };
        let rules = self.rules.load_full();
        let now = clock::now();
        // As in `settle`: the ban of a network clears no attempts of the targets in it.
        let is_banned = self.reader.is_banned(share.key.1, now);
        let standing = if is_banned { Standing::Banned } else { Standing::Free };
        let order = self.judge.shared(&rules, from, share, standing, now);
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
        let remote = batch.source != Source::Local;
        let recorded = |change: &Change| RecordedChange { target: change.target, entry: change.after.clone(), remote };
        self.history.record_changes(batch.changes.iter().map(recorded));
        for entry in batch.changes.iter().filter_map(|change| change.announcement(now)) {
            self.rankings.change(entry, now);
        }
        for change in &batch.changes {
            if matches!(change.after.state(now), State::Unbanned) {
                self.judge.unbanned(&rules, change.target, now);
            } else {
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

/// The verdict as one word, for metrics and the history. Jails in `shadow` mode have words of their own.
const fn outcome_of(verdict: &Verdict, shadow: bool) -> &'static str {
    match verdict {
        Verdict::Counted { .. } if shadow => "shadow_counted",
        Verdict::WouldBan(_) if shadow => "shadow_ban",
        Verdict::WouldBeBanned(_) => "shadow_banned",
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

/// What another node sent.
enum Received {
    Count(RemoteCount),
    Evidence(EvidenceRecord),
    /// The cluster has ended.
    Ended,
}

/// The next count or evidence from another node; never ready without a cluster.
async fn received(sharing: &mut Option<Sharing>) -> Received {
    let Some(sharing) = sharing else { return std::future::pending().await };
    tokio::select! {
        count = sharing.remote.recv() => count.map_or(Received::Ended, Received::Count),
        record = sharing.evidence_in.recv() => record.map_or(Received::Ended, Received::Evidence),
    }
}

#[cfg(test)]
mod tests;
