//! Exchanges counters with the other nodes: sends the latest state of every key that changed, and takes theirs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::cluster::{ReceivedStates, StateSender};
use banmesh_peers::counters::{Reader, State, Wants};
use banmesh_peers::exchange::{self, Writer};

/// The most keys that are sent at once, so that a burst does not overflow the receivers' buffers. Further ones wait for the next interval.
const MAX_KEYS: usize = 1024;
/// The shortest time between two rounds.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// At least this many keys are examined each second, and all within ten seconds.
const SWEEP: usize = 4096;
/// After this silence a HAProxy of another node counts as out of date.
const STALE: Duration = Duration::from_secs(5);
/// A HAProxy that has been silent for this long has probably been taken away.
const GONE: Duration = Duration::from_secs(15 * 60);

/// The exchange with the other nodes. Also runs in a node without a cluster, to remove what has expired.
#[derive(Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
    sender: Option<StateSender>,
    received: Option<mpsc::Receiver<ReceivedStates>>,
    reader: Option<Reader>,
    /// The processes of the nodes that have been sent everything.
    known: Vec<u64>,
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sender: None, received: None, reader: None, known: Vec::new() }
    }

    /// Exchanges with the nodes of a cluster.
    #[must_use]
    pub fn with(mut self, sender: StateSender, received: Option<mpsc::Receiver<ReceivedStates>>) -> Self {
        self.sender = Some(sender);
        self.received = received;
        self
    }

    /// Exchanges until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        if self.sender.is_some() && self.reader.is_none() {
            self.reader = Some(self.shared.counters().subscribe(Wants::Local));
        }
        let _ = shutdown.run_until_cancelled(self.exchange()).await;
    }

    async fn exchange(&mut self) {
        let mut changed = self.shared.changed.subscribe();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interval = self.shared.config.interval;
        let (mut due, mut waits) = (tokio::time::Instant::now(), false);
        loop {
            tokio::select! {
                _ = second.tick() => {
                    self.sweep();
                    self.beat().await;
                    waits = true;
                }
                // The sender lives as long as the node.
                Ok(()) = changed.changed() => waits = true,
                received = next(&mut self.received) => self.take(received),
                () = tokio::time::sleep_until(due), if waits => {
                    waits = self.flush().await;
                    // What does not fit into one round waits no longer than it must.
                    let pause = if waits { interval.min(MIN_PAUSE) } else { interval };
                    due = tokio::time::Instant::now() + pause;
                }
            }
        }
    }

    /// Takes what arrived, all of it, so that the sums change once.
    fn take(&mut self, first: ReceivedStates) {
        let (shared, now) = (&self.shared, Instant::now());
        let mut counters = shared.counters();
        let mut next = Some(first);
        while let Some(ReceivedStates { author, version, states }) = next {
            shared.metrics.datagrams_received.inc();
            let mut origin = None;
            // The name comes first, and the states need it.
            let name = exchange::read(&states, |_, _, _| {}).map(|process| format!("{author}/{process}"));
            match name {
                Ok(name) => {
                    origin = counters.origin(&name, false, now);
                    match origin {
                        Some(origin) => counters.heard(origin, now),
                        None => shared.metrics.refused("too many processes"),
                    }
                }
                Err(error) => {
                    shared.metrics.refused("datagram");
                    shared.complain(author.as_str(), &error);
                }
            }
            if let Some(origin) = origin {
                // Cannot fail: it was read before.
                let _ = exchange::read(&states, |table, key, values| {
                    counters.learn(&State { origin, table, key, values, version }, now);
                });
            }
            next = self.received.as_mut().and_then(|received| received.try_recv().ok());
        }
        drop(counters);
        shared.wake();
    }

    /// Sends what changed. Returns whether more waits.
    async fn flush(&mut self) -> bool {
        let (Some(sender), Some(reader)) = (&mut self.sender, self.reader) else { return false };
        let peers = sender.peers();
        let (datagrams, waiting) = {
            let mut counters = self.shared.counters();
            let is_new = peers.iter().any(|(process, _)| !self.known.contains(process));
            self.known = peers.iter().map(|(process, _)| *process).collect();
            if is_new {
                counters.send_everything(reader);
            }
            let mut keys = counters.changed(reader, MAX_KEYS);
            if peers.is_empty() {
                return false;
            }
            // Fewer definitions are needed then.
            keys.sort_by(|a, b| a.table.cmp(&b.table));
            let now = Instant::now();
            let mut writers: BTreeMap<Arc<str>, Writer> = BTreeMap::new();
            for key in keys {
                for (process, table, values) in counters.local_states(&key, now) {
                    let writer =
                        writers.entry(process).or_insert_with_key(|process| Writer::new(process, sender.room()));
                    if !writer.push(&table, &key.key, &values) {
                        self.shared.metrics.refused("too long");
                    }
                }
            }
            let datagrams: Vec<Vec<u8>> = writers.into_values().flat_map(Writer::take).collect();
            (datagrams, counters.waiting(reader) > 0)
        };
        for datagram in &datagrams {
            self.shared.metrics.datagrams_sent.inc_by(peers.len() as u64);
            sender.send(&peers, datagram).await;
        }
        waiting
    }

    /// Says that the HAProxies of this node are there, so that silence is noticed.
    async fn beat(&mut self) {
        let Some(sender) = &mut self.sender else { return };
        let peers = sender.peers();
        for name in self.shared.sessions.connected() {
            for datagram in Writer::new(&name, sender.room()).take() {
                sender.send(&peers, &datagram).await;
            }
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let mut counters = self.shared.counters();
        let budget = SWEEP.max(counters.len() / 10);
        counters.sweep(now, budget);
        let metrics = &self.shared.metrics;
        metrics.keys.set(i64::try_from(counters.len()).unwrap_or(i64::MAX));
        metrics.dropped.inc_by(counters.dropped().saturating_sub(metrics.dropped.get()));
        let stale = |(name, silent): (&str, Duration)| (STALE <= silent && silent < GONE).then(|| name.to_owned());
        let stale: Vec<String> = counters.remote(now).filter_map(stale).collect();
        drop(counters);
        metrics.stale.set(i64::try_from(stale.len()).unwrap_or(i64::MAX));
        self.shared.sessions.set_stale_nodes(stale);
        self.shared.wake();
    }
}

/// What arrives next; never without a cluster.
async fn next(received: &mut Option<mpsc::Receiver<ReceivedStates>>) -> ReceivedStates {
    loop {
        match received {
            Some(channel) => match channel.recv().await {
                Some(states) => return states,
                // The cluster has ended.
                None => *received = None,
            },
            None => std::future::pending().await,
        }
    }
}
