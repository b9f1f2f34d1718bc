//! Replicates bans and attempts between nodes.
//!
//! ```text
//!        local changes                                          entries of other nodes
//! store ──► Publisher ──► recent-changes log ──► gossip (UDP) ──► … ──► Intake ──► store
//!   ▲                                                                     │ gap
//!   └───────────────── Repairer, Listener ◄──── repair (TCP) ◄────────────┘
//! ```
//!
//! The protocol is in [`banmesh_cluster`], without I/O. The modules here move the bytes. Gossip is fast but may miss changes;
//! repair finds them. Entries from both go to the store, which alone changes the table.
//!
//! | module | contents |
//! |---|---|
//! | `membership` | chitchat, the members, the seeds |
//! | `transport` | the node's datagrams, encrypted and authenticated |
//! | `inbox` | what arrives directly, and waits for the parts that use it |
//! | `stream` | slots of the recent-changes log over TCP |
//! | [`cipher`] | encryption and authentication, with rotation of keys |
//! | `publisher`, `intake` | the sending and the receiving side of the recent-changes log |
//! | `repair` | sessions with other nodes, begun and accepted |
//! | `bridges` | exchanges with other sites, over the same sessions |
//! | `states` | sends what this node's HAProxies have counted |
//! | `reach` | contacts over TCP the nodes that UDP does not reach |
//! | `farewell` | waits for acknowledgements before the node leaves |
//! | `address` | the addresses to listen on and to advertise |
//! | [`settings`], [`metrics`] | settings, metrics |

mod address;
mod bridges;
pub mod cipher;
mod farewell;
mod inbox;
mod intake;
mod membership;
pub mod metrics;
mod publisher;
mod reach;
mod repair;
pub mod settings;
mod states;
mod stream;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use address::BindError;
pub use banmesh_cluster::delivery::Unfollowed;
pub use banmesh_cluster::members;
pub use banmesh_cluster::report::NodeReport;
pub use banmesh_cluster::timers::{Profile, Timers};
pub use bridges::{OtherSite, SiteStatus};
use cipher::FrameCipher;
pub use inbox::ReceivedStates;
use inbox::{Arrived, Inbox};
use membership::{GossipParts, Membership, MembershipError, ReceivedSlot};
pub use metrics::Metrics;
pub use reach::{TcpAnswer, Unreachable};
pub use repair::LastRepair;
pub use settings::ClusterSettings;
pub use states::StateSender;
use transport::{EncryptedTransport, SharedOffsets};

use crate::decisions::batch::Batch;
use crate::decisions::store::StoreHandle;
use crate::net::network::Listener;
use banmesh_cluster::incarnation::counter_of;
use banmesh_cluster::members::{Member, Members, Phase};
use banmesh_core::attempts::{Counter, RemoteCount, SlotCount};
use banmesh_core::evidence::EvidenceRecord;
use banmesh_core::node::NodeId;
use banmesh_core::seal::{KeyId, Keyring};
use banmesh_core::wire::Versions;

/// Attempt counts that may wait in each direction. If there are more, they are dropped, which only delays a ban.
const COUNTS: usize = 8192;
/// Records of evidence that may wait in each direction. If there are more, they are dropped, and a later comparison of digests brings
/// them.
const EVIDENCE: usize = 49_152;

/// Why a cluster could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It cannot listen on the address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It has no keyring, and would listen on a network.
    #[error(
        "cluster.listen is {listen}, and cluster.secret_file is not set: anyone who can reach that port could ban and unban. \
         Make a keyring with `banmesh cluster keygen` and copy it to every node, or listen on loopback, or set \
         cluster.insecure to true"
    )]
    Insecure {
        /// `cluster.listen`.
        listen: SocketAddr,
    },
    /// The system provides no random bytes.
    #[error("the system provides no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// Gossip could not be started.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A part of the running cluster ended before shutdown.
    #[error("a part of the cluster service ended unexpectedly: {0}")]
    Part(String),
}

