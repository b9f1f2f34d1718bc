//! What every part that talks to a network needs: accepting and limiting connections, TLS, outgoing connections.

pub mod accept;
pub mod dial;
pub mod forwarded;
pub mod handshake;
pub mod limit;
pub mod listen;
pub mod network;
pub mod pem;
pub mod places;
pub mod throttle;
pub mod tls;
