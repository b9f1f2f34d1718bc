use proptest::prelude::*;

use super::delta::Operation;
use super::*;
use crate::incarnation::Incarnation;

const NAME: &str = "banmesh";

fn incarnation(number: u16) -> Incarnation {
    let address = if number.is_multiple_of(5) {
        (std::net::Ipv6Addr::from(u128::from(number)), 12_350).into()
    } else {
        ([10, 0, 0, 1], number).into()
    };
    Incarnation { node: format!("edge-{number}").into(), generation: u64::from(number) << 16, address }
}

fn digest(members: u16, version: u64) -> Digest {
    let entry = |number| Entry::new(incarnation(number), None, 1_000 + version, 0, version);
    Digest::new((0..members).map(entry).collect())
}

fn syn(digest: Digest) -> Message {
    let rest = [&u16::try_from(NAME.len()).unwrap().to_le_bytes(), NAME.as_bytes()].concat();
    Message { kind: SYN, digest, operations: Vec::new(), rest }
}

/// The operations for `members` with `values` values each.
fn operations(members: u16, values: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in 0..members {
        let id = incarnation(member);
        bytes.push(0);
        bytes.extend(u16::try_from(id.node.len()).unwrap().to_le_bytes());
        bytes.extend(id.node.as_bytes());
        bytes.extend(id.generation.to_le_bytes());
        put_address(&id, &mut bytes);
        bytes.extend([0; 16]);
        for version in 1..=values {
            bytes.push(1);
            for text in [format!("key{version}"), "v".repeat(length)] {
                bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
                bytes.extend(text.as_bytes());
            }
            bytes.extend(version.to_le_bytes());
            bytes.push(0);
        }
    }
    bytes
}

/// What a receiver that applies parts in order has of each member: its version and how many values.
fn apply<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> std::collections::BTreeMap<Vec<u8>, (u64, usize)> {
    let mut states = std::collections::BTreeMap::new();
    for part in parts {
        let (mut rest, mut member) = (Reader(part), Vec::new());
        while let Some(operation) = Operation::next(&mut rest).unwrap() {
            match operation {
                Operation::Member { head, from } => {
                    member = head.to_vec();
                    let state = states.entry(member.clone()).or_insert((0, 0));
                    assert!(from <= state.0, "a part from the future");
                }
                Operation::Value { version, .. } => {
                    let state = states.get_mut(&member).unwrap();
                    *state = (version, state.1 + 1);
                }
                Operation::Version { .. } => {}
            }
        }
    }
    states
}

const LONG: Naming<'_> = Naming { own: &[], wanted: &[], from: 0, short: None };
const SHORT: Naming<'_> = Naming { short: Some(Short { introduce: &[], ask: &[] }), ..LONG };

/// What a node that knows `own` reads of a body: the message without what is filled in, what is left out, and the unknown short ids.
fn read(body: &[u8], own: &Digest) -> (Message, LeftOut, Vec<u32>) {
    Received::read(body, NAME).unwrap().resolve(own)
}

#[test]
fn messages_are_read_as_written() {
    let synack = Message { kind: SYN_ACK, digest: digest(3, 7), operations: operations(2, 3, 10), rest: Vec::new() };
    for message in [
        syn(digest(4, 1)),
        synack,
        Message { kind: ACK, digest: Digest::default(), operations: operations(1, 1, 1), rest: vec![] },
    ] {
        assert_eq!(Message::parse(&message.encode()), Ok(message.clone()));
        let (parts, _) = message.cut(1_000, LONG);
        let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
        let whole = LeftOut { whole: true, asked: Vec::new() };
        assert_eq!(read(body, &Digest::default()), (message, whole, Vec::new()));
    }
}

#[test]
fn every_member_is_named_in_turn_and_this_node_always() {
    let own = [incarnation(7).address];
    let message = syn(digest(200, 3));
    let (mut from, mut seen) = (0, std::collections::BTreeSet::new());
    for _ in 0..12 {
        let (parts, named) = message.cut(1_090, Naming { own: &own, wanted: &[incarnation(99)], from, short: None });
        from += named;
        let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
        assert!(body.len() <= 1_090);
        let (read, left_out, _) = read(body, &Digest::default());
        assert!(!left_out.whole);
        let ids: Vec<Incarnation> = read.digest.entries.iter().map(|entry| entry.id.clone()).collect();
        assert!([7, 99].iter().all(|number| ids.contains(&incarnation(*number))));
        seen.extend(ids);
    }
    assert_eq!(seen.len(), 200);
}

