//! The harness of the tests that see banmesh from outside: real `banmesh` processes, real HAProxy of several versions, real
//! sockets, and networks that can be cut.
//!
//! | module | what it starts or does |
//! |---|---|
//! | [`node`] | one `banmesh` process with a configuration, a data folder and ports of its own |
//! | [`haproxy`] | HAProxy of a given version, on a configuration that the repository ships |
//! | [`site`] | whole sites: a shipped configuration with its servers and agents |
//! | [`backend`] | what stands behind HAProxy: a web server and a mail server of a few lines |
//! | [`load`] | a steady stream of requests, and what was wrong with the answers |
//! | [`client`] | HTTP and TCP clients that choose the address they come from |
//! | [`spop`] | a SPOP client of its own, to ask a node without HAProxy |
//! | [`syslog`] | sends log lines by UDP and TCP |
//! | [`netns`] | hosts: network namespaces on a bridge, which can be cut off |
//! | [`mesh`] | clusters: a node on each of several hosts, with a keyring |
//! | [`admin`] | a client of a node's API on its Unix socket |
//! | [`clock`] | clocks that are wrong, for one node or for several |
//! | [`hostile`] | somebody on the network who means harm |
//! | [`traffic`] | a steady stream of bans and checks, and what was wrong with the answers |
//! | [`measure`] | percentiles, memory, bytes, and what a join costs |
//! | [`peers`] | HAProxy's own way to share a table, to compare with |
//! | [`kubernetes`] | the rendered chart: its pods, services and Secrets, without a Kubernetes |
//! | [`container`], [`dns`] | what that is made of: a process with a file system of its own; names |
//! | [`process`], [`ports`], [`wait`] | what all of them need |
//!
//! The binary under test is named by `BANMESH_BIN`; without it, it is `banmesh` beside the test's own target folder, where
//! `cargo build` puts it. HAProxy comes from `cluster-tests/haproxy-versions`.
//!
//! Everything a test starts is ended when its handle is dropped, and its log is printed if the test failed.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a harness: whatever cannot go on fails the test that asked for it"
)]

pub mod admin;
pub mod backend;
pub mod client;
pub mod clock;
pub mod container;
pub mod dns;
pub mod haproxy;
pub mod hostile;
pub mod kubernetes;
pub mod load;
pub mod measure;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod peers;
pub mod ports;
pub mod process;
pub mod site;
pub mod spop;
pub mod syslog;
pub mod traffic;
pub mod wait;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cluster-tests lies in the repository")
}

/// A file of the repository, by its path from the root.
pub fn repository_file(path: &str) -> PathBuf {
    repository().join(path)
}

/// Whether this is a run of continuous integration, where what must not be skipped fails instead.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}
