//! `banmesh haproxy`: a configuration for HAProxy that asks this node, and what is wrong with one that somebody wrote.

mod check;
mod config;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command as Process, ExitCode};

use clap::{Args, Subcommand};

use crate::config::{Config, Loaded};
use banmesh_haproxy::{Node, Version};

/// `banmesh haproxy …`
#[derive(Clone, Debug, Args)]
pub struct HaproxyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Print what HAProxy needs to ask this node: SPOE file, agents' backend, frontend
    Config(config::ConfigArgs),
    /// Look for traps in a haproxy.cfg and the SPOE files that it names
    Check(check::CheckArgs),
}

/// Does what `args` say; `path` is banmesh's configuration file, if one was named.
pub fn run(args: &HaproxyArgs, path: Option<&Path>) -> ExitCode {
    match &args.command {
        Command::Config(args) => config::run(args, path),
        Command::Check(args) => check::run(args, path),
    }
}

/// Which HAProxy.
#[derive(Clone, Debug, Args)]
struct Which {
    /// For this version of HAProxy, such as 3.0
    #[arg(long, value_name = "VERSION")]
    haproxy: Option<Version>,
    /// For the HAProxy that is installed here, as `haproxy -v` says
    #[arg(long, conflicts_with = "haproxy")]
    detect: bool,
}

impl Which {
    /// The version that was named or found; nothing when none was asked for.
    fn version(&self) -> Result<Option<Version>, String> {
        if self.detect { installed().map(Some) } else { Ok(self.haproxy) }
    }
}

/// The version of the `haproxy` in PATH or in /usr/sbin, which is not in everybody's PATH.
fn installed() -> Result<Version, String> {
    let mut last = String::new();
    for name in ["haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"] {
        match Process::new(name).arg("-v").output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                return Version::from_output(&text).ok_or_else(|| {
                    let said =
                        if text.trim().is_empty() { String::from_utf8_lossy(&output.stderr) } else { text.clone() };
                    let said: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
                    format!("`{name} -v` does not say its version, but: {said}; name it with --haproxy 3.0")
                });
            }
            Err(error) if last.is_empty() => last = error.to_string(),
            Err(_) => {}
        }
    }
    Err(format!("cannot run `haproxy -v`: {last}; name the version with --haproxy 3.0"))
}

/// What the configuration says of the node that HAProxy is to ask.
fn node(loaded: &Loaded) -> Node {
    let Config { spoa, .. } = &loaded.config;
    let origin = match loaded.origins.of("spoa.port") {
        crate::config::Origin::Default => loaded.path.as_ref().map(|path| path.display().to_string()),
        origin => Some(origin.to_string()),
    };
    Node { agent: SocketAddr::new(spoa.address, spoa.port), enabled: spoa.enabled, origin }
}
