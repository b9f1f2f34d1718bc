//! The hot path: what changes here is in the other nodes' tables a moment later.
//!
//! A quiet node flushes at once; a busy one collects for as long as its peers and its machine need. After a flush every
//! peer is nudged to exchange news.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::membership::{HOT_PREFIX, Membership};
use super::metrics::Metrics;
use super::ring::Ring;
use super::settings::{ClusterSettings, Timers};
use crate::clock;
use crate::decisions::batch::{Batch, Source};
use banmesh_core::attempts::{Key, SlotCount};
use banmesh_core::wire::{Attempts, Record, Versions};

/// Names the slots of bans, after the prefix.
pub(super) const BANS: char = 'b';
/// Names the slots of attempts.
pub(super) const ATTEMPTS: char = 'a';

/// More peers than this are not all nudged: chitchat itself brings the news to the rest.
const MAX_NUDGED: usize = 64;
/// So many records wait at most; more are left to repair.
const MAX_PENDING: usize = 50_000;

/// Publishes what this node decides.
pub(super) struct Publisher {
    membership: Arc<Membership>,
    timers: Timers,
    generation: u64,
    metrics: Metrics,
    versions: Versions,
    bans: Ring,
    attempts: Ring,
    pending: VecDeque<Record>,
    counts: HashMap<(Key, u64), u32, foldhash::fast::RandomState>,
    pace: Pace,
}

impl Publisher {
    pub(super) fn new(membership: Arc<Membership>, settings: &ClusterSettings, metrics: Metrics) -> Self {
        let ClusterSettings { timers, generation, wire, .. } = *settings;
        Self {
            membership,
            timers,
            generation,
            metrics,
            versions: wire.versions,
            bans: Ring::new(&format!("{HOT_PREFIX}{BANS}"), wire),
            attempts: Ring::new(&format!("{HOT_PREFIX}{ATTEMPTS}"), wire),
            pending: VecDeque::new(),
            counts: HashMap::default(),
            pace: Pace::default(),
        }
    }

