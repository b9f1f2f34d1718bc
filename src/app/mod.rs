//! The composition root: builds the parts from the configuration, wires them, runs them, reloads them, and stops them in order.
//! Nothing here decides about bans.
//!
//! Start: admin socket → journal → store → cluster → judge → inputs and agent. If a listener cannot be bound, the node does not
//! start. Stop (`shutdown`): the agent drains its connections while everything else still works; then the inputs, the judge,
//! the admin API, the cluster, the webhooks and metrics, and last the store with its journal. The `supervisor` stops the node
//! when a part breaks.

mod access;
mod accounts;
pub(crate) mod alarms;
mod allowed_names;
mod backtest;
pub mod capacity;
mod disk;
mod exposure;
mod feeds;
mod fetching;
mod health;
mod inputs;
mod keyring;
mod listeners;
mod logging;
mod lookup;
mod mail;
pub mod never_names;
mod node;
mod notifications;
mod own_addresses;
mod panics;
mod peers;
mod places;
mod problems;
mod reload;
mod running;
mod settings;
mod shutdown;
mod socket;
mod start_error;
mod supervisor;
mod systemd;
mod views;

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use access::problems as credential_problems;
pub use access::weak_secrets;
pub use backtest::{Decisions, decisions};
pub use exposure::exposed;
pub use feeds::{FeedError, settings as feed_settings};
pub use lookup::Lookup;
pub use node::{Build, Node, Options};
pub use settings::{FilterFindings, detection, examine_filters, tls_files, uses_logins};
pub use start_error::StartError;

use self::reload::Reloader;
use self::supervisor::policy::How;
use crate::config::Loaded;

/// How long the start may still take after a signal to stop, because the journal may be loading.
const START_ENDS: Duration = Duration::from_secs(10);
/// The minimum number of threads for the parts, so that one blocked thread does not keep the agent from draining.
const THREADS: usize = 2;

/// Runs a node until SIGTERM or SIGINT. SIGHUP reloads the configuration.
///
/// # Errors
/// When the node cannot start, or a part of it broke.
pub fn run(loaded: Loaded, named: Option<PathBuf>, options: Options) -> Result<(), StartError> {
    run_as(Build::default(), loaded, named, options)
}

/// Same as [`run`], but as another build, for tests of mixed clusters.
///
/// # Errors
/// Same as [`run`].
pub fn run_as(build: Build, loaded: Loaded, named: Option<PathBuf>, options: Options) -> Result<(), StartError> {
    let mut parts = tokio::runtime::Builder::new_multi_thread();
    if std::thread::available_parallelism().is_ok_and(|count| count.get() < THREADS) {
        parts.worker_threads(THREADS);
    }
    // How many tasks run between two looks at the sockets. With tokio's 61, a client that keeps the agent busy would delay the others.
    parts.event_interval(8);
    let parts = parts.enable_all().build().map_err(StartError::Runtime)?;
    // A separate runtime, so that signals and the supervisor work even if the parts block all their threads.
    let watching = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let log = logging::start(&loaded.config.log);
    panics::watch();
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    for (key, message) in exposed(&loaded.config) {
        warn!("{key}: {message}");
    }
    raise_descriptors();
    let result = watching.block_on(serve((build, options), loaded, named, log, parts.handle()));
    if matches!(result, Err(StartError::CutShort { .. })) {
        parts.shutdown_background();
    } else {
        // Only tasks that wait for peers and parts that hang are left by now.
        parts.shutdown_timeout(Duration::from_secs(1));
    }
    result
}

/// Raises the soft limit of open files to the hard limit. Shells and systemd set a lower soft limit for programs that use
/// select(2), which banmesh does not.
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
    (build, options): (Build, Options),
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
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut served = pin!(start_and_serve(reloader.clone(), (build, options), parts, &stop, &now));
    loop {
        tokio::select! {
            ended = &mut served => {
                reloader.log().summarise();
                info!("stopped");
                return ended;
            }
            _ = hangup.recv() => {
                // The reload logs its own outcome.
                drop(reloader.request(parts));
            }
            _ = second.tick() => reloader.log().summarise(),
            _ = terminate.recv() => terminated(&stop, &now),
            _ = interrupt.recv() => terminated(&stop, &now),
        }
    }
}

async fn start_and_serve(
    reloader: Reloader,
    (build, options): (Build, Options),
    parts: &Handle,
    stop: &CancellationToken,
    now: &CancellationToken,
) -> Result<(), StartError> {
    let mut binding = parts.spawn(Node::bind(reloader, build, options));
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(START_ENDS).await;
    };
    let starting = || vec!["the start".to_owned()];
    let bound = tokio::select! {
        bound = &mut binding => bound,
        // No bans could be lost yet, and the journal survives a crash.
        () = late => return Err(StartError::Late { parts: starting() }),
        () = now.cancelled() => return Err(StartError::CutShort { parts: starting() }),
    };
    let node = bound.unwrap_or_else(|error| {
        let how = error.try_into_panic().map_or(How::Returned, |panic| How::Panicked(panics::message(panic.as_ref())));
        Err(StartError::Ended { part: "start".to_owned(), how })
    })?;
    Box::pin(node.serve(parts.clone(), stop.clone(), now.clone())).await
}

/// The first signal stops the node in order; the second one stops it immediately.
fn terminated(stop: &CancellationToken, now: &CancellationToken) {
    if stop.is_cancelled() {
        warn!("received a second signal: stopping immediately");
        now.cancel();
    } else {
        info!("stopping: received a signal");
        stop.cancel();
    }
}
