use proptest::prelude::*;

use super::*;

const TIMERS: PlanTimers = PlanTimers {
    gossip_interval: Duration::from_millis(200),
    differ_for: Duration::from_secs(2),
    repair_interval: Duration::from_secs(60),
};
const TOOK: Duration = Duration::from_millis(10);
const REPAIRED: Ended = Ended::Repaired { took: TOOK, changed: true };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn peer(name: &str) -> Peer {
    Peer { node: id(name), generation: 1, ready: true, equal: true, shares_wire_version: true }
}

fn differing(name: &str) -> Peer {
    Peer { equal: false, ..peer(name) }
}

/// The plan of a node that has joined, with live `peers`.
fn plan(peers: &[Peer]) -> (Plan, Instant) {
    let start = Instant::now();
    let mut plan = Plan::new(TIMERS, start, 0);
    plan.stop_joining();
    plan.update_peers(peers, start);
    (plan, start)
}

fn next(plan: &mut Plan, now: Instant) -> Option<(String, Reason)> {
    plan.next(now, 0).map(|(node, reason)| (node.to_string(), reason))
}

fn some(name: &str, reason: Reason) -> Option<(String, Reason)> {
    Some((name.to_owned(), reason))
}

#[test]
fn a_peer_that_hangs_delays_no_other() {
    let (mut plan, start) = plan(&[peer("a"), peer("hung")]);
    plan.request(Some(id("hung")), Reason::Gap, start);
    plan.request(Some(id("a")), Reason::Gap, start);
    assert_eq!(next(&mut plan, start), some("a", Reason::Gap));
    assert_eq!(next(&mut plan, start), some("hung", Reason::Gap));
    assert_eq!(next(&mut plan, start), None);
    // Repeatedly, while the other one does not answer.
    for round in 1..20 {
        let now = start + ms(200) * round;
        plan.ended(&id("a"), REPAIRED, now, 0);
        plan.request(Some(id("a")), Reason::Gap, now);
        assert_eq!(next(&mut plan, now), None, "too soon");
        assert_eq!(plan.next_wakeup(now).unwrap().min(now + MIN_REST), now + MIN_REST);
        assert_eq!(next(&mut plan, now + MIN_REST), some("a", Reason::Gap));
    }
    plan.ended(&id("a"), REPAIRED, start + ms(4_900), 0);
    let now = start + ms(5_000);
    plan.ended(&id("hung"), Ended::Failed, now, 0);
    assert_eq!(next(&mut plan, now), None);
    assert_eq!(next(&mut plan, now + ms(150)), some("hung", Reason::Gap), "its request is kept");
}

#[test]
fn failures_back_off_for_their_peer_only_and_the_pause_is_bounded() {
    let (mut plan, start) = plan(&[peer("a"), peer("bad")]);
    plan.periodic = start + ms(10_000_000_000);
    plan.request(Some(id("bad")), Reason::Gap, start);
    let mut now = start;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert_eq!(next(&mut plan, now), some("bad", Reason::Gap));
        plan.ended(&id("bad"), Ended::Failed, now, u32::MAX / 2);
        assert_eq!(next(&mut plan, now), None);
        plan.request(Some(id("a")), Reason::Gap, now);
        assert_eq!(next(&mut plan, now), some("a", Reason::Gap));
        plan.ended(&id("a"), Ended::Repaired { took: Duration::ZERO, changed: false }, now, 0);
        plan.periodic = start + ms(10_000_000_000);
        let wake = plan.next_wakeup(now).unwrap();
        pauses.push(wake - now);
        now = wake;
    }
    assert!(pauses.windows(2).all(|pair| pair[1] >= pair[0]), "{pauses:?}");
    assert!(pauses[0] <= ms(250) && pauses[11] >= ms(55_000) && pauses[11] <= ms(75_000), "{pauses:?}");
    // It was restarted, so its failures are reset.
    plan.update_peers(&[peer("a"), Peer { generation: 2, ..peer("bad") }], now - ms(1));
    assert_eq!(next(&mut plan, now - ms(1)), some("bad", Reason::Gap));
}

#[test]
fn requests_for_one_peer_are_merged_with_the_strongest_reason() {
    let (mut plan, start) = plan(&[peer("a")]);
    for reason in [Reason::Returned, Reason::Gap, Reason::Periodic, Reason::Returned] {
        plan.request(Some(id("a")), reason, start);
    }
    assert_eq!(next(&mut plan, start), some("a", Reason::Gap));
    // A running repair may not cover what is missed meanwhile.
    plan.request(Some(id("a")), Reason::Gap, start);
    assert_eq!(next(&mut plan, start), None);
    plan.ended(&id("a"), REPAIRED, start, 0);
    assert_eq!(next(&mut plan, start + MIN_REST), some("a", Reason::Gap));
    plan.ended(&id("a"), REPAIRED, start + MIN_REST, 0);
    assert_eq!(next(&mut plan, start + MIN_REST * 2), None);
}

