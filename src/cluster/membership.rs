//! Who is there: chitchat, watched over.
//!
//! chitchat keeps little: a handful of keys a node, and the hot ring. It is started anew, as a new incarnation, should its task
//! ever end. Seeds with names are resolved here, every second while the node is alone, for chitchat itself looks only once
//! a minute.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::farewell::Progress;
use super::members::{Member, Members, Phase, TableDigest};
use super::metrics::Metrics;
use super::settings::ClusterSettings;
use super::spread::{Outcome, Spread, Told, acknowledged};
use super::tracks::Tracks;
use super::transport::{Clocks, SealedTransport};
use crate::clock;
use crate::decisions::batch::Batch;
use crate::decisions::store::StoreHandle;
use crate::net::throttle::LogThrottle;
use banmesh_core::node::NodeId;
use banmesh_core::wire::Versions;

/// The keys that a node tells of itself.
mod key {
    pub(super) const PHASE: &str = "phase";
    pub(super) const VERSION: &str = "version";
    pub(super) const WIRE: &str = "wire";
    pub(super) const SENDER: &str = "sender";
    pub(super) const TABLE: &str = "table";
    pub(super) const SEEN: &str = "seen";
    pub(super) const KEY: &str = "key";
}

/// The prefix of the keys of the hot ring.
pub(super) const HOT_PREFIX: &str = "h:";

/// A slot of another node's hot ring that was written.
#[derive(Debug)]
pub(super) struct HotSlot {
    /// The author and its incarnation.
    pub author: ChitchatId,
    /// Of which ring it is: the first letter of the slot's name.
    pub ring: char,
    /// The slot's text.
    pub value: String,
}

/// Why the membership could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the cluster membership could not be started: {0:#}")]
pub struct MembershipError(anyhow::Error);

/// chitchat and what was learned from it.
pub(super) struct Membership {
    settings: ClusterSettings,
    advertise: SocketAddr,
    sender: u64,
    transport: SealedTransport,
    clocks: Arc<Clocks>,
    metrics: Metrics,
    handle: ArcSwap<ChitchatHandle>,
    phase: watch::Sender<Phase>,
    members: watch::Sender<Arc<Members>>,
    hot: mpsc::Sender<HotSlot>,
    hot_overflow: Arc<AtomicBool>,
    spread: Spread,
    alarm: LogThrottle,
    incompatible: LogThrottle,
}

/// How gossip travels, and where it goes.
pub(super) struct Ways {
    pub(super) transport: SealedTransport,
    pub(super) clocks: Arc<Clocks>,
    pub(super) hot: mpsc::Sender<HotSlot>,
}

/// What chitchat holds of one node.
struct Observed {
    id: ChitchatId,
    live: bool,
    heartbeat: u64,
    phase: Option<Phase>,
    version: String,
    wire: Versions,
    sender: Option<u64>,
    table: Option<TableDigest>,
    seen: Option<String>,
    key: Option<String>,
}

impl Membership {
    /// Starts gossiping as a joining node. Slots of other nodes' hot rings go to `ways.hot`.
    pub(super) async fn start(
        settings: ClusterSettings,
        advertise: SocketAddr,
        sender: u64,
        Ways { transport, clocks, hot }: Ways,
        metrics: Metrics,
    ) -> Result<Self, MembershipError> {
        let hot_overflow = Arc::new(AtomicBool::new(false));
        let identity = Identity { settings: &settings, advertise, sender, phase: Phase::Joining };
        let handle = identity.spawn(0, &transport, &hot, &hot_overflow).await.map_err(MembershipError)?;
        Ok(Self {
            advertise,
            sender,
            transport,
            clocks,
            metrics,
            handle: ArcSwap::from_pointee(handle),
            phase: watch::Sender::new(Phase::Joining),
            members: watch::Sender::default(),
            hot,
            hot_overflow,
            spread: Spread::default(),
            alarm: LogThrottle::new(Duration::from_secs(60)),
            incompatible: LogThrottle::new(Duration::from_secs(60)),
            settings,
        })
    }

    /// The nodes, as they change.
    pub(super) fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// What this node is busy with, as it changes.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// How changes spread.
    pub(super) const fn spread(&self) -> &Spread {
        &self.spread
    }

