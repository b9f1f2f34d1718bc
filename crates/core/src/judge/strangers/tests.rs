use std::collections::HashSet;

use super::*;
use crate::account::AccountName;
use crate::attempts::JailId;
use crate::evidence::{AccountKey, Settings};
use crate::judge::{Kind, Standing, Verdict};
use crate::policy::Scope;
use banmesh_types::echo::EchoClass;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn rules(known: Mode, names: Mode, networks: Mode) -> Rules {
    let general = BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: 24 * HOUR,
        escalation_factor: 2.0,
        max_memory_ttl: 72 * HOUR,
    };
    let scope = Scope {
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        allowlist: NetSet::default(),
        own: NetSet::default(),
        nat64: Nat64::default(),
        dry_run: false,
    };
    let key = Some(AccountKey::new([7; 16]));
    let evidence = Settings { known, names, networks, key, blind: HashSet::new(), never: HashSet::new() };
    Rules {
        scope: scope.into(),
        general: general.into(),
        own: HashMap::new(),
        success_clears: false,
        evidence: evidence.into(),
    }
}

fn seen(source: &str, account: &str, kind: Kind) -> Offence {
    Offence {
        source: source.parse().unwrap(),
        by: Recognised { filter: "sshd".into(), rule: "failed-password".into() },
        jail: JailId::GENERAL,
        echo: None,
        kind,
        times: 1,
        account: AccountName::new(account.as_bytes()),
        unknown: false,
    }
}

fn judge(judge: &mut Judge, rules: &Rules, offence: &Offence, now: UnixMillis) -> Verdict {
    judge.judge(rules, offence, Standing::Free, now).0
}

fn fail(one: &mut Judge, rules: &Rules, source: &str, account: &str) -> Verdict {
    judge(one, rules, &seen(source, account, Kind::Failure), NOW)
}

/// A judge that has seen logins for two days, with `accounts` at home at 192.0.2.1.
fn learned(rules: &Rules, accounts: usize) -> Judge {
    let mut one = Judge::new(1000);
    for day in [48, 0] {
        for n in 0..accounts {
            judge(&mut one, rules, &seen("192.0.2.1", &format!("user{n}"), Kind::Success), NOW.minus(day * HOUR));
        }
    }
    one
}

const ALL: [Mode; 3] = [Mode::On; 3];

#[test]
fn the_limit_grows_with_the_accounts_at_home_and_shared_addresses_are_banned_briefly() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 4);
    for n in 1..25 {
        let verdict = fail(&mut one, &rules, "192.0.2.1", "user0");
        assert!(matches!(verdict, Verdict::Counted { attempts, of: 25, .. } if attempts == n), "{verdict:?}");
    }
    let Verdict::Ban(order) = fail(&mut one, &rules, "192.0.2.1", "user0") else { unreachable!() };
    assert!((0..10).all(|bans| order.policy.ban_time(bans) <= Duration::from_secs(900)));
    assert!(order.by.rule.contains("share"));
    assert!(one.explain(&rules, "192.0.2.1".parse().unwrap(), NOW)[0].contains("limit is 5 × 5"));
}

#[test]
fn a_stranger_that_tries_bait_is_banned_at_once_and_its_points_are_not_shared() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    for source in ["10.1.0.1", "10.2.0.1"] {
        assert!(matches!(fail(&mut one, &rules, source, "oracle"), Verdict::Counted { attempts: 1, .. }));
    }
    let (verdict, share) = one.judge(&rules, &seen("10.3.0.1", "oracle", Kind::Failure), Standing::Free, NOW);
    let Verdict::Ban(order) = verdict else { unreachable!() };
    assert_eq!((&*order.by.filter, order.policy.ban_time(0), order.policy.ban_time(1)), ("names", HOUR, 24 * HOUR));
    assert!(share.is_none());
    // Somebody at home who mistypes is not banned.
    assert!(matches!(fail(&mut one, &rules, "192.0.2.1", "oracle"), Verdict::Counted { attempts: 2, of: 10, .. }));
}

#[test]
fn a_repeat_that_names_the_account_first_counts_the_difference() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    for source in ["10.1.0.1", "10.2.0.1"] {
        fail(&mut one, &rules, source, "oracle");
    }
    let line = |account: &str, class| Offence {
        echo: Some(EchoClass { filter: 0, class }),
        ..seen("10.3.0.1", account, Kind::Failure)
    };
    assert!(matches!(judge(&mut one, &rules, &line("", 0), NOW), Verdict::Counted { attempts: 1, .. }));
    assert!(
        matches!(judge(&mut one, &rules, &line("oracle", 1), NOW), Verdict::Ban(order) if &*order.by.filter == "names")
    );
}

