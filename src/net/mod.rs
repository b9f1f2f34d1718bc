//! What every part that talks to a network needs.

pub mod dial;
pub mod throttle;
pub mod tls;
