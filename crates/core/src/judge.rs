//! The judge decides about each offence: whether it counts, and whether it leads to a ban.

use std::collections::HashMap;
use std::sync::Arc;

use crate::account::AccountName;
use crate::attempts::{Attempts, Counter, Counts, JailId, Key, Recognised, SlotCount, Threshold};
use crate::evidence::settings::{SLOW, SLOW_THRESHOLD, slow_policy};
use crate::evidence::{Evidence, Settings};
use crate::policy::{BanPolicy, Scope};
use crate::repeats::Repeats;
use crate::shadow::ShadowBans;
use banmesh_types::address::Address;
use banmesh_types::echo::EchoClass;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

mod attacks;
mod explain;
mod late_names;
mod side_effects;
mod strangers;

use attacks::Attacks;
pub use explain::NameFacts;
use late_names::LateNames;
pub use side_effects::{Mechanism, SideEffects, Would};
use strangers::{Observed, Weight};

/// The policies of all jails, and the settings that apply to every source. Replaced as a whole on a reload.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Prefixes, allowlist and dry run. Shared with API requests, because an allowlist can be long.
    pub scope: Arc<Scope>,
    /// The policy of the general jail.
    pub general: Arc<BanPolicy>,
    /// The policies of the other jails.
    pub own: HashMap<JailId, Arc<BanPolicy>>,
    /// Whether a successful login clears the attempts of its source (`ban.success_clears`).
    pub success_clears: bool,
    /// What evidence about accounts, names and networks does (`evidence`).
    pub evidence: Arc<Settings>,
}

impl Rules {
    /// Returns the policy of `jail`. A jail that this node does not have uses the general policy; that happens if nodes have
    /// different filters.
    pub fn policy(&self, jail: JailId) -> &Arc<BanPolicy> {
        self.own.get(&jail).unwrap_or(&self.general)
    }

    fn jails(&self) -> impl Iterator<Item = JailId> + '_ {
        std::iter::once(JailId::GENERAL).chain(self.own.keys().copied())
    }
}

fn threshold_of(policy: &BanPolicy) -> Threshold {
    Threshold { max_attempts: policy.max_attempts, time_window: policy.time_window }
}

/// An offence that a filter recognised, or a successful login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    /// The source.
    pub source: Address,
    /// The filter and rule that recognised it.
    pub by: Recognised,
    /// The jail whose policy applies.
    pub jail: JailId,
    /// The echo class of the rule, for finding duplicates. `None` if the rule has none.
    pub echo: Option<EchoClass>,
    /// Whether it failed or succeeded.
    pub kind: Kind,
    /// How many times it counts: more than 1 for a message such as `message repeated 5 times`.
    pub times: u32,
    /// The account that was tried or logged in to. `None` if it is not known.
    pub account: Option<AccountName>,
    /// Whether the service said that no such account exists.
    pub unknown: bool,
}

/// Whether an attempt failed or succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A failed attempt, which counts towards a ban.
    Failure,
    /// A successful login, which may clear the attempts of its source.
    Success,
}

/// An order to ban.
#[derive(Clone, Debug)]
pub struct BanOrder {
    /// The target to ban.
    pub target: Target,
    /// The filter and rule that recognised the last offence.
    pub by: Recognised,
    /// The offences within the window, on all nodes.
    pub attempts: u32,
    /// The policy that gives the length of the ban.
    pub policy: Arc<BanPolicy>,
}

/// The state of a source in the ban table before it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither banned nor allowed.
    Free,
    /// Already banned.
    Banned,
    /// Allowed by an operator, with this allowlist entry.
    Allowed(Target),
}

/// The decision about an offence.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Not counted: this entry of the configured allowlist, of the own addresses, or of the operators' allowlist covers the source. Also for
    /// a source that is not a unicast address, with itself as the entry.
    Allowed(Target),
    /// Not counted, because the target is already banned. Its retention is extended.
    StillBanned(Target, Arc<BanPolicy>),
    /// Not counted: a duplicate of an offence that was counted.
    Repeated,
    /// Counted, but below the limit.
    Counted {
        /// The target that was counted.
        target: Target,
        /// The offences within the window, on all nodes.
        attempts: u32,
        /// The limit: [`BanPolicy::max_attempts`], times one more than the accounts that are at home at the target.
        of: u32,
    },
    /// The limit is reached.
    Ban(BanOrder),
    /// The limit is reached, but this is a dry run, or the jail is in shadow mode.
    WouldBan(BanOrder),
    /// Not counted: the jail is in shadow mode, and would have banned this target already.
    WouldBeBanned(Target),
    /// A success that cleared the attempts of this target.
    Cleared(Target),
    /// A success that changed nothing.
    Nothing,
}

