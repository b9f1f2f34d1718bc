use super::*;
use banmesh_cluster::fragments::MAX_DATAGRAM;
use banmesh_core::seal::{Keyring, key_text};
use chitchat::Serializable as _;
use tokio::net::UdpSocket;

fn keyring(byte: u8) -> Keyring {
    Keyring::parse(&key_text([byte; 32])).unwrap()
}

struct End {
    socket: Box<dyn Socket>,
    receivers: EncryptedTransport,
    address: SocketAddr,
    metrics: Metrics,
    cipher: Arc<FrameCipher>,
}

async fn end(cluster: &str, keyring: Option<&Keyring>, max_datagram: usize) -> End {
    let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = udp.local_addr().unwrap();
    let (cipher, metrics) = (Arc::new(FrameCipher::new(cluster, keyring).unwrap()), Metrics::default());
    let (inbox, _) = crate::cluster::inbox::inbox();
    let offsets = SharedOffsets::default();
    // Longer than any test.
    let interval = Duration::from_secs(600);
    let transport =
        EncryptedTransport::new(udp, Arc::clone(&cipher), max_datagram, interval, inbox, offsets, metrics.clone());
    End { socket: transport.open(address).await.unwrap(), receivers: transport, address, metrics, cipher }
}

fn message(cluster_id: &str) -> ChitchatMessage {
    let bytes = [&45_139u16.to_le_bytes()[..], &[0, 0, 0, 0]].concat();
    let name = [&u16::try_from(cluster_id.len()).unwrap().to_le_bytes(), cluster_id.as_bytes()].concat();
    ChitchatMessage::deserialize(&mut &[bytes, name].concat()[..]).unwrap()
}

#[tokio::test]
async fn messages_to_unknown_builds_that_need_two_datagrams_arrive() {
    let keyring = keyring(1);
    let (mut a, mut b) = (end("c", Some(&keyring), 600).await, end("c", Some(&keyring), MAX_DATAGRAM).await);
    for name in ["short".to_owned(), "long".repeat(300)] {
        a.socket.send(b.address, message(&name)).await.unwrap();
        let (from, received) = tokio::time::timeout(Duration::from_secs(5), b.socket.recv()).await.unwrap().unwrap();
        assert_eq!((from, received), (a.address, message(&name)));
    }
    assert_eq!((a.metrics.datagrams_sent.get(), b.metrics.datagrams_received.get()), (4, 2));
}

