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
fn bans_escalate_while_the_offender_is_remembered() {
    let mut ledger = ledger("a");
    let mut now = NOW;
    for minutes in [5, 10, 20, 40] {
        let change = offend(&mut ledger, "192.0.2.1", now).unwrap();
        let until = change.after.until().unwrap();
        assert_eq!(until.remaining(now), Some(minutes * MINUTE));
        assert!(matches!(offend(&mut ledger, "192.0.2.1", now), Err(Refused::AlreadyBanned { .. })));
        now = now.plus((minutes + 1) * MINUTE);
    }
    // Not seen for longer than the memory lasts: from the start again.
    let later = now.plus(73 * 60 * MINUTE);
    ledger.sweep(later, 10);
    let change = offend(&mut ledger, "192.0.2.1", later).unwrap();
    assert_eq!(change.after.until().unwrap().remaining(later), Some(5 * MINUTE));
}

#[test]
fn when_a_node_sweeps_decides_nothing() {
    let (mut swept, mut unswept) = (ledger("a"), ledger("a"));
    let later = NOW.plus(73 * 60 * MINUTE);
    for ledger in [&mut swept, &mut unswept] {
        offend(ledger, "192.0.2.1", NOW).unwrap();
        offend(ledger, "192.0.2.2", NOW).unwrap();
        // A ban of old whose memory ends later than this node's clock says that it began.
        let ban =
            ledger.ban(target("192.0.2.3"), Expiry::at_minute(NOW.plus(MINUTE)), MINUTE, operator(), NOW).unwrap();
        assert!(ban.after.is_active(NOW));
    }
    assert_eq!(swept.sweep(later, 10).len(), 3);
    // What is over is no history, nothing to lift, and wins over nothing that another node tells.
    let mut other = ledger("b");
    let told = other.ban(target("192.0.2.2"), Expiry::at_minute(later.plus(MINUTE)), MINUTE, operator(), NOW).unwrap();
    for ledger in [&mut swept, &mut unswept] {
        let again = offend(ledger, "192.0.2.1", later).unwrap();
        assert_eq!((again.before, again.after.bans), (None, 1));
        assert!(matches!(
            ledger.merge(told.target, told.after.clone(), later),
            Arrival::Changed(Change { before: None, .. })
        ));
        assert!(matches!(ledger.lift(target("192.0.2.3"), operator(), later), Err(Refused::NotBanned { .. })));
        assert!(ledger.seen_again(target("192.0.2.3"), MINUTE, later).is_none());
    }
    unswept.sweep(later, 10);
    assert_eq!(swept.table().digests(), unswept.table().digests());
}

#[test]
fn an_unban_wins_although_its_nodes_clock_is_behind() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let ban = offend(&mut a, "192.0.2.1", NOW).unwrap();
    b.merge(ban.target, ban.after.clone(), NOW.minus(Duration::from_secs(5)));
    let lift = b.lift(ban.target, operator(), NOW.minus(Duration::from_secs(5))).unwrap();
    a.merge(lift.target, lift.after.clone(), NOW);
    assert!(!a.table().entry(ban.target).unwrap().is_active(NOW));
    // The ban delivered once more changes nothing.
    assert_eq!(b.merge(ban.target, ban.after, NOW), Arrival::Known);
    assert_eq!(a.table().digests(), b.table().digests());
}

#[test]
fn a_lifted_permanent_ban_is_remembered_for_ever() {
    let mut ledger = ledger("a");
    ledger.ban(target("192.0.2.1"), Expiry::NEVER, MINUTE, operator(), NOW).unwrap();
    let lift = ledger.lift(target("192.0.2.1"), operator(), NOW).unwrap();
    assert_eq!(lift.after.keep, Expiry::NEVER);
    assert_eq!(
        ledger.lift(target("192.0.2.1"), operator(), NOW),
        Err(Refused::NotBanned { target: target("192.0.2.1") })
    );
}

#[test]
fn a_full_table_refuses_new_offenders_and_evicts_nobody() {
    let mut ledger = ledger("a");
    for n in 0..100 {
        offend(&mut ledger, &format!("192.0.2.{n}"), NOW).unwrap();
    }
    assert!(matches!(offend(&mut ledger, "198.51.100.1", NOW), Err(Refused::Full { max: 100, .. })));
    assert_eq!(ledger.table().len(), 100);
    // Who is known can be banned again.
    offend(&mut ledger, "192.0.2.7", NOW.plus(6 * MINUTE)).unwrap();
}

