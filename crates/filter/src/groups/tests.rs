use proptest::prelude::*;
use regex_automata::meta;

use super::*;

fn syntax() -> syntax::Config {
    syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true)
}

/// Asserts that the groups are those that the engine of the crate reports.
fn assert_same(expression: &str, text: &[u8]) {
    let config = meta::Config::new().utf8_empty(false);
    let regex = meta::Regex::builder().configure(config).syntax(syntax()).build(expression).unwrap();
    let count = regex.group_info().slot_len();
    let wanted: Vec<usize> = (2..count).collect();
    let finder = GroupFinder::new(expression, syntax(), &wanted).unwrap();
    let mut expected = vec![None; count];
    let found = regex.search_slots(&regex_automata::Input::new(text), &mut expected);
    let Some(end) = regex.search_half(&regex_automata::Input::new(text)) else {
        assert!(found.is_none());
        return;
    };
    let mut slots = vec![None; count];
    finder.find(text, end.offset(), &mut slots).unwrap();
    assert_eq!(slots[2..], expected[2..], "{expression} on {:?}", String::from_utf8_lossy(text));
}

#[test]
fn groups_are_those_of_the_preferred_match() {
    for expression in [
        "^(a*)(ab)?(b*)",
        "^(a*?)(ab)?(b*?)$",
        "(a|ab)(c|bcd)(d*)",
        "((a*)*)(b|)",
        "((a*)+|(b))*c",
        "(?:(a)|(b)|(ab))*?b(.*)",
        "^.* (a+) (.*)$",
        r"\b(a+)\b(.*?)\b(b)",
        "(?m)^(a*)$",
        "(?mR)(a*)$(.*)^(b)",
        r"(.*)\B(a?)",
        "(a?)(a?)(a?)aaa",
        "(|a)+(b)",
        "(x*)",
    ] {
        for text in [
            "",
            "a",
            "ab",
            "abcd",
            "aab b a ab",
            "aaa aab",
            "a\nab\r\nb",
            "xaabb abab",
            "aaaaaa",
            "b a a b ",
            "a a\ra\nab",
        ] {
            assert_same(expression, text.as_bytes());
        }
    }
}

/// An expression of a few letters with groups.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just(".".to_owned()),
        Just("[ab]".to_owned()),
        Just("[^a]".to_owned()),
        Just(r"\b".to_owned()),
        Just("(?:)".to_owned()),
        Just("^".to_owned()),
        Just("(?m:$)".to_owned()),
    ];
    leaf.prop_recursive(5, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
            inner.clone().prop_map(|part| format!("({part})")),
            (inner, proptest::sample::select(vec!["*", "*?", "+", "+?", "?", "??", "{0,2}", "{1,2}?"]))
                .prop_map(|(part, repeat)| format!("(?:{part}){repeat}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn groups_of_any_expression_are_those_of_the_preferred_match(expression in expression(), text in "[ab \n]{0,12}") {
        assert_same(&expression, text.as_bytes());
    }
}

#[test]
fn a_match_is_found_without_more_states_for_a_longer_text() {
    let finder = GroupFinder::new("^(?:x |)([0-9.]+) .*(?:abc|abd|bcd).*$", syntax(), &[2, 3]).unwrap();
    let mut sets = Vec::new();
    for length in [10, 1000, 100_000] {
        let text = format!("192.0.2.1 {}bcd{}", "abcx".repeat(length), "ab".repeat(length));
        let mut slots = vec![None; 4];
        finder.find(text.as_bytes(), text.len(), &mut slots).unwrap();
        assert_eq!(slots[2..].iter().map(|slot| slot.unwrap().get()).collect::<Vec<_>>(), [0, 9]);
        sets.push(finder.sets());
    }
    assert_eq!(sets[1], sets[2]);
}

#[test]
fn an_automaton_that_grows_too_large_is_given_up() {
    let finder = GroupFinder::new("^(?:(a)|b)(?:a|b){900}a(?:a|b)*$", syntax(), &[2, 3]).unwrap();
    let mut state = 7_u32;
    let text: Vec<u8> = (0..60_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 31 == 0 { b'a' } else { b'b' }
        })
        .collect();
    let found = finder.find(&text, text.len(), &mut [None; 4]);
    assert_eq!(found, Err(NotFound::TooManyStates));
    assert!(finder.caches.get().bytes <= 2 * MAX_CACHE);
}
