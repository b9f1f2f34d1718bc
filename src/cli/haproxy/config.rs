//! `banmesh haproxy config`: what HAProxy needs to ask this node.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Which;
use crate::config::{self, Config};
use banmesh_haproxy::generate::{Generated, Plan, Traffic, generate};
use banmesh_types::target::Target;

/// Where HAProxy's files are, unless they are written elsewhere.
const FOLDER: &str = "/etc/haproxy";

/// What `banmesh haproxy config` takes.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    which: Which,
    /// What the frontend carries: HTTP, or IMAP, SMTP and the like
    #[arg(long, value_enum, default_value = "http")]
    mode: Mode,
    /// Refuse clients while no agent answers, instead of letting them pass
    #[arg(long)]
    fail_closed: bool,
    /// Ask a second time when the first try brought no answer
    #[arg(long)]
    retry: bool,
    /// Check once per connection and every ten seconds, instead of every request
    #[arg(long)]
    per_connection: bool,
    /// Clients come through a balancer that speaks the PROXY protocol
    #[arg(long)]
    proxy_protocol: bool,
    /// Believe these proxies: their X-Forwarded-For, or with --proxy-protocol their PROXY header; may be given several times
    #[arg(long = "trusted-proxy", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxies: Vec<Target>,
    /// The agent as HAProxy reaches it; without it the address and port of banmesh's configuration
    #[arg(long, value_name = "HOST:PORT")]
    agent: Option<String>,
    /// A second agent, for when the first is gone
    #[arg(long, value_name = "HOST:PORT")]
    backup: Option<String>,
    /// What the frontend listens on, as it stands after `bind`
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Your server behind the frontend
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Print one part alone, to paste it
    #[arg(long, value_enum, conflicts_with_all = ["output", "json"])]
    part: Option<Part>,
    /// Write haproxy.cfg and the SPOE file into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// With --output, write over files that exist
    #[arg(long, requires = "output")]
    force: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Http,
    Tcp,
}

/// A part of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The SPOE file
    Spoe,
    /// The backend with the agents
    Backend,
    /// The frontend
    Frontend,
    /// The whole haproxy.cfg
    Complete,
}

/// Prints or writes the configuration. Fails when options exclude each other, or a file cannot be written.
pub fn run(args: &ConfigArgs, path: Option<&Path>) -> ExitCode {
    match produce(args, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn produce(args: &ConfigArgs, path: Option<&Path>) -> Result<(), String> {
    let loaded = config::load(path, config::process_environment()).map_err(|errors| errors.to_string())?;
    let folder = match &args.output {
        Some(folder) => {
            let failed = |error: io::Error| format!("{}: {error}", folder.display());
            std::fs::create_dir_all(folder).map_err(failed)?;
            std::fs::canonicalize(folder).map_err(failed)?
        }
        None => PathBuf::from(FOLDER),
    };
    let mut plan = plan(args, &loaded.config)?;
    let spoe_path = folder.join(plan.spoe_file());
    plan.spoe_path = spoe_path.display().to_string();
    if plan.spoe_path.contains(|c: char| c.is_whitespace() || "\"'\\#$".contains(c)) {
        return Err(format!("{}: choose a directory whose name HAProxy reads as one word", plan.spoe_path));
    }
    let made = generate(&plan).map_err(|error| error.to_string())?;
    if !loaded.config.spoa.enabled {
        eprintln!("warning: spoa.enabled is false: as it is configured, this node answers nobody");
    }
    let files = [(spoe_path, &made.spoe), (folder.join("haproxy.cfg"), &made.complete)];
    if args.output.is_some() {
        write_files(&files, args.force)?;
    }
    // Who closes the pipe early wants no more of it.
    let _ = print(args, &made, &files, &mut io::stdout().lock());
    Ok(())
}

/// What is wanted, but for where the SPOE file will be.
fn plan(args: &ConfigArgs, config: &Config) -> Result<Plan, String> {
    Ok(Plan {
        version: args.which.version()?,
        traffic: if args.mode == Mode::Http { Traffic::Http } else { Traffic::Tcp },
        fail_closed: args.fail_closed,
        retry: args.retry,
        per_connection: args.per_connection,
        proxy_protocol: args.proxy_protocol,
        trusted_proxies: args.trusted_proxies.clone(),
        agent: args.agent.clone().unwrap_or_else(|| reachable(config.spoa.address, config.spoa.port)),
        backup: args.backup.clone(),
        drain: config.spoa.drain.0,
        spoe_path: String::new(),
        bind: args.bind.clone(),
        server: args.server.clone(),
    })
}

/// Where a HAProxy on the same host reaches an agent that listens there.
fn reachable(address: IpAddr, port: u16) -> String {
    let address = match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, port).to_string()
}

fn write_files(files: &[(PathBuf, &String)], force: bool) -> Result<(), String> {
    if !force && let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        return Err(format!("{} exists; nothing was written. --force writes over it", path.display()));
    }
    for (path, text) in files {
        let mut options = OpenOptions::new();
        options.write(true).create(force).truncate(force).create_new(!force);
        let done = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        done.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn print(args: &ConfigArgs, made: &Generated, files: &[(PathBuf, &String)], out: &mut impl Write) -> io::Result<()> {
    if args.json {
        let version = args.which.version().ok().flatten().map(|version| version.to_string());
        let rows: Vec<_> = files
            .iter()
            .map(|(path, text)| serde_json::json!({ "path": path.display().to_string(), "text": text }))
            .collect();
        let answer = serde_json::json!({ "haproxy": version, "written": args.output.is_some(), "files": rows });
        return writeln!(out, "{answer:#}");
    }
    if let Some(part) = args.part {
        let text = match part {
            Part::Spoe => &made.spoe,
            Part::Backend => &made.backend,
            Part::Frontend => &made.frontend,
            Part::Complete => &made.complete,
        };
        return out.write_all(text.as_bytes());
    }
    if args.output.is_some() {
        for (path, _) in files {
            writeln!(out, "wrote {}", path.display())?;
        }
        let config = files.last().map(|(path, _)| path.display().to_string()).unwrap_or_default();
        return writeln!(out, "try it: haproxy -c -f {config}");
    }
    for (index, (path, text)) in files.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        write!(out, "{gap}# ===== {} =====\n{text}", path.display())?;
    }
    Ok(())
}
