//! Repairs that other nodes begin.
//!
//! A connection that does not authenticate is closed without an answer. Unauthenticated connections are limited in number and
//! time. When there are too many, the address that has the most of them loses its oldest, and addresses of live members lose theirs
//! last. So a flood of them does not keep out a node, even over a slow link.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::MAX_SESSION;
use super::exchange;
use super::session::{Handshake, SessionError, within};
use crate::cluster::bridges::ServedBy;
use crate::cluster::inbox::Inbox;
use crate::cluster::metrics::Metrics;
use crate::cluster::stream;
use crate::decisions::batch::Source;
use crate::decisions::store::StoreHandle;
use crate::net::accept::Acceptor;
use crate::net::limit::{ConnectionLimit, LimitMetrics, Place};
use crate::net::network::{self, Stream};
use crate::net::places::{Client, Rules, Standing};
use crate::net::throttle::LogThrottle;
use banmesh_cluster::members::Members;
use banmesh_cluster::repair::ProtocolError;
use banmesh_types::address::Address;

/// Authenticated sessions at a time.
const MAX_SESSIONS: usize = 8;
/// Connections at a time over which other nodes send slots of their recent-changes logs.
const MAX_STREAMS: usize = 64;
/// Unauthenticated connections at a time.
const MAX_UNAUTHENTICATED: usize = 256;

/// The caller's first frame. It proves that the session is not a replay.
enum First {
    /// A repair.
    Repair(exchange::Opening),
    /// Slots of the recent-changes log.
    Slot(Vec<u8>),
}

/// Accepts repairs. Cheap to clone.
#[derive(Clone)]
pub(in crate::cluster) struct Listener {
    handshake: Handshake,
    store: StoreHandle,
    metrics: Metrics,
    sessions: Arc<Semaphore>,
    unauthenticated: ConnectionLimit,
    members: watch::Receiver<Arc<Members>>,
    inbox: Inbox,
    /// The names of the other sites, and whom this node has served of each.
    sites: Arc<[(String, ServedBy)]>,
    streams: Arc<Semaphore>,
    throttle: Arc<LogThrottle>,
}

impl Listener {
    pub(in crate::cluster) fn new(
        handshake: Handshake,
        store: StoreHandle,
        metrics: Metrics,
        members: watch::Receiver<Arc<Members>>,
        inbox: Inbox,
        sites: Arc<[(String, ServedBy)]>,
    ) -> Self {
        // All places are for members if they need them, and a newcomer always replaces an older connection.
        let rules = Rules { known_share: MAX_UNAUTHENTICATED, ..Rules::new(MAX_UNAUTHENTICATED, 0, 0) };
        Self {
            handshake,
            store,
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            unauthenticated: ConnectionLimit::new(
                "repair, before it is authenticated",
                rules,
                LimitMetrics {
                    evicted: Metrics::counter(&metrics.connections_dropped, "too many"),
                    ..LimitMetrics::default()
                },
            ),
            metrics,
            members,
            inbox,
            sites,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            throttle: Arc::new(LogThrottle::new(Duration::from_secs(60))),
        }
    }

    /// Accepts connections on `socket` until `shutdown`.
    pub(in crate::cluster) async fn serve(self, socket: network::Listener, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let errors = Metrics::counter(&self.metrics.connections_dropped, "accept");
        let mut acceptor = Acceptor::new(socket, "another node", errors);
        while let Some((stream, from)) = shutdown.run_until_cancelled(acceptor.next()).await {
            self.begin(stream, from, &tasks, shutdown.clone());
        }
        tasks.close();
        tasks.wait().await;
    }

    fn begin(&self, stream: Stream, from: SocketAddr, tasks: &TaskTracker, shutdown: CancellationToken) {
        let address = Address::new(from.ip());
        let client = Client::new(address, Standing::known_if(self.is_member(address)));
        let Ok(place) = self.unauthenticated.take(client, usize::MAX) else {
            Metrics::count(&self.metrics.connections_dropped, "too many");
            return;
        };
        let this = self.clone();
        tasks.spawn(async move {
            if let Some(Err(error)) = Box::pin(shutdown.run_until_cancelled(this.answer(stream, place))).await {
                Metrics::count(&this.metrics.connections_dropped, error.reason());
                if let Some(held_back) = this.throttle.permit(Instant::now()) {
                    tracing::warn!(%from, %error, held_back, "a repair connection was dropped");
                }
            }
        });
    }

    /// Whether a live member has this address.
    fn is_member(&self, address: Address) -> bool {
        self.members.borrow().live_peers().any(|member| Address::new(member.address.ip()) == address)
    }

    async fn answer(&self, stream: Stream, mut place: Place) -> Result<(), SessionError> {
        let (reader, writer) = tokio::io::split(stream);
        let authenticated = async {
            let busy = self.sessions.available_permits() == 0;
            let mut session = self.handshake.answer(busy, reader, writer).await?;
            let version = session.version;
            let first = match session.reader.receive().await? {
                (stream::kind::SLOT, payload) => First::Slot(payload.to_vec()),
                frame => First::Repair(exchange::opening(frame, version)?),
            };
            Ok::<_, SessionError>((session, first))
        };
        let (session, first) = tokio::select! {
            // The limit has counted it.
            _ = &mut place.revoked => return Ok(()),
            authenticated = authenticated => authenticated?,
        };
        drop(place);
        let opening = match first {
            First::Repair(opening) => opening,
            First::Slot(slot) => {
                let _permit = self.streams.try_acquire().map_err(|_| SessionError::Protocol(ProtocolError::Busy))?;
                return stream::serve(session, slot, &self.inbox).await;
            }
        };
        let _permit = self.sessions.try_acquire().map_err(|_| SessionError::Protocol(ProtocolError::Busy))?;
        let node = session.node.clone();
        let site = session.site.as_ref().map(|name| self.sites.iter().position(|(site, _)| site == name));
        let session = session.with_source(site.map_or(Source::Remote, Source::OtherSite));
        let outcome = within(MAX_SESSION, exchange::answer(&self.store, session, &opening)).await?;
        self.metrics.repairs_served.inc();
        if let Some((_, served)) = site.flatten().and_then(|index| self.sites.get(index)) {
            served.send_replace(Some(node.clone()));
        }
        self.metrics.exchanged(&outcome);
        if outcome.refused > 0 {
            Metrics::count_many(&self.metrics.records_refused, "repair", outcome.refused);
        }
        tracing::debug!(%node, ?outcome, "answered a repair");
        Ok(())
    }
}
