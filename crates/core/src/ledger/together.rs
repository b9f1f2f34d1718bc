//! Decisions about several targets: one action for all of them, and what would refuse it before anything is changed.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Author, BanTerms, Change, Ledger, Refused, Write};
use crate::ban::Cause;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// An action for several targets.
#[derive(Clone, Debug)]
pub enum Bulk {
    /// Ban them.
    Ban(BanTerms, Arc<Cause>),
    /// Ban them for a program.
    BanForProgram(BanTerms, Arc<Cause>),
    /// End the bans of exactly them.
    Unban(Arc<Cause>),
    /// End the bans of exactly them that the author made.
    UnbanOwn(Author, Arc<Cause>),
    /// Allow them until then.
    Allow(Expiry, Arc<Cause>),
}

/// A write that passed all checks.
pub(super) struct Planned {
    write: Write,
    bans: u32,
    keep: Expiry,
    /// Instead of the cause of the request.
    cause: Option<Arc<Cause>>,
}

impl Planned {
    pub(super) const fn new(write: Write, bans: u32, keep: Expiry) -> Self {
        Self { write, bans, keep, cause: None }
    }

    pub(super) fn with_cause(self, cause: &Arc<Cause>) -> Self {
        Self { cause: Some(Arc::clone(cause)), ..self }
    }
}

/// What other targets of the same request will add.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    /// New entries of the table.
    pub(super) entries: usize,
    /// New entries of the allowlist.
    pub(super) allowed: usize,
}

impl Ledger {
    /// Applies an action to one target.
    ///
    /// # Errors
    /// Those of the function for this action, for example [`Ledger::ban`].
    pub fn apply(&mut self, target: Target, what: &Bulk, now: UnixMillis) -> Result<Change, Refused> {
        let planned = self.plan(target, what, Ahead::default(), now)?;
        let (Bulk::Ban(_, cause)
        | Bulk::BanForProgram(_, cause)
        | Bulk::Unban(cause)
        | Bulk::UnbanOwn(_, cause)
        | Bulk::Allow(_, cause)) = what;
        self.carry_out(target, planned, Arc::clone(cause), now)
    }

    /// Returns which of `targets` would be refused, by position in order, and changes nothing. It counts the room that the targets before
    /// need. If the result is empty, applying the action to all of them at `now` is refused only when no stamp is left.
    pub fn refusals(&mut self, targets: &[Target], what: &Bulk, now: UnixMillis) -> Vec<(usize, Refused)> {
        let mut ahead = Ahead::default();
        let mut new = HashSet::new();
        let mut refused = Vec::new();
        for (position, target) in targets.iter().enumerate() {
            let repeated = new.contains(target);
            match self.plan(*target, what, if repeated { Ahead::default() } else { ahead }, now) {
                Ok(_) if repeated => {}
                Ok(_) => {
                    let known = self.known(*target, now);
                    let listed = known.as_ref().is_some_and(|entry| entry.is_allowed(now));
                    ahead.entries += usize::from(!self.table.contains(*target));
                    ahead.allowed += usize::from(!listed);
                    new.insert(*target);
                }
                Err(why) => refused.push((position, why)),
            }
        }
        refused
    }

    fn plan(&mut self, target: Target, what: &Bulk, ahead: Ahead, now: UnixMillis) -> Result<Planned, Refused> {
        match what {
            Bulk::Ban(terms, _) => self.plan_ban(target, *terms, ahead, now),
            Bulk::BanForProgram(terms, _) => self.plan_ban_for_program(target, *terms, ahead, now),
            Bulk::Unban(_) => self.plan_unban(target, now),
            Bulk::UnbanOwn(author, _) => self.plan_unban_own(target, author, now),
            Bulk::Allow(until, _) => self.plan_allow(target, *until, ahead, now),
        }
    }

