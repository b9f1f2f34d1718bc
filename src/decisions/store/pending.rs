//! What commands changed, until it is published.

use banmesh_core::ledger::Change;

use crate::decisions::batch::Acknowledgement;
use crate::decisions::batch::Source;

/// The changes that commands made, in order. The last change of a target must also be the last that the view and the journal
/// receive.
#[derive(Debug, Default)]
pub(super) struct Pending(pub(super) Vec<PendingBatch>);

/// Consecutive changes of one source, and the callers that wait for them.
#[derive(Debug)]
pub(super) struct PendingBatch {
    pub(super) source: Source,
    pub(super) changes: Vec<Change>,
    pub(super) waiting: Vec<Acknowledgement>,
}

impl Pending {
    pub(super) fn add(&mut self, source: Source, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            match self.0.last_mut() {
                Some(last) if last.source == source => last.changes.push(change),
                _ => self.0.push(PendingBatch { source, changes: vec![change], waiting: Vec::new() }),
            }
        }
    }

    /// Registers a caller that waits for the change that was added last.
    pub(super) fn wait(&mut self, caller: Acknowledgement) {
        if let Some(last) = self.0.last_mut() {
            last.waiting.push(caller);
        }
    }
}
