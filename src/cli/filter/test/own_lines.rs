//! `banmesh filter test` without lines: runs the test lines in the filters' own files.

use std::io::Write;

use crate::cli::filter::{Failure, FilterContext};
use banmesh_filter::forge::Forge;
use banmesh_filter::library::{LoadedFilter, Origin};
use banmesh_filter::{Detector, Filter, Mode, selftest};

/// Runs the test lines in the file of one filter, or of all filters.
pub(super) fn run_test_lines(
    own: Option<&LoadedFilter>,
    context: &FilterContext,
    json: bool,
    out: &mut impl Write,
) -> Result<bool, Failure> {
    let filters: Vec<&LoadedFilter> = own.map_or_else(|| context.library.iter().collect(), |own| vec![own]);
    let mut good = true;
    let mut rows = Vec::new();
    for loaded in filters {
        let filter = &loaded.filter;
        let failures =
            selftest(filter).map_err(|errors| Failure::Reported(errors.iter().map(ToString::to_string).collect()))?;
        // The test suite of banmesh attacks the built-in filters.
        let forgeries = match loaded.origin {
            Origin::File(_) => loaded.forgeries(),
            Origin::BuiltIn => Vec::new(),
        };
        good &= failures.is_empty() && forgeries.is_empty();
        if loaded.origin != Origin::BuiltIn {
            let detector = Detector::compile([(filter, Mode::Aggressive)], &[])
                .map_err(|errors| Failure::Reported(errors.iter().map(ToString::to_string).collect()))?;
            for warning in detector.warnings() {
                eprintln!("warning: {warning}");
            }
        }
        if json {
            let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
            let forgeries: Vec<String> = forgeries.iter().map(ToString::to_string).collect();
            rows.push(serde_json::json!({
                "filter": filter.name, "lines": filter.tests.len(), "failures": failures, "forgeries": forgeries,
            }));
            continue;
        }
        for failure in &failures {
            writeln!(out, "FAILED {failure}")?;
        }
        for forgery in &forgeries {
            writeln!(out, "FAILED {forgery}")?;
        }
        match filter.tests.len() {
            0 => writeln!(out, "{}: no test lines; add some under `tests`", filter.name)?,
            _ if loaded.origin != Origin::BuiltIn && !has_marks(filter) => writeln!(
                out,
                "{}: no test line marks what a client can choose, so no forged lines were tried; write for example {{{{user:bob}}}}",
                filter.name
            )?,
            count if failures.is_empty() && forgeries.is_empty() => {
                writeln!(out, "{}: {count} test lines passed", filter.name)?;
            }
            _ => {}
        }
    }
    if json {
        writeln!(out, "{:#}", serde_json::json!({ "ok": good, "filters": rows }))?;
    }
    Ok(good)
}

/// Whether any test line marks text that an outsider can choose.
fn has_marks(filter: &Filter) -> bool {
    !Forge::new([filter]).is_empty()
}
