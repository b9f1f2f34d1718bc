//! The harness of the tests that use banmesh from outside: real `banmesh` processes, real HAProxy of several versions, real
//! sockets, and networks that can be partitioned.
//!
//! | module | content |
//! |---|---|
//! | [`node`] | one `banmesh` process with its own configuration, data folder and ports |
//! | [`haproxy`] | HAProxy of a given version, with a configuration that the repository ships |
//! | [`site`] | whole sites: a shipped configuration with its servers and agents |
//! | [`backend`] | servers behind HAProxy: a minimal web server and mail server |
//! | [`load`] | a constant rate of requests, with counts of wrong answers |
//! | [`client`] | HTTP and TCP clients that choose their source address |
//! | [`spop`] | a SPOP client, to query a node without HAProxy |
//! | [`syslog`] | sends log lines over UDP and TCP |
//! | [`mail`] | Postfix, Exim, Dovecot and unbound, each in its own file system |
//! | [`netns`] | hosts: network namespaces on a bridge, which can be disconnected |
//! | [`mesh`] | clusters: one node on each of several hosts, with a keyring |
//! | [`admin`] | a client for a node's API on its Unix socket |
//! | [`clock`] | wrong clocks, for one node or for several |
//! | [`hostile`] | an attacker on the network |
//! | [`traffic`] | a constant stream of bans and checks, with counts of wrong answers |
//! | [`measure`] | percentiles, memory, bytes, and the cost of a join |
//! | [`peers`] | HAProxy's own shared tables, for comparison |
//! | [`proxy`] | nginx, Traefik, Caddy and Envoy with the configuration that `banmesh` generates |
//! | [`kubernetes`] | the rendered chart: its pods, services and Secrets, without Kubernetes |
//! | [`ingress`] | HAProxy as an ingress controller runs it |
//! | [`container`], [`dns`] | for these: a process with its own file system; a DNS server |
//! | [`day`] | the logs of a day on a mail host |
//! | [`walkthrough`] | documents whose commands are run and whose outputs are compared |
//! | [`process`], [`ports`], [`wait`] | used by all of them |
//!
//! `BANMESH_BIN` names the binary under test. The default is `banmesh` in the test's own target folder, where
//! `cargo build` puts it. HAProxy comes from `cluster-tests/haproxy-versions`, mail servers from `cluster-tests/mail-servers`.
//!
//! Dropping a handle stops what it started, and prints its log if the test failed.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a harness: whatever cannot go on fails the test that asked for it"
)]

pub mod admin;
pub mod backend;
pub mod busy;
pub mod client;
pub mod clock;
pub mod container;
pub mod day;
pub mod dns;
pub mod haproxy;
pub mod hostile;
pub mod ingress;
pub mod kubernetes;
pub mod load;
pub mod mail;
pub mod measure;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod peers;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod site;
pub mod slow_link;
pub mod spop;
pub mod syslog;
pub mod traffic;
pub mod wait;
pub mod walkthrough;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cluster-tests lies in the repository")
}

/// A file of the repository, by its path from the root.
pub fn repository_file(path: &str) -> PathBuf {
    repository().join(path)
}

/// Whether this is a run of continuous integration, where tests fail instead of being skipped.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}
