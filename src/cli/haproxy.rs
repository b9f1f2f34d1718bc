//! `banmesh haproxy`: generates a configuration for HAProxy, and checks an existing one.

pub mod check;
mod config;
pub mod load;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command as Process, ExitCode};

use clap::{Args, Subcommand};

use crate::config::{Config, Loaded};
use banmesh_haproxy::{Node, Version};

/// Arguments of `banmesh haproxy`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  banmesh haproxy config --detect
  banmesh haproxy check /etc/haproxy/haproxy.cfg")]
pub struct HaproxyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Generate the configuration that makes HAProxy query this node
    Config(config::ConfigArgs),
    /// Find mistakes in a haproxy.cfg and the SPOE files that it names
    Check(check::CheckArgs),
}

/// Runs `banmesh haproxy`; `path` is the configuration file given with `--config`.
pub fn run(args: &HaproxyArgs, path: Option<&Path>) -> ExitCode {
    match &args.command {
        Command::Config(args) => config::run(args, path),
        Command::Check(args) => check::run(args, path),
    }
}

/// The version of HAProxy.
#[derive(Clone, Debug, Args)]
struct VersionArgs {
    /// Version of HAProxy, such as 3.0
    #[arg(long, value_name = "VERSION")]
    haproxy: Option<Version>,
    /// Use the version of the installed HAProxy, from `haproxy -v`
    #[arg(long, conflicts_with = "haproxy")]
    detect: bool,
}

impl VersionArgs {
    /// The version that was given or detected; `None` without either option.
    fn version(&self) -> Result<Option<Version>, String> {
        if self.detect { installed().map(Some) } else { Ok(self.haproxy) }
    }
}

/// The version of the `haproxy` in PATH, /usr/sbin or /usr/local/sbin. The latter two are not in every user's PATH.
fn installed() -> Result<Version, String> {
    let mut last = String::new();
    for name in ["haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"] {
        match Process::new(name).arg("-v").output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                return Version::from_output(&text).ok_or_else(|| {
                    let printed =
                        if text.trim().is_empty() { String::from_utf8_lossy(&output.stderr) } else { text.clone() };
                    let printed: String = printed.lines().next().unwrap_or_default().chars().take(200).collect();
                    format!("`{name} -v` prints no version: `{printed}`; give the version, for example --haproxy 3.0")
                });
            }
            Err(error) if last.is_empty() => last = error.to_string(),
            Err(_) => {}
        }
    }
    Err(format!("cannot run `haproxy -v`: {last}; give the version, for example --haproxy 3.0"))
}

/// The agent that HAProxy should query, from the configuration.
fn node(loaded: &Loaded) -> Node {
    let Config { spoa, .. } = &loaded.config;
    let origin = match loaded.origins.of("spoa.port") {
        crate::config::Origin::Default => loaded.path.as_ref().map(|path| path.display().to_string()),
        origin => Some(origin.to_string()),
    };
    let bans_table = Some(loaded.config.haproxy.peers.bans_table.clone());
    let report_tables = loaded.config.haproxy.peers.report_tables.iter().map(ToString::to_string).collect();
    let longest_ban = Some(loaded.config.ban.max_ban_time.0);
    Node {
        agent: SocketAddr::new(spoa.address, spoa.port),
        enabled: spoa.enabled,
        origin,
        bans_table,
        report_tables,
        longest_ban,
    }
}
