//! Nodes of other versions: of what they say, what is understood is taken in, the rest is counted, and nothing is changed on
//! its way. The peers are made here: they gossip with chitchat as a node does, and call and answer repairs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banmesh::clock;
use banmesh::cluster::cipher::FrameCipher;
use banmesh::cluster::{ClusterSettings, Metrics, Timers};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::ledger::BanTerms;
use banmesh_core::seal::Purpose;
use banmesh_core::seal::replay::Envelope;
use banmesh_core::wire::{self, BatchWriter, MIN_VERSION, Record, VERSION, Versions};
use banmesh_types::time::Expiry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chitchat::transport::{Socket, Transport};
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable as _, FailureDetectorConfig,
    Serializable as _, spawn_chitchat,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster_replication::node::{DAY, Node, agree, keyring, new_store, settings, target, until};

/// A kind of record that nobody knows yet.
const NEW_KIND: u8 = 200;
const UNKNOWN: &[u8] = &[NEW_KIND, 5, 0, 1, 2, 3, 4, 5];
/// The versions that a build reads which is one version ahead.
const NEWER: Versions = Versions { oldest: VERSION, newest: VERSION + 1 };
/// The versions of a build that has dropped ours.
const APART: Versions = Versions { oldest: VERSION + 1, newest: VERSION + 2 };

/// Sealed gossip with one node alone: whatever goes further, that node has passed on.
#[derive(Clone)]
struct OneFriend {
    socket: Arc<UdpSocket>,
    cipher: Arc<FrameCipher>,
    friend: SocketAddr,
}

#[async_trait]
impl Transport for OneFriend {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Socket for OneFriend {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if to == self.friend {
            let envelope = self.cipher.envelope();
            // Part 0 of 1.
            let part = [&[0, 1][..], &envelope.counter.to_le_bytes()].concat();
            let parts = [&envelope.encode()[..], &part, &message.serialize_to_vec()];
            let mut datagram = Vec::new();
            self.cipher.encrypt(Purpose::Gossip, b"", &parts, &mut datagram);
            self.socket.send_to(&datagram, to).await?;
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let mut datagram = vec![0; 65_536];
            let (length, from) = self.socket.recv_from(&mut datagram).await?;
            if from == self.friend {
                let opened = self.cipher.decrypt(Purpose::Gossip, b"", &mut datagram[..length])?;
                let (_, rest) = Envelope::decode(opened).unwrap();
                assert_eq!(rest[..2], [0, 1], "a message in parts");
                return Ok((from, ChitchatMessage::deserialize(&mut &rest[10..])?));
            }
        }
    }
}

/// A member of the cluster that is no banmesh of today.
pub struct Peer {
    chitchat: ChitchatHandle,
    cipher: Arc<FrameCipher>,
}

