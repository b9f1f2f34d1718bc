//! The bans in a map of HAProxy itself, kept in step over its runtime API.
//!
//! ```text
//!            changes            what changed for whom
//! store ──► keeper ──► Mirror ──────────────► one follower a socket ──► HAProxy
//! ```
//!
//! The keeper feeds the [`Mirror`], which decides what is told; every follower holds a connection and tells it. Followers
//! never hold up the store: one that is behind has a bounded backlog, and is told everything when that is full.

mod follower;
mod link;
mod metrics;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use metrics::Metrics;

use crate::clock;
use crate::decisions::batch::Batch;
use crate::decisions::store::StoreHandle;
use banmesh_core::exemptions::Exempt;
use banmesh_core::mirror::{Mirror, holds_ipv4};
use banmesh_haproxy::runtime::MapName;
use banmesh_types::target::Target;

/// Entries that are read from the store at a time.
const PAGE: usize = 8192;
/// How often ended bans are looked for; each time at least [`PAGE`] bans, and all of them within a minute.
const SWEEP: Duration = Duration::from_secs(1);

/// Where a HAProxy listens for commands (`stats socket`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// A Unix socket.
    Unix(PathBuf),
    /// host:port. A name is resolved at every connection.
    Tcp(String),
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// What is told to whom (`haproxy.*`).
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// Every HAProxy.
    pub sockets: Vec<Socket>,
    /// The map in each of them.
    pub map: MapName,
    /// How often its content is compared.
    pub verify_interval: Duration,
}

/// The service before it runs.
#[derive(Debug)]
pub struct Mirrors {
    config: MirrorConfig,
    store: StoreHandle,
    allowlist: watch::Receiver<Vec<Target>>,
    shared: Arc<Shared>,
}

/// What the keeper and the followers share.
#[derive(Debug)]
struct Shared {
    mirror: Mutex<Mirror>,
    /// Whether the mirror holds all that the store does; nobody is told a part.
    filled: watch::Sender<bool>,
    wakes: Vec<Wake>,
    metrics: Metrics,
}

/// Tells a follower that something changed.
#[derive(Debug, Default)]
struct Wake {
    notify: Notify,
    /// Since when a change waits.
    since: Mutex<Option<Instant>>,
}

impl Shared {
    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock()
    }

    fn wake(&self) {
        let waiting: Vec<bool> = {
            let mirror = self.mirror();
            (0..self.wakes.len()).map(|index| mirror.has_changes(index) || mirror.is_lost(index)).collect()
        };
        for (wake, waits) in self.wakes.iter().zip(waiting) {
            if waits {
                wake.since.lock().get_or_insert_with(Instant::now);
                wake.notify.notify_one();
            }
        }
    }
}

impl Mirrors {
    /// Tells the bans of `store`, less `allowlist` and whom operators allow, as configured.
    pub fn new(
        config: MirrorConfig,
        store: StoreHandle,
        allowlist: watch::Receiver<Vec<Target>>,
        metrics: Metrics,
    ) -> Self {
        let count = config.sockets.len();
        let shared = Shared {
            mirror: Mutex::new(Mirror::new(count)),
            filled: watch::Sender::new(false),
            wakes: (0..count).map(|_| Wake::default()).collect(),
            metrics,
        };
        Self { config, store, allowlist, shared: Arc::new(shared) }
    }

    /// Every HAProxy; [`Mirrors::follow`] serves one by its place here.
    pub fn sockets(&self) -> &[Socket] {
        &self.config.sockets
    }

    /// Tells the followers what changes in the store, until `shutdown`. May be called again after it ended: it begins anew.
    pub async fn keep(&self, shutdown: CancellationToken) {
        // The store may end first; then there is nothing to tell any more.
        let _ = shutdown.run_until_cancelled(keep(&self.shared, &self.store, self.allowlist.clone())).await;
    }

    /// Keeps the map of one HAProxy in step until `shutdown`; what it holds by then stays, and ends on time. May be called
    /// again after it ended: it begins anew.
    pub async fn follow(&self, index: usize, shutdown: CancellationToken) {
        let MirrorConfig { sockets, map, verify_interval } = &self.config;
        let Some(socket) = sockets.get(index) else { return };
        let shared = Arc::clone(&self.shared);
        let follower = follower::Follower::new(index, socket.clone(), map.clone(), *verify_interval, shared);
        follower.serve(shutdown).await;
    }
}

/// Feeds the mirror until the store ends.
async fn keep(shared: &Shared, store: &StoreHandle, mut allowlist: watch::Receiver<Vec<Target>>) {
    let exempt = store.exempt();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Before the table is read: what changes meanwhile comes after it, in order.
        let mut changes = store.subscribe();
        shared.filled.send_replace(false);
        let mut operators = exempt.load_full();
        {
            let mut mirror = shared.mirror();
            mirror.reset();
            allow(&mut mirror, &allowlist.borrow_and_update(), &operators);
        }
        if fill(shared, store).await.is_err() {
            return;
        }
        shared.filled.send_replace(true);
        shared.wake();
        loop {
            tokio::select! {
                batch = changes.recv() => match batch {
                    Ok(batch) => apply(shared, &batch),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        warn!(missed, "too many changes at once for the mirror: it begins anew");
                        break;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = allowlist.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    allow(&mut shared.mirror(), &allowlist.borrow_and_update(), &operators);
                }
                _ = sweep.tick() => {
                    let mut mirror = shared.mirror();
                    let budget = PAGE.max(mirror.len() / 60);
                    mirror.sweep(clock::now(), budget);
                }
            }
            // What operators exempt changes with the table, and when an allowlist entry expires.
            if !Arc::ptr_eq(&exempt.load(), &operators) {
                operators = exempt.load_full();
                allow(&mut shared.mirror(), &allowlist.borrow(), &operators);
            }
            shared.wake();
        }
    }
}

/// Gives the mirror both allowlists, the configured one and that of the operators. There are no exceptions from the configured one.
fn allow(mirror: &mut Mirror, configured: &[Target], operators: &Exempt) {
    let members = configured.iter().copied().chain(operators.allowed.members()).collect();
    let free = |target: &Target| !configured.iter().any(|member| member.covers(*target));
    let exceptions = operators.exceptions.iter().filter(|(target, _)| free(target));
    mirror.allow(members, exceptions.map(|(target, until)| (*target, *until)).collect());
}

/// Takes in all bans in force.
async fn fill(shared: &Shared, store: &StoreHandle) -> Result<(), crate::decisions::store::StoreGone> {
    let mut below = usize::MAX;
    loop {
        let page = store.scan(below, PAGE, None).await?;
        let now = clock::now();
        let mut mirror = shared.mirror();
        for (target, entry) in page.entries {
            mirror.apply(target, entry.ban_end().filter(|until| !until.has_passed(now)));
        }
        below = page.below;
        if below == 0 {
            debug!(bans = mirror.len(), "mirror: filled");
            return Ok(());
        }
    }
}

fn apply(shared: &Shared, batch: &Batch) {
    let mut mirror = shared.mirror();
    for change in &batch.changes {
        let until = change.after.ban_end();
        if until.is_some() && holds_ipv4(change.target) {
            warn!(target = %change.target, "this network is not mirrored: HAProxy would take IPv4 clients for members of it");
        }
        mirror.apply(change.target, until);
    }
}