/// The attempts of a target in one jail.
#[derive(Clone, Debug)]
pub struct JailAttempts {
    /// The target under which the source is counted.
    pub target: Target,
    /// The jail.
    pub jail: JailId,
    /// The policy of the jail.
    pub policy: Arc<BanPolicy>,
    /// The offences within the window, by node.
    pub counts: Counts,
}

/// Counts offences and decides about them.
#[derive(Debug)]
pub struct Judge {
    attempts: Attempts,
    repeats: Repeats,
    evidence: Evidence,
    late_names: LateNames,
    attacks: Attacks,
    observed: Observed,
    side_effects: SideEffects,
    shadow: ShadowBans,
}

impl Judge {
    /// Creates a judge that counts at most `capacity` targets at a time.
    pub fn new(capacity: usize) -> Self {
        Self {
            attempts: Attempts::new(capacity),
            repeats: Repeats::new(),
            evidence: Evidence::default(),
            late_names: LateNames::default(),
            attacks: Attacks::default(),
            observed: Observed::default(),
            side_effects: SideEffects::default(),
            shadow: ShadowBans::new(capacity),
        }
    }

    /// Replaces the evidence, for tables of another size.
    #[must_use]
    pub fn with_evidence(self, evidence: Evidence) -> Self {
        Self { evidence, ..self }
    }

    /// Returns the evidence about accounts, names and networks.
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Returns the evidence, to join what other nodes or the journal have.
    pub const fn evidence_mut(&mut self) -> &mut Evidence {
        &mut self.evidence
    }

    /// Takes what the calls of [`Judge::judge`] since the last call gave besides their verdicts.
    pub fn take_side_effects(&mut self) -> SideEffects {
        std::mem::take(&mut self.side_effects)
    }

    /// Returns the counted attempts.
    pub const fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Drops what is known about duplicates. To be called after filters were replaced, because echo classes are numbered by filter.
    pub fn reset_repeats(&mut self) {
        self.repeats = Repeats::new();
    }

    /// Decides about an offence at `now`. `standing` is the state of its source in the ban table. In addition to the verdict, returns the
    /// count to publish to the other nodes, if the offence was counted.
    pub fn judge(
        &mut self,
        rules: &Rules,
        offence: &Offence,
        standing: Standing,
        now: UnixMillis,
    ) -> (Verdict, Option<SlotCount>) {
        let scope = &rules.scope;
        let target = Target::of_source(offence.source, scope.ipv4_prefix, scope.ipv6_prefix);
        // A login is evidence about its account wherever it comes from.
        if offence.kind == Kind::Success && offence.source.is_unicast() {
            self.learn_login(rules, offence, target, now);
        }
        if let Some(member) = scope.exempting(offence.source) {
            return (Verdict::Allowed(member), None);
        }
        if !offence.source.is_unicast() {
            return (Verdict::Allowed(Target::host(offence.source)), None);
        }
        if let Standing::Allowed(member) = standing {
            return (Verdict::Allowed(member), None);
        }
        let policy = rules.policy(offence.jail);
        let key = (offence.jail, target);
        if offence.kind == Kind::Success {
            if !rules.success_clears || self.attempts.attempts(key, threshold_of(policy), now) == 0 {
                return (Verdict::Nothing, None);
            }
            self.attempts.clear(key, now);
            return (Verdict::Cleared(target), None);
        }
        let first = self.repeats.admits(offence.source, offence.echo, now);
        if !first && !self.late_names.says_more(offence, now) {
            return (Verdict::Repeated, None);
        }
        // A jail in shadow mode counts as if it were alone, whatever others have banned.
        let shadow = offence.jail.is_shadow();
        if shadow && self.shadow.is_banned(key, now) {
            return (Verdict::WouldBeBanned(target), None);
        }
        if standing == Standing::Banned && !shadow {
            let verdict = if first { Verdict::StillBanned(target, Arc::clone(policy)) } else { Verdict::Repeated };
            return (verdict, None);
        }
        let mut weight = self.weigh(rules, offence, target, policy, now);
        if rules.evidence.names.looks() {
            weight.points = self.late_names.not_yet_counted(offence, first, weight.points, now);
            if weight.points == 0 {
                return (Verdict::Repeated, None);
            }
        }
        self.count(rules, offence, (key, weight), now)
    }

