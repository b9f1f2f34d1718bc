//! Bulk requests: one action for many targets. They are applied in steps, so that other commands need not wait long. A step is
//! acknowledged as a whole once the journal holds it.

use tokio::sync::oneshot;

use super::{Store, StoreGone, StoreHandle, clock};
use crate::decisions::batch::{Acknowledgement, Source, StepDone};
pub use banmesh_core::ledger::Bulk;
use banmesh_core::ledger::Refused;
use banmesh_types::target::Target;

/// Steps that may wait for the store.
pub(super) const STEPS: usize = 64;
/// Targets in a step, and in the batch that subscribers receive. This bounds the memory for a lagging subscriber, whose queue is
/// bounded by the number of batches.
const STEP: usize = 256;
/// The same for allowlist entries. Each step copies the allowlist for readers, so there should be fewer steps.
const ALLOW_STEP: usize = 2048;
/// Targets of all bulk requests that may be waiting for the disk. Less than the journal's limit, which leaves room for single
/// changes.
pub(super) const ROOM: usize = 131_072;

/// Which targets of a step are changed.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Those that are not refused.
    Each,
    /// All of them, or none if one is refused for a reason that the request does not [tolerate](Tolerated).
    All(Tolerated),
    /// None: the answer says whether one is refused.
    Check(Tolerated),
}

/// Which refusals do not count in a request that changes all targets or none.
pub type Tolerated = fn(&Refused) -> bool;

/// The outcome of a request that changes all targets or none.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was changed, because these targets would have been refused.
    Nothing(Vec<(usize, Refused)>),
    /// All targets were changed except these.
    Changed(Vec<(usize, Refused)>),
}

/// Part of a bulk request.
#[derive(Debug)]
pub(super) struct Step {
    targets: Vec<Target>,
    what: Bulk,
    mode: Mode,
    reply: oneshot::Sender<StepDone>,
}

impl Store {
    /// Applies a step. The caller is answered once the journal holds it.
    pub(super) async fn step(&mut self, Step { targets, what, mode, reply }: Step) {
        if !matches!(what, Bulk::Unban(_)) {
            self.make_room(targets.clone()).await;
        }
        if let Mode::All(tolerated) | Mode::Check(tolerated) = mode {
            let mut refused = self.ledger.refusals(&targets, &what, clock::now());
            refused.retain(|(_, why)| !tolerated(why));
            if !refused.is_empty() || matches!(mode, Mode::Check(_)) {
                // The caller may be gone.
                let _ = reply.send(StepDone { refused, saved: true, applied: false });
                return;
            }
        }
        let mut changes = Vec::with_capacity(targets.len());
        let mut refused = Vec::new();
        for (position, target) in targets.into_iter().enumerate() {
            match self.ledger.apply(target, &what, clock::now()) {
                Ok(change) => changes.push(change),
                Err(why) => refused.push((position, why)),
            }
        }
        let done = StepDone { refused, saved: true, applied: true };
        if changes.is_empty() {
            // The caller may be gone.
            let _ = reply.send(done);
            return;
        }
        self.publish(Source::Local, changes, vec![Acknowledgement::step(reply, done)]).await;
    }
}

impl StoreHandle {
    /// Does `what` with all `targets`. Returns the refusals by position, in order, once the journal holds the changes.
    ///
    /// # Errors
    /// [`StoreGone`]. Some of the changes may have been made.
    pub async fn bulk(&self, targets: &[Target], what: &Bulk) -> Result<Vec<(usize, Refused)>, StoreGone> {
        let room = u32::try_from(targets.len().min(ROOM)).unwrap_or(u32::MAX);
        let _room = self.room.acquire_many(room).await.map_err(|_| StoreGone)?;
        let step = step_of(what);
        let mut answers = Vec::with_capacity(targets.len().div_ceil(step));
        for part in targets.chunks(step) {
            let (reply, answer) = oneshot::channel();
            let step = Step { targets: part.to_vec(), what: what.clone(), mode: Mode::Each, reply };
            self.steps.send(step).await.map_err(|_| StoreGone)?;
            answers.push((part, answer));
        }
        let mut all = Vec::new();
        for (number, (part, answer)) in answers.into_iter().enumerate() {
            let done = answer.await.map_err(|_| StoreGone)?;
            all.extend(refused_of(part, done).map(|(position, why)| (number * step + position, why)));
        }
        Ok(all)
    }

