//! Tests that a line costs a bounded amount of work per byte, whatever an outsider writes into it.

use regex_automata::hybrid::dfa::DFA;
use regex_automata::{Input, nfa::thompson};

use crate::definition::{Filter, Mode};
use crate::library::FilterLibrary;
use crate::line::LineView;
use crate::rule::{CompiledRule, HYBRID_CACHE, syntax};
use crate::scratch::Scratch;
use crate::testline::{MarkedLine, Piece};

/// The lazy automaton that the regex engine uses to find the end of a match, with the limits at which it changes to a slow engine.
fn automaton(rule: &CompiledRule) -> DFA {
    let config = DFA::config()
        .unicode_word_boundary(true)
        .cache_capacity(HYBRID_CACHE)
        .minimum_cache_clear_count(Some(3))
        .minimum_bytes_per_state(Some(10));
    let nfa = thompson::Config::new().utf8(false).which_captures(thompson::WhichCaptures::None);
    DFA::builder().syntax(syntax(false)).thompson(nfa).configure(config).build(&rule.text).unwrap()
}

/// Returns the test lines of `filter` with long text in the marked fields.
fn long_lines(filter: &Filter, length: usize) -> Vec<(Option<String>, String)> {
    let mut words: Vec<String> = filter
        .tests
        .iter()
        .flat_map(|test| {
            MarkedLine::parse(&test.line)
                .example()
                .split_inclusive([' ', ':', ',', '/'])
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .chain(["../", "%2e%2e/", "x=1&", "/cgi-bin/", "192.0.2.9 ", "${"].map(str::to_owned))
        .filter(|word| !word.contains('"'))
        .collect();
    words.sort();
    words.dedup();
    let mut state = 20_261_129_u64;
    let mut lines = Vec::new();
    for test in filter.tests.iter() {
        let marked = MarkedLine::parse(&test.line);
        let marks = marked.pieces().iter().filter(|piece| matches!(piece, Piece::Free { .. })).count();
        if marks == 0 {
            continue;
        }
        let program = test.program.clone().or_else(|| filter.services.first().cloned()).filter(|name| !name.is_empty());
        for kind in 0..3 {
            let mut text = String::new();
            while text.len() * marks < length {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                match kind {
                    0 => text.push_str(&words[usize::try_from(state >> 11).unwrap() % words.len()]),
                    1 => text.push_str("/.x"),
                    _ => text.push('a'),
                }
            }
            lines.push((program.clone(), marked.filled(|_, _| &text)));
        }
    }
    lines
}

#[test]
fn no_line_makes_a_built_in_rule_use_a_slow_engine() {
    let library = FilterLibrary::built_in().unwrap();
    let mut matched = 0;
    for loaded in library.iter() {
        let filter = &loaded.filter;
        let detector = library.detector(std::slice::from_ref(&filter.name), Mode::Aggressive, &[]).unwrap();
        // A rule that bounds its fields matches only the shorter ones.
        let lines: Vec<_> = [100, 400, 1000, 2000].iter().flat_map(|length| long_lines(filter, *length)).collect();
        for (program, line) in &lines {
            let view = LineView {
                program: program.as_deref().map(str::as_bytes),
                message: line.as_bytes(),
                raw: line.as_bytes(),
                ..LineView::default()
            };
            matched += usize::from(detector.detect(view, &mut Scratch::new()).is_some());
        }
        let program = filter.services.first().map(|service| service.replace('*', "x"));
        for rule in detector.rules_for(program.as_deref().map(str::as_bytes)) {
            let name = format!("{}/{}", rule.filter, rule.name);
            assert!(!rule.groups_given_up(), "{name}: the groups of a match need a slow engine");
            let dfa = automaton(rule);
            let mut cache = dfa.create_cache();
            for (_, line) in &lines {
                let found = dfa.try_search_fwd(&mut cache, &Input::new(line.as_bytes()));
                assert!(found.is_ok(), "{name}: the end of a match needs a slow engine: {found:?}\n{line}");
            }
        }
    }
    assert!(matched > 500, "{matched}");
}
