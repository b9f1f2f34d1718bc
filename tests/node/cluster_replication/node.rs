//! A node without HAProxy and syslog: a store and its end of the cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use banmesh::clock;
use banmesh::cluster::{Cluster, ClusterHandle, ClusterSettings, Metrics, Profile, Timers};
use banmesh::decisions::store::{self, Store, StoreHandle};
use banmesh::decisions::view::View;
use banmesh_core::attempts::RemoteCount;
use banmesh_core::ban::{By, Cause};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_core::seal::{Keyring, key_text};
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Node {
    pub store: StoreHandle,
    pub cluster: ClusterHandle,
    pub metrics: Metrics,
    pub counts: mpsc::Receiver<RemoteCount>,
    pub shutdown: CancellationToken,
    serving: AbortOnDropHandle<()>,
    _store: AbortOnDropHandle<()>,
}

pub fn keyring(keys: &[u8]) -> Keyring {
    let lines: Vec<String> = keys.iter().map(|key| key_text([*key; 32])).collect();
    Keyring::parse(&lines.join("\n")).unwrap()
}

pub fn settings(id: &str, generation: u64, seeds: &[&Node]) -> ClusterSettings {
    ClusterSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        seeds: seeds.iter().map(|node| node.cluster.listen().to_string()).collect(),
        // A machine that is busy with other tests must not make its nodes seem dead.
        timers: Timers { failure_timeout: Duration::from_secs(2), ..Timers::of(Profile::Local) },
        keyring: Some(keyring(&[1])),
        // Nobody comes to a node without seeds. One that has some must not give up because the machine is busy.
        join_timeout: if seeds.is_empty() { Duration::from_millis(500) } else { Duration::from_secs(30) },
        ..ClusterSettings::new(id.parse().unwrap(), generation)
    }
}

/// A store of its own, empty.
pub fn new_store(id: &str) -> (StoreHandle, AbortOnDropHandle<()>) {
    let limits = Limits { max_bans: 4_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new(id.parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(60), store::Metrics::default());
    (handle, AbortOnDropHandle::new(tokio::spawn(store.serve(CancellationToken::new()))))
}

impl Node {
    /// Starts the node called `id`, which has met nobody but `seeds`.
    pub async fn start(id: &str, seeds: &[&Self]) -> Self {
        Self::start_with(settings(id, 1, seeds)).await
    }

    pub async fn start_with(settings: ClusterSettings) -> Self {
        let (handle, store) = new_store(settings.node.as_str());
        let metrics = Metrics::default();
        let mut cluster = Cluster::bind(settings, handle.clone(), metrics.clone()).await.unwrap();
        let shutdown = CancellationToken::new();
        let node = cluster.handle();
        let counts = cluster.remote_counts().unwrap();
        let stop = shutdown.clone();
        let serving = tokio::spawn(async move { cluster.serve(stop).await.unwrap() });
        Self {
            store: handle,
            cluster: node,
            metrics,
            counts,
            shutdown,
            serving: AbortOnDropHandle::new(serving),
            _store: store,
        }
    }

    /// `count` nodes that have all met.
    pub async fn cluster_of(count: usize) -> Vec<Self> {
        let mut nodes: Vec<Self> = Vec::new();
        for n in 0..count {
            let first: Vec<&Self> = nodes.first().into_iter().collect();
            let node = Self::start(&format!("node-{n}"), &first).await;
            nodes.push(node);
        }
        until("all nodes have met and are ready", || async {
            nodes.iter().all(|node| node.peers() == count - 1 && node.is_ready())
        })
        .await;
        nodes
    }

    pub fn address(&self) -> SocketAddr {
        self.cluster.listen()
    }

    /// How many live peers it sees.
    pub fn peers(&self) -> usize {
        self.cluster.members().live_peers().count()
    }

    pub fn is_ready(&self) -> bool {
        *self.cluster.phase().borrow() != banmesh::cluster::members::Phase::Joining
    }

    pub async fn ban(&self, target: &str) {
        let until = Expiry::at(clock::now().plus(Duration::from_secs(3600)));
        let cause = Cause::new(By::Operator("test".into()), "because");
        self.store.ban(self::target(target), BanTerms::new(until, DAY), cause).await.unwrap().unwrap();
    }

    pub async fn lift(&self, target: &str) {
        let cause = Cause::new(By::Operator("test".into()), "sorry");
        self.store.unban(self::target(target), cause).await.unwrap().unwrap();
    }

    pub async fn bans(&self, target: &str) -> bool {
        let entry = self.store.entry(self::target(target)).await.unwrap();
        entry.is_some_and(|entry| entry.is_banned(clock::now()))
    }

    pub async fn digest(&self) -> (u64, usize) {
        let summary = self.store.summary().await.unwrap();
        (summary.digest, summary.entries)
    }

    /// Leaves in good order.
    pub async fn leave(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap();
    }
}

pub fn target(text: &str) -> Target {
    text.parse().unwrap()
}

/// Whether all nodes hold the same table.
pub async fn agree(nodes: &[&Node]) -> bool {
    let mut digests = Vec::new();
    for node in nodes {
        digests.push(node.digest().await);
    }
    digests.windows(2).all(|pair| pair[0] == pair[1])
}

/// Waits until `condition` holds; gives up after 60 s.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(60), "after 60 s still not: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
