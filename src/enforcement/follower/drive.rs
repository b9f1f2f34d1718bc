//! Drives one place: opens it, replaces everything that it holds, then sends changes, and looks at it once a second.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Comparison, PerPlace, Place, PlaceError, Sent, Shared};
use crate::net::throttle::LogThrottle;
use banmesh_core::follow::Traits;

/// How often a place is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The first and the longest pause before a place is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Bans that are sent at once when everything is sent.
const PAGE: usize = 4096;
/// Changes that are sent at once.
const CHANGES: usize = 256;

/// Keeps a place current until `shutdown`, and opens it again after errors.
pub(super) async fn serve<P: Place>(shared: &Shared, index: usize, place: &mut P, shutdown: CancellationToken) {
    let Some(own) = shared.places.get(index) else { return };
    let minute = Duration::from_secs(60);
    let (failures, repairs) = (LogThrottle::new(minute), LogThrottle::new(minute));
    let mut drive = Drive { shared, index, own, place, repairs, pause: PAUSES.0 };
    // A task that panicked may have left another value.
    own.metrics.current.set(0);
    let mut filled = shared.filled.subscribe();
    loop {
        let session = async {
            // Cannot fail: we share the sender.
            let _ = filled.wait_for(|filled| *filled).await;
            drive.follow().await
        };
        let Some(ended) = shutdown.run_until_cancelled(session).await else { return };
        own.metrics.current.set(0);
        match ended {
            Ok(()) => own.health.filling(),
            Err(error) => {
                own.metrics.error(error.kind());
                own.health.failing(error.to_string());
                if error.is_expected() {
                    info!(place = own.name, "{error}; trying again");
                } else if let Some(more) = failures.permit(Instant::now()) {
                    warn!(place = own.name, %error, and_more = more, "this place does not follow the bans; trying again");
                }
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(drive.pause)).await.is_none() {
            return;
        }
        drive.pause = (drive.pause * 2).min(PAUSES.1);
    }
}

struct Drive<'a, P> {
    shared: &'a Shared,
    index: usize,
    own: &'a PerPlace,
    place: &'a mut P,
    repairs: LogThrottle,
    pause: Duration,
}

impl<P: Place> Drive<'_, P> {
    /// Follows until the place fails or the followers start over.
    async fn follow(&mut self) -> Result<(), P::Error> {
        let traits = self.place.open().await?;
        self.replace(traits).await?;
        let entries = self.entries();
        info!(place = self.own.name, entries, "this place has all bans");
        let mut due = tokio::time::Instant::now();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.own.notify.notified() => {
                    // Even a moment that has passed would be waited for until the timer's next tick.
                    if due > tokio::time::Instant::now() {
                        tokio::time::sleep_until(due).await;
                    }
                }
                _ = look.tick() => self.look().await?,
            }
            if !*self.shared.filled.borrow() {
                return Ok(());
            }
            let sent = if self.shared.followers().needs_full_sync(self.index) {
                self.replace(traits).await?;
                true
            } else {
                self.send_changes().await?
            };
            // A place of which too much waits is sent everything by the next round, which this wakes.
            if self.shared.followers().needs_full_sync(self.index) {
                self.own.notify.notify_one();
            }
            // Only a change is followed by a pause: the next one after a mere look goes out at once.
            if sent {
                due = tokio::time::Instant::now() + self.place.interval(self.entries());
            }
            self.pause = PAUSES.0;
        }
    }

    /// Replaces all entries.
    async fn replace(&mut self, traits: Traits) -> Result<(), P::Error> {
        self.own.metrics.current.set(0);
        self.own.health.filling();
        let begun = Instant::now();
        loop {
            let allowlist = {
                let mut followers = self.shared.followers();
                followers.begin(self.index, traits);
                followers.allowlist().clone()
            };
            self.place.begin(&allowlist).await?;
            loop {
                let Some(page) = self.shared.followers().page(self.index, PAGE) else { break };
                self.place.fill(page).await?;
            }
            if !self.shared.followers().needs_full_sync(self.index) {
                self.place.commit().await?;
                break;
            }
        }
        self.send_changes().await?;
        self.own.metrics.syncs.inc();
        self.own.metrics.sync_seconds.set(begun.elapsed().as_secs_f64());
        self.own.metrics.current.set(1);
        self.own.health.current();
        Ok(())
    }

    /// Sends the allowlist, if it changed, and all changes. Returns whether there were any.
    async fn send_changes(&mut self) -> Result<bool, P::Error> {
        let allowlist = self.shared.followers().take_allowlist(self.index);
        let mut sent = allowlist.is_some();
        if let Some(allowlist) = allowlist {
            self.place.allow(&allowlist).await?;
        }
        loop {
            let changes = self.shared.followers().changes(self.index, CHANGES);
            if changes.is_empty() {
                break;
            }
            let count = changes.len() as u64;
            self.place.change(changes).await?;
            sent = true;
            self.own.metrics.changes.inc_by(count);
        }
        let since = self.own.since.lock().take();
        if let Some(since) = since {
            self.own.metrics.lag.set(since.elapsed().as_secs_f64());
            self.own.health.lag(since.elapsed());
        }
        self.own.metrics.entries.set(i64::try_from(self.entries()).unwrap_or(i64::MAX));
        Ok(sent)
    }

    async fn look(&mut self) -> Result<(), P::Error> {
        let found = self.place.look(Sent { shared: self.shared, index: self.index }).await?;
        if found != Comparison::Unchanged {
            self.own.metrics.verified.inc();
        }
        if let Comparison::Differs(reason) = found {
            self.own.metrics.repairs.inc();
            if let Some(more) = self.repairs.permit(Instant::now()) {
                warn!(
                    place = self.own.name,
                    reason,
                    and_more = more,
                    "this place does not hold what it was sent; sending everything again"
                );
            }
            self.shared.followers().invalidate(self.index);
        }
        Ok(())
    }

    fn entries(&self) -> u64 {
        self.shared.followers().sent(self.index).entries
    }
}
