//! `banmesh haproxy config`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::VersionArgs;
use crate::config::{self, Config};
use banmesh_haproxy::generate::{Generated, PAGE_FILE, Plan, Traffic, generate};
use banmesh_haproxy::tables::{self, Limit, Tables};
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
  banmesh haproxy config --contact abuse@example.org --output ./haproxy
  banmesh haproxy config --peers
  banmesh haproxy config --limit 100/10s --fail-closed
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
    /// Decide by stick-tables that banmesh fills as a peer of HAProxy (haproxy.peers), instead of by queries
    #[arg(long, conflicts_with_all = ["agent", "backup", "retry", "per_connection"])]
    peers: bool,
    /// Refuse clients with more requests, or connections with --mode tcp, over all HAProxies; implies --peers
    #[arg(long, value_name = "COUNT/PERIOD", conflicts_with_all = ["agent", "backup", "retry", "per_connection"])]
    limit: Option<Limit>,
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
    /// Show banned clients a page with this email address or URL, for those who are banned by mistake
    #[arg(long, value_name = "EMAIL|URL", conflicts_with_all = ["peers", "limit"])]
    contact: Option<String>,
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
    /// The peers section, with --peers or --limit
    Peers,
    /// The frontend
    Frontend,
    /// The whole haproxy.cfg
    Complete,
    /// The page for banned clients, with --contact
    Page,
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
    let page_path = folder.join(PAGE_FILE);
    plan.page_path = page_path.display().to_string();
    if args.part == Some(Part::Page) && args.contact.is_none() {
        return Err("--part page needs --contact".to_owned());
    }
    if plan.spoe_path.contains(|c: char| c.is_whitespace() || "\"'\\#$".contains(c)) {
        return Err(format!(
            "{}: HAProxy cannot read this path as one word; choose a directory without spaces, quotes, `\\`, `#` and `$`",
            plan.spoe_path
        ));
    }
    if args.peers || args.limit.is_some() {
        return produce_tables(args, &loaded.config, &plan, &folder);
    }
    if args.part == Some(Part::Peers) {
        return Err("--part peers needs --peers or --limit".to_owned());
    }
    let made = generate(&plan).map_err(|error| error.to_string())?;
    if !loaded.config.spoa.enabled {
        eprintln!("warning: spoa.enabled is false, so this node does not answer HAProxy");
    }
    let mut files = vec![(spoe_path, &made.spoe)];
    files.extend(made.page.as_ref().map(|page| (page_path, page)));
    files.push((folder.join("haproxy.cfg"), &made.complete));
    if args.output.is_some() {
        write_files(&files, args.force)?;
    }
    // A closed pipe is not an error.
    let part = args.part.map(|part| part_of(&made, part));
    let _ = print(args, part, &files, &mut io::stdout().lock());
    Ok(())
}

fn part_of(made: &Generated, part: Part) -> &String {
    match part {
        Part::Spoe => &made.spoe,
        Part::Backend => &made.backend,
        Part::Frontend => &made.frontend,
        Part::Page => made.page.as_ref().unwrap_or(&made.complete),
        Part::Complete | Part::Peers => &made.complete,
    }
}

/// The address of the peer in the generated configuration, unless the configuration has another.
const DEFAULT_PEER: &str = "127.0.0.1:10002";

/// Like [`produce`], for stick-tables.
fn produce_tables(args: &ConfigArgs, config: &Config, plan: &Plan, folder: &Path) -> Result<(), String> {
    let peers = &config.haproxy.peers;
    if matches!(args.part, Some(Part::Spoe | Part::Backend)) {
        return Err(
            "with --peers and --limit, HAProxy sends no queries, so there is no SPOE file and no backend for them"
                .to_owned(),
        );
    }
    if peers.listen.is_none() {
        eprintln!(
            "warning: haproxy.peers.listen is not set, so this node does not listen for HAProxy; set it to {DEFAULT_PEER}"
        );
    }
    let tables = Tables {
        peer: peers.listen.map_or_else(|| DEFAULT_PEER.to_owned(), |listen| reachable(listen.ip(), listen.port())),
        bans: peers.bans_table.clone(),
        map: config.haproxy.map.as_ref().filter(|_| !config.haproxy.runtime.is_empty()).map(ToString::to_string),
        limit: args.limit.clone(),
        reports: peers.report_tables.iter().map(ToString::to_string).collect(),
    };
    let made = tables::generate(plan, &tables).map_err(|error| error.to_string())?;
    let files = [(folder.join("haproxy.cfg"), &made.complete)];
    if args.output.is_some() {
        write_files(&files, args.force)?;
    }
    let part = match args.part {
        Some(Part::Peers) => Some(&made.peers),
        Some(Part::Frontend) => Some(&made.frontend),
        Some(_) => Some(&made.complete),
        None => None,
    };
    // A closed pipe is not an error.
    let _ = print(args, part, &files, &mut io::stdout().lock());
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
        contact: args.contact.clone(),
        page_path: String::new(),
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

fn print(
    args: &ConfigArgs,
    part: Option<&String>,
    files: &[(PathBuf, &String)],
    out: &mut impl Write,
) -> io::Result<()> {
    if args.json {
        let version = args.version.version().ok().flatten().map(|version| version.to_string());
        let rows: Vec<_> = files
            .iter()
            .map(|(path, text)| serde_json::json!({ "path": path.display().to_string(), "text": text }))
            .collect();
        let answer = serde_json::json!({ "haproxy": version, "written": args.output.is_some(), "files": rows });
        return writeln!(out, "{answer:#}");
    }
    if let Some(text) = part {
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
