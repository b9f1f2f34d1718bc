use proptest::prelude::*;

use super::settings::full_from;
use super::*;

const NOW: Hour = Hour(500_000);
const SSHD: FilterId = FilterId(7);

fn target(text: &str) -> CompactTarget {
    CompactTarget::of(text.parse().unwrap())
}

const fn account(n: u64) -> Account {
    Account(n)
}

const fn named(n: u64) -> Named {
    Named { account: Account(n), local: None }
}

const fn hours_ago(hours: u32) -> Hour {
    Hour(NOW.0 - hours)
}

/// Evidence in which logins have been seen for two days.
fn armed() -> Evidence {
    let mut evidence = Evidence::default();
    evidence.succeeded(target("198.51.100.1"), named(1), SSHD, hours_ago(48));
    evidence.succeeded(target("198.51.100.1"), named(1), SSHD, NOW);
    evidence
}

#[test]
fn an_account_is_at_home_a_day_after_its_first_login_and_for_thirty_days() {
    let (mut evidence, office) = (Evidence::default(), target("192.0.2.1"));
    evidence.succeeded(office, named(1), SSHD, NOW);
    let known = |evidence: &Evidence, hours| evidence.known(office, Hour(NOW.0 + hours));
    assert_eq!([0, 23, 24, 30 * 24, 30 * 24 + 1].map(|hours| known(&evidence, hours)), [0, 0, 1, 1, 0]);
    for n in 2..40 {
        evidence.succeeded(office, named(n), SSHD, NOW);
    }
    assert_eq!(known(&evidence, 24), settings::MAX_KNOWN);
}

#[test]
fn an_account_that_logs_in_from_everywhere_vouches_for_no_address() {
    let mut evidence = Evidence::default();
    let mut bots = Vec::new();
    for n in 0..40_u32 {
        let bot = target(&format!("10.{n}.0.1"));
        evidence.succeeded(bot, named(1), SSHD, hours_ago(30));
        bots.push(bot);
    }
    assert!(evidence.wanders(account(1), NOW));
    assert!(bots.iter().all(|bot| evidence.known(*bot, NOW) == 0));
}

#[test]
fn a_name_is_bait_once_three_unrelated_networks_tried_it_and_never_if_somebody_uses_it() {
    let mut evidence = armed();
    let mut tried = |source: &str, name| {
        evidence.tried(target(source), Some(account(name)), SSHD, false, NOW);
        evidence.is_bait(account(name), NOW)
    };
    assert!(!tried("10.1.1.1", 50) && !tried("10.1.1.2", 50), "one network");
    assert!(!tried("10.1.2.1", 50) && !tried("10.1.3.1", 50), "three networks of one provider");
    assert!(tried("10.2.3.1", 50));
    for source in ["10.1.1.1", "10.2.1.1", "10.3.1.1", "10.4.1.1"] {
        assert!(!tried(source, 1), "an account in use");
    }
    let anna = Named { account: account(60), local: Some(account(50)) };
    evidence.succeeded(target("192.0.2.1"), anna, SSHD, NOW);
    assert!(!evidence.is_bait(account(50), NOW), "the name before the @ is in use");
    assert!(evidence.witnesses(account(50), NOW).is_empty());
}

#[test]
fn a_further_name_is_one_that_is_new_to_a_target_that_tried_another() {
    let (mut evidence, bot) = (armed(), target("10.1.1.1"));
    assert!(!evidence.is_further(bot, account(50), NOW));
    evidence.tried(bot, Some(account(50)), SSHD, false, hours_ago(1));
    assert!(!evidence.is_further(bot, account(50), NOW) && evidence.is_further(bot, account(51), NOW));
    assert!(!evidence.is_further(bot, account(51), Hour(NOW.0 + 7 * 24)), "a week later");
}

