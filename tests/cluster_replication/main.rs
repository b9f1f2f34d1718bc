//! The cluster in one process: nodes with real sockets on loopback, and what happens when they, or others, misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bans;
mod faults;
mod hostile;
mod node;
mod versions;
