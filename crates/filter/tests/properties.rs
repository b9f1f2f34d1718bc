//! For every line: detection does not panic, and the source is in the line.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_types::address::Address;
use std::sync::LazyLock;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, LineView, MarkedLine, Mode, Scratch, parse_source};
use proptest::prelude::*;

static LIBRARY: LazyLock<FilterLibrary> =
    LazyLock::new(|| FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0])));
static DETECTOR: LazyLock<Detector> =
    LazyLock::new(|| LIBRARY.detector(&["all".to_owned()], Mode::Aggressive, &[]).unwrap());

/// Every test line of every filter, with its program.
static LINES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let of = |loaded: &'static banmesh_filter::library::LoadedFilter| {
        let filter = &loaded.filter;
        filter.tests.iter().map(move |test| {
            let program = test.program.as_ref().or(filter.services.first()).cloned().unwrap_or_default();
            (program, MarkedLine::parse(&test.line).example().into_bytes())
        })
    };
    LIBRARY.iter().flat_map(of).collect()
});

fn contains(line: &[u8], source: Address) -> bool {
    (0..line.len()).any(|start| {
        (start + 2..=line.len().min(start + 96)).any(|end| parse_source(&line[start..end]) == Some(source))
    })
}

fn check(program: Option<&[u8]>, line: &[u8]) -> Result<(), TestCaseError> {
    let view = LineView { program, message: line, raw: line, ..LineView::default() };
    if let Some(offence) = DETECTOR.detect(view, &mut Scratch::new()) {
        prop_assert!(contains(line, offence.source), "{offence:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn the_source_is_in_a_mutilated_line(
        first: prop::sample::Index,
        second: prop::sample::Index,
        at: prop::sample::Index,
        cut: prop::sample::Index,
        junk in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let (program, line) = &LINES[first.index(LINES.len())];
        let (_, other) = &LINES[second.index(LINES.len())];
        let at = at.index(line.len() + 1);
        let cut = cut.index(other.len() + 1);
        let mixed: Vec<u8> = [&line[..at], &junk, &other[cut..], &line[at..]].concat();
        check(Some(program.as_bytes()), &mixed)?;
        check(None, &mixed)?;
        check(Some(program.as_bytes()), &[&line[..at], &junk].concat())?;
    }

    #[test]
    fn the_source_is_in_an_arbitrary_line(line in prop::collection::vec(any::<u8>(), 0..300)) {
        check(Some(b"sshd"), &line)?;
        check(None, &line)?;
    }
}