    /// Publishes local changes and counts until `shutdown`, and then what is waiting, for as long as [`Timers::farewell`] at
    /// most. Returns the number after the last change.
    pub(super) async fn serve(
        mut self,
        mut changes: broadcast::Receiver<Arc<Batch>>,
        mut counts: mpsc::Receiver<SlotCount>,
        shutdown: CancellationToken,
    ) -> u64 {
        let mut due = Instant::now();
        let (mut counting, mut idle) = (true, true);
        loop {
            let waiting = !self.pending.is_empty() || !self.counts.is_empty();
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
                    Ok(batch) => self.add(&batch),
                    Err(broadcast::error::RecvError::Lagged(lost)) => self.lose(lost, "behind the store"),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                count = counts.recv(), if counting => match count {
                    Some(count) => self.count(count),
                    None => counting = false,
                },
            }
        }
        self.drain(&mut changes);
        let end = Instant::now() + self.timers.farewell;
        let mut due = Instant::now();
        loop {
            due = self.flush(due).await;
            if self.pending.is_empty() || Instant::now() >= end {
                break;
            }
            tokio::time::sleep_until(due.min(end)).await;
        }
        self.bans.next() + self.pending.len() as u64
    }

    /// Takes what has changed so far.
    fn drain(&mut self, changes: &mut broadcast::Receiver<Arc<Batch>>) {
        loop {
            match changes.try_recv() {
                Ok(batch) => self.add(&batch),
                Err(broadcast::error::TryRecvError::Lagged(lost)) => self.lose(lost, "behind the store"),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return,
            }
        }
    }

    fn add(&mut self, batch: &Batch) {
        if batch.source != Source::Local {
            return;
        }
        for change in &batch.changes {
            self.pending.push_back(Record::Ban { target: change.target, entry: change.after.clone() });
        }
        if self.pending.len() > MAX_PENDING {
            let lost = self.pending.len() as u64;
            self.pending.clear();
            self.lose(lost, "more than the ring holds");
        }
    }

    /// `lost` records will not be sent: the others see the gap and repair.
    fn lose(&mut self, lost: u64, reason: &'static str) {
        self.bans.skip(lost);
        Metrics::count(&self.metrics.hot_gaps, reason);
    }

    fn count(&mut self, SlotCount { key, slot, count }: SlotCount) {
        // A lost count delays a ban; it never breaks anything.
        if self.counts.len() < MAX_PENDING {
            self.counts.insert((key, slot), count);
        }
    }

    /// Writes what waits into the rings, as far as it fits, and returns when the next flush is due.
    async fn flush(&mut self, due: Instant) -> Instant {
        let before = self.pending.len();
        let version = self.membership.members().borrow().spoken(self.versions);
        self.bans.set_version(version);
        self.attempts.set_version(version);
        let mut keys = self.bans.flush(&mut self.pending);
        self.metrics.hot_sent.inc_by((before - self.pending.len()) as u64);
        let generation = self.generation;
        let attempt =
            |((key, slot), count)| Record::Attempts(Attempts { generation, share: SlotCount { key, slot, count } });
        let mut attempts: VecDeque<Record> = self.counts.drain().map(attempt).collect();
        keys.extend(self.attempts.flush(&mut attempts));
        for record in attempts {
            if let Record::Attempts(Attempts { share, .. }) = record {
                self.count(share);
            }
        }
        self.metrics.hot_waiting.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
        if keys.is_empty() {
            return due;
        }
        if self.pending.len() < before {
            self.membership.spread().sent(self.bans.next(), clock::now());
        }
        self.metrics.hot_flushes.inc();
        self.membership.write(keys).await;
        let peers = self.nudge();
        let now = Instant::now();
        let full = !self.pending.is_empty();
        now + self.pace.after(now.saturating_duration_since(due), full, peers, &self.timers)
    }

    /// Nudges the live peers; returns how many.
    fn nudge(&self) -> usize {
        let members = Arc::clone(&self.membership.members().borrow());
        let peers: Vec<_> = members.live_peers().map(|member| member.address).collect();
        let from =
            if peers.len() > MAX_NUDGED { usize::from(super::cover::random::<1>().map_or(0, |[b]| b)) } else { 0 };
        for address in peers.iter().cycle().skip(from % peers.len().max(1)).take(peers.len().min(MAX_NUDGED)) {
            self.membership.nudge(*address);
        }
        peers.len().min(MAX_NUDGED)
    }
}

/// How long to collect before the next flush.
///
/// An exchange costs 50–100 µs of CPU at both ends however many records it carries: what saturates a node is exchanges. So
/// the time grows with the peers, and doubles while flushes come late because the machine is busy: but never so far that a flush
/// could not carry what has come up since the last one.
#[derive(Debug, Default)]
struct Pace {
    strain: u32,
}

impl Pace {
    const MAX_STRAIN: u32 = 2;

    fn after(&mut self, late: Duration, full: bool, peers: usize, timers: &Timers) -> Duration {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        let calm = timers.pace_per_peer.saturating_mul(peers).max(timers.min_pace);
        if full {
            self.strain = 0;
        } else if late > calm + Duration::from_millis(2) {
            self.strain = (self.strain + 1).min(Self::MAX_STRAIN);
        } else {
            self.strain = self.strain.saturating_sub(1);
        }
        calm.saturating_mul(1 << self.strain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::settings::Profile;

    #[test]
    fn the_pace_follows_peers_and_strain() {
        let timers = Timers::of(Profile::Lan);
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        assert_eq!(pace.after(ms(0), false, 2, &timers), ms(1));
        assert_eq!(pace.after(ms(0), false, 40, &timers), ms(20));
        assert_eq!(pace.after(ms(50), false, 40, &timers), ms(40));
        for _ in 0..10 {
            pace.after(ms(100), false, 40, &timers);
        }
        assert_eq!(pace.after(ms(100), false, 40, &timers), ms(80));
        assert_eq!(pace.after(ms(0), false, 40, &timers), ms(40));
        assert_eq!(pace.after(ms(100), true, 40, &timers), ms(20));
    }
}