#[test]
fn a_slow_stranger_is_banned_after_fifteen_points_in_a_week() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    for n in 0..15_u32 {
        let offence = seen("10.1.0.1", "user0", Kind::Failure);
        let verdict = judge(&mut one, &rules, &offence, NOW.plus(2 * n * HOUR));
        assert_eq!(matches!(&verdict, Verdict::Ban(order) if &*order.by.filter == "slow"), n == 14, "{n}: {verdict:?}");
    }
}

#[test]
fn a_network_in_which_nobody_is_at_home_is_banned() {
    for (networks, mode) in [(1, Mode::On), (0, Mode::Observe), (0, Mode::Off)] {
        let rules = rules(Mode::On, Mode::Off, mode);
        let mut one = learned(&rules, 1);
        for n in 1..=8 {
            fail(&mut one, &rules, &format!("203.0.113.{n}"), "user0");
        }
        let effects = one.take_side_effects();
        assert_eq!((effects.orders.len(), effects.would.len()), (networks, usize::from(mode == Mode::Observe)));
        for order in effects.orders {
            assert_eq!((order.target.to_string(), order.policy.ban_time(0)), ("203.0.113.0/24".to_owned(), HOUR));
        }
    }
}

#[test]
fn with_all_off_nothing_is_recorded() {
    let rules = rules(Mode::Off, Mode::Off, Mode::Off);
    let mut one = learned(&rules, 4);
    fail(&mut one, &rules, "192.0.2.1", "user0");
    assert_eq!(one.evidence().size().entries(), 0);
    assert!(one.take_side_effects().records.is_empty());
}

#[test]
fn a_line_of_a_scanner_does_not_undo_the_limit_of_a_home() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 8);
    for _ in 0..20 {
        assert!(matches!(fail(&mut one, &rules, "192.0.2.1", "user0"), Verdict::Counted { of: 45, .. }));
    }
    // It names nobody, and its filter knows no logins.
    let by = Recognised { filter: "nginx".into(), rule: "probe".into() };
    let probe = Offence { by, account: None, ..seen("192.0.2.1", "", Kind::Failure) };
    let verdict = judge(&mut one, &rules, &probe, NOW);
    assert!(matches!(verdict, Verdict::Counted { attempts: 21, of: 45, .. }), "{verdict:?}");
}

#[test]
fn a_login_from_the_allowlist_shows_that_the_name_is_in_use() {
    let mut rules = rules(ALL[0], ALL[1], ALL[2]);
    Arc::make_mut(&mut rules.scope).allowlist = std::iter::once("198.51.100.0/24".parse().unwrap()).collect();
    let mut one = learned(&rules, 1);
    let login = seen("198.51.100.9", "anna", Kind::Success);
    assert!(matches!(judge(&mut one, &rules, &login, NOW), Verdict::Allowed(_)));
    for source in ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.4.0.1"] {
        let verdict = fail(&mut one, &rules, source, "anna");
        assert!(matches!(verdict, Verdict::Counted { attempts: 1, .. }), "{source}: {verdict:?}");
    }
}

#[test]
fn a_filter_in_shadow_mode_is_no_evidence() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    let shadow = |source: &str, kind| Offence { jail: JailId::GENERAL.shadowed(), ..seen(source, "oracle", kind) };
    for source in ["10.1.0.1", "10.2.0.1", "10.3.0.1"] {
        judge(&mut one, &rules, &shadow(source, Kind::Failure), NOW);
    }
    assert!(matches!(fail(&mut one, &rules, "10.4.0.1", "oracle"), Verdict::Counted { attempts: 1, .. }));
    for day in [48, 0] {
        judge(&mut one, &rules, &shadow("10.5.0.1", Kind::Success), NOW.minus(day * HOUR));
    }
    assert!(matches!(fail(&mut one, &rules, "10.5.0.1", "user0"), Verdict::Counted { of: 5, .. }));
}

