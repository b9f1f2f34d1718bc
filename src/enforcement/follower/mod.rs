//! Keeps every place where bans hold in step with the table.
//!
//! ```text
//!        changes             entries, changes
//! store ───────► Followers ────────────────────► one Place per follower ──► HAProxy, kernel, …
//! ```
//!
//! One task ([`Following::feed`]) feeds the [`Followers`], which decide what to send. One task per place ([`Following::follow`]) sends
//! it. Places never delay the store: a place that lags has a bounded backlog, and is sent everything again when the backlog is full.
//!
//! A new place implements [`Place`] and is added in `app::places`; see ARCHITECTURE.md.

mod drive;
mod feed;
mod health;
mod metrics;
mod place;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use health::{PlaceHealth, PlaceState};
pub use metrics::Metrics;
pub use place::{Comparison, Place, PlaceError, Sent};

use crate::decisions::store::StoreHandle;
use banmesh_core::follow::Followers;
use banmesh_types::nat64::Nat64;
use banmesh_types::target::Target;
use health::Health;
use metrics::OfPlace;

/// All places that follow the table.
#[derive(Debug)]
pub struct Following {
    store: StoreHandle,
    allowlist: watch::Receiver<Vec<Target>>,
    shared: Arc<Shared>,
}

/// A place before it is followed.
#[derive(Clone, Debug)]
pub struct NewPlace {
    /// Its name in the status, the log and the metrics, such as `haproxy /run/haproxy/admin.sock`.
    pub name: String,
    /// The prefixes in whose form it also needs IPv4 targets; usually none.
    pub nat64: Nat64,
}

/// The state that the feeding task and the places share.
#[derive(Debug)]
struct Shared {
    followers: Mutex<Followers>,
    /// Whether the followers know all bans of the store. Until then, nothing is sent.
    filled: watch::Sender<bool>,
    places: Vec<PerPlace>,
}

/// What is kept for each place.
#[derive(Debug)]
struct PerPlace {
    name: String,
    /// Wakes its task when something changed.
    notify: Notify,
    /// Since when a change has been waiting.
    since: Mutex<Option<Instant>>,
    health: Health,
    metrics: OfPlace,
}

impl Shared {
    fn followers(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock()
    }

    fn wake(&self) {
        let waiting: Vec<bool> = {
            let followers = self.followers();
            let waits = |index| followers.waiting(index) > 0 || followers.needs_full_sync(index);
            (0..self.places.len()).map(waits).collect()
        };
        for (place, waits) in self.places.iter().zip(waiting) {
            if waits {
                place.since.lock().get_or_insert_with(Instant::now);
                place.notify.notify_one();
            }
        }
    }
}

impl Following {
    /// Lets `places` follow the bans of `store`, except targets in `allowlist` or in the operators' allowlist. They are numbered from 0.
    pub fn new(
        store: StoreHandle,
        allowlist: watch::Receiver<Vec<Target>>,
        places: Vec<NewPlace>,
        metrics: &Metrics,
    ) -> Self {
        let followers = Mutex::new(Followers::new(places.iter().map(|place| place.nat64.clone())));
        let per_place = |place: NewPlace| PerPlace {
            metrics: metrics.of(&place.name),
            name: place.name,
            notify: Notify::new(),
            since: Mutex::new(None),
            health: Health::default(),
        };
        let places = places.into_iter().map(per_place).collect();
        let shared = Arc::new(Shared { followers, filled: watch::Sender::new(false), places });
        Self { store, allowlist, shared }
    }

    /// The name of the place with this number.
    pub fn name(&self, index: usize) -> &str {
        self.shared.places.get(index).map_or("", |place| &place.name)
    }

    /// Feeds changes of the store to the followers until `shutdown`. May be called again after it ended; it then starts over.
    pub async fn feed(&self, shutdown: CancellationToken) {
        // The store may end first. Then there are no more changes.
        let _ = shutdown.run_until_cancelled(feed::feed(&self.shared, &self.store, self.allowlist.clone())).await;
    }

    /// Keeps the place with this number current until `shutdown`. The place then stays as it is. May be called again after it ended; it
    /// then starts over.
    pub async fn follow<P: Place>(&self, index: usize, place: &mut P, shutdown: CancellationToken) {
        drive::serve(&self.shared, index, place, shutdown).await;
    }

    /// A reader of how all places are.
    pub fn health(&self) -> impl Fn() -> Vec<PlaceHealth> + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            let followers = shared.followers();
            let place = |(index, place): (usize, &PerPlace)| {
                place.health.read(&place.name, followers.sent(index).entries, followers.waiting(index))
            };
            shared.places.iter().enumerate().map(place).collect()
        }
    }
}

#[cfg(test)]
mod tests;