impl Peer {
    /// Gossips with `friend`, and publishes that it reads the wire versions `wire`. The socket is for its repairs.
    pub async fn start(id: &str, wire: Versions, friend: &Node) -> (Self, TcpListener) {
        let (listener, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, Arc::new(socket));
            }
        };
        let address = socket.local_addr().unwrap();
        let cipher = cipher();
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(id, 1 << 16, address),
            cluster_id: "banmesh".to_owned(),
            gossip_interval: Duration::from_millis(50),
            listen_addr: address,
            seed_nodes: vec![friend.address().to_string()],
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(900),
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let state = [
            ("phase", "ready".to_owned()),
            ("version", "99.0.0".to_owned()),
            ("wire", wire.to_string()),
            ("sender", format!("{:016x}", cipher.sender())),
            ("table", format!("{:016x}:1", 0x00ab_cdef)),
            ("mood", "a key of the future".to_owned()),
        ];
        let state = state.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let transport = OneFriend { socket, cipher: Arc::clone(&cipher), friend: friend.address() };
        let chitchat = spawn_chitchat(config, state, &transport).await.unwrap();
        (Self { chitchat, cipher }, listener)
    }

    fn id(&self) -> &ChitchatId {
        self.chitchat.chitchat_id()
    }

    async fn say(&self, key: &str, value: &str) {
        self.chitchat.chitchat().lock().await.self_node_state().set(key, value);
    }

    /// What it holds of what `id` says.
    async fn hears(&self, id: &ChitchatId) -> HashMap<String, String> {
        let chitchat = self.chitchat.chitchat();
        let chitchat: tokio::sync::MutexGuard<'_, Chitchat> = chitchat.lock().await;
        let state = chitchat.node_state(id);
        state.into_iter().flat_map(chitchat::NodeState::key_values).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

fn cipher() -> Arc<FrameCipher> {
    Arc::new(FrameCipher::new("banmesh", Some(&keyring(&[1]))).unwrap())
}

/// Bans that a node called `future` has made, of 192.0.2.0 to 192.0.2.9.
async fn bans() -> Vec<Record> {
    let (store, _task) = new_store("future");
    let mut records = Vec::new();
    for n in 0..10 {
        let target = target(&format!("192.0.2.{n}"));
        let until = Expiry::at(clock::now().plus(Duration::from_secs(3600)));
        let cause = Cause::new(By::Operator("tomorrow".into()), "too early");
        store.ban(target, BanTerms::new(until, DAY), cause).await.unwrap().unwrap();
        let entry = store.entry(target).await.unwrap().unwrap();
        records.push(Record::Ban { target, entry });
    }
    records
}

/// A batch of our version in parts: what comes before its records, and each of these.
fn parts(records: &[&Record]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut writer = BatchWriter::new(usize::MAX);
    assert!(records.iter().all(|record| writer.push(record)));
    let batch = writer.take();
    let length = |at: usize| usize::from(u16::from_le_bytes([batch[at], batch[at + 1]]));
    let mut at = 3;
    for _ in 0..length(1) {
        at += 2 + length(at);
    }
    let head = batch[..at].to_vec();
    let mut bodies = Vec::new();
    while at < batch.len() {
        let end = at + 3 + length(at + 1);
        bodies.push(batch[at..end].to_vec());
        at = end;
    }
    (head, bodies)
}

fn batch_of(records: &[&Record]) -> Vec<u8> {
    let (head, bodies) = parts(records);
    [head, bodies.concat()].concat()
}

/// Two bans, and a record of a new kind between them.
fn with_unknown_kind(first: &Record, last: &Record) -> Vec<u8> {
    let (head, bodies) = parts(&[first, last]);
    [&head[..], &bodies[0], UNKNOWN, &bodies[1]].concat()
}

/// Three bans, of which the middle one has a field more than today's.
fn with_longer_body(first: &Record, middle: &Record, last: &Record) -> Vec<u8> {
    let (head, mut bodies) = parts(&[first, middle, last]);
    bodies[1].extend_from_slice(b"new");
    bodies[1][1] += 3;
    [head, bodies.concat()].concat()
}

fn of_version(version: u8, mut batch: Vec<u8>) -> Vec<u8> {
    batch[0] = version;
    batch
}

fn slot(first: u64, count: u16, batch: &[u8]) -> String {
    BASE64.encode([&first.to_le_bytes()[..], &count.to_le_bytes(), batch].concat())
}

/// Everything that a node holds.
async fn table(node: &Node) -> HashMap<String, BanEntry> {
    let page = node.store.scan(usize::MAX, usize::MAX, None).await.unwrap();
    assert_eq!(page.below, 0);
    page.entries.into_iter().map(|(target, entry)| (target.to_string(), entry)).collect()
}

fn entries<'a>(records: impl IntoIterator<Item = &'a Record>) -> HashMap<String, BanEntry> {
    let entry = |record: &Record| match record {
        Record::Ban { target, entry } => (target.to_string(), entry.clone()),
        Record::Attempts(_) | Record::Evidence(_) => unreachable!(),
    };
    records.into_iter().map(entry).collect()
}

/// The digest of a node that received `records` and nothing else.
async fn digest_of(records: &[&Record]) -> (u64, usize) {
    let (store, _task) = new_store("other");
    let pairs = records.iter().filter_map(|record| match record {
        Record::Ban { target, entry } => Some((*target, entry.clone())),
        Record::Attempts(_) | Record::Evidence(_) => None,
    });
    store.merge(pairs.collect()).await.unwrap();
    let summary = store.summary().await.unwrap();
    (summary.digest, summary.entries)
}

