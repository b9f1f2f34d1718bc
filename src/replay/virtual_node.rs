//! Judges offences as a node does, in virtual time: the judge, the ledger and the view of a node, without tasks or a clock.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::decisions::view::{Reader, View, ViewWriter};
use banmesh_core::evidence::Hour;
use banmesh_core::exemptions::Exempt;
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::{BanOrder, Judge, Kind, Offence, Rules, SideEffects, Standing, Verdict, Would};
use banmesh_core::ledger::{Change, Ledger, Limits, Refused, cause_of_offence};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// How often the table is examined for expired entries while it has much room, in virtual time.
const RARELY: Duration = Duration::from_secs(3600);

/// What a node decides about an offence or a login.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Counted, below the limit.
    Counted,
    /// It led to a ban.
    Banned(Ban),
    /// A node would refuse the client, because the target is banned.
    Refused(Target),
    /// The source is on the allowlist.
    Allowed,
    /// A duplicate of an offence that was counted.
    Repeated,
    /// A filter in shadow mode, or a dry run, would ban.
    WouldBan(Ban),
    /// A filter in shadow mode counted it, or would have refused the client already.
    Shadow,
    /// The limit was reached, but the ban was refused: the table is full.
    NotBanned,
    /// A login of a source that is not banned.
    Login,
    /// A login of a source that is banned: it would have been refused.
    LoginRefused(Target),
}

/// A ban.
#[derive(Clone, Debug, PartialEq)]
pub struct Ban {
    /// The target.
    pub target: Target,
    /// The filter that recognised the last offence.
    pub filter: Arc<str>,
    /// Its rule.
    pub rule: Arc<str>,
    /// The offences within the window.
    pub attempts: u32,
    /// When it began.
    pub at: UnixMillis,
    /// When it ends. In shadow mode, the end of a first ban.
    pub until: Expiry,
    /// Ordinal of this ban for the target (1 = first). In shadow mode 1.
    pub step: u32,
}

/// A node in virtual time.
#[derive(Debug)]
pub struct VirtualNode {
    rules: Rules,
    judge: Judge,
    ledger: Ledger,
    view: ViewWriter,
    reader: Reader,
    exempt: Exempt,
    cleanup_interval: Duration,
    cleaned: UnixMillis,
    swept: UnixMillis,
    max_bans: usize,
    now: UnixMillis,
    networks: Vec<Ban>,
    would: Vec<Would>,
}

impl VirtualNode {
    /// Creates a node with an empty table, which counts at most `max_tracked` targets.
    pub fn new(node: NodeId, rules: Rules, limits: Limits, max_tracked: usize, cleanup_interval: Duration) -> Self {
        let (view, writer) = View::new();
        Self {
            rules,
            judge: Judge::new(max_tracked),
            ledger: Ledger::new(node, limits, Hlc::default()),
            reader: view.reader(),
            view: writer,
            exempt: Exempt::default(),
            cleanup_interval,
            cleaned: UnixMillis(0),
            swept: UnixMillis(0),
            max_bans: limits.max_bans,
            now: UnixMillis(0),
            networks: Vec::new(),
            would: Vec::new(),
        }
    }

    /// Judges an offence or a login at `now`. A time before that of an earlier call counts as that time. `real`: whether a node would judge
    /// it; otherwise it is a login that only tells whether the source is banned.
    pub fn judge(&mut self, offence: &Offence, real: bool, now: UnixMillis) -> Decision {
        let now = now.max(self.now);
        self.now = now;
        self.clean(now);
        // Copied only if its source changes, because counting references is expensive while other threads do so too.
        let source = self.rules.scope.nat64.address(offence.source);
        let mut offence = Cow::Borrowed(offence);
        if source != offence.source {
            offence.to_mut().source = source;
        }
        let offence = &*offence;
        let banned = self.reader.banned_until(offence.source, now).is_some();
        let standing = match self.exempt.matching(offence.source) {
            Some(member) => Standing::Allowed(member),
            None if banned => Standing::Banned,
            None => Standing::Free,
        };
        let scope = &self.rules.scope;
        let target = Target::of_source(offence.source, scope.ipv4_prefix, scope.ipv6_prefix);
        let refused = standing == Standing::Banned && scope.exempting(offence.source).is_none();
        let login = if refused { Decision::LoginRefused(target) } else { Decision::Login };
        // Nobody learns of a login that is refused.
        if !real || (refused && offence.kind == Kind::Success) {
            return login;
        }
        let (verdict, _) = self.judge.judge(&self.rules, offence, standing, now);
        let decision = self.decide(verdict, offence, now).unwrap_or(login);
        let SideEffects { orders, would, .. } = self.judge.take_side_effects();
        self.would.extend(would);
        for order in orders {
            if let Decision::Banned(ban) = self.ban(&order, now) {
                self.networks.push(ban);
            }
        }
        decision
    }

    /// Takes the bans of networks since the last call. They are made beside the decision about an offence (`evidence.networks`).
    pub fn take_networks(&mut self) -> Vec<Ban> {
        std::mem::take(&mut self.networks)
    }

    /// Takes what mechanisms of the evidence that only observe would have done since the last call.
    pub fn take_would(&mut self) -> Vec<Would> {
        std::mem::take(&mut self.would)
    }

