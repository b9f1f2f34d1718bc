//! The node's datagrams, encrypted and authenticated: chitchat's messages, slots of the recent-changes log, and acknowledgements.
//!
//! No datagram is longer than `cluster.max_datagram`. chitchat's messages are cut so that each datagram is useful alone
//! ([`banmesh_cluster::compact`]). Only builds before these datagrams get long messages in fragments.
//!
//! chitchat trusts every message that it receives, and some messages make it panic. Only messages that a node of this cluster
//! authenticated therefore reach it. All others are dropped, counted, and logged once a minute. Neither invalid datagrams nor an
//! interrupted network end the gossip.

mod exchange;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable as _, Serializable as _};
use parking_lot::{Mutex, MutexGuard};

use super::cipher::FrameCipher;
use super::inbox::{Inbox, Readers, ReceivedAck, Reply};
use super::metrics::Metrics;
use crate::clock;
use crate::net::network::Datagrams;
use crate::net::throttle::LogThrottle;
use banmesh_cluster::clock_offsets::ClockOffsets;
use banmesh_cluster::compact::{Message, Part};
use banmesh_cluster::datagram::{self, Acknowledgement, Kind, SlotMessage, States};
use banmesh_cluster::delivery::Channel;
use banmesh_cluster::fragments::{FRAGMENT_LEN, Fragment, MAX_DATAGRAM, MAX_FRAGMENTS, Reassembly};
use banmesh_cluster::known_members::{KnownMembers, MAX_MEMBERS};
use banmesh_cluster::receiver::{self, Receivers};
use banmesh_core::seal::replay::{ENVELOPE_LEN, Envelope, ReplayError, ReplayWindow};
use banmesh_core::seal::{OVERHEAD, OpenError, Purpose, Seal};
use banmesh_types::time::UnixMillis;
use exchange::Exchange;

/// Datagrams that are older than this, or from further in the future, are dropped: see [`ReplayWindow`]. Nodes whose clocks
/// differ by more cannot gossip.
pub const REPLAY_HORIZON: Duration = Duration::from_secs(15 * 60);

/// After this many errors in a row, the socket counts as broken.
const MAX_RECEIVE_ERRORS: u32 = 1000;

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
    /// Nodes whose answer is awaited.
    silent: Mutex<HashSet<SocketAddr>>,
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
            silent: Mutex::default(),
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
        lock(&self.shared.requested).insert(address);
    }

    /// From now on [`Self::awaits_answers`] is about these nodes.
    pub fn await_answers(&self, nodes: HashSet<SocketAddr>) {
        *lock(&self.shared.silent) = nodes;
    }

    /// Whether one of the nodes of [`Self::await_answers`] has not answered an exchange since.
    pub fn awaits_answers(&self) -> bool {
        !lock(&self.shared.silent).is_empty()
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
        Ok(Box::new(EncryptedSocket {
            dual_stack: self.socket.local_addr()?.is_ipv6(),
            socket: Arc::clone(&self.socket),
            shared: Arc::clone(&self.shared),
            reassembly: Reassembly::default(),
            received: vec![0; MAX_DATAGRAM + 1].into_boxed_slice(),
            exchange: Exchange::new(self.shared.gossip_interval),
            message: Vec::new(),
            datagram: Vec::new(),
        }))
    }
}

struct EncryptedSocket {
    /// Whether the socket is bound to IPv6, so that IPv4 peers have mapped addresses.
    dual_stack: bool,
    socket: Arc<dyn Datagrams>,
    shared: Arc<Shared>,
    reassembly: Reassembly,
    received: Box<[u8]>,
    exchange: Exchange,
    message: Vec<u8>,
    datagram: Vec<u8>,
}

impl EncryptedSocket {
    /// Whether to begin an exchange with the node at `to`. Requested ones always begin, and so do those with nodes that are not live.
    fn begins_exchange(&mut self, to: SocketAddr) -> bool {
        let due = lock(&self.shared.requested).remove(&to) || !self.shared.readers.is_member(to);
        due || self.exchange.permit(to, Instant::now())
    }

    /// Sends a message in datagrams that are useful alone.
    async fn send_compact(&mut self, to: SocketAddr, message: &Message) {
        let receivers = self.shared.receivers.load_full();
        let room = datagram::room(self.shared.max_datagram);
        let parts = self.exchange.cut(message, to, &receivers.own, room);
        for part in parts {
            match part {
                Part::Compact(body) => {
                    self.datagram.clear();
                    self.shared.write(to, Kind::Gossip, &[&body], &mut self.datagram);
                    let address = if self.dual_stack { mapped(to) } else { to };
                    self.shared.sent(address, self.socket.send_to(&self.datagram, address).await);
                }
                Part::Long(bytes) => self.send_fragments(to, bytes).await,
            }
        }
    }