    /// Whether slots of hot rings were lost since the last call, for the receiver was too slow.
    pub(super) fn hot_overflowed(&self) -> bool {
        self.hot_overflow.swap(false, Ordering::Relaxed)
    }

    /// Says what this node is busy with from now on.
    pub(super) async fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
        self.write([(key::PHASE.to_owned(), phase.as_str().to_owned())]).await;
        self.nudge_all();
    }

    /// Writes keys of this node.
    pub(super) async fn write(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let chitchat = self.handle.load().chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in pairs {
            state.set(key, value);
        }
    }

    /// Exchanges news with `address` at once.
    pub(super) fn nudge(&self, address: SocketAddr) {
        // Fails only while chitchat is being restarted, which gossips by itself.
        let _ = self.handle.load().gossip(address);
    }

    /// Exchanges news with all live peers at once.
    pub(super) fn nudge_all(&self) {
        let members = Arc::clone(&self.members.borrow());
        members.live_peers().for_each(|member| self.nudge(member.address));
    }

    /// How far the other nodes have followed this node's changes. Those that share no wire version with it cannot, and are
    /// left out.
    pub(super) async fn progress(&self) -> Vec<Progress> {
        let members = Arc::clone(&self.members.borrow());
        let chitchat = self.handle.load().chitchat();
        let chitchat = chitchat.lock().await;
        let own = chitchat.self_chitchat_id();
        let observed = observe(&chitchat, self.settings.wire.versions);
        let told = |member: &Member| {
            let same = |node: &&Observed| {
                *node.id.node_id == *member.node.as_str() && node.id.generation_id >> RESTART_BITS == member.generation
            };
            observed.iter().filter(same).find_map(|node| acknowledged(node.seen.as_deref()?, own))
        };
        let mut latest: Vec<&Member> = Vec::new();
        for member in members.nodes.iter().filter(|member| !member.is_self && member.shares_wire_version) {
            // Of a node that was restarted, its last life counts; the members are sorted.
            latest.retain(|known| known.node != member.node);
            latest.push(member);
        }
        let progress = latest.into_iter().filter(|member| *own.node_id != *member.node.as_str()).map(|member| {
            let (next, missed) = told(member).unwrap_or_default();
            let here = members.live(member.node.as_str()).is_some_and(|live| live.generation == member.generation);
            Progress { node: member.node.clone(), address: member.address, here, next, missed }
        });
        progress.collect()
    }

    /// Ends chitchat's task as a panic in it would.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        self.handle.load().abort();
    }

    /// Keeps chitchat running and the members up to date until `shutdown`; then leaves the cluster.
    pub(super) async fn serve(&self, store: &StoreHandle, shutdown: CancellationToken) {
        let mut changes = store.subscribe();
        let mut sampled = tokio::time::Instant::now();
        let mut tick = tokio::time::interval(self.settings.timers.gossip_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tracks = Tracks::new(self.settings.timers.failure_timeout, self.settings.timers.differ_for);
        let mut restarts = 0;
        loop {
            let ended = self.handle.load().termination_watcher();
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => self.look(store, &mut tracks).await,
                () = changed(&mut changes, sampled + SAMPLE_PAUSE) => {
                    if let Some(ours) = our_table(store).await {
                        tracks.have(ours, Instant::now());
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
        let error = result.err().map_or_else(|| "it ended".to_owned(), |error| format!("{error:#}"));
        tracing::error!(%error, restarts, "the cluster membership ended; starting it anew");
        let phase = *self.phase.borrow();
        let identity = Identity { settings: &self.settings, advertise: self.advertise, sender: self.sender, phase };
        loop {
            // Whatever ended it may come again at once.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            match identity.spawn(restarts, &self.transport, &self.hot, &self.hot_overflow).await {
                Ok(handle) => return self.handle.store(Arc::new(handle)),
                Err(error) => tracing::error!(%error, "the cluster membership could not be started anew"),
            }
        }
    }

    async fn leave(&self) {
        self.enter(Phase::Leaving).await;
        // An exchange takes well under a millisecond on a LAN; a peer that hears nothing finds out by itself.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let handle = self.handle.load_full();
        if handle.initiate_shutdown().is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), handle.termination_watcher()).await;
        }
    }

    /// Looks at what chitchat knows, and tells what there is to tell.
    async fn look(&self, store: &StoreHandle, tracks: &mut Tracks) {
        let Some(ours) = our_table(store).await else { return };
        let (self_id, mut observed) = {
            let chitchat = self.handle.load().chitchat();
            let mut chitchat = chitchat.lock().await;
            let observed = observe(&chitchat, self.settings.wire.versions);
            let seen = self.spread.tell(|id| observed.iter().any(|node| node.id == *id));
            let state = chitchat.self_node_state();
            state.set(key::TABLE, ours.to_text());
            state.set(key::SEEN, seen);
            if let Some(key) = self.transport.seals_with() {
                state.set(key::KEY, key);
            }
            (chitchat.self_chitchat_id().clone(), observed)
        };
        let now = Instant::now();
        tracks.have(ours, now);
        for node in &observed {
            tracks.heard(&node.id, node.heartbeat, node.id == self_id, now);
        }
        tracks.forget(|id| observed.iter().any(|node| node.id == *id));
        let duplicates = tracks.duplicates(now);
        // For a few seconds a node that was restarted seems to live twice: its later life counts.
        let later = |node: &Observed| {
            let same = |other: &&Observed| other.live && other.id.node_id == node.id.node_id;
            let generation = |other: &Observed| other.id.generation_id;
            !duplicates.contains(&node.id)
                && observed.iter().filter(same).map(generation).max() > Some(generation(node))
        };
        let outlived: Vec<ChitchatId> =
            observed.iter().filter(|node| later(node)).map(|node| node.id.clone()).collect();
        for node in &mut observed {
            node.live &= !outlived.contains(&node.id);
        }
        self.measure_spread(&observed, &self_id);
        let mut nodes: Vec<Member> =
            observed.into_iter().filter_map(|node| self.member(node, &self_id, tracks, &duplicates, now)).collect();
        nodes.sort_by(|a, b| (!a.is_self, &a.node, a.generation).cmp(&(!b.is_self, &b.node, b.generation)));
        self.measure(&nodes);
        self.members.send_replace(Arc::new(Members { nodes }));
    }

    fn member(
        &self,
        node: Observed,
        self_id: &ChitchatId,
        tracks: &mut Tracks,
        duplicates: &[ChitchatId],
        now: Instant,
    ) -> Option<Member> {
        let is_self = node.id == *self_id;
        let clock_ahead_ms = if is_self { Some(0) } else { node.sender.and_then(|sender| self.clocks.ahead(sender)) };
        let age = self.spread.age(&node.id).zip(clock_ahead_ms);
        let agreement = tracks.compare(&node.id, node.table, node.live, now);
        Some(Member {
            // A peer that broke the rules for ids is no member.
            node: node.id.node_id.parse::<NodeId>().ok()?,
            generation: node.id.generation_id >> RESTART_BITS,
            address: node.id.gossip_advertise_addr,
            is_self,
            live: node.live,
            phase: node.phase,
            version: node.version,
            wire: node.wire,
            shares_wire_version: node.wire.common(self.settings.wire.versions).is_some(),
            heartbeat_age: if is_self { Duration::ZERO } else { tracks.heartbeat_age(&node.id, now) },
            clock_ahead_ms,
            lag_ms: age.map(|(age, ahead)| u64::try_from(age.saturating_add(ahead)).unwrap_or(0)),
            key: if is_self { self.transport.seals_with() } else { node.key },
            table: node.table,
            equal: is_self || agreement.equal,
            agrees: is_self || agreement.agrees,
            duplicate: duplicates.contains(&node.id),
        })
    }

    fn measure_spread(&self, observed: &[Observed], own: &ChitchatId) {
        let others = observed.iter().filter(|node| node.live && node.id.node_id != own.node_id);
        let peers = others.filter(|node| node.phase != Some(Phase::Leaving));
        let told: Vec<Told> = peers
            .filter_map(|node| {
                let ahead_ms = node.sender.and_then(|sender| self.clocks.ahead(sender))?;
                Some(Told { text: node.seen.clone()?, ahead_ms })
            })
            .collect();
        for outcome in self.spread.settle(own, &told, clock::now()) {
            match outcome {
                Outcome::Spread(time) => self.metrics.spread_seconds.observe(time.as_secs_f64()),
                Outcome::Missed => Metrics::count(&self.metrics.spread_unmeasured, "missed"),
                Outcome::GivenUp => Metrics::count(&self.metrics.spread_unmeasured, "not acknowledged"),
            }
        }
    }

    fn measure(&self, nodes: &[Member]) {
        let count = |test: &dyn Fn(&Member) -> bool| {
            i64::try_from(nodes.iter().filter(|node| node.live && test(node)).count()).unwrap_or(i64::MAX)
        };
        self.metrics.clock_offsets(nodes);
        let drift = self.settings.max_clock_drift.as_millis();
        let skewed = |node: &Member| node.clock_ahead_ms.is_some_and(|ahead| u128::from(ahead.unsigned_abs()) > drift);
        self.metrics.live_nodes.set(count(&|_| true));
        self.metrics.differing_nodes.set(count(&|node| !node.agrees));
        self.metrics.skewed_nodes.set(count(&skewed));
        self.metrics.duplicate_nodes.set(count(&|node| node.duplicate));
        self.metrics.incompatible_nodes.set(count(&|node| !node.shares_wire_version));
        self.warn_of_incompatible(nodes);
        let wrong = nodes.iter().find(|node| node.live && (node.duplicate || skewed(node)));
        let Some(wrong) = wrong else { return };
        if self.alarm.permit(Instant::now()).is_none() {
            return;
        }
        for node in nodes.iter().filter(|node| node.duplicate) {
            tracing::error!(node = %node.node, address = %node.address, "two running nodes call themselves the same: give each a node.id of its own");
        }
        if skewed(wrong) {
            tracing::error!(node = %wrong.node, ahead_ms = wrong.clock_ahead_ms, "a node's clock is off by more than cluster.max_clock_drift: check NTP on both");
        }
    }

    fn warn_of_incompatible(&self, nodes: &[Member]) {
        let incompatible: Vec<&Member> = nodes.iter().filter(|node| node.live && !node.shares_wire_version).collect();
        if incompatible.is_empty() || self.incompatible.permit(Instant::now()).is_none() {
            return;
        }
        let ours = self.settings.wire.versions;
        for node in incompatible {
            tracing::error!(
                node = %node.node, address = %node.address, build = node.version, its_wire_versions = %node.wire, our_wire_versions = %ours,
                "a node shares no wire version with this one, so no ban crosses between them: update the one with the older build"
            );
        }
    }

    /// Finds the seeds, quickly while this node is alone, until `shutdown`.
    pub(super) async fn find_seeds(&self, shutdown: CancellationToken) {
        let mut pause = Duration::ZERO;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let known: Vec<SocketAddr> = {
                let members = self.members.borrow();
                members.live_peers().map(|member| member.address).collect()
            };
            let mut failed = None;
            for seed in &self.settings.seeds {
                match tokio::time::timeout(Duration::from_secs(5), tokio::net::lookup_host(seed)).await {
                    Ok(Ok(addresses)) => addresses
                        .filter(|address| *address != self.advertise && !known.contains(address))
                        .take(MAX_SEED_ADDRESSES)
                        .for_each(|address| self.nudge(address)),
                    Ok(Err(error)) => failed = Some((seed, error.to_string())),
                    Err(_) => failed = Some((seed, "no answer within 5 s".to_owned())),
                }
            }
            if let Some((seed, error)) = failed
                && known.is_empty()
            {
                tracing::debug!(seed, error, "a cluster seed cannot be resolved");
            }
            let jitter = Duration::from_millis(u64::from(rand_byte()));
            pause = jitter + if known.is_empty() { Duration::from_millis(500) } else { Duration::from_secs(30) };
        }
    }
}

