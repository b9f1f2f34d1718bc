//! Why a node ends with an error.

use std::io;
use std::path::PathBuf;

use super::access::AccessError;
use super::notifications::WebhookError;
use super::supervisor::policy::{Broken, How};
use crate::cluster::ClusterError;
use crate::decisions::journal::JournalError;
use crate::enforcement::agent::SpoaError;
use crate::inputs::journald::JournaldError;
use crate::inputs::syslog::BindError;
use crate::net::tls::TlsError;
use crate::operation::api::{HttpError, SocketError};
use crate::operation::metrics::MetricsError;
use banmesh_core::node::NodeIdError;
use banmesh_core::seal::KeyringError;

/// Why a node did not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No threads to be had.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// No signals to be had.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The filters do not compile.
    #[error("the filters are not usable; `banmesh check` says the same:\n{0}")]
    Filters(String),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {} (node.data_dir): {source}; make it, let this user own it, or name another one", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configured node id is none.
    #[error("node.id: {0}")]
    NodeId(#[from] NodeIdError),
    /// The journal cannot be used.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// The file with the cluster's keys cannot be read.
    #[error("cannot read {} (cluster.secret_file): {source}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the cluster's keys is no keyring.
    #[error("{} (cluster.secret_file): {source}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyringError,
    },
    /// The cluster cannot listen.
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    /// Syslog cannot listen.
    #[error("{0}")]
    Syslog(#[from] BindError),
    /// The files for TLS cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The systemd journal cannot be followed.
    #[error("{0}")]
    Journald(#[from] JournaldError),
    /// The agent cannot listen.
    #[error("{0}")]
    Spoa(#[from] SpoaError),
    /// The metrics cannot be served.
    #[error("{0}")]
    Metrics(#[from] MetricsError),
    /// A webhook cannot be used.
    #[error("{0}")]
    Webhook(#[from] WebhookError),
    /// The API cannot be served.
    #[error("{0}")]
    Api(#[from] HttpError),
    /// Who may use the API cannot be read.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The command line's socket cannot be served.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// A part broke that the node cannot be without.
    #[error("the part `{part}` {how}; this node cannot go on without it. {}", hint(part, how))]
    Ended {
        /// Its name.
        part: String,
        /// What it did.
        how: How,
    },
    /// A part did not end in time.
    #[error(
        "stopped, but {} did not end in time: changes of the last moments may be lost on this node. Look at the disk of \
         node.data_dir", parts.join(", ")
    )]
    Late {
        /// The parts.
        parts: Vec<String>,
    },
    /// The node was told to end for the second time.
    #[error("stopped at once by a second signal; not ended by then: {}", parts.join(", "))]
    CutShort {
        /// The parts that still ran.
        parts: Vec<String>,
    },
}

impl From<Broken> for StartError {
    fn from(Broken { part, how, .. }: Broken) -> Self {
        Self::Ended { part, how }
    }
}

/// What to do about a part that broke.
fn hint(part: &str, how: &How) -> &'static str {
    match (part, how) {
        ("journal", How::Silent(_) | How::Failed(_)) => "Look at the disk of node.data_dir",
        _ => "That is a fault of banmesh: please report it with the log before this line",
    }
}