#[test]
fn a_stamp_from_the_future_waits_for_our_clock() {
    let (mut fast, mut ours) = (ledger("fast"), ledger("ours"));
    let ahead = NOW.plus(10 * MINUTE);
    let ban = offend(&mut fast, "192.0.2.1", ahead).unwrap();
    assert_eq!(ours.merge(ban.target, ban.after.clone(), NOW), Arrival::Early);
    assert_eq!(ours.merge(ban.target, ban.after.clone(), NOW), Arrival::Early);
    assert_eq!(ours.early(), 1);
    assert!(ours.ripen(NOW.plus(MINUTE)).is_empty());
    // What we write meanwhile is stamped by our own clock.
    let local = offend(&mut ours, "192.0.2.9", NOW).unwrap();
    assert_eq!(local.after.stamp.hlc.millis(), NOW);
    assert_eq!(ours.ripen(ahead).len(), 1);
    assert_eq!(ours.table().entry(ban.target), Some(ban.after));
}

#[test]
fn when_all_clocks_were_set_back_a_lift_does_not_wait_for_the_bans_time() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let ban = offend(&mut a, "192.0.2.1", NOW).unwrap();
    b.merge(ban.target, ban.after.clone(), NOW);
    // An hour too far ahead, the clocks were.
    let right = NOW.minus(60 * MINUTE);
    let lift = a.lift(ban.target, operator(), right).unwrap();
    assert!(lift.after.stamp.hlc > ban.after.stamp.hlc);
    assert!(matches!(b.merge(lift.target, lift.after, right), Arrival::Changed(_)));
    assert!(!b.table().entry(ban.target).unwrap().is_active(right));
    // A node of which nothing is known and whose clock is still ahead waits, and does not drag ours along.
    let mut ahead = ledger("c");
    let early = offend(&mut ahead, "192.0.2.2", NOW).unwrap();
    assert_eq!(b.merge(early.target, early.after, right), Arrival::Early);
    assert_eq!(offend(&mut b, "192.0.2.3", right).unwrap().after.stamp.hlc.millis(), right);
}

#[test]
fn an_offender_seen_again_is_remembered_longer_but_rarely_written() {
    let mut ledger = ledger("a");
    let ttl = policy().max_memory_ttl;
    let ban = offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    assert_eq!(ledger.seen_again(ban.target, ttl, NOW.plus(MINUTE)), None);
    let change = ledger.seen_again(ban.target, ttl, NOW.plus(4 * 60 * MINUTE)).unwrap();
    assert!(change.after.keep > ban.after.keep);
    assert_eq!(change.after.stamp, ban.after.stamp);
    assert_eq!(ledger.seen_again(target("192.0.2.2"), ttl, NOW), None);
}

fn allow(ledger: &mut Ledger, text: &str, until: Expiry, now: UnixMillis) -> Change {
    ledger.allow(target(text), until, operator(), now).unwrap()
}

#[test]
fn who_is_allowed_is_not_banned_until_the_allowance_ends_or_is_taken_back() {
    let mut ledger = ledger("a");
    offend(&mut ledger, "192.0.2.1", NOW).unwrap();
    let until = Expiry::at(NOW.plus(10 * MINUTE));
    let change = allow(&mut ledger, "192.0.2.1", until, NOW);
    assert!(is_about_allowance(&change) && change.after.until().is_none() && change.after.is_allowed(NOW));
    assert_eq!((change.after.bans, ledger.active(NOW)), (1, 0));
    assert!(change.after.keep >= change.before.unwrap().keep, "remembered for as long as the ban it beats");
    let refused = offend(&mut ledger, "192.0.2.1", NOW).unwrap_err();
    assert_eq!(refused, Refused::Allowed { target: target("192.0.2.1"), by: target("192.0.2.1") });
    assert!(matches!(ledger.lift(target("192.0.2.1"), operator(), NOW), Err(Refused::NotBanned { .. })));
    // It ends by itself, and the offender's history goes on.
    let later = NOW.plus(10 * MINUTE);
    assert_eq!(offend(&mut ledger, "192.0.2.1", later).unwrap().after.bans, 2);
    // A network holds those within it, and no others.
    allow(&mut ledger, "198.51.100.0/24", Expiry::NEVER, NOW);
    let refused = offend(&mut ledger, "198.51.100.9", later).unwrap_err();
    assert_eq!(refused, Refused::Allowed { target: target("198.51.100.9"), by: target("198.51.100.0/24") });
    offend(&mut ledger, "198.51.101.9", later).unwrap();
    assert!(matches!(ledger.disallow(target("198.51.100.9"), operator(), later), Err(Refused::NotAllowed { .. })));
    let change = ledger.disallow(target("198.51.100.0/24"), operator(), later).unwrap();
    assert_eq!((change.after.state, change.after.keep), (State::Lifted, Expiry::NEVER));
    offend(&mut ledger, "198.51.100.9", later).unwrap();
    assert!(ledger.allowances().is_empty());
}

