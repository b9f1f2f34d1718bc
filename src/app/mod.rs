//! The composition root: builds the parts from the configuration, wires them, runs them, reloads, and takes them down in
//! order. Nothing here decides anything about bans.
//!
//! Start: admin socket → journal → store → cluster → judge → inputs and agent. A listener that cannot be bound stops the start.
//! Stop: the agent leaves as a lame duck while everything else still works; then the inputs, the judge, the admin API, the
//! cluster, the store, and the journal last.

mod access;
mod alarms;
mod inputs;
mod logging;
mod node;
mod notifications;
mod reload;
mod rules;
mod verdicts;
mod views;

use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use access::problems as credential_problems;
pub use node::{Node, StartError};
pub use rules::{detection, tls_files};

use self::reload::Reloader;
use crate::config::Loaded;
use crate::proto::wire::Dialect;

/// Runs a node until it is told to stop by SIGTERM or SIGINT. SIGHUP reloads.
///
/// # Errors
/// When it cannot start.
pub fn run(loaded: Loaded, named: Option<PathBuf>) -> Result<(), StartError> {
    run_as(Build::default(), loaded, named)
}

/// What a build says of itself to the other nodes.
#[derive(Clone, Debug)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// What it reads and writes.
    pub wire: Dialect,
}

impl Default for Build {
    /// This build.
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), wire: Dialect::default() }
    }
}

/// As [`run`], as another build: for tests of how builds work together.
///
/// # Errors
/// As [`run`].
pub fn run_as(build: Build, loaded: Loaded, named: Option<PathBuf>) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::Runtime)?;
    let log = logging::start(&loaded.config.log);
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    raise_descriptors();
    let result = runtime.block_on(serve(build, loaded, named, log));
    // What is left by now are tasks that wait for peers.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Lets the node open as many files and connections as it may at all. The lower limit that shells and systemd set is there for
/// programs that use select(2), which this one does not.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

async fn serve(
    build: Build,
    loaded: Loaded,
    named: Option<PathBuf>,
    log: logging::LogControl,
) -> Result<(), StartError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let file = loaded
        .path
        .as_ref()
        .map_or_else(|| "none: the defaults and the environment".to_owned(), |path| path.display().to_string());
    info!(version = build.version, configuration = %file, "starting");
    let reloader = Reloader::new(loaded.config, named, log);
    let stop = CancellationToken::new();
    let now = CancellationToken::new();
    let node = Node::bind(reloader.clone(), build).await?;
    let mut served = tokio::spawn(node.serve(stop.clone(), now.clone()));
    loop {
        tokio::select! {
            ended = &mut served => {
                let ended = ended.unwrap_or_else(|panicked| {
                    error!(%panicked, "the node ended unexpectedly");
                    Err(StartError::Ended)
                });
                info!("stopped");
                return ended;
            }
            _ = hangup.recv() => {
                let reloader = reloader.clone();
                // It logs what it did or why not.
                drop(tokio::task::spawn_blocking(move || drop(reloader.reload())));
            }
            _ = terminate.recv() => terminated(&stop, &now),
            _ = interrupt.recv() => terminated(&stop, &now),
        }
    }
}

/// The first signal begins an orderly end, the second one cuts it short.
fn terminated(stop: &CancellationToken, now: &CancellationToken) {
    if stop.is_cancelled() {
        now.cancel();
    } else {
        info!("stopping: told to end");
        stop.cancel();
    }
}