/// This node as a member of the cluster. It gossips from the start, and joins in [`Cluster::serve`].
#[derive(Debug)]
pub struct Cluster {
    settings: ClusterSettings,
    socket: Listener,
    store: StoreHandle,
    metrics: Metrics,
    cipher: Arc<FrameCipher>,
    membership: Arc<Membership>,
    last_repair: watch::Sender<Option<LastRepair>>,
    unreachable: watch::Sender<Arc<Vec<Unreachable>>>,
    kept_out: Arc<AtomicBool>,
    unfollowed: watch::Sender<Arc<Vec<Unfollowed>>>,
    /// The ciphers for other sites, in the order of the settings.
    site_ciphers: Vec<Arc<FrameCipher>>,
    sites: watch::Sender<Vec<SiteStatus>>,
    inbox: Inbox,
    arrived: Arrived,
    advertise: SocketAddr,
    changes: broadcast::Receiver<Arc<Batch>>,
    slots: mpsc::Receiver<ReceivedSlot>,
    counts_out: (mpsc::Sender<SlotCount>, mpsc::Receiver<SlotCount>),
    counts_in: (mpsc::Sender<RemoteCount>, Option<mpsc::Receiver<RemoteCount>>),
    evidence_out: (mpsc::Sender<EvidenceRecord>, mpsc::Receiver<EvidenceRecord>),
    evidence_in: (mpsc::Sender<EvidenceRecord>, Option<mpsc::Receiver<EvidenceRecord>>),
    listen: SocketAddr,
}

impl Cluster {
    /// Listens on `settings.listen`, UDP and TCP, and starts to gossip. Later changes of `store` will be published.
    ///
    /// # Errors
    /// When it cannot listen on the address, or may not because there is no keyring.
    pub async fn bind(settings: ClusterSettings, store: StoreHandle, metrics: Metrics) -> Result<Self, ClusterError> {
        if settings.keyring.is_none() && !settings.listen.ip().is_loopback() {
            if !settings.insecure {
                return Err(ClusterError::Insecure { listen: settings.listen });
            }
            tracing::warn!(
                "cluster.insecure is set: bans are sent as plaintext, and anyone who can reach the port can forge them"
            );
        }
        let (socket, datagrams) = address::bind(&*settings.network, settings.listen).await?;
        let listen = socket.local_addr().map_err(|source| BindError { address: settings.listen, source })?;
        let advertise = address::advertised(&settings, listen).await;
        let cipher = Arc::new(FrameCipher::new(&settings.name, settings.keyring.as_ref())?);
        let site_ciphers = settings.sites.iter().map(|site| FrameCipher::new(&site.name, settings.keyring.as_ref()));
        let site_ciphers = site_ciphers.map(|cipher| cipher.map(Arc::new)).collect::<Result<_, _>>()?;
        let offsets = SharedOffsets::default();
        let (inbox, arrived) = inbox::inbox();
        let transport = EncryptedTransport::new(
            datagrams,
            Arc::clone(&cipher),
            settings.max_datagram,
            settings.timers.gossip_interval,
            inbox.clone(),
            offsets.clone(),
            metrics.clone(),
        );
        let changes = store.subscribe();
        let (slots_in, slots) = mpsc::channel(intake::QUEUE);
        let gossip = GossipParts { transport, offsets, slots: slots_in };
        let membership =
            Membership::start(settings.clone(), advertise, cipher.sender(), gossip, metrics.clone()).await?;
        tracing::info!(%listen, %advertise, name = settings.name, encrypted = !cipher.key_ids().is_empty(), "cluster: listening");
        let (counts_in, remote_counts) = mpsc::channel(COUNTS);
        let (evidence_in, remote_evidence) = mpsc::channel(EVIDENCE);
        Ok(Self {
            site_ciphers,
            sites: watch::Sender::new(settings.sites.iter().map(bridges::unknown).collect()),
            settings,
            socket,
            store,
            metrics,
            cipher,
            membership: Arc::new(membership),
            last_repair: watch::Sender::new(None),
            unreachable: watch::Sender::default(),
            kept_out: Arc::default(),
            unfollowed: watch::Sender::default(),
            inbox,
            arrived,
            advertise,
            changes,
            slots,
            counts_out: mpsc::channel(COUNTS),
            counts_in: (counts_in, Some(remote_counts)),
            evidence_out: mpsc::channel(EVIDENCE),
            evidence_in: (evidence_in, Some(remote_evidence)),
            listen,
        })
    }

    /// Publishes what `source` says about this node's work, every few seconds if it has changed.
    pub fn report_from(&self, source: impl Fn() -> NodeReport + Send + Sync + 'static) {
        self.membership.report_from(Arc::new(source));
    }

    /// Gives access to the cluster while it serves.
    pub fn handle(&self) -> ClusterHandle {
        ClusterHandle {
            listen: self.listen,
            name: self.settings.name.clone(),
            versions: self.settings.wire.versions,
            cipher: Arc::clone(&self.cipher),
            members: self.membership.members(),
            phase: self.membership.phase(),
            last_repair: self.last_repair.subscribe(),
            unreachable: self.unreachable.subscribe(),
            kept_out: Arc::clone(&self.kept_out),
            unfollowed: self.unfollowed.subscribe(),
            site_ciphers: self.site_ciphers.clone(),
            sites: self.sites.subscribe(),
            expects_peers: !self.settings.seeds.is_empty() || self.settings.sites.is_empty(),
            counts: self.settings.count_attempts.then(|| self.counts_out.0.clone()),
            evidence: self.evidence_out.0.clone(),
        }
    }

