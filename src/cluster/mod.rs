//! What carries bans between nodes.
//!
//! ```text
//!             local changes                              merged entries
//! store ──► Publisher ─► Ring ─► chitchat ◄─► SealedTransport ◄─► UDP ─► … ─► Intake ──► store
//!   ▲                           membership                                     │ missed something
//!   └───────── Repairer / Listener ◄──────── sealed sessions over TCP ◄────────┘
//! ```
//!
//! The hot ring ([`ring`], [`hot`], [`intake`]) is quick and may miss something; repair ([`repair`]) makes it certain. Both give
//! what they receive to the store, which is the only one to decide. Everything that leaves or enters passes a
//! [`cover::Cover`].

mod address;
pub mod cover;
mod farewell;
mod hot;
mod intake;
pub mod members;
mod membership;
pub mod metrics;
mod parts;
mod repair;
mod ring;
pub mod settings;
mod spread;
mod tracks;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use address::BindError;
use cover::Cover;
pub use intake::RemoteCount;
use members::{Members, Phase};
use membership::{HotSlot, Membership, MembershipError};
pub use metrics::Metrics;
pub use repair::{LastRepair, Outcome};
pub use settings::{ClusterSettings, Profile, Timers};
use transport::{Clocks, SealedTransport};

use crate::decisions::batch::Batch;
use crate::decisions::store::StoreHandle;
use banmesh_core::attempts::{Counter, SlotCount};
use banmesh_core::node::NodeId;
use banmesh_core::seal::{KeyId, Keyring};
use banmesh_core::wire::Versions;

/// Counts that may wait to be told, and to be taken in: more are dropped, which only delays a ban.
const COUNTS: usize = 8192;

/// Why a cluster could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Without a keyring, and on a network.
    #[error(
        "cluster.listen is {listen}, and there is no cluster.secret_file: whoever reaches that port could ban and unban. \
         Make a keyring with `banmesh cluster keygen` and give it to every node, or listen on loopback, or set \
         cluster.insecure to true"
    )]
    Insecure {
        /// The address.
        listen: SocketAddr,
    },
    /// No randomness.
    #[error("the system has no randomness to give: {0}")]
    Random(#[from] getrandom::Error),
    /// chitchat.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A part of the running cluster ended while it was needed.
    #[error("a part of the cluster service ended unexpectedly: {0}")]
    Part(String),
}

/// A node's end of the cluster, listening and gossiping, and joined as soon as it serves.
#[derive(Debug)]
pub struct Cluster {
    settings: ClusterSettings,
    socket: TcpListener,
    store: StoreHandle,
    metrics: Metrics,
    cover: Arc<Cover>,
    membership: Arc<Membership>,
    last_repair: watch::Sender<Option<LastRepair>>,
    changes: broadcast::Receiver<Arc<Batch>>,
    slots: mpsc::Receiver<HotSlot>,
    counts_out: (mpsc::Sender<SlotCount>, mpsc::Receiver<SlotCount>),
    counts_in: (mpsc::Sender<RemoteCount>, Option<mpsc::Receiver<RemoteCount>>),
    listen: SocketAddr,
}

impl Cluster {
    /// Listens on `settings.listen`, UDP and TCP, and starts to gossip. What changes in `store` from now on is published.
    ///
    /// # Errors
    /// When it cannot listen there, or must not without a keyring.
    pub async fn bind(settings: ClusterSettings, store: StoreHandle, metrics: Metrics) -> Result<Self, ClusterError> {
        if settings.keyring.is_none() && !settings.listen.ip().is_loopback() {
            if !settings.insecure {
                return Err(ClusterError::Insecure { listen: settings.listen });
            }
            tracing::warn!(
                "cluster.insecure: bans are exchanged in the clear, and anyone who reaches the port can forge them"
            );
        }
        let (socket, datagrams) = address::bind(settings.listen).await?;
        let listen = socket.local_addr().map_err(|source| BindError { address: settings.listen, source })?;
        let advertise = address::advertised(&settings, listen).await;
        let cover = Arc::new(Cover::new(&settings.name, settings.keyring.as_ref())?);
        let clocks = Arc::new(Clocks::default());
        let transport =
            SealedTransport::new(Arc::new(datagrams), Arc::clone(&cover), Arc::clone(&clocks), metrics.clone());
        let changes = store.subscribe();
        let (hot, slots) = mpsc::channel(intake::QUEUE);
        let ways = membership::Ways { transport, clocks, hot };
        let membership = Membership::start(settings.clone(), advertise, cover.sender(), ways, metrics.clone()).await?;
        tracing::info!(%listen, %advertise, name = settings.name, sealed = cover.seal().is_sealed(), "cluster: listening");
        let (counts_in, remote_counts) = mpsc::channel(COUNTS);
        Ok(Self {
            settings,
            socket,
            store,
            metrics,
            cover,
            membership: Arc::new(membership),
            last_repair: watch::Sender::new(None),
            changes,
            slots,
            counts_out: mpsc::channel(COUNTS),
            counts_in: (counts_in, Some(remote_counts)),
            listen,
        })
    }

    /// What others may ask of the cluster while it serves.
    pub fn handle(&self) -> ClusterHandle {
        ClusterHandle {
            listen: self.listen,
            name: self.settings.name.clone(),
            versions: self.settings.wire.versions,
            cover: Arc::clone(&self.cover),
            members: self.membership.members(),
            phase: self.membership.phase(),
            last_repair: self.last_repair.subscribe(),
            counts: self.settings.count_attempts.then(|| self.counts_out.0.clone()),
        }
    }

