use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);

fn policy() -> BanPolicy {
    BanPolicy {
        max_attempts: 5,
        time_window: 10 * MINUTE,
        initial_ban_time: 5 * MINUTE,
        max_ban_time: 24 * 60 * MINUTE,
        escalation_factor: 2.0,
        max_memory_ttl: 72 * 60 * MINUTE,
    }
}

fn ledger(node: &str) -> Ledger {
    let limits =
        Limits { max_bans: 100, max_clock_drift: Duration::from_secs(10), max_ban_time: policy().max_ban_time };
    Ledger::new(node.parse().unwrap(), limits, Hlc::default())
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn offend(ledger: &mut Ledger, text: &str, now: UnixMillis) -> Result<Change, Refused> {
    ledger.ban_offender(target(text), cause_of_offence("sshd", "failed-password"), &policy(), now)
}

fn operator() -> Cause {
    Cause::new(By::Operator("ann".into()), "mistake")
}

#[test]
fn bans_escalate_while_the_history_of_the_offender_counts() {
    let mut ledger = ledger("a");
    let mut now = NOW;
    for minutes in [5, 10, 20, 40] {
        let change = offend(&mut ledger, "192.0.2.1", now).unwrap();
        let until = change.after.ban_end().unwrap();
        assert_eq!(until.remaining(now), Some(minutes * MINUTE));
        assert!(matches!(offend(&mut ledger, "192.0.2.1", now), Err(Refused::AlreadyBanned { .. })));
        now = now.plus((minutes + 1) * MINUTE);
    }
    // After max_memory_ttl without an offence, the escalation starts again.
    let later = now.plus(73 * 60 * MINUTE);
    ledger.sweep(later, 10);
    let change = offend(&mut ledger, "192.0.2.1", later).unwrap();
    assert_eq!(change.after.ban_end().unwrap().remaining(later), Some(5 * MINUTE));
}

#[test]
fn results_do_not_depend_on_when_a_node_sweeps() {
    let (mut swept, mut unswept) = (ledger("a"), ledger("a"));
    let later = NOW.plus(73 * 60 * MINUTE);
    for ledger in [&mut swept, &mut unswept] {
        offend(ledger, "192.0.2.1", NOW).unwrap();
        offend(ledger, "192.0.2.2", NOW).unwrap();
        // A ban whose retention passes after one minute.
        let ban = ban(ledger, "192.0.2.3", Expiry::at_minute(NOW.plus(MINUTE)), NOW).unwrap();
        assert!(ban.after.is_banned(NOW));
    }
    assert_eq!(swept.sweep(later, 10).len(), 3);
    // An entry past its retention has no history, cannot be unbanned, and does not win over entries from other nodes.
    let mut other = ledger("b");
    let theirs = ban(&mut other, "192.0.2.2", Expiry::at_minute(later.plus(MINUTE)), NOW).unwrap();
    for ledger in [&mut swept, &mut unswept] {
        let again = offend(ledger, "192.0.2.1", later).unwrap();
        assert_eq!((again.before, again.after.bans), (None, 1));
        assert!(matches!(
            ledger.merge(theirs.target, theirs.after.clone(), later),
            Arrival::Changed(Change { before: None, .. })
        ));
        assert!(matches!(ledger.unban(target("192.0.2.3"), operator(), later), Err(Refused::NotBanned { .. })));
        assert!(ledger.seen_again(target("192.0.2.3"), MINUTE, later).is_none());
    }
    unswept.sweep(later, 10);
    assert_eq!(swept.table().digests(), unswept.table().digests());
}

#[test]
fn an_unban_wins_even_if_its_nodes_clock_is_behind() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let ban = offend(&mut a, "192.0.2.1", NOW).unwrap();
    b.merge(ban.target, ban.after.clone(), NOW.minus(Duration::from_secs(5)));
    let unban = b.unban(ban.target, operator(), NOW.minus(Duration::from_secs(5))).unwrap();
    a.merge(unban.target, unban.after.clone(), NOW);
    assert!(!a.table().entry(ban.target).unwrap().is_banned(NOW));
    // A second copy of the ban changes nothing.
    assert_eq!(b.merge(ban.target, ban.after, NOW), Arrival::Known);
    assert_eq!(a.table().digests(), b.table().digests());
}

