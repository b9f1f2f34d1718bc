//! Bans and unbans by programs, such as a script or fail2ban.
//!
//! A program decides like a filter: its bans go to the filter's register, so they never replace or shorten what an operator decided,
//! and it ends only bans that it made.

use std::sync::Arc;

use super::room::Writer;
use super::together::{Ahead, Planned};
use super::{BanTerms, Change, Ledger, Refused, Write, keep_for};
use crate::ban::{BanEntry, By, Cause, Decision};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// An author, to compare with those of bans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// The name of the user or token, or the name in the request if nobody logged in.
    pub name: Box<str>,
    /// Whether bans in the name of others (`other via NAME`) are this author's, too.
    pub logged_in: bool,
}

impl Author {
    /// Returns `true` if this author made the decision with `cause`.
    pub fn made(&self, cause: &Cause) -> bool {
        let (By::Filter(by) | By::Operator(by)) = &cause.by;
        let others = || by.strip_suffix(&*self.name).is_some_and(|before| before.ends_with(" via "));
        **by == *self.name || (self.logged_in && others())
    }
}

impl Ledger {
    /// Bans `target` for a program, like a filter. A ban in force that ends later, or at the same time, stays as it is.
    /// [`BanTerms::replace`] is ignored.
    ///
    /// # Errors
    /// [`Refused::BannedLonger`], [`Refused::Allowed`], [`Refused::Full`] and those of every write: [`Refused::Clock`],
    /// [`Refused::Unchanged`].
    pub fn ban_for_program(
        &mut self,
        target: Target,
        terms: BanTerms,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let planned = self.plan_ban_for_program(target, terms, Ahead::default(), now)?;
        self.carry_out(target, planned, cause, now)
    }

    pub(super) fn plan_ban_for_program(
        &mut self,
        target: Target,
        terms: BanTerms,
        ahead: Ahead,
        now: UnixMillis,
    ) -> Result<Planned, Refused> {
        let known = self.known(target, now);
        let banned = known.as_ref().filter(|entry| entry.is_banned(now));
        if let Some((entry, until)) = banned.and_then(|entry| Some((entry, entry.ban_end()?)))
            && until >= terms.until
        {
            let cause = Arc::clone(entry.effective(now).cause);
            return Err(Refused::BannedLonger { target, until, cause });
        }
        self.settle_exemptions(now);
        if let Some(by) = self.exemptions.exempt().covering(target) {
            return Err(Refused::Allowed { target, by });
        }
        self.may_add(target, Writer::Filter, ahead)?;
        let bans = known.as_ref().map_or(0, |entry| entry.bans);
        let bans = if banned.is_some() { bans } else { bans.saturating_add(1) };
        let keep = keep_for(terms.until, now.plus(terms.remember));
        Ok(Planned::new(Write::Filter(terms.until), bans, keep))
    }

    /// Ends the ban of exactly `target` that `author` made, on all nodes. A ban by somebody else stays in force.
    ///
    /// # Errors
    /// [`Refused::OtherAuthor`] when only others have banned the target; otherwise as [`Ledger::unban`].
    pub fn unban_own(
        &mut self,
        target: Target,
        author: &Author,
        cause: impl Into<Arc<Cause>>,
        now: UnixMillis,
    ) -> Result<Change, Refused> {
        let planned = self.plan_unban_own(target, author, now)?;
        self.carry_out(target, planned, cause, now)
    }

    pub(super) fn plan_unban_own(
        &mut self,
        target: Target,
        author: &Author,
        now: UnixMillis,
    ) -> Result<Planned, Refused> {
        let Some(known) = self.known(target, now).filter(|entry| entry.is_banned(now)) else {
            // Fails, with the reason.
            return self.plan_unban(target, now);
        };
        let in_force = |until: Expiry| !until.has_passed(now);
        let filter = known.filter().filter(|filter| in_force(filter.value) && counts(&known));
        let own_filter = filter.filter(|filter| author.made(&filter.cause));
        let operator =
            known.operator().filter(|operator| matches!(operator.value, Decision::Banned { until } if in_force(until)));
        let own_operator = operator.filter(|operator| author.made(&operator.cause));
        let keep = self.keep_tombstone(now);
        match (own_operator, own_filter) {
            (None, None) => {
                let effective = known.effective(now);
                let until = effective.state.until().unwrap_or(Expiry::PAST);
                Err(Refused::OtherAuthor { target, until, cause: Arc::clone(effective.cause) })
            }
            (None, Some(_)) if operator.is_none() => {
                Ok(Planned::new(Write::Operator(Decision::Unbanned), known.bans, keep))
            }
            // Only the filter's register, so that an operator's decision stays. Never dropped as history, so that it wins over late copies
            // of the ban that it ends: see `retention`.
            (None, Some(_)) => Ok(Planned::new(Write::Filter(ended(now)), known.bans, Expiry::NEVER)),
            (Some(_), own) => match (filter, own) {
                // An unban would also end the filter's ban, so the operator's register takes over its end.
                (Some(filter), None) => {
                    let write = Write::Operator(Decision::Banned { until: filter.value });
                    Ok(Planned::new(write, known.bans, keep.max(known.keep)).with_cause(&filter.cause))
                }
                _ => Ok(Planned::new(Write::Operator(Decision::Unbanned), known.bans, keep)),
            },
        }
    }
}

/// Whether the filter's ban is newer than the operator's decision, so that it has an effect.
fn counts(entry: &BanEntry) -> bool {
    match (entry.operator(), entry.filter()) {
        (Some(operator), Some(filter)) => {
            filter.stamp > operator.stamp || matches!(operator.value, Decision::Banned { .. })
        }
        (None, Some(_)) => true,
        _ => false,
    }
}

