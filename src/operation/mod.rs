//! What operators and their programs use: the API with its page, webhooks, metrics.

pub mod api;
pub mod metrics;
pub mod webhooks;