    /// Carries out a verdict. `None` for logins.
    fn decide(&mut self, verdict: Verdict, offence: &Offence, now: UnixMillis) -> Option<Decision> {
        if offence.kind == Kind::Success {
            return None;
        }
        Some(match verdict {
            Verdict::Allowed(_) => Decision::Allowed,
            Verdict::StillBanned(target, policy) => {
                self.ledger.seen_again(target, policy.max_memory_ttl, now);
                Decision::Refused(target)
            }
            Verdict::Repeated => Decision::Repeated,
            Verdict::Counted { .. } if offence.jail.is_shadow() => Decision::Shadow,
            Verdict::Counted { .. } => Decision::Counted,
            Verdict::Ban(order) => self.ban(&order, now),
            Verdict::WouldBan(order) => {
                let until = Expiry::at(now.plus(order.policy.ban_time(0)));
                Decision::WouldBan(ban(order.target, &order, until, 1, now))
            }
            Verdict::WouldBeBanned(_) => Decision::Shadow,
            Verdict::Cleared(_) | Verdict::Nothing => return None,
        })
    }

    /// The bans in force at the end.
    pub fn active(&mut self) -> usize {
        self.ledger.active(self.now)
    }

    fn ban(&mut self, order: &BanOrder, now: UnixMillis) -> Decision {
        if let Some(new) = self.ledger.needs_room(std::iter::once(order.target)) {
            for removed in self.ledger.make_room(new, now) {
                self.view.set(removed, Expiry::PAST, now);
            }
        }
        let cause = cause_of_offence(&order.by.filter, &order.by.rule);
        match self.ledger.ban_offender(order.target, cause, &order.policy, now) {
            Ok(Change { target, after, .. }) => {
                let until = after.ban_end().unwrap_or(Expiry::PAST);
                self.view.set(target, until, now);
                self.judge.settled(&self.rules, target, now);
                Decision::Banned(ban(target, order, until, after.bans, now))
            }
            Err(Refused::AlreadyBanned { .. }) => {
                self.ledger.seen_again(order.target, order.policy.max_memory_ttl, now);
                Decision::Refused(order.target)
            }
            Err(_) => Decision::NotBanned,
        }
    }

    /// Removes expired entries.
    fn clean(&mut self, now: UnixMillis) {
        if now.since(self.cleaned) < self.cleanup_interval {
            return;
        }
        self.cleaned = now;
        self.judge.evidence_mut().sweep(Hour::of(now));
        // A node examines the table more often, which decides nothing: an entry past its retention counts as absent, swept or not. In a long
        // log, examining every entry once a minute would take longer than all decisions.
        let entries = self.ledger.table().len();
        if entries < self.max_bans / 2 && now.since(self.swept) < RARELY {
            return;
        }
        self.swept = now;
        for removed in self.ledger.sweep(now, entries) {
            self.view.set(removed, Expiry::PAST, now);
        }
    }
}

fn ban(target: Target, order: &BanOrder, until: Expiry, step: u32, at: UnixMillis) -> Ban {
    let (filter, rule) = (Arc::clone(&order.by.filter), Arc::clone(&order.by.rule));
    Ban { target, filter, rule, attempts: order.attempts, at, until, step }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use banmesh_core::attempts::{JailId, Recognised};
    use banmesh_core::policy::{BanPolicy, Scope};
    use banmesh_types::nat64::Nat64;
    use banmesh_types::netset::NetSet;

    pub(super) fn node() -> VirtualNode {
        let policy = BanPolicy {
            max_attempts: 3,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(86_400),
        };
        let scope = Scope {
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            allowlist: ["198.51.100.0/24".parse().unwrap()].into_iter().collect(),
            own: NetSet::default(),
            nat64: Nat64::default(),
            dry_run: false,
        };
        let rules = Rules {
            scope: scope.into(),
            general: policy.into(),
            own: HashMap::new(),
            success_clears: false,
            evidence: Arc::default(),
        };
        let limits = Limits {
            max_bans: 1000,
            max_clock_drift: Duration::from_secs(10),
            max_ban_time: Duration::from_secs(86_400),
        };
        VirtualNode::new("replay".parse().unwrap(), rules, limits, 1000, Duration::from_secs(60))
    }

    fn seen(source: &str, kind: Kind) -> Offence {
        let by = Recognised { filter: "sshd".into(), rule: "r".into() };
        Offence {
            source: source.parse().unwrap(),
            by,
            jail: JailId::GENERAL,
            echo: None,
            kind,
            times: 1,
            account: None,
            unknown: false,
        }
    }

    #[test]
    fn bans_begin_end_and_escalate_by_the_times_of_the_lines() {
        let mut node = node();
        let mut at = |seconds: u64, kind| {
            node.judge(&seen("192.0.2.1", kind), true, UnixMillis(1_800_000_000_000 + seconds * 1000))
        };
        assert_eq!(at(0, Kind::Failure), Decision::Counted);
        // The first one is outside of the window by now.
        assert_eq!(at(600, Kind::Failure), Decision::Counted);
        assert_eq!(at(700, Kind::Failure), Decision::Counted);
        let Decision::Banned(first) = at(800, Kind::Failure) else { panic!() };
        assert_eq!((first.step, first.until.seconds()), (1, 1_800_001_100));
        assert!(matches!(at(801, Kind::Failure), Decision::Refused(_)));
        assert!(matches!(at(802, Kind::Success), Decision::LoginRefused(_)));
        assert_eq!(at(1100, Kind::Success), Decision::Login);
        for seconds in [1101, 1102] {
            assert_eq!(at(seconds, Kind::Failure), Decision::Counted);
        }
        let Decision::Banned(second) = at(1103, Kind::Failure) else { panic!() };
        assert_eq!((second.step, second.until.seconds()), (2, 1_800_001_703));
    }

    #[test]
    fn allowed_sources_are_not_banned() {
        let mut node = node();
        for _ in 0..5 {
            let decision = node.judge(&seen("198.51.100.7", Kind::Failure), true, UnixMillis(1_800_000_000_000));
            assert_eq!(decision, Decision::Allowed);
        }
        assert_eq!(node.active(), 0);
    }
}
