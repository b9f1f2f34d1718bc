//! Merges what other nodes publish in their recent-changes logs, and requests a repair for what was missed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::membership::{Membership, ReceivedSlot};
use super::metrics::Metrics;
use super::repair::Request;
use crate::clock;
use crate::decisions::store::StoreHandle;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::gaps::ExpectedSequences;
use banmesh_cluster::incarnation::{Incarnation, counter_of};
use banmesh_cluster::outbox::BANS;
use banmesh_cluster::repair::plan::Reason;
use banmesh_cluster::ring::{SlotError, read_slot};
use banmesh_core::attempts::RemoteCount;
use banmesh_core::ban::BanEntry;
use banmesh_core::planted::{Fault, is_planted};
use banmesh_core::wire::{Record, Versions, WireError};
use banmesh_types::target::Target;

/// Received slots that may wait. If there are more, they are dropped, and a repair brings their records.
pub(super) const QUEUE: usize = 4096;
/// Slots that are merged together at most.
const MAX_TOGETHER: usize = 256;

pub(super) struct Intake {
    membership: Arc<Membership>,
    store: StoreHandle,
    metrics: Metrics,
    versions: Versions,
    repairs: mpsc::Sender<Request>,
    counts: mpsc::Sender<RemoteCount>,
    expected: ExpectedSequences,
    refused: LogThrottle,
}

impl Intake {
    pub(super) fn new(
        membership: Arc<Membership>,
        store: StoreHandle,
        metrics: Metrics,
        versions: Versions,
        repairs: mpsc::Sender<Request>,
        counts: mpsc::Sender<RemoteCount>,
    ) -> Self {
        let refused = LogThrottle::new(Duration::from_secs(60));
        let expected = ExpectedSequences::default();
        Self { membership, store, metrics, versions, repairs, counts, expected, refused }
    }

    /// Merges slots until the membership or the store ends.
    pub(super) async fn serve(mut self, mut slots: mpsc::Receiver<ReceivedSlot>) {
        let mut received = Vec::with_capacity(MAX_TOGETHER);
        while slots.recv_many(&mut received, MAX_TOGETHER).await > 0 {
            let mut entries = Vec::new();
            for slot in received.drain(..) {
                self.read(slot, &mut entries);
            }
            if self.membership.slots_overflowed() {
                self.gap(None, "overflow");
            }
            self.metrics.recent_changes_received.inc_by(entries.len() as u64);
            if !entries.is_empty() && self.store.merge_later(entries).await.is_err() {
                return;
            }
        }
    }

    fn read(&mut self, slot: ReceivedSlot, entries: &mut Vec<(Target, BanEntry)>) {
        let ReceivedSlot { author, ring, value } = slot;
        let slot = match read_slot(self.versions, &value) {
            Ok(slot) => slot,
            Err(error) => {
                let reason = match error {
                    SlotError::Malformed => "malformed",
                    SlotError::Wire(WireError::Version(_)) => "another version",
                    SlotError::Wire(_) => "malformed batch",
                };
                return self.refuse(&author, reason, 1);
            }
        };
        if slot.tally.unknown > 0 {
            self.refuse(&author, "unknown kind", slot.tally.unknown);
        }
        if slot.tally.refused > 0 {
            self.refuse(&author, "refused", slot.tally.refused);
        }
        let end = slot.end();
        let mut latest = None;
        for record in slot.records {
            match record {
                Record::Ban { target, entry } => {
                    let own = entry.stamps().filter(|stamp| stamp.node.as_str() == &*author.node);
                    latest = latest.max(own.map(|stamp| stamp.hlc.millis()).max());
                    entries.push((target, entry));
                }
                Record::Attempts(attempts) => {
                    let from = counter_of(&author.node, attempts.generation);
                    // Dropping a count only delays a ban.
                    let _ = self.counts.try_send(RemoteCount { from, share: attempts.share });
                }
            }
        }
        if let Some(made) = latest {
            let age = i128::from(clock::now().0) - i128::from(made.0);
            self.membership.lag().arrived(&author, i64::try_from(age).unwrap_or(i64::MAX));
        }
        if ring == BANS {
            self.check_sequence(&author, slot.first, end);
        }
    }

    /// Compares the sequence numbers of a slot with those expected from its author.
    fn check_sequence(&mut self, author: &Incarnation, first: u64, end: u64) {
        let members = self.membership.members();
        let is_member =
            |id: &Incarnation| members.borrow().nodes.iter().any(|member| member.node.as_str() == &*id.node);
        let gap = self.expected.received(author, first, end, is_member);
        self.membership.lag().received(author, end, gap.map(|_| first), clock::now());
        if let Some(gap) = gap {
            self.gap(Some(author), gap.as_str());
        }
    }

    fn gap(&self, author: Option<&Incarnation>, reason: &'static str) {
        Metrics::count(&self.metrics.recent_changes_gaps, reason);
        if is_planted(Fault::DropGapNotice) {
            return;
        }
        let request = Request { with: author.map(|author| author.node.to_string()), reason: Reason::Gap };
        if self.repairs.try_send(request).is_err() {
            // Requests are taken from the queue at once, so the repairer has ended or the machine is overloaded. Tables that
            // differ are found anyway.
            Metrics::count(&self.metrics.recent_changes_gaps, "not asked for");
        }
    }

    fn refuse(&self, author: &Incarnation, reason: &'static str, records: usize) {
        Metrics::count_many(&self.metrics.records_refused, reason, records as u64);
        if let Some(held_back) = self.refused.permit(Instant::now()) {
            tracing::warn!(
                author = &*author.node,
                reason,
                held_back,
                "records of another node were refused; it probably runs another build: compare the versions in \
                 `banmesh cluster status`"
            );
        }
    }
}
