//! chitchat: how it is started, and what its state says about the nodes.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::mpsc;

use crate::cluster::settings::ClusterSettings;
use crate::cluster::transport::EncryptedTransport;
use banmesh_cluster::incarnation::Incarnation;
use banmesh_cluster::members::{Phase, TableDigest};
use banmesh_cluster::outbox::KEY_PREFIX;
use banmesh_cluster::report::NodeReport;
use banmesh_core::retention::Cut;
use banmesh_core::wire::Versions;

/// The keys that a node publishes about itself.
pub(super) mod key {
    pub const PHASE: &str = "phase";
    pub const VERSION: &str = "version";
    pub const WIRE: &str = "wire";
    pub const SENDER: &str = "sender";
    pub const TABLE: &str = "table";
    pub const SEEN: &str = "seen";
    pub const KEY: &str = "key";
    pub const CUT: &str = "cut";
    pub const REPORT: &str = "report";
    /// Set by nodes whose configuration names other sites.
    pub const SITES: &str = "sites";
    /// Set by builds that read datagrams of every kind.
    pub const DATAGRAMS: &str = "datagrams";
}

/// The version of the datagrams, as published. A later one would have its own value.
const DATAGRAMS_VERSION: &str = "1";

/// The low bits of a chitchat generation count restarts of chitchat within one process.
pub(super) const RESTART_BITS: u32 = 16;

/// A slot of another node's recent-changes log that was written.
#[derive(Debug)]
pub(in crate::cluster) struct ReceivedSlot {
    pub author: Incarnation,
    /// The log: [`BANS`](banmesh_cluster::outbox::BANS) or [`ATTEMPTS`](banmesh_cluster::outbox::ATTEMPTS).
    pub ring: char,
    /// The slot's text.
    pub value: String,
}

pub(super) fn incarnation(id: &ChitchatId) -> Incarnation {
    Incarnation { node: Arc::clone(&id.node_id), generation: id.generation_id, address: id.gossip_advertise_addr }
}

/// What chitchat's state says about one incarnation of a node.
pub(super) struct Observed {
    pub id: Incarnation,
    pub live: bool,
    pub heartbeat: u64,
    pub phase: Option<Phase>,
    pub version: String,
    pub wire: Versions,
    pub sender: Option<u64>,
    pub table: Option<TableDigest>,
    pub seen: Option<String>,
    pub key: Option<String>,
    pub cut: Option<Cut>,
    pub report: Option<NodeReport>,
    /// Whether its configuration names other sites.
    pub names_sites: bool,
    /// Whether it reads datagrams of every kind.
    pub reads_datagrams: bool,
}

impl Observed {
    /// The number of the node's start, without restarts of chitchat.
    pub const fn start(&self) -> u64 {
        self.id.generation >> RESTART_BITS
    }
}

/// All incarnations that chitchat knows. `ours` are the wire versions of this node.
pub(super) fn observe(chitchat: &Chitchat, ours: Versions) -> Vec<Observed> {
    let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let nodes = chitchat.node_states().iter().map(|(id, state)| {
        Observed {
            live: live.contains(id),
            heartbeat: state.heartbeat().into(),
            phase: state.get(key::PHASE).and_then(Phase::from_text),
            version: state.get(key::VERSION).unwrap_or_default().chars().take(64).collect(),
            // Until a node has published its versions, it is treated like a node of this build.
            wire: state.get(key::WIRE).and_then(|text| text.parse().ok()).unwrap_or(ours),
            sender: state.get(key::SENDER).and_then(|text| u64::from_str_radix(text, 16).ok()),
            table: state.get(key::TABLE).and_then(TableDigest::from_text),
            seen: state.get(key::SEEN).map(str::to_owned),
            key: state.get(key::KEY).map(|key| key.chars().take(64).collect()),
            cut: state.get(key::CUT).and_then(Cut::from_text),
            report: state.get(key::REPORT).and_then(NodeReport::from_text),
            names_sites: state.get(key::SITES).is_some(),
            reads_datagrams: state.get(key::DATAGRAMS) == Some(DATAGRAMS_VERSION),
            id: incarnation(id),
        }
    });
    nodes.collect()
}