#[test]
fn members_that_are_not_named_count_as_known() {
    let own = digest(200, 3);
    let (parts, _) = syn(digest(200, 5)).cut(1_090, LONG);
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    let (read, left_out, _) = read(body, &own);
    let named = read.digest.entries.len();
    assert_eq!(read.digest.later_than(&own).len(), named);
    let complete = left_out.complete(read, &own);
    let versions: Vec<u64> = complete.digest.entries.iter().map(|entry| entry.version).collect();
    assert_eq!(versions.len(), 200);
    assert_eq!(versions.iter().filter(|version| **version == 3).count(), 200 - named);
}

#[test]
fn short_entries_name_twice_as_many_members_as_whole_ones() {
    let (own, later) = (digest(200, 3), syn(digest(200, 5)));
    let body = |naming: Naming<'_>| {
        let (parts, named) = later.cut(1_090, naming);
        let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
        (body.clone(), named)
    };
    let (long, named_long) = body(LONG);
    let address = [incarnation(7).address];
    let (short, named_short) =
        body(Naming { own: &address, short: Some(Short { introduce: &[], ask: &[1, 2] }), ..LONG });
    assert!(long.len() <= 1_090 && short.len() <= 1_090 && named_short > 2 * named_long);
    let (read_long, _, _) = read(&long, &own);
    let (read_short, left_out, unknown) = read(&short, &own);
    assert_eq!((left_out, unknown), (LeftOut { whole: false, asked: vec![1, 2] }, Vec::new()));
    let named = |message: &Message| -> Vec<Entry> { message.digest.entries.clone() };
    assert_eq!((named(&read_long).len(), named(&read_short).len()), (named_long, named_short + 1));
    for entry in named(&read_long).iter().chain(&named(&read_short)) {
        assert!(later.digest.entries.contains(entry), "{entry:?}");
    }
}

#[test]
fn a_member_that_is_unknown_is_asked_for_and_left_out() {
    // The receiver knows 90 of 100 members.
    let (sender, receiver) = (digest(100, 5), digest(90, 3));
    let (parts, named) = syn(sender.clone()).cut(1_400, SHORT);
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!(named, 100);
    let (read, left_out, mut unknown) = read(body, &receiver);
    assert_eq!((read.digest.len(), left_out.whole), (90, true));
    let mut expected: Vec<u32> = (90..100).map(|number| incarnation(number).short_id()).collect();
    expected.sort_unstable();
    unknown.sort_unstable();
    assert_eq!(unknown, expected);
    // Its answer.
    let answer = Message { kind: SYN_ACK, digest: receiver, operations: Vec::new(), rest: Vec::new() };
    let (parts, _) = answer.cut(500, Naming { short: Some(Short { introduce: &unknown, ask: &unknown }), ..LONG });
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    let (read, left_out, none) = self::read(body, &sender);
    assert!(none.is_empty() && read.digest.len() < 90);
    let complete = left_out.complete(read, &sender);
    let ids = |digest: &Digest| -> Vec<Incarnation> { digest.entries.iter().map(|entry| entry.id.clone()).collect() };
    let known: Vec<Incarnation> = ids(&sender).into_iter().filter(|id| !unknown.contains(&id.short_id())).collect();
    assert_eq!(ids(&complete.digest), known);
    // The next digest introduces them.
    let introduce = Short { introduce: &unknown, ask: &[] };
    let message = Message { kind: SYN_ACK, digest: sender, operations: Vec::new(), rest: Vec::new() };
    let (parts, _) = message.cut(1_090, Naming { short: Some(introduce), ..LONG });
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    let (read, _, _) = self::read(body, &Digest::default());
    let mut introduced: Vec<u32> = ids(&read.digest).iter().map(Incarnation::short_id).collect();
    introduced.sort_unstable();
    assert_eq!(introduced, unknown, "by whole entries");
}

#[test]
fn members_that_the_receiver_asked_for_come_before_those_of_which_it_knows_more() {
    let wanted: Vec<Incarnation> = (0..195).map(incarnation).collect();
    let introduce: Vec<u32> = (195..200).map(|number| incarnation(number).short_id()).collect();
    let short = Some(Short { introduce: &introduce, ask: &[] });
    let (parts, _) = syn(digest(200, 5)).cut(600, Naming { wanted: &wanted, short, ..LONG });
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    let (read, _, unknown) = read(body, &Digest::default());
    assert!(introduce.iter().all(|id| read.digest.entries.iter().any(|entry| entry.short_id == *id)));
    assert!(!unknown.is_empty(), "there is room for some of the others");
}

