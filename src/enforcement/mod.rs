//! Enforcement: the places where bans hold, and how they learn about them.

pub mod agent;
pub mod crowdsec;
pub mod firewall;
pub mod follower;
pub mod haproxy_map;
pub mod lists;
pub mod mail;
pub mod peers;
mod poll_metrics;
pub mod published;
pub mod verdict;
