use proptest::prelude::*;

use super::*;
use crate::table::KeyKind;

const PERIOD: u64 = 10_000;
const RATE: u8 = 10;

fn table(bits: &[u8]) -> Arc<Definition> {
    let cell = |bit: &u8| {
        let kind = if *bit == RATE { CellKind::Rate(PERIOD) } else { CellKind::Number };
        Cell { bit: *bit, element: 0, kind }
    };
    let cells = bits.iter().map(cell).collect();
    Arc::new(Definition { id: 1, name: "/req".to_owned(), key: KeyKind::Integer, expire: 60_000, cells })
}

fn key(number: u32) -> Key {
    Key { table: "req".into(), key: Arc::from(number.to_be_bytes()) }
}

fn learn(
    counters: &mut Counters,
    origin: Origin,
    table: &Arc<Definition>,
    number: u32,
    values: &[Value],
    now: Instant,
) {
    let version =
        (0, counters.rows.iter().flat_map(|(_, row)| &row.shares).map(|share| share.version.1 + 1).max().unwrap_or(0));
    let state = State { origin, table, key: &number.to_be_bytes(), values, version };
    assert!(counters.learn(&state, now));
}

fn rate(curr: u64) -> Value {
    Value::Rate(Rate { age: 0, curr, prev: 0 })
}

#[test]
fn a_process_is_sent_the_sum_of_the_others_and_not_its_own() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[RATE, CONN_CUR]));
    let [a, b, c] = ["lb1", "edge-2/lb1", "edge-3/lb1"].map(|name| counters.origin(name, name == "lb1", now).unwrap());
    let (others, gossip) = (counters.subscribe(Wants::Others(a)), counters.subscribe(Wants::Local));
    for (origin, count) in [(a, 1), (b, 20), (c, 300)] {
        learn(&mut counters, origin, &table, 7, &[rate(count), Value::Number(count)], now);
    }
    assert_eq!(counters.changed(gossip, 10), [key(7)]);
    assert_eq!(counters.changed(others, 10), [key(7)]);
    let sums = [RATE, GPC0].map(|bit| Cell {
        bit,
        element: 0,
        kind: if bit == RATE { CellKind::Rate(PERIOD) } else { CellKind::Number },
    });
    let sum = counters.sum(&key(7), Wants::Others(a), &sums, now).unwrap();
    assert_eq!(sum, Sum { values: vec![rate(320), Value::Number(320)], processes: 2 }, "conn_cur is in gpc0");
    let later = now + Duration::from_secs(15);
    let Value::Rate(fallen) = counters.sum(&key(7), Wants::All, &sums, later).unwrap().values[0] else { panic!() };
    assert!((150..=162).contains(&fallen.value(PERIOD)), "{fallen:?}");
}

#[test]
fn connections_of_a_silent_process_do_not_count() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[CONN_CUR]));
    let own = counters.origin("lb1", true, now).unwrap();
    let other = counters.origin("edge-2/lb1", false, now).unwrap();
    learn(&mut counters, other, &table, 7, &[Value::Number(9)], now);
    let others = counters.subscribe(Wants::Others(own));
    assert_eq!(counters.changed(others, 10).len(), 1);
    let later = now + SILENT;
    counters.sweep(later, 10);
    assert_eq!(counters.changed(others, 10), [key(7)]);
    let sum = counters.sum(&key(7), Wants::Others(own), &table.cells, later).unwrap();
    assert_eq!(sum.values, [Value::Number(0)]);
}

#[test]
fn a_new_process_is_given_back_what_the_one_before_counted() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0, RATE]));
    let own = counters.origin("lb1", true, now).unwrap();
    learn(&mut counters, own, &table, 7, &[Value::Number(7), rate(7)], now);
    learn(&mut counters, own, &table, 8, &[Value::Number(3), rate(3)], now);
    assert!(counters.lost(own).is_empty());
    counters.restarted(own);
    learn(&mut counters, own, &table, 8, &[Value::Number(1), rate(1)], now);
    let lost = counters.lost(own);
    assert_eq!(lost, [key(7), key(8)]);
    assert_eq!(counters.given_back(&lost[0], own, now).unwrap().1, [Value::Number(7), rate(7)]);
    assert_eq!(counters.given_back(&lost[1], own, now).unwrap().1, [Value::Number(4), rate(4)]);
    assert!(counters.lost(own).is_empty());
}

