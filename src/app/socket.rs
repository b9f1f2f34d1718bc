//! Serves the admin socket, and keeps trying to bind it on a disk that cannot be written.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::disk::is_of_the_disk;
use crate::operation::api::{ApiSocket, SocketError};

/// The pause between two attempts to bind the socket.
const RETRY: Duration = Duration::from_secs(5);

/// The admin socket, bound or not.
#[derive(Debug)]
pub struct SocketService {
    path: PathBuf,
    bound: Option<ApiSocket>,
}

impl SocketService {
    /// Binds `path`. If the node `may_start_without` a disk, a full or read-only one is not an error.
    ///
    /// # Errors
    /// When the socket cannot be bound for another reason.
    pub fn bind(path: PathBuf, may_start_without: bool) -> Result<Self, SocketError> {
        match ApiSocket::bind(&path) {
            Ok(socket) => Ok(Self { path, bound: Some(socket) }),
            Err(SocketError::Io { source, .. }) if may_start_without && is_of_the_disk(&source) => {
                error!(
                    path = %path.display(), error = %source,
                    "the admin socket (admin.socket) cannot be bound, so `banmesh status` does not work here; trying again"
                );
                Ok(Self { path, bound: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Serves `router` until `shutdown`.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let mut bound = self.bound;
        loop {
            if let Some(socket) = bound.take() {
                return socket.serve(router, shutdown).await;
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
            if let Ok(socket) = ApiSocket::bind(&self.path) {
                info!(path = %self.path.display(), "the admin socket is bound");
                bound = Some(socket);
            }
        }
    }
}
