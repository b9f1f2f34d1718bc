//! Merges what other nodes publish in their recent-changes logs, and requests a repair for what was missed.
//!
//! Slots arrive directly, and are acknowledged. Those of earlier builds arrive in their gossip state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::inbox::{DirectSlot, Reply};
use super::membership::{Membership, ReceivedSlot};
use super::metrics::Metrics;
use super::repair::Request;
use super::transport::EncryptedTransport;
use crate::clock;
use crate::decisions::store::StoreHandle;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::datagram::{Acknowledgement, Kind};
use banmesh_cluster::follower::Followed;
use banmesh_cluster::gaps::ExpectedSequences;
use banmesh_cluster::incarnation::{Incarnation, counter_of};
use banmesh_cluster::outbox::{ATTEMPTS, BANS};
use banmesh_cluster::repair::plan::Reason;
use banmesh_cluster::ring::{Slot, SlotError, read_bytes, read_slot};
use banmesh_core::attempts::RemoteCount;
use banmesh_core::ban::BanEntry;
use banmesh_core::evidence::EvidenceRecord;
use banmesh_core::node::NodeId;
use banmesh_core::planted::{Fault, is_planted};
use banmesh_core::wire::{Record, Versions, WireError};
use banmesh_types::target::Target;

/// Received slots that may wait. If there are more, they are dropped, and a repair brings their records.
pub(super) const QUEUE: usize = 4096;
/// Slots that are merged together at most.
const MAX_TOGETHER: usize = 256;
/// A busy author gets one acknowledgement in this time, unless slots are missing.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(5);
/// Authors whose logs arrive directly that are remembered.
const MAX_AUTHORS: usize = 4096;

pub(super) struct Intake {
    membership: Arc<Membership>,
    store: StoreHandle,
    metrics: Metrics,
    versions: Versions,
    repairs: mpsc::Sender<Request>,
    counts: mpsc::Sender<RemoteCount>,
    evidence: mpsc::Sender<EvidenceRecord>,
    expected: ExpectedSequences,
    transport: EncryptedTransport,
    node: NodeId,
    followed: Followed,
    /// The processes that are to get an acknowledgement, and from when on.
    pending: HashMap<u64, PendingAcknowledgement>,
    refused: LogThrottle,
}

/// An acknowledgement that is to be sent.
struct PendingAcknowledgement {
    reply: Reply,
    /// When the last one was sent.
    last: Option<Instant>,
    /// Whether something has arrived since.
    due: bool,
}

impl Intake {
    pub(super) fn new(
        membership: Arc<Membership>,
        store: StoreHandle,
        metrics: Metrics,
        versions: Versions,
        repairs: mpsc::Sender<Request>,
        (counts, evidence): (mpsc::Sender<RemoteCount>, mpsc::Sender<EvidenceRecord>),
        node: NodeId,
    ) -> Self {
        let transport = membership.transport();
        Self {
            membership,
            store,
            metrics,
            versions,
            repairs,
            counts,
            evidence,
            expected: ExpectedSequences::default(),
            transport,
            node,
            followed: Followed::default(),
            pending: HashMap::new(),
            refused: LogThrottle::new(Duration::from_secs(60)),
        }
    }

    /// Merges slots until the membership or the store ends.
    pub(super) async fn serve(
        mut self,
        mut slots: mpsc::Receiver<ReceivedSlot>,
        mut direct: mpsc::Receiver<DirectSlot>,
    ) {
        let (mut received, mut arrived) = (Vec::with_capacity(MAX_TOGETHER), Vec::with_capacity(MAX_TOGETHER));
        loop {
            let mut entries = Vec::new();
            let next = self.next_acknowledgement();
            tokio::select! {
                count = slots.recv_many(&mut received, MAX_TOGETHER) => if count == 0 { return },
                count = direct.recv_many(&mut arrived, MAX_TOGETHER) => if count == 0 { return },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            }
            for slot in received.drain(..) {
                self.read(slot, &mut entries);
            }
            for slot in arrived.drain(..) {
                self.take(slot, &mut entries);
            }
            if self.membership.slots_overflowed() {
                self.gap(None, "overflow");
            }
            self.metrics.recent_changes_received.inc_by(entries.len() as u64);
            if !entries.is_empty() && self.store.merge_later(entries).await.is_err() {
                return;
            }
            // Only now: what is acknowledged is not lost if this node ends.
            self.acknowledge().await;
        }
    }

    /// Takes a slot that arrived directly.
    fn take(&mut self, received: DirectSlot, entries: &mut Vec<(Target, BanEntry)>) {
        let DirectSlot { process, author, oldest, number, log, slot, reply } = received;
        let arrival = self.followed.received(process, oldest, number, clock::now());
        if self.pending.len() >= MAX_AUTHORS {
            // Who is still there sends its slots again.
            self.pending.clear();
        }
        let pending = self.pending.entry(process).or_insert_with(|| PendingAcknowledgement {
            reply: reply.clone(),
            last: None,
            due: true,
        });
        (pending.reply, pending.due) = (reply, true);
        if let Some(gap) = arrival.gap {
            self.gap(Some(author.as_str()), gap.as_str());
        }
        if !arrival.fresh || !matches!(log, BANS | ATTEMPTS) {
            return;
        }
        if slot.is_empty() {
            return self.gap(Some(author.as_str()), "not published");
        }
        if let Some(slot) = self.check(author.as_str(), read_bytes(self.versions, &slot)) {
            let age = self.use_records(author.as_str(), slot, entries);
            if let Some(age) = age {
                self.membership.lag().arrived_directly(process, age);
            }
        }
    }

