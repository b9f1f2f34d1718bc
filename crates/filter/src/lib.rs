#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod access_line;
mod compiler;
mod definition;
mod detector;
mod dispatch;
mod error;
mod expand;
mod explain;
pub mod fail2ban;
pub mod forge;
mod groups;
pub mod library;
mod line;
mod literal;
mod offence;
mod pieces;
mod rule;
mod ruleset;
mod scratch;
mod selftest;
mod session;
mod source;
mod testline;

pub use banmesh_types::echo::EchoClass;
pub use definition::{
    BanMode, Filter, FilterLimits, IpGroup, MODES, Mode, Overrides, Pattern, Rule, TestLine, Verdict,
};
pub use detector::Detector;
pub use error::{FilterError, Place, Problem, Warning};
pub use explain::{Explanation, RuleReport, Stop};
pub use line::{LineView, Writer};
pub use offence::{Offence, OffenceKind, PolicyId};
pub use scratch::Scratch;
pub use selftest::{TestFailure, selftest};
pub use source::{forwarded_source, parse_source};
pub use testline::{MarkedLine, Piece};

#[cfg(test)]
mod cost;
#[cfg(test)]
mod tests;
