//! Publishes local changes in the recent-changes log.
//!
//! A quiet node flushes at once. A busy node collects changes for as long as [`FlushPace`] says. Every slot is sent to each live peer
//! and again until it is acknowledged ([`Delivery`] decides how). Earlier builds fetch slots from this node's gossip state, of which
//! they are notified by a gossip exchange.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cipher::random;
use super::inbox::{Inbox, ReceivedAck};
use super::membership::Membership;
use super::metrics::Metrics;
use super::repair::{Handshake, Request};
use super::settings::ClusterSettings;
use super::stream::{Ended, Streams};
use super::transport::EncryptedTransport;
use crate::clock;
use crate::decisions::batch::{Batch, Source};
use crate::net::throttle::LogThrottle;
use banmesh_cluster::datagram::{self, Kind, SlotMessage};
use banmesh_cluster::delivery::{Channel, Delivery, Peer, Unfollowed};
use banmesh_cluster::members::{Member, Members};
use banmesh_cluster::outbox::{ATTEMPTS, BANS, Outbox};
use banmesh_cluster::pace::FlushPace;
use banmesh_cluster::repair::plan::Reason;
use banmesh_cluster::replication_lag::Position;
use banmesh_cluster::timers::Timers;
use banmesh_core::attempts::SlotCount;
use banmesh_core::evidence::EvidenceRecord;
use banmesh_core::node::NodeId;
use banmesh_core::wire::Versions;

/// Peers of earlier builds that are notified after a flush at most. The others get the changes by ordinary gossip.
const MAX_NOTIFIED: usize = 64;

pub(super) struct Publisher {
    membership: Arc<Membership>,
    timers: Timers,
    metrics: Metrics,
    versions: Versions,
    outbox: Outbox,
    pace: FlushPace,
    node: NodeId,
    slot_len: usize,
    delivery: Delivery,
    transport: EncryptedTransport,
    streams: Streams,
    acknowledgements: mpsc::Receiver<ReceivedAck>,
    members: watch::Receiver<Arc<Members>>,
    unfollowed: watch::Sender<Arc<Vec<Unfollowed>>>,
    repairs: mpsc::Sender<Request>,
    /// Peers that are not served directly.
    earlier: usize,
    throttle: LogThrottle,
}

/// What the publisher uses to send.
pub(super) struct Outgoing {
    pub handshake: Handshake,
    pub inbox: Inbox,
    pub acknowledgements: mpsc::Receiver<ReceivedAck>,
    pub unfollowed: watch::Sender<Arc<Vec<Unfollowed>>>,
    pub repairs: mpsc::Sender<Request>,
}

impl Publisher {
    pub(super) fn new(
        membership: Arc<Membership>,
        settings: &ClusterSettings,
        outgoing: Outgoing,
        metrics: Metrics,
    ) -> Self {
        let ClusterSettings { timers, generation, wire, max_datagram, .. } = *settings;
        let Outgoing { handshake, inbox, acknowledgements, unfollowed, repairs } = outgoing;
        let slot_len = datagram::slot_room(max_datagram, &settings.node);
        Self {
            timers,
            metrics,
            versions: wire.versions,
            outbox: Outbox::new(generation, wire, slot_len),
            pace: FlushPace::default(),
            node: settings.node.clone(),
            slot_len,
            delivery: Delivery::new(timers.gossip_interval / 4, timers.failure_timeout * 2),
            transport: membership.transport(),
            streams: Streams::new(Arc::clone(&settings.network), handshake, inbox),
            acknowledgements,
            members: membership.members(),
            unfollowed,
            repairs,
            earlier: 0,
            throttle: LogThrottle::new(std::time::Duration::from_secs(60)),
            membership,
        }
    }

