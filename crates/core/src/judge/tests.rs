use std::time::Duration;

use super::*;
use banmesh_types::echo::EchoClass;
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
    let allowlist: NetSet = ["127.0.0.0/8", "2001:db8:a::/48"].iter().map(|t| t.parse::<Target>().unwrap()).collect();
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
        evidence: Arc::default(),
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
        account: None,
        unknown: false,
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
fn only_the_first_offence_of_a_source_in_a_jail_is_the_first() {
    let (rules, mut judge) = (rules(), Judge::new(100));
    let first = |judge: &Judge, filter| judge.is_first(&rules, &seen("192.0.2.1", filter), NOW);
    assert!(first(&judge, "sshd"));
    judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW);
    assert!(!first(&judge, "dovecot") && first(&judge, "strict"));
    assert!(judge.is_first(&rules, &seen("192.0.2.1", "sshd"), NOW.plus(Duration::from_secs(601))));
}

#[test]
fn filters_are_counted_together_unless_they_have_their_own_policy() {
    let (rules, mut judge) = (rules(), Judge::new(100));
    for (filter, expected) in [("sshd", 1), ("dovecot", 2), ("strict", 1), ("postfix", 3)] {
        assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", filter), Standing::Free, NOW).0), Some(expected));
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
                let order = other.shared(&rules, n, share.unwrap(), Standing::Free, now);
                assert!(order.is_none() || m < 5, "the sixth node has recognised no offence itself");
                orders += u32::from(order.is_some());
            }
        }
    }
    assert!(orders >= 1);
    assert_eq!(nodes[5].attempts().len(), 1);
}

#[test]
fn a_jail_in_shadow_mode_counts_apart_and_never_bans() {
    let (mut rules, mut judge) = (rules(), Judge::new(100));
    let jail = JailId(7).shadowed();
    rules.own.insert(jail, policy(2));
    let shadow = Offence { jail, ..seen("192.0.2.1", "new") };
    let source: Target = "192.0.2.1".parse().unwrap();
    assert_eq!(attempts(&judge.judge(&rules, &shadow, Standing::Free, NOW).0), Some(1));
    // A ban by another jail changes nothing.
    judge.settled(&rules, source, NOW);
    let (verdict, _) = judge.judge(&rules, &shadow, Standing::Banned, NOW);
    assert!(matches!(verdict, Verdict::WouldBan(BanOrder { attempts: 2, .. })), "{verdict:?}");
    let (verdict, _) = judge.judge(&rules, &shadow, Standing::Free, NOW);
    assert!(matches!(verdict, Verdict::WouldBeBanned(target) if target == source), "{verdict:?}");
    assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, NOW).0), Some(1));
    let later = NOW.plus(Duration::from_secs(301));
    assert_eq!(attempts(&judge.judge(&rules, &shadow, Standing::Free, later).0), Some(1));
    // Counts of other nodes do not ban either.
    let share = SlotCount { key: (jail, source), slot: threshold_of(&policy(2)).slot(later), count: 9 };
    assert!(judge.shared(&rules, 1, share, Standing::Free, later).is_none());
}

/// A node where only the attempts of others were known banned at the first attempt after their ban had ended.
#[test]
fn counts_that_arrive_after_their_ban_do_not_count_for_another() {
    let (rules, mut judge) = (rules(), Judge::new(100));
    let limit = rules.general.max_attempts;
    let source: Target = "192.0.2.1".parse().unwrap();
    let slot = threshold_of(&rules.general).slot(NOW);
    let share = |count| SlotCount { key: (JailId::GENERAL, source), slot, count };
    judge.settled(&rules, source, NOW);
    for count in 1..=limit {
        assert!(judge.shared(&rules, 1, share(count), Standing::Banned, NOW).is_none());
    }
    let ended = NOW.plus(Duration::from_secs(60));
    assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, ended).0), Some(1));
    // Nor do copies that arrive later still.
    assert!(judge.shared(&rules, 1, share(limit), Standing::Free, ended).is_none());
    assert_eq!(attempts(&judge.judge(&rules, &seen("192.0.2.1", "sshd"), Standing::Free, ended).0), Some(2));
}

#[test]
fn an_unban_clears_what_is_counted_over_days_and_a_ban_does_not() {
    let (rules, mut judge) = (rules(), Judge::new(100));
    let source: Target = "192.0.2.1".parse().unwrap();
    let share = SlotCount { key: (SLOW, source), slot: SLOW_THRESHOLD.slot(NOW), count: 3 };
    judge.attempts.merge(1, share, SLOW_THRESHOLD, NOW);
    judge.settled(&rules, source, NOW);
    assert_eq!(judge.attempts.attempts(share.key, SLOW_THRESHOLD, NOW), 3);
    judge.unbanned(&rules, source, NOW);
    assert_eq!(judge.attempts.attempts(share.key, SLOW_THRESHOLD, NOW), 0);
}

#[test]
fn attempts_are_listed_for_each_jail_that_has_any() {
    let (mut judge, rules) = (Judge::new(10), rules());
    for filter in ["sshd", "sshd", "strict"] {
        judge.judge(&rules, &seen("192.0.2.1", filter), Standing::Free, NOW);
    }
    let listed = |source: &str| -> Vec<(JailId, u32)> {
        let jails = judge.attempts_by_jail(&rules, source.parse().unwrap(), NOW);
        jails.into_iter().map(|jail| (jail.jail, jail.counts.own)).collect()
    };
    assert_eq!(listed("192.0.2.1"), [(JailId::GENERAL, 2), (JailId(7), 1)]);
    assert_eq!(listed("192.0.2.2"), []);
}

#[test]
fn lines_that_may_be_duplicates_are_expected_of_a_source_that_was_counted() {
    let (mut judge, rules) = (Judge::new(10), rules());
    let echo = Some(EchoClass { filter: 0, class: 0 });
    judge.judge(&rules, &Offence { echo, ..seen("192.0.2.1", "sshd") }, Standing::Free, NOW);
    let expected = |source: &str| judge.expected_duplicates(source.parse().unwrap(), NOW);
    assert_eq!((expected("192.0.2.1") > 0, expected("192.0.2.2")), (true, 0));
}
