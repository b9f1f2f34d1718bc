//! The endpoint that nginx, Traefik, Caddy and Envoy ask: `verdict`, and the sections in which WebFail2Ban has it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{LOOPBACK, seconds};
use crate::config::setting::section;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

section! {
    /// `verdict`: the endpoint that nginx, Traefik, Caddy and Envoy ask for each request whether its client is banned, over HTTP or
    /// Envoy's gRPC (docs/enforcement.md).
    VerdictConfig {
        /// Whether this node answers proxies.
        enabled: bool = false;
        /// The address and port to listen on, for HTTP and gRPC.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 8889);
        /// The addresses and networks of your proxies. Only these may name the client of a request in `X-Forwarded-For`. A question
        /// from any other address is about that address itself.
        trusted_proxies: Vec<Target> = vec![Target::host(LOOPBACK.into()), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// The maximum number of connections from proxies. When it is reached, idle connections are closed.
        max_clients: u32 = 4096;
    }
}

section! {
    /// `nginx`: another address of the verdict endpoint, as in configurations of WebFail2Ban.
    NginxConfig {
        /// Whether the endpoint also listens here. It answers every path.
        enabled: bool = false;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on. 8888, as WebFail2Ban has it, is the port of banmesh's API, unless you change `api.port`.
        port: u16 = 8889;
        /// No effect: connections stay open.
        read_timeout: Span = seconds(10);
        /// No effect: connections stay open.
        write_timeout: Span = seconds(10);
        /// No effect: answers have no JSON.
        return_json: bool = false;
    }
}

section! {
    /// `envoy`: another address of the verdict endpoint, as in configurations of WebFail2Ban.
    EnvoyConfig {
        /// Whether the endpoint also listens here.
        enabled: bool = false;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on.
        port: u16 = 9001;
    }
}

impl NginxConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl EnvoyConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}