    /// The counts of the other nodes, for the judge. `None` when called again.
    pub const fn remote_counts(&mut self) -> Option<mpsc::Receiver<RemoteCount>> {
        self.counts_in.1.take()
    }

    /// What the HAProxies of other nodes have counted. `None` when called again.
    pub const fn remote_states(&mut self) -> Option<mpsc::Receiver<ReceivedStates>> {
        self.arrived.states.take()
    }

    /// Sends what this node's HAProxies have counted to the other nodes.
    pub fn state_sender(&self) -> StateSender {
        StateSender::new(Arc::clone(&self.membership), &self.settings)
    }

    /// The evidence of the other nodes, for the judge. `None` when called again.
    pub const fn remote_evidence(&mut self) -> Option<mpsc::Receiver<EvidenceRecord>> {
        self.evidence_in.1.take()
    }

    /// Joins, publishes, merges and repairs until `shutdown`. Then waits for up to [`Timers::farewell`] until the other nodes have
    /// its last changes, and leaves.
    ///
    /// # Errors
    /// When a part of it ends before `shutdown`. The node must then not continue as if it were in the cluster.
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

    /// The parts of [`Cluster::serve`], with their names, to be run by one task each. None ends before `shutdown`.
    pub fn parts(self, shutdown: &CancellationToken) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let Self { settings, store, metrics, membership, .. } = self;
        let timers = settings.timers;
        let handshake = repair::Handshake {
            cipher: self.cipher,
            node: settings.node.clone(),
            site: None,
            timeout: timers.repair_timeout,
            dialect: settings.wire,
            key_memory: repair::key_memory(),
        };
        let (requests, requested) = mpsc::channel(repair::QUEUE);
        // Cancelled after the farewell, which needs the other parts.
        let left = CancellationToken::new();
        let mut parts: Vec<(&'static str, BoxFuture<'static, ()>)> = Vec::new();

        let (this, ours, stop) = (Arc::clone(&membership), store.clone(), left.clone());
        parts.push(("membership", Box::pin(async move { this.serve(&ours, stop).await })));
        let (this, stop) = (Arc::clone(&membership), left.clone());
        parts.push(("seeds", Box::pin(async move { this.find_seeds(stop).await })));
        let intake = intake::Intake::new(
            Arc::clone(&membership),
            store.clone(),
            metrics.clone(),
            settings.wire.versions,
            requests.clone(),
            (self.counts_in.0, self.evidence_in.0),
            settings.node.clone(),
        );
        let Arrived { slots, acknowledgements, .. } = self.arrived;
        let stop = left.clone();
        parts.push((
            "intake",
            Box::pin(async move {
                let _ = stop.run_until_cancelled(intake.serve(self.slots, slots)).await;
            }),
        ));
        let served: Vec<bridges::ServedBy> = settings.sites.iter().map(|_| watch::Sender::new(None)).collect();
        let listener = repair::Listener::new(
            handshake.clone(),
            store.clone(),
            metrics.clone(),
            membership.members(),
            self.inbox.clone(),
            settings.sites.iter().map(|site| site.name.clone()).zip(served.iter().cloned()).collect(),
        );
        parts.push(("listener", Box::pin(listener.serve(self.socket, left.clone()))));
        let outgoing = publisher::Outgoing {
            handshake: handshake.clone(),
            inbox: self.inbox,
            acknowledgements,
            unfollowed: self.unfollowed,
            repairs: requests,
        };
        let caller_as = |handshake| {
            let (store, last) = (store.clone(), self.last_repair.clone());
            repair::Caller::new(store, metrics.clone(), handshake, Arc::clone(&settings.network), last)
        };
        let caller = caller_as(handshake.clone());
        let to_site = |cipher: &Arc<FrameCipher>| repair::Handshake {
            cipher: Arc::clone(cipher),
            site: Some(settings.name.clone()),
            ..handshake.clone()
        };
        let site_callers = self.site_ciphers.iter().map(|cipher| caller_as(to_site(cipher))).collect();
        let bridges = bridges::Bridges::new(
            Arc::clone(&membership),
            store.clone(),
            settings.clone(),
            site_callers,
            served,
            self.sites,
        );
        parts.push(("bridges", Box::pin(bridges.serve(shutdown.clone()))));
        let found = (self.unreachable, self.kept_out);
        let reach = reach::Reach::new(Arc::clone(&membership), caller.clone(), self.advertise, found);
        parts.push(("reach", Box::pin(reach.serve(shutdown.clone()))));
        let repairer = repair::Repairer::new(Arc::clone(&membership), caller.clone(), timers);
        parts.push(("repairer", Box::pin(repairer.serve(requested, settings.join_timeout, shutdown.clone()))));
        let mut publisher = publisher::Publisher::new(Arc::clone(&membership), &settings, outgoing, metrics);
        let (changes, counts, stop) = (self.changes, (self.counts_out.1, self.evidence_out.1), shutdown.clone());
        parts.push((
            "publisher",
            Box::pin(async move {
                // The other parts end after the farewell, and also if this part panics.
                let _left = left.drop_guard();
                let publishing = publisher.serve(changes, counts, stop.clone());
                let stopped = async {
                    stop.cancelled().await;
                    std::time::Instant::now()
                };
                let (end, began) = tokio::join!(publishing, stopped);
                tokio::select! {
                    () = farewell::wait(&membership, &caller, &timers, end, began) => {}
                    () = publisher.keep_delivering() => {}
                }
            }),
        ));
        parts
    }
}

