//! Which run of which node sent something.

use std::net::{IpAddr, SocketAddr};
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

impl Incarnation {
    /// The number that stands for it in [short entries](crate::compact): the low 32 bits of XXH3-64 of its address (as mapped IPv6, and
    /// the port) and its node's id, with the generation as the seed.
    pub fn short_id(&self) -> u32 {
        let ip = match self.address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let bytes = [&ip.octets()[..], &self.address.port().to_le_bytes(), self.node.as_bytes()].concat();
        let [a, b, c, d, ..] = xxh3_64_with_seed(&bytes, self.generation).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// The number that identifies the attempt counts of `node` since its start number `generation`.
pub fn counter_of(node: &str, generation: u64) -> Counter {
    xxh3_64_with_seed(node.as_bytes(), generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_depends_on_every_part() {
        let incarnation = |node: &str, generation, address: &str| {
            Incarnation { node: node.into(), generation, address: address.parse().unwrap() }.short_id()
        };
        let one = incarnation("edge-1", 7 << 16, "192.0.2.1:12350");
        assert_eq!(one, 0xfbe0_fc61, "docs/protocol.md has this value");
        assert_eq!(one, incarnation("edge-1", 7 << 16, "[::ffff:192.0.2.1]:12350"));
        for other in [
            incarnation("edge-2", 7 << 16, "192.0.2.1:12350"),
            incarnation("edge-1", (7 << 16) + 1, "192.0.2.1:12350"),
            incarnation("edge-1", 7 << 16, "192.0.2.2:12350"),
            incarnation("edge-1", 7 << 16, "192.0.2.1:12351"),
        ] {
            assert_ne!(one, other);
        }
    }
}