#[test]
fn every_target_that_would_be_banned_is_reported_once_however_many_there_are() {
    let mut observed = Observed::default();
    let stranger = |n: u32| Target::host(std::net::IpAddr::V4(n.into()).into());
    let many = u32::try_from(MAX_OBSERVED).unwrap() + 100;
    for n in 0..many {
        assert!(observed.ban(stranger(n), HOUR, NOW), "{n}");
    }
    assert!(!observed.ban(stranger(many - 1), HOUR, NOW), "the same again");
    assert!(observed.until.len() <= MAX_OBSERVED && observed.order.len() <= MAX_OBSERVED);
    assert!(observed.ban(stranger(many - 1), HOUR, NOW.plus(HOUR)), "after its end");
}

#[test]
fn while_names_are_observed_a_ban_is_reported_once_and_not_ordered() {
    let rules = rules(Mode::On, Mode::Observe, Mode::Off);
    let mut one = learned(&rules, 1);
    for source in ["10.1.0.1", "10.2.0.1", "10.3.0.1", "10.3.0.1", "10.3.0.1"] {
        assert!(matches!(fail(&mut one, &rules, source, "oracle"), Verdict::Counted { .. }), "{source}");
    }
    let would = one.take_side_effects().would;
    assert_eq!(would.len(), 1, "{would:?}");
    assert_eq!((would[0].mechanism, would[0].target.to_string()), (Mechanism::Names, "10.3.0.1".to_owned()));
}

#[test]
fn while_known_addresses_are_observed_only_a_ban_of_a_home_is_reported() {
    let rules = rules(Mode::Observe, Mode::Off, Mode::Off);
    let mut one = learned(&rules, 1);
    for source in ["192.0.2.1", "10.9.0.1"] {
        let bans = (0..5).filter(|_| matches!(fail(&mut one, &rules, source, "user0"), Verdict::Ban(_))).count();
        assert_eq!(bans, 1, "{source}");
    }
    let would = one.take_side_effects().would;
    assert_eq!(would.len(), 1, "{would:?}");
    assert_eq!((would[0].mechanism, would[0].target.to_string()), (Mechanism::Known, "192.0.2.1".to_owned()));
}

#[test]
fn tries_that_a_jail_in_shadow_mode_sees_are_neither_published_nor_an_attack() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    one.take_side_effects();
    for (jail, attacked) in [(JailId::GENERAL.shadowed(), 0), (JailId::GENERAL, 1)] {
        for n in 1..=8 {
            let offence = Offence { jail, ..seen(&format!("10.{n}.0.1"), "user0", Kind::Failure) };
            judge(&mut one, &rules, &offence, NOW);
        }
        assert_eq!((one.attacked(NOW), one.take_side_effects().records.is_empty()), (attacked, attacked == 0));
    }
}

#[test]
fn what_a_slow_stranger_failed_on_another_node_counts() {
    for (names, banned) in [(Mode::On, true), (Mode::Observe, false)] {
        let rules = rules(Mode::On, Mode::On, Mode::Off);
        let (mut here, mut there) = (learned(&rules, 1), learned(&rules, 1));
        let offence = seen("10.1.0.1", "user0", Kind::Failure);
        for n in 0..14_u32 {
            judge(&mut there, &rules, &offence, NOW.plus(2 * n * HOUR));
        }
        judge(&mut here, &rules, &offence, NOW);
        let rules = self::rules(Mode::On, names, Mode::Off);
        let later = NOW.plus(28 * HOUR);
        let shares = there.take_side_effects().shares;
        let orders: Vec<Option<BanOrder>> =
            shares.into_iter().map(|share| here.shared(&rules, 9, share, Standing::Free, later)).collect();
        let (last, earlier) = orders.split_last().unwrap();
        assert!(earlier.iter().all(Option::is_none));
        assert_eq!(last.as_ref().map(|order| (&*order.by.filter, order.attempts)), banned.then_some(("slow", 15)));
    }
}

#[test]
fn counts_of_other_nodes_ban_a_home_only_at_its_limit() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let (mut here, mut there) = (learned(&rules, 1), learned(&rules, 1));
    let known = ["192.0.2.1", "10.9.0.1"].map(|source| here.known(&rules, source.parse().unwrap(), NOW));
    assert_eq!(known, [1, 0]);
    for _ in 0..4 {
        fail(&mut here, &rules, "192.0.2.1", "user0");
    }
    let offence = seen("192.0.2.1", "user0", Kind::Failure);
    let orders: Vec<Option<BanOrder>> = (0..6)
        .map(|_| there.judge(&rules, &offence, Standing::Free, NOW).1.unwrap())
        .map(|share| here.shared(&rules, 9, share, Standing::Free, NOW))
        .collect();
    let (last, earlier) = orders.split_last().unwrap();
    assert!(earlier.iter().all(Option::is_none), "nine of ten");
    let order = last.as_ref().unwrap();
    assert_eq!((order.attempts, &*order.by.rule), (10, "failed-password"));
}

