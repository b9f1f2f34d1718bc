//! The sockets of the listeners for mail servers: who may connect, how many, and when a connection must end.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::queries::{Answer, Queries};
use crate::net::accept::{Acceptor, Listen};
use crate::net::limit::{ConnectionLimit, LimitMetrics, Place};
use crate::net::listen::ListenError;
use crate::net::places::{Client, Rules, Standing};
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// Connections that the kernel queues for us.
const BACKLOG: i32 = 1024;
/// When no place is free, a connection without a query keeps its place this long, in milliseconds, and any other this long after its last
/// query. Postfix keeps idle connections for minutes.
const PATIENCE_MS: (u64, u64) = (1000, 10_000);
/// Everybody on this host may ask. The directory of the socket can restrict that.
const SOCKET_MODE: u32 = 0o666;

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An accepted connection with its place.
pub(super) struct MailClient {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// The client's address. `None` on a Unix socket.
    pub address: Option<Address>,
    /// Its place. The connection must end when it is revoked.
    pub place: Place,
}

/// The sockets that accept connections.
struct Sockets {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
}

impl Listen for Sockets {
    type Accepted = (Box<dyn Stream>, Option<Address>);

    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        tokio::select! {
            accepted = tcp(self.tcp.as_ref()) => {
                let (stream, peer) = accepted?;
                // Without it, answers are later, not wrong.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Some(Address::new(peer.ip()))))
            }
            accepted = unix(self.unix.as_ref()) => Ok((Box::new(accepted?), None)),
        }
    }
}

async fn tcp(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn unix(listener: Option<&UnixListener>) -> io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Accepts the connections of one listener.
pub(super) struct MailListener {
    acceptor: Acceptor<Sockets>,
    /// Removed on drop.
    path: Option<PathBuf>,
    allowed: Vec<Target>,
    limit: ConnectionLimit,
    most: usize,
    queries: Queries,
}

impl MailListener {
    /// Listens on `address` and on the Unix socket `path`, for `most` connections from `allowed` and from this host's Unix socket.
    pub fn open(
        keys: (&'static str, &'static str),
        (address, path): (Option<SocketAddr>, Option<&Path>),
        allowed: Vec<Target>,
        most: usize,
        queries: Queries,
    ) -> Result<Self, ListenError> {
        let tcp = address.map(|address| {
            listen_tcp(address).map_err(|source| ListenError::new(keys.0, format_args!("{address} (tcp)"), source))
        });
        let unix = path.map(|path| {
            let failed = |source| ListenError::new(keys.1, path.display(), source);
            listen_unix(path).map_err(failed)
        });
        let sockets = Sockets { tcp: tcp.transpose()?, unix: unix.transpose()? };
        let rules = Rules::new(most, PATIENCE_MS.0, PATIENCE_MS.1);
        Ok(Self {
            acceptor: Acceptor::new(sockets, queries.section(), Default::default()),
            path: path.map(Path::to_owned),
            allowed,
            limit: ConnectionLimit::new(queries.section(), rules, LimitMetrics::default()),
            most,
            queries,
        })
    }

    /// The TCP address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.acceptor.listener().tcp.as_ref()?.local_addr().ok()
    }

    /// Accepts until `shutdown`, runs `serve` for each connection, and waits until they have ended.
    pub async fn serve<F>(&mut self, shutdown: CancellationToken, serve: impl Fn(MailClient, CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let open = TaskTracker::new();
        while let Some((stream, address)) = shutdown.run_until_cancelled(self.acceptor.next()).await {
            if let Some(address) = address.filter(|address| !is_allowed(&self.allowed, *address)) {
                let why = format!("it is not in {}.allowed_clients", self.queries.section());
                self.queries.complain(Answer::Refused, Some(address), &why);
                continue;
            }
            let client = Client::new(address.unwrap_or(Address::LOCALHOST), Standing::Known);
            match self.limit.take(client, self.most) {
                Ok(place) => drop(open.spawn(serve(MailClient { stream, address, place }, shutdown.clone()))),
                Err(_) => self.queries.complain(Answer::Dropped, address, "all connections are in use"),
            }
        }
        open.close();
        open.wait().await;
    }
}

impl Drop for MailListener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The next start replaces it otherwise.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether a client is in the list. An empty list allows nobody.
pub(super) fn is_allowed(allowed: &[Target], client: Address) -> bool {
    allowed.iter().any(|target| target.contains(client))
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Opens a UDP socket.
pub(super) fn listen_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(bound(address, Type::DGRAM, Protocol::UDP)?.into())
}

fn bound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        // `[::]` includes IPv4, whatever the system's default is.
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Listens on a Unix socket and replaces that of a dead node.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "the path is not a socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => return Err(ErrorKind::AddrInUse.into()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_socket_of_a_dead_node_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.sock");
        let queries = crate::enforcement::mail::Metrics::default().of("policy");
        let open = |path: &Path| {
            MailListener::open(("a", "policy.socket"), (None, Some(path)), Vec::new(), 9, queries.clone())
        };
        let listener = open(&path).unwrap();
        let error = open(&path).err().unwrap().to_string();
        assert!(error.contains("policy.socket") && error.contains("stop the program"), "{error}");
        drop(listener);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(open(&path).is_ok());
        fs::write(&path, "precious").unwrap();
        let error = open(&path).err().unwrap().to_string();
        assert!(error.contains("not a socket") && error.contains("move the file away"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
