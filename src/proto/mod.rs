//! Bytes to values and back, without I/O: what HAProxy, syslog senders and the other nodes speak.

pub mod credential;
pub mod haproxy_cli;
pub mod notice;
pub mod seal;
pub mod spop;
pub mod syslog;
pub mod wire;