#[tokio::test]
async fn invalid_datagrams_are_dropped_and_counted_by_reason() {
    let mut target = end("c", Some(&keyring(1)), MAX_DATAGRAM).await;
    let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = FrameCipher::new("c", Some(&keyring(1))).unwrap();
    let datagram = |cipher: &FrameCipher, envelope: Envelope| {
        let fragment = Fragment { index: 0, count: 1, message: 0 };
        let mut text = Vec::new();
        message("x").serialize(&mut text);
        let mut out = Vec::new();
        cipher.encrypt(Purpose::Gossip, b"", &[&envelope.encode(), &fragment.encode(), &text], &mut out);
        out
    };
    let valid = datagram(&good, good.envelope());
    let old = Envelope { sent: clock::now().minus(REPLAY_HORIZON * 2), ..good.envelope() };
    let early = Envelope { sent: clock::now().plus(REPLAY_HORIZON * 2), ..good.envelope() };
    let elsewhere = FrameCipher::new("d", Some(&keyring(1))).unwrap();
    let other_key = FrameCipher::new("c", Some(&keyring(2))).unwrap();
    let plain = FrameCipher::new("c", None).unwrap();
    let mut garbled = valid.clone();
    *garbled.last_mut().unwrap() ^= 1;
    let mut malformed = Vec::new();
    good.encrypt(Purpose::Gossip, b"", &[&good.envelope().encode(), b"\0\x01........junk"], &mut malformed);
    for (bytes, reason) in [
        (vec![], "truncated"),
        (b"\x05random bytes".to_vec(), "unknown version"),
        (valid[..valid.len() - 1].to_vec(), "not authentic"),
        (valid[..20].to_vec(), "truncated"),
        (garbled, "not authentic"),
        (datagram(&other_key, other_key.envelope()), "unknown key"),
        (datagram(&elsewhere, elsewhere.envelope()), "wrong cluster"),
        (datagram(&plain, plain.envelope()), "not encrypted"),
        (datagram(&good, old), "too old"),
        (datagram(&good, early), "from the future"),
        (malformed, "malformed"),
        (datagram(&target.cipher, target.cipher.envelope()), "our own"),
    ] {
        let before = Metrics::counted(&target.metrics.datagrams_dropped, reason);
        sender.send_to(&bytes, target.address).await.unwrap();
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
    sender.send_to(&valid, target.address).await.unwrap();
    sender.send_to(&valid, target.address).await.unwrap();
    sender.send_to(&datagram(&good, good.envelope()), target.address).await.unwrap();
    for _ in 0..2 {
        tokio::time::timeout(Duration::from_secs(5), target.socket.recv()).await.unwrap().unwrap();
    }
    assert_eq!(Metrics::counted(&target.metrics.datagrams_dropped, "replayed"), 1);
}

#[tokio::test]
async fn a_message_for_another_member_is_refused() {
    let keyring = keyring(1);
    let (mut a, mut third) = (end("c", Some(&keyring), MAX_DATAGRAM).await, end("c", Some(&keyring), 600).await);
    let wire = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let recorded = async |a: &mut End, to: &UdpSocket| {
        let mut datagram = vec![0; MAX_DATAGRAM];
        a.socket.send(to.local_addr().unwrap(), message("recorded")).await.unwrap();
        let length = to.recv(&mut datagram).await.unwrap();
        datagram.truncate(length);
        datagram
    };
    let (first, second) = (recorded(&mut a, &wire).await, recorded(&mut a, &wire).await);
    // As long as nobody is known there, the address could be a translated one of the third node.
    wire.send_to(&first, third.address).await.unwrap();
    assert_eq!(third.socket.recv().await.unwrap().1, message("recorded"));
    let others = vec![wire.local_addr().unwrap()];
    third.receivers.set_receivers(Receivers { own: vec![third.address], others });
    wire.send_to(&second, third.address).await.unwrap();
    a.socket.send(third.address, message("meant")).await.unwrap();
    assert_eq!(third.socket.recv().await.unwrap().1, message("meant"));
    assert_eq!(Metrics::counted(&third.metrics.datagrams_dropped, "for another node"), 1);
    // A build that names no receiver.
    let earlier = FrameCipher::new("c", Some(&keyring)).unwrap();
    let (mut text, mut datagram) = (Vec::new(), Vec::new());
    message("earlier").serialize(&mut text);
    let parts = [&earlier.envelope().encode()[..], &Fragment { index: 0, count: 1, message: 0 }.encode(), &text];
    earlier.encrypt(Purpose::Gossip, b"", &parts, &mut datagram);
    wire.send_to(&datagram, third.address).await.unwrap();
    assert_eq!(third.socket.recv().await.unwrap().1, message("earlier"));
}

#[tokio::test]
async fn sending_to_an_unreachable_address_is_not_an_error() {
    let mut a = end("c", None, MAX_DATAGRAM).await;
    for to in ["127.0.0.1:9", "[::1]:9", "240.0.0.1:9"] {
        a.socket.send(to.parse().unwrap(), message("x")).await.unwrap();
    }
}

#[tokio::test]
async fn a_small_cluster_gossips_with_one_member_per_round_and_sends_nothing_empty() {
    let mut a = end("c", None, MAX_DATAGRAM).await;
    let members: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    a.receivers.set_readers(members.iter().copied().collect());
    let syn = || ChitchatMessage::deserialize(&mut &crate::cluster::tests::syn_naming("m", 4, "c")[..]).unwrap();
    for member in &members {
        a.socket.send(*member, syn()).await.unwrap();
    }
    assert_eq!(a.metrics.datagrams_sent.get(), 1);
    // Whatever is not part of the round is sent at once: to a seed or a dead node, and on request.
    a.socket.send(([127, 0, 0, 1], 4).into(), syn()).await.unwrap();
    a.receivers.request(members[1]);
    a.socket.send(members[1], syn()).await.unwrap();
    assert_eq!(a.metrics.datagrams_sent.get(), 3);
    a.socket.send(members[1], syn()).await.unwrap();
    // chitchat's answer to a node that lacks nothing.
    let ack = ChitchatMessage::deserialize(&mut &[0x53, 0xb0, 0, 2, 0][..]).unwrap();
    a.socket.send(members[2], ack).await.unwrap();
    assert_eq!(a.metrics.datagrams_sent.get(), 3);
}
