//! Whole sites: a shipped HAProxy configuration, its servers, its agents.

use std::net::SocketAddr;

use crate::backend::Backend;
use crate::haproxy::{Binary, Config, HaProxy, loopback_port};
use crate::node::{Node, NodeConfig};

/// The shipped `haproxy.cfg` around one node.
#[derive(Debug)]
pub struct Site {
    /// The agent.
    pub node: Node,
    /// HAProxy.
    pub haproxy: HaProxy,
    /// The HTTP frontend.
    pub http: SocketAddr,
    /// The IMAP frontend; the server behind it speaks first.
    pub imap: SocketAddr,
    /// The SMTP frontend; the server behind it waits for the client, and echoes its lines.
    pub smtp: SocketAddr,
}

/// The greeting of the IMAP server.
pub const GREETING: &str = "* OK IMAP ready";

impl Site {
    /// Starts the shipped configuration.
    pub fn start(binary: &Binary) -> Self {
        Self::start_with(binary, |config| config)
    }

    /// Starts it with a change.
    pub fn start_with(binary: &Binary, change: impl FnOnce(Config) -> Config) -> Self {
        let node = NodeConfig::new().start();
        let (web, imap_server, smtp_server) = (Backend::http(), Backend::mail(GREETING), Backend::echo());
        let (http, imap, smtp) = (loopback_port(), loopback_port(), loopback_port());
        let config = change(Config::shipped("haproxy.cfg"))
            .listen(80, &http.to_string())
            .listen(143, &imap.to_string())
            .listen(25, &smtp.to_string())
            .replace("127.0.0.1:8404", &loopback_port().to_string())
            .server(8080, web.address)
            .server(8081, web.address)
            .server(10143, imap_server.address)
            .server(10144, imap_server.address)
            .server(10025, smtp_server.address)
            .server(10026, smtp_server.address)
            .agents(node.spoa(), None);
        let haproxy = binary.start(config);
        haproxy.wait_for_agent("primary", "UP");
        Self { node, haproxy, http, imap, smtp }
    }
}

/// A recipe whose HTTP frontend is on port 80 and whose web server is on port 8080.
#[derive(Debug)]
pub struct WebSite {
    /// HAProxy.
    pub haproxy: HaProxy,
    /// The HTTP frontend.
    pub http: SocketAddr,
    /// The web server.
    pub web: Backend,
}

impl WebSite {
    /// Starts a recipe with a primary agent and optionally a backup.
    pub fn start(
        binary: &Binary,
        recipe: &str,
        primary: SocketAddr,
        backup: Option<SocketAddr>,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let (web, http) = (Backend::http(), loopback_port());
        let config = change(Config::shipped(&format!("recipes/{recipe}.cfg")))
            .listen(80, &http.to_string())
            .server(8080, web.address)
            .agents(primary, backup);
        let haproxy = binary.start(config);
        haproxy.wait_for_agent("primary", "UP");
        Self { haproxy, http, web }
    }
}

/// The rule that refuses a client whose ban is in the stick-table `bans` of [`peers_config`].
pub const BANNED_IN_TABLE: &str =
    "http-request deny deny_status 403 if { src,ipmask(32,64),table_gpt0(mesh/bans),sub(txn.now) -m int gt 0 }";

/// A HAProxy with `tables` in its peers section, whose peer is the node at `banmesh`. `rules` end its frontend at `http`.
pub fn peers_config(banmesh: SocketAddr, http: SocketAddr, tables: &str, rules: &str) -> Config {
    Config::own(&format!(
        "global
    localpeer lb1
    stats socket @folder@/admin.sock mode 600 level admin
    log stdout format raw local0
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
peers mesh
    server lb1
    server banmesh {banmesh}
    {tables}
frontend site
    bind {http}
    http-request set-var(txn.now) date
    {rules}
"
    ))
}
