//! Parses, checks and generates HAProxy configurations that query an SPOE agent, and speaks HAProxy's runtime API.
//!
//! The crate does no I/O: it gets the text of files and returns values and text. The agent is
//! [banmesh](https://github.com/banmesh/banmesh).
//!
//! | module | contents |
//! |---|---|
//! | [`version`] | HAProxy's release series |
//! | [`words`] | splits a line into words: quotes, escapes, variables |
//! | [`conditions`] | `.if` … `.endif` |
//! | [`document`] | splits a file into sections |
//! | [`proxies`] | frontends and backends, with the settings that they inherit |
//! | [`rules`] | rules, their conditions, and the variables in them |
//! | [`spoe`] | agents, messages and groups in SPOE files |
//! | [`lint`] | finds mistakes |
//! | [`finding`] | the result of [`lint`] |
//! | [`generate`](mod@generate) | writes a configuration without mistakes |
//! | [`tables`] | writes one with a peers section: bans and limits in stick-tables |
//! | [`runtime`] | the runtime API on HAProxy's stats socket |
//!
//! Sources: HAProxy's configuration.txt, management.txt and SPOE.txt, and the behaviour of HAProxy 2.6 to 3.4.
#![forbid(unsafe_code)]

pub mod conditions;
pub mod document;
pub mod finding;
pub mod generate;
pub mod lint;
pub mod proxies;
pub mod rules;
pub mod runtime;
pub mod spoe;
pub mod tables;
pub mod version;
pub mod words;

pub use finding::{Finding, Severity};
pub use lint::{Node, check};
pub use version::Version;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