#[test]
fn a_network_is_empty_when_enough_targets_failed_and_nobody_is_at_home() {
    let (mut evidence, network) = (armed(), target("203.0.113.0/24"));
    for n in 1..=8 {
        assert_eq!(evidence.empty_networks(target("203.0.113.1"), NOW).count(), 0, "{n}");
        evidence.tried(target(&format!("203.0.113.{n}")), None, SSHD, true, NOW);
    }
    assert_eq!(evidence.empty_networks(target("203.0.113.1"), NOW).collect::<Vec<_>>(), [network]);
    assert_eq!(evidence.empty_networks(target("203.0.113.1"), Hour(NOW.0 + 25)).count(), 0, "a day later");
    evidence.succeeded(target("203.0.113.99"), named(9), SSHD, hours_ago(30));
    assert_eq!((evidence.empty_networks(target("203.0.113.1"), NOW).count(), evidence.residents(network, NOW)), (0, 1));
    let six: Vec<CompactTarget> = networks_of(target("2001:db8:1:2::/64")).collect();
    assert_eq!(six, [target("2001:db8:1::/56"), target("2001:db8:1::/48")]);
    assert_eq!((full_from(false, 56), full_from(false, 48), full_from(true, 24)), (4, 8, 8));
}

#[test]
fn a_filter_with_failures_and_no_logins_is_blind_unless_the_operator_names_it() {
    let (mut evidence, mut settings) = (armed(), Settings::default());
    let gitea = FilterId::of("gitea");
    assert_eq!(evidence.blind(&settings, NOW), None);
    evidence.failed(gitea, NOW);
    assert_eq!(evidence.blind(&settings, NOW), Some(gitea));
    settings.blind.insert(gitea);
    assert_eq!(evidence.blind(&settings, NOW), None);
    assert!(evidence.is_armed(SSHD, NOW) && !evidence.is_armed(gitea, NOW));
    let later = Hour(NOW.0 + 7 * 24 + 1);
    assert!(!evidence.is_armed(SSHD, later));
    evidence.failed(SSHD, later);
    assert_eq!(evidence.blind(&settings, later), Some(SSHD), "its last login was too long ago");
}

#[test]
fn strangers_are_judged_once_logins_were_seen_for_a_day() {
    let mut evidence = Evidence::default();
    assert!(!evidence.has_learned(NOW));
    evidence.succeeded(target("192.0.2.1"), named(1), SSHD, NOW);
    assert!(!evidence.has_learned(Hour(NOW.0 + 23)) && evidence.has_learned(Hour(NOW.0 + 24)));
}

#[test]
fn a_login_is_told_once_a_day_and_a_try_too() {
    let (mut evidence, home) = (Evidence::default(), target("192.0.2.1"));
    let sent: Vec<bool> =
        (0..72).map(|hour| evidence.succeeded(home, named(1), SSHD, Hour(NOW.0 + hour)).is_some()).collect();
    assert_eq!(sent.iter().filter(|sent| **sent).count(), 3);
    let sent =
        (0..72).filter_map(|hour| evidence.tried(home, Some(account(5)), SSHD, true, Hour(NOW.0 + hour))).count();
    assert_eq!(sent, 3);
}

#[test]
fn full_tables_keep_names_with_witnesses_and_stay_within_their_limits() {
    let mut evidence = armed();
    let listed = 300;
    for name in 0..listed {
        for net in 0..3_u64 {
            let source = target(&format!("{}.{}.{}.1", 20 + net, name / 250, name % 250));
            evidence.tried(source, Some(account(1_000_000 + name)), SSHD, true, hours_ago(5));
        }
    }
    // Multiplication by an odd number visits each of the 2^32 addresses once.
    // Debug builds need a minute for a million.
    let all = if cfg!(debug_assertions) { 150_000 } else { 1_000_000_u32 };
    for n in 0..all {
        let [a, b, c, d] = n.wrapping_mul(2_654_435_761).to_be_bytes();
        let source = CompactTarget::of(banmesh_types::target::Target::host(std::net::Ipv4Addr::new(a, b, c, d).into()));
        evidence.tried(source, Some(account(u64::from(n) << 20)), SSHD, true, hours_ago(n % 4));
    }
    let size = evidence.size();
    assert!(size.names <= MAX_NAMES && size.tried <= 2 * MAX_NAMES && size.bad <= MAX_NAMES, "{size:?}");
    assert!(size.bytes < 64 << 20, "{size:?}");
    let kept = (0..listed).filter(|name| evidence.is_bait(account(1_000_000 + name), NOW)).count();
    assert!(kept * 100 >= 99 * usize::try_from(listed).unwrap(), "{kept}");
}