#[test]
fn no_short_entry_names_one_of_two_members_with_the_same_short_id() {
    let mut both = digest(20, 5);
    both.entries[3].short_id = both.entries[12].short_id;
    let (parts, named) = syn(both.clone()).cut(1_090, SHORT);
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!(named, 20);
    let (read, left_out, unknown) = read(body, &both);
    assert_eq!((read.digest.len(), left_out.whole, unknown), (20, true, Vec::new()));
    // A sender that knows only one of them.
    let mut one = both.clone();
    one.entries.remove(3);
    let (parts, _) = syn(one).cut(1_090, SHORT);
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    let (read, _, unknown) = self::read(body, &both);
    assert_eq!((read.digest.len(), unknown), (18, Vec::new()), "either could be meant");
}

#[test]
fn builds_before_short_entries_read_the_digests_that_they_get() {
    let (parts, _) = syn(digest(3, 1)).cut(1_090, LONG);
    let [Part::Compact(body)] = &parts[..] else { panic!("{parts:?}") };
    // The flag that they do not know makes them fill in what is left out, which is nothing.
    assert_eq!((body[0], body[1], &body[2..4]), (SYN, WHOLE_AND_READS_SHORT, &3u16.to_le_bytes()[..]));
    let received = Received::read(body, NAME).unwrap();
    assert_eq!(received.reads_short(), Some(true));
    let mut earlier = body.clone();
    earlier[1] = 1;
    assert_eq!(Received::read(&earlier, NAME).unwrap().reads_short(), Some(false));
}

const WHOLE_AND_READS_SHORT: u8 = 3;

#[test]
fn a_value_that_fits_into_no_datagram_is_sent_whole() {
    let message =
        Message { kind: ACK, digest: Digest::default(), operations: operations(1, 3, 3_000), rest: Vec::new() };
    let (parts, _) = message.cut(1_000, LONG);
    let long = parts.iter().filter(|part| matches!(part, Part::Long(_))).count();
    assert_eq!((long, parts.len()), (3, 4));
}

proptest! {
    #[test]
    fn a_digest_is_completed_with_what_it_does_not_name(
        own in proptest::collection::btree_set(0u16..60, 0..40), named in proptest::collection::btree_set(0u16..60, 0..40),
    ) {
        let of = |numbers: &std::collections::BTreeSet<u16>, version| {
            let entry = |number: &u16| Entry::new(incarnation(*number), None, 1, 0, version);
            Digest::new(numbers.iter().map(entry).collect())
        };
        let mut complete = of(&named, 5);
        complete.complete(&of(&own, 3), &[]);
        let versions: std::collections::BTreeMap<Incarnation, u64> =
            complete.entries.iter().map(|entry| (entry.id.clone(), entry.version)).collect();
        prop_assert_eq!(versions.len(), complete.len());
        let expected = |number: &u16| (incarnation(*number), if named.contains(number) { 5 } else { 3 });
        prop_assert_eq!(versions, own.union(&named).map(expected).collect());
        prop_assert_eq!(&Digest::new(complete.entries.clone()), &complete);
    }

    #[test]
    fn deltas_are_cut_into_parts_that_apply_one_by_one(
        members in 1u16..30, values in 1u64..6, length in 0usize..120, room in 300usize..1_400,
    ) {
        let operations = operations(members, values, length);
        let message = Message { kind: SYN_ACK, digest: digest(members, 1), operations: operations.clone(), rest: Vec::new() };
        let (parts, _) = message.cut(room, LONG);
        let mut bodies = Vec::new();
        for part in &parts {
            let Part::Compact(body) = part else { panic!("{part:?}") };
            prop_assert!(body.len() <= room, "{} > {}", body.len(), room);
            bodies.push(read(body, &Digest::default()).0.operations);
        }
        prop_assert!(parts.len() <= MAX_PARTS + 1);
        let all = apply([&operations[..]]);
        let got = apply(bodies.iter().map(Vec::as_slice));
        if parts.len() < MAX_PARTS {
            prop_assert_eq!(&got, &all);
        }
        let earlier: Vec<Message> =
            message.cut_for_earlier_builds(room).iter().map(|bytes| Message::parse(bytes).unwrap()).collect();
        prop_assert_eq!(earlier[0].digest.entries.len(), usize::from(members));
        prop_assert!(earlier.iter().skip(1).all(|message| message.encode().len() <= room));
        if earlier.len() < MAX_PARTS {
            let got = apply(earlier.iter().map(|message| &message.operations[..]));
            prop_assert_eq!(&got, &all);
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = Message::parse(&bytes);
        if let Ok(received) = Received::read(&bytes, NAME) {
            let own = digest(3, 1);
            let (message, left_out, unknown) = received.resolve(&own);
            let _ = left_out.complete(message, &own).cut(500, Naming { short: Some(Short { introduce: &[], ask: &unknown }), ..LONG });
        }
    }
}
