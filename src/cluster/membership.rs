//! The membership: runs chitchat, and derives the members from its state.
//!
//! chitchat holds a handful of keys per node, and the recent-changes logs. If its task ends, it is restarted as a new
//! incarnation.

mod gossip;
mod health;
mod seeds;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use chitchat::ChitchatHandle;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use super::settings::ClusterSettings;
use super::transport::{EncryptedTransport, SharedOffsets};
use crate::clock;
use crate::decisions::batch::Batch;
use crate::decisions::store::{StoreHandle, Summary};
use banmesh_cluster::farewell::Progress;
use banmesh_cluster::incarnation::Incarnation;
use banmesh_cluster::members::{Member, Members, Phase, TableDigest};
use banmesh_cluster::peer_history::PeerHistory;
use banmesh_cluster::receiver::Receivers;
use banmesh_cluster::replication_lag::{Acknowledgements, BatchOutcome, Position, ReplicationLag, acknowledged};
use banmesh_cluster::report::{self, NodeReport};
use banmesh_core::node::NodeId;
use banmesh_core::retention::Cut;
pub(super) use gossip::ReceivedSlot;
use gossip::{Identity, Observed, bury_restarted, incarnation, key, observe};
use health::Health;

/// Why the membership could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the cluster membership could not be started: {0:#}")]
pub struct MembershipError(anyhow::Error);

/// A running chitchat, and what was derived from its state.
pub(super) struct Membership {
    settings: ClusterSettings,
    advertise: SocketAddr,
    sender: u64,
    transport: EncryptedTransport,
    offsets: SharedOffsets,
    metrics: Metrics,
    handle: ArcSwap<ChitchatHandle>,
    phase: watch::Sender<Phase>,
    members: watch::Sender<Arc<Members>>,
    slots: mpsc::Sender<ReceivedSlot>,
    slots_overflow: Arc<AtomicBool>,
    lag: Mutex<ReplicationLag>,
    /// The live peers that read datagrams of every kind, with the number of their process.
    direct_peers: Mutex<Arc<BTreeMap<NodeId, u64>>>,
    /// What those have acknowledged of this node's log.
    acknowledged: Mutex<HashMap<NodeId, Position>>,
    health: Health,
    reporting: Mutex<Reporting>,
}

/// Returns what this node says about its work.
pub(super) type ReportSource = Arc<dyn Fn() -> NodeReport + Send + Sync>;

/// When this node's report was last published.
#[derive(Default)]
struct Reporting {
    source: Option<ReportSource>,
    published: Option<(String, Instant)>,
}

impl Reporting {
    /// The report, if it has changed and is due.
    fn due(&mut self, now: Instant) -> Option<String> {
        let source = self.source.as_ref()?;
        if self.published.as_ref().is_some_and(|(_, at)| now.duration_since(*at) < report::PERIOD) {
            return None;
        }
        let text = source().to_text();
        let changed = self.published.as_ref().is_none_or(|(known, _)| *known != text);
        if changed {
            self.published = Some((text.clone(), now));
        }
        changed.then_some(text)
    }
}

/// What the membership needs to gossip.
pub(super) struct GossipParts {
    pub(super) transport: EncryptedTransport,
    pub(super) offsets: SharedOffsets,
    /// Receives the slots of other nodes' recent-changes logs.
    pub(super) slots: mpsc::Sender<ReceivedSlot>,
}

impl Membership {
    /// Starts to gossip as a joining node.
    pub(super) async fn start(
        settings: ClusterSettings,
        advertise: SocketAddr,
        sender: u64,
        GossipParts { transport, offsets, slots }: GossipParts,
        metrics: Metrics,
    ) -> Result<Self, MembershipError> {
        let slots_overflow = Arc::new(AtomicBool::new(false));
        let identity = Identity { settings: &settings, advertise, sender, phase: Phase::Joining };
        let handle = identity.spawn(0, &transport, &slots, &slots_overflow).await.map_err(MembershipError)?;
        Ok(Self {
            advertise,
            sender,
            transport,
            offsets,
            handle: ArcSwap::from_pointee(handle),
            phase: watch::Sender::new(Phase::Joining),
            members: watch::Sender::default(),
            slots,
            slots_overflow,
            lag: Mutex::default(),
            direct_peers: Mutex::default(),
            acknowledged: Mutex::default(),
            health: Health::new(metrics.clone(), settings.max_clock_drift, settings.wire.versions),
            metrics,
            settings,
            reporting: Mutex::default(),
        })
    }

