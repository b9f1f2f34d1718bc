//! The sockets between nodes. The cluster opens every socket through a [`Network`], so that the simulator can run the same code on a
//! network of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::accept::Listen;

/// For bursts of gossip. The kernel gives less if `net.core.rmem_max` is lower.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Opens sockets and resolves names.
#[async_trait]
pub trait Network: fmt::Debug + Send + Sync {
    /// Listens on `address`, on TCP and UDP. With port 0, the system chooses a port for TCP, and UDP uses the same.
    async fn listen(&self, address: SocketAddr) -> io::Result<(Listener, Arc<dyn Datagrams>)>;

    /// Connects over TCP. Has no timeout: the caller sets one.
    async fn connect(&self, address: SocketAddr) -> io::Result<Stream>;

    /// The addresses of `host:port`.
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>>;

    /// The local address of datagrams to `remote`, if there is a route to it. Sends nothing.
    async fn source_to(&self, remote: SocketAddr) -> Option<IpAddr>;
}

/// A socket for datagrams.
#[async_trait]
pub trait Datagrams: fmt::Debug + Send + Sync {
    /// The address that the socket is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Sends one datagram.
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize>;

    /// Receives one datagram. Cancel safe.
    async fn recv_from(&self, datagram: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
}

/// A socket that accepts connections.
#[async_trait]
pub trait Streams: fmt::Debug + Send {
    /// The address that the socket is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Waits for the next connection. Cancel safe.
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)>;
}

/// A boxed [`Streams`].
#[derive(Debug)]
pub struct Listener(Box<dyn Streams>);

impl Listener {
    /// Wraps a socket.
    pub fn new(streams: impl Streams + 'static) -> Self {
        Self(Box::new(streams))
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    /// As the socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Listen for Listener {
    type Accepted = (Stream, SocketAddr);

    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        self.0.accept().await
    }
}

/// A connection between two nodes. Small writes are sent at once.
pub struct Stream(Box<dyn Duplex>);

/// The two directions of a connection.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Stream {
    /// Wraps a connection.
    pub fn new(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(connection))
    }

    fn of_system(connection: TcpStream) -> Self {
        // Small frames at the end of a session must not wait for an acknowledgement.
        let _ = connection.set_nodelay(true);
        Self::new(connection)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().0).poll_shutdown(cx)
    }
}

/// The network of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNetwork;

#[async_trait]
impl Network for SystemNetwork {
    async fn listen(&self, address: SocketAddr) -> io::Result<(Listener, Arc<dyn Datagrams>)> {
        let streams = TcpListener::bind(address).await?;
        let datagrams = UdpSocket::bind(streams.local_addr()?).await?;
        // A small buffer still works.
        let _ = socket2::SockRef::from(&datagrams).set_recv_buffer_size(RECEIVE_BUFFER);
        Ok((Listener::new(streams), Arc::new(datagrams)))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        Ok(Stream::of_system(TcpStream::connect(address).await?))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name).await?.collect())
    }

    async fn source_to(&self, remote: SocketAddr) -> Option<IpAddr> {
        let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await.ok()?;
        socket.connect(remote).await.ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified()).then_some(ip)
    }
}

#[async_trait]
impl Datagrams for UdpSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        Self::send_to(self, datagram, to).await
    }

    async fn recv_from(&self, datagram: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Self::recv_from(self, datagram).await
    }
}

#[async_trait]
impl Streams for TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        Ok((Stream::of_system(stream), from))
    }
}
