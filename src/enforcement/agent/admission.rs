//! Admission: which connections the agent serves. Checks the client's address and the connection limit, and does the TLS handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::connection::Connection;
use super::limit::EvictingLimit;
use super::{HANDSHAKE, Shared, Verdicts};
use crate::net::accept::{Acceptor, Listen};
use crate::net::tls::TlsServer;
use banmesh_types::target::{Target, canonical};

/// The agent's sockets.
#[derive(Debug)]
pub(super) struct Listeners {
    pub plain: Option<TcpListener>,
    pub tls: Option<TcpListener>,
}

impl Listen for Listeners {
    /// Whether the connection came over the TLS socket, its stream and its peer.
    type Accepted = (bool, TcpStream, SocketAddr);

    /// If connections wait on both sockets, either may come first.
    async fn accept(&mut self) -> io::Result<Self::Accepted> {
        let (over_tls, accepted) = tokio::select! {
            accepted = accept(self.plain.as_ref()) => (false, accepted),
            accepted = accept(self.tls.as_ref()) => (true, accepted),
        };
        accepted.map(|(stream, peer)| (over_tls, stream, peer))
    }
}

/// The next connection; never ready without a listener.
async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Admits connections and spawns their tasks.
#[derive(Debug)]
pub(super) struct Admission<V> {
    pub tls: Option<TlsServer>,
    pub allowed_clients: Vec<Target>,
    pub verdicts: V,
    pub connections: Arc<EvictingLimit>,
    pub handshakes: Arc<EvictingLimit>,
    pub shared: Arc<Shared>,
}

impl<V: Verdicts> Admission<V> {
    /// Accepts connections and keeps them to the limit until `end`.
    pub async fn accept_until(
        &self,
        end: impl Future<Output = ()>,
        acceptor: &mut Acceptor<Listeners>,
        tasks: &mut JoinSet<()>,
    ) {
        let mut end = std::pin::pin!(end);
        let trimming = async { tokio::join!(self.connections.keep_to_limit(), self.handshakes.keep_to_limit()) };
        let mut trimming = std::pin::pin!(trimming);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                _ = &mut trimming => return,
                Some(result) = tasks.join_next(), if !tasks.is_empty() => {
                    if let Err(error) = result {
                        tracing::error!(%error, "the task of a HAProxy connection failed; this is a bug in banmesh");
                    }
                }
                (over_tls, stream, peer) = acceptor.next() => self.admit(stream, peer, over_tls, tasks),
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, over_tls: bool, tasks: &mut JoinSet<()>) {
        let metrics = &self.shared.metrics;
        let address = canonical(peer.ip());
        // Checked before the limit, so that outsiders cannot evict a HAProxy.
        if !self.allowed_clients.is_empty() && !self.allowed_clients.iter().any(|target| target.contains(address)) {
            metrics.refused_address.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%address, held_back, "refused a connection from outside spoa.allowed_clients");
            }
            return;
        }
        // Without it, answers are later, not wrong.
        let _ = stream.set_nodelay(true);
        match self.tls.as_ref().filter(|_| over_tls) {
            None => self.serve_plain(stream, address, tasks),
            Some(tls) => self.serve_tls(tls.clone(), stream, address, tasks),
        }
    }

    fn serve_plain(&self, stream: TcpStream, peer: IpAddr, tasks: &mut JoinSet<()>) {
        if let Some(connection) = permitted(stream, peer, &self.connections, &self.shared) {
            tasks.spawn(connection.run(self.verdicts.clone()));
        }
    }

    /// Does the TLS handshake in a task of its own, and serves the connection if the limit permits it.
    fn serve_tls(&self, tls: TlsServer, stream: TcpStream, peer: IpAddr, tasks: &mut JoinSet<()>) {
        let Some(mut permit) = EvictingLimit::acquire(&self.handshakes) else {
            self.shared.metrics.handshakes_refused.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%peer, held_back, "refused a connection: spoa.max_clients TLS handshakes are in progress");
            }
            return;
        };
        let (connections, shared) = (Arc::clone(&self.connections), Arc::clone(&self.shared));
        let verdicts = self.verdicts.clone();
        tasks.spawn(async move {
            let accepted = tokio::select! {
                biased;
                _ = &mut permit.revoked => return,
                accepted = tls.accept(stream, HANDSHAKE.min(shared.read_timeout)) => accepted,
            };
            drop(permit);
            match accepted {
                Ok(stream) => {
                    shared.metrics.handshakes_done.inc();
                    if let Some(connection) = permitted(stream, peer, &connections, &shared) {
                        connection.run(verdicts).await;
                    }
                }
                Err(error) => shared.count_failed_handshake(peer, &error),
            }
        });
    }
}

/// The connection with its permit, unless the limit is reached.
fn permitted<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: IpAddr,
    limit: &Arc<EvictingLimit>,
    shared: &Arc<Shared>,
) -> Option<Connection<S>> {
    let Some(permit) = EvictingLimit::acquire(limit) else {
        shared.refuse_at_the_limit(peer);
        return None;
    };
    Some(Connection::new(stream, peer, permit, Arc::clone(shared)))
}
