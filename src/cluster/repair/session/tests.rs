use tokio::io::{ReadHalf, WriteHalf, duplex, split};

use super::*;
use banmesh_core::seal::{Keyring, key_text};

type Half = (ReadHalf<tokio::io::DuplexStream>, WriteHalf<tokio::io::DuplexStream>);

fn handshake(node: &str, cluster: &str, key: Option<u8>) -> Handshake {
    let keyring = key.map(|key| Keyring::parse(&key_text([key; 32])).unwrap());
    let cipher = Arc::new(FrameCipher::new(cluster, keyring.as_ref()).unwrap());
    Handshake {
        cipher,
        node: node.parse().unwrap(),
        site: None,
        timeout: Duration::from_millis(300),
        dialect: Dialect::default(),
        key_memory: key_memory(),
    }
}

fn ends() -> (Half, Half) {
    let (a, b) = duplex(256 * 1024);
    (split(a), split(b))
}

async fn meet(
    a: &Handshake,
    b: &Handshake,
    busy: bool,
) -> (Result<NodeId, &'static str>, Result<NodeId, &'static str>) {
    let ((ar, aw), (br, bw)) = ends();
    let (a, b) = tokio::join!(a.call(ar, aw), b.answer(busy, br, bw));
    (a.map(|s| s.node).map_err(|e| e.reason()), b.map(|s| s.node).map_err(|e| e.reason()))
}

#[tokio::test]
async fn both_ends_learn_the_id_of_the_other() {
    for key in [None, Some(1)] {
        let (a, b) = meet(&handshake("a", "c", key), &handshake("b", "c", key), false).await;
        assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("b", "a"));
    }
}

#[tokio::test]
async fn unauthenticated_and_busy_ends_are_refused_with_their_reason() {
    let a = handshake("a", "c", Some(1));
    for (b, reason) in [
        (handshake("b", "c", Some(2)), "unknown key"),
        (handshake("b", "d", Some(1)), "wrong cluster"),
        (handshake("b", "c", None), "no keyring"),
        (handshake("a", "c", Some(1)), "our own"),
    ] {
        assert_eq!(meet(&a, &b, false).await.1, Err(reason));
    }
    assert_eq!(meet(&a, &handshake("b", "c", Some(1)), true).await, (Err("busy"), Err("busy")));
}

/// Otherwise the caller would only see a closed connection, which can have many causes.
#[tokio::test]
async fn a_caller_with_another_key_learns_that_the_keys_differ() {
    let a = handshake("a", "c", Some(1));
    for (b, reason) in [
        (handshake("b", "c", Some(2)), "unknown key"),
        (handshake("b", "d", Some(1)), "wrong cluster"),
        (handshake("b", "c", None), "not encrypted"),
    ] {
        assert_eq!(meet(&a, &b, false).await.0, Err(reason));
    }
    assert_eq!(meet(&handshake("a", "c", None), &a, false).await.0, Err("no keyring"));
    // What is no frame of a node gets no answer.
    let ((mut ar, mut aw), (br, bw)) = ends();
    let b = handshake("b", "c", Some(1));
    let (_, answered) =
        tokio::join!(aw.write_all(b"\0\0\0\x20GET / HTTP/1.1\r\nHost: example\r\n"), b.answer(false, br, bw));
    assert!(answered.is_err());
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut ar, &mut said).await.unwrap();
    assert_eq!(said, b"");
}

#[tokio::test]
async fn a_replayed_frame_is_refused() {
    let (a, b) = (handshake("a", "c", Some(1)), handshake("b", "c", Some(1)));
    let ((ar, aw), (br, bw)) = ends();
    let (one, two) = tokio::join!(a.call(ar, aw), b.answer(false, br, bw));
    let (mut one, mut two) = (one.unwrap(), two.unwrap());
    one.writer.send(7, b"first").await.unwrap();
    assert_eq!(two.reader.receive().await.unwrap(), (7, &b"first"[..]));
    let first = one.writer.frame.clone();
    one.writer.send(7, b"second").await.unwrap();
    let second = one.writer.frame.clone();
    assert_eq!(two.reader.receive().await.unwrap(), (7, &b"second"[..]));
    for replayed in [first, second] {
        one.writer.stream.write_all(&replayed).await.unwrap();
        assert_eq!(two.reader.receive().await.unwrap_err().reason(), "not authentic");
    }
}

#[tokio::test]
async fn a_replayed_hello_gives_no_session() {
    let (a, b) = (handshake("a", "c", Some(1)), handshake("b", "c", Some(1)));
    // The first frame after the hello of an earlier session, as an eavesdropper records it.
    let ((ar, aw), (br, bw)) = ends();
    let (one, _two) = tokio::join!(a.call(ar, aw), b.answer(false, br, bw));
    let mut one = one.unwrap();
    one.writer.send(1, b"digests").await.unwrap();
    let recorded = one.writer.frame.clone();
    let ((mut ar, mut aw), (br, bw)) = ends();
    let mut call = Vec::new();
    let hello = Hello {
        random: [5; RANDOM_LEN],
        versions: (banmesh_core::wire::MIN_VERSION, banmesh_core::wire::VERSION),
        busy: false,
        site: None,
        node: "a".parse().unwrap(),
    }
    .encode();
    let timeout = a.timeout;
    write_frame(&mut aw, &a.cipher, (Purpose::Handshake, CALL), &[&hello], &mut call, timeout).await.unwrap();
    let mut two = b.answer(false, br, bw).await.unwrap();
    aw.write_all(&recorded).await.unwrap();
    assert_eq!(two.reader.receive().await.unwrap_err().reason(), "not authentic");
    let mut answer = vec![0; 16];
    ar.read_exact(&mut answer).await.unwrap();
}

#[tokio::test]
async fn garbage_slow_and_long_frames_end_a_session() {
    let b = handshake("b", "c", Some(1));
    for (bytes, reason) in [
        (&b"\xff\xff\xff\xff"[..], "too long"),
        (b"\x10\0\0\0GET / HTTP/1.1\r\n", "unknown version"),
        (b"\x10\0\0\0half", "timeout"),
        (b"", "timeout"),
    ] {
        let ((_ar, mut aw), (br, bw)) = ends();
        aw.write_all(bytes).await.unwrap();
        let error = b.answer(false, br, bw).await.err().unwrap();
        assert_eq!(error.reason(), reason);
    }
    let ((_, mut aw), (br, bw)) = ends();
    aw.write_all(b"\x10\0\0\0half").await.unwrap();
    aw.shutdown().await.unwrap();
    assert_eq!(b.answer(false, br, bw).await.err().unwrap().reason(), "connection");
}
