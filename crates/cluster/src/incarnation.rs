//! Which run of which node sent something.

use std::net::SocketAddr;
use std::sync::Arc;

use banmesh_core::attempts::Counter;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One run of a node's gossip. Sequence numbers and acknowledgements hold for one incarnation only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation {
    /// The node's id as received: not necessarily a valid [`NodeId`](banmesh_core::node::NodeId).
    pub node: Arc<str>,
    /// Greater in every later run.
    pub generation: u64,
    /// The address that the node advertises. It differs between two nodes that use the same id.
    pub address: SocketAddr,
}

/// The number that identifies the attempt counts of `node` since its start number `generation`.
pub fn counter_of(node: &str, generation: u64) -> Counter {
    xxh3_64_with_seed(node.as_bytes(), generation)
}