    /// Publishes local changes and counts until `shutdown`, and then those that still wait, for up to [`Timers::farewell`].
    /// Returns the sequence number after the last change.
    pub(super) async fn serve(
        &mut self,
        mut changes: broadcast::Receiver<Arc<Batch>>,
        (mut counts, mut evidence): (mpsc::Receiver<SlotCount>, mpsc::Receiver<EvidenceRecord>),
        shutdown: CancellationToken,
    ) -> u64 {
        let mut due = Instant::now();
        let (mut counting, mut recording, mut idle) = (true, true, true);
        loop {
            let waiting = !self.outbox.is_empty();
            if !waiting {
                idle = true;
            } else if std::mem::take(&mut idle) {
                // A flush that was due while there was nothing to send is not late.
                due = due.max(Instant::now());
            }
            let again = self.delivery.next_wakeup();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ack) = self.acknowledgements.recv() => self.acknowledged(ack).await,
                // Once per gossip interval.
                Ok(()) = self.members.changed() => self.update_peers().await,
                () = until(due, self.outbox.pending() > 0), if waiting => {
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
                record = evidence.recv(), if recording => match record {
                    Some(record) => {
                        if !self.outbox.add_evidence(record) {
                            Metrics::count(&self.metrics.recent_changes_gaps, "more evidence than waits");
                        }
                    }
                    None => recording = false,
                },
                () = at(again), if again.is_some() => self.deliver().await,
                ended = self.streams.ended() => self.stream_ended(&ended),
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
            self.deliver_until(Some(due.min(end))).await;
        }
        self.outbox.end()
    }

    /// Sends again what is not acknowledged, and never returns.
    pub(super) async fn keep_delivering(&mut self) {
        self.deliver_until(None).await;
    }

    /// Sends again what is not acknowledged, until `end`. Cancelling it in the middle would lose what was about to be sent.
    async fn deliver_until(&mut self, end: Option<Instant>) {
        loop {
            let again = self.delivery.next_wakeup();
            tokio::select! {
                () = at(end.map(Instant::into_std)), if end.is_some() => return,
                Some(ack) = self.acknowledgements.recv() => self.acknowledged(ack).await,
                Ok(()) = self.members.changed() => self.update_peers().await,
                () = at(again), if again.is_some() => self.deliver().await,
                ended = self.streams.ended() => self.stream_ended(&ended),
            }
        }
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
        // The other nodes of the cluster send their changes themselves.
        if batch.source == Source::Remote {
            return;
        }
        let changes = batch.changes.iter().map(|change| (change.target, change.after.clone()));
        if !self.outbox.queue(changes) {
            self.lose();
            Metrics::count(&self.metrics.recent_changes_gaps, "more than the ring holds");
        }
    }

    /// The store published `lost` batches that were not received in time. One skipped number is enough for the others to repair.
    fn skip(&mut self, lost: u64) {
        self.outbox.skip(lost);
        self.lose();
        Metrics::count(&self.metrics.recent_changes_gaps, "behind the store");
    }

    /// Publishes that changes were not published.
    fn lose(&mut self) {
        self.delivery.publish(BANS, Vec::new(), self.outbox.flushed(), false);
    }

    /// Writes what fits into the log, and returns when the next flush is due.
    async fn flush(&mut self, due: Instant) -> Instant {
        if self.delivery.is_congested() {
            return Instant::now() + self.timers.min_pace;
        }
        let version = self.membership.members().borrow().version_to_write(self.versions);
        let flush = self.outbox.flush(version);
        let pending = self.outbox.pending();
        self.metrics.recent_changes_sent.inc_by(flush.entries as u64);
        self.metrics.recent_changes_waiting.set(i64::try_from(pending).unwrap_or(i64::MAX));
        if flush.bans.is_empty() && flush.attempts.is_empty() {
            return due;
        }
        if flush.entries > 0 {
            self.membership.lag().sent(self.outbox.flushed(), clock::now());
        }
        self.metrics.recent_changes_flushes.inc();
        if self.earlier > 0 {
            let slots = flush.bans.iter().chain(&flush.attempts);
            let pairs: Vec<(String, String)> = slots.map(|slot| (slot.key.clone(), slot.value())).collect();
            self.membership.write(pairs).await;
            self.notify_earlier();
        }
        for (log, slots) in [(BANS, flush.bans), (ATTEMPTS, flush.attempts)] {
            for slot in slots {
                let too_long = slot.bytes.len() > self.slot_len;
                // The sequence numbers are those of bans.
                let end = if log == BANS { slot.end } else { self.outbox.flushed() };
                self.delivery.publish(log, slot.bytes, end, too_long);
            }
        }
        self.deliver().await;
        let now = Instant::now();
        now + self.pace.after(
            now.saturating_duration_since(due),
            pending > 0,
            self.delivery.peers(),
            self.earlier,
            &self.timers,
        )
    }

