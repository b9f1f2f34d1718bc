//! The node's datagrams, encrypted and authenticated: chitchat's messages, slots of the recent-changes log, and acknowledgements.
//!
//! No datagram is longer than `cluster.max_datagram`. chitchat's messages are cut so that each datagram is useful alone
//! ([`banmesh_cluster::compact`]). Only builds before these datagrams get long messages in fragments.
//!
//! chitchat trusts every message that it receives, and some messages make it panic. Only messages that a node of this cluster
//! authenticated therefore reach it. All others are dropped, counted, and logged once a minute. Neither invalid datagrams nor an
//! interrupted network end the gossip.

mod exchange;
mod socket;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable as _};
use parking_lot::Mutex;

use super::cipher::FrameCipher;
use super::inbox::{Inbox, Readers, ReceivedAck, Reply};
use super::metrics::Metrics;
use crate::clock;
use crate::net::network::Datagrams;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::clock_offsets::ClockOffsets;
use banmesh_cluster::datagram::{self, Acknowledgement, Kind, SlotMessage, States};
use banmesh_cluster::delivery::Channel;
use banmesh_cluster::fragments::{Fragment, Reassembly};
use banmesh_cluster::known_members::{KnownMembers, MAX_MEMBERS};
use banmesh_cluster::receiver::{self, Receivers};
use banmesh_core::seal::replay::{Envelope, ReplayError, ReplayWindow};
use banmesh_core::seal::{OpenError, Purpose};
use banmesh_types::time::UnixMillis;
use exchange::Exchange;
use socket::EncryptedSocket;

/// Datagrams that are older than this, or from further in the future, are dropped: see [`ReplayWindow`]. Nodes whose clocks
/// differ by more cannot gossip.
pub const REPLAY_HORIZON: Duration = Duration::from_secs(15 * 60);

/// The transport for chitchat, which opens it again at every restart. All opened sockets share one UDP socket.
#[derive(Clone, Debug)]
pub struct EncryptedTransport {
    socket: Arc<dyn Datagrams>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cipher: Arc<FrameCipher>,
    metrics: Metrics,
    offsets: SharedOffsets,
    // Outlives the sockets that chitchat opens, so that a restart does not allow replays.
    replay: Mutex<ReplayWindow>,
    receivers: ArcSwap<Receivers>,
    readers: Readers,
    /// Nodes with which an exchange was requested.
    requested: Mutex<HashSet<SocketAddr>>,
    /// Of the nodes of [`EncryptedTransport::await_answers`], those that have not answered.
    unanswered: Mutex<HashSet<SocketAddr>>,
    inbox: Inbox,
    known: Mutex<KnownMembers>,
    throttle: LogThrottle,
    max_datagram: usize,
    gossip_interval: Duration,
}

impl EncryptedTransport {
    /// Sends and receives over `socket` datagrams of at most `max_datagram` bytes, for a chitchat that gossips every `gossip_interval`.
    /// Records the clock offsets of the senders in `offsets`, and puts what is not gossip into `inbox`.
    pub fn new(
        socket: Arc<dyn Datagrams>,
        cipher: Arc<FrameCipher>,
        max_datagram: usize,
        gossip_interval: Duration,
        inbox: Inbox,
        offsets: SharedOffsets,
        metrics: Metrics,
    ) -> Self {
        let shared = Shared {
            cipher,
            metrics,
            offsets,
            replay: Mutex::new(ReplayWindow::new(REPLAY_HORIZON)),
            receivers: ArcSwap::default(),
            readers: Readers::default(),
            requested: Mutex::default(),
            unanswered: Mutex::default(),
            inbox,
            known: Mutex::default(),
            throttle: LogThrottle::new(Duration::from_secs(60)),
            max_datagram,
            gossip_interval,
        };
        Self { socket, shared: Arc::new(shared) }
    }

    /// Sets the addresses of the members. Messages for others than this node are refused from now on.
    pub fn set_receivers(&self, receivers: Receivers) {
        if **self.shared.receivers.load() != receivers {
            self.shared.receivers.store(Arc::new(receivers));
        }
    }

    /// Sets the addresses of the members that read datagrams of every kind.
    pub fn set_readers(&self, members: HashSet<SocketAddr>) {
        self.shared.readers.set_members(members);
    }

    /// Permits an exchange with the node at `address`, however many have begun in this round.
    pub fn request(&self, address: SocketAddr) {
        self.shared.requested.lock().insert(address);
    }

    /// From now on [`Self::awaits_answers`] is about these nodes.
    pub fn await_answers(&self, nodes: HashSet<SocketAddr>) {
        *self.shared.unanswered.lock() = nodes;
    }

    /// Whether one of the nodes of [`Self::await_answers`] has not answered an exchange since.
    pub fn awaits_answers(&self) -> bool {
        !self.shared.unanswered.lock().is_empty()
    }

