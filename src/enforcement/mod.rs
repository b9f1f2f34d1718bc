//! Enforcement: how HAProxy learns about bans.

pub mod agent;
pub mod haproxy_map;
