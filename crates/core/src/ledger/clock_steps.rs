//! Corrections to a ledger after a step of its node's clock.

use std::sync::Arc;
use std::time::Duration;

use super::{Change, Ledger, Write};
use crate::ban::{BanEntry, Decision};
use crate::hlc::Stamp;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

impl Ledger {
    /// Recomputes what depends on the time, after a step of the clock to `now`: the number of bans in force, and the allowlist.
    pub fn recount(&mut self, now: UnixMillis) {
        self.table.recount(now);
        let (found, _) = self.table.scan(usize::MAX, usize::MAX);
        for (target, entry) in found.filter(|(_, entry)| entry.operator().is_some()) {
            self.exemptions.update(target, Some(&entry), now);
        }
        self.exemptions.expire(now);
    }

    /// Shortens the bans and allowlist entries that this node wrote since `since` by `back`, after its clock was set back by `back` to `now`.
    /// Their ends were computed from a wrong time, and would come too late by `back`.
    pub fn shorten_own(&mut self, back: Duration, since: UnixMillis, now: UnixMillis) -> Vec<Change> {
        let before = now.plus(back);
        let wrong = |stamp: &Stamp, until: Expiry| {
            let own = stamp.node == self.node && stamp.hlc.millis() >= since;
            (own && until != Expiry::NEVER && !until.has_passed(before))
                .then(|| Expiry::at(UnixMillis(u64::from(until.seconds()) * 1000).minus(back)))
        };
        // Of two registers, only the later one is rewritten. Rewriting the earlier one would make it the later one.
        let shorter = |(target, entry): (Target, BanEntry)| {
            let later = |stamp: &Stamp| stamp == entry.latest();
            let filter = entry.filter().filter(|filter| later(&filter.stamp));
            let write = match (entry.operator().filter(|operator| later(&operator.stamp)), filter) {
                (Some(operator), _) => match operator.value {
                    Decision::Banned { until } => Decision::Banned { until: wrong(&operator.stamp, until)? },
                    Decision::Allowed { until } => Decision::Allowed { until: wrong(&operator.stamp, until)? },
                    Decision::Unbanned => return None,
                }
                .into(),
                (None, filter) => filter.and_then(|filter| wrong(&filter.stamp, filter.value)).map(Write::Filter)?,
            };
            let cause = entry.effective(now).cause;
            // Directly after the entry, so that what another node decides at this moment, and has seen the entry, is later.
            let hlc = entry.latest().hlc.checked_next()?;
            Some((hlc, target, write, (entry.bans, entry.keep), Arc::clone(cause)))
        };
        let (found, _) = self.table.scan(usize::MAX, usize::MAX);
        let shorter: Vec<_> = found.filter_map(shorter).collect();
        // If a write fails, the later end remains, which is safe.
        let written = shorter
            .into_iter()
            .map(|(hlc, target, write, history, cause)| self.write_at(hlc, target, write, history, cause, now));
        written.filter_map(Result::ok).collect()
    }
}