    /// Sends a message as every build reads it, in fragments if it is long.
    async fn send_fragments(&mut self, to: SocketAddr, mut message: Vec<u8>) {
        receiver::append(to, &mut message);
        let to = if self.dual_stack { mapped(to) } else { to };
        let shared = &self.shared;
        // No more fragments than every build accepts, so of a very long message each is longer than it should be.
        let room = fragment_room(shared.max_datagram).max(message.len().div_ceil(usize::from(MAX_FRAGMENTS)));
        if room > fragment_room(MAX_DATAGRAM) {
            shared.metrics.send_errors.inc();
            return;
        }
        let pieces = message.chunks(room);
        let count = u8::try_from(pieces.len()).unwrap_or(MAX_FRAGMENTS);
        let mut first = None;
        for (index, piece) in (0..).zip(pieces) {
            let envelope = shared.cipher.envelope();
            let fragment = Fragment { index, count, message: *first.get_or_insert(envelope.counter) };
            self.datagram.clear();
            let parts = [&envelope.encode()[..], &fragment.encode()[..], piece];
            shared.cipher.encrypt(Purpose::Gossip, b"", &parts, &mut self.datagram);
            shared.sent(to, self.socket.send_to(&self.datagram, to).await);
        }
    }
}

/// The bytes of a message that one fragment carries.
const fn fragment_room(max_datagram: usize) -> usize {
    max_datagram.saturating_sub(OVERHEAD + ENVELOPE_LEN + FRAGMENT_LEN)
}

#[async_trait]
impl Socket for EncryptedSocket {
    /// Never fails: the next round tries again to reach the peer.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if matches!(message, ChitchatMessage::Syn { .. }) && !self.begins_exchange(to) {
            return Ok(());
        }
        self.message.clear();
        message.serialize(&mut self.message);
        let Ok(message) = self.exchange.parse(&self.message) else {
            // A kind of message without members, such as the refusal of another cluster.
            let bytes = self.message.clone();
            self.send_fragments(to, bytes).await;
            return Ok(());
        };
        if message.says_nothing() {
            return Ok(());
        }
        if self.shared.readers.contains(to) {
            self.send_compact(to, &message).await;
        } else {
            let room = fragment_room(self.shared.max_datagram).saturating_sub(receiver::TRAILER_LEN);
            for bytes in message.cut_for_earlier_builds(room) {
                self.send_fragments(to, bytes).await;
            }
        }
        Ok(())
    }

    /// Cancel safe. Fails only if the socket is broken.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut errors = 0;
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.received).await {
                Ok(received) => received,
                // Includes ICMP errors about earlier datagrams, which anyone on the path can cause.
                Err(error) => {
                    errors += 1;
                    if errors >= MAX_RECEIVE_ERRORS {
                        return Err(anyhow::Error::new(error).context("the gossip socket is broken"));
                    }
                    let _: Option<()> = self.shared.drop_one("receive error", UNKNOWN, &error);
                    continue;
                }
            };
            errors = 0;
            let Some(datagram) = self.received.get_mut(..length) else { continue };
            let received = if Seal::claims(datagram, Purpose::Datagram) {
                self.shared.receive_direct(from, datagram, &mut self.exchange)
            } else {
                self.shared.receive(from, datagram, &mut self.reassembly)
            };
            if let Some(message) = received {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                if matches!(message, ChitchatMessage::SynAck { .. }) {
                    lock(&self.shared.silent).remove(&from);
                }
                return Ok((from, message));
            }
        }
    }
}

/// `address` as an IPv6 socket needs it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Logged as the sender of a datagram that could not be received.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

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
        let read = exchange.read(body, self.cipher.cluster(), from, &mut lock(&self.known), Instant::now());
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
        if let Err(error) = lock(&self.replay).accept(envelope, now) {
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
        let (bytes, refused) = match lock(&self.known).filter(bytes, canonical, Instant::now()) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// The clock offsets of other processes, shared by the transport and the membership. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedOffsets(Arc<Mutex<ClockOffsets>>);

impl SharedOffsets {
    fn observe(&self, envelope: Envelope, now: UnixMillis) {
        lock(&self.0).observe(envelope, now);
    }

    /// See [`ClockOffsets::ahead`].
    pub(super) fn ahead(&self, sender: u64) -> Option<i64> {
        lock(&self.0).ahead(sender)
    }
}

#[cfg(test)]
mod tests;
