//! Enforcement: the places where bans hold, and how they learn about them.

pub mod agent;
mod asked;
pub mod crowdsec;
pub mod firewall;
pub mod follower;
pub mod haproxy_map;
pub mod lists;
pub mod mail;
pub mod peers;
pub mod published;
pub mod verdict;
