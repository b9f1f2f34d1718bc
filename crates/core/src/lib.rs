#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod alarm;
pub mod attempts;
pub mod ban;
pub mod breadth;
pub mod clock_step;
pub mod exemptions;
pub mod follow;
pub mod hlc;
pub mod judge;
pub mod ledger;
pub mod node;
pub mod planted;
pub mod policy;
pub mod published;
pub mod repeats;
pub mod retention;
pub mod seal;
pub mod table;
pub mod visible;
pub mod wire;
