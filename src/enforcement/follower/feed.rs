//! Feeds the followers: all bans of the store at first, then its changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tracing::{debug, warn};

use super::Shared;
use crate::clock;
use crate::decisions::store::{StoreGone, StoreHandle};
use banmesh_core::exemptions::Exempt;
use banmesh_core::follow::Followers;
use banmesh_types::target::Target;

/// Entries that are read from the store at once.
const PAGE: usize = 8192;
/// How often expired bans are swept: each time at least [`PAGE`] bans, and all of them within a minute.
const SWEEP: Duration = Duration::from_secs(1);

/// Feeds the followers until the store ends.
pub(super) async fn feed(shared: &Shared, store: &StoreHandle, mut allowlist: watch::Receiver<Vec<Target>>) {
    let exempt = store.exempt();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Subscribed before the table is read, so that changes made meanwhile follow in order.
        let mut changes = store.subscribe();
        shared.filled.send_replace(false);
        let mut operators = exempt.load_full();
        {
            let mut followers = shared.followers();
            followers.reset();
            allow(&mut followers, &allowlist.borrow_and_update(), &operators);
        }
        if fill(shared, store).await.is_err() {
            return;
        }
        shared.filled.send_replace(true);
        shared.wake();
        loop {
            tokio::select! {
                batch = changes.recv() => match batch {
                    Ok(batch) => {
                        let mut followers = shared.followers();
                        for change in &batch.changes {
                            let until = change.after.ban_end();
                            if until.is_some() && followers.is_left_out(change.target) {
                                warn!(
                                    target = %change.target,
                                    "this network is not in HAProxy's map, because HAProxy would match IPv4 clients with it"
                                );
                            }
                            followers.apply(change.target, until);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        warn!(missed, "too many changes at once for the places where bans hold; they are sent everything again");
                        break;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = allowlist.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    allow(&mut shared.followers(), &allowlist.borrow_and_update(), &operators);
                }
                _ = sweep.tick() => {
                    let mut followers = shared.followers();
                    let budget = PAGE.max(followers.len() / 60);
                    followers.sweep(clock::now(), budget);
                }
            }
            // The operators' allowlist changes with the table, and when an allowlist entry expires.
            if !Arc::ptr_eq(&exempt.load(), &operators) {
                operators = exempt.load_full();
                allow(&mut shared.followers(), &allowlist.borrow(), &operators);
            }
            shared.wake();
        }
    }
}

fn allow(followers: &mut Followers, configured: &[Target], operators: &Exempt) {
    followers.allow(configured.to_vec(), operators.allowed.members().collect(), operators.exceptions.clone());
}

/// Reads all bans in force.
async fn fill(shared: &Shared, store: &StoreHandle) -> Result<(), StoreGone> {
    let mut below = usize::MAX;
    loop {
        let page = store.scan(below, PAGE, None).await?;
        let now = clock::now();
        let mut followers = shared.followers();
        for (target, entry) in page.entries {
            followers.apply(target, entry.ban_end().filter(|until| !until.has_passed(now)));
        }
        below = page.below;
        if below == 0 {
            debug!(bans = followers.len(), "followers: filled");
            return Ok(());
        }
    }
}
