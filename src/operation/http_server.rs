//! Serves HTTP/1.1 on any listener, with bounds on connections, heads and time.

mod local_users;
pub mod rate;
mod write_timeout;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use banmesh_types::address::Address;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use write_timeout::WriteTimeout;

use crate::net::accept::{Acceptor, Listen};
use crate::net::handshake::{HandshakeEnd, Handshakes};
use crate::net::limit::{ConnectionLimit, LimitMetrics, Place};
use crate::net::places::{Client, Rules, Standing};
use crate::net::tls::TlsServer;

/// The default of [`ServerSettings::head_time`].
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The default of [`ServerSettings::handshake_time`].
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// The default of [`ServerSettings::write_time`].
const WRITE_TIME: Duration = Duration::from_secs(60);
/// How long open requests may continue after shutdown.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// A connection without a request keeps its place this long, in milliseconds, and any other this long after its last request. Both matter
/// only when no place is free.
const PATIENCE_MS: (u64, u64) = (250, 60_000);
/// The buffer of a connection, in bytes; also the longest request head.
const HEAD_BYTES: usize = 64 * 1024;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this host.
    Local {
        /// The user id; `None` if the system does not report it.
        uid: Option<u32>,
        /// The name of the user; `None` if `/etc/passwd` does not have it.
        name: Option<String>,
    },
    /// A client over the network.
    Remote(SocketAddr),
}

impl Peer {
    /// Whether it is a process of root on this host.
    pub const fn is_root(&self) -> bool {
        matches!(self, Self::Local { uid: Some(0), .. })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid: Some(0), .. } => f.write_str("root"),
            Self::Local { uid: Some(_), name: Some(name) } => f.write_str(name),
            Self::Local { uid: Some(uid), name: None } => write!(f, "uid {uid}"),
            Self::Local { uid: None, .. } => f.write_str("local user"),
            Self::Remote(address) => write!(f, "{}", address.ip()),
        }
    }
}

/// A socket that accepts HTTP connections.
pub trait Listener: Send + 'static {
    /// The type of a connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection and its peer.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// A [`Listener`] for [`Acceptor`].
struct Http<L>(L);

impl<L: Listener> Listen for Http<L> {
    type Accepted = (L::Stream, Peer);

    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        self.0.accept().await
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer::Local { uid, name: uid.and_then(local_users::name) }))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        let ip = Address::new(address.ip());
        Ok((stream, Peer::Remote(SocketAddr::new(ip.ip(), address.port()))))
    }
}

/// The limits and the TLS of a server.
pub struct ServerSettings {
    /// What is served, for the log: `the API`.
    pub of: &'static str,
    /// The most open connections. Further ones over TCP take the place of an idle one or of the client that holds the most, or
    /// are closed; further local ones wait.
    pub connections: usize,
    /// With it, all connections are TLS.
    pub tls: Option<TlsServer>,
    /// How a remote client is treated. `None`: every client may use all connections.
    pub admit: Option<Box<dyn Fn(Address) -> Admit + Send + Sync>>,
    /// The longest wait for a request head; also limits idle connections.
    pub head_time: Duration,
    /// The longest wait for a client that does not read its answer.
    pub write_time: Duration,
    /// The longest TLS handshake.
    pub handshake_time: Duration,
    /// Called with the reason when a connection is refused.
    pub refused: Option<Box<dyn Fn(&'static str) + Send + Sync>>,
}

/// How a remote client is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It may have up to this many connections.
    Expected(usize),
    /// Its connections have few places of their own, so they cannot take those of expected clients.
    Outsider,
}

/// The places of clients that are not expected, and how many of them one client may have.
const OUTSIDERS: (usize, usize) = (64, 16);

impl ServerSettings {
    /// Settings without TLS and without a limit per client. The log calls what is served `of`.
    pub fn new(of: &'static str, connections: usize) -> Self {
        let (head_time, write_time, handshake_time) = (HEAD_TIME, WRITE_TIME, HANDSHAKE_TIME);
        Self { of, connections, tls: None, admit: None, head_time, write_time, handshake_time, refused: None }
    }

    fn refuse(&self, reason: &'static str) {
        if let Some(refused) = &self.refused {
            refused(reason);
        }
    }
}

/// The limits on the connections of a server.
struct Limits {
    local: Arc<Semaphore>,
    expected: ConnectionLimit,
    outsiders: ConnectionLimit,
    handshakes: Option<Handshakes>,
}

impl Limits {
    fn new(settings: &ServerSettings) -> Self {
        let limit = |of, places| {
            ConnectionLimit::new(of, Rules::new(places, PATIENCE_MS.0, PATIENCE_MS.1), LimitMetrics::default())
        };
        Self {
            local: Arc::new(Semaphore::new(settings.connections)),
            expected: limit(settings.of, settings.connections),
            outsiders: limit("the API from outside of api.allowed_ips", OUTSIDERS.0),
            handshakes: settings
                .tls
                .clone()
                .map(|tls| Handshakes::new("the API, in its TLS handshake", tls, settings.handshake_time)),
        }
    }

    /// A place for a connection of `address`; `None` if none is free and none gives way.
    fn place(&self, address: Address, admit: Admit) -> Option<Place> {
        let client = Client::new(address, standing(admit));
        match admit {
            Admit::Expected(most) => self.expected.take(client, most),
            Admit::Outsider => self.outsiders.take(client, OUTSIDERS.1),
        }
        .ok()
    }
}

const fn standing(admit: Admit) -> Standing {
    Standing::known_if(matches!(admit, Admit::Expected(_)))
}