    /// Counts an offence, and orders a ban if its target reaches the limit.
    fn count(
        &mut self,
        rules: &Rules,
        offence: &Offence,
        (key, weight): (Key, Weight),
        now: UnixMillis,
    ) -> (Verdict, Option<SlotCount>) {
        let (policy, target) = (rules.policy(offence.jail), key.1);
        let threshold = Threshold { max_attempts: weight.limit, ..threshold_of(policy) };
        let times = offence.times.saturating_mul(weight.points);
        let counted = self.attempts.record(key, times, &offence.by, threshold, now);
        // What a jail in shadow mode sees leads to no ban in other ways either.
        let shadow = offence.jail.is_shadow();
        if !shadow {
            self.judge_network(rules, offence, &weight, now);
        }
        if counted.attempts < weight.limit {
            if !shadow && let Some(order) = self.count_slow(rules, offence, target, &weight, now) {
                let verdict = if rules.scope.dry_run { Verdict::WouldBan(order) } else { Verdict::Ban(order) };
                return (verdict, Some(counted.share));
            }
            let verdict = Verdict::Counted { target, attempts: counted.attempts, of: weight.limit };
            return (verdict, Some(counted.share));
        }
        self.attempts.clear(key, now);
        self.observe_known(offence, target, &weight);
        let order = weight.order(rules, offence, target, counted.attempts);
        if shadow {
            self.shadow.ban(key, &order.policy, now);
        }
        let verdict = if rules.scope.dry_run || shadow { Verdict::WouldBan(order) } else { Verdict::Ban(order) };
        // Others who count these points would ban at the same moment, but for a shorter time.
        (verdict, Some(counted.share).filter(|_| !weight.is_bait))
    }

    /// Returns `true` if no attempt of the source is counted for this jail, so that `offence` would be the first within the window.
    pub fn is_first(&self, rules: &Rules, offence: &Offence, now: UnixMillis) -> bool {
        let target = Target::of_source(offence.source, rules.scope.ipv4_prefix, rules.scope.ipv6_prefix);
        self.attempts.attempts((offence.jail, target), threshold_of(rules.policy(offence.jail)), now) == 0
    }

    /// Returns the attempts of `source` in each jail in which it has any.
    pub fn attempts_by_jail(&self, rules: &Rules, source: Address, now: UnixMillis) -> Vec<JailAttempts> {
        let target = Target::of_source(source, rules.scope.ipv4_prefix, rules.scope.ipv6_prefix);
        let tally = |jail| {
            let policy = Arc::clone(rules.policy(jail));
            let counts = self.attempts.counts((jail, target), threshold_of(&policy), now);
            JailAttempts { target, jail, policy, counts }
        };
        let slow = || JailAttempts {
            target,
            jail: SLOW,
            policy: Arc::new(slow_policy(&rules.general)),
            counts: self.attempts.counts((SLOW, target), SLOW_THRESHOLD, now),
        };
        let slow = rules.evidence.names.acts().then(slow);
        rules.jails().map(tally).chain(slow).filter(|tally| tally.counts.total() > 0).collect()
    }

    /// Returns how many accounts are at home at `source`.
    pub fn known(&self, rules: &Rules, source: Address, now: UnixMillis) -> u32 {
        let target = Target::of_source(source, rules.scope.ipv4_prefix, rules.scope.ipv6_prefix);
        self.forgiven(rules, target, now)
    }

    /// Returns the most further lines about `source` that may be treated as duplicates of counted ones.
    pub fn expected_duplicates(&self, source: Address, now: UnixMillis) -> u32 {
        self.repeats.expected_duplicates(source, now)
    }

    /// Merges the count of another node. Orders a ban only if this node itself recognised an offence of the source within the window, so
    /// that not every node of the cluster bans it at once.
    ///
    /// A ban can arrive before the counts that led to it. So counts that arrive while the target is banned are cleared with it.
    pub fn shared(
        &mut self,
        rules: &Rules,
        from: Counter,
        share: SlotCount,
        standing: Standing,
        now: UnixMillis,
    ) -> Option<BanOrder> {
        let (jail, target) = share.key;
        if jail == SLOW {
            return self.shared_slow(rules, from, share, now);
        }
        if standing == Standing::Banned && !jail.is_shadow() {
            self.attempts.merge(from, share, threshold_of(rules.policy(jail)), now);
            self.attempts.clear(share.key, now);
            return None;
        }
        let policy = rules.policy(jail);
        let known = self.forgiven(rules, target, now);
        let limit = policy.max_attempts.saturating_mul(1 + known);
        let threshold = Threshold { max_attempts: limit, ..threshold_of(policy) };
        let attempts = self.attempts.merge(from, share, threshold, now);
        if attempts < limit || rules.scope.dry_run || jail.is_shadow() {
            return None;
        }
        let by = self.attempts.last_local(share.key, threshold, now)?.clone();
        self.attempts.clear(share.key, now);
        Some(strangers::ordinary(policy, known, by, target, attempts))
    }

    /// Clears the attempts of `target` in all jails, after it was unbanned on this or another node: also those that are counted over days.
    pub fn unbanned(&mut self, rules: &Rules, target: Target, now: UnixMillis) {
        self.settled(rules, target, now);
        self.attempts.clear((SLOW, target), now);
    }

    /// Clears the attempts of `target` in all jails, after it was banned on this or another node.
    pub fn settled(&mut self, rules: &Rules, target: Target, now: UnixMillis) {
        for jail in rules.jails().filter(|jail| !jail.is_shadow()) {
            self.attempts.clear((jail, target), now);
        }
    }
}

#[cfg(test)]
mod tests;