#[test]
fn what_the_evidence_shows_about_a_source_is_said_in_words() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    let said = |one: &Judge, source: &str| one.explain(&rules, source.parse().unwrap(), NOW);
    assert_eq!(said(&one, "10.1.0.1"), ["a stranger: no account has logged in from it within 30d"]);
    fail(&mut one, &rules, "10.1.0.1", "oracle");
    let network = "10.1.0.0/24: 1 of its addresses failed within 24h (10.1.0.1), nobody is at home in it";
    assert_eq!(said(&one, "10.1.0.1")[1..], ["it tried 1 name within 7d", network]);
    fail(&mut one, &rules, "10.1.0.1", "admin");
    assert_eq!(said(&one, "10.1.0.1")[1], "it tried 2 names within 7d");
    fail(&mut one, &rules, "192.0.2.1", "oracle");
    let home = "1 account is at home here (first 2d ago), so the limit is 5 × 2";
    assert_eq!(said(&one, "192.0.2.1"), [home]);
    fail(&mut one, &rules, "192.0.2.9", "oracle");
    let inhabited = "192.0.2.0/24: 1 of its addresses failed within 24h (192.0.2.9), somebody is at home in it, so it is not banned";
    assert_eq!(said(&one, "192.0.2.9")[2], inhabited);
    let shared = ["2 accounts are", "4 accounts are"].map(|accounts| format!("{accounts} at home here (first 2d ago)"));
    let [two, four] = [2, 4].map(|accounts| said(&learned(&rules, accounts), "192.0.2.1"));
    assert!(two[0].starts_with(&shared[0]) && two.len() == 1, "{two:?}");
    assert!(four[0].starts_with(&shared[1]) && four[1].starts_with("it is a shared address"), "{four:?}");
    judge(&mut one, &rules, &seen("10.2.0.1", "user0", Kind::Success), NOW);
    let visited = "a stranger: accounts logged in from it, but none that is at home here for a day";
    assert_eq!(said(&one, "10.2.0.1"), [visited]);
    assert_eq!(one.explain(&self::rules(Mode::Off, Mode::Off, Mode::Off), "10.1.0.1".parse().unwrap(), NOW), [""; 0]);
}

#[test]
fn what_is_known_about_a_name_is_its_homes_or_who_tried_it() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let mut one = learned(&rules, 1);
    for source in ["10.1.0.1", "10.2.0.1", "10.3.0.1"] {
        fail(&mut one, &rules, source, "oracle");
    }
    let user = one.name_facts(&rules, "user0", NOW).unwrap();
    assert_eq!((user.bait, user.wanders, user.never, user.tried_by.len()), (false, false, false, 0));
    assert_eq!(user.homes.iter().map(|home| home.0.to_string()).collect::<Vec<_>>(), ["192.0.2.1"]);
    assert!(user.last_login.is_some());
    let name = one.name_facts(&rules, "oracle", NOW).unwrap();
    assert_eq!((name.bait, name.last_login, name.homes.len()), (true, None, 0));
    let networks: Vec<String> = name.tried_by.iter().map(|tried| tried.0.to_string()).collect();
    assert_eq!(networks, ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]);
    assert_eq!(one.name_facts(&rules, "", NOW), None);
    let account = rules.evidence.key.as_ref().unwrap().named(&AccountName::new(b"oracle").unwrap()).account;
    let mut except = rules.clone();
    Arc::make_mut(&mut except.evidence).never.insert(account);
    let excepted = one.name_facts(&except, "oracle", NOW).unwrap();
    assert_eq!((excepted.bait, excepted.never), (false, true));
}

#[test]
fn logins_that_other_nodes_saw_are_evidence() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let (mut here, mut there) = (Judge::new(1000), Judge::new(1000));
    judge(&mut there, &rules, &seen("192.0.2.1", "user0", Kind::Success), NOW.minus(48 * HOUR));
    for record in there.take_side_effects().records {
        assert!(here.evidence_mut().receive(record, Hour::of(NOW)));
    }
    assert_eq!(here.known(&rules, "192.0.2.1".parse().unwrap(), NOW), 1);
}

