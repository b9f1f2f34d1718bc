//! Runs all filters on lines that once were missed, in `missed.jsonl` of `$BANMESH_CORPUS` (default: `../shared/data/loglines`).
//! Without the file the test is skipped.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_types::address::Address;
use std::path::PathBuf;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{LineView, Mode, OffenceKind, Scratch};

#[derive(serde::Deserialize)]
struct Row {
    program: String,
    line: String,
    source: Address,
}

#[test]
fn every_line_that_was_missed_is_an_offence_of_its_source() {
    let given = std::env::var_os("BANMESH_CORPUS").map(PathBuf::from);
    let default = ["/../../../shared/data/loglines", "/../../../../shared/data/loglines"]
        .map(|path| PathBuf::from(format!("{}{path}", env!("CARGO_MANIFEST_DIR"))));
    let text = given.into_iter().chain(default).find_map(|dir| std::fs::read_to_string(dir.join("missed.jsonl")).ok());
    let Some(text) = text else {
        println!("skipped: no corpus (set BANMESH_CORPUS to its directory)");
        return;
    };
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let detector = library.detector(&["all".to_owned()], Mode::Normal, &[]).unwrap();
    let mut wrong = Vec::new();
    for line in text.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let view = LineView::message(row.program.as_bytes(), row.line.as_bytes());
        let found = detector
            .detect(view, &mut Scratch::new())
            .filter(|offence| offence.kind == OffenceKind::Failure)
            .map(|offence| offence.source);
        if found != Some(row.source) {
            wrong.push(format!("{}: {found:?} instead of {}: {}", row.program, row.source, row.line));
        }
    }
    println!("{} lines, {} missed or wrong", text.lines().count(), wrong.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
