use proptest::prelude::*;

use super::*;

const SILENT: u64 = 100;
const IDLE: u64 = 1000;

fn address(number: u8) -> Address {
    Address::from([192, 0, 2, number])
}

fn stranger(number: u8) -> Client {
    Client::new(address(number), Standing::Stranger)
}

fn known(number: u8) -> Client {
    Client::new(address(number), Standing::Known)
}

fn places(count: usize) -> Places {
    Places::new(Rules::new(count, SILENT, IDLE))
}

/// Takes `count` places for `client`, which are useful and busy at `now`.
fn fill(places: &mut Places, client: Client, count: usize, now: u64) -> Vec<u64> {
    let take = |_| {
        let admitted = places.admit(client, usize::MAX, now).unwrap();
        admitted.activity.mark_useful();
        admitted.id
    };
    (0..count).map(take).collect()
}

#[test]
fn the_client_with_the_most_places_gives_way_even_if_it_is_busy() {
    let mut places = places(10);
    let flood = fill(&mut places, stranger(1), 8, 0);
    let other = fill(&mut places, stranger(2), 2, 0);
    let admitted = places.admit(stranger(3), usize::MAX, 0).unwrap();
    assert_eq!(admitted.evicted, Some(flood[0]));
    assert_eq!(admitted.crowding, Some((stranger(1), 8)));
    assert!(other.iter().all(|id| places.ids().any(|taken| taken == *id)));
}

#[test]
fn the_client_with_the_most_places_displaces_only_its_own_idle_connections() {
    let mut places = places(4);
    let own = fill(&mut places, stranger(1), 3, 0);
    let other = fill(&mut places, stranger(2), 1, 0);
    assert_eq!(places.admit(stranger(1), usize::MAX, IDLE - 1).unwrap_err(), LimitReached::Total(4));
    assert_eq!(places.admit(stranger(1), usize::MAX, IDLE).unwrap().evicted, Some(own[0]));
    assert!(places.ids().any(|id| id == other[0]));
}

#[test]
fn a_connection_that_did_nothing_useful_goes_first() {
    let mut places = places(4);
    fill(&mut places, stranger(1), 2, 0);
    let silent = places.admit(stranger(1), usize::MAX, 50).unwrap().id;
    fill(&mut places, stranger(2), 1, 50);
    assert_eq!(places.admit(stranger(3), usize::MAX, 50).unwrap().evicted, Some(silent));
}

#[test]
fn idle_connections_stay_while_places_are_free() {
    let mut places = places(4);
    fill(&mut places, stranger(1), 3, 0);
    assert_eq!(places.admit(stranger(2), usize::MAX, 1_000_000_000).unwrap().evicted, None);
}

#[test]
fn strangers_cannot_take_the_share_of_known_clients_and_the_reverse() {
    for (greedy, modest) in [(stranger(1), known(2)), (known(1), stranger(2))] {
        let mut places = places(10);
        fill(&mut places, greedy, 10, 0);
        let mut got = 0;
        while places.admit(modest, usize::MAX, 0).is_ok() {
            got += 1;
        }
        assert_eq!(got, 5);
        assert!(places.admit(greedy, usize::MAX, 0).is_err());
    }
}

#[test]
fn strangers_from_many_addresses_do_not_displace_a_known_client() {
    let mut places = places(10);
    let haproxy = fill(&mut places, known(1), 5, 0);
    for number in 2..200 {
        let _ = places.admit(stranger(number), usize::MAX, u64::from(number) * IDLE);
    }
    assert!(haproxy.iter().all(|id| places.ids().any(|taken| taken == *id)));
}

#[test]
fn one_client_cannot_exceed_its_own_limit_and_one_ipv6_network_is_one_client() {
    let mut places = places(10);
    let client = |text: &str| Client::new(text.parse().unwrap(), Standing::Stranger);
    let first = places.admit(client("2001:db8::1"), 2, 0).unwrap().id;
    places.admit(client("2001:db8::2"), 2, 0).unwrap().activity.mark_useful();
    assert_eq!(places.admit(client("2001:db8::3"), 2, 0).unwrap_err(), LimitReached::Client(2));
    assert_eq!(places.admit(client("2001:db8::3"), 2, SILENT).unwrap().evicted, Some(first));
    places.admit(client("2001:db8:0:1::1"), 2, 0).unwrap();
}

#[test]
fn trimming_takes_idle_places_of_clients_above_their_part_only() {
    let mut places = Places::new(Rules { settled: 4, ..Rules::new(40, SILENT, IDLE) });
    let modest = fill(&mut places, stranger(1), 2, 0);
    let greedy = fill(&mut places, stranger(2), 6, 500);
    assert_eq!(places.trim(1000), Some(Err(500)), "the modest client's places are idle, but not too many");
    for expected in &greedy[..4] {
        assert_eq!(places.trim(500 + IDLE), Some(Ok(*expected)));
    }
    assert_eq!(places.trim(500 + IDLE), None);
    assert!(modest.iter().all(|id| places.ids().any(|taken| taken == *id)));
}

