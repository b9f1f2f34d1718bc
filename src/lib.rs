//! banmesh: fail2ban for a fleet of HAProxy nodes.
//!
//! A map of the crate. Imports point up this list only, and a test (`tests/walls.rs`) enforces it:
//!
//! | module | what lives there | may do |
//! |---|---|---|
//! | [`domain`] | decisions: time, stamps, targets, filters, attempts, policy, the ban entry and its table | pure: no tokio, sockets, files or clock |
//! | [`proto`] | bytes to values and back: SPOP, syslog, the cluster's wire format and its seal | pure |
//! | [`config`] | what the operator wrote, checked, and what it means | reads files and the environment |
//! | [`service`] | async shells around the decisions: syslog in, SPOP out, store, journal, cluster, admin | everything, but decides nothing |
//! | [`app`] | the composition root: build, wire, run, reload, drain | wires |
//! | [`cli`] | the command line | starts [`app`], or talks to a running node |
//!
//! Data flows one way: a line becomes an offence, offences become a ban order, the store (one writer) turns orders and
//! remote entries into the ban table, and readers look up without a lock.
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod proto;
pub mod service;
