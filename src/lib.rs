//! banmesh: fail2ban for a fleet of HAProxy nodes. This crate is the node and its command line.
//!
//! Decisions live in crates of their own, without I/O and without a clock: [`banmesh_filter`] (from a log line to an offence),
//! [`banmesh_core`] (bans, attempts, the records that nodes exchange), [`banmesh_cluster`] (how nodes replicate), [`banmesh_spop`],
//! [`banmesh_syslog`] and [`banmesh_haproxy`] (what HAProxy and syslog senders speak). The modules here do the I/O around them.
//! Imports point from the top of this list down:
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | the command line: starts [`app`], or talks to a running node |
//! | [`app`] | the composition root: start, wiring, supervision, reload, shutdown |
//! | [`config`] | the configuration file and environment, parsed and checked |
//! | [`operation`] | the API with its page, webhooks, metrics |
//! | [`enforcement`] | where bans hold: the SPOE agent, the map in HAProxy's memory |
//! | [`replay`] | the decisions of a node over archived logs, in virtual time |
//! | [`inputs`] | syslog, files and systemd's journal, and the detection of offences |
//! | [`cluster`] | gossip and repair |
//! | [`decisions`] | the judge, the store with its view and its journal, the history |
//! | [`net`], [`clock`], [`private`] | TLS, dialing, rate limits; the wall clock; files for the owner alone |
//!
//! Data flows one way: a line becomes an offence, offences become a ban order, the store (the only writer) turns orders and
//! entries of other nodes into the ban table, and readers look up without a lock.
//!
//! # What is stable
//!
//! From 1.0 on, the interfaces that users and programs see follow semantic versioning: the configuration file and environment
//! variables, the command line with its `--json` output and exit codes, the HTTP API under `/api/v1`, names and labels of metrics,
//! the SPOE messages and variables, the filter format, the journal, and the wire protocol between nodes. CHANGELOG.md lists every
//! change to them.
//!
//! The Rust interface of this crate is not stable: it exists for the program and its tests, and may change in any release. The
//! crates [`banmesh_spop`], [`banmesh_syslog`], [`banmesh_filter`], [`banmesh_haproxy`] and [`banmesh_types`] are libraries for
//! general use and follow semantic versioning separately; before 1.0, a new minor version may break them.
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod decisions;
pub mod enforcement;
pub mod inputs;
pub mod net;
pub mod operation;
pub mod private;
pub mod replay;
