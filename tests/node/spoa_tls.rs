//! The SPOE agent over TLS: the connection limit, failed handshakes, and shutdown. (tests/spoa.rs tests what does not depend on
//! TLS; cluster-tests/tests/cluster/spop_tls.rs tests with real HAProxy.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use banmesh::enforcement::agent::{Metrics, Spoa, SpoaConfig, Verdicts};
use banmesh::net::tls::{TlsFiles, TlsServer};
use banmesh_spop::data::{Data, encode_pair, encode_string};
use banmesh_spop::{Code, frame, varint};
use banmesh_types::address::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

/// A generous timeout for everything in this file.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Everybody;

impl Verdicts for Everybody {
    fn is_banned(&mut self, _: Address) -> bool {
        true
    }
}

struct Agent {
    plain: SocketAddr,
    tls: SocketAddr,
    connector: TlsConnector,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// The server side of TLS, and its self-signed certificate.
fn server() -> (TlsServer, String) {
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("certificate.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let files = TlsFiles { section: "spoa.tls", certificate, key, client_ca: None };
    (TlsServer::load(files).unwrap(), pair.cert.pem())
}

impl Agent {
    fn start(config: SpoaConfig) -> Self {
        let (server, certificate) = server();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let metrics = Metrics::default();
        let config = SpoaConfig { listen: Some(any), tls: Some((any, server)), ..config };
        let spoa = Spoa::bind(config, Everybody, metrics.clone()).unwrap();
        let (plain, tls) = (spoa.local_addr().unwrap(), spoa.tls_addr().unwrap());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(spoa.serve(shutdown.clone()));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { plain, tls, connector: TlsConnector::from(Arc::new(client)), metrics, shutdown, task }
    }

    async fn plain(&self) -> Client<TcpStream> {
        Client(timeout(PATIENCE, TcpStream::connect(self.plain)).await.unwrap().unwrap())
    }

    /// A connection to the TLS port that has sent nothing.
    async fn silent(&self) -> Client<TcpStream> {
        Client(timeout(PATIENCE, TcpStream::connect(self.tls)).await.unwrap().unwrap())
    }

    async fn tls(&self) -> std::io::Result<Client<TlsStream<TcpStream>>> {
        let stream = self.silent().await.0;
        let name = ServerName::try_from("localhost").unwrap();
        timeout(PATIENCE, self.connector.connect(name, stream)).await.unwrap().map(Client)
    }
}

struct Client<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.0.write_all(bytes)).await.unwrap().unwrap();
    }

    /// The next frame without its length.
    async fn frame(&mut self) -> Vec<u8> {
        timeout(PATIENCE, async {
            let length = self.0.read_u32().await.unwrap();
            let mut body = vec![0; length as usize];
            self.0.read_exact(&mut body).await.unwrap();
            body
        })
        .await
        .unwrap()
    }

    async fn greeted(mut self) -> Self {
        self.send(&hello(false)).await;
        assert_eq!(self.frame().await[0], 101);
        self
    }

    async fn is_answered(&mut self) {
        self.send(&notify()).await;
        let mut verdict = Vec::new();
        frame::encode_verdict(&[7, 1], true, &mut verdict);
        assert_eq!(self.frame().await, verdict[4..]);
    }

    async fn ends_with(&mut self, code: Code) {
        assert_eq!(self.frame().await, disconnect(code));
        self.closed().await;
    }

    async fn closed(&mut self) {
        let end = timeout(PATIENCE, self.0.read_u8()).await.unwrap();
        assert!(end.is_err(), "another byte: {end:?}");
    }
}

fn frame_of(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 1];
    varint::encode(id, &mut body);
    varint::encode(u64::from(kind == 3), &mut body);
    body.extend_from_slice(payload);
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

fn hello(healthcheck: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(b"2.0"), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(16380), &mut payload);
    encode_pair("capabilities", &Data::String(if healthcheck { b"" } else { b"pipelining" }), &mut payload);
    encode_pair("healthcheck", &Data::Bool(healthcheck), &mut payload);
    frame_of(1, 0, &payload)
}

fn notify() -> Vec<u8> {
    let mut payload = Vec::new();
    encode_string(b"check-ip", &mut payload);
    payload.push(1);
    encode_pair("src_ip", &Data::Ipv4([192, 0, 2, 1].into()), &mut payload);
    frame_of(3, 7, &payload)
}

