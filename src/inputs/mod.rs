//! Where log lines come from, and what is recognised in them.

pub mod detect;
pub mod files;
pub mod journald;
pub mod syslog;