    pub(super) fn carry_out(
        &mut self,
        target: Target,
        planned: Planned,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let Planned { write, bans, keep, cause: own } = planned;
        self.write(target, write, bans, keep, own.unwrap_or_else(|| cause.into()), now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ban::By;
    use crate::exemptions::MAX_ALLOWED;
    use crate::hlc::Hlc;
    use crate::ledger::{Arrival, Limits};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn ledger(max_bans: usize) -> Ledger {
        let limits = Limits { max_bans, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        Ledger::new("a".parse().unwrap(), limits, Hlc::default())
    }

    fn cause() -> Arc<Cause> {
        Arc::new(Cause::new(By::Operator("ann".into()), "test"))
    }

    fn ban(seconds: u64) -> Bulk {
        Bulk::Ban(BanTerms::new(Expiry::at(NOW.plus(Duration::from_secs(seconds))), DAY), cause())
    }

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn numbered(count: u32) -> Vec<Target> {
        (0..count).map(|n| Target::host(std::net::IpAddr::V4((0xc612_0000 + n).into()).into())).collect()
    }

    /// What applying the action refuses, on a ledger that is not used afterwards.
    fn applied(mut ledger: Ledger, targets: &[Target], what: &Bulk) -> Vec<(usize, Refused)> {
        let each = targets.iter().enumerate();
        each.filter_map(|(at, target)| Some((at, ledger.apply(*target, what, NOW).err()?))).collect()
    }

    #[test]
    fn refusals_are_those_of_applying_and_change_nothing() {
        let start = || {
            let mut ledger = ledger(32);
            for target in targets(&["192.0.2.1", "192.0.2.2", "198.51.100.0/24"]) {
                ledger.apply(target, &ban(7 * 86_400), NOW).unwrap();
            }
            ledger.apply(targets(&["203.0.113.0/24"])[0], &Bulk::Allow(Expiry::NEVER, cause()), NOW).unwrap();
            ledger
        };
        let all =
            targets(&["192.0.2.1", "192.0.2.3", "198.51.100.7", "203.0.113.9", "0.0.0.0/1", "2000::/3", "192.0.2.2"]);
        let author = |name: &str| Author { name: name.into(), logged_in: false };
        let BanTerms { until, remember, .. } = BanTerms::new(Expiry::at(NOW.plus(DAY)), DAY);
        let actions = [
            ban(60),
            Bulk::Ban(BanTerms { until, remember, replace: true }, cause()),
            Bulk::BanForProgram(BanTerms::new(until, remember), cause()),
            Bulk::Unban(cause()),
            Bulk::UnbanOwn(author("ann"), cause()),
            Bulk::UnbanOwn(author("bob"), cause()),
            Bulk::Allow(until, cause()),
        ];
        for what in actions {
            let mut ledger = start();
            let (before, stamp) = (*ledger.table().digests(), ledger.last_stamp());
            let refused = ledger.refusals(&all, &what, NOW);
            assert!(*ledger.table().digests() == before && ledger.last_stamp() == stamp, "{what:?}");
            assert_eq!(refused, applied(start(), &all, &what), "{what:?}");
            assert!(!refused.is_empty(), "{what:?}");
        }
    }

    #[test]
    fn the_room_that_earlier_targets_need_counts() {
        let all = numbered(40);
        let refused = ledger(32).refusals(&all, &ban(60), NOW);
        assert_eq!(refused, applied(ledger(32), &all, &ban(60)));
        assert_eq!(refused.len(), 8);
        let program = Bulk::BanForProgram(BanTerms::new(Expiry::NEVER, DAY), cause());
        assert_eq!(ledger(32).refusals(&all, &program, NOW), applied(ledger(32), &all, &program));
        let twice: Vec<Target> = numbered(32).into_iter().chain(numbered(32)).collect();
        assert_eq!(ledger(32).refusals(&twice, &ban(60), NOW), []);
        let many = numbered(u32::try_from(MAX_ALLOWED).unwrap() + 2);
        let refused = ledger(1 << 20).refusals(&many, &Bulk::Allow(Expiry::NEVER, cause()), NOW);
        assert_eq!(refused.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [MAX_ALLOWED, MAX_ALLOWED + 1]);
    }

    #[test]
    fn a_network_that_other_nodes_refuse_is_refused_here_too() {
        for (text, by_operators, by_programs) in [
            ("0.0.0.0/0", false, false),
            ("192.0.0.0/3", false, false),
            ("192.0.0.0/4", true, false),
            ("11.0.0.0/8", true, true),
            ("::/0", false, false),
            ("2000::/11", false, false),
            ("2000::/12", true, false),
            ("2001::/16", true, true),
        ] {
            let target = text.parse().unwrap();
            let terms = BanTerms { until: Expiry::NEVER, remember: DAY, replace: true };
            for (what, accepted) in [
                (Bulk::Ban(terms, cause()), by_operators),
                (Bulk::Allow(Expiry::NEVER, cause()), by_operators),
                (Bulk::BanForProgram(terms, cause()), by_programs),
            ] {
                let change = ledger(32).apply(target, &what, NOW);
                assert_eq!(change.is_ok(), accepted, "{text} {what:?}: {change:?}");
                let Ok(change) = change else { continue };
                let arrival = ledger(32).merge(target, change.after, NOW);
                assert!(matches!(arrival, Arrival::Changed(_)), "{text} {what:?}: {arrival:?}");
            }
        }
    }
}