/// Addresses of one seed name that are asked at a time.
const MAX_SEED_ADDRESSES: usize = 64;
/// The low bits of a chitchat generation count restarts within one process.
const RESTART_BITS: u32 = 16;

/// Our own table is looked at so long after the last time at the soonest, however often it changes.
const SAMPLE_PAUSE: Duration = Duration::from_millis(5);

/// Returns when the table has changed, and not before `earliest`.
async fn changed(changes: &mut broadcast::Receiver<Arc<Batch>>, earliest: tokio::time::Instant) {
    tokio::time::sleep_until(earliest).await;
    if let Err(broadcast::error::RecvError::Closed) = changes.recv().await {
        // The store has ended, and nothing will change any more.
        std::future::pending::<()>().await;
    }
    while changes.try_recv().is_ok() {}
}

async fn our_table(store: &StoreHandle) -> Option<TableDigest> {
    let summary = store.summary().await.ok()?;
    Some(TableDigest { digest: summary.digest, entries: summary.entries })
}

fn rand_byte() -> u8 {
    super::cover::random::<1>().map_or(0, |[byte]| byte)
}

fn observe(chitchat: &Chitchat, ours: Versions) -> Vec<Observed> {
    let live: std::collections::HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let nodes = chitchat.node_states().iter().map(|(id, state)| {
        Observed {
            live: live.contains(id),
            heartbeat: state.heartbeat().into(),
            phase: state.get(key::PHASE).and_then(Phase::from_text),
            version: state.get(key::VERSION).unwrap_or_default().chars().take(64).collect(),
            // One that has yet to say so is taken for one like us.
            wire: state.get(key::WIRE).and_then(|text| text.parse().ok()).unwrap_or(ours),
            sender: state.get(key::SENDER).and_then(|text| u64::from_str_radix(text, 16).ok()),
            table: state.get(key::TABLE).and_then(TableDigest::from_text),
            seen: state.get(key::SEEN).map(str::to_owned),
            key: state.get(key::KEY).map(|key| key.chars().take(64).collect()),
            id: id.clone(),
        }
    });
    nodes.collect()
}

