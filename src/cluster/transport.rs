//! chitchat's datagrams, sealed.
//!
//! chitchat believes whatever it is given, and some of it trips an assertion: so nothing reaches it that was not sealed
//! by a node of this cluster. What is wrong is counted, dropped, and logged once a minute; neither a stranger's bytes nor a
//! network that is away for a moment ever end the conversation.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable as _, Serializable as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::net::UdpSocket;

use super::cover::Cover;
use super::metrics::Metrics;
use super::parts::{Assembly, MAX_DATAGRAM, MAX_PARTS, PART_LEN, Part};
use crate::clock;
use crate::net::throttle::LogThrottle;
use banmesh_core::seal::replay::{ENVELOPE_LEN, Envelope, MAX_SENDERS, ReplayError, ReplayWindow};
use banmesh_core::seal::{OVERHEAD, OpenError, Purpose};
use banmesh_types::time::UnixMillis;

/// Datagrams that are older than this, or from further in the future, are refused: see [`ReplayWindow`]. Nodes whose clocks
/// are further apart cannot gossip.
pub const REPLAY_HORIZON: Duration = Duration::from_secs(15 * 60);

/// After so many errors in a row, receiving is given up: the socket is broken.
const MAX_RECEIVE_ERRORS: u32 = 1000;

/// A socket that seals and opens, for chitchat to open as often as it is restarted.
#[derive(Clone, Debug)]
pub struct SealedTransport {
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cover: Arc<Cover>,
    metrics: Metrics,
    clocks: Arc<Clocks>,
    // Outlives the sockets that chitchat opens: a restart must not make old datagrams new.
    replay: Mutex<ReplayWindow>,
    throttle: LogThrottle,
    max_datagram: usize,
}

impl SealedTransport {
    /// Carries gossip over `socket`. `clocks` learns how far the senders' clocks are off.
    pub fn new(socket: Arc<UdpSocket>, cover: Arc<Cover>, clocks: Arc<Clocks>, metrics: Metrics) -> Self {
        let shared = Shared {
            cover,
            metrics,
            clocks,
            replay: Mutex::new(ReplayWindow::new(REPLAY_HORIZON)),
            throttle: LogThrottle::new(Duration::from_secs(60)),
            max_datagram: MAX_DATAGRAM,
        };
        Self { socket, shared: Arc::new(shared) }
    }
}

impl SealedTransport {
    /// The name of the key that seals; `None` without one.
    pub fn seals_with(&self) -> Option<String> {
        self.shared.cover.seal().key_ids().first().map(ToString::to_string)
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(SealedSocket {
            dual_stack: self.socket.local_addr()?.is_ipv6(),
            socket: Arc::clone(&self.socket),
            shared: Arc::clone(&self.shared),
            assembly: Assembly::default(),
            received: vec![0; MAX_DATAGRAM + 1].into_boxed_slice(),
            message: Vec::new(),
            datagram: Vec::new(),
        }))
    }
}

struct SealedSocket {
    /// Bound to IPv6: IPv4 peers are reached by their mapped addresses.
    dual_stack: bool,
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
    assembly: Assembly,
    received: Box<[u8]>,
    message: Vec<u8>,
    datagram: Vec<u8>,
}