#[test]
fn the_tombstone_of_a_permanent_ban_is_kept_permanently() {
    let mut ledger = ledger("a");
    ban(&mut ledger, "192.0.2.1", Expiry::NEVER, NOW).unwrap();
    let unban = ledger.unban(target("192.0.2.1"), operator(), NOW).unwrap();
    assert_eq!(unban.after.keep, Expiry::NEVER);
    assert_eq!(
        ledger.unban(target("192.0.2.1"), operator(), NOW),
        Err(Refused::NotBanned { target: target("192.0.2.1") })
    );
}

#[test]
fn a_full_table_refuses_new_targets_but_not_those_that_it_has() {
    let mut ledger = ledger("a");
    for n in 0..94 {
        offend(&mut ledger, &format!("192.0.2.{n}"), NOW).unwrap();
    }
    assert!(matches!(offend(&mut ledger, "198.51.100.1", NOW), Err(Refused::Full { max: 100, .. })));
    assert_eq!(ledger.table().len(), 94);
    // A target in the table can be banned again.
    offend(&mut ledger, "192.0.2.7", NOW.plus(6 * MINUTE)).unwrap();
}

#[test]
fn an_entry_from_the_future_is_held_back_until_the_clock_catches_up() {
    let (mut fast, mut ours) = (ledger("fast"), ledger("ours"));
    let ahead = NOW.plus(10 * MINUTE);
    let ban = offend(&mut fast, "192.0.2.1", ahead).unwrap();
    assert_eq!(ours.merge(ban.target, ban.after.clone(), NOW), Arrival::Early);
    assert_eq!(ours.merge(ban.target, ban.after.clone(), NOW), Arrival::Early);
    assert_eq!(ours.early(), 1);
    assert!(ours.merge_due(NOW.plus(MINUTE)).is_empty());
    // Meanwhile, local writes are stamped by this node's clock.
    let local = offend(&mut ours, "192.0.2.9", NOW).unwrap();
    assert_eq!(local.after.latest().hlc.millis(), NOW);
    assert_eq!(ours.merge_due(ahead).len(), 1);
    assert_eq!(ours.table().entry(ban.target), Some(ban.after));
}

#[test]
fn after_all_clocks_were_set_back_an_unban_takes_effect_at_once() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let ban = offend(&mut a, "192.0.2.1", NOW).unwrap();
    b.merge(ban.target, ban.after.clone(), NOW);
    // All clocks were an hour ahead, and have been corrected.
    let right = NOW.minus(60 * MINUTE);
    let unban = a.unban(ban.target, operator(), right).unwrap();
    assert!(unban.after.latest().hlc > ban.after.latest().hlc);
    assert!(matches!(b.merge(unban.target, unban.after, right), Arrival::Changed(_)));
    assert!(!b.table().entry(ban.target).unwrap().is_banned(right));
    // A new entry from a node whose clock is still ahead is held back, and does not advance this node's clock.
    let mut ahead = ledger("c");
    let early = offend(&mut ahead, "192.0.2.2", NOW).unwrap();
    assert_eq!(b.merge(early.target, early.after, right), Arrival::Early);
    assert_eq!(offend(&mut b, "192.0.2.3", right).unwrap().after.latest().hlc.millis(), right);
}

#[test]
fn a_further_offence_extends_the_retention_but_is_rarely_written() {
    let mut ledger = ledger("a");
    let ttl = policy().max_memory_ttl;
    let ban = offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    assert_eq!(ledger.seen_again(ban.target, ttl, NOW.plus(MINUTE)), None);
    let change = ledger.seen_again(ban.target, ttl, NOW.plus(4 * 60 * MINUTE)).unwrap();
    assert!(change.after.keep > ban.after.keep);
    assert_eq!(change.after.latest(), ban.after.latest());
    assert_eq!(ledger.seen_again(target("192.0.2.2"), ttl, NOW), None);
}

