//! Enforcement: the places where bans hold, and how they learn about them.

pub mod agent;
pub mod firewall;
pub mod follower;
pub mod haproxy_map;
pub mod verdict;
