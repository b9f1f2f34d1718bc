//! How long an entry is kept, and the [`Cut`] with which a full cluster removes entries sooner.
//!
//! # Why a removed entry does not return as a ban
//!
//! An entry that has no effect is kept for two reasons. The history of an offender makes its next ban longer. A decision of an operator must
//! win over late copies of the ban that it ended. Losing history is harmless; losing such a decision is not, because a node that
//! has not received it still holds the ban, and repair would bring that ban back.
//!
//! - [`Cut::retention`] removes history only: entries whose bans have all ended by themselves. An unban, an allowlist entry, and an entry
//!   whose `keep` is [`Expiry::NEVER`] are never removed by it. A ban that replaces a longer one is written with that `keep`
//!   (see `Ledger::ban`), so it is not history either. A late copy of a removed entry is the entry itself or an older one: its bans have
//!   ended as well.
//! - [`Cut::written`] removes all entries without effect that were written before, on an operator's command. The node that accepts the command
//!   first checks that all members are alive and have equal tables. No member then holds a ban that one of these entries ended.
//! - [`DECISION_RETENTION`] ends tombstones of permanent bans. It is counted from the stamp, so all nodes remove them together. A node that
//!   was disconnected for longer must start with an empty data directory (docs/cluster.md).
//!
//! # Why the tables converge
//!
//! The retention of an entry is a function of the entry and the cut. The cut is the pair of two maxima, so it is a join-semilattice, and
//! every node publishes its own and adopts those of the others. Once all nodes have the same cut, they agree about which entries count as
//! absent, and a node that receives one that is absent refuses it. Until then a node may send a removed entry to another once more, which
//! refuses it or removes it with the next sweep. A cut is not saved: after a restart, entries that return are history that has no effect.

use std::time::Duration;

use crate::ban::{BanEntry, Decision};
use crate::hlc::Hlc;
use banmesh_types::time::{Expiry, UnixMillis};

/// How long after its stamp an operator's decision is kept once it has no effect, even if it ended a permanent ban. A constant and not a
/// setting, because all nodes must remove it together.
pub const DECISION_RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// Which entries without effect count as absent before their retention has passed. Merged by maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// History with a `keep` up to this one counts as absent. Raised by a full table.
    pub retention: Expiry,
    /// Entries written before this reading count as absent once they have no effect. Raised by an operator.
    pub written: Hlc,
}

impl Default for Cut {
    /// Removes nothing.
    fn default() -> Self {
        Self { retention: Expiry::PAST, written: Hlc(0) }
    }
}

impl Cut {
    /// Returns the cut that removes what either of the two removes.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self { retention: self.retention.max(other.retention), written: self.written.max(other.written) }
    }

    /// As nodes publish it.
    pub fn to_text(self) -> String {
        format!("{:08x}:{:016x}", self.retention.seconds(), self.written.0)
    }

    /// The inverse of [`Cut::to_text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let (retention, written) = text.split_once(':')?;
        let retention = Expiry::from_seconds(u32::from_str_radix(retention, 16).ok()?);
        Some(Self { retention, written: Hlc(u64::from_str_radix(written, 16).ok()?) })
    }
}

impl BanEntry {
    /// Returns until when the entry must be kept if `cut` is in force. Never earlier than the end of a ban or an allowlist entry in it.
    pub fn retention(&self, cut: Cut) -> Expiry {
        let (end, latest) = (self.end(), self.latest().hlc);
        if latest < cut.written || (self.keep <= cut.retention && self.is_history()) {
            return self.keep.min(end);
        }
        if self.operator().is_none() || self.keep <= end {
            return self.keep;
        }
        self.keep.min(end.max(Expiry::at_minute(latest.millis().plus(DECISION_RETENTION))))
    }

    /// Returns `true` if the entry has no effect at `now`, and nothing but the escalation of later bans is lost with it.
    pub fn is_droppable(&self, now: UnixMillis) -> bool {
        self.is_history() && self.end().has_passed(now)
    }

    /// Returns `true` if the entry has no effect at `now`.
    pub fn has_no_effect(&self, now: UnixMillis) -> bool {
        self.end().has_passed(now)
    }

    /// Returns the latest end of the bans and the allowlist entry in it; [`Expiry::PAST`] if there is none.
    pub(crate) fn end(&self) -> Expiry {
        let decided = self.operator().map(|operator| match operator.value {
            Decision::Unbanned => Expiry::PAST,
            Decision::Banned { until } | Decision::Allowed { until } => until,
        });
        self.filter().map(|filter| filter.value).max(decided).unwrap_or(Expiry::PAST)
    }

    /// Returns `true` if the entry ended no ban of an earlier entry, so that it is only history once its own bans have ended.
    pub(crate) fn is_history(&self) -> bool {
        let ended_by_itself = |decision: Decision| matches!(decision, Decision::Banned { .. });
        self.keep != Expiry::NEVER && self.operator().is_none_or(|operator| ended_by_itself(operator.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ban::tests::entries;
    use proptest::prelude::*;

    fn cuts() -> impl Strategy<Value = Cut> {
        (0u32..5, 0u64..5).prop_map(|(retention, written)| Cut {
            retention: Expiry::from_seconds(retention * 60),
            written: Hlc(written),
        })
    }

    proptest! {
        #[test]
        fn cuts_are_a_semilattice_and_survive_their_text(a in cuts(), b in cuts(), c in cuts()) {
            prop_assert_eq!(a.join(b), b.join(a));
            prop_assert_eq!(a.join(b).join(c), a.join(b.join(c)));
            prop_assert_eq!(a.join(a), a);
            prop_assert_eq!(Cut::from_text(&a.to_text()), Some(a));
        }

        #[test]
        fn a_greater_cut_never_keeps_an_entry_longer(entry in entries(), a in cuts(), b in cuts()) {
            prop_assert!(entry.retention(a.join(b)) <= entry.retention(a));
        }

        #[test]
        fn no_cut_removes_an_entry_in_force(entry in entries(), cut in cuts(), second in 0u32..6) {
            let now = UnixMillis(u64::from(second) * 1000);
            let entry = BanEntry { keep: entry.keep.max(Expiry::from_seconds(60)), ..entry };
            let in_force = entry.is_banned(now) || entry.is_allowed(now);
            prop_assert!(!in_force || !entry.retention(cut).has_passed(now));
        }

        #[test]
        fn a_full_table_never_removes_an_operators_unban_or_allowlist_entry(entry in entries(), retention in 0u32..5) {
            let cut = Cut { retention: Expiry::from_seconds(retention * 60), ..Cut::default() };
            let banned = entry.operator().is_none_or(|operator| matches!(operator.value, Decision::Banned { .. }));
            prop_assert!(banned || entry.retention(cut) == entry.retention(Cut::default()));
        }
    }

    #[test]
    fn an_invalid_cut_is_not_read() {
        for text in ["", "x", "1:", ":1", "1:x", "100000000:0", "0:10000000000000000"] {
            assert_eq!(Cut::from_text(text), None, "{text}");
        }
    }
}
