//! What the operator decides about a cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use crate::config::Profile;
use banmesh_core::node::NodeId;
use banmesh_core::seal::Keyring;
use banmesh_core::wire::Dialect;

/// Everything that [`super::Cluster::bind`] needs to know.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// `cluster.name`: nodes of other names are not talked to.
    pub name: String,
    /// `node.id`: no two nodes may share it.
    pub node: NodeId,
    /// How often this node was started: it must rise with every start, and comes from the journal.
    pub generation: u64,
    /// `cluster.listen`: gossip on UDP, repair on TCP. Port 0 takes any that is free on both.
    pub listen: SocketAddr,
    /// `cluster.advertise`: where the others reach this node. By default the address of the interface that reaches the
    /// seeds; port 0 stands for the port listened on.
    pub advertise: Option<SocketAddr>,
    /// `cluster.seeds`: `host:port` of some nodes; names are resolved again and again.
    pub seeds: Vec<String>,
    /// The timers.
    pub timers: Timers,
    /// The keys of `cluster.secret_file`; without one, frames are not sealed.
    pub keyring: Option<Keyring>,
    /// `cluster.insecure`: without a keyring, allow other addresses than loopback.
    pub insecure: bool,
    /// `cluster.count_attempts`: tell the others how many failures this node has seen.
    pub count_attempts: bool,
    /// `cluster.max_clock_drift`: a peer whose clock is off by more is alarmed about.
    pub max_clock_drift: Duration,
    /// After so long without a peer to join, the node is ready alone.
    pub join_timeout: Duration,
    /// This build, as shown to the others.
    pub version: String,
    /// What this build reads and writes.
    pub wire: Dialect,
}

impl ClusterSettings {
    /// The defaults for `node`, started for the `generation`th time.
    pub fn new(node: NodeId, generation: u64) -> Self {
        Self {
            name: "banmesh".to_owned(),
            node,
            generation,
            listen: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 12350),
            advertise: None,
            seeds: Vec::new(),
            timers: Timers::of(Profile::Lan),
            keyring: None,
            insecure: false,
            count_attempts: true,
            max_clock_drift: Duration::from_secs(10),
            join_timeout: Duration::from_secs(10),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire: Dialect::default(),
        }
    }
}

/// The timers of a cluster, set by the profile, each of which can be set alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Every so often a node gossips with three others, whether there is news or not.
    pub gossip_interval: Duration,
    /// A node is dead at the soonest after so long without a heartbeat.
    pub failure_timeout: Duration,
    /// A dead node is forgotten after so long.
    pub forget_after: Duration,
    /// Every so often a node compares its table with that of a random other, also when all seems well.
    pub repair_interval: Duration,
    /// Tables that differ for so long are repaired.
    pub differ_for: Duration,
    /// A step of a repair (a frame, a handshake) that takes longer ends it.
    pub repair_timeout: Duration,
    /// While news is plentiful, it is sent so often for each live peer: 3 ms and 10 peers are 30 ms.
    pub pace_per_peer: Duration,
    /// But not more often than this.
    pub min_pace: Duration,
    /// After a node was told to stop, so long it waits at most until the others have its last changes: see
    /// [`Self::LEAVE`] for what ends it.
    pub farewell: Duration,
}

impl Timers {
    /// From the end of the farewell until the cluster service has ended: whoever ends a node by force must leave it
    /// [`Self::farewell`] and this.
    pub const LEAVE: Duration = Duration::from_secs(2);

    /// The timers of `profile`.
    pub const fn of(profile: Profile) -> Self {
        let base = Self {
            gossip_interval: Duration::from_millis(200),
            failure_timeout: Duration::from_secs(3),
            // 500 incarnations of restarted nodes overflow a chitchat digest: nodes that crash and come back under new ids
            // must be forgotten sooner than that.
            forget_after: Duration::from_secs(15 * 60),
            repair_interval: Duration::from_secs(60),
            differ_for: Duration::from_secs(2),
            repair_timeout: Duration::from_secs(10),
            pace_per_peer: Duration::from_micros(500),
            min_pace: Duration::from_millis(1),
            farewell: Duration::from_secs(6),
        };
        match profile {
            Profile::Lan => base,
            Profile::Wan => Self {
                gossip_interval: Duration::from_millis(500),
                failure_timeout: Duration::from_secs(12),
                differ_for: Duration::from_secs(5),
                repair_timeout: Duration::from_secs(30),
                ..base
            },
            Profile::Local => Self {
                gossip_interval: Duration::from_millis(50),
                failure_timeout: Duration::from_millis(800),
                repair_interval: Duration::from_secs(10),
                differ_for: Duration::from_millis(500),
                ..base
            },
        }
    }
}