/// Access to a running cluster, for operators and the judge. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterHandle {
    listen: SocketAddr,
    name: String,
    versions: Versions,
    cipher: Arc<FrameCipher>,
    members: watch::Receiver<Arc<Members>>,
    phase: watch::Receiver<Phase>,
    last_repair: watch::Receiver<Option<LastRepair>>,
    unreachable: watch::Receiver<Arc<Vec<Unreachable>>>,
    kept_out: Arc<AtomicBool>,
    unfollowed: watch::Receiver<Arc<Vec<Unfollowed>>>,
    site_ciphers: Vec<Arc<FrameCipher>>,
    sites: watch::Receiver<Vec<SiteStatus>>,
    expects_peers: bool,
    counts: Option<mpsc::Sender<SlotCount>>,
    evidence: mpsc::Sender<EvidenceRecord>,
}

impl ClusterHandle {
    /// The address that the node listens on. Port 0 is replaced by the actual port.
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

    /// All known nodes. Updated every gossip interval.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.members.borrow())
    }

    /// The number under which each member counts attempts: see [`RemoteCount::from`].
    pub fn counters(&self) -> Vec<(Counter, NodeId)> {
        let number = |member: &Member| (counter_of(member.node.as_str(), member.generation), member.node.clone());
        self.members().nodes.iter().map(number).collect()
    }

    /// The phase of this node.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Returns once the node has joined, or is ready alone.
    pub async fn ready(&self) {
        // Fails only if the cluster has ended.
        let _ = self.phase.clone().wait_for(|phase| *phase != Phase::Joining).await;
    }

    /// The last repair that this node began; `None` before the first has ended.
    pub fn last_repair(&self) -> Option<LastRepair> {
        self.last_repair.borrow().clone()
    }

    /// The addresses of the cluster that this node does not reach by UDP.
    pub fn unreachable(&self) -> Arc<Vec<Unreachable>> {
        Arc::clone(&self.unreachable.borrow())
    }

    /// Whether this node has started with another key than the other nodes, and so gets none of their bans.
    pub fn is_kept_out(&self) -> bool {
        self.kept_out.load(Ordering::Relaxed)
    }

    /// The live nodes that this node's datagrams do not reach.
    pub fn unfollowed(&self) -> Arc<Vec<Unfollowed>> {
        Arc::clone(&self.unfollowed.borrow())
    }

    /// Whether there should be other nodes in this site. A node without seeds that names other sites may be the only one of its own.
    pub const fn expects_peers(&self) -> bool {
        self.expects_peers
    }

    /// The other sites of `cluster.sites`.
    pub fn sites(&self) -> Vec<SiteStatus> {
        self.sites.borrow().clone()
    }

    /// The ids of the keys in use, the one that encrypts first. Empty without a keyring.
    pub fn keys(&self) -> Vec<KeyId> {
        self.cipher.key_ids()
    }

    /// Replaces the keyring.
    pub fn rotate(&self, keyring: &Keyring) {
        self.cipher.rotate(Some(keyring));
        self.site_ciphers.iter().for_each(|cipher| cipher.rotate(Some(keyring)));
    }

    /// The channel for the counts that this node publishes. `None` if `cluster.count_attempts` is off.
    pub fn local_counts(&self) -> Option<mpsc::Sender<SlotCount>> {
        self.counts.clone()
    }

    /// The channel for the evidence that this node publishes.
    pub fn local_evidence(&self) -> mpsc::Sender<EvidenceRecord> {
        self.evidence.clone()
    }
}

#[cfg(test)]
mod tests;