#[test]
fn a_client_that_is_refused_again_and_again_is_searched_rarely() {
    let mut places = places(2000);
    fill(&mut places, stranger(1), 2000, 0);
    let mut searches = 0;
    for attempt in 0..20_000 {
        // 100 attempts per millisecond.
        let (now, before) = (attempt / 100, places.busy_until.get(&stranger(1)).copied());
        assert!(places.admit(stranger(1), usize::MAX, now).is_err());
        searches += usize::from(places.busy_until.get(&stranger(1)).copied() != before);
    }
    assert!(searches <= 21, "{searches}");
    // Others are not affected, and an idle place is found on time.
    assert!(places.admit(stranger(2), usize::MAX, 200).is_ok());
    assert!(places.admit(stranger(1), usize::MAX, IDLE - 1).is_err());
    assert!(places.admit(stranger(1), usize::MAX, IDLE).is_ok());
}

#[test]
fn clients_without_places_use_no_memory() {
    let mut places = places(10);
    let id = places.admit(stranger(1), usize::MAX, 0).unwrap().id;
    assert!(places.admit(stranger(1), 1, 0).is_err());
    places.release(id);
    assert!(places.busy_until.is_empty());
    assert!(places.holders.is_empty() && places.strangers.clients.is_empty() && places.strangers.total == 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(u8, bool),
    Close(usize),
    Useful(usize),
    Touch(usize),
    Wait(u64),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..6).prop_map(|number| Step::Connect(number, number < 2)),
        1 => any::<usize>().prop_map(Step::Close),
        2 => any::<usize>().prop_map(Step::Useful),
        2 => any::<usize>().prop_map(Step::Touch),
        2 => (0_u64..2 * IDLE).prop_map(Step::Wait),
        1 => Just(Step::Trim),
    ]
}

proptest! {
    /// Whatever happens: the bounds hold, the totals agree, and who loses a busy place held more than the newcomer or belongs to the
    /// side that exceeds its share.
    #[test]
    fn a_client_loses_a_busy_place_only_to_one_that_holds_fewer(steps in prop::collection::vec(step(), 1..200)) {
        let rules = Rules { settled: 6, ..Rules::new(12, SILENT, IDLE) };
        let (mut places, mut now) = (Places::new(rules), 0);
        let mut open: Vec<(u64, Client, Arc<Activity>)> = Vec::new();
        for step in steps {
            match step {
                Step::Connect(number, is_known) => {
                    let client = Client::new(address(number), Standing::known_if(is_known));
                    let held = places.held_by(client);
                    let side = places.side(client.standing).total;
                    let share = if is_known { rules.known_share } else { rules.places - rules.known_share };
                    if let Ok(admitted) = places.admit(client, 9, now) {
                        if let Some(evicted) = admitted.evicted {
                            let at = open.iter().position(|(id, ..)| *id == evicted).unwrap();
                            let (_, loser, activity) = open.remove(at);
                            let (useful, last) = activity.rank();
                            let idle = now - last >= if useful { IDLE } else { SILENT };
                            let had = places.held_by(loser) + usize::from(loser != client);
                            let fewer = loser.standing == client.standing && had > held + 1;
                            let share_is_owed = loser.standing != client.standing && side < share;
                            prop_assert!(idle || fewer || share_is_owed, "{loser:?} lost to {client:?}");
                        }
                        open.push((admitted.id, client, admitted.activity));
                    } else {
                        // A client without places is refused only while nobody holds clearly more.
                        prop_assert!(held > 0 || side >= share);
                        prop_assert!(held >= 9 || places.side(client.standing).greatest() <= held + 1);
                    }
                }
                Step::Close(index) if !open.is_empty() => {
                    let (id, ..) = open.remove(index % open.len());
                    places.release(id);
                }
                Step::Useful(index) if !open.is_empty() => open[index % open.len()].2.mark_useful(),
                Step::Touch(index) if !open.is_empty() => open[index % open.len()].2.touch(now),
                Step::Wait(time) => now += time,
                Step::Trim => {
                    if let Some(Ok(id)) = places.trim(now) {
                        open.retain(|(open, ..)| *open != id);
                        prop_assert!(open.len() >= rules.settled);
                    }
                }
                _ => {}
            }
            prop_assert_eq!(places.taken(), open.len());
            prop_assert!(places.taken() <= rules.places);
            prop_assert_eq!(places.known.total + places.strangers.total, open.len());
            prop_assert!(open.iter().all(|(id, client, _)| places.holders.get(id) == Some(client)));
        }
    }
}
