//! `banmesh haproxy config`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::VersionArgs;
use crate::config::{self, Config};
use banmesh_haproxy::generate::{Generated, Plan, Traffic, generate};
use banmesh_types::target::Target;

/// The directory in the generated paths, unless `--output` gives another.
const DEFAULT_DIRECTORY: &str = "/etc/haproxy";

/// Arguments of `banmesh haproxy config`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh haproxy config --detect
  banmesh haproxy config --haproxy 3.0 --output ./haproxy
  banmesh haproxy config --mode tcp --part frontend
  banmesh haproxy config --agent 192.0.2.10:12345 --backup 192.0.2.11:12345")]
pub struct ConfigArgs {
    #[command(flatten)]
    version: VersionArgs,
    /// Protocol of the frontend: http, or tcp for IMAP, SMTP and similar
    #[arg(long, value_enum, default_value = "http")]
    mode: Mode,
    /// Refuse clients while no agent answers, instead of letting them through
    #[arg(long)]
    fail_closed: bool,
    /// Query a second time if the first query gets no answer
    #[arg(long)]
    retry: bool,
    /// Check once per connection and then every ten seconds, instead of for every request
    #[arg(long)]
    per_connection: bool,
    /// Accept the PROXY protocol, for clients behind another load balancer
    #[arg(long)]
    proxy_protocol: bool,
    /// Trust X-Forwarded-For, or the PROXY header with --proxy-protocol, of these proxies; may be repeated
    #[arg(long = "trusted-proxy", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxies: Vec<Target>,
    /// Address of the agent for HAProxy [default: spoa.address and spoa.port]
    #[arg(long, value_name = "HOST:PORT")]
    agent: Option<String>,
    /// Address of a backup agent
    #[arg(long, value_name = "HOST:PORT")]
    backup: Option<String>,
    /// Address of the frontend, as in HAProxy's `bind`
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<String>,
    /// Address of your server behind the frontend
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Print only this part
    #[arg(long, value_enum, conflicts_with_all = ["output", "json"])]
    part: Option<Part>,
    /// Write haproxy.cfg and the SPOE file into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// With --output, overwrite existing files
    #[arg(long, requires = "output")]
    force: bool,
    /// Print JSON
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

/// Prints or writes the configuration. Fails when options contradict each other, or a file cannot be written.
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
        None => PathBuf::from(DEFAULT_DIRECTORY),
    };
    let mut plan = plan(args, &loaded.config)?;
    let spoe_path = folder.join(plan.spoe_file());
    plan.spoe_path = spoe_path.display().to_string();
    if plan.spoe_path.contains(|c: char| c.is_whitespace() || "\"'\\#$".contains(c)) {
        return Err(format!(
            "{}: HAProxy cannot read this path as one word; choose a directory without spaces, quotes, `\\`, `#` and `$`",
            plan.spoe_path
        ));
    }
    let made = generate(&plan).map_err(|error| error.to_string())?;
    if !loaded.config.spoa.enabled {
        eprintln!("warning: spoa.enabled is false, so this node does not answer HAProxy");
    }
    let files = [(spoe_path, &made.spoe), (folder.join("haproxy.cfg"), &made.complete)];
    if args.output.is_some() {
        write_files(&files, args.force)?;
    }
    // A closed pipe is not an error.
    let _ = print(args, &made, &files, &mut io::stdout().lock());
    Ok(())
}

/// The plan that the arguments describe; the path of the SPOE file is still empty.
fn plan(args: &ConfigArgs, config: &Config) -> Result<Plan, String> {
    Ok(Plan {
        version: args.version.version()?,
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

/// The address by which HAProxy on the same host reaches the agent.
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
        return Err(format!("{} exists, so nothing was written; use --force to overwrite it", path.display()));
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
        let version = args.version.version().ok().flatten().map(|version| version.to_string());
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
        return writeln!(out, "check it with: haproxy -c -f {config}");
    }
    for (index, (path, text)) in files.iter().enumerate() {
        let gap = if index > 0 { "\n" } else { "" };
        write!(out, "{gap}# ===== {} =====\n{text}", path.display())?;
    }
    Ok(())
}
