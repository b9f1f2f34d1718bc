//! Collects notices: local changes of the ban table, membership changes, alarms.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{HookQueue, Metrics};
use crate::clock;
use crate::cluster::ClusterHandle;
use crate::decisions::batch::{Batch, Source};
use crate::decisions::geo::{Geo, Origin};
use crate::decisions::store::StoreHandle;
use crate::operation::webhooks::notice::{Event, Notice};
use banmesh_cluster::roster::{MembershipChange, Roster};
use banmesh_core::alarm::{Alarms, Condition};
use banmesh_core::ban::State;
use banmesh_core::ledger::Change;

/// Returns the present conditions for alarms. Must not block.
pub type Conditions = Arc<dyn Fn() -> Vec<Condition> + Send + Sync>;

/// The interval at which members and conditions are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The sources of notices.
pub struct Sources {
    changes: Receiver<Arc<Batch>>,
    cluster: Option<ClusterHandle>,
    conditions: Conditions,
    geo: Option<Geo>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("cluster", &self.cluster.is_some()).finish_non_exhaustive()
    }
}

impl Sources {
    /// Every change of `store` from now on, the members of `cluster`, and `conditions`.
    pub fn new(store: &StoreHandle, cluster: Option<ClusterHandle>, conditions: Conditions) -> Self {
        Self { changes: store.subscribe(), cluster, conditions, geo: None }
    }

    /// Adds the country and network of targets.
    #[must_use]
    pub fn with_geo(self, geo: Option<Geo>) -> Self {
        Self { geo, ..self }
    }
}

/// Collects notices and queues them for the hooks.
#[derive(Debug)]
pub struct Feed {
    queues: Vec<HookQueue>,
    sources: Sources,
    metrics: Metrics,
    alarms: Alarms,
    roster: Roster,
}

impl Feed {
    pub(super) fn new(queues: Vec<HookQueue>, sources: Sources, metrics: Metrics) -> Self {
        Self { queues, sources, metrics, alarms: Alarms::default(), roster: Roster::default() }
    }

    /// Runs until `shutdown`. Can be called again after it has ended.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                received = self.sources.changes.recv() => match received {
                    Ok(batch) => self.changed(&batch),
                    Err(RecvError::Closed) => return,
                    // A count of batches: the number of notices in them is unknown.
                    Err(RecvError::Lagged(batches)) => {
                        for hook in &self.queues {
                            self.drop_some(hook, batches);
                        }
                    }
                },
                _ = check.tick() => self.check(),
            }
        }
    }

    fn changed(&self, batch: &Batch) {
        if batch.source != Source::Local {
            return;
        }
        for event in batch.changes.iter().filter_map(event) {
            self.send(event);
        }
    }

    fn check(&mut self) {
        for alarm in self.alarms.look(clock::now(), (self.sources.conditions)()) {
            self.send(Event::Alarm(alarm));
        }
        if let Some(members) = self.sources.cluster.as_ref().map(ClusterHandle::members) {
            for MembershipChange { node, presence, .. } in self.roster.look(&members) {
                self.send(Event::Cluster { node, presence });
            }
        }
    }

    fn send(&self, event: Event) {
        let origin = match (&self.sources.geo, &event) {
            (Some(geo), Event::Ban { target, .. } | Event::Unban { target, .. } | Event::Allow { target, .. }) => {
                geo.origin(target.address().into())
            }
            _ => Origin::default(),
        };
        let notice = Notice { at: clock::now(), event, origin };
        for hook in &self.queues {
            let wanted = hook.topics.contains(&notice.topic())
                && notice.filter().is_none_or(|by| hook.filters.is_empty() || hook.filters.iter().any(|f| f == by));
            if wanted && hook.queue.try_send(notice.clone()).is_err() {
                self.drop_some(hook, 1);
            }
        }
    }

    fn drop_some(&self, hook: &HookQueue, notices: u64) {
        self.metrics.notices(&hook.name, "dropped", notices);
        hook.dropped.add(notices);
    }
}

/// The event for `change`; `None` when it only extends the retention of an entry.
fn event(change: &Change) -> Option<Event> {
    let target = change.target;
    let entry = change.announcement(clock::now())?;
    let (by, reason) = (entry.cause.by.clone(), entry.cause.reason.to_string());
    Some(match entry.state {
        State::Banned { until } | State::Expired { until } => {
            Event::Ban { target, until, bans: change.after.bans, by, reason }
        }
        State::Allowed { until } => Event::Allow { target, until, by, reason },
        State::Unbanned => Event::Unban { target, by, reason },
    })
}
