//! `banmesh nginx config` and the same for the other proxies.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::Proxy;
use super::recipe::{Plan, files};
use crate::config::{self, Config, verdict_sockets};
use banmesh_types::target::Target;

/// Arguments of `config`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh nginx config --backup 192.0.2.11:8889
  banmesh traefik config --output /etc/traefik
  banmesh caddy config --fail-closed --listen 0.0.0.0:80 --server 127.0.0.1:8080
  banmesh envoy config --tcp --listen 0.0.0.0:143 --server 127.0.0.1:10143")]
pub struct ConfigArgs {
    /// Refuse clients while no node answers, instead of letting them through
    #[arg(long)]
    fail_closed: bool,
    /// Address of the node to ask [default: verdict.address]
    #[arg(long, value_name = "ADDRESS:PORT")]
    node: Option<SocketAddr>,
    /// Address of a node to ask while the first one does not answer; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    backup: Vec<SocketAddr>,
    /// Address at which clients reach the proxy
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Address of your server behind the proxy
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
    server: SocketAddr,
    /// Load balancers in front of the proxy, whose word about the client it takes; may be repeated
    #[arg(long = "trusted-proxy", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxies: Vec<Target>,
    /// Envoy only: pass on TCP, for IMAP, SMTP and similar, instead of HTTP
    #[arg(long)]
    tcp: bool,
    /// Envoy only: ask over HTTP instead of gRPC
    #[arg(long, conflicts_with = "tcp")]
    http: bool,
    /// Traefik and Envoy: the inner entry point or listener through which they ask
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8890")]
    inner: SocketAddr,
    /// Write the files into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// With --output, overwrite existing files
    #[arg(long, requires = "output")]
    force: bool,
}

/// Prints or writes the recipe. Fails when options contradict each other or a file cannot be written.
pub fn run(proxy: Proxy, args: &ConfigArgs, path: Option<&Path>) -> ExitCode {
    match produce(proxy, args, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn produce(proxy: Proxy, args: &ConfigArgs, path: Option<&Path>) -> Result<(), String> {
    let loaded = config::load(path, config::process_environment()).map_err(|errors| errors.to_string())?;
    if args.tcp && proxy != Proxy::Envoy {
        return Err(format!("--tcp is for Envoy; {} asks for each request of HTTP", proxy.name()));
    }
    if args.http && proxy != Proxy::Envoy {
        return Err(format!("--http is for Envoy; {} always asks over HTTP", proxy.name()));
    }
    if verdict_sockets(&loaded.config).is_empty() && args.node.is_none() {
        eprintln!("warning: verdict.enabled is false, so this node does not answer proxies");
    }
    let first = args.node.unwrap_or_else(|| reachable(&loaded.config));
    let plan = Plan {
        proxy,
        nodes: std::iter::once(first).chain(args.backup.iter().copied()).collect(),
        fail_closed: args.fail_closed,
        listen: args.listen,
        server: args.server,
        trusted: args.trusted_proxies.clone(),
        tcp: args.tcp,
        http: args.http,
        inner: args.inner,
    };
    let files = files(&plan);
    let Some(folder) = &args.output else {
        let mut out = io::stdout().lock();
        for (at, (_, text)) in files.iter().enumerate() {
            let between = if at == 0 { "" } else { "\n---\n" };
            // A closed pipe is not an error.
            let _ = write!(out, "{between}{text}");
        }
        return Ok(());
    };
    write(folder, &files, args.force)
}

/// The address by which a proxy on the same host reaches the endpoint.
fn reachable(config: &Config) -> SocketAddr {
    let address = verdict_sockets(config).first().map_or(config.verdict.address, |(_, address)| *address);
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn write(folder: &Path, files: &[(&str, String)], force: bool) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths: Vec<(PathBuf, &String)> = files.iter().map(|(name, text)| (folder.join(name), text)).collect();
    if !force && let Some((path, _)) = paths.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        return Err(format!("{} exists, so nothing was written; use --force to overwrite it", path.display()));
    }
    for (path, text) in paths {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let written = options.open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
