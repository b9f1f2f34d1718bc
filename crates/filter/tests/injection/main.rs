//! Text that an outsider writes into a log line never blames another address.
//!
//! Every test line of every filter marks the text that an outsider can choose. These tests fill each mark, and all marks
//! together, with texts that contain another address, in every form that any filter reads. The source must remain that of the
//! line, or the line must not match.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_filter::forge::{Forge, ForgeableTest, ForgedLines, Judgement, attack, attacks};
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, Mode, Piece, Scratch};
use banmesh_types::address::Address;

struct Checked {
    lines: usize,
    own: usize,
    wrong: Vec<String>,
}

fn check(checked: &mut Checked, detector: &Detector, test: &ForgeableTest, lines: &ForgedLines<'_>) {
    checked.lines += 1;
    match test.judge(detector, lines) {
        Judgement::NoMatch => {}
        Judgement::OwnSource => checked.own += 1,
        Judgement::Wrong(what) if checked.wrong.len() < 40 => checked.wrong.push(what.to_string()),
        Judgement::Wrong(_) => {}
    }
}

fn run(mode: Mode) -> Checked {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
    let filters: Vec<&Filter> = library.iter().map(|loaded| &loaded.filter).collect();
    let mut checked = Checked { lines: 0, own: 0, wrong: Vec::new() };
    for filter in &filters {
        let attacks = attacks(filter, filters.iter().copied());
        for test in &filter.tests {
            let test = ForgeableTest::of(filter, test);
            test.fill_with(&attacks, false, &mut |lines| check(&mut checked, &detector, &test, lines));
        }
    }
    checked
}

fn nothing_is_blamed(mode: Mode) {
    let Checked { lines, own, wrong } = run(mode);
    println!("{mode}: {lines} forged lines, {own} kept their own source, the others do not match");
    assert!(wrong.is_empty(), "{mode}:\n{}", wrong.join("\n"));
    assert!(own > 0);
}

#[test]
fn a_quoted_address_is_never_the_source() {
    nothing_is_blamed(Mode::Normal);
}

// Apart from the other mode, so that they run at the same time.
#[test]
fn a_quoted_address_is_never_the_source_in_mode_aggressive() {
    nothing_is_blamed(Mode::Aggressive);
}

/// `BANMESH_FORGED` is the number of forged lines per test line (60), `BANMESH_SEED` the seed of the random numbers.
#[test]
fn random_parts_of_test_lines_never_blame_another_address() {
    let given = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let (each, mut state) = (given("BANMESH_FORGED").unwrap_or(60), given("BANMESH_SEED").unwrap_or(20_261_126_u64));
    // Xorshift is good enough, and repeatable.
    let mut choose = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let forge = Forge::new(library.iter().map(|loaded| &loaded.filter));
    let mut wrong = Vec::new();
    for mode in [Mode::Normal, Mode::Aggressive] {
        let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
        let mut forged = 0_u64;
        for index in 0..forge.len() {
            let mut found: Vec<String> = (0..each)
                .filter_map(|_| {
                    let (test, lines) = forge.forge(index, &mut choose).unwrap();
                    match test.judge(&detector, &lines) {
                        Judgement::Wrong(what) => Some(what.to_string()),
                        Judgement::NoMatch | Judgement::OwnSource => None,
                    }
                })
                .collect();
            found.sort_by_key(String::len);
            wrong.extend(found.into_iter().next());
            forged += each;
        }
        println!("{mode}: {forged} forged lines of {} test lines", forge.len());
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// What `banmesh check` does with the filters of operators finds nothing in these.
#[test]
fn the_attack_on_filters_of_operators_finds_nothing_in_built_in_ones() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    for name in ["sshd", "postfix", "dovecot", "nginx", "openldap"] {
        let found = attack(&library.find(name).unwrap().filter).unwrap();
        assert!(found.is_empty(), "{}", found[0]);
    }
}

/// The other tests would skip a filter without any mark.
#[test]
fn every_filter_marks_text_that_outsiders_choose() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    for loaded in library.iter() {
        let marked =
            loaded.filter.tests.iter().any(|test| {
                MarkedLine::parse(&test.line).pieces().iter().any(|piece| matches!(piece, Piece::Free { .. }))
            });
        assert!(marked, "{}", loaded.filter.name);
    }
}

/// A line of one service under the name of another never blames an address other than its source, and a harmless line is not
/// an offence in mode normal.
#[test]
fn filters_do_not_misread_lines_of_other_services() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut scratch = Scratch::new();
    for loaded in library.iter() {
        let program = loaded.filter.services.first().map(String::as_bytes);
        let [normal, aggressive] =
            [Mode::Normal, Mode::Aggressive].map(|mode| Detector::compile([(&loaded.filter, mode)], &[]).unwrap());
        for other in library.iter().filter(|other| other.filter.name != loaded.filter.name) {
            for test in &other.filter.tests {
                let line = MarkedLine::parse(&test.line).example();
                let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
                let harmless = test.source.is_none();
                if let Some(offence) = if harmless { &normal } else { &aggressive }.detect(view, &mut scratch) {
                    let source: Address = offence.source;
                    assert_eq!(Some(source), test.source, "{}: {line}", loaded.filter.name);
                }
            }
        }
    }
}
