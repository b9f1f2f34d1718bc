//! Publishes local changes in the recent-changes log.
//!
//! A quiet node flushes at once. A busy node collects changes for as long as [`FlushPace`] says. After every flush, the live
//! peers are notified by a gossip exchange.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cipher::random;
use super::membership::Membership;
use super::metrics::Metrics;
use super::settings::ClusterSettings;
use crate::clock;
use crate::decisions::batch::{Batch, Source};
use banmesh_cluster::outbox::Outbox;
use banmesh_cluster::pace::FlushPace;
use banmesh_cluster::timers::Timers;
use banmesh_core::attempts::SlotCount;
use banmesh_core::wire::Versions;

/// Peers that are notified after a flush at most. The others get the changes by ordinary gossip.
const MAX_NOTIFIED: usize = 64;

pub(super) struct Publisher {
    membership: Arc<Membership>,
    timers: Timers,
    metrics: Metrics,
    versions: Versions,
    outbox: Outbox,
    pace: FlushPace,
}

impl Publisher {
    pub(super) fn new(membership: Arc<Membership>, settings: &ClusterSettings, metrics: Metrics) -> Self {
        let ClusterSettings { timers, generation, wire, .. } = *settings;
        Self {
            membership,
            timers,
            metrics,
            versions: wire.versions,
            outbox: Outbox::new(generation, wire),
            pace: FlushPace::default(),
        }
    }

    /// Publishes local changes and counts until `shutdown`, and then those that still wait, for up to [`Timers::farewell`].
    /// Returns the sequence number after the last change.
    pub(super) async fn serve(
        mut self,
        mut changes: broadcast::Receiver<Arc<Batch>>,
        mut counts: mpsc::Receiver<SlotCount>,
        shutdown: CancellationToken,
    ) -> u64 {
        let mut due = Instant::now();
        let (mut counting, mut idle) = (true, true);
        loop {
            let waiting = !self.outbox.is_empty();
            if !waiting {
                idle = true;
            } else if std::mem::take(&mut idle) {
                // A flush that was due while there was nothing to send is not late.
                due = due.max(Instant::now());
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep_until(due), if waiting => {
                    self.drain(&mut changes);
                    due = self.flush(due).await;
                }
                received = changes.recv() => match received {
                    Ok(batch) => self.queue(&batch),
                    Err(broadcast::error::RecvError::Lagged(lost)) => self.skip(lost),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                count = counts.recv(), if counting => match count {
                    Some(count) => self.outbox.count(count),
                    None => counting = false,
                },
            }
        }
        self.drain(&mut changes);
        let end = Instant::now() + self.timers.farewell;
        let mut due = Instant::now();
        loop {
            due = self.flush(due).await;
            if self.outbox.pending() == 0 || Instant::now() >= end {
                break;
            }
            tokio::time::sleep_until(due.min(end)).await;
        }
        self.outbox.end()
    }

    /// Queues all changes that the store has published so far.
    fn drain(&mut self, changes: &mut broadcast::Receiver<Arc<Batch>>) {
        loop {
            match changes.try_recv() {
                Ok(batch) => self.queue(&batch),
                Err(broadcast::error::TryRecvError::Lagged(lost)) => self.skip(lost),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return,
            }
        }
    }

    fn queue(&mut self, batch: &Batch) {
        if batch.source != Source::Local {
            return;
        }
        let changes = batch.changes.iter().map(|change| (change.target, change.after.clone()));
        if !self.outbox.queue(changes) {
            Metrics::count(&self.metrics.recent_changes_gaps, "more than the ring holds");
        }
    }

    /// The store published `lost` batches that were not received in time. One skipped number is enough for the others to repair.
    fn skip(&mut self, lost: u64) {
        self.outbox.skip(lost);
        Metrics::count(&self.metrics.recent_changes_gaps, "behind the store");
    }

    /// Writes what fits into the log, and returns when the next flush is due.
    async fn flush(&mut self, due: Instant) -> Instant {
        let version = self.membership.members().borrow().version_to_write(self.versions);
        let flush = self.outbox.flush(version);
        let pending = self.outbox.pending();
        self.metrics.recent_changes_sent.inc_by(flush.entries as u64);
        self.metrics.recent_changes_waiting.set(i64::try_from(pending).unwrap_or(i64::MAX));
        if flush.keys.is_empty() {
            return due;
        }
        if flush.entries > 0 {
            self.membership.lag().sent(self.outbox.flushed(), clock::now());
        }
        self.metrics.recent_changes_flushes.inc();
        self.membership.write(flush.keys).await;
        let peers = self.notify();
        let now = Instant::now();
        now + self.pace.after(now.saturating_duration_since(due), pending > 0, peers, &self.timers)
    }

    /// Notifies the live peers; returns how many.
    fn notify(&self) -> usize {
        let members = Arc::clone(&self.membership.members().borrow());
        let peers: Vec<_> = members.live_peers().map(|member| member.address).collect();
        let from = if peers.len() > MAX_NOTIFIED { usize::from(random::<1>().map_or(0, |[b]| b)) } else { 0 };
        let count = peers.len().min(MAX_NOTIFIED);
        for address in peers.iter().cycle().skip(from % peers.len().max(1)).take(count) {
            self.membership.gossip_with(*address);
        }
        count
    }
}
