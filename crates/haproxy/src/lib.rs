//! HAProxy's configuration: what banmesh writes for it, and what it finds wrong in one that somebody wrote.
//!
//! | module | what |
//! |---|---|
//! | [`version`] | series of HAProxy |
//! | [`words`] | a line into words: quotes, escapes, variables |
//! | [`conditions`] | `.if` … `.endif` |
//! | [`document`] | a file into sections |
//! | [`proxies`] | frontends and backends with what they inherit |
//! | [`rules`] | rules, their conditions, the variables in them |
//! | [`spoe`] | agents, messages, groups |
//! | [`lint`] | the traps |
//! | [`finding`] | what they come to |
//! | [`generate`] | a configuration that has none of them |
//! | [`load`](mod@load) | the files themselves: the only module here that touches anything |
//!
//! Sources: HAProxy's configuration.txt and SPOE.txt, and what HAProxy 2.6 to 3.4 do.
#![forbid(unsafe_code)]

pub mod conditions;
pub mod document;
pub mod finding;
pub mod generate;
pub mod lint;
pub mod load;
pub mod proxies;
pub mod rules;
pub mod runtime;
pub mod spoe;
pub mod version;
pub mod words;

pub use finding::{Finding, Severity};
pub use lint::{Node, check};
pub use version::Version;