#[test]
fn a_request_for_an_absent_peer_goes_to_another() {
    let (mut plan, start) = plan(&[]);
    plan.request(Some(id("gone")), Reason::Gap, start);
    plan.request(None, Reason::Gap, start);
    assert_eq!(next(&mut plan, start), None);
    plan.update_peers(&[peer("a")], start + ms(100));
    assert_eq!(next(&mut plan, start + ms(100)), some("a", Reason::Gap), "any peer");
    plan.ended(&id("a"), REPAIRED, start + ms(200), 0);
    assert_eq!(next(&mut plan, start + ms(1_900)), None, "it may not have been seen yet");
    assert_eq!(plan.next_wakeup(start + ms(1_900)), Some(start + ms(2_000)));
    assert_eq!(next(&mut plan, start + ms(2_000)), some("a", Reason::Gap));
}

#[test]
fn differing_tables_are_repaired_after_a_delay_and_less_often_while_nothing_changes() {
    let (mut plan, start) = plan(&[differing("a"), Peer { shares_wire_version: false, ..differing("incompatible") }]);
    assert_eq!(next(&mut plan, start + ms(1_999)), None);
    let mut now = start + ms(2_000);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(next(&mut plan, now), some("a", Reason::Differs));
        plan.ended(&id("a"), Ended::Repaired { took: TOOK, changed: false }, now, 255 << 24);
        let ended = now;
        loop {
            now += ms(200);
            match plan.next(now, 0) {
                None => {}
                Some((node, Reason::Differs)) => {
                    assert_eq!(node, id("a"));
                    break;
                }
                Some((node, reason)) => {
                    assert_eq!(reason, Reason::Periodic);
                    plan.ended(&node, Ended::Failed, now, 0);
                }
            }
        }
        pauses.push(now - ended);
        plan.running.clear();
    }
    assert!(pauses[0] <= ms(4_200) && pauses[2] >= ms(16_000) && *pauses.last().unwrap() <= ms(61_000), "{pauses:?}");
    // A repair that changes something resets the pause.
    plan.running.clear();
    plan.update_peers(&[peer("a")], now);
    plan.update_peers(&[differing("a")], now);
    now += ms(61_000);
    plan.periodic = now + ms(100_000);
    assert_eq!(next(&mut plan, now), some("a", Reason::Differs));
    plan.ended(&id("a"), REPAIRED, now, 0);
    plan.periodic = now + ms(100_000);
    assert_eq!(next(&mut plan, now + ms(2_000)), some("a", Reason::Differs));
}

#[test]
fn peers_that_come_back_are_repaired_and_joining_peers_are_not() {
    let (mut plan, start) = plan(&[peer("a")]);
    let joins = Peer { ready: false, ..differing("joins") };
    plan.update_peers(
        &[peer("a"), differing("back"), joins, Peer { shares_wire_version: false, ..differing("incompatible") }],
        start,
    );
    assert_eq!(next(&mut plan, start), some("back", Reason::Returned));
    assert_eq!(next(&mut plan, start), None);
    plan.ended(&id("back"), REPAIRED, start, 0);
    // While a node joins, however long that takes, the others do not send it what it fetches from one of them.
    let joins = Peer { ready: false, ..differing("joins") };
    let late = start + ms(20_000);
    plan.update_peers(&[peer("a"), peer("back"), joins], late);
    assert_eq!(next(&mut plan, late), None);
    plan.update_peers(&[peer("a"), peer("back"), differing("joins")], late);
    assert_eq!(next(&mut plan, late + ms(1_999)), None);
    assert_eq!(next(&mut plan, late + ms(2_000)), some("joins", Reason::Differs), "it has joined and still differs");
}

#[test]
fn a_node_joins_through_a_ready_peer_and_tries_another_if_it_does_not_answer() {
    let start = Instant::now();
    let mut plan = Plan::new(TIMERS, start, 0);
    let joins = |name| Peer { ready: false, ..differing(name) };
    plan.update_peers(&[joins("a"), differing("hung"), differing("ready")], start);
    plan.request(Some(id("a")), Reason::Gap, start);
    assert_eq!(plan.next(start, 0), Some((id("hung"), Reason::Join)));
    assert_eq!(next(&mut plan, start + ms(999)), None);
    assert_eq!(next(&mut plan, start + STALLED), some("ready", Reason::Join));
    plan.answered(&id("ready"));
    assert!(plan.is_fetching() && plan.is_joining());
    assert_eq!(next(&mut plan, start + ms(9_000)), None, "a large table takes a while");
    plan.ended(&id("hung"), Ended::Failed, start + ms(9_500), 0);
    assert!(plan.is_joining());
    plan.ended(&id("ready"), REPAIRED, start + ms(10_000), 0);
    assert!(!plan.is_joining());
    assert_eq!(next(&mut plan, start + ms(10_000)), some("a", Reason::Gap));
}

