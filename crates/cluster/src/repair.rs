//! Repair: two nodes compare their tables and exchange what differs.
//!
//! A node repairs when it joins, when it missed something, when a node comes back, when two tables differ for longer than a
//! moment, and otherwise with a random peer from time to time. [`plan`] decides with whom and when. [`frame`] and [`exchange`] are
//! the bytes of a session. [`coded`] finds the entries that differ in the buckets that differ.

pub mod coded;
pub mod exchange;
pub mod frame;
pub mod plan;

use banmesh_core::wire::Versions;

/// Why this end ends a repair session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is longer than allowed.
    #[error("a frame is longer than allowed")]
    TooLong,
    /// A frame has an unexpected kind or invalid contents.
    #[error("unexpected or invalid frame")]
    Malformed,
    /// The other node serves as many repairs as it can.
    #[error("the other node serves as many repairs as it can")]
    Busy,
    /// The nodes share no wire version. Holds the versions of this node.
    #[error("the other node reads no wire version that this one reads ({0}): upgrade the node with the older build")]
    Version(Versions),
    /// The other end has this node's own id.
    #[error("the other end is this node itself")]
    Ourselves,
}

impl ProtocolError {
    /// The metric label under which it is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too long",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
            Self::Version(_) => "version",
            Self::Ourselves => "our own",
        }
    }
}
