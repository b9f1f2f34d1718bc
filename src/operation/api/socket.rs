//! The Unix socket of the API, which the command line uses.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::operation::http_server::{self, ServerSettings};

/// The name of the socket within the data directory.
pub const FILE_NAME: &str = "banmesh.sock";
/// Owner and group may connect, and may then do everything.
const MODE: u32 = 0o660;
/// The most open connections.
const CONNECTIONS: usize = 64;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process accepts connections on it.
    #[error("another node runs with this data directory: it answers on {}; stop it, or give this one its own node.data_dir", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is not a socket.
    #[error("{} is not a socket: move it away, or set admin.socket to another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused the socket.
    #[error("cannot listen on {} (admin.socket): {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The bound socket.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ApiSocket {
    /// Binds `path`, and replaces the socket of a dead node. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When another process uses the socket, when the path is not a socket, and when the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io_error = |source| SocketError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket { path: path.to_owned() }),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse { path: path.to_owned() }),
                // The socket of a dead node.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // It has been removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(error)),
        }
        // Bind under another name and rename, so that the socket never has other permissions under its own name.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = path.with_file_name(name);
        let _ = fs::remove_file(&fresh);
        let bound = UnixListener::bind(&fresh).and_then(|listener| {
            fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE))?;
            let inode = fs::symlink_metadata(&fresh)?.ino();
            fs::rename(&fresh, path)?;
            Ok(Self { listener, path: path.to_owned(), inode })
        });
        bound.map_err(|source| {
            let _ = fs::remove_file(&fresh);
            io_error(source)
        })
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves `router` until `shutdown`, and then removes the socket.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let Self { listener, path, inode } = self;
        http_server::serve(listener, router, ServerSettings::new("the admin socket", CONNECTIONS), shutdown).await;
        // Another node may own the path by now.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == inode)
            && let Err(error) = fs::remove_file(&path)
        {
            warn!(path = %path.display(), %error, "cannot remove the admin socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaces_only_the_socket_of_a_dead_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = ApiSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::InUse { .. })));
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        socket.serve(Router::new(), shutdown).await;
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn never_replaces_a_file_that_is_not_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let missing = dir.path().join("missing").join(FILE_NAME);
        assert!(matches!(ApiSocket::bind(&missing), Err(SocketError::Io { .. })));
    }
}
