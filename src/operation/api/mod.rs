//! The API for operators: HTTP with JSON below `/api/v1/`, served on a Unix socket and, if enabled, over TCP.
//!
//! Handlers turn requests into commands for the store, and state of the node into JSON. [`routes`] declares every route with its
//! role. Every cost of a request is bounded: bodies, times, connections, and the memory of a listing.

pub mod activity;
mod allowlist;
pub mod audit;
pub mod backlog;
mod bans;
mod bulk;
mod caller;
mod context;
pub mod credential;
mod errors;
mod events;
mod facts;
mod feeds;
pub mod forwarded;
mod guard;
pub mod http;
mod legacy;
mod listing;
pub mod login;
mod node;
mod offences;
mod openapi;
mod page;
pub mod roles;
pub mod routes;
mod session;
pub mod socket;
mod tables;
mod top;
pub mod views;
mod warnings;

pub use context::{ApiContext, LiveSettings, Reload};
pub use errors::ApiError;
pub use http::{Access, HttpConfig, HttpError, HttpListener};
pub use routes::router;
pub use socket::{ApiSocket, SocketError};
