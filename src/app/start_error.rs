//! The errors with which a node exits.

use std::io;
use std::path::PathBuf;

use super::access::AccessError;
use super::feeds::FeedError;
use super::fetching::FetchError;
use super::never_names::NeverError;
use super::notifications::WebhookError;
use super::supervisor::policy::{Broken, How};
use crate::cluster::ClusterError;
use crate::config::allowlist::AllowlistError;
use crate::decisions::journal::JournalError;
use crate::enforcement::peers::PeersError;
use crate::inputs::journald::JournaldError;
use crate::inputs::syslog::BindError;
use crate::net::listen::ListenError;
use crate::net::tls::TlsError;
use crate::operation::api::{HttpError, SocketError};
use crate::operation::metrics::MetricsError;
use banmesh_core::node::NodeIdError;
use banmesh_core::seal::KeyringError;

/// Why a node did not start, or stopped with an error.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The threads cannot be created.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The signal handlers cannot be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The filters do not compile.
    #[error("the filters have errors; `banmesh check` shows them, too:\n{0}")]
    Filters(String),
    /// A feed cannot be used.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// A file of the allowlist cannot be used.
    #[error("allowlist_files: {0}")]
    Allowlist(#[from] AllowlistError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {} (node.data_dir): {source}; create it and give it to this user, or set another one", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// `node.id` is invalid.
    #[error("node.id: {0}")]
    NodeId(#[from] NodeIdError),
    /// The journal cannot be used.
    #[error("{error}{}", without_journal(error))]
    Journal {
        /// What is wrong.
        #[from]
        error: JournalError,
    },
    /// The keyring file cannot be read.
    #[error("cannot read {} (cluster.secret_file): {source}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The keyring file is invalid.
    #[error("{} (cluster.secret_file): {source}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyringError,
    },
    /// A file with accounts or with their key cannot be read.
    #[error("cannot read {} ({key}): {source}", path.display())]
    Accounts {
        /// The file.
        path: PathBuf,
        /// The key of the configuration that names it.
        key: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The names that are never bait cannot be read.
    #[error("{0}")]
    Never(#[from] NeverError),
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
    /// The listener for HAProxy's peers cannot be opened.
    #[error("{0}")]
    Peers(#[from] PeersError),
    /// The agent, the verdict endpoint or a listener for mail servers cannot be opened.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The metrics cannot be served.
    #[error("{0}")]
    Metrics(#[from] MetricsError),
    /// A webhook cannot be used.
    #[error("{0}")]
    Webhook(#[from] WebhookError),
    /// The API cannot be served.
    #[error("{0}")]
    Api(#[from] HttpError),
    /// The users and tokens of the API cannot be loaded.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The bouncer API or the lists cannot be served.
    #[error("{0}")]
    Fetching(#[from] FetchError),
    /// The admin socket cannot be served.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// A part broke that the node needs.
    #[error("the part `{part}` {how}; this node cannot run without it. {}", hint(part, how))]
    Ended {
        /// Its name.
        part: String,
        /// How it broke.
        how: How,
    },
    /// A part did not stop in time.
    #[error(
        "stopped, but {} did not stop in time: the latest changes may be lost on this node. Check the disk of node.data_dir",
        parts.join(", ")
    )]
    Late {
        /// The parts.
        parts: Vec<String>,
    },
    /// A second signal stopped the node immediately.
    #[error("stopped immediately by a second signal; still running: {}", parts.join(", "))]
    CutShort {
        /// The parts that were still running.
        parts: Vec<String>,
    },
}

impl From<Broken> for StartError {
    fn from(Broken { part, how, .. }: Broken) -> Self {
        Self::Ended { part, how }
    }
}

/// How to start anyway. Only a node without a cluster gets this error for a full disk or a damaged journal.
fn without_journal(error: &JournalError) -> &'static str {
    if error.is_of_the_disk() || error.is_damage() {
        "; to start now without the bans in it, use `banmesh run --without-journal`"
    } else {
        ""
    }
}

/// What to do about the broken part.
fn hint(part: &str, how: &How) -> &'static str {
    match (part, how) {
        ("journal", How::Silent(_) | How::Failed(_)) => "Check the disk of node.data_dir",
        _ => "This is a bug in banmesh; please report it with the log before this line",
    }
}