#[test]
fn a_login_is_news_if_anything_that_it_shows_is() {
    let (mut evidence, home) = (armed(), target("192.0.2.1"));
    let mut sent = |from: &str, named, filter| evidence.succeeded(target(from), named, filter, NOW).is_some();
    assert!(sent("192.0.2.1", named(5), SSHD) && !sent("192.0.2.1", named(5), SSHD));
    assert!(sent("192.0.2.2", named(5), SSHD) && !sent("192.0.2.2", named(5), SSHD), "another address of the network");
    assert!(sent("192.0.2.1", named(5), FilterId(8)) && !sent("192.0.2.1", named(5), FilterId(8)), "another filter");
    let again =
        |target, hour| EvidenceRecord::Succeeded { target, account: account(5), local: None, filter: SSHD, hour };
    assert!(evidence.receive(again(target("192.0.2.3"), NOW), NOW), "only the target is new");
    assert!(!evidence.receive(again(target("192.0.2.3"), NOW), NOW));
    assert!(evidence.logged_in_within(home, 0, NOW) && evidence.logged_in_within(home, 24, Hour(NOW.0 + 24)));
    assert!(!evidence.logged_in_within(home, 24, Hour(NOW.0 + 25)));
}

#[test]
fn a_try_is_news_if_anything_that_it_shows_is() {
    let mut evidence = armed();
    let mut sent = |from: &str, account: Option<u64>, bad| {
        evidence.tried(target(from), account.map(Account), SSHD, bad, NOW).is_some()
    };
    assert!(sent("10.1.1.1", Some(50), false) && !sent("10.1.1.1", Some(50), false));
    assert!(sent("10.1.1.2", Some(50), false), "another target of the network");
    assert!(sent("10.1.1.1", Some(51), false), "another name");
    assert!(sent("10.1.1.1", Some(51), true) && !sent("10.1.1.1", Some(51), true), "it counts against the network");
    assert!(sent("10.1.1.3", None, true) && !sent("10.1.1.3", None, false));
    let bot = target("10.1.1.1");
    assert_eq!(evidence.names_tried(bot, NOW), 2);
    assert_eq!(evidence.failed_in(target("10.1.1.0/24"), NOW), [bot, target("10.1.1.3")]);
}

#[test]
fn homes_are_the_targets_of_accounts_that_are_at_home_and_do_not_wander() {
    let (mut evidence, office) = (Evidence::default(), target("192.0.2.1"));
    evidence.succeeded(office, named(1), SSHD, hours_ago(30));
    evidence.succeeded(target("192.0.2.2"), named(2), SSHD, hours_ago(3));
    for n in 0..40 {
        evidence.succeeded(target(&format!("10.{n}.0.1")), named(3), SSHD, hours_ago(30));
    }
    evidence.succeeded(office, named(3), SSHD, hours_ago(40));
    assert_eq!(evidence.known_since(office, NOW), Some(hours_ago(30)));
    assert_eq!(evidence.homes(NOW).collect::<Vec<_>>(), [office.target()]);
    let residents = |text: &str| evidence.residents(target(text), NOW);
    assert_eq!(["192.0.2.0/24", "198.51.100.0/24"].map(residents), [1, 0]);
}

#[test]
fn a_repair_sends_the_entries_of_the_buckets_that_differ() {
    let (mut one, mut other) = (armed(), armed());
    for n in 0..50 {
        one.tried(target(&format!("10.{n}.0.1")), Some(account(100 + n)), SSHD, true, NOW);
    }
    let compare = |ours: &Evidence, theirs: &Evidence| {
        let mut differ = [false; BUCKETS];
        for record in theirs.digest_records() {
            let sent = EvidenceRecord::decode_digests(&record.encode());
            assert_eq!(sent, Some(record));
            let Some(EvidenceRecord::Digests { from, values }) = sent else { unreachable!() };
            ours.compare(from, &values, &mut differ);
        }
        differ
    };
    let differ = compare(&one, &other);
    let different = differ.iter().filter(|differs| **differs).count();
    assert!((20..BUCKETS).contains(&different), "{different}");
    let facts: Vec<Fact> = one.facts(&differ, NOW).collect();
    assert!(facts.into_iter().filter(|fact| other.join(*fact, NOW)).count() >= 150);
    assert_eq!(contents(&one), contents(&other));
    assert_eq!(compare(&one, &other), [false; BUCKETS]);
}

