//! Bulk requests: one action for many targets. They are applied in steps, so that other commands need not wait long. A step is
//! acknowledged as a whole once the journal holds it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Store, StoreGone, StoreHandle, clock};
use crate::decisions::batch::{Acknowledgement, Source, StepDone};
use banmesh_core::ban::Cause;
use banmesh_core::ledger::{Author, BanTerms, Refused};
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// The action of a bulk request.
#[derive(Clone, Debug)]
pub enum Bulk {
    /// Ban them.
    Ban(BanTerms, Arc<Cause>),
    /// Ban them for a program.
    BanForProgram(BanTerms, Arc<Cause>),
    /// End the bans of exactly them.
    Unban(Arc<Cause>),
    /// End the bans of exactly them that the author made.
    UnbanOwn(Author, Arc<Cause>),
    /// Allow them until then.
    Allow(Expiry, Arc<Cause>),
}

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

/// Part of a bulk request.
#[derive(Debug)]
pub(super) struct Step {
    targets: Vec<Target>,
    what: Bulk,
    reply: oneshot::Sender<StepDone>,
}

impl Store {
    /// Applies a step. The caller is answered once the journal holds it.
    pub(super) async fn step(&mut self, Step { targets, what, reply }: Step) {
        if !matches!(what, Bulk::Unban(_)) {
            self.make_room(targets.clone()).await;
        }
        let mut changes = Vec::with_capacity(targets.len());
        let mut refused = Vec::new();
        for (position, target) in targets.into_iter().enumerate() {
            let now = clock::now();
            let result = match &what {
                Bulk::Ban(terms, cause) => self.ledger.ban(target, *terms, Arc::clone(cause), now),
                Bulk::BanForProgram(terms, cause) => {
                    self.ledger.ban_for_program(target, *terms, Arc::clone(cause), now)
                }
                Bulk::UnbanOwn(author, cause) => self.ledger.unban_own(target, author, Arc::clone(cause), now),
                Bulk::Unban(cause) => self.ledger.unban(target, Arc::clone(cause), now),
                Bulk::Allow(until, cause) => self.ledger.allow(target, *until, Arc::clone(cause), now),
            };
            match result {
                Ok(change) => changes.push(change),
                Err(why) => refused.push((position, why)),
            }
        }
        let done = StepDone { refused, saved: true };
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
        let step = if matches!(what, Bulk::Allow(..)) { ALLOW_STEP } else { STEP };
        let mut answers = Vec::with_capacity(targets.len().div_ceil(step));
        for part in targets.chunks(step) {
            let (reply, answer) = oneshot::channel();
            let step = Step { targets: part.to_vec(), what: what.clone(), reply };
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
}

/// The refusals of a step, by position. If the journal could not be written, all targets count as refused.
fn refused_of(targets: &[Target], done: StepDone) -> impl Iterator<Item = (usize, Refused)> + '_ {
    let StepDone { refused, saved } = done;
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

    use super::super::Metrics;
    use super::*;
    use crate::decisions::view::View;
    use banmesh_core::ban::By;
    use banmesh_core::hlc::Hlc;
    use banmesh_core::ledger::{Ledger, Limits};

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

    #[test]
    fn every_target_of_an_unsaved_step_is_refused() {
        let targets = targets(3);
        let full = Refused::Full { target: targets[1], max: 1 };
        let done = |saved| StepDone { refused: vec![(1, full.clone())], saved };
        assert_eq!(refused_of(&targets, done(true)).collect::<Vec<_>>(), [(1, full.clone())]);
        let lost = |at: usize| (at, Refused::NotSaved { target: targets[at] });
        assert_eq!(refused_of(&targets, done(false)).collect::<Vec<_>>(), [lost(0), (1, full.clone()), lost(2)]);
    }
}