    /// Sends one datagram with the body `parts` to a build that reads it.
    pub async fn send(&self, to: SocketAddr, kind: Kind, parts: &[&[u8]]) {
        let mut datagram = Vec::new();
        self.shared.write(to, kind, parts, &mut datagram);
        let to = if self.shared.dual_stack(&*self.socket) { mapped(to) } else { to };
        self.shared.sent(to, self.socket.send_to(&datagram, to).await);
    }

    /// The number of this process in the envelopes of its datagrams.
    pub fn process(&self) -> u64 {
        self.shared.cipher.sender()
    }

    /// The id of the key that encrypts; `None` without a keyring.
    pub fn encrypts_with(&self) -> Option<String> {
        self.shared.cipher.key_ids().first().map(ToString::to_string)
    }
}

#[async_trait]
impl Transport for EncryptedTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(EncryptedSocket::new(Arc::clone(&self.socket), Arc::clone(&self.shared))?))
    }
}

/// `address` as an IPv6 socket needs it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

impl Shared {
    /// Appends a datagram of `kind` for `to` to `out`.
    fn write(&self, to: SocketAddr, kind: Kind, parts: &[&[u8]], out: &mut Vec<u8>) {
        let (envelope, head) = (self.cipher.envelope().encode(), datagram::head(to, kind));
        let parts: Vec<&[u8]> = [&envelope[..], &head[..]].into_iter().chain(parts.iter().copied()).collect();
        self.cipher.encrypt(Purpose::Datagram, b"", &parts, out);
    }

    fn sent(&self, to: SocketAddr, result: std::io::Result<usize>) {
        match result {
            Ok(bytes) => {
                self.metrics.datagrams_sent.inc();
                self.metrics.datagram_bytes_sent.inc_by(bytes as u64);
            }
            Err(error) => {
                tracing::debug!(%to, %error, "a datagram could not be sent");
                self.metrics.send_errors.inc();
            }
        }
    }

    fn dual_stack(&self, socket: &dyn Datagrams) -> bool {
        *self.readers.dual_stack.get_or_init(|| socket.local_addr().is_ok_and(|address| address.is_ipv6()))
    }

    /// The gossip message in a valid datagram of any kind. Other kinds go into the inbox.
    fn receive_direct(
        &self,
        from: SocketAddr,
        datagram: &mut [u8],
        exchange: &mut Exchange,
    ) -> Option<ChitchatMessage> {
        let decrypted = match self.cipher.decrypt(Purpose::Datagram, b"", datagram) {
            Ok(decrypted) => &*decrypted,
            Err(error) => return self.drop_one(open_reason(error), from, &error),
        };
        let (envelope, now, rest) = self.open_envelope(from, decrypted)?;
        let Some((to, kind, body)) = datagram::split(rest) else {
            return self.drop_one("malformed", from, &"too short");
        };
        if !self.receivers.load().accept(to) {
            return self.drop_one("for another node", from, &format_args!("it was sent to {to}"));
        }
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.offsets.observe(envelope, now);
        self.metrics.datagrams_received.inc();
        self.readers.note(from, true);
        match kind {
            Some(Kind::Gossip) => return self.read_gossip(from, body, exchange),
            Some(Kind::Slot) => match SlotMessage::decode(body) {
                Some(message) => self.take_in(self.inbox.slot(envelope.sender, &message, Reply::Datagram(from))),
                None => return self.drop_one("malformed", from, &"not a slot"),
            },
            Some(Kind::Acknowledgement) => match Acknowledgement::decode(body) {
                Some(ack) => {
                    let process = Some(envelope.sender);
                    self.take_in(self.inbox.acknowledgement(ReceivedAck { process, ack, channel: Channel::Datagram }));
                }
                None => return self.drop_one("malformed", from, &"not an acknowledgement"),
            },
            Some(Kind::States) => match States::decode(body) {
                Some(states) => self.take_in(self.inbox.states(envelope.sender, states)),
                None => return self.drop_one("malformed", from, &"not states of counters"),
            },
            // Of a later build. Nothing depends on it.
            None => Metrics::count(&self.metrics.datagrams_dropped, "unknown kind"),
        }
        None
    }

    /// Counts what did not fit into the inbox. It is sent again.
    fn take_in(&self, fits: bool) {
        if !fits {
            Metrics::count(&self.metrics.datagrams_dropped, "overload");
        }
    }

    fn read_gossip(&self, from: SocketAddr, body: &[u8], exchange: &mut Exchange) -> Option<ChitchatMessage> {
        let read = exchange.read(body, self.cipher.cluster(), from, &mut self.known.lock(), Instant::now());
        let (bytes, refused) = match read {
            Ok(read) => read,
            Err(error) => return self.drop_one("malformed", from, &error),
        };
        if refused > 0 {
            self.refuse_members(from, refused);
        }
        match ChitchatMessage::deserialize(&mut &bytes[..]) {
            Ok(message) => Some(message),
            Err(error) => self.drop_one("malformed", from, &error),
        }
    }