#[async_trait]
impl Socket for SealedSocket {
    /// Never fails: a peer that cannot be reached now is asked again by the next round.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.message.clear();
        message.serialize(&mut self.message);
        let shared = &self.shared;
        let to = if self.dual_stack { mapped(to) } else { to };
        let room = shared.max_datagram - OVERHEAD - ENVELOPE_LEN - PART_LEN;
        let pieces = self.message.chunks(room);
        let Some(count) = u8::try_from(pieces.len()).ok().filter(|count| *count <= MAX_PARTS) else {
            shared.metrics.send_errors.inc();
            return Ok(());
        };
        let mut first = None;
        for (index, piece) in (0..).zip(pieces) {
            let envelope = shared.cover.envelope();
            let part = Part { index, count, message: *first.get_or_insert(envelope.counter) };
            self.datagram.clear();
            let parts = [&envelope.encode()[..], &part.encode()[..], piece];
            shared.cover.cover(Purpose::Gossip, b"", &parts, &mut self.datagram);
            match self.socket.send_to(&self.datagram, to).await {
                Ok(_) => shared.metrics.datagrams_sent.inc(),
                Err(error) => {
                    tracing::debug!(%to, %error, "a gossip datagram could not be sent");
                    shared.metrics.send_errors.inc()
                }
            };
        }
        Ok(())
    }

    /// May be cancelled at any time. Fails only when the socket is broken.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut errors = 0;
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.received).await {
                Ok(received) => received,
                // An ICMP answer to something sent earlier comes out here: anyone on the path can cause it.
                Err(error) => {
                    errors += 1;
                    if errors >= MAX_RECEIVE_ERRORS {
                        return Err(anyhow::Error::new(error).context("the gossip socket is broken"));
                    }
                    let _: Option<()> = self.shared.drop_one("receive error", from_nobody(), &error);
                    continue;
                }
            };
            errors = 0;
            let Some(datagram) = self.received.get_mut(..length) else { continue };
            if let Some(message) = self.shared.take(from, datagram, &mut self.assembly) {
                return Ok((SocketAddr::new(from.ip().to_canonical(), from.port()), message));
            }
        }
    }
}

/// `address` as a socket of IPv6 understands it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn from_nobody() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

