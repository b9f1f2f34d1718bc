//! Admission: which connections the agent serves. Checks the client's address and the connection limit, and does the TLS handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};

use super::connection::Connection;
use super::lanes::Lanes;
use super::limit::{AgentLimit, Permit};
use super::refused::Refused;
use super::{Shared, Verdicts};
use crate::net::accept::{Acceptor, Listen};
use crate::net::handshake::{HandshakeEnd, Handshakes};
use crate::net::places::{Client, Standing};
use banmesh_types::address::Address;
use banmesh_types::target::Target;

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

/// Admits connections and runs them.
#[derive(Debug)]
pub(super) struct Admission<V> {
    pub handshakes: Option<Handshakes>,
    pub allowed_clients: Vec<Target>,
    pub verdicts: V,
    pub connections: Arc<AgentLimit>,
    pub shared: Arc<Shared>,
}

impl<V: Verdicts> Admission<V> {
    /// Accepts connections and keeps them to the limit until `end`.
    pub async fn accept_until(
        &self,
        end: impl Future<Output = ()>,
        acceptor: &mut Acceptor<Listeners>,
        lanes: &mut Lanes,
    ) {
        let mut end = std::pin::pin!(end);
        let handshakes = async {
            match &self.handshakes {
                Some(handshakes) => handshakes.limit().keep_settled().await,
                None => std::future::pending().await,
            }
        };
        let trimming = async { tokio::join!(self.connections.keep_to_limit(), handshakes) };
        let mut trimming = std::pin::pin!(trimming);
        let mut refused = Refused::default();
        loop {
            let release = async {
                match refused.next() {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut end => return,
                _ = &mut trimming => return,
                () = lanes.reap() => {}
                () = release => refused.release(tokio::time::Instant::now()),
                (over_tls, stream, peer) = acceptor.next() => {
                    if let Some((client, stream)) = self.admit(stream, peer, over_tls, lanes) {
                        refused.close(stream, client, tokio::time::Instant::now());
                    }
                }
            }
        }
    }

    /// Revokes every place and admits no more.
    pub fn revoke_all(&self) {
        if let Some(handshakes) = &self.handshakes {
            handshakes.limit().revoke_all();
        }
        self.connections.revoke_all();
    }

    /// Serves a connection. Returns it if there is no place for it.
    fn admit(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        over_tls: bool,
        lanes: &mut Lanes,
    ) -> Option<(Client, TcpStream)> {
        let metrics = &self.shared.metrics;
        let address = Address::new(peer.ip());
        // Checked before the limit, so that outsiders cannot evict a HAProxy.
        let is_listed = self.allowed_clients.iter().any(|target| target.contains(address));
        if !self.allowed_clients.is_empty() && !is_listed {
            metrics.refused_address.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%address, held_back, "refused a connection from outside spoa.allowed_clients");
            }
            return None;
        }
        let client = Client::new(address, Standing::known_if(is_listed || address.is_loopback()));
        // Without it, answers are later, not wrong.
        let _ = stream.set_nodelay(true);
        match self.handshakes.as_ref().filter(|_| over_tls) {
            None => self.serve_plain(stream, address, client, lanes),
            Some(handshakes) => self.serve_tls(handshakes, stream, address, client, lanes),
        }
        .map(|stream| (client, stream))
    }

    fn serve_plain(&self, stream: TcpStream, peer: Address, client: Client, lanes: &mut Lanes) -> Option<TcpStream> {
        let Some(permit) = permitted(peer, client, &self.connections, &self.shared) else { return Some(stream) };
        let (shared, verdicts) = (Arc::clone(&self.shared), self.verdicts.clone());
        lanes.spawn(client, |turn| Connection::new(stream, peer, permit, turn, shared).run(verdicts));
        None
    }

    /// Does the TLS handshake on its own place, and serves the connection if the limit permits it.
    fn serve_tls(
        &self,
        handshakes: &Handshakes,
        stream: TcpStream,
        peer: Address,
        client: Client,
        lanes: &mut Lanes,
    ) -> Option<TcpStream> {
        let Ok(handshake) = handshakes.begin(client) else {
            self.shared.metrics.handshakes_refused.inc();
            if let Some(held_back) = self.shared.refusals.permit(Instant::now()) {
                tracing::warn!(%peer, held_back, "refused a connection: too many TLS handshakes are in progress for spoa.max_clients");
            }
            return Some(stream);
        };
        let (connections, shared) = (Arc::clone(&self.connections), Arc::clone(&self.shared));
        let verdicts = self.verdicts.clone();
        lanes.spawn(client, |turn| async move {
            match handshake.finish(stream).await {
                Ok(stream) => {
                    shared.metrics.handshakes_done.inc();
                    if let Some(permit) = permitted(peer, client, &connections, &shared) {
                        Connection::new(stream, peer, permit, turn, shared).run(verdicts).await;
                    }
                }
                Err(HandshakeEnd::GaveWay) => {}
                Err(HandshakeEnd::Failed(error)) => shared.count_failed_handshake(peer, &error),
            }
        });
        None
    }
}

/// A permit, unless the limit is reached.
fn permitted(peer: Address, client: Client, limit: &Arc<AgentLimit>, shared: &Shared) -> Option<Permit> {
    let permit = AgentLimit::acquire(limit, client);
    if permit.is_none() {
        shared.refuse_at_the_limit(peer);
    }
    permit
}
