//! Async shells. They move bytes and values between sockets, files and the decisions in [`crate::domain`]; they decide
//! nothing themselves.

pub mod admin;
pub mod clock;
pub mod cluster;
pub mod detect;
pub mod dial;
pub mod files;
pub mod history;
pub mod journal;
pub mod journald;
pub mod judge;
pub mod metrics;
pub mod mirror;
pub mod spoa;
pub mod store;
pub mod syslog;
pub mod throttle;
pub mod tls;
pub mod view;
pub mod webhook;
