//! The filters' own test lines with other text where an outsider chooses it, put together from the words of these very lines:
//! nobody is accused but the one whose line it is.
#![no_main]

#[path = "../../crates/filter/tests/injection/forge.rs"]
mod forge;

use std::sync::LazyLock;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Mode};
use forge::{Accused, Forge};
use libfuzzer_sys::fuzz_target;

static BENCH: LazyLock<(Forge, Detector)> = LazyLock::new(|| {
    let library = FilterLibrary::built_in().expect("the built-in filters are good");
    let detector = library.detector(&["all".to_owned()], Mode::Aggressive, &[]).expect("they compile");
    (Forge::new(&library), detector)
});

fuzz_target!(|data: &[u8]| {
    let (forge, detector) = &*BENCH;
    let mut bytes = data.chunks_exact(2);
    let mut choose = |below: usize| match bytes.next() {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])) % below,
        _ => 0,
    };
    let index = choose(forge.len());
    let (test, lines) = forge.forge(index, &mut choose);
    if let Accused::Wrong(what) = test.judge(detector, &lines) {
        panic!("{what}");
    }
});