fn ban(ledger: &mut Ledger, text: &str, until: Expiry, now: UnixMillis) -> Result<Change, Refused> {
    ledger.ban(target(text), BanTerms { until, remember: MINUTE, replace: false }, operator(), now)
}

fn allow(ledger: &mut Ledger, text: &str, until: Expiry, now: UnixMillis) -> Change {
    ledger.allow(target(text), until, operator(), now).unwrap()
}

#[test]
fn an_allowlist_entry_prevents_bans_until_it_ends_or_is_removed() {
    let mut ledger = ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    let until = Expiry::at(NOW.plus(10 * MINUTE));
    let change = allow(&mut ledger, "192.0.2.1", until, NOW);
    assert!(is_about_allowlist(&change) && change.after.ban_end().is_none() && change.after.is_allowed(NOW));
    assert_eq!((change.after.bans, ledger.active(NOW)), (1, 0));
    assert!(change.after.keep >= change.before.unwrap().keep, "kept at least as long as the ban that it replaces");
    let refused = offend(&mut ledger, "192.0.2.1", NOW).unwrap_err();
    assert_eq!(refused, Refused::Allowed { target: target("192.0.2.1"), by: target("192.0.2.1") });
    assert!(matches!(ledger.unban(target("192.0.2.1"), operator(), NOW), Err(Refused::NotBanned { .. })));
    // After the entry ends, the offender's history still counts.
    let later = NOW.plus(10 * MINUTE);
    assert_eq!(offend(&mut ledger, "192.0.2.1", later).unwrap().after.bans, 2);
    // A network exempts the addresses inside it, and no others.
    allow(&mut ledger, "198.51.100.0/24", Expiry::NEVER, NOW);
    let refused = offend(&mut ledger, "198.51.100.9", later).unwrap_err();
    assert_eq!(refused, Refused::Allowed { target: target("198.51.100.9"), by: target("198.51.100.0/24") });
    offend(&mut ledger, "198.51.101.9", later).unwrap();
    assert!(matches!(ledger.disallow(target("198.51.100.9"), operator(), later), Err(Refused::NotAllowed { .. })));
    let change = ledger.disallow(target("198.51.100.0/24"), operator(), later).unwrap();
    assert_eq!((change.after.state(later), change.after.keep), (State::Unbanned, Expiry::NEVER));
    offend(&mut ledger, "198.51.100.9", later).unwrap();
    assert!(ledger.exemptions().is_empty());
}

#[test]
fn a_later_ban_by_an_operator_replaces_an_allowlist_entry() {
    let mut ledger = ledger("a");
    allow(&mut ledger, "192.0.2.1", Expiry::NEVER, NOW);
    let change = ban(&mut ledger, "192.0.2.1", Expiry::NEVER, NOW).unwrap();
    assert!(change.after.is_banned(NOW) && is_about_allowlist(&change));
    assert!(ledger.exemptions().is_empty());
}

/// An operator allows on A. While A is disconnected, an operator disallows on B, and a filter bans there. When A reconnects, the
/// allowlist entry must not return.
#[test]
fn an_allowlist_entry_that_was_removed_elsewhere_does_not_return() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let allowed = allow(&mut a, "192.0.2.1", Expiry::NEVER, NOW);
    b.merge(allowed.target, allowed.after.clone(), NOW);
    let later = NOW.plus(MINUTE);
    let removed = b.disallow(allowed.target, operator(), later).unwrap();
    let banned = offend(&mut b, "192.0.2.1", later).unwrap();
    // Deliver all changes out of order, and one twice.
    for change in [&banned, &allowed, &removed, &banned] {
        for ledger in [&mut a, &mut b] {
            ledger.merge(change.target, change.after.clone(), later);
        }
    }
    for ledger in [&mut a, &mut b] {
        let entry = ledger.table().entry(target("192.0.2.1")).unwrap();
        assert!(entry.is_banned(later) && !entry.is_allowed(later), "{entry:?}");
        assert!(ledger.exemptions().is_empty());
    }
    assert_eq!(a.table().digests(), b.table().digests());
}

