use proptest::prelude::*;

use super::*;
use crate::follower::Followed;
use banmesh_types::time::UnixMillis;

const WAIT: Duration = Duration::from_millis(50);
const REPORT_AFTER: Duration = Duration::from_secs(3);
const AT: UnixMillis = UnixMillis(1_800_000_000_000);

fn node(number: u64) -> NodeId {
    format!("n{number}").parse().unwrap()
}

fn peer(number: u64) -> Peer {
    Peer { node: node(number), process: number, address: ([192, 0, 2, 1], 1).into() }
}

fn ack(number: u64, next: u64, later: u64) -> Acknowledgement {
    Acknowledgement { node: node(number), author: 0, next, later, missed: 0, at: AT }
}

/// A log with one peer.
fn delivery(now: Instant) -> Delivery {
    let mut delivery = Delivery::new(WAIT, REPORT_AFTER);
    delivery.update_peers(vec![peer(1)], now);
    delivery
}

fn publish(delivery: &mut Delivery, slots: u64) {
    for _ in 0..slots {
        let number = delivery.next_number();
        delivery.publish('b', vec![1], (number + 1) * 10, false);
    }
}

fn numbers(sends: &[Send], channel: Channel) -> Vec<u64> {
    sends.iter().filter(|send| send.channel == channel).map(|send| send.slot.number).collect()
}

#[test]
fn an_acknowledged_slot_is_sent_once() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, 2);
    assert_eq!(numbers(&delivery.due(now), Channel::Datagram), [0, 1]);
    assert_eq!(delivery.due(now), []);
    assert_eq!(delivery.next_wakeup(), Some(now + WAIT));
    let received = delivery.acknowledged(Some(1), &ack(1, 2, 0), Channel::Datagram);
    assert_eq!(received, Some(Received { next: 20, missed: 0 }));
    assert_eq!((delivery.due(now + WAIT * 99), delivery.next_wakeup()), (vec![], None));
    assert_eq!(delivery.acknowledged(Some(2), &ack(1, 2, 0), Channel::Datagram), None, "an earlier process");
    assert_eq!(delivery.acknowledged(Some(1), &ack(1, 3, 0), Channel::Datagram), None, "never published");
}

#[test]
fn what_a_peer_missed_long_ago_stays_missed() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, 10);
    publish(&mut delivery, MAX_LOG as u64);
    let end = MAX_LOG as u64 + 10;
    let missed = |missed| Acknowledgement { missed, ..ack(1, end, 0) };
    let mut received = |ack| delivery.acknowledged(Some(1), &ack, Channel::Datagram);
    assert_eq!(received(missed(0)), Some(Received { next: end * 10, missed: 0 }));
    assert_eq!(received(missed(end - 1)), Some(Received { next: end * 10, missed: (end - 1) * 10 }));
    assert_eq!(received(missed(3)), Some(Received { next: end * 10, missed: 100 }), "all before the log may be missed");
}

#[test]
fn only_the_lost_slot_is_sent_again() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, 5);
    delivery.due(now);
    // 1 and 3 are missing.
    delivery.acknowledged(Some(1), &ack(1, 1, 0b101), Channel::Datagram);
    assert_eq!(numbers(&delivery.due(now + WAIT), Channel::Datagram), [1, 3]);
}

#[test]
fn slots_go_by_tcp_where_datagrams_are_lost_and_by_datagram_when_they_arrive_again() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, 2);
    delivery.due(now);
    assert_eq!(numbers(&delivery.due(now + WAIT), Channel::Datagram), [0, 1]);
    let lost = now + WAIT * 3;
    assert_eq!(numbers(&delivery.due(lost), Channel::Stream), [0, 1]);
    delivery.acknowledged(Some(1), &ack(1, 2, 0), Channel::Stream);
    // Later slots go by TCP at once, and one of them as a datagram too.
    publish(&mut delivery, 2);
    let sends = delivery.due(lost + PROBE);
    assert_eq!((numbers(&sends, Channel::Stream), numbers(&sends, Channel::Datagram)), (vec![2, 3], vec![2]));
    assert_eq!(delivery.unfollowed(lost + PROBE), []);
    let unfollowed = delivery.unfollowed(lost + REPORT_AFTER);
    assert!(matches!(&unfollowed[..], [Unfollowed { by_tcp: true, .. }]), "{unfollowed:?}");
    delivery.acknowledged(Some(1), &ack(1, 4, 0), Channel::Datagram);
    publish(&mut delivery, 1);
    let sends = delivery.due(lost + REPORT_AFTER);
    assert_eq!((numbers(&sends, Channel::Stream), numbers(&sends, Channel::Datagram)), (vec![], vec![4]));
    assert_eq!(delivery.unfollowed(lost + REPORT_AFTER * 2), []);
}