fn disconnect(code: Code) -> Vec<u8> {
    let mut output = Vec::new();
    frame::encode_disconnect(code, &mut output);
    output.split_off(4)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn plain_and_tls_connections_share_the_limit() {
    let agent = Agent::start(SpoaConfig { max_clients: 2, ..SpoaConfig::default() });
    let mut plain = agent.plain().await.greeted().await;
    let mut secret = agent.tls().await.unwrap().greeted().await;
    plain.is_answered().await;
    secret.is_answered().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    plain.is_answered().await;
    let mut another = agent.tls().await.unwrap().greeted().await;
    secret.ends_with(Code::Normal).await;
    another.is_answered().await;
    plain.is_answered().await;
    assert_eq!((agent.metrics.connections.get(), agent.metrics.evicted.get()), (3, 1));
    assert_eq!(agent.metrics.handshakes_done.get(), 2);
}

#[tokio::test]
async fn unfinished_handshakes_do_not_count_as_connections() {
    let agent = Agent::start(SpoaConfig { max_clients: 1, ..SpoaConfig::default() });
    let mut haproxy = agent.tls().await.unwrap().greeted().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(agent.silent().await);
    }
    let metrics = &agent.metrics;
    until("all but one are gone", || metrics.handshakes_refused.get() + metrics.handshakes_evicted.get() == 19).await;
    haproxy.is_answered().await;
    assert_eq!((metrics.connections.get(), metrics.evicted.get(), metrics.handshakes_open.get()), (1, 0, 1));
    // A silent connection is evicted in favour of a handshake that succeeds.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut other = agent.tls().await.unwrap().greeted().await;
    other.is_answered().await;
    haproxy.ends_with(Code::Normal).await;
}

#[tokio::test]
async fn failed_and_slow_handshakes_are_closed_and_counted() {
    let agent = Agent::start(SpoaConfig { read_timeout: Duration::from_millis(1500), ..SpoaConfig::default() });
    let mut silent = agent.silent().await;
    let mut plain = agent.silent().await;
    plain.send(&hello(false)).await;
    // An alert may arrive before the end of the stream, but no frame.
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, plain.0.read_to_end(&mut said)).await.unwrap();
    assert!(said.first().is_none_or(|byte| *byte == 21), "{said:?}");
    silent.closed().await;
    until("both", || agent.metrics.handshakes_failed.get() + agent.metrics.handshakes_slow.get() == 2).await;
    assert_eq!((agent.metrics.handshakes_failed.get(), agent.metrics.handshakes_slow.get()), (1, 1));
    assert_eq!((agent.metrics.connections.get(), agent.metrics.handshakes_open.get()), (0, 0));
    // TLS on the plaintext port is not SPOP.
    let stream = agent.plain().await.0;
    let name = ServerName::try_from("localhost").unwrap();
    assert!(timeout(PATIENCE, agent.connector.connect(name, stream)).await.unwrap().is_err());
}

#[tokio::test]
async fn a_draining_agent_fails_health_checks_over_tls_and_keeps_answering() {
    let agent = Agent::start(SpoaConfig { drain: Duration::from_secs(2), ..SpoaConfig::default() });
    let mut client = agent.tls().await.unwrap().greeted().await;
    let mut check = agent.tls().await.unwrap();
    check.send(&hello(true)).await;
    assert_eq!(check.frame().await[0], 101);
    check.closed().await;
    agent.shutdown.cancel();
    let failing = async {
        loop {
            let mut check = agent.tls().await.unwrap();
            check.send(&hello(true)).await;
            if check.frame().await == disconnect(Code::Normal) {
                return;
            }
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    client.is_answered().await;
    let mut silent = agent.silent().await;
    client.ends_with(Code::Normal).await;
    silent.closed().await;
    timeout(PATIENCE, agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_its_key() {
    let agent = Agent::start(SpoaConfig::default());
    let taken = SpoaConfig { listen: None, tls: Some((agent.tls, server().0)), ..SpoaConfig::default() };
    let Err(error) = Spoa::bind(taken, Everybody, Metrics::default()) else { panic!("the port is taken") };
    assert_eq!(error.at, agent.tls.to_string());
    assert!(error.to_string().contains("spoa.tls.address"), "{error}");
}
