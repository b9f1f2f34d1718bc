//! Addresses, networks and times in canonical form, as the crates of banmesh share them.
#![forbid(unsafe_code)]

pub mod echo;
pub mod netset;
pub mod target;
pub mod time;
