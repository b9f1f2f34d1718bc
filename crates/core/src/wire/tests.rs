use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::evidence::{Account, CompactTarget, DIGESTS, Fact, FilterId, Hour, Seen};
use crate::hlc::{Hlc, Stamp};

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(octets, prefix)| Target::network(octets.into(), prefix).unwrap()),
        (any::<u128>(), 0u8..=128).prop_map(|(bits, prefix)| Target::from_bits(bits, prefix)),
    ]
}

fn registers<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
    by: fn(Box<str>) -> By,
) -> impl Strategy<Value = Register<T>> {
    (any::<u64>(), "[A-Za-z0-9._-]{1,63}", value, "[a-z]{0,64}", ".{0,200}").prop_map(
        move |(hlc, node, value, name, reason)| Register {
            stamp: Stamp { hlc: Hlc(hlc), node: node.parse().unwrap() },
            value,
            cause: Arc::new(Cause::new(by(name.into()), &reason)),
        },
    )
}

/// Entries of every form.
fn entries() -> impl Strategy<Value = BanEntry> {
    let ends = || (1u32..).prop_map(Expiry::from_seconds);
    let decisions = prop_oneof![
        Just(Decision::Unbanned),
        ends().prop_map(|until| Decision::Banned { until }),
        ends().prop_map(|until| Decision::Allowed { until })
    ];
    let operator = proptest::option::of(registers(decisions, By::Operator));
    let filter = proptest::option::of(registers(ends(), By::Filter));
    (operator, filter, any::<u32>(), any::<u32>()).prop_filter_map("no register", |(operator, filter, bans, keep)| {
        BanEntry::of(operator, filter, bans, Expiry::from_seconds(keep))
    })
}

fn records() -> impl Strategy<Value = Record> {
    prop_oneof![
        (targets(), entries()).prop_map(|(target, entry)| Record::Ban { target, entry }),
        (any::<u32>(), targets(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
            |(jail, target, generation, slot, count)| {
                let share = SlotCount { key: (JailId(jail), target), slot, count };
                Record::Attempts(Attempts { generation, share })
            }
        ),
    ]
}

fn example() -> Record {
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "invalid user"));
    let until = Expiry::from_seconds(1_800_000_000);
    let stamp = Stamp { hlc: Hlc(1_790_000_000_000 << 16), node: "node-1".parse().unwrap() };
    let entry = BanEntry::by_filter(stamp, until, cause, 1, Expiry::from_seconds(1_800_000_060));
    Record::Ban { target: "192.0.2.7".parse().unwrap(), entry }
}

fn decided(decision: Decision) -> BanEntry {
    let cause = Arc::new(Cause::new(By::Operator("ann".into()), "scans"));
    let stamp = Stamp { hlc: Hlc(1_790_000_000_001 << 16), node: "node-2".parse().unwrap() };
    BanEntry::by_operator(stamp, decision, cause, 2, Expiry::NEVER)
}

fn batch_of(records: &[Record]) -> Vec<u8> {
    let mut writer = BatchWriter::new(usize::MAX);
    assert!(records.iter().all(|record| writer.push(record)));
    writer.take()
}

#[test]
fn a_ban_takes_less_than_35_bytes_in_a_large_batch() {
    let records = vec![example(); 1000];
    assert!(batch_of(&records).len() < 35 * 1000, "{}", batch_of(&records).len() / 1000);
}

#[test]
fn the_bytes_of_versions_2_and_3_are_stable() {
    // Nodes of different builds run in one cluster: a change of these bytes needs a new version.
    let Record::Ban { target, entry } = example() else { unreachable!() };
    let until = Expiry::from_seconds(1_800_000_000);
    let both = Record::Ban { target, entry: entry.join(&decided(Decision::Allowed { until })) };
    let unbanned = Record::Ban { target, entry: decided(Decision::Unbanned) };
    for (record, expected) in [
        (
            example(),
            "030006006e6f64652d310400737368640c00696e76616c69642075736572011e0000c00002072001fc3cd2496bfd0000006c50c4a0010000fc00d2496b0102",
        ),
        (
            unbanned,
            "030006006e6f64652d320300616e6e05007363616e7303190000c00002072002fcfffffffffd0000016c50c4a00100020102",
        ),
        (
            both,
            "060006006e6f64652d320300616e6e05007363616e7306006e6f64652d310400737368640c00696e76616c6964207573657204300000c00002072002fcfffffffffd0000016c50c4a0010001fc00d2496b0102fd0000006c50c4a0010300fc00d2496b0405",
        ),
    ] {
        // The first byte is the version, in which the records of both are the same.
        let hex: String = batch_of(&[record]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, format!("{VERSION:02x}{expected}"));
    }
}