    /// When the next acknowledgement is due; `None` if nothing has arrived since the last ones.
    fn next_acknowledgement(&self) -> Option<Instant> {
        let due =
            |pending: &PendingAcknowledgement| pending.last.map_or_else(Instant::now, |last| last + ACKNOWLEDGE_EVERY);
        self.pending.values().filter(|pending| pending.due).map(due).min()
    }

    /// Sends the acknowledgements that are due.
    async fn acknowledge(&mut self) {
        let now = Instant::now();
        for (process, pending) in self.pending.iter_mut().filter(|(_, pending)| pending.due) {
            let Some(position) = self.followed.position(*process) else { continue };
            let recent = pending.last.is_some_and(|last| now.saturating_duration_since(last) < ACKNOWLEDGE_EVERY);
            if recent && position.later == 0 {
                continue;
            }
            (pending.last, pending.due) = (Some(now), false);
            let ack = Acknowledgement {
                node: self.node.clone(),
                author: *process,
                next: position.next,
                later: position.later,
                missed: position.missed,
                at: position.at,
            };
            match &pending.reply {
                Reply::Datagram(to) => self.transport.send(*to, Kind::Acknowledgement, &[&ack.encode()]).await,
                // The connection carries many, and the author sends again what is not acknowledged.
                Reply::Stream(stream) => drop(stream.try_send(ack.encode())),
            }
        }
    }

    fn read(&mut self, slot: ReceivedSlot, entries: &mut Vec<(Target, BanEntry)>) {
        let ReceivedSlot { author, ring, value } = slot;
        // What a node of this build sends directly need not be read twice.
        if self.membership.sends_directly(&author.node) {
            return;
        }
        let Some(slot) = self.check(&author.node, read_slot(self.versions, &value)) else { return };
        let (first, end) = (slot.first, slot.end());
        if let Some(age) = self.use_records(&author.node, slot, entries) {
            self.membership.lag().arrived(&author, age);
        }
        if ring == BANS {
            self.check_sequence(&author, first, end);
        }
    }

    /// Counts what cannot be read.
    fn check(&self, author: &str, slot: Result<Slot, SlotError>) -> Option<Slot> {
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => {
                let reason = match error {
                    SlotError::Malformed => "malformed",
                    SlotError::Wire(WireError::Version(_)) => "another version",
                    SlotError::Wire(_) => "malformed batch",
                };
                self.refuse(author, reason, 1);
                return None;
            }
        };
        if slot.tally.unknown > 0 {
            self.refuse(author, "unknown kind", slot.tally.unknown);
        }
        if slot.tally.refused > 0 {
            self.refuse(author, "refused", slot.tally.refused);
        }
        Some(slot)
    }

    /// Passes on the records of a slot. Returns how old the latest of the author's own changes is by our clock, in milliseconds.
    fn use_records(&self, author: &str, slot: Slot, entries: &mut Vec<(Target, BanEntry)>) -> Option<i64> {
        let mut latest = None;
        for record in slot.records {
            match record {
                Record::Ban { target, entry } => {
                    let own = entry.stamps().filter(|stamp| stamp.node.as_str() == author);
                    latest = latest.max(own.map(|stamp| stamp.hlc.millis()).max());
                    entries.push((target, entry));
                }
                Record::Attempts(attempts) => {
                    let from = counter_of(author, attempts.generation);
                    // Dropping a count only delays a ban.
                    let _ = self.counts.try_send(RemoteCount { from, share: attempts.share });
                }
                Record::Evidence(evidence) => {
                    // A comparison of digests brings what is dropped.
                    if self.evidence.try_send(evidence).is_err() {
                        Metrics::count(&self.metrics.records_refused, "too much evidence");
                    }
                }
            }
        }
        let age = latest.map(|made| i128::from(clock::now().0) - i128::from(made.0));
        age.map(|age| i64::try_from(age).unwrap_or(i64::MAX))
    }

    /// Compares the sequence numbers of a slot with those expected from its author.
    fn check_sequence(&mut self, author: &Incarnation, first: u64, end: u64) {
        let members = self.membership.members();
        let is_member =
            |id: &Incarnation| members.borrow().nodes.iter().any(|member| member.node.as_str() == &*id.node);
        let gap = self.expected.received(author, first, end, is_member);
        self.membership.lag().received(author, end, gap.map(|_| first), clock::now());
        if let Some(gap) = gap {
            self.gap(Some(&author.node), gap.as_str());
        }
    }

    fn gap(&self, author: Option<&str>, reason: &'static str) {
        Metrics::count(&self.metrics.recent_changes_gaps, reason);
        if is_planted(Fault::DropGapNotice) {
            return;
        }
        let request = Request { with: author.map(str::to_owned), reason: Reason::Gap };
        if self.repairs.try_send(request).is_err() {
            // Requests are taken from the queue at once, so the repairer has ended or the machine is overloaded. Tables that
            // differ are found anyway.
            Metrics::count(&self.metrics.recent_changes_gaps, "not asked for");
        }
    }

    fn refuse(&self, author: &str, reason: &'static str, records: usize) {
        Metrics::count_many(&self.metrics.records_refused, reason, records as u64);
        if let Some(held_back) = self.refused.permit(Instant::now()) {
            tracing::warn!(
                author,
                reason,
                held_back,
                "records of another node were refused; it probably runs another build: compare the versions in \
                 `banmesh cluster status`"
            );
        }
    }
}
