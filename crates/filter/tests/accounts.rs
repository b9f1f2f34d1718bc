//! Which accounts the built-in filters know.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, Mode, OffenceKind, Scratch};

/// The marks around the table in docs/filters.md.
const BEGIN: &str = "| filter | account | unknown account | logins |\n|---|---|---|---|\n";

/// What the rules of a filter find in its test lines.
#[derive(Default)]
struct Known {
    /// The rules for failures that name an account.
    named: BTreeSet<String>,
    /// Those that say that it does not exist.
    unknown: BTreeSet<String>,
    logins: bool,
    /// Rules for successful logins that do not name the account.
    nameless: BTreeSet<String>,
}

fn known(filter: &Filter) -> Known {
    let detector = Detector::compile([(filter, Mode::Aggressive)], &[]).unwrap();
    let mut known = Known::default();
    for test in &filter.tests {
        let mut scratch = Scratch::new();
        let program = test.program.as_deref().or_else(|| filter.services.first().map(String::as_str));
        let program = program.filter(|program| !program.is_empty()).map(str::as_bytes);
        for line in test.after.iter().chain([&test.line]) {
            let line = MarkedLine::parse(line).example();
            let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
            let Some(offence) = detector.detect(view, &mut scratch) else { continue };
            let rule = offence.rule.to_string();
            match (offence.kind, offence.account) {
                (OffenceKind::Success, account) => {
                    known.logins = true;
                    if account.is_none() {
                        known.nameless.insert(rule);
                    }
                }
                (OffenceKind::Failure, Some(_)) => {
                    if offence.unknown {
                        known.unknown.insert(rule.clone());
                    }
                    known.named.insert(rule);
                }
                (OffenceKind::Failure, None) => {}
            }
        }
    }
    known
}

fn table() -> String {
    let mut table = BEGIN.to_owned();
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    for loaded in library.iter() {
        let filter = &loaded.filter;
        let known = known(filter);
        if known.named.is_empty() && !known.logins {
            continue;
        }
        let rules = filter.failregex.len();
        let named = match known.named.len() {
            0 => "–".to_owned(),
            named if named == rules => "all rules".to_owned(),
            named => format!("{named} of {rules} rules"),
        };
        let unknown: Vec<String> = known.unknown.iter().map(|rule| format!("`{rule}`")).collect();
        let unknown = if unknown.is_empty() { "–".to_owned() } else { unknown.join(", ") };
        let logins = match (known.logins, known.nameless.is_empty()) {
            (false, _) => "–",
            (true, true) => "yes",
            (true, false) => "without the account",
        };
        writeln!(table, "| {} | {named} | {unknown} | {logins} |", filter.name).unwrap();
    }
    table
}

/// `BANMESH_UPDATE=1` writes the table.
#[test]
fn the_table_in_the_documentation_says_which_filters_know_the_account() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/filters.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/filters.md has the table");
    let after = rest.find("\n\n").map_or("", |end| &rest[end + 1..]);
    let expected = format!("{before}{}{after}", table());
    if std::env::var_os("BANMESH_UPDATE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        page == expected || std::env::var_os("BANMESH_UPDATE").is_some(),
        "the table in docs/filters.md is not up to date; run BANMESH_UPDATE=1 cargo test -p banmesh-filter --test accounts"
    );
}

/// A login without an account shows nothing about who is at home at an address.
#[test]
fn logins_name_the_account() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    for loaded in library.iter() {
        let nameless = known(&loaded.filter).nameless;
        // slapd logs a DN.
        assert!(nameless.is_empty() || loaded.filter.name == "openldap", "{}: {nameless:?}", loaded.filter.name);
    }
}