fn refused(node: &Node, reason: &'static str) -> u64 {
    Metrics::counted(&node.metrics.records_refused, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_news_is_left_out_whole_counted_and_passed_on_as_it_is() {
    let nodes = Node::cluster_of(2).await;
    // What the one says reaches the other through both nodes alone.
    let (future, _) = Peer::start("future", NEWER, &nodes[0]).await;
    let (witness, _) = Peer::start("witness", Versions::only(VERSION), &nodes[1]).await;
    let bans = bans().await;
    let [a, b, c, d, e, f, g, ..] = &bans[..] else { unreachable!() };

    future.say("h:b00", &slot(0, 1, &batch_of(&[a]))).await;
    for node in &nodes {
        until("understood", || node.bans("192.0.2.0")).await;
        until("a member", || async { node.cluster.members().live_peer("future").is_some() }).await;
        let member = node.cluster.members().live_peer("future").unwrap().clone();
        assert_eq!((member.wire, member.version.as_str()), (NEWER, "99.0.0"));
    }
    future.say("h:b01", &slot(1, 1, &of_version(VERSION + 1, batch_of(&[b])))).await;
    for node in &nodes {
        until("a newer version", || async { refused(node, "another version") > 0 }).await;
        assert_eq!(table(node).await, entries([a]));
    }
    future.say("h:b02", &slot(2, 3, &with_unknown_kind(c, d))).await;
    for node in &nodes {
        until("a new kind", || async { refused(node, "unknown kind") > 0 }).await;
        until("what stood around it", || async { table(node).await == entries([a, c, d]) }).await;
    }
    future.say("h:b03", &slot(5, 3, &with_longer_body(e, f, g))).await;
    for node in &nodes {
        until("a new field", || async { refused(node, "refused") > 0 }).await;
        until("what stood around it", || async { table(node).await == entries([a, c, d, e, g]) }).await;
    }
    let understood = [a, c, d, e, g];
    for node in &nodes {
        assert_eq!(node.digest().await, digest_of(&understood).await);
        for reason in ["another version", "unknown kind", "refused"] {
            assert_eq!(refused(node, reason), 1, "{reason}");
        }
        for reason in ["malformed", "malformed batch"] {
            assert_eq!(refused(node, reason), 0, "{reason}");
        }
    }

    // The cluster goes on, and so does what the newer node says that is understood.
    nodes[0].ban("198.51.100.1").await;
    until("a ban of one is heard by the other", || nodes[1].bans("198.51.100.1")).await;
    nodes[1].lift("192.0.2.0").await;
    until("a lift too", || async { !nodes[0].bans("192.0.2.0").await }).await;
    future.say("h:b00", &slot(8, 1, &batch_of(&[&bans[8]]))).await;
    for node in &nodes {
        until("still understood", || node.bans("192.0.2.8")).await;
        assert_eq!(node.metrics.recent_changes_sent.get(), 1, "a node tells what it decided, and nothing else");
        assert_eq!(node.metrics.membership_restarts.get(), 0);
    }
    let late = Node::start("late", &[&nodes[1]]).await;
    late.cluster.ready().await;
    until("equal tables", || async { agree(&[&nodes[0], &nodes[1], &late]).await }).await;
    assert_eq!(table(&nodes[0]).await, table(&nodes[1]).await);
    assert_eq!(table(&nodes[0]).await, table(&late).await);
    assert_eq!(late.digest().await.1, 7);

    let said = future.hears(future.id()).await;
    assert_eq!(said.len(), 6 + 4);
    until("passed on byte for byte", || async { witness.hears(future.id()).await == said }).await;
}

/// One end of a repair session.
struct Session {
    stream: TcpStream,
    cipher: Arc<FrameCipher>,
    /// Caller's and called's random bytes.
    fresh: [u8; 64],
    /// The direction of what this end sends, 1 from the caller, and how much was sent and received.
    direction: u8,
    sent: u64,
    received: u64,
}

/// What an end says first: the oldest and newest version, and who it is.
fn greeting(fresh: &[u8; 32], Versions { oldest, newest }: Versions, node: &str) -> Vec<u8> {
    [&fresh[..], &[oldest, newest, 0], node.as_bytes()].concat()
}

async fn write_frame(stream: &mut TcpStream, cipher: &FrameCipher, purpose: Purpose, context: &[u8], bytes: &[u8]) {
    let mut frame = Vec::new();
    cipher.encrypt(purpose, context, &[bytes], &mut frame);
    let frame = [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], &frame].concat();
    // A node that has hung up is noticed by what it does not send.
    let _ = stream.write_all(&frame).await;
}

/// `None` when the other end has hung up.
async fn read_frame(stream: &mut TcpStream, cipher: &FrameCipher, purpose: Purpose, context: &[u8]) -> Option<Vec<u8>> {
    let length = stream.read_u32_le().await.ok()?;
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.ok()?;
    Some(cipher.decrypt(purpose, context, &mut frame).unwrap().to_vec())
}

impl Session {
    /// Calls `node` as one that reads `versions`; returns which ones it answered with.
    async fn call(node: &Node, versions: Versions) -> (Self, [u8; 2]) {
        let (mut stream, cipher) = (TcpStream::connect(node.address()).await.unwrap(), cipher());
        let fresh = [7; 32];
        write_frame(&mut stream, &cipher, Purpose::Handshake, b"call", &greeting(&fresh, versions, "future")).await;
        let context = [&b"answer"[..], &fresh].concat();
        let answer = read_frame(&mut stream, &cipher, Purpose::Handshake, &context).await.unwrap();
        let mut both = [7; 64];
        both[32..].copy_from_slice(&answer[..32]);
        (Self { stream, cipher, fresh: both, direction: 1, sent: 0, received: 0 }, [answer[32], answer[33]])
    }

    /// Answers a caller as a node that reads `versions` does; `None` when they have none in common.
    async fn answer(mut stream: TcpStream, cipher: Arc<FrameCipher>, versions: Versions) -> Option<Self> {
        let call = read_frame(&mut stream, &cipher, Purpose::Handshake, b"call").await?;
        let common = versions.common(Versions { oldest: call[32], newest: call[33] });
        let mut fresh = [8; 64];
        fresh[..32].copy_from_slice(&call[..32]);
        let context = [&b"answer"[..], &call[..32]].concat();
        let answer = greeting(&[8; 32], Versions::only(common.unwrap_or(0)), "future");
        write_frame(&mut stream, &cipher, Purpose::Handshake, &context, &answer).await;
        common.map(|_| Self { stream, cipher, fresh, direction: 2, sent: 0, received: 0 })
    }

    fn context(&self, direction: u8, number: u64) -> Vec<u8> {
        [&[direction][..], &self.fresh, &number.to_le_bytes()].concat()
    }

    async fn send(&mut self, kind: u8, payload: &[u8]) {
        let context = self.context(self.direction, self.sent);
        let bytes = [&[kind][..], payload].concat();
        write_frame(&mut self.stream, &self.cipher, Purpose::Repair, &context, &bytes).await;
        self.sent += 1;
    }

    async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let context = self.context(3 - self.direction, self.received);
        self.received += 1;
        let bytes = read_frame(&mut self.stream, &self.cipher, Purpose::Repair, &context).await?;
        Some((bytes[0], bytes[1..].to_vec()))
    }

    /// Gives `batch`; returns the records that the other end gives, and how many of those given were new to it.
    async fn trade(&mut self, batch: &[u8]) -> Option<(Vec<Record>, u64)> {
        self.send(3, batch).await;
        self.send(4, b"").await;
        let mut records = Vec::new();
        loop {
            match self.receive().await? {
                (3, batch) => {
                    let tally = wire::read(&batch, &mut records).unwrap();
                    assert_eq!((batch[0], tally.unknown, tally.refused), (VERSION, 0, 0));
                }
                (kind, _) => {
                    assert_eq!(kind, 4);
                    break;
                }
            }
        }
        self.send(5, &0u64.to_le_bytes()).await;
        let (kind, new) = self.receive().await?;
        assert_eq!(kind, 5);
        Some((records, u64::from_le_bytes(new.try_into().unwrap())))
    }

    /// Gives `batch` after a comparison with an empty table, as the caller.
    async fn repair(mut self, batch: &[u8]) -> Option<(Vec<Record>, u64)> {
        self.send(6, &[0; 8 + 4096 * 4]).await;
        let (kind, answer) = self.receive().await?;
        assert_eq!((kind, answer.len(), answer[512]), (2, 513, 0), "whole buckets are exchanged");
        self.trade(batch).await
    }
}