/// An operator bans permanently on A. While A is disconnected, a filter bans for some minutes on B.
#[test]
fn a_filters_later_ban_does_not_shorten_an_operators() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let mine = ban(&mut a, "192.0.2.1", Expiry::NEVER, NOW).unwrap();
    let later = NOW.plus(MINUTE);
    let by_filter = offend(&mut b, "192.0.2.1", later).unwrap();
    a.merge(by_filter.target, by_filter.after.clone(), later);
    b.merge(mine.target, mine.after, later);
    for ledger in [&mut a, &mut b] {
        let entry = ledger.table().entry(target("192.0.2.1")).unwrap();
        for at in [later, later.plus(60 * MINUTE)] {
            let effective = entry.effective(at);
            assert_eq!(effective.state, State::Banned { until: Expiry::NEVER });
            assert_eq!((&**effective.cause, effective.stamp.node.as_str()), (&operator(), "a"));
        }
    }
    assert_eq!(a.table().digests(), b.table().digests());
}

#[test]
fn an_allowlist_entry_suspends_a_filters_later_ban_only_while_it_lasts() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let until = Expiry::at(NOW.plus(2 * MINUTE));
    let allowed = allow(&mut a, "192.0.2.1", until, NOW);
    let banned = offend(&mut b, "192.0.2.1", NOW.plus(MINUTE)).unwrap();
    a.merge(banned.target, banned.after, NOW.plus(MINUTE));
    b.merge(allowed.target, allowed.after, NOW.plus(MINUTE));
    for ledger in [&mut a, &mut b] {
        assert_eq!(ledger.active(NOW.plus(MINUTE)), 0);
        assert_eq!(ledger.active(NOW.plus(2 * MINUTE)), 1);
        assert_eq!(ledger.active(NOW.plus(6 * MINUTE)), 0);
        let entry = ledger.table().entry(target("192.0.2.1")).unwrap();
        assert!(!entry.is_banned(NOW.plus(MINUTE)) && entry.is_banned(NOW.plus(2 * MINUTE)));
    }
}

#[test]
fn a_ban_that_an_operator_ended_does_not_return_when_a_later_decision_expires() {
    let mut ledger = ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    ledger.unban(target("192.0.2.1"), operator(), NOW).unwrap();
    allow(&mut ledger, "192.0.2.1", Expiry::at(NOW.plus(MINUTE)), NOW);
    let later = NOW.plus(2 * MINUTE);
    assert!(
        !ledger.table().entry(target("192.0.2.1")).unwrap().is_banned(later),
        "unbanned, then allowed for a minute"
    );
    let mut ledger = self::ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    let terms = BanTerms { until: Expiry::at(NOW.plus(MINUTE)), remember: MINUTE, replace: true };
    ledger.ban(target("192.0.2.1"), terms, operator(), NOW).unwrap();
    assert!(!ledger.table().entry(target("192.0.2.1")).unwrap().is_banned(later), "replaced by a shorter ban");
}

#[test]
fn a_ban_is_shortened_only_with_replace() {
    let mut ledger = ledger("a");
    let permanent = ban(&mut ledger, "192.0.2.1", Expiry::NEVER, NOW).unwrap();
    let short = BanTerms { until: Expiry::at(NOW.plus(MINUTE)), remember: MINUTE, replace: false };
    let refused = ledger.ban(target("192.0.2.1"), short, operator(), NOW).unwrap_err();
    let cause = Arc::clone(&permanent.after.operator().unwrap().cause);
    assert_eq!(refused, Refused::BannedLonger { target: target("192.0.2.1"), until: Expiry::NEVER, cause });
    assert_eq!(refused.to_string(), "192.0.2.1 is already banned, permanently (by operator ann: mistake)");
    let replaced = ledger.ban(target("192.0.2.1"), BanTerms { replace: true, ..short }, operator(), NOW).unwrap();
    assert_eq!(replaced.after.ban_end(), Some(short.until));
    // The same applies to a filter's ban.
    offend(&mut ledger, "192.0.2.2", NOW).unwrap();
    assert!(matches!(ledger.ban(target("192.0.2.2"), short, operator(), NOW), Err(Refused::BannedLonger { .. })));
    assert_eq!(ban(&mut ledger, "192.0.2.2", Expiry::NEVER, NOW).unwrap().after.ban_end(), Some(Expiry::NEVER));
}

