//! The agent's side of SPOP 2.0, the protocol in which HAProxy queries its agents (section 3 of HAProxy's `doc/SPOE.txt`).
//!
//! This crate does no I/O. A [`Session`] is the state of one connection: you pass it the bytes that you read, it calls your
//! [`Handler`], and you write the bytes that it appends to your output buffer.
//!
//! | module | contents |
//! |---|---|
//! | [`varint`] | HAProxy's variable-length integers |
//! | [`data`] | typed data, strings and key-value lists |
//! | [`frame`] | the length prefix, the frame header, and the frames that an agent sends |
//! | [`handshake`] | reads HAPROXY-HELLO and negotiates what AGENT-HELLO answers |
//! | [`message`] | the messages in a NOTIFY, and what they ask for |
//! | [`session`] | the state of one connection |
//!
//! Everything is decoded in place and borrows from the bytes that you read.
//!
//! The functions that every NOTIFY passes through are `#[inline(always)]`. Otherwise the compiler makes calls of them that return
//! their results through memory, and a frame takes 487 instructions instead of 390.
#![forbid(unsafe_code)]

pub mod data;
mod error;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod session;
pub mod varint;

pub use error::Malformed;
pub use frame::Code;
pub use session::{Ending, Handler, Next, Progress, Session, Tally};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
