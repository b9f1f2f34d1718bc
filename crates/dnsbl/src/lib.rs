#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod answer;
mod name;
mod query;

pub use answer::{Listings, MAX_ANSWER, MAX_TEXT, MAX_TTL, Outcome, refuse, truncate};
pub use name::{Zone, ZoneError};