#[test]
fn a_ban_repeated_on_a_node_whose_clock_is_behind_keeps_its_end() {
    let drift = Duration::from_secs(10);
    let (mut ahead, mut behind) = (ledger("a"), ledger("b"));
    let until = Expiry::at(NOW.plus(drift + MINUTE));
    let change = ban(&mut ahead, "192.0.2.1", until, NOW.plus(drift)).unwrap();
    behind.merge(change.target, change.after, NOW);
    let repeated = ban(&mut behind, "192.0.2.1", Expiry::at(NOW.plus(MINUTE)), NOW).unwrap();
    assert_eq!((repeated.after.ban_end(), repeated.after.bans), (Some(until), 1));
    let shorter = ban(&mut behind, "192.0.2.1", Expiry::at(NOW.plus(MINUTE - Duration::from_secs(1))), NOW);
    assert!(matches!(shorter, Err(Refused::BannedLonger { .. })), "{shorter:?}");
}

#[test]
fn a_cause_has_the_kind_of_its_register() {
    let mut ledger = ledger("a");
    let by_filter = cause_of_offence("sshd", "x");
    let change = ledger.ban(target("192.0.2.1"), BanTerms::new(Expiry::NEVER, MINUTE), by_filter, NOW).unwrap();
    assert_eq!(change.after.operator().unwrap().cause.by, By::Operator("sshd".into()));
}

#[test]
fn a_repeated_ban_does_not_raise_the_step_of_the_escalation() {
    let mut ledger = ledger("a");
    for second in 0..3 {
        let now = NOW.plus(Duration::from_secs(second));
        let change = ban(&mut ledger, "192.0.2.1", Expiry::at(now.plus(5 * MINUTE)), now).unwrap();
        assert_eq!(change.after.bans, 1);
    }
    let later = NOW.plus(Duration::from_secs(330));
    assert_eq!(ban(&mut ledger, "192.0.2.1", Expiry::NEVER, later).unwrap().after.bans, 2, "a new ban");
}

#[test]
fn unbanning_an_address_names_the_banned_network_that_contains_it() {
    let mut ledger = ledger("a");
    let until = Expiry::at(NOW.plus(5 * MINUTE));
    ban(&mut ledger, "2001:db8::/32", Expiry::NEVER, NOW).unwrap();
    ban(&mut ledger, "2001:db8:0:1::/64", until, NOW).unwrap();
    let address = target("2001:db8:0:1::7");
    let network = target("2001:db8:0:1::/64");
    let refused = ledger.unban(address, operator(), NOW).unwrap_err();
    assert_eq!(refused, Refused::BannedWithNetwork { target: address, network, until });
    allow(&mut ledger, "2001:db8:0:1::7", Expiry::NEVER, NOW);
    assert_eq!(ledger.unban(address, operator(), NOW), Err(Refused::NotBanned { target: address }));
    ledger.disallow(address, operator(), NOW).unwrap();
    ledger.unban(network, operator(), NOW).unwrap();
    let network = target("2001:db8::/32");
    let refused = ledger.unban(address, operator(), NOW).unwrap_err();
    assert_eq!(refused, Refused::BannedWithNetwork { target: address, network, until: Expiry::NEVER });
}

#[test]
fn the_longest_prefix_wins_among_operators_decisions() {
    let mut ledger = ledger("a");
    let (network, inner) = (target("198.19.0.0/16"), target("198.19.7.0/24"));
    // Ban one network before the wider one is allowed, and one after.
    ban(&mut ledger, "198.19.7.0/24", Expiry::NEVER, NOW).unwrap();
    allow(&mut ledger, "198.19.0.0/16", Expiry::NEVER, NOW);
    ban(&mut ledger, "198.19.8.0/24", Expiry::NEVER, NOW).unwrap();
    let exempt = ledger.take_exempt(NOW).unwrap();
    for (address, by) in [("198.19.1.1", Some(network)), ("198.19.7.1", None), ("198.19.8.1", None)] {
        assert_eq!(exempt.matching(address.parse().unwrap()), by, "{address}");
    }
    // A filter's ban is not an exception.
    assert!(matches!(offend(&mut ledger, "198.19.1.1", NOW), Err(Refused::Allowed { by, .. }) if by == network));
    ledger.unban(inner, operator(), NOW).unwrap();
    assert!(ledger.take_exempt(NOW).unwrap().contains("198.19.7.1".parse().unwrap()));
}

