#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod account;
pub mod alarm;
pub mod attempts;
pub mod ban;
pub mod breadth;
pub mod clock_step;
pub mod evidence;
pub mod exemptions;
pub mod follow;
pub mod hlc;
pub mod judge;
pub mod ledger;
pub mod node;
pub mod planted;
pub mod policy;
pub mod published;
pub mod ranking;
pub mod repeats;
pub mod retention;
pub mod seal;
pub mod shadow;
pub mod siphash;
pub mod table;
pub mod visible;
pub mod wire;