/// What a node is started as.
struct Identity<'a> {
    settings: &'a ClusterSettings,
    advertise: SocketAddr,
    sender: u64,
    phase: Phase,
}

impl Identity<'_> {
    async fn spawn(
        &self,
        restarts: u64,
        transport: &SealedTransport,
        hot: &mpsc::Sender<HotSlot>,
        hot_overflow: &Arc<AtomicBool>,
    ) -> anyhow::Result<ChitchatHandle> {
        let settings = self.settings;
        let timers = settings.timers;
        let generation = (settings.generation << RESTART_BITS) | restarts.min((1 << RESTART_BITS) - 1);
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(settings.node.as_str(), generation, self.advertise),
            cluster_id: settings.name.clone(),
            gossip_interval: timers.gossip_interval,
            listen_addr: settings.listen,
            // Names are left to `find_seeds`.
            seed_nodes: settings.seeds.iter().filter(|s| s.parse::<SocketAddr>().is_ok()).cloned().collect(),
            failure_detector_config: failure_detector(timers.failure_timeout, timers.forget_after),
            marked_for_deletion_grace_period: timers.forget_after,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let told = [
            (key::PHASE, self.phase.as_str().to_owned()),
            (key::VERSION, settings.version.clone()),
            (key::WIRE, settings.wire.versions.to_string()),
            (key::SENDER, format!("{:016x}", self.sender)),
        ];
        let told = told.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let handle = spawn_chitchat(config, told, transport).await?;
        let (hot, overflow, own) = (hot.clone(), Arc::clone(hot_overflow), handle.chitchat_id().clone());
        let chitchat = handle.chitchat();
        let subscription = chitchat.lock().await.subscribe_event(HOT_PREFIX, move |event| {
            // Called under chitchat's one mutex: nothing may wait here.
            if *event.node == own {
                return;
            }
            let ring = event.key.chars().next().unwrap_or_default();
            let slot = HotSlot { author: event.node.clone(), ring, value: event.value.to_owned() };
            if hot.try_send(slot).is_err() {
                overflow.store(true, Ordering::Relaxed);
            }
        });
        subscription.forever();
        Ok(handle)
    }
}

/// chitchat takes a node for dead when nothing was heard of it for `phi_threshold` times the mean interval between
/// heartbeats. Nudges make heartbeats as frequent as bans, so a busy hour would make the mean tiny and the first quiet second
/// fatal. Few samples and a heavy prior keep the mean at or above a fifth of `initial_interval`.
fn failure_detector(failure_timeout: Duration, forget_after: Duration) -> FailureDetectorConfig {
    // chitchat weighs its prior as 5 samples.
    const PRIOR: u32 = 5;
    const SAMPLES: u32 = 20;
    const PHI: u32 = 8;
    FailureDetectorConfig {
        phi_threshold: f64::from(PHI),
        sampling_window_size: SAMPLES as usize,
        max_interval: failure_timeout,
        initial_interval: failure_timeout * (PRIOR + SAMPLES) / (PRIOR * PHI),
        dead_node_grace_period: forget_after,
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("node", &self.settings.node).field("advertise", &self.advertise).finish()
    }
}
