//! `banmesh nginx`, `banmesh traefik`, `banmesh caddy` and `banmesh envoy`: generate the configuration with which a proxy asks this node
//! for verdicts, and check an existing one.

mod caddy;
mod check;
mod config;
mod envoy;
mod nginx;
mod recipe;
mod subject;
mod traefik;
mod tree;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::config::{Config, verdict_sockets};

/// A proxy that asks for verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// nginx, by `auth_request`.
    Nginx,
    /// Traefik, by `forwardAuth`.
    Traefik,
    /// Caddy, by `forward_auth`.
    Caddy,
    /// Envoy, by `ext_authz`.
    Envoy,
}

impl Proxy {
    /// The name for people.
    const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Traefik => "Traefik",
            Self::Caddy => "Caddy",
            Self::Envoy => "Envoy",
        }
    }

    /// The command.
    const fn command(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Traefik => "traefik",
            Self::Caddy => "caddy",
            Self::Envoy => "envoy",
        }
    }
}

/// Arguments of the command of a proxy.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh nginx config
  banmesh nginx check /etc/nginx/nginx.conf
  banmesh traefik check /etc/traefik/traefik.yaml /etc/traefik/banmesh.yaml
  banmesh caddy check /etc/caddy/Caddyfile
  banmesh envoy check /etc/envoy/envoy.yaml")]
pub struct ProxyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Generate the configuration that makes the proxy ask this node for verdicts
    Config(config::ConfigArgs),
    /// Find mistakes in a configuration that asks for verdicts
    Check(check::CheckArgs),
}

/// Runs the command of `proxy`; `path` is the configuration file given with `--config`.
pub fn run(proxy: Proxy, args: &ProxyArgs, path: Option<&Path>) -> ExitCode {
    match &args.command {
        Command::Config(args) => config::run(proxy, args, path),
        Command::Check(args) => check::run(proxy, args, path),
    }
}

/// The ports of the verdict endpoint: those that are configured, else the default one.
fn ports(config: &Config) -> Vec<u16> {
    let ports: Vec<u16> = verdict_sockets(config).iter().map(|(_, address)| address.port()).collect();
    if ports.is_empty() { vec![config.verdict.address.port()] } else { ports }
}