    /// Sends what is due.
    async fn deliver(&mut self) {
        for send in self.delivery.due(Instant::now().into_std()) {
            let slot = &send.slot;
            let head = SlotMessage::encode_head(&self.node, send.oldest, slot.number, slot.log);
            match send.channel {
                Channel::Datagram => self.transport.send(send.address, Kind::Slot, &[&head, &slot.bytes]).await,
                Channel::Stream => {
                    self.metrics.slots_by_tcp.inc();
                    self.streams.send(&send.node, send.address, &[&head, &slot.bytes]);
                }
            }
        }
    }

    async fn acknowledged(&mut self, ReceivedAck { process, ack, channel }: ReceivedAck) {
        if ack.author != self.transport.process() {
            return;
        }
        let Some(received) = self.delivery.acknowledged(process, &ack, channel) else { return };
        let position = Position { next: received.next, missed: received.missed, at: ack.at };
        self.membership.acknowledged_directly(ack.node, position);
        // The window of the peer may have room again.
        if self.delivery.has_unsent() {
            self.deliver().await;
        }
    }

    async fn update_peers(&mut self) {
        let members = Arc::clone(&self.members.borrow_and_update());
        let direct = self.membership.direct_peers();
        let peer = |(node, process): (&NodeId, &u64)| {
            let address = members.live_peer(node.as_str())?.address;
            Some(Peer { node: node.clone(), process: *process, address })
        };
        let peers: Vec<Peer> = direct.iter().filter_map(peer).collect();
        // Until its keys have arrived, a member is not known to be of an earlier build.
        let is_earlier = |member: &&Member| !member.version.is_empty() && !direct.contains_key(&member.node);
        self.earlier = members.live_peers().filter(is_earlier).count();
        self.delivery.update_peers(peers, Instant::now().into_std());
        self.deliver().await;
        self.report();
    }

    /// Shows which peers datagrams do not reach.
    fn report(&self) {
        let unfollowed = self.delivery.unfollowed(Instant::now().into_std());
        self.metrics.unfollowed_nodes.set(i64::try_from(unfollowed.len()).unwrap_or(i64::MAX));
        if let Some(one) = unfollowed.first()
            && let Some(held_back) = self.throttle.permit(std::time::Instant::now())
        {
            tracing::warn!(
                node = %one.node, address = %one.address, by_tcp = one.by_tcp, nodes = unfollowed.len(), held_back,
                "a live node does not receive this node's datagrams, so it gets changes by TCP: allow UDP between the two in both \
                 directions, or lower cluster.max_datagram if only long datagrams are lost"
            );
        }
        for one in unfollowed.iter().filter(|one| !one.by_tcp) {
            // Requests for the same peer are merged, and a failed one is logged with its cause.
            let _ = self.repairs.try_send(Request { with: Some(one.node.to_string()), reason: Reason::Gap });
        }
        self.unfollowed.send_if_modified(|before| {
            let same = **before == unfollowed;
            *before = Arc::new(unfollowed);
            !same
        });
    }

    fn stream_ended(&mut self, Ended { node, error }: &Ended) {
        let Some(error) = error else { return };
        tracing::debug!(%node, %error, "a connection for recent changes failed; trying again");
        self.delivery.stream_failed(node);
    }

    /// Notifies the live peers that fetch slots from the gossip state.
    fn notify_earlier(&self) {
        let members = Arc::clone(&self.members.borrow());
        let peers: Vec<_> = members
            .live_peers()
            .filter(|member| !self.delivery.serves(&member.node))
            .map(|member| member.address)
            .collect();
        let from = if peers.len() > MAX_NOTIFIED { usize::from(random::<1>().map_or(0, |[b]| b)) } else { 0 };
        let count = peers.len().min(MAX_NOTIFIED);
        for address in peers.iter().cycle().skip(from % peers.len().max(1)).take(count) {
            self.membership.gossip_with(*address);
        }
    }
}

/// Waits until `due`. With `changes` to send, does not sleep if that has passed: the shortest sleep is 1 to 2 ms, by which every single
/// ban would be later. Counts alone are worth that: the ban to which they lead can go with them.
async fn until(due: Instant, changes: bool) {
    if !changes || due > Instant::now() {
        tokio::time::sleep_until(due).await;
    }
}

/// Waits until `when`; returns at once without one.
async fn at(when: Option<std::time::Instant>) {
    if let Some(when) = when {
        tokio::time::sleep_until(when.into()).await;
    }
}
