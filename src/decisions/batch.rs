//! Batches of changes, which the store publishes and the journal writes, and the acknowledgements that follow a write.

use tokio::sync::oneshot;

use banmesh_core::ledger::{Change, Refused};

/// Which node made a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This node. The change must be sent to the others.
    Local,
    /// Another node of the cluster. It also sends the change to the others.
    Remote,
    /// A node of another site, which has this place in `cluster.sites`; `None` if it is not there. The change must be sent to the other
    /// nodes of this site, and to the other sites.
    OtherSite(Option<usize>),
}

/// Changes of one source that were applied together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Which node made them.
    pub source: Source,
    /// The changes, in the order in which they were applied.
    pub changes: Vec<Change>,
}

/// The answer that a caller of the store waits for, sent once the journal holds the changes or has failed to write them.
#[derive(Debug)]
pub struct Acknowledgement(Waiting);

#[derive(Debug)]
enum Waiting {
    /// A request with one change.
    One(oneshot::Sender<Result<Change, Refused>>, Change),
    /// A step of a bulk request.
    Step(oneshot::Sender<StepDone>, StepDone),
}

/// The outcome of a step of a bulk request.
#[derive(Debug)]
pub(super) struct StepDone {
    /// The refusals, by position in the step.
    pub(super) refused: Vec<(usize, Refused)>,
    /// Whether the journal holds the other changes.
    pub(super) saved: bool,
    /// Whether the step was applied. `false` if it was only checked, or if a refusal stopped all of it.
    pub(super) applied: bool,
}

impl Acknowledgement {
    /// Answers a request with the one change `change`.
    pub const fn one(reply: oneshot::Sender<Result<Change, Refused>>, change: Change) -> Self {
        Self(Waiting::One(reply, change))
    }

    /// Answers a step of a bulk request.
    pub(super) const fn step(reply: oneshot::Sender<StepDone>, done: StepDone) -> Self {
        Self(Waiting::Step(reply, done))
    }

    /// Whether this answers part of a bulk request. The journal gathers these, because a few large commits finish sooner than many
    /// small ones.
    pub const fn is_bulk(&self) -> bool {
        matches!(self.0, Waiting::Step(..))
    }

    /// Answers that the journal holds the changes. The caller may be gone, here and in [`Acknowledgement::not_saved`].
    pub fn saved(self) {
        match self.0 {
            Waiting::One(reply, change) => drop(reply.send(Ok(change))),
            Waiting::Step(reply, done) => drop(reply.send(done)),
        }
    }

    /// Answers that the changes are made but the journal could not be written.
    pub fn not_saved(self) {
        match self.0 {
            Waiting::One(reply, change) => drop(reply.send(Err(Refused::NotSaved { target: change.target }))),
            Waiting::Step(reply, done) => drop(reply.send(StepDone { saved: false, ..done })),
        }
    }
}
