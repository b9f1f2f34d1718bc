use proptest::prelude::*;

use super::*;

const THRESHOLD: Threshold = Threshold { max_attempts: 5, time_window: Duration::from_secs(600) };
const START: UnixMillis = UnixMillis(1_800_000_000_000);

fn key(n: u32) -> Key {
    (JailId::GENERAL, Target::host(std::net::IpAddr::V4(n.into()).into()))
}

fn by() -> Recognised {
    Recognised { filter: "sshd".into(), rule: "failed-password".into() }
}

fn after(seconds: u64) -> UnixMillis {
    START.plus(Duration::from_secs(seconds))
}

#[test]
fn offences_outside_the_window_do_not_count() {
    let mut attempts = Attempts::new(10);
    for (n, seconds) in [0, 1, 2, 3, 599].into_iter().enumerate() {
        assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, after(seconds)).attempts as usize, n + 1);
    }
    assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, after(601)).attempts, 4);
    assert_eq!(attempts.attempts(key(2), THRESHOLD, after(601)), 0);
}

#[test]
fn a_repeated_message_counts_as_often_as_it_was_repeated() {
    let mut attempts = Attempts::new(10);
    assert_eq!(attempts.record(key(1), 3, &by(), THRESHOLD, START).attempts, 3);
    assert_eq!(attempts.record(key(1), 1_000_000, &by(), THRESHOLD, START).attempts, 5);
}

#[test]
fn a_flood_of_addresses_does_not_evict_sources_that_keep_trying() {
    let mut attempts = Attempts::new(1000);
    for n in 0..4 {
        attempts.record(key(1), 1, &by(), THRESHOLD, after(n));
    }
    for n in 0..100_000 {
        attempts.record(key(1_000_000 + n), 1, &by(), THRESHOLD, after(5));
    }
    assert_eq!(attempts.len(), 1000);
    assert!(attempts.once.len() + attempts.again.len() < 5000);
    assert_eq!(attempts.evicted(), 100_000 - 999);
    assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, after(6)).attempts, 5);
}

#[test]
fn ended_windows_are_removed() {
    let mut attempts = Attempts::new(1000);
    for n in 0..500 {
        attempts.record(key(n), 1, &by(), THRESHOLD, START);
    }
    for n in 0..200 {
        attempts.record(key(1_000_000 + n), 1, &by(), THRESHOLD, after(700));
    }
    assert_eq!((attempts.len(), attempts.evicted()), (200, 0));
}

#[test]
fn counts_of_nodes_add_up_and_repeated_records_do_not() {
    let mut attempts = Attempts::new(10);
    let slot = THRESHOLD.slot(after(10)) + 1;
    let share = |count| SlotCount { key: key(1), slot, count };
    attempts.record(key(1), 1, &by(), THRESHOLD, after(20));
    assert_eq!(attempts.merge(7, share(1), THRESHOLD, after(20)), 2);
    assert_eq!(attempts.merge(7, share(2), THRESHOLD, after(20)), 3);
    assert_eq!(attempts.merge(7, share(1), THRESHOLD, after(20)), 3);
    assert_eq!(attempts.merge(8, share(1), THRESHOLD, after(20)), 4);
    // Too old, or from a clock far ahead: ignored.
    assert_eq!(attempts.merge(8, SlotCount { slot: slot - 100, ..share(9) }, THRESHOLD, after(20)), 4);
    assert_eq!(attempts.merge(8, SlotCount { slot: slot + 100, ..share(9) }, THRESHOLD, after(20)), 4);
    assert_eq!(attempts.attempts(key(1), THRESHOLD, after(700)), 0);
}

#[test]
fn offences_before_a_ban_do_not_count_again() {
    let mut attempts = Attempts::new(10);
    let share = SlotCount { key: key(1), slot: THRESHOLD.slot(after(20)), count: 4 };
    attempts.merge(7, share, THRESHOLD, after(30));
    attempts.clear(key(1), after(40));
    // A late copy of the same record.
    assert_eq!(attempts.merge(7, share, THRESHOLD, after(41)), 0);
    assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, after(42)).attempts, 1);
}

#[test]
fn an_offence_in_the_same_millisecond_as_the_ban_counts() {
    let mut attempts = Attempts::new(10);
    attempts.record(key(1), 5, &by(), THRESHOLD, START);
    attempts.clear(key(1), START);
    assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, START).attempts, 1);
}

