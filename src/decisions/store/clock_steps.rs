//! What the store does when the wall clock of its node was set.

use std::time::Duration;

use tracing::warn;

use super::Store;
use crate::clock;
use crate::decisions::batch::Source;
use banmesh_core::clock_step::SUSPENSION;
use banmesh_core::ledger::Change;
use banmesh_types::time::{Span, UnixMillis};

impl Store {
    /// Checks whether the wall clock was set. If so, recomputes what was derived from the time. If it was set back, bans that this node made
    /// in the meantime are shortened by as much.
    pub(super) async fn watch_clock(&mut self) {
        let Some(step) = clock::reading().and_then(|reading| self.clock.read(reading)) else { return };
        let (now, by) = (step.noticed, Duration::from_millis(step.by_ms.unsigned_abs()));
        let since = std::mem::replace(&mut self.clock_since, now);
        self.ledger.recount(now);
        let again = if step.by_ms < 0 { self.in_force_again(by, now) } else { Vec::new() };
        let shortened = if step.by_ms < 0 { self.ledger.shorten_own(by, since, now) } else { Vec::new() };
        let (direction, entries) = (if step.by_ms < 0 { "back" } else { "forward" }, shortened.len());
        warn!(
            by = %Span(by),
            direction,
            shortened = entries,
            keeping = %Span(SUSPENSION),
            "the clock of this node was set: expired entries are kept for a while, and bans that this node made with the wrong time are \
             shortened. Check NTP unless somebody set the clock on purpose"
        );
        self.metrics.clock_was_set(step);
        self.publish(Source::Remote, again, Vec::new()).await;
        self.publish(Source::Local, shortened, Vec::new()).await;
        self.publish_exempt();
    }

    /// The bans that had expired before the clock was set back by `back` to `now`. Lookups and HAProxy's maps may have dropped them, so they
    /// are published again.
    fn in_force_again(&self, back: Duration, now: UnixMillis) -> Vec<Change> {
        let before = now.plus(back);
        let (found, _) = self.ledger.table().scan(usize::MAX, usize::MAX);
        let again = found.filter(|(_, entry)| {
            entry.ban_end().is_some_and(|until| !until.has_passed(now) && until.has_passed(before))
        });
        again.map(|(target, entry)| Change { target, before: Some(entry.clone()), after: entry }).collect()
    }

    /// Whether expired entries may be removed. After the clock was set they are kept for a while, because it may be set again.
    pub(super) fn may_sweep(&self) -> bool {
        clock::reading().is_none_or(|reading| self.clock.sweeping_suspended(reading.steady).is_none())
    }
}