#[test]
fn a_slot_that_is_too_long_for_a_datagram_goes_by_tcp() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    delivery.publish('b', vec![0; 2_000], 1, true);
    let sends = delivery.due(now);
    assert_eq!((numbers(&sends, Channel::Stream), numbers(&sends, Channel::Datagram)), (vec![0], vec![]));
}

#[test]
fn a_burst_waits_for_a_slow_peer_but_not_for_one_that_acknowledges_nothing() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, MAX_BEHIND);
    delivery.due(now);
    assert!(!delivery.is_congested());
    publish(&mut delivery, 1);
    assert!(delivery.is_congested());
    delivery.acknowledged(Some(1), &ack(1, 1, 0), Channel::Datagram);
    assert!(!delivery.is_congested());
    publish(&mut delivery, 1);
    delivery.due(now + WAIT);
    delivery.due(now + WAIT * 4);
    assert!(!delivery.is_congested());
}

#[test]
fn the_log_is_bounded_and_a_slow_peer_learns_what_was_dropped() {
    let now = Instant::now();
    let mut delivery = delivery(now);
    publish(&mut delivery, 1_000);
    assert_eq!(delivery.log.len(), MAX_LOG);
    let sends = delivery.due(now);
    let window = usize::try_from(WINDOW).unwrap();
    assert_eq!((sends.len(), sends[0].oldest, sends[0].slot.number), (window, 744, 744));
    // A peer that joins gets the last ones.
    delivery.update_peers(vec![peer(1), peer(2)], now);
    let sends = delivery.due(now);
    assert_eq!((sends.len(), sends[0].oldest), (32, 968));
    // A restarted peer starts again.
    delivery.update_peers(vec![peer(1), Peer { process: 9, ..peer(2) }], now);
    assert_eq!(delivery.due(now).len(), 32);
}

proptest! {
    /// Whatever is lost, repeated or late, the peer gets everything while the log holds it.
    #[test]
    fn everything_arrives_over_a_path_that_loses_datagrams(fates in proptest::collection::vec(0u8..4, 1..400)) {
        let mut now = Instant::now();
        let (mut delivery, mut followed) = (delivery(now), Followed::default());
        let (mut fates, mut arrived, mut late) = (fates.into_iter(), 0u64, Vec::new());
        publish(&mut delivery, 150);
        for _ in 0..1_000 {
            let mut sends = delivery.due(now);
            sends.append(&mut late);
            let quiet = sends.is_empty();
            for send in sends {
                // By TCP nothing is lost.
                let fate = if send.channel == Channel::Stream { 3 } else { fates.next().unwrap_or(3) };
                if fate == 0 {
                    continue;
                }
                let arrival = followed.received(0, send.oldest, send.slot.number, AT);
                prop_assert_eq!(arrival.gap, None);
                arrived += u64::from(arrival.fresh);
                if fate == 1 {
                    late.push(send.clone());
                }
                if fate != 2 {
                    let position = followed.position(0).unwrap();
                    let ack = ack(1, position.next, position.later);
                    delivery.acknowledged(Some(1), &ack, send.channel);
                }
            }
            if quiet && delivery.next_wakeup().is_none() {
                break;
            }
            if quiet {
                now = delivery.next_wakeup().unwrap_or(now);
            }
        }
        prop_assert_eq!((arrived, delivery.next_wakeup()), (150, None));
    }
}
