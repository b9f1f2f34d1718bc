//! Runs all built-in filters on arbitrary lines. They must not panic, and the source must be in the line.
#![no_main]

use std::sync::LazyLock;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, LineView, Mode, Scratch, parse_source};
use libfuzzer_sys::fuzz_target;

static DETECTOR: LazyLock<Detector> = LazyLock::new(|| {
    let library = FilterLibrary::built_in().expect("the built-in filters are valid");
    library.detector(&["all".to_owned()], Mode::Aggressive, &[]).expect("the built-in filters compile")
});

/// The first service of every filter, and the programs of Postfix.
static PROGRAMS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let library = FilterLibrary::built_in().expect("the built-in filters are valid");
    let first = library.iter().filter_map(|loaded| loaded.filter.services.first().cloned());
    first.chain(["postfix/smtpd".to_owned(), "postfix/postscreen".to_owned()]).collect()
});

/// Whether a part of `line` parses as `source`.
fn contains(line: &[u8], source: banmesh_types::address::Address) -> bool {
    (0..line.len()).any(|start| {
        let longest = line.len().min(start + 96);
        (start + 2..=longest).any(|end| parse_source(&line[start..end]) == Some(source))
    })
}

fuzz_target!(|data: &[u8]| {
    let mut scratch = Scratch::new();
    // The first byte selects the program; its upper half stands for lines without one.
    let (program, rest) = match data.split_first() {
        Some((byte, rest)) => {
            (PROGRAMS.get(usize::from(*byte) * PROGRAMS.len() / 128).map(|program| program.as_bytes()), rest)
        }
        None => (None, data),
    };
    let parsed = banmesh_syslog::parse(rest);
    for view in [
        LineView { program, message: rest, raw: rest, ..LineView::default() },
        LineView { program: parsed.program, message: parsed.message, raw: rest, ..LineView::default() },
    ] {
        if let Some(offence) = DETECTOR.detect(view, &mut scratch) {
            assert!(contains(view.raw, offence.source), "{offence:?}");
        }
        let _ = DETECTOR.explain(view);
    }
});
