//! The composition root: builds the parts from the configuration, wires them, runs them, reloads, and takes them down in
//! order. Nothing here decides anything about bans.
//!
//! Start: admin socket → journal → store → cluster → judge → inputs and agent. A listener that cannot be bound stops the start.
//! Stop ([`shutdown`]): the agent leaves as a lame duck while everything else still works; then the inputs, the judge, the admin
//! API, the cluster, the store, and the journal last. The [`supervisor`] begins it when a part breaks.

mod access;
mod alarms;
mod inputs;
mod logging;
mod node;
mod notifications;
mod panics;
mod reload;
mod rules;
mod running;
mod shutdown;
mod start_error;
mod supervisor;
mod verdicts;
mod views;

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use access::problems as credential_problems;
pub use node::Node;
pub use rules::{detection, tls_files};
pub use start_error::StartError;

use self::reload::Reloader;
use self::supervisor::policy::How;
use crate::config::Loaded;
use banmesh_core::wire::Dialect;

/// The most that the start may still take after the node was told to end: the journal may be on its way to be loaded.
const START_ENDS: Duration = Duration::from_secs(10);
/// Threads for the parts at least, so that one that blocks its thread does not keep the agent from leaving.
const THREADS: usize = 2;

/// Runs a node until it is told to stop by SIGTERM or SIGINT. SIGHUP reloads.
///
/// # Errors
/// When it cannot start, or a part of it broke.
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
    let mut parts = tokio::runtime::Builder::new_multi_thread();
    if std::thread::available_parallelism().is_ok_and(|count| count.get() < THREADS) {
        parts.worker_threads(THREADS);
    }
    let parts = parts.enable_all().build().map_err(StartError::Runtime)?;
    // Of its own, so that signals and the supervisor work whatever the parts do with their threads.
    let watching = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let log = logging::start(&loaded.config.log);
    panics::watch();
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    raise_descriptors();
    let result = watching.block_on(serve(build, loaded, named, log, parts.handle()));
    if matches!(result, Err(StartError::CutShort { .. })) {
        parts.shutdown_background();
    } else {
        // What is left by now are tasks that wait for peers, and parts that hang.
        parts.shutdown_timeout(Duration::from_secs(1));
    }
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
    parts: &Handle,
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
    let mut served = pin!(start_and_serve(reloader.clone(), build, parts, &stop, &now));
    loop {
        tokio::select! {
            ended = &mut served => {
                info!("stopped");
                return ended;
            }
            _ = hangup.recv() => {
                let reloader = reloader.clone();
                // It logs what it did or why not.
                drop(parts.spawn_blocking(move || drop(reloader.reload())));
            }
            _ = terminate.recv() => terminated(&stop, &now),
            _ = interrupt.recv() => terminated(&stop, &now),
        }
    }
}

async fn start_and_serve(
    reloader: Reloader,
    build: Build,
    parts: &Handle,
    stop: &CancellationToken,
    now: &CancellationToken,
) -> Result<(), StartError> {
    let mut binding = parts.spawn(Node::bind(reloader, build));
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(START_ENDS).await;
    };
    let starting = || vec!["the start".to_owned()];
    let bound = tokio::select! {
        bound = &mut binding => bound,
        // Nothing was decided yet that could be lost, and the journal is safe against a crash.
        () = late => return Err(StartError::Late { parts: starting() }),
        () = now.cancelled() => return Err(StartError::CutShort { parts: starting() }),
    };
    let node = bound.unwrap_or_else(|error| {
        let how = error.try_into_panic().map_or(How::Returned, |panic| How::Panicked(panics::message(panic.as_ref())));
        Err(StartError::Ended { part: "start".to_owned(), how })
    })?;
    Box::pin(node.serve(parts.clone(), stop.clone(), now.clone())).await
}

/// The first signal begins an orderly end, the second one ends the node at once.
fn terminated(stop: &CancellationToken, now: &CancellationToken) {
    if stop.is_cancelled() {
        warn!("told to end for the second time: ending at once");
        now.cancel();
    } else {
        info!("stopping: told to end");
        stop.cancel();
    }
}

/// Tells systemd, where it has asked to be told (`Type=notify`).
fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(reason) = sd_notify::notify(state) {
        debug!(%reason, "cannot notify systemd");
    }
}