#[test]
fn recount_restores_bans_and_allowlist_after_the_clock_was_set_back() {
    let mut ledger = ledger("a");
    let until = Expiry::at(NOW.plus(60 * MINUTE));
    allow(&mut ledger, "192.0.2.1", until, NOW);
    ban(&mut ledger, "192.0.2.2", until, NOW).unwrap();
    let ahead = NOW.plus(120 * MINUTE);
    ledger.take_exempt(ahead);
    assert_eq!((ledger.active(ahead), ledger.exemptions().len()), (0, 0), "expired in the wrong hour");
    ledger.recount(NOW);
    assert_eq!((ledger.active(NOW), ledger.exemptions().len()), (1, 1));
    assert!(ledger.take_exempt(NOW).unwrap().contains("192.0.2.1".parse().unwrap()));
}

/// While the clock is two hours ahead, the node bans for five minutes. Then the clock is corrected, and the ban ends five minutes later.
#[test]
fn bans_made_while_the_clock_was_ahead_are_shortened() {
    let mut ledger = ledger("a");
    let ahead = NOW.plus(120 * MINUTE);
    offend(&mut ledger, "192.0.2.1", ahead).unwrap();
    ban(&mut ledger, "192.0.2.2", Expiry::at(ahead.plus(10 * MINUTE)), ahead).unwrap();
    allow(&mut ledger, "192.0.2.3", Expiry::at(ahead.plus(20 * MINUTE)), ahead);
    ban(&mut ledger, "192.0.2.4", Expiry::NEVER, ahead).unwrap();
    // A ban that an operator ended must not return, and entries of other nodes are left alone.
    offend(&mut ledger, "192.0.2.5", ahead).unwrap();
    ledger.unban(target("192.0.2.5"), operator(), ahead).unwrap();
    let mut other = self::ledger("b");
    let theirs = offend(&mut other, "192.0.2.6", ahead).unwrap();
    ledger.merge(theirs.target, theirs.after.clone(), ahead);
    let changes = ledger.shorten_own(120 * MINUTE, ahead, NOW);
    let mut ends: Vec<_> = changes.iter().map(|change| (change.target, change.after.state(NOW).until())).collect();
    ends.sort_unstable();
    let end = |minutes: u32| Some(Expiry::at(NOW.plus(minutes * MINUTE)));
    assert_eq!(ends, [(target("192.0.2.1"), end(5)), (target("192.0.2.2"), end(10)), (target("192.0.2.3"), end(20))]);
    let entry = |text: &str| ledger.table().entry(target(text)).unwrap();
    assert_eq!(entry("192.0.2.1").bans, 1, "no further step of the escalation");
    assert_eq!(entry("192.0.2.4").ban_end(), Some(Expiry::NEVER));
    assert!(!entry("192.0.2.5").is_banned(NOW) && entry("192.0.2.6") == theirs.after);
    // Entries written before the clock was wrong are unchanged.
    let mut ledger = self::ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    assert!(ledger.shorten_own(MINUTE, NOW.plus(MINUTE), NOW.plus(MINUTE)).is_empty());
}