    /// Does `what` with all `targets`, or changes nothing if the ledger refuses one of them for a reason that is not `tolerated`.
    ///
    /// Up to a step (`STEP`, `ALLOW_STEP`), nothing comes between the check and the changes, and one commit of the journal has them
    /// all. More targets are all checked first and then changed in steps, so another change in between can still refuse some of them.
    ///
    /// # Errors
    /// Same as [`Self::bulk`].
    pub async fn all_or_none(
        &self,
        targets: &[Target],
        what: &Bulk,
        tolerated: Tolerated,
    ) -> Result<Outcome, StoreGone> {
        let together = targets.len() <= step_of(what);
        let mode = if together { Mode::All(tolerated) } else { Mode::Check(tolerated) };
        let StepDone { refused, saved, applied } = {
            let room = if together { u32::try_from(targets.len()).unwrap_or(u32::MAX) } else { 0 };
            let _room = self.room.acquire_many(room).await.map_err(|_| StoreGone)?;
            let (reply, answer) = oneshot::channel();
            let step = Step { targets: targets.to_vec(), what: what.clone(), mode, reply };
            self.steps.send(step).await.map_err(|_| StoreGone)?;
            answer.await.map_err(|_| StoreGone)?
        };
        Ok(match applied {
            true => Outcome::Changed(refused_of(targets, StepDone { refused, saved, applied }).collect()),
            false if together || !refused.is_empty() => Outcome::Nothing(refused),
            false => Outcome::Changed(self.bulk(targets, what).await?),
        })
    }
}

/// The most targets in a step.
const fn step_of(what: &Bulk) -> usize {
    if matches!(what, Bulk::Allow(..)) { ALLOW_STEP } else { STEP }
}

