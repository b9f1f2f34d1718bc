//! Sends what this node's HAProxies have counted.

use std::net::SocketAddr;
use std::sync::Arc;

use super::membership::Membership;
use super::settings::ClusterSettings;
use super::transport::EncryptedTransport;
use banmesh_cluster::datagram::{Kind, States};
use banmesh_core::node::NodeId;

/// Sends states to all live nodes, in datagrams that are neither acknowledged nor sent again here.
#[derive(Debug)]
pub struct StateSender {
    membership: Arc<Membership>,
    transport: EncryptedTransport,
    node: NodeId,
    generation: u64,
    sequence: u64,
    room: usize,
}

impl StateSender {
    pub(super) fn new(membership: Arc<Membership>, settings: &ClusterSettings) -> Self {
        Self {
            transport: membership.transport(),
            membership,
            node: settings.node.clone(),
            generation: settings.generation,
            sequence: 0,
            room: States::room(settings.max_datagram, &settings.node),
        }
    }

    /// The most bytes of states in one datagram.
    pub const fn room(&self) -> usize {
        self.room
    }

    /// The live nodes that read these datagrams, with the number of their process. Nodes that UDP does not reach are among them.
    pub fn peers(&self) -> Vec<(u64, SocketAddr)> {
        let members = Arc::clone(&self.membership.members().borrow());
        let direct = self.membership.direct_peers();
        let peer = |(node, process): (&NodeId, &u64)| Some((*process, members.live_peer(node.as_str())?.address));
        direct.iter().filter_map(peer).collect()
    }

    /// The number of the live process of `node`. `None` if it is not live, or does not read these datagrams.
    pub fn process_of(&self, node: &NodeId) -> Option<u64> {
        self.membership.direct_peers().get(node).copied()
    }

    /// Sends one datagram to each of `peers`.
    pub async fn send(&mut self, peers: &[(u64, SocketAddr)], states: &[u8]) {
        self.sequence += 1;
        let head = States::encode_head(&self.node, self.generation, self.sequence);
        for (_, address) in peers {
            self.transport.send(*address, Kind::States, &[&head, states]).await;
        }
    }
}
