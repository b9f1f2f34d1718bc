//! Clients that send what is no request, that send nothing, or that use the wrong protocol.

use std::sync::Arc;
use std::time::Duration;

use crate::api::gate::{ADMIN, READ, Served, access, bearer, request};
use crate::api::node::start;
use banmesh::net::tls::{TlsFiles, TlsServer};
use banmesh::operation::api::HttpConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn malformed_requests_are_refused() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let admin = bearer(ADMIN);
    let head = format!("POST /api/v1/bans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{admin}");
    let ban = r#"{"target": "192.0.2.66"}"#;
    let hidden = format!(
        "POST /api/v1/bans HTTP/1.1\r\nHost: localhost\r\n{admin}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{ban}",
        ban.len()
    );
    // Two lengths, a length beside chunks, chunks that are none, chunks under another name: a proxy could see other requests.
    for (headers, body) in [
        ("Content-Length: 2\r\nContent-Length: 3\r\n", format!("{{}}{hidden}")),
        ("Content-Length: 2, 3\r\n", format!("{{}}{hidden}")),
        ("Content-Length: +2\r\n", format!("{{}}{hidden}")),
        ("Content-Length: -1\r\n", hidden.clone()),
        ("Transfer-Encoding: chunked, identity\r\n", format!("0\r\n\r\n{hidden}")),
        ("Transfer-Encoding: xchunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("Transfer-Encoding: chunked\r\n", format!("zz\r\n{hidden}\r\n0\r\n\r\n")),
        ("Content-Length : 2\r\n", format!("{{}}{hidden}")),
    ] {
        let (status, answer) = served.send(format!("{head}{headers}\r\n{body}").as_bytes()).await;
        assert!(status == 0 || status == 400, "{headers}: {answer}");
        assert!(answer.matches("HTTP/1.1").count() <= 1, "{headers}: {answer}");
    }
    // A length beside chunks: the chunks count (RFC 9112 §6.1), and the connection ends after the answer.
    let both = format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
    assert_eq!(served.send(both.as_bytes()).await.0, 400);
    assert_eq!(node.get("/api/v1/bans").await.1["bans"].as_array().unwrap().len(), 0, "nothing was smuggled in");
    // Not UTF-8: in the head, in the path, in the body.
    let ugly = [
        &b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: \xff\xfe\r\n"[..],
        admin.as_bytes(),
        b"\r\n",
    ]
    .concat();
    assert_eq!(served.send(&ugly).await.0, 200);
    for path in ["/api/v1/bans/%ff%fe", "/api/v1/why/%ff", "/api/v1/bans/%00", "/api/v1/bans/..%2f..%2fmetrics"] {
        assert_eq!(served.ask("GET", path, &admin, "").await.0, 400, "{path}");
    }
    let body = [format!("{head}Connection: close\r\nContent-Length: 4\r\n\r\n").as_bytes(), b"\"\xff\xfe\""].concat();
    assert_eq!(served.send(&body).await.0, 400);
    let wrong = [
        ("Authorization: Basic \u{e4}\r\n", 401),
        ("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", 401),
        ("Authorization: Basic Og==\r\n", 401),
    ];
    for (headers, expected) in wrong {
        assert_eq!(served.ask("GET", "/api/v1/ping", headers, "").await.0, expected, "{headers}");
    }
    // Huge ones.
    let huge = "x".repeat(70_000);
    assert_eq!(served.ask("POST", "/api/v1/bans", &admin, &format!("{{\"target\": \"{huge}\"}}")).await.0, 413);
    let announced = format!("{head}Content-Length: 99999999999\r\n\r\n");
    let (status, answer) = served.send(announced.as_bytes()).await;
    assert_eq!(status, 413, "{answer}");
    let heads: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(served.ask("GET", "/api/v1/ping", &format!("{admin}{heads}"), "").await.0, 431);
    assert_eq!(served.ask("GET", "/api/v1/ping", &admin, "").await.0, 200);
}

#[tokio::test]
async fn slow_clients_do_not_block_others() {
    let node = start(&[]).await;
    let served = Served::with(&node, access()).await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let _ = stream.write_all(b"GET /api/v1/ping HTTP/1.1\r\nHo").await;
        slow.push(stream);
    }
    // As many as one client may have were taken, the rest was closed.
    let mut closed = 0;
    for stream in &mut slow {
        let mut byte = [0];
        let end = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut byte)).await;
        closed += u64::from(matches!(end, Ok(Ok(0) | Err(_))));
    }
    // On a slow machine the oldest may have waited long enough to give way.
    assert_eq!((closed, served.refused("connections") + served.refused("evicted")), (36, 36));
    // From another address there is room.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(served.address).await.unwrap();
    other.write_all(request("GET", "/api/v1/ping", &bearer(READ), "").as_bytes()).await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // And for the first one again when it lets go.
    drop(slow);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while served.ask("GET", "/api/v1/ping", &bearer(READ), "").await.0 != 200 {
        assert!(std::time::Instant::now() < deadline, "the connections are still counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Tls {
    _folder: tempfile::TempDir,
    server: TlsServer,
    roots: tokio_rustls::rustls::RootCertStore,
}

fn tls() -> Tls {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = TlsFiles { section: "api.tls", certificate, key, client_ca: None };
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    Tls { _folder: folder, server: TlsServer::load(files).unwrap(), roots }
}

#[tokio::test]
async fn a_tls_listener_does_not_answer_plaintext() {
    let node = start(&[]).await;
    let tls = tls();
    let config = HttpConfig { access: access(), tls: Some(tls.server.clone()), ..Default::default() };
    let served = Served::start(&node, config).await;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let client = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(tls.roots.clone()).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    // Clients that begin no handshake hold no one up.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let stream = TcpStream::connect(served.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(request("GET", "/api/v1/me", &bearer(READ), "").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"mon\""), "{answer}");
    let (_, answer) = served.ask("GET", "/api/v1/me", &bearer(READ), "").await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    assert_eq!(served.refused("tls"), 1);
    // They do not hold up the end either.
    node.shutdown.cancel();
    let mut rest = Vec::new();
    for stream in &mut silent {
        let _ = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut rest)).await.unwrap();
    }
}