    /// What the other nodes counted, for the judge; `None` the second time.
    pub const fn remote_counts(&mut self) -> Option<mpsc::Receiver<RemoteCount>> {
        self.counts_in.1.take()
    }

    /// Joins, publishes, takes in and repairs until `shutdown`. Then waits until the others have its last changes, for as long as
    /// [`Timers::farewell`] at most, and leaves.
    ///
    /// # Errors
    /// When a part of it ended before: the node must not go on as if it were in the cluster.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ClusterError> {
        let mut parts = JoinSet::new();
        for (name, part) in self.parts(&shutdown) {
            parts.spawn(async move {
                part.await;
                name
            });
        }
        while let Some(ended) = parts.join_next().await {
            let broken = match ended {
                Err(error) => error.to_string(),
                Ok(name) if !shutdown.is_cancelled() => format!("{name} returned"),
                Ok(_) => continue,
            };
            shutdown.cancel();
            return Err(ClusterError::Part(broken));
        }
        Ok(())
    }

    /// What [`Cluster::serve`] does, as parts with names, each to be served by a task of its own. None ends before `shutdown`.
    pub fn parts(self, shutdown: &CancellationToken) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let Self { settings, store, metrics, membership, .. } = self;
        let timers = settings.timers;
        let greeter = repair::Greeter {
            cover: self.cover,
            node: settings.node.clone(),
            timeout: timers.repair_timeout,
            dialect: settings.wire,
        };
        let (requests, requested) = mpsc::channel(repair::QUEUE);
        // Ends what the farewell needs.
        let gone = CancellationToken::new();
        let mut parts: Vec<(&'static str, BoxFuture<'static, ()>)> = Vec::new();

        let (this, ours, stop) = (Arc::clone(&membership), store.clone(), gone.clone());
        parts.push(("membership", Box::pin(async move { this.serve(&ours, stop).await })));
        let (this, stop) = (Arc::clone(&membership), gone.clone());
        parts.push(("seeds", Box::pin(async move { this.find_seeds(stop).await })));
        let intake = intake::Intake::new(
            Arc::clone(&membership),
            store.clone(),
            metrics.clone(),
            settings.wire.versions,
            requests,
            self.counts_in.0,
        );
        let stop = gone.clone();
        parts.push((
            "intake",
            Box::pin(async move {
                let _ = stop.run_until_cancelled(intake.serve(self.slots)).await;
            }),
        ));
        let listener = repair::Listener::new(greeter.clone(), store.clone(), metrics.clone());
        parts.push(("listener", Box::pin(listener.serve(self.socket, gone.clone()))));
        let caller = repair::Caller::new(store, metrics.clone(), greeter, self.last_repair);
        let repairer = repair::Repairer::new(Arc::clone(&membership), caller.clone(), timers);
        parts.push(("repairer", Box::pin(repairer.serve(requested, settings.join_timeout, shutdown.clone()))));
        let publisher = hot::Publisher::new(Arc::clone(&membership), &settings, metrics);
        let (changes, counts, stop) = (self.changes, self.counts_out.1, shutdown.clone());
        parts.push((
            "publisher",
            Box::pin(async move {
                // The others end after the farewell, and also when this part breaks.
                let _gone = gone.drop_guard();
                let publishing = publisher.serve(changes, counts, stop.clone());
                let stopped = async {
                    stop.cancelled().await;
                    std::time::Instant::now()
                };
                let (end, began) = tokio::join!(publishing, stopped);
                farewell::say(&membership, &caller, &timers, end, began).await;
            }),
        ));
        parts
    }
}

/// A running cluster, as the operator and the judge see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    listen: SocketAddr,
    name: String,
    versions: Versions,
    cover: Arc<Cover>,
    members: watch::Receiver<Arc<Members>>,
    phase: watch::Receiver<Phase>,
    last_repair: watch::Receiver<Option<LastRepair>>,
    counts: Option<mpsc::Sender<SlotCount>>,
}

impl ClusterHandle {
    /// The address that is listened on, with the port that was found for port 0.
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The wire versions that this node reads.
    pub const fn wire(&self) -> Versions {
        self.versions
    }

    /// `cluster.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes that are known, as of the last look: they are looked at every gossip interval.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members.borrow())
    }

    /// Which member counts under which number: see [`RemoteCount::from`].
    pub fn counters(&self) -> Vec<(Counter, NodeId)> {
        let number = |member: &members::Member| {
            (intake::counter_of(member.node.as_str().as_bytes(), member.generation), member.node.clone())
        };
        self.members().nodes.iter().map(number).collect()
    }

    /// What this node is busy with, as it changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Returns once the node has joined, or is ready alone.
    pub async fn ready(&self) {
        // Fails only when the cluster has ended: then nobody waits for it any more.
        let _ = self.phase.clone().wait_for(|phase| *phase != Phase::Joining).await;
    }

    /// The last repair that this node began.
    pub fn last_repair(&self) -> Option<LastRepair> {
        self.last_repair.borrow().clone()
    }

    /// The names of the keys in use, the one that seals first; none without a keyring.
    pub fn keys(&self) -> Vec<KeyId> {
        self.cover.seal().key_ids()
    }

    /// Uses `keyring` from now on: after the file was changed, on SIGHUP.
    pub fn rotate(&self, keyring: &Keyring) {
        self.cover.rotate(Some(keyring));
    }

    /// Tells the other nodes what this one counted, unless `cluster.count_attempts` is off. Never waits: a count that does
    /// not fit is dropped, and the next one for the same slot holds it.
    pub fn tell(&self, count: SlotCount) {
        if let Some(counts) = &self.counts {
            let _ = counts.try_send(count);
        }
    }
}

#[cfg(test)]
mod tests;