#[test]
fn offences_from_before_the_clock_was_set_back_do_not_count() {
    let (ahead, share) = (after(86_400), |at| SlotCount { key: key(2), slot: THRESHOLD.slot(at), count: 2 });
    let mut attempts = Attempts::new(10);
    // While the clock is a day ahead: four offences, and five that led to a ban.
    attempts.record(key(1), 4, &by(), THRESHOLD, ahead);
    attempts.record(key(2), 5, &by(), THRESHOLD, ahead);
    attempts.clear(key(2), ahead);
    // The clock is correct again: the four do not count, and the ban does not hide new offences.
    assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, START).attempts, 1);
    for n in 1..=5 {
        assert_eq!(attempts.record(key(2), 1, &by(), THRESHOLD, after(n)).attempts, u32::try_from(n).unwrap());
    }
    assert_eq!(attempts.merge(7, share(after(20)), THRESHOLD, after(40)), 7);
    // A window from the future that nobody touches again is removed too, and does not block the queue.
    attempts.record(key(3), 1, &by(), THRESHOLD, ahead);
    for n in 0..20 {
        attempts.record(key(100 + n), 1, &by(), THRESHOLD, after(50));
    }
    assert_eq!(attempts.attempts(key(3), THRESHOLD, after(50)), 0);
    assert_eq!(attempts.evicted(), 20 - 10);
}

proptest! {
    /// Local counts against the plain definition: offences in (now - window, now].
    #[test]
    fn the_window_slides(gaps in proptest::collection::vec(0u64..400_000, 1..60)) {
        let mut attempts = Attempts::new(10);
        let mut times: Vec<UnixMillis> = Vec::new();
        let mut now = START;
        for gap in gaps {
            now = UnixMillis(now.0 + gap);
            times.push(now);
            let expected = times.iter().filter(|at| **at > now.minus(THRESHOLD.time_window)).count().min(5);
            prop_assert_eq!(attempts.record(key(1), 1, &by(), THRESHOLD, now).attempts as usize, expected);
        }
    }

    /// The counts of other nodes give the same result in any order and repeated.
    #[test]
    fn counts_may_arrive_in_any_order_and_repeatedly(mut shares in proptest::collection::vec((0u64..3, 0u64..4, 1u32..5), 1..30)) {
        let now = after(100);
        let base = THRESHOLD.slot(after(60));
        let run = |shares: &[(u64, u64, u32)]| {
            let mut attempts = Attempts::new(10);
            for (node, slot, count) in shares {
                attempts.merge(*node, SlotCount { key: key(1), slot: base + slot, count: *count }, THRESHOLD, now);
            }
            attempts.attempts(key(1), THRESHOLD, now)
        };
        let forward = run(&shares);
        shares.reverse();
        let twice: Vec<_> = shares.iter().chain(&shares).copied().collect();
        prop_assert_eq!(forward, run(&twice));
    }
}

#[test]
fn jails_of_different_policies_differ_and_none_is_general_or_in_shadow_mode() {
    let jails: std::collections::HashSet<JailId> = (0..1000).map(|n| JailId::of_policy(&n.to_string())).collect();
    assert_eq!(jails.len(), 1000);
    for jail in jails {
        assert!(jail != JailId::GENERAL && !jail.is_shadow());
        assert!(
            jail.shadowed().is_shadow() && jail.shadowed() != jail && jail.shadowed().shadowed() == jail.shadowed()
        );
    }
    assert_eq!(JailId::of_policy("5 in 10m"), JailId::of_policy("5 in 10m"), "on every node");
}

#[test]
fn the_last_offence_of_this_node_is_known_while_it_counts() {
    let mut attempts = Attempts::new(10);
    assert!(attempts.is_empty());
    attempts.merge(7, SlotCount { key: key(1), slot: THRESHOLD.slot(after(0)), count: 1 }, THRESHOLD, after(0));
    assert_eq!(attempts.last_local(key(1), THRESHOLD, after(0)), None, "another node recognised it");
    attempts.record(key(1), 1, &by(), THRESHOLD, after(0));
    assert!(!attempts.is_empty());
    assert_eq!(attempts.last_local(key(1), THRESHOLD, after(599)), Some(&by()));
    assert_eq!(attempts.last_local(key(1), THRESHOLD, after(600)), None);
    assert_eq!(attempts.attempts(key(1), THRESHOLD, after(600)), 0, "it no longer counts");
}

#[test]
fn counts_are_listed_by_node() {
    let mut attempts = Attempts::new(10);
    attempts.record(key(1), 2, &by(), THRESHOLD, after(30));
    let slot = THRESHOLD.slot(after(30));
    for (from, slot, count) in [(7, slot, 3), (8, slot, 1), (7, slot + 1, 4)] {
        attempts.merge(from, SlotCount { key: key(1), slot, count }, THRESHOLD, after(30));
    }
    let Counts { own, mut others } = attempts.counts(key(1), THRESHOLD, after(30));
    others.sort_unstable();
    assert_eq!((own, others), (2, vec![(7, 7), (8, 1)]));
}
