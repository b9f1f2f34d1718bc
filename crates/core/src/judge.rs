//! The judge decides about each offence: whether it counts, and whether it leads to a ban.

use std::collections::HashMap;
use std::sync::Arc;

use crate::attempts::{Attempts, Counter, Counts, JailId, Recognised, SlotCount, Threshold};
use crate::policy::{BanPolicy, Scope};
use crate::repeats::Repeats;
use banmesh_types::address::Address;
use banmesh_types::echo::EchoClass;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

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
        /// The limit: [`BanPolicy::max_attempts`].
        of: u32,
    },
    /// The limit is reached.
    Ban(BanOrder),
    /// The limit is reached, but this is a dry run.
    WouldBan(BanOrder),
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
}

impl Judge {
    /// Creates a judge that counts at most `capacity` targets at a time.
    pub fn new(capacity: usize) -> Self {
        Self { attempts: Attempts::new(capacity), repeats: Repeats::new() }
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
        sighting: &Offence,
        standing: Standing,
        now: UnixMillis,
    ) -> (Verdict, Option<SlotCount>) {
        let scope = &rules.scope;
        let target = Target::of_source(sighting.source, scope.ipv4_prefix, scope.ipv6_prefix);
        if let Some(member) = scope.exempting(sighting.source) {
            return (Verdict::Allowed(member), None);
        }
        if !sighting.source.is_unicast() {
            return (Verdict::Allowed(Target::host(sighting.source)), None);
        }
        if let Standing::Allowed(member) = standing {
            return (Verdict::Allowed(member), None);
        }
        let policy = rules.policy(sighting.jail);
        let key = (sighting.jail, target);
        if sighting.kind == Kind::Success {
            if !rules.success_clears || self.attempts.attempts(key, threshold_of(policy), now) == 0 {
                return (Verdict::Nothing, None);
            }
            self.attempts.clear(key, now);
            return (Verdict::Cleared(target), None);
        }
        if !self.repeats.admits(sighting.source, sighting.echo, now) {
            return (Verdict::Repeated, None);
        }
        if standing == Standing::Banned {
            return (Verdict::StillBanned(target, Arc::clone(policy)), None);
        }
        let counted = self.attempts.record(key, sighting.times, &sighting.by, threshold_of(policy), now);
        if counted.attempts < policy.max_attempts {
            let verdict = Verdict::Counted { target, attempts: counted.attempts, of: policy.max_attempts };
            return (verdict, Some(counted.share));
        }
        self.attempts.clear(key, now);
        let order =
            BanOrder { target, by: sighting.by.clone(), attempts: counted.attempts, policy: Arc::clone(policy) };
        let verdict = if scope.dry_run { Verdict::WouldBan(order) } else { Verdict::Ban(order) };
        (verdict, Some(counted.share))
    }

    /// Returns the attempts of `source` in each jail in which it has any.
    pub fn attempts_by_jail(&self, rules: &Rules, source: Address, now: UnixMillis) -> Vec<JailAttempts> {
        let target = Target::of_source(source, rules.scope.ipv4_prefix, rules.scope.ipv6_prefix);
        let tally = |jail| {
            let policy = Arc::clone(rules.policy(jail));
            let counts = self.attempts.counts((jail, target), threshold_of(&policy), now);
            JailAttempts { target, jail, policy, counts }
        };
        rules.jails().map(tally).filter(|tally| tally.counts.total() > 0).collect()
    }

    /// Returns the most further lines about `source` that may be treated as duplicates of counted ones.
    pub fn expected_duplicates(&self, source: Address, now: UnixMillis) -> u32 {
        self.repeats.expected_duplicates(source, now)
    }

    /// Merges the count of another node. Orders a ban only if this node itself recognised an offence of the source within the window, so
    /// that not every node of the cluster bans it at once.
    pub fn shared(&mut self, rules: &Rules, from: Counter, share: SlotCount, now: UnixMillis) -> Option<BanOrder> {
        let policy = rules.policy(share.key.0);
        let threshold = threshold_of(policy);
        let attempts = self.attempts.merge(from, share, threshold, now);
        if attempts < policy.max_attempts || rules.scope.dry_run {
            return None;
        }
        let by = self.attempts.last_local(share.key, threshold, now)?.clone();
        self.attempts.clear(share.key, now);
        Some(BanOrder { target: share.key.1, by, attempts, policy: Arc::clone(policy) })
    }

