//! What carries bans between nodes: membership and a ring of recent changes over sealed gossip, and repair over TCP.

pub mod cover;
pub mod metrics;
pub mod parts;
pub mod settings;
pub mod transport;