/// Marks as dead the earlier incarnations of restarted nodes, whose last heartbeats still count for a few seconds. Incarnations
/// in `duplicates` belong to different nodes, and stay.
pub(super) fn bury_restarted(observed: &mut [Observed], duplicates: &[Incarnation]) {
    let mut latest: HashMap<Arc<str>, u64> = HashMap::new();
    for node in observed.iter().filter(|node| node.live) {
        let generation = latest.entry(Arc::clone(&node.id.node)).or_default();
        *generation = node.id.generation.max(*generation);
    }
    for node in observed {
        let is_latest = latest.get(&node.id.node).is_none_or(|latest| *latest <= node.id.generation);
        node.live &= is_latest || duplicates.contains(&node.id);
    }
}

/// How this node presents itself.
pub(super) struct Identity<'a> {
    pub settings: &'a ClusterSettings,
    pub advertise: SocketAddr,
    pub sender: u64,
    pub phase: Phase,
}

impl Identity<'_> {
    /// Starts chitchat. Slots of other nodes' recent-changes logs go to `slots`; if one does not fit, `overflow` is set.
    pub async fn spawn(
        &self,
        restarts: u64,
        transport: &EncryptedTransport,
        slots: &mpsc::Sender<ReceivedSlot>,
        overflow: &Arc<AtomicBool>,
    ) -> anyhow::Result<ChitchatHandle> {
        let settings = self.settings;
        let timers = settings.timers;
        let generation = (settings.generation << RESTART_BITS) | restarts.min((1 << RESTART_BITS) - 1);
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(settings.node.as_str(), generation, self.advertise),
            cluster_id: settings.name.clone(),
            gossip_interval: timers.gossip_interval,
            listen_addr: settings.listen,
            // Names are resolved by `find_seeds`.
            seed_nodes: settings.seeds.iter().filter(|s| s.parse::<SocketAddr>().is_ok()).cloned().collect(),
            failure_detector_config: failure_detector(timers.failure_timeout, timers.forget_after),
            marked_for_deletion_grace_period: timers.forget_after,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let published = [
            (key::PHASE, self.phase.as_str().to_owned()),
            (key::VERSION, settings.version.clone()),
            (key::WIRE, settings.wire.versions.to_string()),
            (key::SENDER, format!("{:016x}", self.sender)),
            (key::DATAGRAMS, DATAGRAMS_VERSION.to_owned()),
        ];
        let mut published = published.map(|(key, value)| (key.to_owned(), value)).to_vec();
        if !settings.sites.is_empty() {
            published.push((key::SITES.to_owned(), settings.sites.len().to_string()));
        }
        let handle = spawn_chitchat(config, published, transport).await?;
        let (slots, overflow, own) = (slots.clone(), Arc::clone(overflow), handle.chitchat_id().clone());
        let chitchat = handle.chitchat();
        let subscription = chitchat.lock().await.subscribe_event(KEY_PREFIX, move |event| {
            // Called while chitchat's only mutex is held: this must not wait.
            if *event.node == own {
                return;
            }
            let ring = event.key.chars().next().unwrap_or_default();
            let slot = ReceivedSlot { author: incarnation(event.node), ring, value: event.value.to_owned() };
            if slots.try_send(slot).is_err() {
                overflow.store(true, Ordering::Relaxed);
            }
        });
        subscription.forever();
        Ok(handle)
    }
}

/// chitchat considers a node dead when no heartbeat has arrived for `phi_threshold` times the mean interval between heartbeats.
/// Every published change also causes heartbeats, so after a busy hour the mean would be tiny, and the first quiet second would
/// look like a death. Few samples and a heavy prior keep the mean at or above a third of `initial_interval`, which makes
/// `failure_timeout`. They also keep it from growing with the cluster as fast as the interval between heartbeats does: a death is noticed
/// after `failure_timeout` and four such intervals, so that 200 nodes notice it within about 5 s in profile `lan`.
fn failure_detector(failure_timeout: Duration, forget_after: Duration) -> FailureDetectorConfig {
    // The weight of chitchat's prior, in samples.
    const PRIOR: u32 = 5;
    const SAMPLES: u32 = 10;
    const PHI: u32 = 6;
    FailureDetectorConfig {
        phi_threshold: f64::from(PHI),
        sampling_window_size: SAMPLES as usize,
        max_interval: failure_timeout,
        initial_interval: failure_timeout * (PRIOR + SAMPLES) / (PRIOR * PHI),
        dead_node_grace_period: forget_after,
    }
}
