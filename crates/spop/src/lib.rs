//! SPOP 2.0, the protocol in which HAProxy asks its agents (HAProxy's `doc/SPOE.txt`, section 3), from the agent's side.
//!
//! | module | what |
//! |---|---|
//! | [`varint`] | HAProxy's variable-length integers |
//! | [`data`] | typed data, strings and key-value lists |
//! | [`frame`] | the length prefix, the frame's header, and the frames that an agent sends |
//! | [`handshake`] | what HAPROXY-HELLO offers and what AGENT-HELLO answers |
//! | [`message`] | the messages in a NOTIFY and what they ask |
//! | [`session`] | one connection's state: bytes in, answers out |
//!
//! Everything is decoded in place and borrows from the bytes that were read. What a NOTIFY passes through is inlined by order:
//! left to itself the compiler makes calls of it that hand results over in memory, and a frame takes 487 instructions, not 390.
#![forbid(unsafe_code)]

pub mod data;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod session;
pub mod varint;

pub use frame::Code;
pub use session::{Ending, Handler, Next, Progress, Session, Tally};

/// Bytes that are no valid frame, payload or value. The peer gets [`Code::Invalid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub &'static str);
