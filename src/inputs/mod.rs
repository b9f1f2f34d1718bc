//! Inputs: the sources of log lines, and the detection of offences in them.

pub mod detect;
pub mod envelope;
pub mod feeds;
pub mod files;
pub mod journald;
pub mod late;
pub mod lateness;
pub mod senders;
pub mod syslog;
