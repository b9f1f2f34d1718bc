//! `banmesh cluster`: shows the members, and generates keys for the keyring.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::client;
use super::columns::Columns;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use super::people::{ago, milliseconds};
use crate::operation::api::views::{ClusterState, ClusterView, MemberState, MemberView, SiteView};
use crate::private;
use banmesh_core::seal::{KEY_LEN, key_text};

/// Arguments of `banmesh cluster`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh cluster status
  banmesh cluster keygen --output cluster.key")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

impl Args {
    /// The options for the node; `None` if the command needs no running node.
    pub const fn node(&mut self) -> Option<&mut NodeArgs> {
        match &mut self.command {
            Command::Status(node) => Some(node),
            Command::Keygen(_) => None,
        }
    }
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Show the members as the node sees them
    #[command(after_help = "\
CONVERGED says whether the member's ban table equals the one of this node.

Examples:
  banmesh cluster status
  banmesh cluster status --json")]
    Status(NodeArgs),
    /// Generate a key for the keyring (cluster.secret_file)
    #[command(after_help = "\
Put the same keyring on every node. The file of --output has mode 0600; give it to the user that runs banmesh.

Examples:
  banmesh cluster keygen --output cluster.key
  banmesh cluster keygen | ssh node1 'umask 077; cat > cluster.key'")]
    Keygen(KeygenArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct KeygenArgs {
    /// Write the key to this new file, which only you can read; never replaces a file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `banmesh cluster`.
pub fn run(args: Args) -> ExitCode {
    match args.command {
        Command::Status(node) => status(&node),
        Command::Keygen(args) => keygen(args.output.as_deref()),
    }
}

fn keygen(file: Option<&Path>) -> ExitCode {
    match generate(file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("banmesh: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why no key was generated.
#[derive(Debug, thiserror::Error)]
enum KeygenError {
    #[error("cannot generate a key: {0}")]
    Randomness(getrandom::Error),
    #[error("cannot print the key: {0}")]
    Print(io::Error),
    #[error(
        "{} exists, and a key is never replaced: choose another file; to change the key of a running cluster see docs/cluster.md",
        path.display()
    )]
    Exists { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Prints a new key, or writes it to the new file `path`.
fn generate(path: Option<&Path>) -> Result<(), KeygenError> {
    let mut random = [0; KEY_LEN];
    getrandom::fill(&mut random).map_err(KeygenError::Randomness)?;
    let key = key_text(random);
    let Some(path) = path else {
        let mut output = Output::stdout(false);
        return output.line(&key).and_then(|()| output.flush()).map_err(KeygenError::Print);
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeygenError::Exists { path: path.to_owned() },
        _ => KeygenError::Write { path: path.to_owned(), source },
    };
    let mut file = private::create_new(path).map_err(failed)?;
    let written = writeln!(file, "{key}").and_then(|()| file.sync_all());
    written.map_err(|source| {
        // Half a key must not look like a whole one.
        let _ = std::fs::remove_file(path);
        failed(source)
    })
}

fn status(node: &NodeArgs) -> ExitCode {
    client::run(node, async |client, output| {
        let cluster: ClusterView = client.get("/api/v1/cluster").await?;
        if output.json {
            return Ok(output.json(&cluster)?);
        }
        if cluster.state == ClusterState::Standalone {
            return Ok(
                output.line("standalone: this node replicates its bans to no other node (cluster.enabled is false)")?
            );
        }
        let state = match cluster.state {
            ClusterState::Standalone | ClusterState::Ready => "ready",
            ClusterState::Joining => "joining",
            ClusterState::Leaving => "leaving",
        };
        let keys = if cluster.keys.is_empty() { "none".to_owned() } else { cluster.keys.join(", ") };
        output.pairs(&[
            ("cluster", cluster.name.clone().unwrap_or_default()),
            ("this node", state.to_owned()),
            ("members", cluster.presence_text()),
            (
                "encrypted",
                if cluster.encrypted { "yes" } else { "no: anyone who can reach the port can ban" }.to_owned(),
            ),
            ("keys", keys),
            ("wire", shown(cluster.wire_version.as_ref())),
        ])?;
        output.line("")?;
        let mut table = Columns::new(&[
            "MEMBER",
            "ADDRESS",
            "STATE",
            "VERSION",
            "WIRE",
            "HEARTBEAT",
            "CLOCK",
            "LAG",
            "CONVERGED",
            "ENTRIES",
            "REPAIRED",
            "KEY",
        ]);
        cluster.members.iter().for_each(|member| table.row(cells(member)));
        output.colored(Tone::Heading, &table.heading())?;
        for (line, member) in table.lines().zip(&cluster.members) {
            match (member.state, member.agrees) {
                (MemberState::Dead, _) | (_, Some(false)) => output.colored(Tone::Bad, &line)?,
                (MemberState::Joining | MemberState::Leaving, _) => output.colored(Tone::Faint, &line)?,
                (MemberState::Ready, _) => output.line(&line)?,
            }
        }
        for site in &cluster.sites {
            let tone = if site.message.is_some() { Tone::Bad } else { Tone::Faint };
            output.colored(tone, &site_text(site))?;
        }
        for unreachable in &cluster.unreachable {
            output.colored(Tone::Bad, &unreachable.message)?;
        }
        for member in cluster.members.iter().filter(|member| is_incompatible(member)) {
            let this = cluster.members.iter().find(|member| member.this_node);
            output.colored(Tone::Bad, &incompatible(member, this))?;
        }
        Ok(())
    })
}

/// A line about another site.
fn site_text(site: &SiteView) -> String {
    let SiteView { name, bridge, with, last_exchange_age_seconds, message, .. } = site;
    match (message, with, last_exchange_age_seconds) {
        (Some(message), ..) => message.clone(),
        (None, Some(with), Some(age)) => {
            format!("site {name}: this node exchanges bans with {with}, last {}", ago(*age))
        }
        _ if *bridge => format!("site {name}: this node begins to exchange bans"),
        _ => format!("site {name}: other nodes of this site exchange bans with it"),
    }
}

/// Whether bans do not replicate between `member` and the node that answers.
fn is_incompatible(member: &MemberView) -> bool {
    member.state != MemberState::Dead && member.shares_wire_version == Some(false)
}

fn incompatible(member: &MemberView, this: Option<&MemberView>) -> String {
    let build = |node: &MemberView| {
        format!("build {}, wire {}", shown(node.version.as_ref()), shown(node.wire_version.as_ref()))
    };
    format!(
        "{} ({}) shares no wire version with this node ({}), so bans do not replicate between them. Upgrade the node with the older build.",
        member.id,
        build(member),
        this.map_or_else(dash, build),
    )
}

fn cells(member: &MemberView) -> Vec<String> {
    let state = match member.state {
        MemberState::Joining => "joining",
        MemberState::Ready => "ready",
        MemberState::Leaving => "leaving",
        MemberState::Dead if member.left => "left",
        MemberState::Dead => "lost",
    };
    let converged = match (member.this_node, member.agrees) {
        (true, _) | (false, None) => "-",
        (false, Some(true)) => "yes",
        (false, Some(false)) => "no",
    };
    vec![
        if member.this_node { format!("{} *", named(member)) } else { named(member) },
        member.address.clone(),
        state.to_owned(),
        shown(member.version.as_ref()),
        shown(member.wire_version.as_ref()),
        member.heartbeat_age_ms.map_or_else(dash, |ms| ago(ms / 1000)),
        member.clock_offset_ms.map_or_else(dash, clock),
        member.lag_ms.map_or_else(dash, milliseconds),
        converged.to_owned(),
        shown(member.entries.as_ref()),
        member.last_repair_age_seconds.map_or_else(dash, ago),
        shown(member.key.as_ref()),
    ]
}

/// The id, with the name of the host if the id was generated.
fn named(member: &MemberView) -> String {
    let name = member.report.as_ref().map(|report| report.name.as_str()).unwrap_or_default();
    let id = member.id.as_str();
    if name.is_empty() || name == id { id.to_owned() } else { format!("{name} ({id})") }
}

/// How far a clock is ahead or behind.
fn clock(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "+" };
    format!("{sign}{}", milliseconds(ms.unsigned_abs()))
}

fn shown(value: Option<&impl ToString>) -> String {
    value.map_or_else(dash, ToString::to_string)
}

fn dash() -> String {
    "-".to_owned()
}