#[test]
fn a_process_that_was_taught_is_not_given_counts_twice() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0]));
    let own = counters.origin("lb1", true, now).unwrap();
    learn(&mut counters, own, &table, 7, &[Value::Number(7)], now);
    counters.restarted(own);
    learn(&mut counters, own, &table, 7, &[Value::Number(8)], now);
    assert!(counters.lost(own).is_empty());
    assert_eq!(counters.sum(&key(7), Wants::All, &table.cells, now).unwrap().values, [Value::Number(8)]);
}

#[test]
fn a_taught_process_whose_rates_and_connections_fell_is_not_given_counts_twice() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0, CONN_CUR, RATE]));
    let own = counters.origin("lb1", true, now).unwrap();
    learn(&mut counters, own, &table, 7, &[Value::Number(10), Value::Number(3), rate(10)], now);
    counters.restarted(own);
    let later = now + Duration::from_secs(25);
    counters.heard(own, later);
    learn(&mut counters, own, &table, 7, &[Value::Number(11), Value::Number(1), rate(1)], later);
    assert!(counters.lost(own).is_empty());
    let sum = counters.sum(&key(7), Wants::All, &table.cells, later).unwrap();
    assert_eq!(sum.values, [Value::Number(11), Value::Number(1), rate(1)]);
}

#[test]
fn connections_of_an_earlier_process_do_not_count() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0, CONN_CUR]));
    let own = counters.origin("lb1", true, now).unwrap();
    learn(&mut counters, own, &table, 7, &[Value::Number(10), Value::Number(3)], now);
    let values = |counters: &Counters| counters.sum(&key(7), Wants::All, &table.cells, now).unwrap().values;
    counters.restarted(own);
    counters.heard(own, now);
    assert_eq!(values(&counters), [Value::Number(10), Value::Number(0)]);
    assert_eq!(counters.lost(own), [key(7)]);
    assert_eq!(values(&counters), [Value::Number(10), Value::Number(0)]);
}

#[test]
fn when_full_the_heaviest_keys_are_kept() {
    let (mut counters, now, table) = (Counters::new(50), Instant::now(), table(&[GPC0]));
    let own = counters.origin("lb1", true, now).unwrap();
    for number in 0..10 {
        learn(&mut counters, own, &table, number, &[Value::Number(1000)], now);
    }
    for number in 10..5_000u32 {
        let state = State {
            origin: own,
            table: &table,
            key: &number.to_be_bytes(),
            values: &[Value::Number(1)],
            version: (1, 1),
        };
        counters.learn(&state, now);
    }
    assert_eq!(counters.len(), 50);
    assert!(counters.dropped() > 4_000);
    assert!((0..10).all(|number| counters.index.contains_key(&key(number))));
    assert_eq!(counters.top("req", 3, now).iter().map(|ranked| ranked.values[0].1).collect::<Vec<_>>(), [1000; 3]);
}

#[test]
fn keys_that_come_and_go_do_not_pile_up_for_a_reader_that_takes_none() {
    let (mut counters, now, table) = (Counters::new(50), Instant::now(), table(&[GPC0]));
    let own = counters.origin("lb1", true, now).unwrap();
    let reader = counters.subscribe(Wants::Local);
    for number in 0..20_000u32 {
        let value = [Value::Number(u64::from(number))];
        let state = State { origin: own, table: &table, key: &number.to_be_bytes(), values: &value, version: (1, 1) };
        counters.learn(&state, now);
    }
    let waiting = counters.waiting(reader);
    assert!(waiting.changed + waiting.repeated < 2_000, "{waiting:?}");
    let taken = counters.changed(reader, usize::MAX);
    assert!(taken.len() <= 50 && taken.contains(&key(19_999)), "{}", taken.len());
}

#[test]
fn the_place_of_a_process_that_is_gone_is_used_again() {
    let (mut counters, now, table) = (Counters::new(50), Instant::now(), table(&[GPC0]));
    let origins: Vec<Origin> =
        (0..MAX_ORIGINS).map(|n| counters.origin(&format!("lb{n}"), false, now).unwrap()).collect();
    learn(&mut counters, origins[7], &table, 1, &[Value::Number(5)], now);
    assert!(counters.origin("one more", false, now).is_none());
    counters.process(origins[7]).unwrap().is_live = false;
    let new = counters.origin("one more", false, now).unwrap();
    assert_eq!(new, origins[7]);
    assert!(counters.sum(&key(1), Wants::All, &table.cells, now).is_none_or(|sum| sum.processes == 0));
    assert!(counters.origin("lb7", false, now).is_none(), "its name was forgotten");
}

