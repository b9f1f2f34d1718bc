//! Syslog as real senders write it: RFC 3164, RFC 5424, and everything in between.
//!
//! [`parse`] splits a line into header fields and message. A [`Deframer`] splits a byte stream into lines (RFC 6587). Neither does
//! I/O, and neither can fail: a line without a recognisable header is all message.
//!
//! ```
//! use banmesh_syslog::parse;
//!
//! let line = parse(b"<22>Nov 22 20:00:00 mail postfix/smtpd[4711]: warning: unknown[192.0.2.1]: SASL LOGIN failed");
//! assert_eq!(line.hostname, Some(&b"mail"[..]));
//! assert_eq!(line.program, Some(&b"postfix/smtpd"[..]));
//! assert_eq!(line.pid, Some(&b"4711"[..]));
//! assert_eq!(line.message, b"warning: unknown[192.0.2.1]: SASL LOGIN failed");
//! ```
#![forbid(unsafe_code)]

pub mod deframe;
pub mod envelope;
mod line;
mod parse;
mod rfc3164;
mod rfc5424;
mod scan;
mod timestamp;
mod written;

pub use deframe::Deframer;
pub use line::{Line, Priority, Repeat};
pub use parse::parse;
pub use scan::{PROGRAM_MAX, flatten, trim, trim_end};
pub use written::Written;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