    /// Splits an authentic datagram into its envelope, the time, and the rest. `None` if it is to be dropped, which is then counted.
    fn open_envelope<'a>(&self, from: SocketAddr, decrypted: &'a [u8]) -> Option<(Envelope, UnixMillis, &'a [u8])> {
        let Some((envelope, rest)) = Envelope::decode(decrypted) else {
            return self.drop_one("malformed", from, &"too short");
        };
        if envelope.sender == self.cipher.sender() {
            // Probably meant for an earlier process at this address, so there is no warning.
            Metrics::count(&self.metrics.datagrams_dropped, "our own");
            return None;
        }
        let now = clock::now();
        if let Err(error) = self.replay.lock().accept(envelope, now) {
            let reason = match error {
                ReplayError::Replayed => "replayed",
                ReplayError::TooOld => "too old",
                ReplayError::FromTheFuture => "from the future",
            };
            return self.drop_one(reason, from, &error);
        }
        Some((envelope, now, rest))
    }

    /// The message that a valid datagram completes.
    fn receive(&self, from: SocketAddr, datagram: &mut [u8], reassembly: &mut Reassembly) -> Option<ChitchatMessage> {
        let decrypted = match self.cipher.decrypt(Purpose::Gossip, b"", datagram) {
            Ok(decrypted) => &*decrypted,
            Err(error) => return self.drop_one(open_reason(error), from, &error),
        };
        let (envelope, now, rest) = self.open_envelope(from, decrypted)?;
        let Some((fragment, piece)) = Fragment::decode(rest) else {
            return self.drop_one("malformed", from, &"invalid fragment header");
        };
        let whole;
        let bytes = if fragment.count == 1 {
            piece
        } else {
            whole = reassembly.add(envelope.sender, fragment, piece)?;
            &whole
        };
        let canonical = SocketAddr::new(from.ip().to_canonical(), from.port());
        let (bytes, refused) = match self.known.lock().filter(bytes, canonical, Instant::now()) {
            Ok(filtered) => filtered,
            Err(error) => return self.drop_one("malformed", from, &error),
        };
        if refused > 0 {
            self.refuse_members(from, refused);
        }
        let mut rest = &*bytes;
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) => {
                if let Some(to) = receiver::named(rest).filter(|to| !self.receivers.load().accept(*to)) {
                    return self.drop_one("for another node", from, &format_args!("it was sent to {to}"));
                }
                self.readers.note(canonical, receiver::reads_datagrams(rest));
                // Only now: a recorded datagram would be late, and the sender's clock would seem to be behind.
                self.offsets.observe(envelope, now);
                self.metrics.datagrams_received.inc();
                Some(message)
            }
            Err(error) => self.drop_one("malformed", from, &error),
        }
    }

    fn refuse_members(&self, from: SocketAddr, refused: usize) {
        Metrics::count_many(&self.metrics.records_refused, "too many members", refused as u64);
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            tracing::error!(
                %from, refused, held_back,
                "a gossip message names more members than a cluster may have ({MAX_MEMBERS}), so the new ones are ignored: check the node \
                 that sent it, and replace cluster.secret_file if it is not yours"
            );
        }
    }

    fn drop_one<T>(&self, reason: &'static str, from: SocketAddr, error: &dyn std::fmt::Display) -> Option<T> {
        Metrics::count(&self.metrics.datagrams_dropped, reason);
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            tracing::warn!(%from, reason, %error, held_back, "dropped a gossip datagram: {}", advice(reason));
        }
        None
    }
}

/// The metric label for a frame that cannot be authenticated.
pub(super) const fn open_reason(error: OpenError) -> &'static str {
    match error {
        OpenError::Truncated => "truncated",
        OpenError::UnknownVersion => "unknown version",
        OpenError::NotEncrypted => "not encrypted",
        OpenError::NoKeyring => "no keyring",
        OpenError::UnknownKey => "unknown key",
        OpenError::WrongCluster => "wrong cluster",
        OpenError::WrongPurpose => "wrong purpose",
        OpenError::NotAuthentic => "not authentic",
    }
}

fn advice(reason: &str) -> &'static str {
    match reason {
        "unknown key" => {
            "its sender uses a key that is not in cluster.secret_file; add a new key as the second line on all nodes first"
        }
        "not encrypted" => "its sender runs without cluster.secret_file",
        "no keyring" => "its sender uses a keyring; give this node the same cluster.secret_file",
        "wrong cluster" => "its sender has a different cluster.name",
        "too old" | "from the future" => {
            "compare the clocks of the two nodes; if they are right, somebody replays old datagrams"
        }
        "for another node" => {
            "somebody sends recorded datagrams to this node, or two nodes share an address (cluster.advertise)"
        }
        _ => "its sender is probably not a node of this cluster",
    }
}

/// The clock offsets of other processes, shared by the transport and the membership. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedOffsets(Arc<Mutex<ClockOffsets>>);

impl SharedOffsets {
    fn observe(&self, envelope: Envelope, now: UnixMillis) {
        self.0.lock().observe(envelope, now);
    }

    /// See [`ClockOffsets::ahead`].
    pub(super) fn ahead(&self, sender: u64) -> Option<i64> {
        self.0.lock().ahead(sender)
    }
}

#[cfg(test)]
mod tests;
