//! The node as a library and as a program, in one test binary, because linking many takes longer than running them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod api;
mod cluster_replication;
mod config;
mod config_check;
mod config_documents;
mod config_hostile;
mod config_keys;
mod documents;
mod feeds;
mod filters_cli;
mod filters_documents;
mod haproxy_check;
mod inputs_config;
mod inputs_documents;
mod inputs_files;
mod inputs_journal;
mod inputs_lateness;
mod journal_crash;
mod journal_store;
mod mail;
mod migrate;
mod replay;
mod sizes;
mod spoa;
mod spoa_config;
mod spoa_tls;
mod syslog_senders;
mod syslog_service;
mod verdict;
mod webhooks;
mod wrong_inputs;
