//! HAProxy's peers protocol (version 2.1), the protocol in which HAProxy processes exchange the entries of their stick-tables.
//!
//! This crate does no I/O and reads no clock. A [`Session`] is the state of one connection from HAProxy: you pass it the bytes that
//! you read and the time, it reports [`Event`]s, and you write the bytes that it appends to your output buffer.
//!
//! | module | contents |
//! |---|---|
//! | [`hello`] | the three lines that open a session |
//! | [`message`] | the frame around every message |
//! | [`table`] | the definition of a stick-table: its name, key and columns |
//! | [`update`] | one entry of a table |
//! | [`rate`] | HAProxy's sliding rates: their value at a moment, and sums |
//! | [`session`] | the state of one connection |
//! | [`counters`] | what several HAProxy processes counted for the same keys, and the sums |
//! | [`reports`] | offences that HAProxy counts in a table |
//! | [`exchange`] | the states of a process in datagrams |
#![forbid(unsafe_code)]

pub mod counters;
mod error;
pub mod exchange;
pub mod hello;
pub mod message;
pub mod rate;
mod reader;
pub mod reports;
pub mod session;
pub mod table;
pub mod update;

pub use error::Malformed;
pub use rate::Rate;
pub use session::{Event, Session, SessionError};
pub use table::{Cell, CellKind, Definition, KeyKind};
pub use update::{Update, Value};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