#[test]
fn mechanisms_that_wait_say_why() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    let said = |one: &Judge| one.mechanisms(&rules, &["sshd", "gitea"], NOW);
    let mut one = Judge::new(1000);
    let waiting = "waiting: no logins were seen yet";
    let [names, networks] = ["names", "networks"].map(|name| format!("{name}: on, but {waiting}"));
    assert_eq!(said(&one), ["known addresses: on", &names, &networks]);
    judge(&mut one, &rules, &seen("192.0.2.1", "user0", Kind::Success), NOW.minus(3 * HOUR));
    assert!(said(&one)[1].ends_with("waiting: logins have been seen for 3h of 24h"), "{:?}", said(&one));
    let mut one = learned(&rules, 1);
    assert_eq!(said(&one), ["known addresses: on", "names: on", "networks: on"]);
    let by = Recognised { filter: "gitea".into(), rule: "failed".into() };
    judge(&mut one, &rules, &Offence { by, ..seen("10.1.0.1", "user0", Kind::Failure) }, NOW);
    assert!(said(&one)[2].starts_with("networks: on, but waiting: gitea reports failures and no logins"));
    for n in 1..=8 {
        fail(&mut one, &rules, &format!("10.{n}.0.1"), "user0");
    }
    assert!(said(&one)[3].starts_with("1 account in use is under attack"));
    let attacked = |name: &[u8]| one.is_attacked(&rules, &AccountName::new(name).unwrap(), NOW);
    assert!(attacked(b"user0") && !attacked(b"user1"));
}

#[test]
fn a_further_name_counts_twice_only_after_logins_were_seen_for_a_day() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    for (hours, attempts) in [(3, 2), (48, 3)] {
        let mut one = Judge::new(1000);
        judge(&mut one, &rules, &seen("192.0.2.1", "user0", Kind::Success), NOW.minus(hours * HOUR));
        fail(&mut one, &rules, "10.1.0.1", "oracle");
        let verdict = fail(&mut one, &rules, "10.1.0.1", "admin");
        assert!(matches!(verdict, Verdict::Counted { attempts: n, .. } if n == attempts), "{hours}: {verdict:?}");
    }
}

/// How many targets of 203.0.113.0/24 have failed, as far as the evidence shows.
fn failed(one: &Judge) -> usize {
    let network = CompactTarget::of("203.0.113.0/24".parse().unwrap());
    one.evidence().failed_in(network, Hour::of(NOW)).len()
}

#[test]
fn failures_count_against_a_network_with_or_without_a_name_unless_a_filter_is_blind() {
    let rules = rules(ALL[0], ALL[1], ALL[2]);
    for (account, blind, expected) in [("user0", false, 2), ("", false, 2), ("user0", true, 0)] {
        let mut one = learned(&rules, 1);
        if blind {
            let by = Recognised { filter: "gitea".into(), rule: "failed".into() };
            judge(&mut one, &rules, &Offence { by, ..seen("10.1.0.1", "user0", Kind::Failure) }, NOW);
        }
        for n in 1..=2 {
            fail(&mut one, &rules, &format!("203.0.113.{n}"), account);
        }
        assert_eq!(failed(&one), expected, "{account} {blind}");
    }
    let mut one = Judge::new(1000);
    judge(&mut one, &rules, &seen("192.0.2.1", "user0", Kind::Success), NOW.minus(3 * HOUR));
    fail(&mut one, &rules, "203.0.113.1", "user0");
    assert_eq!(failed(&one), 0, "logins have been seen for three hours only");
}

#[test]
fn slow_failures_ban_nobody_without_names_or_without_logins_of_the_filter() {
    for (names, filter, banned) in [(Mode::On, "sshd", true), (Mode::Off, "sshd", false), (Mode::On, "gitea", false)] {
        let rules = rules(Mode::On, names, Mode::Off);
        let mut one = learned(&rules, 1);
        let by = Recognised { filter: filter.into(), rule: "failed".into() };
        let offence = Offence { by, ..seen("10.1.0.1", "user0", Kind::Failure) };
        let verdicts = (0..20_u32).map(|n| judge(&mut one, &rules, &offence, NOW.plus(2 * n * HOUR)));
        assert_eq!(verdicts.filter(|verdict| matches!(verdict, Verdict::Ban(_))).count() > 0, banned, "{filter}");
        assert_eq!(one.take_side_effects().would, [], "{filter}");
    }
}
