//! Takes in what other nodes put into their hot rings, and notices what it missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chitchat::ChitchatId;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::hot::BANS;
use super::membership::{HotSlot, Membership};
use super::metrics::Metrics;
use super::repair::{Reason, Request};
use super::ring::{SlotError, read_slot};
use crate::clock;
use crate::decisions::store::StoreHandle;
use crate::net::throttle::LogThrottle;
use banmesh_core::attempts::{Counter, SlotCount};
use banmesh_core::wire::{Record, Versions, WireError};

/// Slots that may wait to be taken in; what does not fit is repaired.
pub(super) const QUEUE: usize = 4096;
/// Slots that are taken in together.
const AT_ONCE: usize = 256;
/// Incarnations of authors that are remembered.
const MAX_AUTHORS: usize = 4096;

/// What another node counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteCount {
    /// Which node, and which start of it.
    pub from: Counter,
    /// What it counted.
    pub share: SlotCount,
}

/// The number under which a node counts since a start of it.
pub(super) fn counter_of(node: &[u8], generation: u64) -> Counter {
    xxh3_64_with_seed(node, generation)
}

pub(super) struct Intake {
    membership: Arc<Membership>,
    store: StoreHandle,
    metrics: Metrics,
    versions: Versions,
    repairs: mpsc::Sender<Request>,
    counts: mpsc::Sender<RemoteCount>,
    /// The next sequence number of every author's bans.
    expected: HashMap<ChitchatId, u64>,
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
        Self { membership, store, metrics, versions, repairs, counts, expected: HashMap::new(), refused }
    }

    /// Takes in slots until the membership or the store ends.
    pub(super) async fn serve(mut self, mut slots: mpsc::Receiver<HotSlot>) {
        let mut received = Vec::with_capacity(AT_ONCE);
        while slots.recv_many(&mut received, AT_ONCE).await > 0 {
            let mut entries = Vec::new();
            for slot in received.drain(..) {
                self.take(slot, &mut entries);
            }
            if self.membership.hot_overflowed() {
                self.gap(None, "overflow");
            }
            self.metrics.hot_received.inc_by(entries.len() as u64);
            if !entries.is_empty() && self.store.merge_later(entries).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, slot: HotSlot, entries: &mut Vec<(banmesh_types::target::Target, banmesh_core::ban::BanEntry)>) {
        let HotSlot { author, ring, value } = slot;
        let read = match read_slot(self.versions, &value) {
            Ok(read) => read,
            Err(error) => {
                let reason = match error {
                    SlotError::Malformed => "malformed",
                    SlotError::Wire(WireError::Version(_)) => "another version",
                    SlotError::Wire(_) => "malformed batch",
                };
                return self.refuse(&author, reason, 1);
            }
        };
        if read.tally.unknown > 0 {
            self.refuse(&author, "unknown kind", read.tally.unknown);
        }
        if read.tally.refused > 0 {
            self.refuse(&author, "refused", read.tally.refused);
        }
        let author_seed = author.node_id.as_bytes();
        let mut latest = None;
        for record in read.records {
            match record {
                Record::Ban { target, entry } => {
                    let own = entry.stamps().filter(|stamp| stamp.node.as_str() == &*author.node_id);
                    latest = latest.max(own.map(|stamp| stamp.hlc.millis()).max());
                    entries.push((target, entry));
                }
                Record::Attempts(attempts) => {
                    let from = counter_of(author_seed, attempts.generation);
                    // Counts that the judge has no time for only delay a ban.
                    let _ = self.counts.try_send(RemoteCount { from, share: attempts.share });
                }
            }
        }
        if let Some(made) = latest {
            let age = i128::from(clock::now().0) - i128::from(made.0);
            self.membership.spread().arrived(&author, i64::try_from(age).unwrap_or(i64::MAX));
        }
        if ring == BANS {
            self.follow(author, read.first, read.count);
        }
    }

    /// Compares a slot's numbers with what comes next from its author.
    fn follow(&mut self, author: ChitchatId, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let missed = self.expected.get(&author).is_none_or(|expected| first > *expected);
        self.membership.spread().followed(&author, end, missed.then_some(first), clock::now());
        if let Some(expected) = self.expected.get_mut(&author) {
            let missed = first > *expected;
            *expected = end.max(*expected);
            if missed {
                self.gap(Some(&author), "missed");
            }
            return;
        }
        if self.expected.len() >= MAX_AUTHORS {
            let members = Arc::clone(&self.membership.members().borrow());
            self.expected.retain(|id, _| members.nodes.iter().any(|member| member.node.as_str() == &*id.node_id));
        }
        if first > 0 {
            self.gap(Some(&author), "first contact");
        }
        if self.expected.len() < MAX_AUTHORS {
            self.expected.insert(author, end);
        }
    }

    fn gap(&self, author: Option<&ChitchatId>, reason: &'static str) {
        Metrics::count(&self.metrics.hot_gaps, reason);
        let request = Request { with: author.map(|author| author.node_id.to_string()), reason: Reason::Gap };
        if self.repairs.try_send(request).is_err() {
            // The plan takes requests at once, so it has ended, or the machine is overwhelmed. That the tables differ is noticed
            // anyway.
            Metrics::count(&self.metrics.hot_gaps, "not asked for");
        }
    }

    fn refuse(&self, author: &ChitchatId, reason: &'static str, records: usize) {
        Metrics::count_many(&self.metrics.records_refused, reason, records as u64);
        if let Some(held_back) = self.refused.permit(Instant::now()) {
            tracing::warn!(author = %author.node_id, reason, held_back, "records of another node were refused: is it another build? `banmesh cluster status` shows the versions");
        }
    }
}