    /// Clears the attempts of `target` in all jails, after it was banned on this or another node.
    pub fn settled(&mut self, rules: &Rules, target: Target, now: UnixMillis) {
        for jail in rules.jails() {
            self.attempts.clear((jail, target), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use banmesh_types::nat64::Nat64;
    use banmesh_types::netset::NetSet;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn policy(max_attempts: u32) -> Arc<BanPolicy> {
        Arc::new(BanPolicy {
            max_attempts,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(3 * 86_400),
        })
    }

    fn rules() -> Rules {
        let allowlist: NetSet =
            ["127.0.0.0/8", "2001:db8:a::/48"].iter().map(|t| t.parse::<Target>().unwrap()).collect();
        Rules {
            scope: Scope {
                ipv4_prefix: 32,
                ipv6_prefix: 64,
                allowlist,
                own: NetSet::default(),
                nat64: Nat64::default(),
                dry_run: false,
            }
            .into(),
            general: policy(5),
            own: HashMap::from([(JailId(7), policy(2))]),
            success_clears: false,
        }
    }

    fn seen(source: &str, filter: &str) -> Offence {
        Offence {
            source: source.parse().unwrap(),
            by: Recognised { filter: filter.into(), rule: "r".into() },
            jail: if filter == "strict" { JailId(7) } else { JailId::GENERAL },
            echo: None,
            kind: Kind::Failure,
            times: 1,
        }
    }

    fn attempts(verdict: &Verdict) -> Option<u32> {
        match verdict {
            Verdict::Counted { attempts, .. } => Some(*attempts),
            _ => None,
        }
    }

    #[test]
    fn the_fifth_offence_bans_and_counting_restarts() {
        let (rules, mut judge) = (rules(), Judge::new(100));
        for n in 1..5 {
            assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW).0), Some(n));
        }
        let (verdict, _) = judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW);
        assert!(matches!(verdict, Verdict::Ban(BanOrder { attempts: 5, .. })), "{verdict:?}");
        let (verdict, share) = judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Banned, NOW);
        assert!(matches!(verdict, Verdict::StillBanned(..)) && share.is_none());
        let later = NOW.plus(Duration::from_secs(400));
        assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, later).0), Some(1));
    }

    #[test]
    fn filters_are_counted_together_unless_they_have_their_own_policy() {
        let (rules, mut judge) = (rules(), Judge::new(100));
        for (filter, expected) in [("sshd", 1), ("dovecot", 2), ("strict", 1), ("postfix", 3)] {
            assert_eq!(
                attempts(&judge.judge(&rules, &seen("192.0.2.1", filter), Standing::Free, NOW).0),
                Some(expected)
            );
        }
        let (verdict, _) = judge.judge(&rules, &seen("192.0.2.1", "strict"), Standing::Free, NOW);
        assert!(matches!(verdict, Verdict::Ban(_)));
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_offender() {
        let (rules, mut judge) = (rules(), Judge::new(100));
        judge.judge(&rules, &seen("2001:db8:1::1", "sshd"), Standing::Free, NOW);
        let (verdict, _) = judge.judge(&rules, &seen("2001:db8:1::2", "sshd"), Standing::Free, NOW);
        assert_eq!(attempts(&verdict), Some(2));
    }

    #[test]
    fn sources_on_the_configured_allowlist_are_not_counted() {
        let (rules, mut judge) = (rules(), Judge::new(100));
        for source in ["127.0.0.1", "2001:db8:a::1"] {
            let (verdict, share) = judge.judge(&rules, &seen(source, "sshd"), Standing::Free, NOW);
            assert!(matches!(verdict, Verdict::Allowed(_)) && share.is_none());
        }
        assert!(judge.attempts().is_empty());
    }

    #[test]
    fn own_addresses_and_sources_that_are_not_unicast_are_not_counted() {
        let (mut rules, mut judge) = (rules(), Judge::new(100));
        Arc::make_mut(&mut rules.scope).own.insert("192.0.2.9".parse().unwrap());
        for source in ["192.0.2.9", "0.0.0.0", "255.255.255.255", "224.0.0.251", "::", "ff02::1"] {
            let (verdict, share) = judge.judge(&rules, &seen(source, "sshd"), Standing::Free, NOW);
            assert!(matches!(verdict, Verdict::Allowed(_)) && share.is_none(), "{source}");
        }
        assert!(judge.attempts().is_empty());
    }

    #[test]
    fn sources_that_an_operator_has_allowed_are_not_counted() {
        let (rules, mut judge) = (rules(), Judge::new(100));
        let by: Target = "192.0.2.0/24".parse().unwrap();
        let (verdict, share) = judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Allowed(by), NOW);
        assert!(matches!(verdict, Verdict::Allowed(member) if member == by) && share.is_none());
        assert!(judge.attempts().is_empty());
    }

    #[test]
    fn a_dry_run_reports_the_ban_and_orders_none() {
        let (mut rules, mut judge) = (rules(), Judge::new(100));
        Arc::make_mut(&mut rules.scope).dry_run = true;
        for _ in 0..4 {
            judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW);
        }
        let (verdict, _) = judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW);
        assert!(matches!(verdict, Verdict::WouldBan(_)));
    }

    #[test]
    fn a_success_clears_attempts_only_with_success_clears() {
        let (mut rules, mut judge) = (rules(), Judge::new(100));
        let success = Offence { kind: Kind::Success, ..seen("192.0.2.1", "sshd") };
        judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW);
        assert!(matches!(judge.judge(&rules, &success, Standing::Free, NOW).0, Verdict::Nothing));
        rules.success_clears = true;
        assert!(matches!(judge.judge(&rules, &success, Standing::Free, NOW).0, Verdict::Cleared(_)));
        let (verdict, _) =
            judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW.plus(Duration::from_secs(1)));
        assert_eq!(attempts(&verdict), Some(1));
    }

    #[test]
    fn one_offence_on_each_of_five_nodes_bans_but_not_on_a_node_without_one() {
        let rules = rules();
        let mut nodes: Vec<Judge> = (0..6).map(|_| Judge::new(100)).collect();
        let mut orders = 0;
        for n in 0..5u64 {
            // A little apart, so that every slot lies within the window.
            let now = NOW.plus(Duration::from_secs(n));
            let (verdict, share) =
                nodes[usize::try_from(n).unwrap()].judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, now);
            orders += u32::from(matches!(verdict, Verdict::Ban(_)));
            for (m, other) in nodes.iter_mut().enumerate() {
                if m as u64 != n {
                    let order = other.shared(&rules, n, share.unwrap(), now);
                    assert!(order.is_none() || m < 5, "the sixth node has recognised no offence itself");
                    orders += u32::from(order.is_some());
                }
            }
        }
        assert!(orders >= 1);
        assert_eq!(nodes[5].attempts().len(), 1);
    }
}
