//! Sections for mail servers that ask whether a client is banned.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{LOOPBACK, network};
use crate::config::setting::section;
use crate::config::value::Secret;
use banmesh_dnsbl::Zone;
use banmesh_mail::delegation::Action;
use banmesh_types::target::Target;

/// Programs on this host.
fn this_host() -> Vec<Target> {
    vec![network(Ipv4Addr::LOCALHOST.into(), 104), Target::host(Ipv6Addr::LOCALHOST.into())]
}

section! {
    /// `dnsbl`: the bans as a DNS block list, for mail servers such as Postfix's postscreen, Exim and rspamd (docs/enforcement.md).
    DnsblConfig {
        /// Whether to serve the block list.
        enabled: bool = false;
        /// The address and port to listen on, for UDP and TCP. Resolvers use port 53 only, so configure yours to ask here for the zone.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 12353);
        /// The zone. It need not be registered, because only your own resolvers ask for it.
        zone: Zone = Zone::default();
        /// The addresses and networks that may query. Others are refused.
        allowed_clients: Vec<Target> = this_host();
        /// How many full answers per second a client beyond this host gets over UDP. Further ones ask it to use TCP.
        udp_rate: u32 = 10_000;
        /// The reason in TXT records, which mail servers show to the client. The end of the ban follows it. Printable ASCII.
        text: String = "banned by banmesh".to_owned();
    }
}

section! {
    /// `policy`: Postfix's policy delegation (`check_policy_service`), which Exim can use too (docs/enforcement.md).
    PolicyConfig {
        /// Whether to serve it.
        enabled: bool = false;
        /// The address and port to listen on. Empty: only on `socket`.
        address: Option<SocketAddr> = Some(SocketAddr::new(LOOPBACK, 10040));
        /// A Unix socket to listen on, in addition. Every user of this host who can reach its directory may query.
        socket: Option<PathBuf> = None;
        /// The addresses and networks that may query over TCP.
        allowed_clients: Vec<Target> = this_host();
        /// The maximum number of connections. Every smtpd process of Postfix keeps one.
        max_clients: u32 = 1000;
        /// What Postfix does with a banned client: `REJECT`, `DEFER`, `DEFER_IF_PERMIT` or a reply code, then a text. `421` also ends
        /// the connection. Other clients are answered with `DUNNO`.
        action: Action = Action::default();
    }
}

section! {
    /// `auth_policy`: Dovecot's auth policy. Dovecot asks before a login, and reports every failed login as an offence, with the account
    /// as evidence (docs/enforcement.md). Do not read Dovecot's log as well.
    AuthPolicyConfig {
        /// Whether to serve it.
        enabled: bool = false;
        /// The address and port to listen on.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 12354);
        /// The addresses and networks of Dovecot.
        allowed_clients: Vec<Target> = this_host();
        /// The maximum number of connections. Dovecot opens up to 100.
        max_clients: u32 = 400;
        /// The secret that requests must have, as `Authorization: Bearer …` or `X-Api-Key: …`: a token (`banmesh api token` generates one)
        /// or its hash. Anyone who can report can ban. Required unless the address is a loopback address.
        token: Secret = Secret::default();
        /// A file whose first line is the token or its hash, in place of `token`.
        token_file: Option<PathBuf> = None;
        /// What banned users read when their login is refused.
        text: String = "Too many failed logins from your address. Try again later.".to_owned();
    }
}
