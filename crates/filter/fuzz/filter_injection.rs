//! Replaces the fields that an outsider can choose, in the test lines of all filters, by random parts of these lines. The
//! source of an offence must be the source of the test line.
#![no_main]

use std::sync::LazyLock;

use banmesh_filter::forge::{Forge, Judgement};
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Mode};
use libfuzzer_sys::fuzz_target;

static FORGE: LazyLock<(Forge, Detector)> = LazyLock::new(|| {
    let library = FilterLibrary::built_in().expect("the built-in filters are valid");
    let detector = library.detector(&["all".to_owned()], Mode::Aggressive, &[]).expect("the built-in filters compile");
    (Forge::new(library.iter().map(|loaded| &loaded.filter)), detector)
});

fuzz_target!(|data: &[u8]| {
    let (forge, detector) = &*FORGE;
    let mut bytes = data.chunks_exact(2);
    let mut choose = |below: usize| match bytes.next() {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])) % below,
        _ => 0,
    };
    let index = choose(forge.len());
    let Some((test, lines)) = forge.forge(index, &mut choose) else { return };
    if let Judgement::Wrong(what) = test.judge(detector, &lines) {
        panic!("{what}");
    }
});
