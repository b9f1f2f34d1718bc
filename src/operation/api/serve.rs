//! Serves HTTP/1.1 on any listener, with bounds on connections, heads and time.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
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

use super::patience::Patient;
use crate::net::accept::{Acceptor, Listen};
use crate::net::limit::{ConnectionLimit, ConnectionPermit};
use crate::net::tls::TlsServer;

/// [`Door::head_time`] unless told otherwise.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// [`Door::handshake_time`] unless told otherwise.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// [`Door::write_time`] unless told otherwise.
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

/// A socket that accepts HTTP connections.
pub trait Listener: Send + 'static {
    /// A connection.
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
pub struct Door {
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

impl Door {
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
pub async fn serve<L: Listener>(listener: L, router: Router, door: Door, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(door.connections));
    // `places` bounds the total: connections beyond it wait to be accepted.
    let (door, clients) = (Arc::new(door), ConnectionLimit::new(usize::MAX));
    let open = TaskTracker::new();
    // No metric: errors are logged.
    let mut acceptor = Acceptor::new(Http(listener), "the API", Counter::default());
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            let (stream, peer) = acceptor.next().await;
            (place, stream, peer)
        };
        let Some((place, stream, peer)) = shutdown.run_until_cancelled(next).await else { break };
        let Some(permit) = permitted(&clients, &peer, &door) else {
            door.refuse("connections");
            continue;
        };
        let (router, shutdown, door) = (router.clone(), shutdown.clone(), Arc::clone(&door));
        open.spawn(async move {
            match &door.tls {
                None => connection(stream, peer, router, &door, shutdown).await,
                Some(tls) => match shutdown.run_until_cancelled(tls.accept(stream, door.handshake_time)).await {
                    Some(Ok(stream)) => connection(stream, peer, router, &door, shutdown).await,
                    Some(Err(error)) => {
                        door.refuse("tls");
                        debug!(%peer, %error, "no TLS connection to the API");
                    }
                    None => {}
                },
            }
            drop((permit, place));
        });
    }
    open.close();
    open.wait().await;
}

/// A permit for one more connection of `peer`, if its client has a limit; `None` when that limit is reached.
fn permitted(clients: &ConnectionLimit, peer: &Peer, door: &Door) -> Option<Option<ConnectionPermit>> {
    let (Peer::Remote(address), Some(of_one)) = (peer, &door.of_one) else { return Some(None) };
    clients.acquire(address.ip(), of_one(address.ip())).ok().map(Some)
}

async fn connection<S>(stream: S, peer: Peer, router: Router, door: &Door, shutdown: CancellationToken)
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
        .header_read_timeout(door.head_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream, door.write_time)), service);
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
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn who_does_not_read_an_answer_is_not_waited_for() {
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
        let door = Door { write_time: Duration::from_millis(300), ..Door::new(4) };
        let router = Router::new().route("/", endless);
        tokio::spawn(serve(listener, router, door, CancellationToken::new()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let waited = tokio::time::timeout(Duration::from_secs(30), async {
            while !*ended.lock() {
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
        let door = Door {
            tls,
            head_time: Duration::from_millis(300),
            handshake_time: Duration::from_millis(300),
            refused: Some(Box::new(move |reason| told.lock().push(reason))),
            ..Door::new(4)
        };
        tokio::spawn(serve(listener, Router::new(), door, CancellationToken::new()));
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
        assert_eq!(*refused.lock(), ["tls"; 6]);
    }
}
