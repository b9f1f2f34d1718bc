//! Mirrors the bans to a map in HAProxy's memory, over HAProxy's runtime API.
//!
//! ```text
//!        changes          instructions
//! store ───────► Mirror ──────────────► one follower per socket ──► HAProxy
//! ```
//!
//! One task feeds the [`Mirror`], which decides what to send. Every follower has a connection and sends it. Followers
//! never delay the store: a follower that lags has a bounded backlog, and replaces the whole map when the backlog is full.

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
use banmesh_types::nat64::Nat64;
use banmesh_types::target::Target;

/// Entries that are read from the store at once.
const PAGE: usize = 8192;
/// How often expired bans are swept: each time at least [`PAGE`] bans, and all of them within a minute.
const SWEEP: Duration = Duration::from_secs(1);

/// The runtime API socket of a HAProxy (`stats socket`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`. A name is resolved for every connection.
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

/// The settings of the mirror (`haproxy.*`).
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// The sockets of all HAProxy processes.
    pub sockets: Vec<Socket>,
    /// The name of the map in each of them.
    pub map: MapName,
    /// How often the map's content is verified.
    pub verify_interval: Duration,
    /// The prefixes in whose form IPv4 targets are also written (`haproxy.nat64`); usually none.
    pub nat64: Nat64,
}

/// The mirrors of all HAProxy processes.
#[derive(Debug)]
pub struct Mirrors {
    config: MirrorConfig,
    store: StoreHandle,
    allowlist: watch::Receiver<Vec<Target>>,
    shared: Arc<Shared>,
}

/// The state that the feeding task and the followers share.
#[derive(Debug)]
struct Shared {
    mirror: Mutex<Mirror>,
    /// Whether the mirror holds all bans of the store. Until then, followers send nothing.
    filled: watch::Sender<bool>,
    wakes: Vec<Wake>,
    metrics: Metrics,
}

/// Wakes a follower when something changed.
#[derive(Debug, Default)]
struct Wake {
    notify: Notify,
    /// Since when a change has been waiting.
    since: Mutex<Option<Instant>>,
}

impl Shared {
    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock()
    }

    fn wake(&self) {
        let waiting: Vec<bool> = {
            let mirror = self.mirror();
            (0..self.wakes.len()).map(|index| mirror.has_changes(index) || mirror.needs_full_sync(index)).collect()
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
    /// Mirrors the bans of `store`, except targets in `allowlist` or in the operators' allowlist.
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

    /// All sockets. [`Mirrors::follow`] takes an index into them.
    pub fn sockets(&self) -> &[Socket] {
        &self.config.sockets
    }

    /// Feeds changes of the store to the followers until `shutdown`. May be called again after it ended; it then starts over.
    pub async fn feed(&self, shutdown: CancellationToken) {
        // The store may end first. Then there are no more changes.
        let _ = shutdown
            .run_until_cancelled(feed(&self.shared, &self.store, self.allowlist.clone(), &self.config.nat64))
            .await;
    }

    /// Keeps the map of one HAProxy current until `shutdown`. The map then stays as it is, and its bans expire on time. May be called
    /// again after it ended; it then starts over.
    pub async fn follow(&self, index: usize, shutdown: CancellationToken) {
        let MirrorConfig { sockets, map, verify_interval, .. } = &self.config;
        let Some(socket) = sockets.get(index) else { return };
        let shared = Arc::clone(&self.shared);
        let follower = follower::Follower::new(index, socket.clone(), map.clone(), *verify_interval, shared);
        follower.serve(shutdown).await;
    }
}

/// Feeds the mirror until the store ends.
async fn feed(shared: &Shared, store: &StoreHandle, mut allowlist: watch::Receiver<Vec<Target>>, nat64: &Nat64) {
    let exempt = store.exempt();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Subscribed before the table is read, so that changes made meanwhile follow in order.
        let mut changes = store.subscribe();
        shared.filled.send_replace(false);
        let mut operators = exempt.load_full();
        {
            let mut mirror = shared.mirror();
            mirror.reset();
            allow(&mut mirror, &allowlist.borrow_and_update(), &operators, nat64);
        }
        if fill(shared, store, nat64).await.is_err() {
            return;
        }
        shared.filled.send_replace(true);
        shared.wake();
        loop {
            tokio::select! {
                batch = changes.recv() => match batch {
                    Ok(batch) => apply(shared, &batch, nat64),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        warn!(missed, "too many changes at once for the mirror; it starts over");
                        break;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = allowlist.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    allow(&mut shared.mirror(), &allowlist.borrow_and_update(), &operators, nat64);
                }
                _ = sweep.tick() => {
                    let mut mirror = shared.mirror();
                    let budget = PAGE.max(mirror.len() / 60);
                    mirror.sweep(clock::now(), budget);
                }
            }
            // The operators' allowlist changes with the table, and when an allowlist entry expires.
            if !Arc::ptr_eq(&exempt.load(), &operators) {
                operators = exempt.load_full();
                allow(&mut shared.mirror(), &allowlist.borrow(), &operators, nat64);
            }
            shared.wake();
        }
    }
}

/// Sets both allowlists, the configured one and that of the operators. Exceptions apply only to the latter.
fn allow(mirror: &mut Mirror, configured: &[Target], operators: &Exempt, nat64: &Nat64) {
    let members = configured.iter().copied().chain(operators.allowed.members());
    let members = members.flat_map(|target| nat64.twins(target).chain([target])).collect();
    let free = |target: &Target| !configured.iter().any(|member| member.covers(*target));
    let exceptions = operators.exceptions.iter().filter(|(target, _)| free(target));
    let exceptions =
        exceptions.flat_map(|(target, until)| nat64.twins(*target).chain([*target]).map(|target| (target, *until)));
    mirror.allow(members, exceptions.collect());
}

/// Reads all bans in force into the mirror.
async fn fill(shared: &Shared, store: &StoreHandle, nat64: &Nat64) -> Result<(), crate::decisions::store::StoreGone> {
    let mut below = usize::MAX;
    loop {
        let page = store.scan(below, PAGE, None).await?;
        let now = clock::now();
        let mut mirror = shared.mirror();
        for (target, entry) in page.entries {
            let until = entry.ban_end().filter(|until| !until.has_passed(now));
            nat64.twins(target).chain([target]).for_each(|target| mirror.apply(target, until));
        }
        below = page.below;
        if below == 0 {
            debug!(bans = mirror.len(), "mirror: filled");
            return Ok(());
        }
    }
}

fn apply(shared: &Shared, batch: &Batch, nat64: &Nat64) {
    let mut mirror = shared.mirror();
    for change in &batch.changes {
        let until = change.after.ban_end();
        if until.is_some() && holds_ipv4(change.target) {
            warn!(target = %change.target, "this network is not mirrored, because HAProxy would match IPv4 clients with it");
        }
        nat64.twins(change.target).chain([change.target]).for_each(|target| mirror.apply(target, until));
    }
}