/// The refusals of a step, by position. If the journal could not be written, all targets count as refused.
fn refused_of(targets: &[Target], done: StepDone) -> impl Iterator<Item = (usize, Refused)> + '_ {
    let StepDone { refused, saved, .. } = done;
    let mut refused = refused.into_iter().peekable();
    targets.iter().enumerate().filter_map(move |(position, target)| {
        let why = refused.next_if(|(refused, _)| *refused == position).map(|(_, why)| why);
        Some((position, why.or((!saved).then_some(Refused::NotSaved { target: *target }))?))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::decisions::store::Metrics;
    use crate::decisions::view::View;
    use std::sync::Arc;

    use banmesh_core::ban::{By, Cause};
    use banmesh_core::hlc::Hlc;
    use banmesh_core::ledger::{BanTerms, Ledger, Limits};
    use banmesh_types::time::Expiry;

    const DAY: Duration = Duration::from_secs(86_400);

    fn start(max_bans: usize) -> (StoreHandle, CancellationToken) {
        let limits = Limits { max_bans, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let (_, writer) = View::new();
        let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), Metrics::default());
        let shutdown = CancellationToken::new();
        tokio::spawn(store.serve(shutdown.clone()));
        (handle, shutdown)
    }

    fn targets(count: u32) -> Vec<Target> {
        (0..count).map(|n| Target::host(std::net::IpAddr::V4((0x0a00_0000 + n).into()).into())).collect()
    }

    fn cause() -> Arc<Cause> {
        Arc::new(Cause::new(By::Operator("ann".into()), "test"))
    }

    fn ban() -> Bulk {
        Bulk::Ban(BanTerms { until: Expiry::NEVER, remember: DAY, replace: false }, cause())
    }

    fn positions(refused: &[(usize, Refused)]) -> Vec<usize> {
        refused.iter().map(|(position, _)| *position).collect()
    }

    #[tokio::test]
    async fn refusals_are_reported_by_position_in_the_request() {
        let (store, _shutdown) = start(10_000);
        let all = targets(1000);
        let odd: Vec<Target> = all.iter().copied().skip(1).step_by(2).collect();
        assert_eq!(store.bulk(&odd, &ban()).await.unwrap(), []);
        let refused = store.bulk(&all, &Bulk::Unban(cause())).await.unwrap();
        assert_eq!(positions(&refused), (0..1000).step_by(2).collect::<Vec<_>>());
        assert!(refused.iter().all(|(at, why)| *why == Refused::NotBanned { target: all[*at] }));
        assert_eq!(store.bulk(&[], &ban()).await.unwrap(), []);
        let exempt = store.bulk(&all, &Bulk::Allow(Expiry::NEVER, cause())).await.unwrap();
        assert_eq!((exempt, store.allowlist_entries(None, 2000).await.unwrap().len()), (Vec::new(), 1000));
    }

    #[tokio::test]
    async fn a_full_table_refuses_only_the_targets_beyond_its_limit() {
        let (store, _shutdown) = start(300);
        let refused = store.bulk(&targets(700), &ban()).await.unwrap();
        assert_eq!(positions(&refused), (300..700).collect::<Vec<_>>());
        assert!(refused.iter().all(|(_, why)| matches!(why, Refused::Full { max: 300, .. })));
    }

    #[tokio::test]
    async fn batches_of_a_bulk_request_are_small() {
        let (store, _shutdown) = start(100_000);
        let mut changes = store.subscribe();
        store.bulk(&targets(10_000), &ban()).await.unwrap();
        let mut received = 0;
        while received < 10_000 {
            let batch = changes.recv().await.unwrap();
            assert!(batch.source == Source::Local && batch.changes.len() <= STEP, "{}", batch.changes.len());
            received += batch.changes.len();
        }
    }

    #[tokio::test]
    async fn bulk_requests_are_answered_on_shutdown() {
        let (store, shutdown) = start(100_000);
        let asked = tokio::spawn({
            let store = store.clone();
            async move { store.bulk(&targets(10_000), &ban()).await }
        });
        tokio::task::yield_now().await;
        shutdown.cancel();
        if let Ok(refused) = asked.await.unwrap() {
            assert_eq!(refused, []);
        }
        while store.summary().await.is_ok() {}
        assert_eq!(store.bulk(&targets(1), &ban()).await, Err(StoreGone));
    }

    const fn none(_: &Refused) -> bool {
        false
    }

    #[tokio::test]
    async fn all_or_none_changes_nothing_when_the_ledger_refuses_one_target() {
        let (store, _shutdown) = start(10_000);
        // One more than a step, and so checked separately.
        for count in [2, 256, 257, 3000] {
            let all = targets(count);
            let last = usize::try_from(count - 1).unwrap();
            store.bulk(&all[last..], &ban()).await.unwrap();
            let before = store.summary().await.unwrap();
            let short = Bulk::Ban(BanTerms::new(Expiry::at(clock::now().plus(DAY)), DAY), cause());
            let outcome = store.all_or_none(&all, &short, none).await.unwrap();
            assert!(
                matches!(&outcome, Outcome::Nothing(refused) if positions(refused) == [last]),
                "{count}: {outcome:?}"
            );
            let outcome = store.all_or_none(&all, &Bulk::Unban(cause()), none).await.unwrap();
            assert!(matches!(&outcome, Outcome::Nothing(refused) if refused.len() == last), "{count}: {outcome:?}");
            let after = store.summary().await.unwrap();
            assert_eq!((after.entries, after.active), (before.entries, before.active), "{count}");
            let outcome = store.all_or_none(&all, &short, |why| matches!(why, Refused::BannedLonger { .. })).await;
            assert!(
                matches!(outcome.as_ref().unwrap(), Outcome::Changed(kept) if positions(kept) == [last]),
                "{count}: {outcome:?}"
            );
            assert_eq!(store.all_or_none(&all, &Bulk::Unban(cause()), none).await, Ok(Outcome::Changed(Vec::new())));
        }
    }

    #[tokio::test]
    async fn all_or_none_up_to_a_step_is_one_batch() {
        let (store, _shutdown) = start(10_000);
        let mut changes = store.subscribe();
        store.all_or_none(&targets(256), &ban(), none).await.unwrap();
        assert_eq!(changes.recv().await.unwrap().changes.len(), 256);
    }

    #[test]
    fn every_target_of_an_unsaved_step_is_refused() {
        let targets = targets(3);
        let full = Refused::Full { target: targets[1], max: 1 };
        let done = |saved| StepDone { refused: vec![(1, full.clone())], saved, applied: true };
        assert_eq!(refused_of(&targets, done(true)).collect::<Vec<_>>(), [(1, full.clone())]);
        let lost = |at: usize| (at, Refused::NotSaved { target: targets[at] });
        assert_eq!(refused_of(&targets, done(false)).collect::<Vec<_>>(), [lost(0), (1, full.clone()), lost(2)]);
    }
}
