//! Changes that wait to be sent to one event stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::decisions::batch::Batch;
use banmesh_core::ledger::Change;

/// Bytes that a change counts as. An event is about as long, and a change in memory is not longer.
const CHANGE: usize = 512;
const _: () = assert!(size_of::<Change>() <= CHANGE);
/// The most bytes of one backlog.
const PER_STREAM: usize = 2 * 1024 * 1024;
/// The most bytes of all backlogs.
const IN_ALL: usize = 64 * 1024 * 1024;

/// What all event streams share; clones share it too.
#[derive(Clone, Debug, Default)]
pub struct Events {
    used: Arc<AtomicUsize>,
    lost: Counter,
}

impl Events {
    /// Registers the counter.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Batches of changes that event streams lost because their clients read too slowly";
        registry.register("banmesh_api_events_lost", help, self.lost.clone());
    }

    /// Reserves `bytes`; `false` if all backlogs together would be too long.
    fn reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= IN_ALL);
        self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A batch whose bytes are reserved until this is dropped.
#[derive(Debug)]
pub struct Held {
    batch: Arc<Batch>,
    bytes: usize,
    events: Events,
}

impl Held {
    /// The batch.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.events.release(self.bytes);
    }
}

/// What a stream sends next.
#[derive(Debug)]
pub enum Next {
    /// The changes of a batch.
    Batch(Held),
    /// That this many batches are lost.
    Lost(u64),
    /// Nothing more: the store has ended.
    Closed,
}

/// The backlog of one stream.
#[derive(Debug)]
pub struct Backlog {
    events: Events,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Held>,
    bytes: usize,
    /// The batches before those that wait.
    lost: u64,
    closed: bool,
}

impl Backlog {
    /// An empty backlog.
    pub fn new(events: Events) -> Self {
        Self { events, waiting: Mutex::default(), changed: Notify::new() }
    }

    /// Adds a batch. The oldest ones make room for it and are lost.
    pub fn add(&self, batch: Arc<Batch>) {
        let bytes = batch.changes.len() * CHANGE;
        let mut waiting = self.waiting.lock();
        let mut lost = 0;
        while waiting.bytes + bytes > PER_STREAM || !self.events.reserve(bytes) {
            let Some(oldest) = waiting.batches.pop_front() else {
                drop(waiting);
                return self.lose(lost + 1);
            };
            waiting.bytes -= oldest.bytes;
            lost += 1;
        }
        waiting.bytes += bytes;
        waiting.lost += lost;
        waiting.batches.push_back(Held { batch, bytes, events: self.events.clone() });
        drop(waiting);
        self.events.lost.inc_by(lost);
        self.changed.notify_one();
    }

    /// Loses `batches` and those that wait.
    pub fn lose(&self, batches: u64) {
        let mut waiting = self.waiting.lock();
        let all = batches + waiting.batches.len() as u64;
        waiting.batches.clear();
        waiting.bytes = 0;
        waiting.lost += all;
        drop(waiting);
        self.events.lost.inc_by(all);
        self.changed.notify_one();
    }

    /// Ends the stream after what waits.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for what to send next.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<Next> {
        let mut waiting = self.waiting.lock();
        if waiting.lost > 0 {
            return Some(Next::Lost(std::mem::take(&mut waiting.lost)));
        }
        if let Some(held) = waiting.batches.pop_front() {
            waiting.bytes -= held.bytes;
            return Some(Next::Batch(held));
        }
        waiting.closed.then_some(Next::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::batch::Source;
    use banmesh_core::ban::{By, Cause};
    use banmesh_core::hlc::Hlc;
    use banmesh_core::ledger::{BanTerms, Ledger, Limits};
    use banmesh_types::time::{Expiry, UnixMillis};
    use std::time::Duration;

    fn batch(changes: usize) -> Arc<Batch> {
        let day = Duration::from_secs(86_400);
        let limits = Limits { max_bans: 1, max_clock_drift: day, max_ban_time: day };
        let mut ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let cause = Cause::new(By::Operator("ann".into()), "");
        let terms = BanTerms::new(Expiry::NEVER, day);
        let change = ledger.ban("192.0.2.1".parse().unwrap(), terms, cause, UnixMillis(1_800_000_000_000)).unwrap();
        Arc::new(Batch { source: Source::Local, changes: vec![change; changes] })
    }

    #[tokio::test]
    async fn a_backlog_holds_a_bounded_number_of_bytes() {
        let events = Events::default();
        let backlog = Backlog::new(events.clone());
        let many = batch(256);
        for _ in 0..1000 {
            backlog.add(Arc::clone(&many));
            assert!(events.used.load(Ordering::Relaxed) <= PER_STREAM);
        }
        let Next::Lost(lost) = backlog.next().await else { panic!("it holds everything") };
        let kept = (PER_STREAM / CHANGE / 256) as u64;
        assert_eq!((lost, events.lost.get()), (1000 - kept, 1000 - kept));
        for _ in 0..kept {
            assert!(matches!(backlog.next().await, Next::Batch(_)), "the newest are kept");
        }
        assert_eq!(events.used.load(Ordering::Relaxed), 0);
        backlog.add(batch(PER_STREAM / CHANGE + 1));
        assert!(matches!(backlog.next().await, Next::Lost(1)), "one batch that is too long");
        backlog.close();
        assert!(matches!(backlog.next().await, Next::Closed));
    }

    #[test]
    fn all_backlogs_together_are_bounded() {
        let events = Events::default();
        let full = batch(PER_STREAM / CHANGE);
        let backlogs: Vec<Backlog> = (0..100).map(|_| Backlog::new(events.clone())).collect();
        backlogs.iter().for_each(|backlog| backlog.add(Arc::clone(&full)));
        assert_eq!(events.used.load(Ordering::Relaxed), IN_ALL);
        assert_eq!(events.lost.get(), 100 - (IN_ALL / PER_STREAM) as u64);
        drop(backlogs);
        assert_eq!(events.used.load(Ordering::Relaxed), 0);
    }
}