/// The other node's operator had seen the ban, but this node had not yet seen the unban.
#[test]
fn an_unban_at_another_node_wins_over_a_ban_that_is_shortened_at_the_same_moment() {
    let (mut one, mut other) = (ledger("a"), ledger("b"));
    let back = Duration::from_secs(8);
    let ahead = NOW.plus(back);
    let made = ban(&mut one, "192.0.2.1", Expiry::at(ahead.plus(10 * MINUTE)), ahead).unwrap();
    other.merge(made.target, made.after, NOW);
    // This clock has counted on meanwhile.
    ban(&mut one, "192.0.2.2", Expiry::NEVER, ahead).unwrap();
    let unban = other.unban(made.target, operator(), NOW).unwrap();
    let shortened = one.shorten_own(back, NOW, NOW).remove(0);
    one.merge(unban.target, unban.after, NOW);
    other.merge(shortened.target, shortened.after, NOW);
    for ledger in [&one, &other] {
        assert!(!ledger.table().entry(made.target).unwrap().is_banned(NOW));
    }
}

#[test]
fn only_the_register_with_a_stamp_from_the_future_is_held_back() {
    let (mut fast, mut ours) = (ledger("fast"), ledger("ours"));
    ban(&mut ours, "192.0.2.1", Expiry::NEVER, NOW).unwrap();
    let decided = ours.unban(target("192.0.2.1"), operator(), NOW).unwrap();
    fast.merge(decided.target, decided.after.clone(), NOW);
    let ahead = NOW.plus(10 * MINUTE);
    let both = offend(&mut fast, "192.0.2.1", ahead).unwrap();
    let mut third = ledger("third");
    assert!(matches!(third.merge(both.target, both.after.clone(), NOW), Arrival::Changed(_)));
    assert_eq!(third.early(), 1);
    let entry = third.table().entry(both.target).unwrap();
    assert_eq!((entry.operator(), entry.filter()), (decided.after.operator(), None));
    assert_eq!(third.merge_due(ahead).len(), 1);
    assert_eq!(third.table().entry(both.target), Some(both.after));
}

#[test]
fn allowlist_entries_are_restored_from_disk_and_removed_with_their_retention() {
    let mut before = ledger("a");
    let until = Expiry::at_minute(NOW.plus(48 * 60 * MINUTE));
    let change = allow(&mut before, "192.0.2.0/24", until, NOW);
    let mut after = ledger("a");
    after.restore(change.target, &change.after, NOW);
    assert_eq!(after.exemptions().exempt().covering(target("192.0.2.9")), Some(target("192.0.2.0/24")));
    assert_eq!(after.sweep(NOW.plus(48 * 60 * MINUTE), 10), [target("192.0.2.0/24")]);
    assert!(after.exemptions().is_empty());
}

#[test]
fn a_change_is_news_unless_it_alters_only_the_retention() {
    let mut ledger = ledger("a");
    let until = Expiry::at(NOW.plus(24 * 60 * MINUTE));
    let banned = ban(&mut ledger, "192.0.2.1", until, NOW).unwrap();
    assert_eq!(banned.announcement(NOW).map(|entry| entry.state), Some(State::Banned { until }));
    assert_eq!(banned.announcement(NOW.plus(25 * 60 * MINUTE)), None, "it has ended meanwhile");
    let kept = ledger.seen_again(target("192.0.2.1"), 100 * 60 * MINUTE, NOW.plus(MINUTE)).unwrap();
    assert_eq!(kept.announcement(NOW.plus(MINUTE)), None);
    let unbanned = ledger.unban(target("192.0.2.1"), operator(), NOW.plus(2 * MINUTE)).unwrap();
    assert_eq!(unbanned.announcement(NOW.plus(2 * MINUTE)).map(|entry| entry.state), Some(State::Unbanned));
}

#[test]
fn a_change_is_about_the_allowlist_if_an_operator_changed_an_entry_of_it() {
    let mut ledger = ledger("a");
    let until = Expiry::at(NOW.plus(60 * MINUTE));
    assert!(!is_about_allowlist(&offend(&mut ledger, "192.0.2.1", NOW).unwrap()));
    assert!(is_about_allowlist(&allow(&mut ledger, "192.0.2.1", until, NOW)));
    let kept = ledger.seen_again(target("192.0.2.1"), 200 * 60 * MINUTE, NOW).unwrap();
    assert!(!is_about_allowlist(&kept), "only its retention changed");
    assert!(is_about_allowlist(&ledger.disallow(target("192.0.2.1"), operator(), NOW).unwrap()));
    assert!(!is_about_allowlist(&ban(&mut ledger, "192.0.2.1", until, NOW).unwrap()));
}

