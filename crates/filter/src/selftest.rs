//! Runs the test lines of a filter.

use std::fmt;

use crate::definition::{Filter, MODES, Mode, TestLine, Verdict};
use crate::detector::Detector;
use crate::error::FilterError;
use crate::line::LineView;
use crate::offence::{Offence, OffenceKind};
use crate::scratch::Scratch;
use crate::testline::MarkedLine;

/// A test line with an unexpected result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestFailure {
    /// The name of the filter.
    pub filter: String,
    /// The line, with the marks replaced by their examples.
    pub line: String,
    /// The expected result, in words.
    pub expected: String,
    /// The actual result, in words.
    pub found: String,
}

impl fmt::Display for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "filter `{}`: expected {}, found {}, for the test line: {}",
            self.filter, self.expected, self.found, self.line
        )
    }
}

/// Runs the test lines of `filter` in every mode. A line must match in the mode that it names and in the wider ones, and
/// must not match in the narrower ones.
///
/// Returns the lines that failed.
///
/// # Errors
/// Returns the errors of a filter that does not compile.
pub fn selftest(filter: &Filter) -> Result<Vec<TestFailure>, Vec<FilterError>> {
    let mut failures = Vec::new();
    for mode in MODES {
        let detector = Detector::compile([(filter, mode)], &[])?;
        for test in &filter.tests {
            let mut scratch = Scratch::new();
            for before in &test.after {
                let before = MarkedLine::parse(before).example();
                detector.detect(view(filter, test, &before), &mut scratch);
            }
            let marked = MarkedLine::parse(&test.line);
            let line = marked.example();
            let view = view(filter, test, &line);
            let offence = detector.detect(view, &mut scratch);
            let found = described(offence, test.rule.is_some());
            let expected = expected(test, mode);
            let failure = if found == expected {
                offence.and_then(|offence| {
                    wrong_account(&offence, detector.reads_account(&offence, view.program), &marked)
                })
            } else {
                Some((expected, found))
            };
            if let Some((expected, found)) = failure {
                failures.push(TestFailure { filter: filter.name.clone(), line, expected, found });
            }
        }
    }
    Ok(failures)
}

/// Returns a test line in the form that the detector takes.
fn view<'a>(filter: &'a Filter, test: &'a TestLine, line: &'a str) -> LineView<'a> {
    let program = test.program.as_deref().or_else(|| filter.services.first().map(String::as_str)).unwrap_or_default();
    let program = (!program.is_empty()).then_some(program.as_bytes());
    LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() }
}

fn expected(test: &TestLine, mode: Mode) -> String {
    let source = test.source.map(|source| source.to_string()).unwrap_or_default();
    let rule = test.rule.as_ref().map(|rule| format!(" by rule {rule}")).unwrap_or_default();
    match test.expected() {
        Verdict::Failure if mode.includes(test.mode) => format!("an offence of {source}{rule}"),
        Verdict::Success => format!("a login of {source}{rule}"),
        Verdict::Failure | Verdict::None => "nothing".to_owned(),
    }
}

/// Compares the account with the marks: returns what was expected and what was found, if they differ. A rule without a group
/// for the account (`reads` is false) finds none.
fn wrong_account(offence: &Offence<'_>, reads: bool, marked: &MarkedLine<'_>) -> Option<(String, String)> {
    let by = format!("by rule {}", offence.rule);
    let found = offence.account.map(String::from_utf8_lossy);
    let is_marked = match &found {
        Some(found) => marked.accounts().any(|marked| marked == found),
        None => !reads || marked.accounts().all(str::is_empty),
    };
    if is_marked {
        return None;
    }
    let mut accounts: Vec<String> = marked.accounts().map(|account| format!("the account `{account}` {by}")).collect();
    accounts.dedup();
    let expected = if accounts.is_empty() {
        format!("no account {by} (mark it: {{{{user:bob}}}})")
    } else {
        accounts.join(" or ")
    };
    let found = found.map_or_else(|| "none".to_owned(), |found| format!("the account `{found}`"));
    Some((expected, found))
}

fn described(offence: Option<Offence<'_>>, with_rule: bool) -> String {
    let Some(offence) = offence else { return "nothing".to_owned() };
    let what = match offence.kind {
        OffenceKind::Failure => "an offence",
        OffenceKind::Success => "a login",
    };
    let rule = if with_rule { format!(" by rule {}", offence.rule) } else { String::new() };
    format!("{what} of {}{rule}", offence.source)
}