#[test]
fn unknown_kinds_are_skipped_and_longer_bodies_are_refused() {
    let mut batch = batch_of(&[example()]);
    batch.extend_from_slice(&[77, 4, 0, 1, 2, 3, 4]);
    let known = batch_of(&[example()]);
    let body = &known[known.len() - 30..];
    batch.extend_from_slice(&[KIND_FILTER, 31, 0]);
    batch.extend_from_slice(body);
    batch.push(9);
    batch.extend_from_slice(&[KIND_FILTER, 30, 0]);
    batch.extend_from_slice(body);
    let mut out = Vec::new();
    assert_eq!(read(&batch, &mut out), Ok(ReadCounts { records: 2, unknown: 1, refused: 1 }));
    assert_eq!(out, [example(), example()]);
}

#[test]
fn an_end_of_zero_and_a_filter_that_unbans_are_refused() {
    let Record::Ban { target, .. } = example() else { unreachable!() };
    for decision in [Decision::Banned { until: Expiry::PAST }, Decision::Allowed { until: Expiry::PAST }] {
        let batch = batch_of(&[Record::Ban { target, entry: decided(decision) }]);
        assert_eq!(read(&batch, &mut Vec::new()), Ok(ReadCounts { records: 0, unknown: 0, refused: 1 }));
    }
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), ""));
    let entry =
        BanEntry::by_filter(decided(Decision::Unbanned).latest().clone(), Expiry::PAST, cause, 1, Expiry::NEVER);
    let batch = batch_of(&[Record::Ban { target, entry }]);
    assert_eq!(read(&batch, &mut Vec::new()), Ok(ReadCounts { records: 0, unknown: 0, refused: 1 }));
    for (decision, refused) in [(Decision::Unbanned, 1), (Decision::Banned { until: Expiry::NEVER }, 0)] {
        let mut batch = batch_of(&[Record::Ban { target, entry: decided(decision) }]);
        let kind = batch.iter().rposition(|byte| *byte == KIND_OPERATOR).unwrap();
        batch[kind] = KIND_FILTER;
        assert_eq!(read(&batch, &mut Vec::new()), Ok(ReadCounts { records: 1 - refused, unknown: 0, refused }));
    }
}

#[test]
fn newer_batches_and_oversized_texts_are_refused() {
    let mut batch = batch_of(&[example()]);
    batch[0] = VERSION + 1;
    assert_eq!(read(&batch, &mut Vec::new()), Err(WireError::Version(VERSION + 1)));
    assert_eq!(read(&[], &mut Vec::new()), Err(WireError::Truncated));
    assert_eq!(read(&[VERSION, 0xff, 0xff], &mut Vec::new()), Err(WireError::Text));
    let texts = |count: usize, length: usize| {
        let number = |number: usize| u16::try_from(number).unwrap().to_le_bytes();
        let text = [&number(length)[..], "x".repeat(length).as_bytes()].concat();
        let batch = [&[VERSION][..], &number(count), &text.repeat(count)].concat();
        read(&batch, &mut Vec::new())
    };
    assert_eq!((texts(1, MAX_TEXT), texts(MAX_TEXTS, 0)), (Ok(ReadCounts::default()), Ok(ReadCounts::default())));
    assert_eq!((texts(1, MAX_TEXT + 1), texts(MAX_TEXTS + 1, 0)), (Err(WireError::Text), Err(WireError::Text)));
}

#[test]
fn targets_with_bits_beyond_their_prefix_are_refused() {
    let refused = Ok(ReadCounts { records: 0, unknown: 0, refused: 1 });
    let Record::Ban { entry, .. } = example() else { unreachable!() };
    for (target, prefix) in [("192.0.2.7", 24), ("192.0.2.7", 33), ("2001:db8::7", 64), ("2001:db8::7", 129)] {
        let target: Target = target.parse().unwrap();
        let place = bincode::encode_to_vec(Place::from(target), CONFIG).unwrap();
        let mut batch = batch_of(&[Record::Ban { target, entry: entry.clone() }]);
        let at = batch.windows(place.len()).position(|window| window == place).unwrap();
        assert_eq!(read(&batch, &mut Vec::new()).unwrap().records, 1);
        batch[at + place.len() - 1] = prefix;
        assert_eq!(read(&batch, &mut Vec::new()), refused, "{target} with the prefix {prefix}");
    }
}

