//! Whether a node is ready: for `/health/ready`, `banmesh ping --ready` and the metric `banmesh_ready`.

use serde::{Deserialize, Serialize};

/// Whether the node serves its purpose: it has started, and has the bans of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether the node is ready.
    pub ready: bool,
    /// What the node still waits for; empty when it is ready.
    pub waiting_for: Vec<String>,
}

impl Readiness {
    /// A ready node.
    pub const fn ready() -> Self {
        Self { ready: true, waiting_for: Vec::new() }
    }
}
