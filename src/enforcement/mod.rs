//! Where bans hold.

pub mod agent;
pub mod haproxy_map;
