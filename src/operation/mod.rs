//! What operators and their programs use: the API with its page, webhooks, metrics.

use std::sync::Arc;

pub mod api;
pub mod http_server;
pub mod metrics;
pub mod readiness;
pub mod webhooks;
pub mod words;

/// Returns the present state of a part of the node. Must not block: the runtime's threads call it.
pub type Provider<T> = Arc<dyn Fn() -> T + Send + Sync>;