impl Shared {
    /// The message that a datagram completes, if it is in order.
    fn take(&self, from: SocketAddr, datagram: &mut [u8], assembly: &mut Assembly) -> Option<ChitchatMessage> {
        let opened = match self.cover.uncover(Purpose::Gossip, b"", datagram) {
            Ok(opened) => &*opened,
            Err(error) => return self.drop_one(open_reason(error), from, &error),
        };
        let Some((envelope, rest)) = Envelope::decode(opened) else {
            return self.drop_one("malformed", from, &"too short");
        };
        if envelope.sender == self.cover.sender() {
            // Most likely meant for an earlier life of this node, which had the same address: nothing to warn of.
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
        self.clocks.observe(envelope, now);
        let Some((part, piece)) = Part::decode(rest) else {
            return self.drop_one("malformed", from, &"no such part");
        };
        let whole;
        let mut bytes = if part.count == 1 {
            piece
        } else {
            whole = assembly.add(envelope.sender, part, piece)?;
            &whole
        };
        match ChitchatMessage::deserialize(&mut bytes) {
            Ok(message) => {
                self.metrics.datagrams_received.inc();
                Some(message)
            }
            Err(error) => self.drop_one("malformed", from, &error),
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

/// The label under which a frame that does not open is counted.
pub(super) const fn open_reason(error: OpenError) -> &'static str {
    match error {
        OpenError::Truncated => "truncated",
        OpenError::UnknownVersion => "unknown version",
        OpenError::NotSealed => "not sealed",
        OpenError::NoKeyring => "no keyring",
        OpenError::UnknownKey => "unknown key",
        OpenError::WrongCluster => "wrong cluster",
        OpenError::WrongPurpose => "wrong purpose",
        OpenError::BadSeal => "bad seal",
    }
}

fn advice(reason: &str) -> &'static str {
    match reason {
        "unknown key" => {
            "its sender uses a key that is not in cluster.secret_file; add it to all nodes before it seals"
        }
        "not sealed" => "its sender runs without cluster.secret_file",
        "no keyring" => "its sender uses a keyring; give this node the same cluster.secret_file",
        "wrong cluster" => "its sender has another cluster.name",
        "too old" | "from the future" => "compare the clocks of the two nodes; or somebody replays old datagrams",
        _ => "somebody else talks to this port, or tries to",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// How far the clocks of other processes are ahead of ours, by what they write into their datagrams.
///
/// A datagram shows its sender's clock less the time it travelled: the greatest difference of the last seconds is the
/// closest to the truth.
#[derive(Debug, Default)]
pub struct Clocks {
    senders: Mutex<HashMap<u64, Readings>>,
}

#[derive(Clone, Copy, Debug)]
struct Readings {
    begun: UnixMillis,
    current: i64,
    before: Option<i64>,
}

const READING: Duration = Duration::from_secs(10);

impl Clocks {
    fn observe(&self, envelope: Envelope, now: UnixMillis) {
        let ahead = ahead_millis(envelope.sent, now);
        let mut senders = lock(&self.senders);
        if senders.len() >= MAX_SENDERS {
            senders.retain(|_, readings| now.since(readings.begun) < READING * 6);
        }
        if let Some(readings) = senders.get_mut(&envelope.sender) {
            if now.since(readings.begun) >= READING || now < readings.begun {
                *readings = Readings { begun: now, current: ahead, before: Some(readings.current) };
            }
            readings.current = readings.current.max(ahead);
        } else if senders.len() < MAX_SENDERS {
            senders.insert(envelope.sender, Readings { begun: now, current: ahead, before: None });
        }
    }

    /// By how many milliseconds the clock of `sender` is ahead of ours (behind, when negative).
    pub fn ahead(&self, sender: u64) -> Option<i64> {
        let readings = lock(&self.senders).get(&sender).copied()?;
        Some(readings.before.map_or(readings.current, |before| before.max(readings.current)))
    }
}

fn ahead_millis(sent: UnixMillis, now: UnixMillis) -> i64 {
    i64::try_from(i128::from(sent.0) - i128::from(now.0)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_core::seal::{Keyring, key_text};

    fn keyring(byte: u8) -> Keyring {
        Keyring::parse(&key_text([byte; 32])).unwrap()
    }

    struct End {
        socket: Box<dyn Socket>,
        address: SocketAddr,
        metrics: Metrics,
        cover: Arc<Cover>,
    }

    async fn end(cluster: &str, keyring: Option<&Keyring>, max_datagram: usize) -> End {
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = udp.local_addr().unwrap();
        let (cover, metrics) = (Arc::new(Cover::new(cluster, keyring).unwrap()), Metrics::default());
        let transport = SealedTransport::new(udp, Arc::clone(&cover), Arc::default(), metrics.clone());
        let mut shared = Arc::into_inner(transport.shared).unwrap();
        shared.max_datagram = max_datagram;
        let transport = SealedTransport { socket: transport.socket, shared: Arc::new(shared) };
        End { socket: transport.open(address).await.unwrap(), address, metrics, cover }
    }

    fn message(cluster_id: &str) -> ChitchatMessage {
        let bytes = [&45_139u16.to_le_bytes()[..], &[0, 0, 0, 0]].concat();
        let name = [&u16::try_from(cluster_id.len()).unwrap().to_le_bytes(), cluster_id.as_bytes()].concat();
        ChitchatMessage::deserialize(&mut &[bytes, name].concat()[..]).unwrap()
    }

    #[tokio::test]
    async fn messages_arrive_whole_also_when_they_need_two_datagrams() {
        let keyring = keyring(1);
        let (mut a, mut b) = (end("c", Some(&keyring), 600).await, end("c", Some(&keyring), MAX_DATAGRAM).await);
        for name in ["short".to_owned(), "long".repeat(300)] {
            a.socket.send(b.address, message(&name)).await.unwrap();
            let (from, received) =
                tokio::time::timeout(Duration::from_secs(5), b.socket.recv()).await.unwrap().unwrap();
            assert_eq!((from, received), (a.address, message(&name)));
        }
        assert_eq!((a.metrics.datagrams_sent.get(), b.metrics.datagrams_received.get()), (4, 2));
    }

    #[tokio::test]
    async fn whatever_is_wrong_is_counted_and_nothing_else() {
        let mut target = end("c", Some(&keyring(1)), MAX_DATAGRAM).await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let good = Cover::new("c", Some(&keyring(1))).unwrap();
        let datagram = |cover: &Cover, envelope: Envelope| {
            let part = Part { index: 0, count: 1, message: 0 };
            let mut text = Vec::new();
            message("x").serialize(&mut text);
            let mut out = Vec::new();
            cover.cover(Purpose::Gossip, b"", &[&envelope.encode(), &part.encode(), &text], &mut out);
            out
        };
        let valid = datagram(&good, good.envelope());
        let old = Envelope { sent: clock::now().minus(REPLAY_HORIZON * 2), ..good.envelope() };
        let early = Envelope { sent: clock::now().plus(REPLAY_HORIZON * 2), ..good.envelope() };
        let elsewhere = Cover::new("d", Some(&keyring(1))).unwrap();
        let other_key = Cover::new("c", Some(&keyring(2))).unwrap();
        let plain = Cover::new("c", None).unwrap();
        let mut garbled = valid.clone();
        *garbled.last_mut().unwrap() ^= 1;
        let mut malformed = Vec::new();
        good.cover(Purpose::Gossip, b"", &[&good.envelope().encode(), b"\0\x01........junk"], &mut malformed);
        for (bytes, reason) in [
            (vec![], "truncated"),
            (b"\x05random bytes".to_vec(), "unknown version"),
            (valid[..valid.len() - 1].to_vec(), "bad seal"),
            (valid[..20].to_vec(), "truncated"),
            (garbled, "bad seal"),
            (datagram(&other_key, other_key.envelope()), "unknown key"),
            (datagram(&elsewhere, elsewhere.envelope()), "wrong cluster"),
            (datagram(&plain, plain.envelope()), "not sealed"),
            (datagram(&good, old), "too old"),
            (datagram(&good, early), "from the future"),
            (malformed, "malformed"),
            (datagram(&target.cover, target.cover.envelope()), "our own"),
        ] {
            let before = Metrics::counted(&target.metrics.datagrams_dropped, reason);
            stranger.send_to(&bytes, target.address).await.unwrap();
            let waited = tokio::time::timeout(Duration::from_secs(5), async {
                tokio::select! {
                    received = target.socket.recv() => panic!("{reason}: {received:?}"),
                    () = async {
                        while Metrics::counted(&target.metrics.datagrams_dropped, reason) == before {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    } => {}
                }
            });
            assert!(waited.await.is_ok(), "{reason}");
        }
        stranger.send_to(&valid, target.address).await.unwrap();
        stranger.send_to(&valid, target.address).await.unwrap();
        stranger.send_to(&datagram(&good, good.envelope()), target.address).await.unwrap();
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(5), target.socket.recv()).await.unwrap().unwrap();
        }
        assert_eq!(Metrics::counted(&target.metrics.datagrams_dropped, "replayed"), 1);
    }

    #[tokio::test]
    async fn sending_to_nobody_is_no_error() {
        let mut a = end("c", None, MAX_DATAGRAM).await;
        for to in ["127.0.0.1:9", "[::1]:9", "240.0.0.1:9"] {
            a.socket.send(to.parse().unwrap(), message("x")).await.unwrap();
        }
    }

    #[test]
    fn the_quickest_datagram_shows_the_clock() {
        let clocks = Clocks::default();
        let now = UnixMillis(1_000_000);
        for (sent, at) in [(1_000_495, 0), (1_000_505, 7), (1_000_500, 100)] {
            clocks.observe(Envelope { sender: 1, sent: UnixMillis(sent), counter: 0 }, UnixMillis(now.0 + at));
        }
        assert_eq!(clocks.ahead(1), Some(498));
        assert_eq!(clocks.ahead(2), None);
    }
}