    /// Updated every gossip interval.
    pub(super) fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// The phase of this node.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn lag(&self) -> MutexGuard<'_, ReplicationLag> {
        self.lag.lock()
    }

    pub(super) fn transport(&self) -> EncryptedTransport {
        self.transport.clone()
    }

    /// The live peers that read datagrams of every kind, with the number of their process. Updated before [`Self::members`].
    pub(super) fn direct_peers(&self) -> Arc<BTreeMap<NodeId, u64>> {
        Arc::clone(&self.direct_peers.lock())
    }

    /// Whether the live node `node` sends its log directly.
    pub(super) fn sends_directly(&self, node: &str) -> bool {
        node.parse::<NodeId>().is_ok_and(|node| self.direct_peers.lock().contains_key(&node))
    }

    /// Publishes what `source` says about this node's work.
    pub(super) fn report_from(&self, source: ReportSource) {
        self.reporting.lock().source = Some(source);
    }

    /// Notes what a direct peer has acknowledged of this node's log.
    pub(super) fn acknowledged_directly(&self, node: NodeId, position: Position) {
        self.acknowledged.lock().insert(node, position);
    }

    /// Whether received slots were dropped since the last call because the receiver was too slow.
    pub(super) fn slots_overflowed(&self) -> bool {
        self.slots_overflow.swap(false, Ordering::Relaxed)
    }

    /// Publishes a new phase of this node.
    pub(super) async fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
        self.write([(key::PHASE.to_owned(), phase.as_str().to_owned())]).await;
        self.gossip_with_all();
    }

    /// Writes keys into this node's gossip state.
    pub(super) async fn write(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let chitchat = self.handle.load().chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in pairs {
            state.set(key, value);
        }
    }

    /// Begins a gossip exchange with `address` at once.
    pub(super) fn gossip_with(&self, address: SocketAddr) {
        self.transport.request(address);
        // Fails only while chitchat is being restarted. It then gossips anyway.
        let _ = self.handle.load().gossip(address);
    }

    /// Begins a gossip exchange with all live peers at once.
    pub(super) fn gossip_with_all(&self) {
        let members = Arc::clone(&self.members.borrow());
        members.live_peers().for_each(|member| self.gossip_with(member.address));
    }

    /// How far the other nodes have received this node's changes. Nodes that share no wire version are left out.
    pub(super) async fn progress(&self) -> Vec<Progress> {
        let members = Arc::clone(&self.members.borrow());
        let chitchat = self.handle.load().chitchat();
        let chitchat = chitchat.lock().await;
        let own = incarnation(chitchat.self_chitchat_id());
        let observed = observe(&chitchat, self.settings.wire.versions);
        let (direct, directly) = (self.direct_peers(), self.acknowledged.lock().clone());
        let acknowledged_by = |member: &Member| {
            if direct.contains_key(&member.node) {
                return directly.get(&member.node).map(|position| (position.next, position.missed > 0));
            }
            let same = |node: &&Observed| *node.id.node == *member.node.as_str() && node.start() == member.generation;
            observed.iter().filter(same).find_map(|node| acknowledged(node.seen.as_deref()?, &own))
        };
        let mut latest: Vec<&Member> = Vec::new();
        for member in members.nodes.iter().filter(|member| !member.is_self && member.shares_wire_version) {
            // Only the last incarnation of a node counts; the members are sorted.
            latest.retain(|known| known.node != member.node);
            latest.push(member);
        }
        let progress = latest.into_iter().filter(|member| *own.node != *member.node.as_str()).map(|member| {
            let (next, missed) = acknowledged_by(member).unwrap_or_default();
            let live = members.live_peer(member.node.as_str()).is_some_and(|live| live.generation == member.generation);
            Progress { node: member.node.clone(), address: member.address, live, next, missed }
        });
        progress.collect()
    }

    /// Ends chitchat's task as a panic in it would.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        self.handle.load().abort();
    }

    /// Keeps chitchat running and the members up to date until `shutdown`. Then leaves the cluster.
    pub(super) async fn serve(&self, store: &StoreHandle, shutdown: CancellationToken) {
        let mut changes = store.subscribe();
        let mut sampled = tokio::time::Instant::now();
        let mut tick = tokio::time::interval(self.settings.timers.gossip_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut history = PeerHistory::new(self.settings.timers.failure_timeout, self.settings.timers.differ_for);
        let mut restarts = 0;
        loop {
            let ended = self.handle.load().termination_watcher();
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => self.update(store, &mut history).await,
                () = changed(&mut changes, sampled + SAMPLE_PAUSE) => {
                    if let Ok(summary) = store.summary().await {
                        history.own_table(digest_of(&summary), Instant::now());
                    }
                    sampled = tokio::time::Instant::now();
                }
                result = ended => {
                    restarts += 1;
                    self.restart(restarts, result, &shutdown).await;
                }
            }
        }
        self.leave().await;
    }

    async fn restart(&self, restarts: u64, result: anyhow::Result<()>, shutdown: &CancellationToken) {
        self.metrics.membership_restarts.inc();
        self.reporting.lock().published = None;
        let error = result.err().map_or_else(|| "it ended".to_owned(), |error| format!("{error:#}"));
        tracing::error!(%error, restarts, "the cluster membership ended unexpectedly; restarting it");
        let phase = *self.phase.borrow();
        let identity = Identity { settings: &self.settings, advertise: self.advertise, sender: self.sender, phase };
        loop {
            // The cause may still be there.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            match identity.spawn(restarts, &self.transport, &self.slots, &self.slots_overflow).await {
                Ok(handle) => return self.handle.store(Arc::new(handle)),
                Err(error) => tracing::error!(%error, "the cluster membership could not be restarted; trying again"),
            }
        }
    }

    async fn leave(&self) {
        self.enter(Phase::Leaving).await;
        let live = self.members.borrow().live_peers().map(|member| member.address).collect();
        self.transport.await_answers(live);
        // A peer that receives nothing counts the node as lost. An exchange takes well under a millisecond on a LAN, but a peer may stand
        // still for a moment. A node that stops right after its start may not know yet that its peers are alive, so it tells all of
        // them, twice.
        for round in 0..LEAVE_ROUNDS {
            if round >= 2 && !self.transport.awaits_answers() {
                break;
            }
            let members = Arc::clone(&self.members.borrow());
            members.nodes.iter().filter(|member| !member.is_self).for_each(|member| self.gossip_with(member.address));
            tokio::time::sleep(LEAVE_PAUSE).await;
        }
        let handle = self.handle.load_full();
        if handle.initiate_shutdown().is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), handle.termination_watcher()).await;
        }
    }

    /// Derives the members from chitchat's state, and publishes this node's own table and acknowledgements.
    async fn update(&self, store: &StoreHandle, history: &mut PeerHistory) {
        let Ok(summary) = store.summary().await else { return };
        let ours = digest_of(&summary);
        let report = self.reporting.lock().due(Instant::now());
        let (own, mut observed) = {
            let chitchat = self.handle.load().chitchat();
            let mut chitchat = chitchat.lock().await;
            let observed = observe(&chitchat, self.settings.wire.versions);
            // Nodes of this build acknowledge what they get directly.
            let seen = self.lag().acknowledge(|id| observed.iter().any(|node| node.id == *id && !node.reads_datagrams));
            let state = chitchat.self_node_state();
            state.set(key::TABLE, ours.to_text());
            state.set(key::SEEN, seen);
            if let Some(key) = self.transport.encrypts_with() {
                state.set(key::KEY, key);
            }
            let cut = summary.cut.to_text();
            if summary.cut != Cut::default() {
                state.set(key::CUT, cut);
            }
            if let Some(report) = report {
                state.set(key::REPORT, report);
            }
            (incarnation(chitchat.self_chitchat_id()), observed)
        };
        // One by one: a cut that this node ignores must not hide another.
        for cut in observed.iter().filter(|node| node.id != own).filter_map(|node| node.cut) {
            if summary.cut.join(cut) != summary.cut && store.adopt(cut).await.is_err() {
                return;
            }
        }
        let now = Instant::now();
        history.own_table(ours, now);
        for node in &observed {
            history.heartbeat(&node.id, node.heartbeat, node.id == own, now);
        }
        let known: HashSet<&Incarnation> = observed.iter().map(|node| &node.id).collect();
        history.retain(|id| known.contains(id));
        let duplicates = history.duplicates(now);
        bury_restarted(&mut observed, &duplicates);
        self.update_direct(&observed, &own);
        self.measure_lag(&observed, &own);
        let mut nodes: Vec<Member> =
            observed.into_iter().filter_map(|node| self.member(node, &own, history, &duplicates, now)).collect();
        nodes.sort_by(|a, b| (!a.is_self, &a.node, a.generation).cmp(&(!b.is_self, &b.node, b.generation)));
        let addresses = |own| nodes.iter().filter(move |node| node.is_self == own).map(|node| node.address);
        let listen = Some(self.settings.listen).filter(|listen| !listen.ip().is_unspecified());
        let own = addresses(true).chain(listen).collect();
        self.transport.set_receivers(Receivers { own, others: addresses(false).collect() });
        let members = Arc::new(Members { nodes });
        self.health.check(&members);
        self.members.send_replace(members);
    }

    fn member(
        &self,
        node: Observed,
        own: &Incarnation,
        history: &mut PeerHistory,
        duplicates: &[Incarnation],
        now: Instant,
    ) -> Option<Member> {
        let is_self = node.id == *own;
        let clock_ahead_ms = if is_self { Some(0) } else { node.sender.and_then(|sender| self.offsets.ahead(sender)) };
        let age = {
            let lag = self.lag();
            let direct = node.sender.filter(|_| node.reads_datagrams).and_then(|sender| lag.direct_age(sender));
            direct.or_else(|| lag.age(&node.id)).zip(clock_ahead_ms)
        };
        let agreement = history.compare(&node.id, node.table, node.live, now);
        Some(Member {
            // A peer with an invalid id is not a member.
            node: node.id.node.parse::<NodeId>().ok()?,
            generation: node.start(),
            address: node.id.address,
            is_self,
            live: node.live,
            phase: node.phase,
            version: node.version,
            wire: node.wire,
            shares_wire_version: node.wire.common(self.settings.wire.versions).is_some(),
            heartbeat_age: if is_self { Duration::ZERO } else { history.heartbeat_age(&node.id, now) },
            clock_ahead_ms,
            lag_ms: age.map(|(age, ahead)| u64::try_from(age.saturating_add(ahead)).unwrap_or(0)),
            key: if is_self { self.transport.encrypts_with() } else { node.key },
            table: node.table,
            equal: is_self || agreement.equal,
            agrees: is_self || agreement.agrees,
            names_sites: node.names_sites,
            duplicate: duplicates.contains(&node.id),
            report: node.report.filter(|_| !is_self),
        })
    }

    /// Notes which peers get datagrams of every kind.
    fn update_direct(&self, observed: &[Observed], own: &Incarnation) {
        let reads = |node: &&Observed| node.live && node.reads_datagrams && node.id.node != own.node;
        let readers: HashSet<SocketAddr> = observed.iter().filter(reads).map(|node| node.id.address).collect();
        self.transport.set_readers(readers);
        let peers: BTreeMap<NodeId, u64> = observed
            .iter()
            .filter(reads)
            .filter(|node| node.phase != Some(Phase::Leaving))
            .filter_map(|node| Some((node.id.node.parse().ok()?, node.sender?)))
            .collect();
        let mut before = self.direct_peers.lock();
        if **before != peers {
            // A restarted peer has acknowledged nothing.
            self.acknowledged.lock().retain(|node, _| peers.contains_key(node) && before.get(node) == peers.get(node));
            *before = Arc::new(peers);
        }
    }

    fn measure_lag(&self, observed: &[Observed], own: &Incarnation) {
        let directly: HashMap<String, Position> =
            self.acknowledged.lock().iter().map(|(node, position)| (node.to_string(), *position)).collect();
        let others = observed.iter().filter(|node| node.live && node.id.node != own.node);
        let peers = others.filter(|node| node.phase != Some(Phase::Leaving));
        let acknowledgements: Vec<Acknowledgements> = peers
            .filter_map(|node| {
                let clock_ahead_ms = node.sender.and_then(|sender| self.offsets.ahead(sender))?;
                let direct = node.reads_datagrams.then(|| directly.get(&*node.id.node).copied().unwrap_or_default());
                Some(Acknowledgements { text: node.seen.clone()?, direct, clock_ahead_ms })
            })
            .collect();
        let outcomes = self.lag().evaluate(own, &acknowledgements, clock::now());
        for outcome in outcomes {
            match outcome {
                BatchOutcome::Replicated(time) => self.metrics.spread_seconds.observe(time.as_secs_f64()),
                BatchOutcome::Missed => Metrics::count(&self.metrics.spread_unmeasured, "missed"),
                BatchOutcome::NotAcknowledged => Metrics::count(&self.metrics.spread_unmeasured, "not acknowledged"),
            }
        }
    }
}

/// How many times a node that leaves tells its peers, and the pause between two of them. Together with the second in which chitchat
/// must end, they fit into `Timers::LEAVE`.
const LEAVE_ROUNDS: u32 = 20;
const LEAVE_PAUSE: Duration = Duration::from_millis(50);

/// The shortest pause between two samples of our own digest, however often the table changes.
const SAMPLE_PAUSE: Duration = Duration::from_millis(5);

/// Returns when the table has changed, but not before `earliest`.
async fn changed(changes: &mut broadcast::Receiver<Arc<Batch>>, earliest: tokio::time::Instant) {
    tokio::time::sleep_until(earliest).await;
    if let Err(broadcast::error::RecvError::Closed) = changes.recv().await {
        // The store has ended, so nothing changes any more.
        std::future::pending::<()>().await;
    }
    while changes.try_recv().is_ok() {}
}

const fn digest_of(summary: &Summary) -> TableDigest {
    TableDigest { digest: summary.digest, entries: summary.entries }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("node", &self.settings.node).field("advertise", &self.advertise).finish()
    }
}
