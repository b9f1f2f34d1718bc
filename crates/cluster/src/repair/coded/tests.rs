use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::repair::exchange::differing;
use crate::repair::frame::RANDOM_LEN;

fn session() -> SessionKeys {
    SessionKeys::new(&[1; RANDOM_LEN], &[2; RANDOM_LEN])
}

fn target(number: u32) -> Target {
    Target::host(std::net::Ipv4Addr::from_bits(number).into())
}

/// The entries of a table in which each has a target and a digest.
fn keys_of(entries: &BTreeSet<(u32, u64)>) -> Outline {
    let mut outline = Outline::new();
    entries.iter().for_each(|(number, digest)| outline.insert(&session(), target(*number), *digest));
    while !outline.sort() {}
    outline
}

/// The same for an end that has too many entries to remember their targets.
fn many(entries: &BTreeSet<(u32, u64)>) -> Outline {
    Outline { targets: None, ..keys_of(entries) }
}

/// What both ends send, and the bytes of all payloads; `None` if they exchange whole buckets.
type Traded = Option<[BTreeSet<(u32, u64)>; 2]>;

fn compare(caller_has: &BTreeSet<(u32, u64)>, called_has: &BTreeSet<(u32, u64)>) -> (Traded, usize) {
    // One end remembers the targets of its entries.
    let (mut caller, mut called) = (Caller::new(keys_of(caller_has)), Callee::new(many(called_has)));
    let sketch = called.sketch();
    let mut bytes = sketch.len();
    let mut next = caller.receive_sketch((kind::SKETCH, &sketch)).unwrap();
    while next == Next::Ask {
        bytes += 4;
        assert_eq!(called.receive((kind::ASK, &caller.ask())), Ok(CallerRequest::Symbols));
        while !called.work() {}
        let payloads: Vec<Vec<u8>> = called.take_symbols().collect();
        bytes += payloads.iter().map(Vec::len).sum::<usize>();
        let received: Vec<bool> =
            payloads.iter().map(|payload| caller.receive_symbols((kind::SYMBOLS, payload)).unwrap()).collect();
        assert_eq!(received.iter().position(|all| *all), Some(payloads.len() - 1));
        next = (0..).find_map(|_| caller.work()).unwrap();
    }
    if next == Next::Plain {
        assert_eq!(called.receive((kind::ASK, &PLAIN)), Ok(CallerRequest::Plain));
        return (None, bytes);
    }
    if next == Next::List {
        assert_eq!(called.receive((kind::ASK, &LIST)), Ok(CallerRequest::Keys));
        let payloads: Vec<Vec<u8>> = called.keys().collect();
        bytes += payloads.iter().map(Vec::len).sum::<usize>();
        let received: Vec<bool> =
            payloads.iter().map(|payload| caller.receive_keys((kind::KEYS, payload)).unwrap()).collect();
        assert_eq!(received.iter().position(|all| *all), Some(payloads.len() - 1));
    }
    let mut asked = CallerRequest::Nothing;
    for payload in caller.wants() {
        assert_eq!(asked, CallerRequest::Nothing);
        bytes += payload.len();
        asked = called.receive((kind::WANT, &payload)).unwrap();
    }
    assert_eq!(asked, CallerRequest::Trade);
    let selected = |mut selection: Selection, held: &BTreeSet<(u32, u64)>| {
        let is_selected = |(number, digest): &(u32, u64)| match &mut selection {
            Selection::Targets(targets) => targets.contains(&target(*number)),
            Selection::Again(again) => again.take(&session(), target(*number), *digest),
        };
        let selected = held.iter().copied().filter(is_selected).collect();
        assert!(!matches!(selection, Selection::Again(again) if !again.is_complete()));
        selected
    };
    let sent = [selected(caller.into_selection(), caller_has), selected(called.into_selection(), called_has)];
    (Some(sent), bytes)
}

fn table(range: std::ops::Range<u32>) -> BTreeSet<(u32, u64)> {
    range.map(|number| (number, u64::from(number) * 7)).collect()
}

