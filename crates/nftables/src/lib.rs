#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod batch;
pub mod connections;
pub mod reply;
pub mod ruleset;
mod wire;