#[test]
fn entries_that_are_held_back_are_counted_until_they_are_merged() {
    let (mut ahead, mut ledger) = (ledger("a"), ledger("b"));
    assert_eq!(ledger.early(), 0);
    for text in ["192.0.2.1", "192.0.2.2"] {
        let ban = offend(&mut ahead, text, NOW.plus(MINUTE)).unwrap();
        assert_eq!(ledger.merge(ban.target, ban.after, NOW), Arrival::Early);
    }
    assert_eq!(ledger.early(), 2);
    assert_eq!(ledger.merge_due(NOW.plus(MINUTE)).len(), 2);
    assert_eq!(ledger.early(), 0);
}

#[test]
fn new_limits_apply_to_later_bans() {
    let mut ledger = ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    ledger.set_limits(Limits { max_bans: 1, ..*ledger.limits() });
    assert!(matches!(offend(&mut ledger, "192.0.2.2", NOW), Err(Refused::Full { .. })));
}

#[test]
fn only_a_ban_that_shortens_another_is_kept_permanently() {
    let mut ledger = ledger("a");
    let until = |minutes| Expiry::at(NOW.plus(minutes * MINUTE));
    let terms = |minutes| BanTerms { replace: true, ..BanTerms::new(until(minutes), MINUTE) };
    let mut keep = |minutes| ledger.ban(target("192.0.2.1"), terms(minutes), operator(), NOW).unwrap().after.keep;
    for minutes in [60, 60, 90] {
        assert_eq!(keep(minutes), Expiry::at_minute(NOW.plus(minutes * MINUTE)));
    }
    assert_eq!(keep(30), Expiry::NEVER);
}

#[test]
fn room_is_needed_for_targets_beyond_the_limit_that_the_table_does_not_have() {
    let mut ledger = ledger("a");
    let needed = |ledger: &Ledger, texts: &[&str]| ledger.needs_room(texts.iter().map(|text| target(text)));
    for n in 0..93 {
        offend(&mut ledger, &format!("192.0.2.{n}"), NOW).unwrap();
    }
    assert_eq!(needed(&ledger, &["198.51.100.1"]), None, "the last one that fits");
    assert_eq!(needed(&ledger, &["192.0.2.1", "198.51.100.1"]), None, "one is known");
    assert_eq!(needed(&ledger, &["198.51.100.1", "198.51.100.2"]), Some(2));
    offend(&mut ledger, "198.51.100.1", NOW).unwrap();
    assert_eq!(needed(&ledger, &["192.0.2.1"]), None);
    assert_eq!(needed(&ledger, &["192.0.2.1", "198.51.100.2"]), Some(1));
}

#[test]
fn processes_that_continue_from_the_same_journal_stamp_differently() {
    // The journal is ahead of the clock, which was set back.
    let last = Hlc::first_of(NOW.plus(Duration::from_secs(5)));
    let stamped = |generation| {
        let mut ledger = Ledger::new("a".parse().unwrap(), *ledger("a").limits(), last);
        ledger.begin_process(generation);
        offend(&mut ledger, "192.0.2.1", NOW).unwrap().after.latest().hlc
    };
    let stamps: std::collections::BTreeSet<Hlc> = (1..=50).map(stamped).collect();
    assert!(stamps.len() > 40 && stamps.first() > Some(&last), "{stamps:?}");
}

#[test]
fn the_ban_of_an_allocation_escalates_by_its_own_history() {
    let mut ledger = ledger("a");
    let network = |n: usize| format!("2001:db8:1:{n:x}::/64");
    for n in 0..CUSTOMER_LIMIT {
        assert_eq!(offend(&mut ledger, &network(n), NOW).unwrap().target, target(&network(n)));
    }
    for (minutes, bans) in [(0, 1), (6, 2)] {
        let change = offend(&mut ledger, &network(200), NOW.plus(minutes * MINUTE)).unwrap();
        assert_eq!((change.target, change.after.bans), (target("2001:db8:1::/56"), bans));
    }
}
