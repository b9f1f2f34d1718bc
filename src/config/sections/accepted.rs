//! Sections of WebFail2Ban's configuration that banmesh accepts and does not serve.

use std::net::IpAddr;

use super::{ANY, seconds};
use crate::config::setting::section;
use banmesh_types::time::Span;

section! {
    /// `nginx`: accepted for configurations of WebFail2Ban; banmesh does not serve auth_request.
    NginxConfig {
        /// Must be false.
        enabled: bool = false;
        /// No effect.
        address: IpAddr = ANY;
        /// No effect.
        port: u16 = 8888;
        /// No effect.
        read_timeout: Span = seconds(10);
        /// No effect.
        write_timeout: Span = seconds(10);
        /// No effect.
        return_json: bool = false;
    }
}

section! {
    /// `envoy`: accepted for configurations of WebFail2Ban; banmesh does not serve ext_authz.
    EnvoyConfig {
        /// Must be false.
        enabled: bool = false;
        /// No effect.
        address: IpAddr = ANY;
        /// No effect.
        port: u16 = 9001;
    }
}