#[test]
fn exactly_the_entries_that_differ_are_sent() {
    let (mut ours, mut theirs) = (table(0..3000), table(40..3100));
    // Both have an entry of this target, and not the same one.
    ours.replace((1000, 1));
    theirs.retain(|(number, _)| *number != 1000);
    theirs.insert((1000, 2));
    let (sent, bytes) = compare(&ours, &theirs);
    let [from_ours, from_theirs] = sent.unwrap();
    assert!(from_ours.iter().eq(ours.difference(&theirs)));
    assert!(from_theirs.iter().eq(theirs.difference(&ours)));
    let differences = from_ours.len() + from_theirs.len();
    assert!(bytes < 2200 + differences * 30, "{bytes} bytes for {differences} differences");
}

#[test]
fn keys_are_listed_where_many_entries_differ() {
    let (ours, theirs) = (table(0..40_000), table(8_000..48_000));
    let mut caller = Caller::new(keys_of(&ours));
    assert_eq!(caller.receive_sketch((kind::SKETCH, &Callee::new(keys_of(&theirs)).sketch())), Ok(Next::List));
    let (sent, bytes) = compare(&ours, &theirs);
    let [from_ours, from_theirs] = sent.unwrap();
    assert!(from_ours.iter().eq(ours.difference(&theirs)));
    assert!(from_theirs.iter().eq(theirs.difference(&ours)));
    // The sketch, the list, and the keys that are wanted.
    assert!(bytes < 2_100 + 40_000 * 8 + 8_000 * 8, "{bytes}");
}

