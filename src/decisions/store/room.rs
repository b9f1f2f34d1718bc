//! Removes entries from the table: those whose retention has passed, and history when the table is full.

use std::time::Instant;

use tracing::{debug, error, warn};

use super::{Command, Store, clock};
use banmesh_core::ban::BanEntry;
use banmesh_core::ledger::Limit;
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Rows that are swept before the next commands are applied.
const SWEEP_STEP: usize = 8192;

/// The targets for which `commands` may add an entry.
pub(super) fn targets_of(commands: &[Command]) -> Vec<Target> {
    let mut targets = Vec::new();
    for command in commands {
        match command {
            Command::Offence(order) => targets.push(order.target),
            Command::Ban { target, .. } | Command::Allow { target, .. } => targets.push(*target),
            Command::Merge { entries, .. } => {
                targets.extend(entries.iter().map(|(target, _): &(Target, BanEntry)| *target))
            }
            _ => {}
        }
    }
    targets
}

impl Store {
    /// Drops history if the table has no room for `targets`. Nothing is dropped shortly after the clock was set, because bans in force may
    /// then look as if they had ended.
    pub(super) async fn make_room(&mut self, targets: Vec<Target>) {
        let Some(new) = self.ledger.needs_room(targets.into_iter()) else { return };
        self.watch_clock().await;
        if !self.may_sweep() {
            return;
        }
        let now = clock::now();
        let dropped = self.ledger.make_room(new, now);
        if dropped.is_empty() {
            return;
        }
        self.metrics.dropped(dropped.len());
        if let Some(more) = self.dropped.permit(Instant::now()) {
            warn!(
                entries = dropped.len(),
                and_more = more,
                "the ban table is nearly full, so expired bans are dropped on all nodes, the oldest first, and their sources start again with \
                 the shortest ban: raise ban.max_bans and the memory limit, or shorten ban.max_memory_ttl"
            );
        }
        self.removed(dropped, now).await;
    }

    pub(super) async fn sweep(&mut self) {
        self.watch_clock().await;
        if !self.may_sweep() {
            self.sweep_left = 0;
            return;
        }
        let now = clock::now();
        let step = self.sweep_left.min(SWEEP_STEP);
        self.sweep_left -= step;
        let removed = self.ledger.sweep(now, step);
        if !removed.is_empty() {
            debug!(entries = removed.len(), "expired entries removed");
            self.removed(removed, now).await;
        }
    }

    /// Counts and logs a record of another node that exceeds a limit.
    pub(super) fn refuse(&self, limit: Limit, target: Target, node: &NodeId) {
        let Some(more) = self.refused.permit(Instant::now()) else { return };
        let fix = match limit {
            Limit::Full => {
                "the ban table is full, so the tables of the nodes differ: set the same ban.max_bans on all nodes, and raise it"
            }
            Limit::Allowlist => {
                "the allowlist is full, so the tables of the nodes differ: remove entries that are no longer needed"
            }
            Limit::Width => {
                "no node of this build writes such a wide network: check the node that wrote it, and replace cluster.secret_file if it is not yours"
            }
        };
        error!(%target, %node, and_more = more, "a record of another node was refused: {fix}");
    }

    async fn removed(&mut self, removed: Vec<Target>, now: UnixMillis) {
        for target in &removed {
            self.view.set(*target, Expiry::PAST, now);
        }
        self.publish_exempt();
        if let Some(journal) = &self.journal {
            journal.remove(removed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::decisions::store::{Metrics, StoreHandle};
    use crate::decisions::view::View;
    use banmesh_core::attempts::Recognised;
    use banmesh_core::ban::{By, Cause};
    use banmesh_core::hlc::Hlc;
    use banmesh_core::judge::BanOrder;
    use banmesh_core::ledger::{BanTerms, Ledger, Limits, Refused};
    use banmesh_core::policy::BanPolicy;

    const DAY: Duration = Duration::from_secs(86_400);

    fn start() -> StoreHandle {
        let limits = Limits { max_bans: 160, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let (_, writer) = View::new();
        let (store, handle) = Store::new(ledger, writer, None, DAY, Metrics::default());
        tokio::spawn(store.serve(CancellationToken::new()));
        handle
    }

    fn numbered(n: u32) -> Target {
        Target::host(std::net::IpAddr::V4((0xc612_0000 + n).into()).into())
    }

    async fn offend(store: &StoreHandle, target: Target) {
        let policy = BanPolicy {
            max_attempts: 5,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(1),
            max_ban_time: DAY,
            escalation_factor: 2.0,
            max_memory_ttl: DAY,
        };
        let by = Recognised { filter: "sshd".into(), rule: "failed-password".into() };
        store.offence(BanOrder { target, by, attempts: 5, policy: Arc::new(policy) }).await.unwrap();
    }

    async fn until_none_is_in_force(store: &StoreHandle) {
        while store.summary().await.unwrap().active > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_table_full_of_expired_bans_accepts_new_ones() {
        let store = start();
        for n in 0..150 {
            offend(&store, numbered(n)).await;
        }
        assert_eq!(store.summary().await.unwrap().entries, 150);
        until_none_is_in_force(&store).await;
        offend(&store, numbered(200)).await;
        let summary = store.summary().await.unwrap();
        assert_eq!((summary.entries, summary.dropped, summary.refused), (1, 150, 0));
        assert_ne!(summary.cut, banmesh_core::retention::Cut::default());
    }

    #[tokio::test]
    async fn a_bulk_request_drops_expired_bans_too() {
        let store = start();
        for n in 0..150 {
            offend(&store, numbered(n)).await;
        }
        until_none_is_in_force(&store).await;
        let targets: Vec<Target> = (1000..1155).map(numbered).collect();
        let terms = BanTerms::new(Expiry::NEVER, DAY);
        let cause = Arc::new(Cause::new(By::Operator("ann".into()), "list"));
        assert_eq!(
            store.bulk(&targets, &crate::decisions::store::Bulk::Ban(terms, Arc::clone(&cause))).await.unwrap(),
            []
        );
        // Now every entry is in force, and only operators may use the rest.
        offend(&store, numbered(300)).await;
        assert_eq!(store.summary().await.unwrap().refused, 1);
        assert!(store.ban(numbered(301), terms, Cause::clone(&cause)).await.unwrap().is_ok());
        for n in 302..306 {
            store.ban(numbered(n), terms, Cause::clone(&cause)).await.unwrap().unwrap();
        }
        let refused = store.ban(numbered(306), terms, Cause::clone(&cause)).await.unwrap();
        assert!(matches!(refused, Err(Refused::Full { max: 160, .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn discarding_removes_expired_bans_at_once() {
        let store = start();
        for n in 0..20 {
            offend(&store, numbered(n)).await;
        }
        until_none_is_in_force(&store).await;
        assert_eq!(store.discard().await.unwrap(), 20);
        // The sweep follows in its own time, long before the cleanup interval of this store.
        while store.summary().await.unwrap().entries > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
