//! Decisions. Nothing here knows tokio, sockets, files or a clock: `now` is always an argument.

pub mod alarm;
pub mod attempts;
pub mod ban;
pub mod clock_step;
pub mod exemptions;
pub mod filter;
pub mod hlc;
pub mod judge;
pub mod ledger;
pub mod mirror;
pub mod netset;
pub mod node;
pub mod policy;
pub mod role;
pub mod table;
pub mod target;
pub mod time;
pub mod visible;
