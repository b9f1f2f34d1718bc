use super::*;
use crate::ban::{By, Cause, Decision, State};
use crate::hlc::Stamp;
use crate::ledger::{Arrival, BanTerms, Change, MAX_AHEAD, cause_of_offence};
use crate::policy::BanPolicy;
use crate::retention::DECISION_RETENTION;
use std::sync::Arc;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn ledger(node: &str, max_bans: usize) -> Ledger {
    let limits = Limits { max_bans, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    Ledger::new(node.parse().unwrap(), limits, Hlc::default())
}

fn policy() -> BanPolicy {
    BanPolicy {
        max_attempts: 5,
        time_window: 10 * MINUTE,
        initial_ban_time: 5 * MINUTE,
        max_ban_time: DAY,
        escalation_factor: 2.0,
        max_memory_ttl: 3 * DAY,
    }
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn numbered(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4((0xc612_0000 + n).into()).into())
}

fn operator() -> Cause {
    Cause::new(By::Operator("ann".into()), "")
}

fn offend(ledger: &mut Ledger, target: Target, now: UnixMillis) -> Result<Change, Refused> {
    ledger.ban_offender(target, cause_of_offence("sshd", "x"), &policy(), now)
}

fn ban(ledger: &mut Ledger, target: Target, until: Expiry, now: UnixMillis) -> Result<Change, Refused> {
    ledger.ban(target, BanTerms { until, remember: 3 * DAY, replace: true }, operator(), now)
}

/// Bans addresses from number `from` on until the table refuses one, and returns how many were banned.
fn fill(ledger: &mut Ledger, from: u32, now: UnixMillis) -> u32 {
    (from..).take_while(|n| offend(ledger, numbered(*n), now).is_ok()).count().try_into().unwrap()
}

fn make_room(ledger: &mut Ledger, now: UnixMillis) -> Vec<Target> {
    let new = [target("203.0.113.1")];
    ledger.needs_room(new.into_iter()).map_or_else(Vec::new, |new| ledger.make_room(new, now))
}

#[test]
fn a_table_full_of_expired_bans_drops_the_earliest_retention_first() {
    let mut ledger = ledger("a", 160);
    for n in 0..100 {
        offend(&mut ledger, numbered(n), NOW).unwrap();
    }
    assert_eq!(fill(&mut ledger, 100, NOW.plus(2 * MINUTE)), 50, "a sixteenth is reserved");
    let later = NOW.plus(60 * MINUTE);
    assert!(matches!(offend(&mut ledger, numbered(200), later), Err(Refused::Full { max: 160, .. })));
    let mut dropped = make_room(&mut ledger, later);
    dropped.sort_unstable();
    assert_eq!(dropped, (0..100).map(numbered).collect::<Vec<_>>(), "those with the earliest retention");
    offend(&mut ledger, numbered(200), later).unwrap();
    // The history of the others still counts.
    assert_eq!(offend(&mut ledger, numbered(120), later).unwrap().after.bans, 2);
    assert_eq!(offend(&mut ledger, numbered(1), later).unwrap().after.bans, 1);
}

#[test]
fn bans_in_force_and_operators_decisions_are_never_dropped() {
    let mut ledger = ledger("a", 160);
    let kept = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(target);
    // An unban, a shortened ban, an ended allowlist entry, a permanent ban.
    ban(&mut ledger, kept[0], Expiry::at(NOW.plus(DAY)), NOW).unwrap();
    ledger.unban(kept[0], operator(), NOW).unwrap();
    ban(&mut ledger, kept[1], Expiry::at(NOW.plus(7 * DAY)), NOW).unwrap();
    ban(&mut ledger, kept[1], Expiry::at(NOW.plus(MINUTE)), NOW).unwrap();
    ledger.allow(kept[2], Expiry::at(NOW.plus(MINUTE)), operator(), NOW).unwrap();
    ban(&mut ledger, kept[3], Expiry::NEVER, NOW).unwrap();
    fill(&mut ledger, 0, NOW);
    assert_eq!(make_room(&mut ledger, NOW.plus(MINUTE)), [], "nothing has expired yet");
    let later = NOW.plus(60 * MINUTE);
    assert_eq!(make_room(&mut ledger, later).len(), 146);
    assert!(kept.iter().all(|target| ledger.table().contains(*target)));
}

#[test]
fn an_unproductive_search_is_not_repeated_for_every_write() {
    let mut ledger = ledger("a", 160);
    fill(&mut ledger, 0, NOW);
    let almost = NOW.plus(5 * MINUTE - Duration::from_secs(1));
    assert_eq!(make_room(&mut ledger, almost), []);
    assert_eq!(make_room(&mut ledger, NOW.plus(5 * MINUTE)), [], "within the pause");
    assert_eq!(make_room(&mut ledger, NOW.plus(6 * MINUTE)).len(), 150);
}

#[test]
fn operators_can_write_when_automatic_bans_have_filled_the_table() {
    let mut ledger = ledger("a", 160);
    fill(&mut ledger, 0, NOW);
    ban(&mut ledger, target("192.0.2.1"), Expiry::NEVER, NOW).unwrap();
    ledger.allow(target("192.0.2.2"), Expiry::NEVER, operator(), NOW).unwrap();
    let operators = (0..).take_while(|n| ban(&mut ledger, numbered(1000 + n), Expiry::NEVER, NOW).is_ok()).count();
    assert_eq!((operators, ledger.table().len()), (8, 160));
}

/// The node that is full drops entries. Repair with a node that still has them brings none back, and both tables become equal.
#[test]
fn dropped_entries_do_not_return_by_repair() {
    let (mut full, mut roomy) = (ledger("a", 160), ledger("b", 1000));
    for n in 0..150 {
        let change = offend(&mut full, numbered(n), NOW).unwrap();
        roomy.merge(change.target, change.after, NOW);
    }
    let later = NOW.plus(60 * MINUTE);
    assert_eq!(make_room(&mut full, later).len(), 150);
    let sent: Vec<_> = roomy.table().scan(usize::MAX, usize::MAX).0.collect();
    for (target, entry) in sent {
        assert_eq!(full.merge(target, entry, later), Arrival::PastRetention);
    }
    assert!(roomy.adopt(full.cut(), later) && !roomy.adopt(full.cut(), later));
    assert_eq!(roomy.sweep(later, usize::MAX).len(), 150);
    assert_eq!(full.table().digests(), roomy.table().digests());
}

#[test]
fn tombstones_of_permanent_bans_end_on_all_nodes_at_the_same_time() {
    let (mut a, mut b) = (ledger("a", 100), ledger("b", 100));
    let banned = ban(&mut a, target("192.0.2.1"), Expiry::NEVER, NOW).unwrap();
    let later = NOW.plus(DAY);
    let unbanned = a.unban(banned.target, operator(), later).unwrap();
    let retention = unbanned.after.retention(Cut::default());
    assert_eq!(retention, Expiry::at_minute(later.plus(DECISION_RETENTION)));
    // In the reverse order, and on a node that receives both late.
    for change in [&unbanned, &banned] {
        b.merge(change.target, change.after.clone(), later.plus(30 * DAY));
    }
    let last = UnixMillis(u64::from(retention.seconds()) * 1000 - 1);
    for ledger in [&mut a, &mut b] {
        assert_eq!(ledger.sweep(last, 10), []);
        assert_eq!(ledger.sweep(UnixMillis(last.0 + 1), 10), [banned.target]);
    }
}

#[test]
fn discarding_removes_tombstones_and_history_but_nothing_in_force() {
    let (mut a, mut b) = (ledger("a", 100), ledger("b", 100));
    let later = NOW.plus(60 * MINUTE);
    let mut changes = vec![
        ban(&mut a, target("192.0.2.1"), Expiry::NEVER, NOW).unwrap(),
        a.unban(target("192.0.2.1"), operator(), NOW).unwrap(),
        ban(&mut a, target("192.0.2.2"), Expiry::NEVER, NOW).unwrap(),
        offend(&mut a, target("192.0.2.3"), NOW).unwrap(),
        a.allow(target("192.0.2.4"), Expiry::NEVER, operator(), NOW).unwrap(),
    ];
    for change in changes.drain(..) {
        b.merge(change.target, change.after, later);
    }
    assert_eq!(a.discard(later), 2);
    b.adopt(a.cut(), later);
    for ledger in [&mut a, &mut b] {
        let mut removed = ledger.sweep(later, 100);
        removed.sort_unstable();
        assert_eq!(removed, [target("192.0.2.1"), target("192.0.2.3")]);
    }
    assert_eq!(a.table().digests(), b.table().digests());
    // Later decisions are kept as usual.
    let after = later.plus(MINUTE);
    let unbanned = a.unban(target("192.0.2.2"), operator(), after).unwrap();
    assert!(matches!(b.merge(unbanned.target, unbanned.after, after), Arrival::Changed(_)));
}

#[test]
fn a_cut_from_the_future_removes_no_decisions() {
    let mut ledger = ledger("a", 100);
    let theirs = Cut { written: Hlc(u64::MAX), retention: Expiry::NEVER };
    assert!(!ledger.adopt(theirs, NOW));
    assert_eq!(ledger.cut(), Cut::default());
}

#[test]
fn records_of_other_nodes_are_refused_beyond_the_limits() {
    let (mut member, mut ours) = (ledger("member", 10_000), ledger("ours", 160));
    let mut refused = 0;
    for n in 0..1000 {
        let change = offend(&mut member, numbered(n), NOW).unwrap();
        refused += u32::from(ours.merge(change.target, change.after, NOW) == Arrival::Refused(Limit::Full));
    }
    assert_eq!((ours.table().len(), refused), (155, 845), "filters of other nodes use half of the reserve");
    let mut operators = 0;
    for n in 0..1000 {
        let change = ban(&mut member, numbered(5000 + n), Expiry::NEVER, NOW).unwrap();
        operators += u32::from(matches!(ours.merge(change.target, change.after, NOW), Arrival::Changed(_)));
    }
    assert_eq!((ours.table().len(), operators), (160, 5));
    // Changes of entries that the table has need no room.
    let unbanned = member.unban(numbered(0), operator(), NOW).unwrap();
    assert!(matches!(ours.merge(unbanned.target, unbanned.after, NOW), Arrival::Changed(_)));
}

#[test]
fn wide_networks_of_other_nodes_are_refused() {
    let mut ours = ledger("ours", 100);
    let stamp = Stamp { hlc: Hlc::first_of(NOW), node: "member".parse().unwrap() };
    let cause = Arc::new(operator());
    let decided = |value| BanEntry::by_operator(stamp.clone(), value, Arc::clone(&cause), 1, Expiry::NEVER);
    let by_filter = BanEntry::by_filter(stamp.clone(), Expiry::NEVER, Arc::clone(&cause), 1, Expiry::NEVER);
    let until = Expiry::NEVER;
    for network in ["0.0.0.0/0", "0.0.0.0/3", "::/0", "2000::/3", "2000::/11"].map(target) {
        for entry in [decided(Decision::Banned { until }), decided(Decision::Allowed { until }), by_filter.clone()] {
            assert_eq!(ours.merge(network, entry, NOW), Arrival::Refused(Limit::Width), "{network}");
        }
        let own = ban(&mut ours, network, until, NOW);
        assert!(matches!(own, Err(Refused::TooWide { .. })), "{own:?}");
    }
    for network in ["10.0.0.0/7", "2000::/15"].map(target) {
        assert_eq!(ours.merge(network, by_filter.clone(), NOW), Arrival::Refused(Limit::Width), "{network}");
        assert!(matches!(ours.merge(network, decided(Decision::Banned { until }), NOW), Arrival::Changed(_)));
    }
}

#[test]
fn allowlist_entries_of_other_nodes_are_bounded() {
    let mut ours = ledger("ours", 1_000_000);
    let stamp = Stamp { hlc: Hlc::first_of(NOW), node: "member".parse().unwrap() };
    let allowed = Decision::Allowed { until: Expiry::NEVER };
    let entry = BanEntry::by_operator(stamp, allowed, Arc::new(operator()), 0, Expiry::NEVER);
    let limit = MAX_ALLOWED + ALLOWED_RESERVE;
    for n in 0..u32::try_from(limit).unwrap() {
        assert!(matches!(ours.merge(numbered(n), entry.clone(), NOW), Arrival::Changed(_)));
    }
    assert_eq!(ours.merge(numbered(5_000_000), entry.clone(), NOW), Arrival::Refused(Limit::Allowlist));
    assert_eq!(ours.exemptions().len(), limit);
    assert_eq!(ours.merge(numbered(0), entry, NOW), Arrival::Known);
}

/// Each record is a little ahead of the one before it. Once, this moved the stamp of a target 23 days ahead within a second.
#[test]
fn stamps_of_one_target_cannot_climb_ahead_of_the_clock() {
    let mut ours = ledger("ours", 1000);
    let node: crate::node::NodeId = "member".parse().unwrap();
    let attacked = target("192.0.2.1");
    for step in [Duration::from_secs(10), Duration::from_secs(1), Duration::from_millis(1)] {
        for n in 1..20_000 {
            let hlc = Hlc::first_of(NOW.plus(step * n));
            let stamp = Stamp { hlc, node: node.clone() };
            let banned = Decision::Banned { until: Expiry::NEVER };
            let entry = BanEntry::by_operator(stamp, banned, Arc::new(operator()), 1, Expiry::NEVER);
            ours.merge(attacked, entry, NOW);
        }
    }
    let ahead = ours.table().entry(attacked).unwrap().latest().hlc.ahead_of(NOW);
    assert!(ahead < Duration::from_secs(31), "{ahead:?}");
    assert!(ours.early() <= 60_000);
    // Even single readings stop at the absolute bound.
    let far = Hlc::first_of(NOW.plus(MAX_AHEAD + Duration::from_secs(1)));
    let decision = |hlc| {
        let stamp = Stamp { hlc, node: node.clone() };
        BanEntry::by_operator(stamp, Decision::Unbanned, Arc::new(operator()), 1, Expiry::NEVER)
    };
    ours.restore(target("192.0.2.2"), &decision(far), NOW);
    assert_eq!(ours.merge(target("192.0.2.2"), decision(Hlc(far.0 + 1)), NOW), Arrival::Early);
}

#[test]
fn one_ipv6_allocation_cannot_fill_the_table() {
    let mut ledger = ledger("a", 4_000_000);
    // A /40 from which each ban comes from another /64, in an order that spreads over all of it.
    let base = target("2001:db8::/40").bits();
    let mut now = NOW;
    let mut longest = 0;
    for n in 0u128..200_000 {
        now = now.plus(Duration::from_millis(20));
        let network = (n * 7919) % (1 << 24);
        let source = Target::from_bits(base | (network << 64), 64);
        if ledger.table().contains(source) {
            continue;
        }
        let covered = (48..64).any(|prefix| {
            let around = ledger.table().entry(Target::from_bits(source.bits(), prefix));
            around.is_some_and(|entry| entry.is_banned(now))
        });
        if !covered {
            let _ = offend(&mut ledger, source, now);
        }
        longest = longest.max(ledger.table().len());
    }
    assert!(longest <= 256 * 257, "{longest}");
    let (found, _) = ledger.table().scan(usize::MAX, usize::MAX);
    let banned = |prefix| {
        move |(target, entry): &(Target, BanEntry)| {
            target.prefix() == prefix && matches!(entry.state(NOW), State::Banned { .. })
        }
    };
    let found: Vec<_> = found.collect();
    assert!(found.iter().any(banned(48)));
}

#[test]
fn fifteen_banned_customers_do_not_ban_their_neighbours() {
    let mut ledger = ledger("a", 1000);
    let network = |n: u128| Target::from_bits(target("2001:db8::/56").bits() | (n << 64), 64);
    for n in 0..16 {
        assert_eq!(offend(&mut ledger, network(n), NOW).unwrap().target, network(n));
    }
    assert_eq!(offend(&mut ledger, network(16), NOW).unwrap().target, target("2001:db8::/56"));
    // Single IPv6 addresses have too many neighbours, and IPv4 has no such allocations.
    for n in 0..20 {
        let host = Target::from_bits(target("2001:db8:1::").bits() | n, 128);
        assert_eq!(offend(&mut ledger, host, NOW).unwrap().target, host);
        assert_eq!(
            offend(&mut ledger, numbered(n.try_into().unwrap()), NOW).unwrap().target,
            numbered(n.try_into().unwrap())
        );
    }
}
