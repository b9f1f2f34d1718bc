//! Serves HTTP/1.1 on any listener, with bounds on connections, heads and time.

pub mod rate;
mod write_timeout;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use rate::of_network;
use write_timeout::WriteTimeout;

use crate::net::throttle::LogThrottle;
use crate::net::tls::TlsServer;

/// [`ServerSettings::head_time`] unless told otherwise.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// [`ServerSettings::handshake_time`] unless told otherwise.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// [`ServerSettings::write_time`] unless told otherwise.
const WRITE_TIME: Duration = Duration::from_secs(60);
/// How long open requests may go on when the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// The bytes of a connection's buffer: no head may be longer.
const HEAD_BYTES: usize = 64 * 1024;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this host, by its user.
    Local {
        /// The user's number; `None` when the system does not tell.
        uid: Option<u32>,
    },
    /// A client over the network.
    Remote(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid: Some(0) } => f.write_str("root"),
            Self::Local { uid: Some(uid) } => write!(f, "uid {uid}"),
            Self::Local { uid: None } => f.write_str("local user"),
            Self::Remote(address) => write!(f, "{}", address.ip()),
        }
    }
}

/// Something that accepts connections.
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who is at its other end.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer::Local { uid }))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        let ip = address.ip().to_canonical();
        Ok((stream, Peer::Remote(SocketAddr::new(ip, address.port()))))
    }
}

/// The connections that come in.
pub struct ServerSettings {
    /// At most so many at a time; further ones wait to be accepted.
    pub connections: usize,
    /// Connections are TLS.
    pub tls: Option<TlsServer>,
    /// At most so many at a time of this client over the network; further ones are closed.
    pub of_one: Option<Box<dyn Fn(IpAddr) -> usize + Send + Sync>>,
    /// The longest wait for a request's head, on a connection that idles too.
    pub head_time: Duration,
    /// The longest wait for a client that reads nothing of its answer.
    pub write_time: Duration,
    /// The longest TLS handshake.
    pub handshake_time: Duration,
    /// Is told why a connection was not served.
    pub refused: Option<Box<dyn Fn(&'static str) + Send + Sync>>,
}

impl ServerSettings {
    /// So many connections without TLS, of whomever.
    pub fn new(connections: usize) -> Self {
        let (head_time, write_time, handshake_time) = (HEAD_TIME, WRITE_TIME, HANDSHAKE_TIME);
        Self { connections, tls: None, of_one: None, head_time, write_time, handshake_time, refused: None }
    }

    fn refuse(&self, reason: &'static str) {
        if let Some(told) = &self.refused {
            told(reason);
        }
    }
}

/// Serves `router` on `listener` until `shutdown`.
///
/// Handlers find the [`Peer`] among the request's extensions.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    settings: ServerSettings,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.connections));
    let (settings, clients) = (Arc::new(settings), Clients::default());
    let open = TaskTracker::new();
    let failing = LogThrottle::new(Duration::from_secs(60));
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((place, stream, peer))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = next => accepted,
        };
        match accepted {
            Ok((place, stream, peer)) => {
                let Some(client) = clients.enter(&peer, &settings) else {
                    settings.refuse("connections");
                    continue;
                };
                let (router, shutdown, settings) = (router.clone(), shutdown.clone(), Arc::clone(&settings));
                open.spawn(async move {
                    match &settings.tls {
                        None => connection(stream, peer, router, &settings, shutdown).await,
                        Some(tls) => {
                            match shutdown.run_until_cancelled(tls.accept(stream, settings.handshake_time)).await {
                                Some(Ok(stream)) => connection(stream, peer, router, &settings, shutdown).await,
                                Some(Err(error)) => {
                                    settings.refuse("tls");
                                    debug!(%peer, %error, "no TLS connection to the API");
                                }
                                None => {}
                            }
                        }
                    }
                    drop((client, place));
                });
            }
            Err(error) => {
                if let Some(more) = failing.permit(std::time::Instant::now()) {
                    warn!(%error, and_more = more, "cannot accept a connection to the API");
                }
                // Out of file descriptors, most likely: that takes a moment to pass.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    open.close();
    open.wait().await;
}

/// How many connections each client has, an IPv6 /64 counting as one; as many entries as connections at most.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection that counts until it is dropped.
struct Entered(Option<(Clients, IpAddr)>);

impl Clients {
    /// `None` when the client has as many as it may.
    fn enter(&self, peer: &Peer, settings: &ServerSettings) -> Option<Entered> {
        let (Peer::Remote(address), Some(of_one)) = (peer, &settings.of_one) else { return Some(Entered(None)) };
        let (limit, client) = (of_one(address.ip()), of_network(address.ip()));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(client).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(all);
        Some(Entered(Some((self.clone(), client))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some((clients, client)) = &self.0 else { return };
        let mut all = clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                all.remove(client);
            }
        }
    }
}

async fn connection<S>(stream: S, peer: Peer, router: Router, settings: &ServerSettings, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answering = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        answering.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, settings.write_time)), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIME, served).await {
                Ok(ended) => ended,
                Err(_) => return debug!("a request to the API was cut off"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the API ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::TlsFiles;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn who_does_not_read_an_answer_is_not_waited_for() {
        // Dropped with the answer.
        struct Held(Arc<Mutex<bool>>);
        impl Drop for Held {
            fn drop(&mut self) {
                *self.0.lock().unwrap() = true;
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
        let settings = ServerSettings { write_time: Duration::from_millis(300), ..ServerSettings::new(4) };
        let router = Router::new().route("/", endless);
        tokio::spawn(serve(listener, router, settings, CancellationToken::new()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while !*ended.lock().unwrap() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.expect("the answer is still held");
    }

    /// Serves nothing, impatiently; where, and a count of the refused.
    async fn impatient(tls: Option<TlsServer>) -> (SocketAddr, Arc<Mutex<Vec<&'static str>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, refused) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let told = Arc::clone(&refused);
        let settings = ServerSettings {
            tls,
            head_time: Duration::from_millis(300),
            handshake_time: Duration::from_millis(300),
            refused: Some(Box::new(move |reason| told.lock().unwrap().push(reason))),
            ..ServerSettings::new(4)
        };
        tokio::spawn(serve(listener, Router::new(), settings, CancellationToken::new()));
        (address, refused)
    }

    /// Sends a byte now and then until the other side hangs up; what it said.
    async fn drip(address: SocketAddr) -> Vec<u8> {
        let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
        let dripping = tokio::spawn(async move {
            // Ever more of a head that never ends.
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
    async fn a_head_that_drips_in_is_not_waited_for() {
        let (address, _) = impatient(None).await;
        // More than there are places, one after the other.
        for _ in 0..6 {
            let answer = drip(address).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
        }
    }

    #[tokio::test]
    async fn neither_is_a_handshake() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let files = TlsFiles { section: "api.tls", certificate, key, client_ca: None };
        let (address, refused) = impatient(Some(TlsServer::load(files).unwrap())).await;
        for _ in 0..6 {
            let mut silent = TcpStream::connect(address).await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(30), silent.read_to_end(&mut answer)).await.unwrap();
            assert_eq!(answer, b"");
        }
        assert_eq!(*refused.lock().unwrap(), ["tls"; 6]);
    }
}