/// The latest end that has passed at `now`.
fn ended(now: UnixMillis) -> Expiry {
    Expiry::from_seconds(now.second())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ban::State;
    use crate::hlc::Hlc;
    use crate::ledger::Limits;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn ledger() -> Ledger {
        let limits = Limits { max_bans: 10, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        Ledger::new("a".parse().unwrap(), limits, Hlc::default())
    }

    fn target() -> Target {
        "192.0.2.1".parse().unwrap()
    }

    fn after(seconds: u64) -> UnixMillis {
        NOW.plus(Duration::from_secs(seconds))
    }

    fn terms(seconds: u64) -> BanTerms {
        BanTerms::new(Expiry::at(after(seconds)), DAY)
    }

    fn by(name: &str) -> Cause {
        Cause::new(By::Operator(name.into()), "test")
    }

    fn author(name: &str) -> Author {
        Author { name: name.into(), logged_in: true }
    }

    #[test]
    fn a_program_neither_shortens_nor_ends_the_ban_of_an_operator() {
        let mut ledger = ledger();
        ledger.ban(target(), terms(7 * 86_400), by("ann"), NOW).unwrap();
        let kept = ledger.ban_for_program(target(), terms(20), by("f2b"), after(1)).unwrap_err();
        assert!(matches!(kept, Refused::BannedLonger { .. }), "{kept}");
        let refused = ledger.unban_own(target(), &author("f2b"), by("f2b"), after(2)).unwrap_err();
        assert!(
            matches!(refused, Refused::OtherAuthor { .. }) && refused.to_string().contains("operator ann"),
            "{refused}"
        );
        let entry = ledger.known(target(), after(30)).unwrap();
        assert_eq!(entry.ban_end(), Some(terms(7 * 86_400).until));
        assert!(entry.is_banned(after(6 * 86_400)));
    }

    #[test]
    fn the_end_of_a_longer_ban_of_a_program_leaves_the_ban_of_the_operator() {
        let mut ledger = ledger();
        ledger.ban(target(), terms(3600), by("ann"), NOW).unwrap();
        let change = ledger.ban_for_program(target(), terms(7200), by("fail2ban via f2b"), after(1)).unwrap();
        assert!(change.after.is_banned(after(7000)), "the longer one counts");
        ledger.unban_own(target(), &author("f2b"), by("f2b"), after(10)).unwrap();
        let entry = ledger.known(target(), after(20)).unwrap();
        assert_eq!((entry.is_banned(after(20)), entry.is_banned(after(3700))), (true, false));
    }

    #[test]
    fn a_program_ends_its_own_ban_and_can_ban_again() {
        let mut ledger = ledger();
        ledger.ban_for_program(target(), terms(600), by("f2b"), NOW).unwrap();
        let other = ledger.unban_own(target(), &author("waf"), by("waf"), after(1)).unwrap_err();
        assert!(matches!(other, Refused::OtherAuthor { .. }), "{other}");
        let change = ledger.unban_own(target(), &author("f2b"), by("f2b"), after(2)).unwrap();
        assert!(!change.after.is_banned(after(2)));
        let again = ledger.unban_own(target(), &author("f2b"), by("f2b"), after(3)).unwrap_err();
        assert!(matches!(again, Refused::NotBanned { .. }), "{again}");
        let change = ledger.ban_for_program(target(), terms(900), by("f2b"), after(4)).unwrap();
        assert!(change.after.is_banned(after(5)) && change.after.bans == 2);
    }

    #[test]
    fn the_end_of_an_own_ban_keeps_the_ban_of_a_filter() {
        let mut ledger = ledger();
        ledger.ban_for_program(target(), terms(600), by("sshd"), NOW).unwrap();
        ledger.ban(target(), terms(7200), by("f2b"), after(1)).unwrap();
        let change = ledger.unban_own(target(), &author("f2b"), by("f2b"), after(2)).unwrap();
        assert_eq!(change.after.state(after(3)), State::Banned { until: terms(600).until });
    }

    #[test]
    fn a_program_does_not_ban_what_an_operator_allowed() {
        let mut ledger = ledger();
        ledger.allow("192.0.2.0/24".parse().unwrap(), Expiry::NEVER, by("ann"), NOW).unwrap();
        let refused = ledger.ban_for_program(target(), terms(600), by("f2b"), after(1)).unwrap_err();
        assert!(matches!(refused, Refused::Allowed { .. }), "{refused}");
    }

    #[test]
    fn an_author_owns_what_was_done_in_its_name() {
        assert!(author("f2b").made(&by("f2b")) && author("f2b").made(&by("fail2ban via f2b")));
        assert!(!author("f2b").made(&by("f2b via ops")) && !author("b").made(&by("f2b")));
        let unknown = Author { name: "f2b".into(), logged_in: false };
        assert!(unknown.made(&by("f2b")) && !unknown.made(&by("fail2ban via f2b")));
    }

    #[test]
    fn a_ban_of_a_program_is_its_own_after_an_allowlist_entry_has_ended() {
        let mut ledger = ledger();
        ledger.allow(target(), Expiry::at(after(10)), by("ann"), NOW).unwrap();
        let ban = ledger.ban_for_program(target(), terms(600), by("f2b"), after(20)).unwrap();
        assert_eq!(ban.after.filter().map(|filter| &filter.cause.by), Some(&By::Filter("f2b".into())));
        let change = ledger.unban_own(target(), &author("f2b"), by("f2b"), after(30)).unwrap();
        assert!(!change.after.is_banned(after(30)));
    }
}