/// Serves `router` on `listener` until `shutdown`.
///
/// Handlers find the [`Peer`] among the request's extensions.
pub async fn serve<L: Listener>(listener: L, router: Router, settings: ServerSettings, shutdown: CancellationToken) {
    let limits = Arc::new(Limits::new(&settings));
    let settings = Arc::new(settings);
    let open = TaskTracker::new();
    // No metric: errors are logged.
    let mut acceptor = Acceptor::new(Http(listener), settings.of, Counter::default());
    loop {
        let next = async {
            // The semaphore is never closed. Only local connections keep their permit.
            let permit = Arc::clone(&limits.local).acquire_owned().await.ok();
            let (stream, peer) = acceptor.next().await;
            (permit, stream, peer)
        };
        let Some((permit, stream, peer)) = shutdown.run_until_cancelled(next).await else { break };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        let (limits, settings) = (Arc::clone(&limits), Arc::clone(&settings));
        let Peer::Remote(address) = peer else {
            open.spawn(async move {
                connection(stream, peer, None, router, &settings, shutdown).await;
                drop(permit);
            });
            continue;
        };
        drop(permit);
        let ip = address.ip();
        let admit = settings.admit.as_ref().map_or(Admit::Expected(usize::MAX), |admit| admit(ip.into()));
        let Some(handshakes) = &limits.handshakes else {
            match limits.place(ip.into(), admit) {
                Some(place) => {
                    open.spawn(async move {
                        connection(stream, peer, Some(place), router, &settings, shutdown).await;
                    });
                }
                None => settings.refuse("connections"),
            }
            continue;
        };
        let Ok(handshake) = handshakes.begin(Client::new(ip.into(), standing(admit))) else {
            settings.refuse("connections");
            continue;
        };
        open.spawn(async move {
            match shutdown.run_until_cancelled(handshake.finish(stream)).await {
                Some(Ok(stream)) => match limits.place(ip.into(), admit) {
                    Some(place) => {
                        connection(stream, peer, Some(place), router, &settings, shutdown).await;
                    }
                    None => settings.refuse("connections"),
                },
                Some(Err(error)) => {
                    settings.refuse(if matches!(error, HandshakeEnd::GaveWay) { "connections" } else { "tls" });
                    debug!(%peer, %error, "TLS handshake of an API connection failed");
                }
                None => {}
            }
        });
    }
    open.close();
    open.wait().await;
}

async fn connection<S>(
    stream: S,
    peer: Peer,
    mut place: Option<Place>,
    router: Router,
    settings: &ServerSettings,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let watch = place.as_ref().map(Place::watch);
    let answering = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if let Some(watch) = &watch {
            watch.mark_useful();
        }
        request.extensions_mut().insert(peer.clone());
        answering.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, settings.write_time)), service);
    tokio::pin!(served);
    let revoked = async {
        match &mut place {
            Some(place) => drop((&mut place.revoked).await),
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = revoked => {
            settings.refuse("evicted");
            return debug!("closed a connection to the API in favour of another client");
        }
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIME, served).await {
                Ok(ended) => ended,
                Err(_) => return debug!("aborted a request to the API at shutdown"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the API failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::TlsFiles;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_client_that_does_not_read_is_disconnected() {
        // Dropped with the answer.
        struct Held(Arc<Mutex<bool>>);
        impl Drop for Held {
            fn drop(&mut self) {
                *self.0.lock() = true;
            }
        }
        let ended = Arc::new(Mutex::new(false));
        let held = Arc::clone(&ended);
        let endless = axum::routing::get(move || {
            let held = Held(Arc::clone(&held));
            let parts = futures_util::stream::repeat_with(move || {
                let _ = &held;
                Ok::<_, io::Error>(vec![b'x'; 65_536])
            });
            async { axum::body::Body::from_stream(parts) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = ServerSettings { write_time: Duration::from_millis(300), ..ServerSettings::new("tests", 4) };
        let router = Router::new().route("/", endless);
        tokio::spawn(serve(listener, router, settings, CancellationToken::new()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while !*ended.lock() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.expect("the answer is still held");
    }

    /// Starts a server with short limits. Returns its address and the reasons of refused connections.
    async fn start_with_short_limits(tls: Option<TlsServer>) -> (SocketAddr, Arc<Mutex<Vec<&'static str>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, refused) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let reasons = Arc::clone(&refused);
        let settings = ServerSettings {
            tls,
            head_time: Duration::from_millis(300),
            handshake_time: Duration::from_millis(300),
            refused: Some(Box::new(move |reason| reasons.lock().push(reason))),
            ..ServerSettings::new("tests", 4)
        };
        tokio::spawn(serve(listener, Router::new(), settings, CancellationToken::new()));
        (address, refused)
    }

    /// Sends an endless head byte by byte until the server closes the connection. Returns its answer.
    async fn drip(address: SocketAddr) -> Vec<u8> {
        let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
        let dripping = tokio::spawn(async move {
            let head = b"GET / HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x'));
            for byte in head {
                if to.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), from.read_to_end(&mut answer)).await.unwrap();
        dripping.abort();
        answer
    }

    #[tokio::test]
    async fn a_slow_request_head_times_out() {
        let (address, _) = start_with_short_limits(None).await;
        // More connections than the limit, one after the other.
        for _ in 0..6 {
            let answer = drip(address).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
        }
    }

    #[tokio::test]
    async fn a_slow_handshake_times_out() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let files = TlsFiles { section: "api.tls", certificate, key, client_ca: None };
        let (address, refused) = start_with_short_limits(Some(TlsServer::load(files).unwrap())).await;
        for _ in 0..6 {
            let mut silent = TcpStream::connect(address).await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(30), silent.read_to_end(&mut answer)).await.unwrap();
            assert_eq!(answer, b"");
        }
        assert_eq!(*refused.lock(), ["tls"; 6]);
    }
}