#[test]
fn an_operators_later_decision_replaces_an_allowance() {
    let mut ledger = ledger("a");
    allow(&mut ledger, "192.0.2.1", Expiry::NEVER, NOW);
    let change = ledger.ban(target("192.0.2.1"), Expiry::NEVER, MINUTE, operator(), NOW).unwrap();
    assert!(change.after.is_active(NOW) && is_about_allowance(&change));
    assert!(ledger.allowances().is_empty());
}

#[test]
fn a_filter_that_had_not_heard_of_an_allowance_does_not_overrule_it() {
    let (mut a, mut b) = (ledger("a"), ledger("b"));
    let allowed = allow(&mut a, "192.0.2.1", Expiry::NEVER, NOW);
    let later = NOW.plus(MINUTE);
    let ban = offend(&mut b, "192.0.2.1", later).unwrap();
    assert!(ban.after.stamp > allowed.after.stamp);
    // The ban was written later, and wins; whoever held the allowance writes it again.
    let Arrival::Changed(change) = a.merge(ban.target, ban.after.clone(), later) else { panic!("known") };
    assert!(change.after.is_active(later) && a.allowances().is_empty());
    let again = a.uphold(&change, later).unwrap();
    assert!(again.after.stamp > ban.after.stamp && again.after.is_allowed(later));
    assert_eq!((&again.after.cause, again.after.bans), (&allowed.after.cause, 1));
    assert_eq!(a.uphold(&again, later), None, "once");
    // The late allowance tells the other node nothing; the new one does.
    assert_eq!(
        b.merge(allowed.target, allowed.after, later),
        Arrival::Changed(Change {
            target: ban.target,
            before: Some(ban.after.clone()),
            after: BanEntry { keep: Expiry::NEVER, ..ban.after.clone() },
        })
    );
    assert!(matches!(b.merge(again.target, again.after, later), Arrival::Changed(_)));
    assert!(b.table().entry(target("192.0.2.1")).unwrap().is_allowed(later));
    assert_eq!(a.table().digests(), b.table().digests());
    // It had written two things, which come together: the operator's later word is the last.
    let ban = offend(&mut b, "192.0.2.8", later).unwrap();
    let lift = b.lift(ban.target, operator(), later).unwrap();
    allow(&mut a, "192.0.2.8", Expiry::NEVER, NOW);
    let changes = [ban, lift].map(|change| a.merge(change.target, change.after, later));
    for change in changes {
        let Arrival::Changed(change) = change else { panic!("known") };
        assert_eq!(a.uphold(&change, later), None);
    }
    assert!(a.table().entry(target("192.0.2.8")).unwrap().allowed_until().is_none());
    // An operator's ban is a decision, and stays.
    let ban = b.ban(target("192.0.2.1"), Expiry::NEVER, MINUTE, operator(), later).unwrap();
    let Arrival::Changed(change) = a.merge(ban.target, ban.after, later) else { panic!("known") };
    assert_eq!(a.uphold(&change, later), None);
}

#[test]
fn allowances_come_back_from_the_disk_and_go_with_their_entry() {
    let mut before = ledger("a");
    let until = Expiry::at_minute(NOW.plus(48 * 60 * MINUTE));
    let change = allow(&mut before, "192.0.2.0/24", until, NOW);
    let mut after = ledger("a");
    after.restore(change.target, &change.after, NOW);
    assert_eq!(after.allowances().covering(target("192.0.2.9")), Some(target("192.0.2.0/24")));
    assert_eq!(after.sweep(NOW.plus(48 * 60 * MINUTE), 10), [target("192.0.2.0/24")]);
    assert!(after.allowances().is_empty());
}