#[test]
fn expired_keys_are_removed_and_lost_datagrams_repeated() {
    // A count is repeated until a quarter of its life of 60 s has passed, and a rate decays anyway.
    for (bit, value, wanted) in [(GPC0, Value::Number(1), vec![0, 1, 2, 4, 8]), (RATE, rate(1), vec![0, 1, 2])] {
        let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[bit]));
        let own = counters.origin("lb1", true, now).unwrap();
        let gossip = counters.subscribe(Wants::Local);
        learn(&mut counters, own, &table, 7, &[value], now);
        let mut sent = Vec::new();
        for second in 0..60 {
            counters.sweep(now + Duration::from_secs(second), 10);
            sent.extend(counters.changed(gossip, 10).iter().map(|_| second));
        }
        assert_eq!(sent, wanted);
        counters.sweep(now + Duration::from_secs(60), 10);
        assert!(counters.is_empty());
    }
}

#[test]
fn changes_are_sent_before_what_is_sent_again_which_still_has_its_turn() {
    let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0]));
    let own = counters.origin("lb1", true, now).unwrap();
    (0..10).for_each(|number| learn(&mut counters, own, &table, number, &[Value::Number(1)], now));
    let gossip = counters.subscribe(Wants::Local);
    assert_eq!(counters.waiting(gossip), Waiting { changed: 0, repeated: 10 });
    // A key that waits to be sent again and changes is sent once, as a change.
    (5..25).for_each(|number| learn(&mut counters, own, &table, number, &[Value::Number(2)], now));
    let taken = counters.changed(gossip, 16);
    let again: Vec<&Key> = taken.iter().filter(|taken| (0..5).any(|number| **taken == key(number))).collect();
    assert_eq!(again, [&key(0), &key(1)], "{taken:?}");
    let rest = counters.changed(gossip, 100);
    assert_eq!(rest.len(), 25 - 16);
    assert_eq!(counters.waiting(gossip).is_empty(), counters.changed(gossip, 1).is_empty());
    let mut all: Vec<Key> = taken.into_iter().chain(rest).collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(all, (0..25).map(key).collect::<Vec<_>>());
}

proptest! {
    /// Whatever is lost, repeated or reordered: a sum never exceeds what was counted, and is exact once the latest states have arrived.
    #[test]
    fn sums_never_exceed_what_was_counted_and_converge(
        events in prop::collection::vec((0usize..3, 0u32..4, any::<bool>(), 0usize..20), 1..120),
    ) {
        let (mut counters, now, table) = (Counters::new(100), Instant::now(), table(&[GPC0]));
        let origins = ["a", "b", "c"].map(|name| counters.origin(name, false, now).unwrap());
        let (mut counted, mut sent) = ([[0u64; 4]; 3], Vec::new());
        for (step, (node, number, delivered, again)) in events.into_iter().enumerate() {
            counted[node][number as usize] += 1;
            sent.push((node, number, counted[node][number as usize], step as u64));
            let mut deliver = |at: usize| {
                let (node, number, count, version): (usize, u32, u64, u64) = sent[at % sent.len()];
                let values = [Value::Number(count)];
                let state = State { origin: origins[node], table: &table, key: &number.to_be_bytes(), values: &values, version: (0, version) };
                counters.learn(&state, now);
            };
            if delivered {
                deliver(step);
            }
            deliver(again);
            for number in 0..4u32 {
                let all: u64 = counted.iter().map(|node| node[number as usize]).sum();
                if let Some(sum) = counters.sum(&key(number), Wants::All, &table.cells, now) {
                    prop_assert!(matches!(sum.values[0], Value::Number(sum) if sum <= all));
                }
            }
        }
        for (node, number, count, version) in sent {
            let values = [Value::Number(count)];
            counters.learn(&State { origin: origins[node], table: &table, key: &number.to_be_bytes(), values: &values, version: (0, version) }, now);
        }
        for number in 0..4u32 {
            let all: u64 = counted.iter().map(|node| node[number as usize]).sum();
            let sum = counters.sum(&key(number), Wants::All, &table.cells, now);
            prop_assert_eq!(sum.map_or(0, |sum| if let Value::Number(sum) = sum.values[0] { sum } else { 0 }), all);
        }
    }
}
