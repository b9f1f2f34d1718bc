//! Many targets on the same terms. They are applied in steps, so that nobody else waits long for the store, and a step is
//! acknowledged as a whole once the journal holds it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Acknowledgement, Source, Store, StoreGone, StoreHandle, Waiting, clock};
use crate::domain::ban::Cause;
use crate::domain::ledger::{BanTerms, Refused};
use crate::domain::target::Target;
use crate::domain::time::Expiry;

/// What to do with each of many targets.
#[derive(Clone, Debug)]
pub enum Bulk {
    /// Ban them.
    Ban(BanTerms, Arc<Cause>),
    /// End the bans of exactly them.
    Unban(Arc<Cause>),
    /// Exempt them from banning until then.
    Allow(Expiry, Arc<Cause>),
}

/// Steps that may wait for the store.
pub(super) const STEPS: usize = 64;
/// Targets in a step, and in the batch that subscribers receive of it: what one that has fallen behind keeps in memory is bounded
/// by the number of batches.
const STEP: usize = 256;
/// The same for allowlist entries. Each step makes a new copy of the allowlist for readers, so these are fewer.
const ALLOW_STEP: usize = 2048;
/// Targets of all bulk requests that may be on their way to the disk. Less than the journal has room for: single changes find room
/// there, too.
pub(super) const ROOM: usize = 131_072;

/// Part of a bulk request.
#[derive(Debug)]
pub(super) struct Step {
    targets: Vec<Target>,
    what: Bulk,
    reply: oneshot::Sender<StepDone>,
}

/// What became of a step.
#[derive(Debug)]
pub(super) struct StepDone {
    /// What was refused, by its position in the step.
    pub(super) refused: Vec<(usize, Refused)>,
    /// Whether the journal holds the rest.
    pub(super) saved: bool,
}

impl Store {
    /// Applies a step. Who waits for it is answered once the journal holds it.
    pub(super) async fn step(&mut self, Step { targets, what, reply }: Step) {
        let mut changes = Vec::with_capacity(targets.len());
        let mut refused = Vec::new();
        for (position, target) in targets.into_iter().enumerate() {
            let now = clock::now();
            let result = match &what {
                Bulk::Ban(terms, cause) => self.ledger.ban(target, *terms, Arc::clone(cause), now),
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
            // Whoever asked may have gone.
            let _ = reply.send(done);
            return;
        }
        self.publish(Source::Local, changes, vec![Acknowledgement(Waiting::Step(reply, done))]).await;
    }
}

impl StoreHandle {
    /// Does `what` with all `targets`. Returns once the journal holds it: what was refused, by its position and in order.
    ///
    /// # Errors
    /// [`StoreGone`]: then some of it may be done.
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
            let StepDone { refused, saved } = answer.await.map_err(|_| StoreGone)?;
            let first = number * step;
            if saved {
                all.extend(refused.into_iter().map(|(position, why)| (first + position, why)));
                continue;
            }
            let mut refused = refused.into_iter().peekable();
            all.extend(part.iter().enumerate().map(|(position, target)| {
                let why = refused.next_if(|(refused, _)| *refused == position);
                (first + position, why.map_or(Refused::NotSaved { target: *target }, |(_, why)| why))
            }));
        }
        Ok(all)
    }
}
