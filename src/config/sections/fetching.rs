//! Sections for clients that fetch bans: CrowdSec's bouncers, appliances.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::LOOPBACK;
use crate::config::access::FetchKeys;
use crate::config::setting::section;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

section! {
    /// `crowdsec`: CrowdSec's bouncer API, so that its bouncers enforce the bans of banmesh (docs/enforcement.md). No part of
    /// CrowdSec itself is needed.
    CrowdsecConfig {
        /// Whether this node serves CrowdSec's bouncer API.
        enabled: bool = false;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on.
        port: u16 = 8081;
        /// The keys of bouncers, by name. Each has one of `key_hash` (from `banmesh api token`), `key` (at least 24 characters that nobody
        /// can guess), or `key_file`. Each may have `expires`, such as `2027-01-31`. Give each bouncer a key of its own.
        @live keys: FetchKeys = FetchKeys::default();
        /// The addresses and networks of proxies in front of this port. `X-Forwarded-For` names the bouncer only in requests from these.
        trusted_proxies: Vec<Target> = Vec::new();
        /// A bouncer that has not asked for this long is shown as a problem. Empty: 10m without a cluster, and never in a cluster, where it
        /// may ask another node.
        silent_after: Option<Span> = None;
        /// The bouncer API over TLS.
        tls: CrowdsecTlsConfig = CrowdsecTlsConfig::default();
    }
}

section! {
    /// `crowdsec.tls`: the bouncer API over TLS. Set it wherever keys cross a network.
    CrowdsecTlsConfig {
        /// Whether the bouncer API is served only over TLS.
        enabled: bool = false;
        /// The file with this node's certificate and any intermediate certificates, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
    }
}

section! {
    /// `lists`: the bans as plain text, for appliances that fetch a list, such as those of Palo Alto and Fortinet, OPNsense, pfSense and
    /// MikroTik (docs/enforcement.md).
    ListsConfig {
        /// Whether this node serves lists.
        enabled: bool = false;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on.
        port: u16 = 8082;
        /// The keys of appliances, by name, as in `crowdsec.keys`. A key is the password of a login, or the first part of the path.
        @live keys: FetchKeys = FetchKeys::default();
        /// The addresses and networks of proxies in front of this port. `X-Forwarded-For` names the client only in requests from these.
        trusted_proxies: Vec<Target> = Vec::new();
        /// The lists over TLS.
        tls: ListsTlsConfig = ListsTlsConfig::default();
    }
}

section! {
    /// `lists.tls`: the lists over TLS. Set it wherever keys cross a network.
    ListsTlsConfig {
        /// Whether the lists are served only over TLS.
        enabled: bool = false;
        /// The file with this node's certificate and any intermediate certificates, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
    }
}

impl CrowdsecConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl ListsConfig {
    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}
