//! `banmesh doctor`: runs the checks that the documentation describes, on the configuration, on the node that runs here and on the HAProxy of
//! this host. It changes nothing; it prints what to do.

mod check;
mod checks;
mod counters;
mod haproxy;
#[cfg(test)]
mod symptoms;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use self::check::{Check, Code, Outcome};
use super::check as config_check;

use super::client;
use super::failure::Failure;
use super::haproxy::check::findings_about;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use crate::config::{self, Config};
use crate::enforcement::firewall;
use crate::operation::api::views::{ClusterView, StatusView, WhyView};

/// Arguments of `banmesh doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Changes nothing. Exit codes: 0 no problem was found (there may be warnings), 1 problems, 3 no node answers.

Examples:
  banmesh doctor
  banmesh doctor --haproxy /etc/haproxy/haproxy.cfg
  sudo banmesh doctor --json")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// HAProxy's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/haproxy/haproxy.cfg")]
    haproxy: PathBuf,
    /// Show only what needs attention
    #[arg(long, short)]
    quiet: bool,
}

/// HAProxy's log on Debian.
const HAPROXY_LOG: &str = "/var/log/haproxy.log";
/// How much of the end of HAProxy's log is read, in bytes.
const LOG_TAIL: u64 = 256 << 10;
/// Where log daemons have their configuration.
const LOG_DAEMONS: [&str; 4] =
    ["/etc/rsyslog.conf", "/etc/rsyslog.d/*.conf", "/etc/syslog-ng/syslog-ng.conf", "/etc/syslog-ng/conf.d/*.conf"];
/// The most senders of log lines that are looked up.
const MAX_SENDERS: usize = 5;
/// How long HAProxy's runtime API, or a connection to the agent, may take.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer of HAProxy that is read, in bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// Runs `banmesh doctor`; `path` is the configuration file given with `--config`.
pub fn run(args: &Args, path: Option<&Path>, filters: config_check::FilterCheck) -> ExitCode {
    let mut found = Vec::new();
    let remote = args.node.url().is_some();
    let config = if remote { None } else { Some(configuration(path, filters, &mut found)) };
    let status = client::ask::<StatusView>(&args.node, "/api/v1/status");
    let answers = status.is_ok();
    match &status {
        Ok(status) => node(&args.node, status, &mut found),
        Err(failure) => found.push(unreachable(failure)),
    }
    if let Some(config) = config {
        found.extend(space(&config));
        if let Ok(status) = &status {
            this_host(&config, status, &mut found);
        }
        haproxy_of_this_host(&args.haproxy, path, &mut found);
    }
    check::group(&mut found);
    let mut output = Output::stdout(args.node.json).in_utc(args.node.utc);
    // A closed pipe is not an error.
    let _ = report(&found, args.quiet, &mut output).and_then(|()| output.flush());
    if !answers {
        return ExitCode::from(3);
    }
    ExitCode::from(u8::from(found.iter().any(|check| check.outcome == Outcome::Problem)))
}

fn report(found: &[Check], quiet: bool, output: &mut Output) -> io::Result<()> {
    let number = |outcome| found.iter().filter(|check| check.outcome == outcome).count();
    let (problems, warnings) = (number(Outcome::Problem), number(Outcome::Warning));
    if output.json {
        return output.json(&serde_json::json!({"ok": problems == 0, "checks": found}));
    }
    for check in found.iter().filter(|check| !quiet || check.outcome >= Outcome::Warning) {
        let (tone, word) = match check.outcome {
            Outcome::Ok => (Tone::Good, "ok"),
            Outcome::Skipped => (Tone::Faint, "skipped"),
            Outcome::Warning => (Tone::Bad, "warning"),
            Outcome::Problem => (Tone::Bad, "problem"),
        };
        output.colored(tone, &format!("{word:<8} {:<13} {}", check.subject, check.message))?;
        if !check.todo.is_empty() {
            output.line(&format!("{:<23}do: {}", "", check.todo))?;
        }
    }
    let plural = |count: usize, noun: &str| super::people::count(count as u64, noun);
    output.line(&format!(
        "{}, {}, {}",
        plural(found.len(), "check"),
        plural(problems, "problem"),
        plural(warnings, "warning")
    ))
}

/// What the running node says about itself.
fn node(args: &NodeArgs, status: &StatusView, found: &mut Vec<Check>) {
    found.extend(checks::of_status(status, env!("CARGO_PKG_VERSION")));
    if let Ok(cluster) = client::ask::<ClusterView>(args, "/api/v1/cluster") {
        found.extend(checks::of_cluster(&cluster));
    }
    let senders = status.inputs.senders.iter().filter(|sender| {
        let address: Result<IpAddr, _> = sender.sender.parse();
        address.is_ok_and(|address| !address.is_loopback())
    });
    for sender in senders.take(MAX_SENDERS) {
        if let Ok(why) = client::ask::<WhyView>(args, &format!("/api/v1/why/{}", sender.sender)) {
            found.extend(checks::of_sender(&sender.sender, &why));
        }
    }
    match client::ask_text(args, "/metrics") {
        Ok(text) => found.extend(counters::of_metrics(&text)),
        Err(failure) => found.push(Check::skipped(Code::Answers, format!("the metrics cannot be read: {failure}"))),
    }
}

