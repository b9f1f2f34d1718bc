//! The API over real sockets.

mod facts;
mod gate;
mod hostile_clients;
mod http;
mod listing;
pub mod node;
mod openapi;
mod operators;
mod page;
mod requests;
