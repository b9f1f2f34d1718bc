//! banmesh: fail2ban for a fleet of HAProxy load balancers.
//!
//! The modules of the crate. A module imports only from modules above it, and a test (`tests/walls.rs`) enforces that:
//!
//! | module | contents | what it may do |
//! |---|---|---|
//! | [`domain`] | decisions: time, stamps, targets, filters, attempts, policy, the ban entry and its table | pure: no tokio, sockets, files or clock |
//! | [`proto`] | encoding and decoding: SPOP, syslog, the cluster's wire format and its encryption | pure |
//! | [`config`] | the configuration: parsing, checks, defaults | reads files and the environment |
//! | [`service`] | async shells around the decisions: syslog in, SPOP out, store, journal, cluster, admin | all I/O, but no decisions |
//! | [`app`] | the composition root: builds, wires, runs, reloads and stops the parts | all I/O, but no decisions |
//! | [`cli`] | the command line | starts [`app`], or talks to a running node |
//!
//! Data flows one way: a filter turns a line into an offence, the judge turns offences into a ban, the store (the only writer)
//! merges local bans and entries from other nodes into the ban table, and readers look up addresses without a lock.
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod proto;
pub mod service;
