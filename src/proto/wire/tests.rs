use proptest::prelude::*;

use super::*;

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(octets, prefix)| Target::network(octets.into(), prefix).unwrap()),
        (any::<u128>(), 0u8..=128).prop_map(|(bits, prefix)| Target::from_bits(bits, prefix)),
    ]
}

fn entries() -> impl Strategy<Value = BanEntry> {
    let by = prop_oneof![
        "[a-z]{0,64}".prop_map(|name| By::Filter(name.into())),
        "[a-z]{0,64}".prop_map(|name| By::Operator(name.into()))
    ];
    let state = prop_oneof![
        Just(State::Lifted),
        (1u32..).prop_map(|s| State::Active { until: Expiry::from_seconds(s) }),
        (1u32..).prop_map(|s| State::Allowed { until: Expiry::from_seconds(s) })
    ];
    (any::<u64>(), "[A-Za-z0-9._-]{1,63}", state, any::<u32>(), any::<u32>(), by, ".{0,200}").prop_map(
        |(hlc, node, state, bans, keep, by, reason)| BanEntry {
            stamp: Stamp { hlc: Hlc(hlc), node: node.parse().unwrap() },
            state,
            bans,
            keep: Expiry::from_seconds(keep),
            cause: Arc::new(Cause::new(by, &reason)),
        },
    )
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
    let state = State::Active { until: Expiry::from_seconds(1_800_000_000) };
    let stamp = Stamp { hlc: Hlc(1_790_000_000_000 << 16), node: "node-1".parse().unwrap() };
    let entry = BanEntry { stamp, state, bans: 1, keep: Expiry::from_seconds(1_800_000_060), cause };
    Record::Ban { target: "192.0.2.7".parse().unwrap(), entry }
}

fn batch_of(records: &[Record]) -> Vec<u8> {
    let mut writer = BatchWriter::new(usize::MAX);
    assert!(records.iter().all(|record| writer.push(record)));
    writer.take()
}

#[test]
fn many_bans_take_little_room() {
    let records = vec![example(); 1000];
    assert!(batch_of(&records).len() < 35 * 1000, "{}", batch_of(&records).len() / 1000);
}

#[test]
fn version_1_stays_as_it_is() {
    // Nodes of different builds meet in one cluster: whoever changes these bytes must raise the version.
    let expected = "010300\
        06006e6f64652d31\
        040073736864\
        0c00696e76616c69642075736572\
        01\
        1e00\
        00c000020720fd0000006c50c4a00100fc00d2496b01fc3cd2496b000102";
    let hex: String = batch_of(&[example()]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
}

#[test]
fn unknown_kinds_are_skipped_and_longer_bodies_refused() {
    let mut batch = batch_of(&[example()]);
    batch.extend_from_slice(&[77, 4, 0, 1, 2, 3, 4]);
    let known = batch_of(&[example()]);
    let body = &known[known.len() - 30..];
    batch.extend_from_slice(&[KIND_BAN, 31, 0]);
    batch.extend_from_slice(body);
    batch.push(9);
    batch.extend_from_slice(&[KIND_BAN, 30, 0]);
    batch.extend_from_slice(body);
    let mut out = Vec::new();
    assert_eq!(read(&batch, &mut out), Ok(Tally { records: 2, unknown: 1, refused: 1 }));
    assert_eq!(out, [example(), example()]);
}

/// A node that knows no allowances must pass one over: were it to read one as a ban, it would ban whom an operator has allowed.
#[test]
fn an_allowance_is_a_kind_of_its_own_and_a_ban_stays_what_it_was() {
    let Record::Ban { target, entry } = example() else { unreachable!() };
    let until = entry.until().unwrap();
    let allowance = Record::Ban { target, entry: BanEntry { state: State::Allowed { until }, ..entry } };
    let (ban, allowed) = (batch_of(&[example()]), batch_of(std::slice::from_ref(&allowance)));
    let kind = ban.iter().zip(&allowed).position(|(a, b)| a != b).unwrap();
    assert_eq!((ban[kind], allowed[kind]), (KIND_BAN, KIND_ALLOWANCE));
    assert_eq!((ban[0], allowed[0], VERSION), (1, 1, 1), "the version that nodes without allowances read");
    assert_eq!((ban.len(), &ban[kind + 1..]), (allowed.len(), &allowed[kind + 1..]));
    let mut out = Vec::new();
    assert_eq!(read(&allowed, &mut out), Ok(Tally { records: 1, unknown: 0, refused: 0 }));
    assert_eq!(out, [allowance]);
    let Record::Ban { target, entry } = example() else { unreachable!() };
    let mut endless = batch_of(&[Record::Ban { target, entry: BanEntry { state: State::Lifted, ..entry } }]);
    let kind = endless.iter().zip(&ban).position(|(a, b)| a != b).unwrap().min(kind);
    endless[kind] = KIND_ALLOWANCE;
    assert_eq!(read(&endless, &mut Vec::new()), Ok(Tally { records: 0, unknown: 0, refused: 1 }));
}

#[test]
fn newer_batches_and_unbounded_texts_are_refused() {
    let mut batch = batch_of(&[example()]);
    batch[0] = VERSION + 1;
    assert_eq!(read(&batch, &mut Vec::new()), Err(WireError::Version(VERSION + 1)));
    assert_eq!(read(&[], &mut Vec::new()), Err(WireError::Truncated));
    assert_eq!(read(&[1, 0xff, 0xff], &mut Vec::new()), Err(WireError::Text));
    let mut long = vec![1, 1, 0, 0xff, 0x7f];
    long.resize(5 + 0x7fff, b'x');
    assert_eq!(read(&long, &mut Vec::new()), Err(WireError::Text));
}

#[test]
fn a_cause_that_would_have_to_be_tidied_up_is_refused() {
    let mut batch = batch_of(&[example()]);
    let at = batch.windows(7).position(|window| window == b"invalid").unwrap();
    batch[at] = b'\n';
    let mut out = Vec::new();
    assert_eq!(read(&batch, &mut out), Ok(Tally { records: 0, unknown: 0, refused: 1 }));
}

#[test]
fn a_full_batch_says_so_and_stays_within_its_limit() {
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
    fn records_are_read_as_written(records in proptest::collection::vec(records(), 0..20)) {
        let mut out = Vec::new();
        let tally = read(&batch_of(&records), &mut out).unwrap();
        prop_assert_eq!(tally, Tally { records: records.len(), unknown: 0, refused: 0 });
        prop_assert_eq!(out, records);
    }

    #[test]
    fn no_record_is_longer_than_promised(record in records()) {
        prop_assert!(batch_of(&[record]).len() <= BATCH_HEADER + MAX_RECORD);
    }

    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), records in proptest::collection::vec(records(), 1..4), at: prop::sample::Index, flip: u8) {
        let _ = read(&bytes, &mut Vec::new());
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let _ = read(&bytes, &mut Vec::new());
        let mut batch = batch_of(&records);
        let at = at.index(batch.len());
        batch[at] ^= flip;
        let _ = read(&batch, &mut Vec::new());
        let _ = read(&batch[..at], &mut Vec::new());
    }
}
