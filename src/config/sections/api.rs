//! Sections of the HTTP API.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::LOOPBACK;
use crate::config::access::{ApiTokens, ApiUsers};
use crate::config::role::Role;
use crate::config::setting::section;
use crate::config::structured::Users;
use crate::config::value::Secret;
use banmesh_types::target::Target;

section! {
    /// `api`: the HTTP API.
    ApiConfig {
        /// Whether to serve the API over TCP. The admin socket is always served.
        enabled: bool = true;
        /// The address to listen on.
        address: IpAddr = LOOPBACK;
        /// The port to listen on.
        port: u16 = 8888;
        /// The addresses and networks that may use the API over TCP.
        @live allowed_ips: Vec<Target> = vec![Target::host(LOOPBACK.into()), Target::host(Ipv6Addr::LOCALHOST.into())];
        /// People, by name. Each has a `role` (`read`; `report`: also reports offences and bans single hosts for at most
        /// `ban.max_ban_time`; `operate`: also bans, unbans, and allows single hosts; `admin`: everything) and one of
        /// `password_hash` (from `banmesh api hash-password`), `password`, or `password_file`, whose first line is a hash or
        /// a password. If there are users or tokens, every request needs a login. Otherwise the API over TCP only answers
        /// queries.
        @live users: ApiUsers = ApiUsers::default();
        /// Programs, by name. Each has a `role` and one of `token_hash` (`banmesh api token` generates token and hash),
        /// `token` (at least 24 characters that nobody can guess), or `token_file`. Each may have `expires`, such as
        /// `2027-01-31`.
        @live tokens: ApiTokens = ApiTokens::default();
        /// The addresses and networks of proxies in front of the API. `X-Forwarded-For` names the client only in
        /// requests from these.
        @live trusted_proxies: Vec<Target> = Vec::new();
        /// How many offences, with their lines, and how many decisions this node stores to explain bans; up to 1 KiB of
        /// memory each. 0 stores none.
        history: usize = 10_000;
        /// Names and passwords.
        @live basic_auth: BasicAuthConfig = BasicAuthConfig::default();
        /// The limit on requests per client.
        rate_limiting: RateLimitingConfig = RateLimitingConfig::default();
        /// The API over TLS.
        tls: ApiTlsConfig = ApiTlsConfig::default();
    }
}

section! {
    /// `api.tls`: the API over TLS. Set it wherever passwords and tokens cross a network.
    ApiTlsConfig {
        /// Whether the API is served only over TLS.
        enabled: bool = false;
        /// The file with this node's certificate and any intermediate certificates, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the CA certificates, in PEM, that must have signed the certificates of clients, in addition to
        /// a login. Empty: clients need no certificate. A reload reads it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `api.basic_auth`: names and passwords.
    BasicAuthConfig {
        /// Whether requests need a name and a password.
        enabled: bool = false;
        /// The name of the only user. Used if `users` is empty.
        username: String = String::new();
        /// The password of the only user.
        password: Secret = Secret::default();
        /// Several users, each with a name and a password. They replace `username` and `password`.
        users: Users = Users::new();
        /// The role of these users: `read`, `report`, `operate` or `admin`. Users with their own roles are in `api.users`.
        role: Role = Role::Admin;
    }
}

section! {
    /// `api.rate_limiting`: the limit on requests per client.
    RateLimitingConfig {
        /// Whether there is a limit.
        enabled: bool = true;
        /// The maximum number of requests per minute from one IPv4 address or one IPv6 /64.
        requests_per_minute: u32 = 60;
    }
}

impl ApiConfig {
    /// Whether requests over TCP need a login.
    pub fn asks_for_credentials(&self) -> bool {
        self.basic_auth.enabled || !self.users.is_empty() || !self.tokens.is_empty()
    }

    /// Address and port to listen on.
    pub const fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}