fn dropped(node: &Node, reason: &'static str) -> u64 {
    Metrics::counted(&node.metrics.connections_dropped, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_caller_gets_the_version_that_both_read_or_none() {
    let node = Node::start("old", &[]).await;
    node.cluster.ready().await;
    node.ban("198.51.100.1").await;
    let before = (table(&node).await, node.digest().await);
    let bans = bans().await;
    let [a, b, c, d, e, f, ..] = &bans[..] else { unreachable!() };

    // Nothing in common, and empty ranges.
    let range = |oldest, newest| Versions { oldest, newest };
    let refused_ranges =
        [APART, range(255, 255), range(0, 0), range(0, MIN_VERSION - 1), range(VERSION + 1, MIN_VERSION - 1)];
    for (times, versions) in (1..).zip(refused_ranges) {
        let (mut session, answered) = Session::call(&node, versions).await;
        assert_eq!(answered, [0, 0], "{versions}");
        assert!(session.receive().await.is_none(), "not hung up");
        until("counted", || async { dropped(&node, "version") == times }).await;
    }
    // One was agreed upon, and another is used.
    let (session, answered) = Session::call(&node, NEWER).await;
    assert_eq!(answered, [VERSION; 2]);
    assert!(session.repair(&of_version(VERSION + 1, batch_of(&[a]))).await.is_none());
    until("counted", || async { dropped(&node, "malformed") == 1 }).await;
    assert_eq!((table(&node).await, node.digest().await), before);

    for (versions, batch, refused_so_far) in
        [(NEWER, with_unknown_kind(b, c), 1), (range(0, 255), with_longer_body(d, e, f), 2)]
    {
        let (session, answered) = Session::call(&node, versions).await;
        assert_eq!(answered, [VERSION; 2]);
        let held = table(&node).await;
        let (given, new) = session.repair(&batch).await.unwrap();
        assert_eq!((entries(&given), new), (held, 2));
        until("counted", || async { refused(&node, "repair") == refused_so_far }).await;
    }
    let mut expected = before.0;
    expected.extend(entries([b, c, d, f]));
    assert_eq!(table(&node).await, expected);
    assert_eq!((node.metrics.repairs_served.get(), dropped(&node, "version"), dropped(&node, "malformed")), (2, 5, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_newer_versions_are_repaired_with_as_far_as_both_understand() {
    let often = |settings: ClusterSettings| {
        let timers = Timers { repair_interval: Duration::from_millis(400), ..settings.timers };
        ClusterSettings { timers, ..settings }
    };
    let first = Node::start_with(often(settings("first", 1, &[]))).await;
    let second = Node::start_with(often(settings("second", 1, &[&first]))).await;
    until("met", || async { first.peers() == 1 && second.peers() == 1 && first.is_ready() && second.is_ready() }).await;
    first.ban("198.51.100.1").await;
    until("heard", || second.bans("198.51.100.1")).await;

    // It reads nothing that they write, holds another table, and says so when it is called.
    let (strange, listener) = Peer::start("strange", APART, &first).await;
    let ciphers = Arc::clone(&strange.cipher);
    let _strange = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(Session::answer(stream, Arc::clone(&ciphers), APART).await.is_none());
        }
    }));
    for node in [&first, &second] {
        until("a member", || async { node.cluster.members().live_peer("strange").is_some() }).await;
        assert_eq!(node.cluster.members().live_peer("strange").unwrap().wire, APART);
        assert!(!node.cluster.members().live_peer("strange").unwrap().shares_wire_version);
        until("counted", || async { Metrics::counted(&node.metrics.repairs_failed, "version") > 0 }).await;
    }
    assert_eq!(table(&first).await, table(&second).await);
    assert_eq!(first.digest().await.1, 1);

    // It reads what they write, and more.
    let bans = bans().await;
    let (newer, listener) = Peer::start("newer", NEWER, &first).await;
    let (batch, ciphers) = (with_unknown_kind(&bans[0], &bans[1]), Arc::clone(&newer.cipher));
    let _newer = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Some(mut session) = Session::answer(stream, Arc::clone(&ciphers), NEWER).await else { continue };
            let Some((6, _)) = session.receive().await else { continue };
            session.send(2, &[&[0xff; 512][..], &[0]].concat()).await;
            session.trade(&batch).await;
        }
    }));
    let expected = entries(&bans[..2]);
    for node in [&first, &second] {
        until("a member", || async { node.cluster.members().live_peer("newer").is_some() }).await;
        assert!(node.cluster.members().live_peer("newer").unwrap().shares_wire_version);
        until("taken in", || async { node.bans("192.0.2.0").await && node.bans("192.0.2.1").await }).await;
    }
    until("counted", || async { refused(&first, "repair") + refused(&second, "repair") > 0 }).await;
    let held = table(&first).await;
    assert!(expected.iter().all(|(target, entry)| held.get(target) == Some(entry)));
    assert_eq!((held.len(), &held), (3, &table(&second).await));
    second.lift("198.51.100.1").await;
    until("the cluster goes on", || async { !first.bans("198.51.100.1").await }).await;
    assert_eq!(first.metrics.membership_restarts.get() + second.metrics.membership_restarts.get(), 0);
}