#[test]
fn changes_are_kept_for_the_journal_oldest_first_and_restore_the_tables() {
    let mut evidence = Evidence::default();
    evidence.succeeded(target("192.0.2.1"), named(1), SSHD, NOW);
    assert_eq!(evidence.take_changed(100), [], "there is no journal yet");
    evidence.clear();
    evidence.keep_changes();
    evidence.succeeded(target("192.0.2.1"), named(1), SSHD, NOW);
    evidence.tried(target("10.1.1.1"), Some(account(50)), SSHD, true, NOW);
    let mut changes = evidence.take_changed(1);
    assert!(matches!(changes[..], [Fact::Source(_)]), "{changes:?}");
    changes.extend(evidence.take_changed(100));
    let known = changes[0];
    assert!(!evidence.join(known, NOW));
    assert_eq!(evidence.take_changed(100), [], "an entry that changes nothing is not written");
    let mut restored = Evidence::default();
    changes.iter().for_each(|fact| assert!(restored.join(*fact, NOW)));
    assert_eq!(contents(&restored), contents(&evidence));
    evidence.clear();
    evidence.succeeded(target("192.0.2.1"), named(1), SSHD, NOW);
    assert!(!evidence.take_changed(100).is_empty(), "the journal is still there");
}

#[test]
fn the_size_counts_the_entries_of_all_tables_and_a_sweep_removes_what_has_expired() {
    let mut evidence = Evidence::default();
    let anna = Named { account: account(1), local: Some(account(2)) };
    evidence.succeeded(target("192.0.2.1"), anna, SSHD, NOW);
    evidence.tried(target("10.1.1.1"), Some(account(50)), SSHD, true, NOW);
    evidence.tried(target("10.1.1.2"), Some(account(50)), SSHD, true, NOW);
    let size = evidence.size();
    let tables = [size.sources, size.residents, size.accounts, size.names, size.tried, size.bad];
    assert_eq!((tables, size.entries()), ([1, 1, 2, 1, 2, 2], 9));
    // Each entry takes its own bytes and one more.
    let logins = 2 * (size_of::<Logins>() + 1);
    let others = 2 * (size_of::<Live>() + 1) + 3 * (size_of::<Tried>() + 1) + 2 * (size_of::<Bad>() + 1);
    assert_eq!(size.used, logins + others);
    assert!(size.bytes >= size.used && size.removed == 0 && size.lost == 0);
    evidence.sweep(Hour(NOW.0 + settings::BAD_KEEP + 1));
    assert_eq!((evidence.size().bad, evidence.size().entries()), (0, 7));
    evidence.sweep(Hour(NOW.0 + settings::LIVE_KEEP + 1));
    assert_eq!(evidence.size().entries(), 0);
}

#[test]
fn a_failure_of_a_filter_is_written_once_a_day() {
    let mut evidence = Evidence::default();
    evidence.keep_changes();
    let written: Vec<usize> = [0, 23, 24, 25]
        .map(|hours| {
            evidence.failed(SSHD, Hour(NOW.0 + hours));
            evidence.take_changed(10).len()
        })
        .to_vec();
    assert_eq!(written, [1, 0, 1, 0]);
}

#[test]
fn each_mechanism_alone_needs_the_evidence() {
    let modes = |known, names, networks| Settings { known, names, networks, ..Settings::default() }.any();
    assert!(!modes(Mode::Off, Mode::Off, Mode::Off));
    assert!(modes(Mode::On, Mode::Off, Mode::Off) && modes(Mode::Off, Mode::Observe, Mode::Off));
    assert!(modes(Mode::Off, Mode::Off, Mode::On));
}

/// A record about few places, accounts and hours, so that caps, expiry and conflicts occur.
fn record() -> impl Strategy<Value = EvidenceRecord> {
    let source = (0u8..3, 0u8..2, 0u8..12).prop_map(|(a, b, c)| target(&format!("10.{a}.{b}.{c}")));
    let six = (0u16..3, 0u16..20).prop_map(|(a, b)| target(&format!("2001:db8:{a}:{b}::/64")));
    let place = prop_oneof![source, six];
    // Around each of the limits, up to a little ahead of the clock.
    let hour = prop_oneof![0u32..30, 160u32..180, 355u32..365, 700u32..740, 2150u32..2180]
        .prop_map(|ago| Hour(NOW.0 + 26 - ago));
    (place, 0u64..12, proptest::option::of(0u64..12), 0u32..3, hour, 0u8..4).prop_map(
        |(target, name, local, filter, hour, kind)| {
            let (account, filter) = (account(name), FilterId(filter));
            match kind {
                0 | 1 => EvidenceRecord::Succeeded { target, account, local: local.map(Account), filter, hour },
                _ => EvidenceRecord::Tried { target, account: Some(account), filter, bad: kind == 3, hour },
            }
        },
    )
}

