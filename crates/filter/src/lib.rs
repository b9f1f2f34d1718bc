//! From a log line to an offence: filters, and the detector that they compile to.
//!
//! A [`Filter`] says how one service writes a failed login. [`Detector::compile`] turns filters (and the loose
//! `syslog.patterns` of a configuration, [`Pattern`]) into a rule set; [`Detector::detect`] says whose address, if
//! anybody's, a line accuses. [`Repeats`] then drops the lines that only say again what another line has said.
//!
//! **Order.** A line is at most one [`Offence`]. The filters are asked in the order in which they were given, then the
//! patterns; within a filter its `ignoreregex` rules come first (a match ends that filter), then its `successregex`, then
//! its `failregex`, each in the order of the file. The first rule that matches *and* whose address is valid decides.
//!
//! **Sessions.** Some services name the address when a connection begins and only the connection when a login fails. A
//! `sessionregex` remembers whose session it is, in the [`Scratch`] of whoever asks; a rule with the group `session` and
//! without an address of its own takes the one that is remembered, and matches nothing where none is.
//!
//! **Programs.** A filter sees the lines of every program that one of its service names matches, whatever the other filters
//! name. Which filters see a program that nobody spells out is worked out once and kept in the [`Scratch`].
//!
//! **Cost.** A line is dispatched by its program name to the rules that apply to that program. One pass of an Aho-Corasick
//! automaton over the text finds which rules can match at all: of every rule sets of substrings are known, of each of which
//! one is part of every match. Only the expressions of rules all of whose sets are met run. A rule of which no such substring is known runs on every line;
//! [`Detector::warnings`] names it.
//!
//! **Safety.** Expressions run in time linear in the line, whatever the line (`regex-automata`), their size is limited, and
//! host names are never resolved.
#![forbid(unsafe_code)]

mod definition;
mod detector;
mod dispatch;
mod error;
mod expand;
mod explain;
pub mod fail2ban;
pub mod library;
mod literal;
mod pieces;
mod rule;
mod ruleset;
mod selftest;
mod session;
mod source;
mod testline;

pub use definition::{Filter, IpGroup, MODES, Mode, Overrides, Pattern, Rule, TestLine, Verdict};
pub use detector::{Detector, LineView, Offence, OffenceKind, PolicyId, Scratch, Warning};
pub use error::{FilterError, Place, Problem};
pub use explain::{Explanation, RuleReport, Stop};
pub use selftest::{TestFailure, selftest};
pub use session::Writer;
pub use source::{forwarded_source, parse_source};
pub use testline::{MarkedLine, Piece};

#[cfg(test)]
mod tests;