/// What this host shows about the node that runs on it.
fn this_host(config: &Config, status: &StatusView, found: &mut Vec<Check>) {
    if config.spoa.enabled {
        let address = match config.spoa.address {
            any if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address,
        };
        let to = SocketAddr::new(address, config.spoa.port);
        let error = TcpStream::connect_timeout(&to, SOCKET_TIMEOUT).err().map(|error| error.to_string());
        found.push(checks::of_agent_port(&to.to_string(), error.as_deref()));
        found.extend(checks::of_connections(status, config.spoa.max_clients.into()));
    }
    if config.firewall.enabled {
        let table = config.firewall.table.as_str();
        let error = match firewall::read(table) {
            Ok(Some(_)) if config.firewall.end_connections => {
                firewall::can_end().err().map(|error| format!("connections of banned sources are not ended: {error}"))
            }
            Ok(Some(_)) => None,
            Ok(None) => Some(format!("there is no table inet {table} in the kernel's firewall")),
            Err(error) => Some(error.to_string()),
        };
        found.push(checks::of_firewall(error.as_deref()));
    }
    if config.syslog.enabled && status.inputs.lines == 0 {
        found.extend(log_daemon(config.syslog.address.port()));
    }
}

/// Whether a log daemon of this host sends to `port`. `None` without one.
fn log_daemon(port: u16) -> Option<Check> {
    let paths = LOG_DAEMONS.iter().filter_map(|pattern| glob::glob(pattern).ok()).flatten().flatten();
    let files: Vec<(String, String)> =
        paths.filter_map(|path| Some((path.display().to_string(), std::fs::read_to_string(&path).ok()?))).collect();
    (!files.is_empty()).then(|| checks::of_log_daemon(&files, &[port]))
}

fn unreachable(failure: &Failure) -> Check {
    let hint = failure.hint();
    let todo = if hint.is_empty() { "see docs/operations.md, No node answers".to_owned() } else { hint };
    Check::problem(Code::Node, failure.to_string(), todo)
}

/// Checks the configuration, and returns it as far as it is valid.
fn configuration(path: Option<&Path>, filters: config_check::FilterCheck, found: &mut Vec<Check>) -> Config {
    let findings = config_check::examine(path, config::process_environment(), filters, false);
    let todo = "correct it; `banmesh check --print` shows every setting and where it was set";
    found.extend(findings.errors.iter().map(|error| Check::problem(Code::Configuration, error.to_string(), todo)));
    let warnings = findings.warnings.iter().map(ToString::to_string);
    // A running node has its ports, as it should.
    let warnings = warnings.filter(|text| !text.contains(config_check::OWN_PORTS));
    found.extend(warnings.map(|text| Check::warning(Code::Configuration, text, "see docs/configuration.md")));
    if findings.errors.is_empty() {
        let file =
            findings.loaded.path.as_ref().map_or_else(|| "the default".to_owned(), |path| path.display().to_string());
        found.push(Check::ok(Code::Configuration, format!("{file} is valid")));
    }
    findings.loaded.config
}

fn space(config: &Config) -> Option<Check> {
    let path = &config.node.data_dir;
    let system = nix::sys::statvfs::statvfs(path.as_path()).ok()?;
    let (free, all) = (system.blocks_available(), system.blocks());
    Some(checks::of_space(&path.display().to_string(), free, all))
}

/// Checks the HAProxy of this host, if there is one.
fn haproxy_of_this_host(file: &Path, path: Option<&Path>, found: &mut Vec<Check>) {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("{} cannot be read ({error}); give the file with --haproxy", file.display());
            return found.push(Check::skipped(Code::HaproxyLint, message));
        }
    };
    if let Some(rejected) = rejected(file) {
        found.push(Check::problem(Code::HaproxyAccepts, rejected, format!("haproxy -c -f {}", file.display())));
    }
    match findings_about(file, path) {
        Ok(findings) => found.extend(haproxy::of_findings(&findings)),
        Err(error) => found.push(Check::skipped(Code::HaproxyLint, error)),
    }
    if let Ok(text) = tail(Path::new(HAPROXY_LOG)) {
        found.extend(haproxy::of_log(HAPROXY_LOG, &text));
    }
    let sockets = text.lines().filter_map(|line| line.trim().strip_prefix("stats socket ")?.split_whitespace().next());
    // A local socket; others are for the network or are passed by a file descriptor.
    let Some(socket) = sockets.map(|socket| socket.trim_start_matches("unix@")).find(|socket| socket.starts_with('/'))
    else {
        let message = format!("{} has no `stats socket`, so the state of its servers is unknown", file.display());
        return found.push(Check::skipped(Code::HaproxyServers, message));
    };
    match show_stat(Path::new(socket)) {
        Ok(csv) => found.extend(haproxy::of_stat(&csv)),
        Err(error) => found.push(Check::skipped(Code::HaproxyServers, format!("{socket}: {error}"))),
    }
}

/// The end of a log.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `haproxy -c` says about `file` if it rejects it. `None` if it accepts it, or if there is no haproxy.
fn rejected(file: &Path) -> Option<String> {
    let run = |program: &str| Command::new(program).arg("-c").arg("-f").arg(file).output().ok();
    let output = ["haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].into_iter().find_map(run)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let first = text.lines().find(|line| line.contains("ALERT")).unwrap_or("see its output").to_owned();
    (!output.status.success()).then(|| format!("HAProxy rejects {}: {first}", file.display()))
}

fn show_stat(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    stream.write_all(b"show stat\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
