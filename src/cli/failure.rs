//! Why a command that talks to a node failed, what to do about it, and its exit code.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::people::count;
use super::refusal;
use crate::operation::api::views::ErrorView;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The node refused the request, or did not find its subject.
    #[error("{}", .0.error)]
    Refused(ErrorView),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Nothing accepts connections on the admin socket.
    #[error("no node answers on {}: {source}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The API at a URL cannot be reached, or its certificate is not trusted.
    #[error("cannot reach the node at {url}: {reason}")]
    RemoteUnreachable {
        /// The URL that was tried.
        url: String,
        /// The error of the system or of TLS.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The connection failed, or the response is not what a node sends.
    #[error("lost the connection to the node at {node}: {reason}")]
    Broken {
        /// The socket or the URL.
        node: String,
        /// The error of the connection.
        reason: String,
    },
    /// The answer to a question of a program is no, which only the exit code says.
    #[error("no")]
    No,
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    /// The node refused some targets of a bulk command, which has reported each of them.
    #[error("refused {refused} of {}", count(*all as u64, "target"))]
    SomeRefused {
        /// How many were refused.
        refused: usize,
        /// How many were sent.
        all: usize,
    },
}

impl Failure {
    /// What to do about it; may be empty.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(view) => view.hint.clone(),
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as root, or as a member of the group that owns the socket".to_owned()
            }
            Self::Unreachable { .. } => {
                "start a node with `banmesh run`, or give its socket with --socket or BANMESH_SOCKET".to_owned()
            }
            Self::RemoteUnreachable { hint, .. } => (*hint).to_owned(),
            Self::Usage(_) | Self::Broken { .. } | Self::No | Self::Output(_) | Self::SomeRefused { .. } => {
                String::new()
            }
        }
    }

    /// The exit code: 1 refused or not found, 2 wrong usage, 3 no node. A closed pipe is not a failure.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Refused(_) | Self::No | Self::Output(_) | Self::SomeRefused { .. } => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::RemoteUnreachable { .. } | Self::Broken { .. } => 3,
        })
    }

    /// Prints the error and its hint to standard error, as JSON if `json`.
    pub fn report(&self, json: bool) {
        if matches!(self, Self::No) || matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
        {
            return;
        }
        let view = match self {
            Self::Refused(view) => view.clone(),
            other => ErrorView { error: other.to_string(), hint: other.hint(), code: String::new(), banned_by: None },
        };
        if json && let Ok(text) = serde_json::to_string(&view) {
            eprintln!("{text}");
            return;
        }
        eprintln!("banmesh: {}", refusal::error(&view));
        refusal::hint(&view).iter().for_each(|line| eprintln!("  {line}"));
    }
}