/// A ban of both an operator and a filter, with texts that are as long as possible.
fn longest() -> Record {
    let text = |fill: &str, length| fill.repeat(length);
    let register = |fill: &str| {
        let stamp = Stamp { hlc: Hlc(u64::MAX), node: text(fill, 63).parse().unwrap() };
        (stamp, text(fill, Cause::MAX_NAME), text(fill, Cause::MAX_REASON))
    };
    let (end, (stamp, name, reason)) = (Expiry::from_seconds(u32::MAX - 1), register("a"));
    let cause = Arc::new(Cause::new(By::Filter(name.into()), &reason));
    let banned = BanEntry::by_filter(stamp, end, cause, u32::MAX, end);
    let (stamp, name, reason) = register("b");
    let cause = Arc::new(Cause::new(By::Operator(name.into()), &reason));
    let decided = BanEntry::by_operator(stamp, Decision::Banned { until: end }, cause, u32::MAX, end);
    Record::Ban { target: "2001:db8::7".parse().unwrap(), entry: banned.join(&decided) }
}

#[test]
fn max_record_is_the_length_of_the_longest_record() {
    let mut writer = BatchWriter::new(0);
    assert!(writer.push(&longest()), "a single record always fits");
    assert_eq!(writer.texts.len(), 2 * MAX_ORIGIN);
    let unused = (BATCH_HEADER + MAX_RECORD).checked_sub(writer.len()).unwrap();
    assert!(unused < MAX_BODY, "{unused}");
}

#[test]
fn a_record_is_refused_exactly_where_it_may_not_fit() {
    let Record::Ban { target, entry } = longest() else { unreachable!() };
    let first = BanEntry::of(entry.operator().cloned(), None, 1, entry.keep).unwrap();
    let first = Record::Ban { target, entry: first };
    let used = batch_of(std::slice::from_ref(&first)).len();
    // The texts of the operator are known by then.
    for (second, texts) in [(longest(), MAX_ORIGIN), (first.clone(), 0)] {
        for (room, fits) in [(0, true), (1, false)] {
            let mut writer = BatchWriter::new(used + RECORD_HEADER + MAX_BODY + texts - room);
            assert!(writer.push(&first));
            assert_eq!(writer.push(&second), fits, "{texts} bytes of texts, {room} missing");
        }
    }
    let mut writer = BatchWriter::new(0);
    let other =
        Record::Attempts(Attempts { generation: 1, share: SlotCount { key: (JailId(1), target), slot: 1, count: 1 } });
    assert!(writer.push(&other));
    let mut exact = BatchWriter::new(writer.len() + MAX_RECORD);
    assert!(exact.push(&other) && exact.push(&longest()));
    let mut short = BatchWriter::new(writer.len() + MAX_RECORD - 1);
    assert!(short.push(&other) && !short.push(&longest()));
}

#[test]
fn a_batch_has_no_more_texts_than_a_reader_accepts() {
    let Record::Ban { target, entry } = example() else { unreachable!() };
    let mut writer = BatchWriter::new(usize::MAX);
    let record = |n: usize| {
        let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &n.to_string()));
        Record::Ban { target, entry: BanEntry::by_filter(entry.latest().clone(), entry.keep, cause, 1, entry.keep) }
    };
    let written = (0..).take_while(|n| writer.push(&record(*n))).count();
    // The node, the filter, and a reason for each. The writer keeps room for three new texts.
    assert_eq!(written, MAX_TEXTS - 2 - 2);
    assert_eq!(read(&writer.take(), &mut Vec::new()).unwrap().records, written);
}

#[test]
fn a_batch_names_the_version_that_was_set_last() {
    let mut writer = BatchWriter::new(usize::MAX);
    writer.set_version(MIN_VERSION);
    assert!(writer.push(&example()));
    assert_eq!(writer.take()[0], MIN_VERSION);
    assert_eq!(batch_of(&[example()])[0], VERSION);
}

#[test]
fn a_cause_with_control_characters_is_refused() {
    let mut batch = batch_of(&[example()]);
    let at = batch.windows(7).position(|window| window == b"invalid").unwrap();
    batch[at] = b'\n';
    let mut out = Vec::new();
    assert_eq!(read(&batch, &mut out), Ok(ReadCounts { records: 0, unknown: 0, refused: 1 }));
}