fn replica(records: &[EvidenceRecord]) -> Evidence {
    let mut evidence = Evidence::default();
    for record in records {
        evidence.receive(*record, NOW);
    }
    evidence
}

fn join(into: &mut Evidence, from: &Evidence) {
    let facts: Vec<Fact> = from.facts(&[true; BUCKETS], NOW).collect();
    for fact in facts {
        into.join(fact, NOW);
    }
}

fn contents(evidence: &Evidence) -> Vec<Vec<u8>> {
    let encoded = |fact: Fact| {
        let mut bytes = Vec::new();
        fact.encode(&mut bytes);
        bytes
    };
    let mut all: Vec<Vec<u8>> = evidence.facts(&[true; BUCKETS], NOW).map(encoded).collect();
    all.sort();
    all
}

fn joined(parts: &[&[EvidenceRecord]]) -> Evidence {
    let mut evidence = Evidence::new(0);
    for part in parts {
        join(&mut evidence, &replica(part));
    }
    evidence
}

/// `BANMESH_JOIN_CASES` sets how many triples of replicas are tried.
fn cases() -> ProptestConfig {
    let cases = std::env::var("BANMESH_JOIN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256);
    ProptestConfig::with_cases(cases)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn joins_are_commutative_associative_and_idempotent(
        a in proptest::collection::vec(record(), 0..60),
        b in proptest::collection::vec(record(), 0..60),
        c in proptest::collection::vec(record(), 0..60),
    ) {
        let expected = contents(&joined(&[&a, &b, &c]));
        prop_assert_eq!(&contents(&joined(&[&c, &a, &b])), &expected);
        prop_assert_eq!(&contents(&joined(&[&b, &c, &a, &a, &b])), &expected);
        let mut right = joined(&[&a]);
        join(&mut right, &joined(&[&b, &c]));
        prop_assert_eq!(&contents(&right), &expected);
        // Records and joins of tables have the same result, in any order.
        let all: Vec<EvidenceRecord> = c.iter().chain(&a).chain(&b).rev().copied().collect();
        let once = replica(&all);
        prop_assert_eq!(&contents(&once), &expected);
        prop_assert_eq!(once.digests(), right.digests());
    }

    #[test]
    fn digests_are_equal_exactly_where_tables_are(
        a in proptest::collection::vec(record(), 0..40),
        b in proptest::collection::vec(record(), 0..40),
    ) {
        let (one, two) = (replica(&a), replica(&b));
        let (ours, theirs) = (one.digests(), two.digests());
        for bucket in 0..BUCKETS {
            let mut wanted = [false; BUCKETS];
            wanted[bucket] = true;
            let sorted = |evidence: &Evidence| {
                let mut facts: Vec<String> = evidence.facts(&wanted, NOW).map(|fact| format!("{fact:?}")).collect();
                facts.sort();
                facts
            };
            prop_assert_eq!(ours[bucket] == theirs[bucket], sorted(&one) == sorted(&two));
        }
    }

    #[test]
    fn records_and_facts_are_read_as_written(record in record()) {
        let bytes = record.encode();
        prop_assert!(bytes.len() <= EvidenceRecord::MAX_LEN);
        let read = match record {
            EvidenceRecord::Succeeded { .. } => EvidenceRecord::decode_succeeded(&bytes),
            _ => EvidenceRecord::decode_tried(&bytes),
        };
        prop_assert_eq!(read, Some(record));
        for fact in replica(&[record]).facts(&[true; BUCKETS], NOW) {
            let mut bytes = Vec::new();
            fact.encode(&mut bytes);
            prop_assert!(bytes.len() <= Fact::MAX_LEN);
            prop_assert_eq!(Fact::decode(&bytes), Some(fact));
        }
    }

    #[test]
    fn bytes_that_no_node_writes_are_refused_or_read_as_written(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Some(fact) = Fact::decode(&bytes) {
            let mut again = Vec::new();
            fact.encode(&mut again);
            prop_assert_eq!(&again, &bytes);
        }
        for record in [EvidenceRecord::decode_succeeded(&bytes), EvidenceRecord::decode_tried(&bytes)].into_iter().flatten() {
            prop_assert_eq!(&record.encode(), &bytes);
        }
    }
}
