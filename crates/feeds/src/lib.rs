#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod catalogue;
pub mod keeping;
pub mod list;
mod ranges;
mod sieve;
pub mod table;