#[test]
fn a_full_batch_refuses_records_and_stays_within_its_limit() {
    let mut writer = BatchWriter::new(4096);
    let mut count = 0;
    while writer.push(&example()) {
        count += 1;
    }
    assert!(writer.len() <= 4096 && count > 90, "{count}");
    assert_eq!(writer.count(), count);
    let mut out = Vec::new();
    assert_eq!(read(&writer.take(), &mut out).unwrap().records, count);
    assert!(writer.is_empty() && writer.push(&example()));
}

proptest! {
    #[test]
    fn records_round_trip(records in proptest::collection::vec(records(), 0..20)) {
        let mut out = Vec::new();
        let tally = read(&batch_of(&records), &mut out).unwrap();
        prop_assert_eq!(tally, ReadCounts { records: records.len(), unknown: 0, refused: 0 });
        prop_assert_eq!(out, records);
    }

    #[test]
    fn no_record_is_longer_than_max_record(record in records()) {
        prop_assert!(batch_of(&[record]).len() <= BATCH_HEADER + MAX_RECORD);
    }

    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), records in proptest::collection::vec(records(), 1..4), at: prop::sample::Index, flip: u8) {
        let _ = read(&bytes, &mut Vec::new());
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let _ = read(&bytes, &mut Vec::new());
        let mut batch = batch_of(&records);
        let at = at.index(batch.len());
        batch[at] ^= flip;
        let _ = read(&batch, &mut Vec::new());
        let _ = read(&batch[..at], &mut Vec::new());
    }
}

#[test]
fn evidence_is_read_as_written() {
    let target = CompactTarget::of("192.0.2.1".parse().unwrap());
    let (account, filter, hour) = (Account(7), FilterId::of("sshd"), Hour(500_000));
    let records = [
        EvidenceRecord::Succeeded { target, account, local: Some(Account(8)), filter, hour },
        EvidenceRecord::Succeeded { target, account, local: None, filter, hour },
        EvidenceRecord::Tried { target, account: None, filter, bad: true, hour },
        EvidenceRecord::Tried { target, account: Some(account), filter, bad: false, hour },
        EvidenceRecord::Fact(Fact::Seen(Seen::success(filter, hour))),
        EvidenceRecord::Digests { from: 16, values: [0xfedc_ba98; DIGESTS] },
    ]
    .map(Record::Evidence);
    let mut found = Vec::new();
    assert_eq!(read(&batch_of(&records), &mut found).unwrap().records, records.len());
    assert_eq!(found, records);
}

#[test]
fn evidence_is_unknown_to_builds_that_are_older() {
    let mut writer = BatchWriter::new(usize::MAX);
    writer.set_version(MIN_VERSION);
    let fact = Fact::Seen(Seen::success(FilterId::of("sshd"), Hour(500_000)));
    let facts = [Record::Evidence(EvidenceRecord::Fact(fact)), example(), Record::Evidence(EvidenceRecord::Fact(fact))];
    assert!(facts.iter().all(|record| writer.push(record)));
    let (batch, mut found) = (writer.take(), Vec::new());
    let oldest = Versions { oldest: MIN_VERSION, newest: MIN_VERSION };
    assert_eq!(read_of(oldest, &batch, &mut found), Ok(ReadCounts { records: 1, unknown: 2, refused: 0 }));
    assert_eq!(found, [example()]);
    assert_eq!(read(&batch, &mut Vec::new()).unwrap().records, 3);
}

#[test]
fn digests_that_begin_within_a_group_are_refused() {
    let record = Record::Evidence(EvidenceRecord::Digests { from: 17, values: [0; DIGESTS] });
    let counts = read(&batch_of(&[record]), &mut Vec::new()).unwrap();
    assert_eq!((counts.records, counts.refused), (0, 1));
}

#[test]
fn a_batch_stays_within_its_limit_when_every_record_has_new_texts() {
    let Record::Ban { target, entry } = example() else { unreachable!() };
    let record = |n: u32| {
        let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &format!("{n:0>150}")));
        let stamp = entry.latest().clone();
        Record::Ban { target, entry: BanEntry::by_filter(stamp, entry.keep, cause, 1, entry.keep) }
    };
    // The texts of the operator are known from the second record on.
    let both = |n: u32| {
        let Record::Ban { target, entry } = record(n) else { unreachable!() };
        Record::Ban { target, entry: entry.join(&decided(Decision::Unbanned)) }
    };
    for record in [&record as &dyn Fn(u32) -> Record, &both] {
        let mut writer = BatchWriter::new(2000);
        for n in 0..100 {
            if !writer.push(&record(n)) {
                let batch = writer.take();
                assert!((1000..=2000).contains(&batch.len()), "{}", batch.len());
                assert!(writer.push(&record(n)));
            }
        }
    }
}
