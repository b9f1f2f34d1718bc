//! The cluster in one process: nodes with real sockets on loopback, and what happens when they, or others, misbehave.

mod bans;
mod faults;
mod hostile;
mod node;
mod versions;