#[test]
fn a_node_joins_through_any_peer_when_none_is_ready() {
    let start = Instant::now();
    let mut plan = Plan::new(TIMERS, start, 0);
    plan.update_peers(&[], start);
    assert_eq!(next(&mut plan, start + ms(9_000)), None);
    let met = start + ms(9_000);
    plan.update_peers(&[Peer { ready: false, ..differing("a") }], met);
    assert_eq!(next(&mut plan, met + ms(999)), None);
    assert_eq!(plan.next_wakeup(met), Some(met + ms(1_000)));
    assert_eq!(next(&mut plan, met + ms(1_000)), some("a", Reason::Join));
}

#[test]
fn hung_peers_do_not_use_up_all_repairs() {
    let names: Vec<String> = (0..12).map(|n| format!("hung-{n}")).collect();
    let mut peers: Vec<Peer> = names.iter().map(|name| peer(name)).collect();
    peers.push(peer("z"));
    let (mut plan, start) = plan(&peers);
    names.iter().for_each(|name| plan.request(Some(id(name)), Reason::Gap, start));
    plan.request(Some(id("z")), Reason::Gap, start);
    let mut now = start;
    while plan.next(now, 0).is_some() {}
    while !plan.running.contains_key(&id("z")) {
        now = plan.next_wakeup(now).unwrap();
        assert!(now <= start + ms(3_000), "{plan:?}");
        while plan.next(now, 0).is_some() {}
    }
}

/// How a simulated peer behaves.
#[derive(Clone, Copy, Debug)]
enum Behaviour {
    Good,
    Refuses,
    Hangs,
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![Just(Behaviour::Good), Just(Behaviour::Refuses), Just(Behaviour::Hangs)]
}

proptest! {
    /// Requests for good peers are served soon, whatever the other peers do, and bad peers are tried less and less often. The
    /// plan is called only when its own wakeup, a request or the end of a repair is due.
    #[test]
    fn good_peers_are_repaired_soon_whatever_the_others_do(
        behaviours in proptest::collection::vec(behaviour(), 1..12),
        asks in proptest::collection::vec((0u64..20_000, 0usize..12), 0..60),
        draws in proptest::collection::vec(any::<u32>(), 8),
    ) {
        let peers: Vec<Peer> = (0..behaviours.len()).map(|n| peer(&format!("n{n:02}"))).collect();
        let behaviour_of: HashMap<NodeId, Behaviour> =
            peers.iter().map(|peer| peer.node.clone()).zip(behaviours.iter().copied()).collect();
        let (mut plan, start) = plan(&peers);
        let mut asks: Vec<(Instant, NodeId)> =
            asks.into_iter().map(|(at, n)| (start + ms(at), peers[n % peers.len()].node.clone())).collect();
        asks.sort();
        let (mut now, end) = (start, start + ms(60_000));
        let mut ends: Vec<(Instant, NodeId, Ended)> = Vec::new();
        let mut open: HashMap<NodeId, Instant> = HashMap::new();
        let mut attempts: HashMap<NodeId, u32> = HashMap::new();
        for step in 0.. {
            prop_assert!(step < 100_000, "busy without progress");
            let draw = draws[step % draws.len()];
            while asks.first().is_some_and(|(at, _)| *at <= now) {
                let (_, node) = asks.remove(0);
                open.entry(node.clone()).or_insert(now);
                plan.request(Some(node), Reason::Gap, now);
            }
            while let Some((node, _)) = plan.next(now, draw) {
                prop_assert!(!ends.iter().any(|(_, running, _)| *running == node), "twice with {node}");
                *attempts.entry(node.clone()).or_default() += 1;
                let (after, ended) = match behaviour_of[&node] {
                    Behaviour::Good => (TOOK, REPAIRED),
                    Behaviour::Refuses => (ms(1), Ended::Failed),
                    Behaviour::Hangs => (ms(5_000), Ended::Failed),
                };
                if matches!(behaviour_of[&node], Behaviour::Good) {
                    plan.answered(&node);
                    if let Some(since) = open.remove(&node) {
                        // Up to eleven others hang, four per second; and there is its own pause after an earlier repair.
                        prop_assert!(now - since <= ms(4_000), "{node} waited {:?}", now - since);
                    }
                }
                ends.push((now + after, node, ended));
            }
            prop_assert!(ends.len() <= MAX_OPEN);
            let next_end = ends.iter().map(|(at, ..)| *at).min();
            let Some(then) = next_end.into_iter().chain(plan.next_wakeup(now)).chain(asks.first().map(|(at, _)| *at)).min() else {
                break;
            };
            prop_assert!(then > now);
            now = then;
            if now > end {
                break;
            }
            let (due, later): (Vec<_>, Vec<_>) = ends.into_iter().partition(|(at, ..)| *at <= now);
            ends = later;
            for (_, node, ended) in due {
                plan.ended(&node, ended, now, draw);
            }
        }
        for (node, behaviour) in &behaviour_of {
            let attempts = attempts.get(node).copied().unwrap_or_default();
            match behaviour {
                Behaviour::Good => prop_assert!(!open.contains_key(node), "{node} still waits"),
                // Pauses of 0.2 s, 0.4 s, 0.8 s …, each up to a quarter shorter.
                Behaviour::Refuses | Behaviour::Hangs => prop_assert!(attempts <= 11, "{node}: {attempts}"),
            }
        }
    }
}
