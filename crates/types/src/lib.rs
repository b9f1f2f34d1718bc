#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod address;
pub mod echo;
pub mod nat64;
pub mod netset;
pub mod special;
pub mod target;
pub mod time;