/// The entries with these numbers as keys, without targets.
fn numbered(numbers: std::ops::Range<u64>) -> Outline {
    let mut outline = Outline::new();
    // Odd, so that different numbers are different keys, and large, so that they are in all parts.
    numbers.for_each(|number| outline.keys.insert(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    while !outline.sort() {}
    outline
}

#[test]
fn a_list_that_is_too_long_or_does_not_ascend_is_refused() {
    let listing = |payload: &[u8]| {
        let mut caller = Caller::new(numbered(0..40_000));
        let called = Callee::new(numbered(8_000..48_000));
        assert_eq!(caller.receive_sketch((kind::SKETCH, &called.sketch())), Ok(Next::List));
        caller.receive_keys((kind::KEYS, payload))
    };
    let keys = |keys: &[u64]| keys.iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(listing(&keys(&[1, 2, u64::MAX])), Ok(false));
    let too_many: Vec<u64> = (0..40_001).collect();
    for (payload, why) in [
        (keys(&[2, 1]), "descends"),
        (keys(&[1, 1]), "twice"),
        (keys(&[]), "empty"),
        (vec![1; 12], "half a key"),
        (keys(&too_many), "more than the called end has"),
    ] {
        assert_eq!(listing(&payload), Err(ProtocolError::Malformed), "{why}");
    }
    assert_eq!(listing(&keys(&too_many[1..])), Ok(true));
    let mut called = Callee::new(keys_of(&table(0..10)));
    assert_eq!(called.receive((kind::ASK, &LIST)), Ok(CallerRequest::Keys));
    assert_eq!(called.receive((kind::ASK, &LIST)), Err(ProtocolError::Malformed), "a second list");
}

#[test]
fn the_greatest_key_is_compared_as_well() {
    for (ours, theirs, lacking, ours_only) in
        [(true, true, 0, 0), (true, false, 0, 1), (false, true, 1, 0), (false, false, 0, 0)]
    {
        let mut outline = Outline::new();
        (0..8).chain(ours.then_some(u64::MAX)).for_each(|key| outline.keys.insert(key));
        while !outline.sort() {}
        let mut caller = Caller::new(outline);
        let listed: Vec<u64> = (0..8).chain(theirs.then_some(u64::MAX)).collect();
        caller.theirs = listed.len();
        let payload: Vec<u8> = listed.iter().flat_map(|key| key.to_le_bytes()).collect();
        assert_eq!(caller.receive_keys((kind::KEYS, &payload)), Ok(true));
        assert_eq!((caller.lacking.len(), caller.ours_only.len()), (lacking, ours_only), "{ours} {theirs}");
    }
}

#[test]
fn equal_sets_need_a_sketch_and_a_few_symbols() {
    let (sent, bytes) = compare(&table(0..1000), &table(0..1000));
    assert_eq!(sent, Some([BTreeSet::new(), BTreeSet::new()]));
    assert!(bytes < 2500, "{bytes}");
}

#[test]
fn sets_that_differ_in_most_entries_are_exchanged_whole() {
    assert_eq!(compare(&table(0..1000), &table(900..2000)).0, None);
    assert_eq!(compare(&table(0..0), &table(0..1000)).0, None);
    let all = [true; BUCKETS];
    assert!(!is_worthwhile(0, 1_000_000, &all), "a node that joins");
    assert!(!is_worthwhile(10, 1_000_000, &all));
    assert!(!is_worthwhile(1_000_000, 10, &all));
    assert!(is_worthwhile(1_000_000, 600_000, &all));
    let mut one = [false; BUCKETS];
    one[7] = true;
    assert!(is_worthwhile(1_000_000, 1_000_000, &one));
    assert!(!is_worthwhile(10_000, 10_000, &one), "five entries at most");
}

#[test]
fn entries_that_changed_since_are_found() {
    let mut called = Callee::new(many(&table(0..10)));
    let wanted = [3, 4].map(|number| session().key(target(number), u64::from(number) * 7).to_le_bytes()).concat();
    assert_eq!(called.receive((kind::WANT, &wanted)), Ok(CallerRequest::Nothing));
    assert_eq!(called.receive((kind::WANT, &[9; 8])), Ok(CallerRequest::Nothing), "a key of no entry");
    let selection = called.into_selection();
    let Selection::Again(mut selection) = selection else { panic!("{selection:?}") };
    assert!(selection.take(&session(), target(3), 21));
    assert!(!selection.take(&session(), target(5), 35), "not wanted");
    assert!(!selection.take(&session(), target(4), 29), "a later entry of this target");
    assert!(!selection.is_complete());
    assert!(selection.has_changed(&session(), target(4), 29));
    assert!(!selection.has_changed(&session(), target(5), 35));
}

#[test]
fn targets_of_many_entries_are_not_remembered() {
    let mut outline = Outline::new();
    for number in 0..=u32::try_from(MAX_TARGETS).unwrap() {
        assert!(outline.targets.is_some(), "{number}");
        outline.insert(&session(), target(number), 0);
    }
    assert!(outline.targets.is_none());
}

#[test]
fn an_end_without_memory_for_keys_leads_to_whole_buckets() {
    let mut caller = Caller::new(keys_of(&table(0..10)));
    assert_eq!(caller.receive_sketch((kind::SKETCH, &[])), Ok(Next::Plain));
}

#[test]
fn the_work_that_a_caller_can_cause_is_bounded() {
    let mut called = Callee::new(keys_of(&table(0..1000)));
    let ask = |called: &mut Callee, symbols: u32| called.receive((kind::ASK, &symbols.to_le_bytes()));
    assert_eq!(ask(&mut called, 3025), Err(ProtocolError::Malformed), "more than twice as many as it has keys");
    for symbols in 1..=MAX_ASKS {
        assert_eq!(ask(&mut called, symbols), Ok(CallerRequest::Symbols));
        while !called.work() {}
        assert_eq!(called.take_symbols().map(|payload| payload.len()).sum::<usize>(), SYMBOL_LEN);
        assert_eq!(ask(&mut called, symbols), Err(ProtocolError::Malformed), "not more than before");
    }
    assert_eq!(ask(&mut called, 1000), Err(ProtocolError::Malformed), "too many times");
    let keys = vec![0; 8 * 501];
    assert_eq!(called.receive((kind::WANT, &keys)), Ok(CallerRequest::Nothing));
    let more = [7; 8 * 1000];
    assert_eq!(called.receive((kind::WANT, &more)), Err(ProtocolError::Malformed), "more than it has");
    assert_eq!(ask(&mut called, 1000), Err(ProtocolError::Malformed), "after it wanted keys");
}

#[test]
fn the_symbols_that_a_called_end_can_cause_are_bounded() {
    let mut caller = Caller::new(keys_of(&table(0..1000)));
    // It claims four billion keys, and a sketch that differs a lot.
    let mut sketch = u32::MAX.to_le_bytes().to_vec();
    sketch.extend([0x55; 2048]);
    assert_eq!(caller.receive_sketch((kind::SKETCH, &sketch)), Ok(Next::Plain));
    let sketch = [&u32::MAX.to_le_bytes()[..], &Callee::new(keys_of(&table(0..1100))).sketch()[4..]].concat();
    assert_eq!(caller.receive_sketch((kind::SKETCH, &sketch)), Ok(Next::Ask));
    let asked = u32::from_le_bytes(caller.ask()) as usize;
    assert!(asked < 500, "{asked}");
    let symbols = vec![1; (asked + 1) * SYMBOL_LEN];
    assert_eq!(caller.receive_symbols((kind::SYMBOLS, &symbols)), Err(ProtocolError::Malformed), "more than asked for");
    assert_eq!(caller.receive_symbols((kind::SYMBOLS, &[])), Err(ProtocolError::Malformed), "none");
}

#[test]
fn symbols_that_cannot_be_decoded_lead_to_whole_buckets_after_bounded_bytes() {
    let mut caller = Caller::new(keys_of(&table(0..1000)));
    let called = Callee::new(keys_of(&table(10..1000)));
    let mut next = caller.receive_sketch((kind::SKETCH, &called.sketch())).unwrap();
    let mut asked = 0;
    while next == Next::Ask {
        let total = u32::from_le_bytes(caller.ask()) as usize;
        let noise: Vec<u8> = (0..251).cycle().take((total - asked) * SYMBOL_LEN).collect();
        asked = total;
        let frames = noise.chunks(SYMBOLS_PER_FRAME * SYMBOL_LEN);
        frames.for_each(|payload| assert!(caller.receive_symbols((kind::SYMBOLS, payload)).is_ok()));
        next = (0..).find_map(|_| caller.work()).unwrap();
    }
    assert_eq!(next, Next::Plain);
    assert!(asked < 150, "{asked} symbols for 10 differences");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_two_tables_exchange_what_a_naive_comparison_finds(
        shared in proptest::collection::btree_map(0u32..5000, 0u64..3, 0..1500),
        one in proptest::collection::btree_map(0u32..5000, 0u64..3, 0..200),
        other in proptest::collection::btree_map(0u32..5000, 0u64..3, 0..200),
    ) {
        // Entries of the same target may differ.
        let table = |own: BTreeMap<u32, u64>| BTreeSet::from_iter(shared.iter().map(|(n, d)| (*n, *d)).collect::<BTreeMap<_, _>>().into_iter().chain(own).collect::<BTreeMap<_, _>>());
        let (ours, theirs) = (table(one), table(other));
        let (sent, _) = compare(&ours, &theirs);
        let differing = ours.symmetric_difference(&theirs).count();
        match sent {
            Some([from_ours, from_theirs]) => {
                prop_assert!(from_ours.iter().eq(ours.difference(&theirs)));
                prop_assert!(from_theirs.iter().eq(theirs.difference(&ours)));
            }
            None => prop_assert!(differing * 4 > ours.len() + theirs.len(), "{differing}"),
        }
    }

    #[test]
    fn no_frame_panics(kind in 5u8..13, bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let frame = (kind, &bytes[..]);
        let mut caller = Caller::new(keys_of(&table(0..10)));
        let mut called = Callee::new(keys_of(&table(0..10)));
        let _ = (decode_outline(frame), decode_differ(frame), caller.receive_sketch(frame), called.receive(frame));
        let _ = (caller.receive_symbols(frame), caller.receive_keys(frame));
        prop_assert!((0..1_000_000).any(|_| caller.work().is_some()));
    }

    #[test]
    fn outlines_are_read_as_written(entries: u64, set in proptest::collection::vec(0..BUCKETS, 0..100), compare_keys: bool) {
        let mut digests = short_digests(&session(), &[7; BUCKETS]);
        let before = digests.clone();
        set.iter().for_each(|at| digests[*at] ^= 1);
        let payload = encode_outline(entries, &digests);
        prop_assert_eq!(decode_outline((kind::OUTLINE, &payload)), Ok((entries, digests.clone())));
        let buckets = differing(&before, &digests);
        prop_assert!((0..BUCKETS).all(|at| buckets[at] == (set.iter().filter(|place| **place == at).count() % 2 == 1)));
        prop_assert_eq!(decode_differ((kind::DIFFER, &encode_differ(&buckets, compare_keys))), Ok((buckets, compare_keys)));
    }
}
