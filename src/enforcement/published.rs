//! The bans in memory, as a place that follows the table, for clients that poll: CrowdSec's bouncers and appliances that fetch lists.
//!
//! [`PublishedBans`] is what the listeners read. See [`banmesh_core::published`] for what it holds.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::follower::{Comparison, Place, Sent};
use crate::clock;
use banmesh_core::follow::{Allowlist, Change, Form, Traits};
use banmesh_core::published::{Decision, Published, Steady};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// A large snapshot of this age is still used for further answers, in milliseconds. It is much shorter than the overlap of windows.
const FRESH: u64 = 1000;
/// The values from which a snapshot is large, so that many clients that start at once do not take one each.
const LARGE: usize = 50_000;
/// How long a request waits for the bans to be complete.
const PATIENCE: Duration = Duration::from_millis(2500);

/// Returns the name of a key, or `None` if the key is unknown or has expired.
pub type KeyCheck = Arc<dyn Fn(&[u8]) -> Option<Arc<str>> + Send + Sync>;

/// The client that sends a request, behind trusted proxies. The listener adds it to every request.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub Address);

/// The bans as clients that poll see them; clones share them.
#[derive(Clone, Debug)]
pub struct PublishedBans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    published: RwLock<Published>,
    complete: watch::Sender<bool>,
    started: Instant,
    cached: Mutex<Option<Arc<Snapshot>>>,
}

/// All values in force at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The values, sorted and without repetitions.
    pub decisions: Vec<Decision>,
    /// The digests of the IPv4 and the IPv6 values: see [`Published::digest`].
    pub digests: [u64; 2],
    version: u64,
    at: Steady,
}

impl Snapshot {
    /// Whether `value` is in force.
    pub fn has(&self, value: Target) -> bool {
        self.decisions.binary_search_by_key(&value, |decision| decision.value).is_ok()
    }
}

impl Default for PublishedBans {
    fn default() -> Self {
        Self(Arc::new(Shared {
            published: RwLock::default(),
            complete: watch::Sender::new(false),
            started: Instant::now(),
            cached: Mutex::default(),
        }))
    }
}

impl PublishedBans {
    /// The time on the steady clock of these bans.
    pub fn steady(&self) -> Steady {
        Steady(u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits a moment until the bans are complete. Returns whether they are.
    pub async fn is_complete(&self) -> bool {
        let mut complete = self.0.complete.subscribe();
        // The sender lives as long as these bans.
        tokio::time::timeout(PATIENCE, complete.wait_for(|complete| *complete)).await.is_ok()
    }

    /// Whether the bans are complete now.
    pub fn is_complete_now(&self) -> bool {
        *self.0.complete.borrow()
    }

    /// Reads the bans as they are at this moment.
    pub fn read<T>(&self, read: impl FnOnce(&Published, UnixMillis) -> T) -> T {
        let now = clock::now();
        self.0.published.write().tick(now, self.steady());
        read(&self.0.published.read(), now)
    }

    /// The digests of the IPv4 and the IPv6 values in force.
    pub fn digests(&self) -> [u64; 2] {
        self.read(|published, _| digests(published))
    }

    /// All values in force. With many values it may be a second old.
    pub async fn snapshot(&self) -> Arc<Snapshot> {
        let this = self.clone();
        // Takes tens of milliseconds for a million bans.
        let taken = tokio::task::spawn_blocking(move || this.take_snapshot());
        match taken.await {
            Ok(snapshot) => snapshot,
            Err(_) => self.take_snapshot(),
        }
    }

    fn take_snapshot(&self) -> Arc<Snapshot> {
        // Held meanwhile, so that clients that ask at once share one snapshot.
        let mut cached = self.0.cached.lock();
        let at = self.steady();
        self.read(|published, now| {
            let version = published.version();
            let is_recent = |old: &Snapshot| at.0.saturating_sub(old.at.0) < FRESH && old.decisions.len() >= LARGE;
            let usable = |old: &&Arc<Snapshot>| old.version == version || is_recent(old);
            if let Some(old) = cached.as_ref().filter(usable) {
                return Arc::clone(old);
            }
            let taken =
                Arc::new(Snapshot { decisions: published.snapshot(now), digests: digests(published), version, at });
            *cached = Some(Arc::clone(&taken));
            taken
        })
    }

    fn write<T>(&self, write: impl FnOnce(&mut Published, UnixMillis, Steady) -> T) -> T {
        let mut published = self.0.published.write();
        write(&mut published, clock::now(), self.steady())
    }

    /// Ends what has passed, and frees a snapshot that nobody needs any longer.
    fn tick(&self) {
        self.write(Published::tick);
        let at = self.steady();
        self.0.cached.lock().take_if(|old| at.0.saturating_sub(old.at.0) >= FRESH);
    }
}

fn digests(published: &Published) -> [u64; 2] {
    [published.digest(true), published.digest(false)]
}

/// Applies the changes of the table to [`PublishedBans`].
#[derive(Debug, Default)]
pub struct PublishedPlace {
    bans: PublishedBans,
    next: Vec<(Target, Expiry)>,
    allowlist: Allowlist,
}

impl PublishedPlace {
    /// The place that fills `bans`.
    pub fn new(bans: PublishedBans) -> Self {
        Self { bans, ..Self::default() }
    }
}

impl Place for PublishedPlace {
    // Memory does not fail.
    type Error = Infallible;

    async fn open(&mut self) -> Result<Traits, Infallible> {
        Ok(Traits { form: Form::Own, slow: false, expires: true })
    }

    async fn begin(&mut self, allowlist: &Allowlist) -> Result<(), Infallible> {
        self.next = Vec::new();
        self.allowlist = allowlist.clone();
        Ok(())
    }

    async fn fill(&mut self, page: Vec<(Target, u32)>) -> Result<(), Infallible> {
        self.next.extend(page.into_iter().map(|(target, until)| (target, Expiry::from_seconds(until))));
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), Infallible> {
        let (next, allowlist) = (std::mem::take(&mut self.next), std::mem::take(&mut self.allowlist));
        self.bans.write(|published, now, at| published.replace(next, &allowlist, now, at));
        self.bans.0.complete.send_replace(true);
        Ok(())
    }

    async fn change(&mut self, changes: Vec<Change>) -> Result<(), Infallible> {
        self.bans.write(|published, now, at| {
            for change in changes {
                match change {
                    Change::Add(target, until) | Change::Set(target, until) => {
                        published.apply(target, Some(Expiry::from_seconds(until)), now, at);
                    }
                    Change::Remove(target) => published.apply(target, None, now, at),
                }
            }
        });
        Ok(())
    }

    async fn allow(&mut self, allowlist: &Allowlist) -> Result<(), Infallible> {
        self.bans.write(|published, _, at| published.allow(allowlist, at));
        Ok(())
    }

    async fn look(&mut self, _: Sent<'_>) -> Result<Comparison, Infallible> {
        self.bans.tick();
        Ok(Comparison::Unchanged)
    }
}
