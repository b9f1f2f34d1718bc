//! Runs all filters on recorded traffic of honest clients in `$BANMESH_FLOWS` (default: `../shared/data/flows`): no flow may end in
//! a ban. Without the file the test is skipped.
//!
//! `honest.jsonl` has one object per line, `{"flow", "program", "line"}`. All lines of a flow count as if they arrived at the same
//! moment, which is stricter than a node with its `time_window`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use banmesh_core::repeats::Repeats;
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, LineView, Mode, OffenceKind, Scratch, Writer};
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;

/// `ban.max_attempts`, if neither the rule nor the filter sets it.
const MAX_ATTEMPTS: u32 = 5;

/// The flows that may end in a ban, because they consist of wrong passwords.
const FAILURES: [&str; 1] = ["monitoring with basic auth whose password was changed: each minute"];

#[derive(serde::Deserialize)]
struct Row {
    flow: String,
    program: Option<String>,
    line: String,
}

fn flows() -> Option<BTreeMap<String, Vec<Row>>> {
    let given = std::env::var_os("BANMESH_FLOWS").map(PathBuf::from);
    let default = ["/../../../shared/data/flows", "/../../../../shared/data/flows"]
        .map(|path| PathBuf::from(format!("{}{path}", env!("CARGO_MANIFEST_DIR"))));
    let text =
        given.into_iter().chain(default).find_map(|dir| std::fs::read_to_string(dir.join("honest.jsonl")).ok())?;
    let mut flows: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for line in text.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        flows.entry(row.flow.clone()).or_default().push(row);
    }
    Some(flows)
}

/// Returns the rules that would ban a source of the flow, with the number of the line.
fn bans(detector: &Detector, rows: &[Row]) -> Vec<String> {
    let (mut scratch, mut repeats) = (Scratch::new(), Repeats::new());
    let mut attempts: HashMap<(Address, Option<u32>), u32> = HashMap::new();
    let mut bans = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let line = row.line.as_bytes();
        let parsed = banmesh_syslog::parse(line);
        let view = match &row.program {
            Some(program) => LineView::message(program.as_bytes(), line),
            None => LineView {
                program: parsed.program,
                message: parsed.message,
                raw: line,
                writer: Writer { sender: None, hostname: parsed.hostname, pid: parsed.pid },
            },
        };
        let Some(offence) = detector.detect(view, &mut scratch) else { continue };
        if offence.kind != OffenceKind::Failure || !repeats.admits(offence.source, offence.echo, UnixMillis(0)) {
            continue;
        }
        let own = offence.policy.and_then(|policy| detector.overrides(policy)).and_then(|policy| policy.max_attempts);
        let count = attempts.entry((offence.source, own)).or_default();
        *count += 1;
        if *count == own.unwrap_or(MAX_ATTEMPTS) {
            bans.push(format!("line {}: {}/{}: {}", number + 1, offence.filter, offence.rule, row.line));
        }
    }
    bans
}

#[test]
fn honest_traffic_does_not_end_in_a_ban() {
    let Some(flows) = flows() else {
        println!("skipped: no recorded traffic (set BANMESH_FLOWS to the directory of honest.jsonl)");
        return;
    };
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let detector = library.detector(&["all".to_owned()], Mode::Normal, &[]).unwrap();
    let mut wrong = Vec::new();
    for (flow, rows) in &flows {
        if !FAILURES.contains(&flow.as_str()) {
            wrong.extend(bans(&detector, rows).into_iter().map(|ban| format!("{flow}\n    {ban}")));
        }
    }
    println!("{} flows, {} bans", flows.len(), wrong.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
