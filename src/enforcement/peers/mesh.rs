//! Exchanges counters with the other nodes: sends the latest state of every key that changed, and takes theirs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::authors::Authors;
use super::pace::{self, Round, STEP};
use crate::cluster::{ReceivedStates, StateSender};
use banmesh_core::planted::{Fault, is_planted};
use banmesh_peers::counters::{Reader, State, Waiting, Wants};
use banmesh_peers::exchange::{self, Writer};

/// The most datagrams that are taken before other tasks have a turn. The counters are locked meanwhile.
const TAKEN: usize = 64;
/// At least this many keys are examined each second, and all within ten seconds.
const SWEEP: usize = 4096;
/// The keys that are examined before other tasks have a turn.
const SWEEP_STEP: usize = 2048;
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
    authors: Authors,
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sender: None, received: None, reader: None, known: Vec::new(), authors: Authors::default() }
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
                    self.sweep().await;
                    self.beat().await;
                    waits = true;
                }
                // The sender lives as long as the node.
                Ok(()) = changed.changed() => waits = true,
                received = next(&mut self.received) => self.take(received),
                () = tokio::time::sleep_until(due), if waits => {
                    let began = tokio::time::Instant::now();
                    waits = self.flush().await;
                    due = tokio::time::Instant::now() + pace::pause(interval, began.elapsed(), waits);
                }
            }
        }
    }

    /// Takes what arrived, as much as may be taken at once, so that the sums change once.
    fn take(&mut self, first: ReceivedStates) {
        let (shared, now) = (&self.shared, Instant::now());
        let mut counters = shared.counters();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(ReceivedStates { author, process, version, states }) = next {
            shared.metrics.datagrams_received.inc();
            taken += 1;
            let present = || self.sender.as_ref()?.process_of(&author);
            let version = self.authors.version(&author, process, version, present, now);
            let read = exchange::process(&states).and_then(|process| {
                let Some(version) = version else { return Ok(()) };
                let Some(origin) = counters.origin(&format!("{author}/{process}"), false, now) else {
                    shared.metrics.refused("too many processes");
                    return Ok(());
                };
                counters.heard(origin, now);
                let version = if is_planted(Fault::AcceptLateCounter) { shared.version() } else { version };
                exchange::read(&states, |table, key, values| {
                    counters.learn(&State { origin, table, key, values, version }, now);
                })
                .map(drop)
            });
            if let Err(error) = read {
                shared.metrics.refused("datagram");
                shared.complain(author.as_str(), &error);
            }
            if taken >= TAKEN {
                break;
            }
            next = self.received.as_mut().and_then(|received| received.try_recv().ok());
        }
        drop(counters);
        shared.wake();
    }

    /// Sends what waits, in steps. Returns whether more waits.
    async fn flush(&mut self) -> bool {
        let Some(reader) = self.reader else { return false };
        let Some(peers) = self.peers(reader) else { return false };
        let mut round = Round::new(peers.len());
        loop {
            let (datagrams, waiting) = self.step(reader);
            round.sent(datagrams.len());
            self.shared.metrics.datagrams_sent.inc_by((datagrams.len() * peers.len()) as u64);
            let Some(sender) = &mut self.sender else { return false };
            for datagram in &datagrams {
                sender.send(&peers, datagram).await;
            }
            if !round.goes_on(waiting) {
                return !waiting.is_empty();
            }
            tokio::task::yield_now().await;
        }
    }

    /// The nodes to which counters go. If one of them is new, everything is sent to all of them again. `None` if there is no other node.
    fn peers(&mut self, reader: Reader) -> Option<Vec<(u64, SocketAddr)>> {
        let peers = self.sender.as_ref()?.peers();
        let mut counters = self.shared.counters();
        if peers.iter().any(|(process, _)| !self.known.contains(process)) {
            counters.send_everything(reader);
        }
        self.known = peers.iter().map(|(process, _)| *process).collect();
        if peers.is_empty() {
            // A node that comes is sent everything, so nothing needs to wait for it.
            counters.discard(reader);
            return None;
        }
        Some(peers)
    }

    /// The datagrams of one step, and what waits after it.
    fn step(&self, reader: Reader) -> (Vec<Vec<u8>>, Waiting) {
        let Some(room) = self.sender.as_ref().map(StateSender::room) else { return Default::default() };
        let mut counters = self.shared.counters();
        let mut places = counters.take(reader, STEP);
        // Fewer definitions are needed then.
        places.sort_by(|a, b| counters.key(*a).map(|key| &key.table).cmp(&counters.key(*b).map(|key| &key.table)));
        let (now, mut values) = (Instant::now(), Vec::new());
        let mut writers: BTreeMap<Arc<str>, Writer> = BTreeMap::new();
        for place in places {
            counters.local_states_at(place, now, &mut values, |process, table, key, values| {
                let writer = match writers.get_mut(process) {
                    Some(writer) => writer,
                    None => writers.entry(Arc::clone(process)).or_insert(Writer::new(process, room)),
                };
                if !writer.push(table, &key.key, values) {
                    self.shared.metrics.refused("too long");
                }
            });
        }
        (writers.into_values().flat_map(Writer::take).collect(), counters.waiting(reader))
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

    async fn sweep(&mut self) {
        let now = Instant::now();
        let keys = self.shared.counters().len();
        let mut left = SWEEP.max(keys / 10).min(keys);
        // Without keys, too: it also notices silent processes.
        while !is_planted(Fault::RepeatNothing) {
            let step = left.min(SWEEP_STEP);
            self.shared.counters().sweep(now, step);
            left -= step;
            if left == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let counters = self.shared.counters();
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
