//! The settings of a cluster.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::bridges::OtherSite;
use crate::net::network::{Network, SystemNetwork};
use banmesh_cluster::datagram::DEFAULT_MAX_DATAGRAM;
use banmesh_cluster::timers::{Profile, Timers};
use banmesh_core::node::NodeId;
use banmesh_core::seal::Keyring;
use banmesh_core::wire::Dialect;

/// The settings for [`super::Cluster::bind`].
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// `cluster.name`. Nodes with another name are ignored.
    pub name: String,
    /// `node.id`, unique in the cluster.
    pub node: NodeId,
    /// A number from the journal that is greater after every start.
    pub generation: u64,
    /// `cluster.listen`: gossip on UDP, repair on TCP. Port 0 stands for any port that is free on both.
    pub listen: SocketAddr,
    /// `cluster.advertise`: where the other nodes reach this one. `None`: at the address of the interface that reaches the seeds.
    /// Port 0 stands for the port of `listen`.
    pub advertise: Option<SocketAddr>,
    /// `cluster.seeds`: `host:port` of some nodes. Names are resolved repeatedly.
    pub seeds: Vec<String>,
    /// `cluster.sites`: the other sites.
    pub sites: Vec<OtherSite>,
    /// `cluster.profile`, and the timers that are set by themselves.
    pub timers: Timers,
    /// `cluster.max_datagram`: the longest datagram, in bytes, without the headers of UDP and IP.
    pub max_datagram: usize,
    /// The keys of `cluster.secret_file`. `None`: everything is sent as plaintext.
    pub keyring: Option<Keyring>,
    /// `cluster.insecure`: allow other addresses than loopback even without a keyring.
    pub insecure: bool,
    /// `cluster.count_attempts`: whether to publish the attempts that this node counts.
    pub count_attempts: bool,
    /// `cluster.max_clock_drift`: an error is logged about a peer whose clock differs by more.
    pub max_clock_drift: Duration,
    /// `cluster.join_timeout`: after this time without a peer to join through, the node is ready alone.
    pub join_timeout: Duration,
    /// The version of this build, as published.
    pub version: String,
    /// The wire versions that this build reads and writes.
    pub wire: Dialect,
    /// Where all sockets of the cluster are opened.
    pub network: Arc<dyn Network>,
}

impl ClusterSettings {
    /// The defaults.
    pub fn new(node: NodeId, generation: u64) -> Self {
        Self {
            name: "banmesh".to_owned(),
            node,
            generation,
            listen: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 12350),
            advertise: None,
            seeds: Vec::new(),
            sites: Vec::new(),
            timers: Timers::of(Profile::Lan),
            max_datagram: DEFAULT_MAX_DATAGRAM,
            keyring: None,
            insecure: false,
            count_attempts: true,
            max_clock_drift: Duration::from_secs(10),
            join_timeout: Duration::from_secs(10),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire: Dialect::default(),
            network: Arc::new(SystemNetwork),
        }
    }
}
