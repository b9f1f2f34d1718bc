//! Syslog as its senders really write it: RFC 3164, RFC 5424, and what lies between them.
//!
//! [`parse`] takes a line apart, [`deframe`] cuts a byte stream into lines (RFC 6587). Neither does I/O, neither fails.
#![forbid(unsafe_code)]

pub mod deframe;
mod line;
mod rfc3164;
mod rfc5424;
mod timestamp;

pub use deframe::Deframer;
pub use line::{Line, PROGRAM_MAX, Priority, Repeat, flatten, parse, trim, trim_end};
