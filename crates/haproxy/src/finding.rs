//! What is found wrong, and how to put it right.

use std::fmt;

use serde::Serialize;

use super::document::{Line, Place};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// HAProxy refuses the configuration, or the check never does what it is for.
    Error,
    /// It works until something fails, or it is open to others.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// A short name that never changes, for programs.
    pub code: &'static str,
    /// What is wrong, and why it matters.
    pub what: String,
    /// What to write instead.
    pub cure: String,
}

/// Everything found, each thing once.
#[derive(Clone, Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// HAProxy refuses this, or the check does not do what it is for.
    pub(super) fn error(&mut self, line: &Line, code: &'static str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(line.place.clone(), Severity::Error, code, what.into(), cure.into());
    }

    /// This works until something fails.
    pub(super) fn warning(
        &mut self,
        line: &Line,
        code: &'static str,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.add(line.place.clone(), Severity::Warning, code, what.into(), cure.into());
    }

    /// This is good to know.
    pub(super) fn note(&mut self, line: &Line, code: &'static str, what: impl Into<String>, cure: impl Into<String>) {
        self.add(line.place.clone(), Severity::Note, code, what.into(), cure.into());
    }

    /// As the others, at a place.
    pub(super) fn add(&mut self, place: Place, severity: Severity, code: &'static str, what: String, cure: String) {
        self.0.push(Finding { place, severity, code, what, cure });
    }

    /// All of them by file and line. A line that several proxies inherit is named once.
    pub fn finish(self) -> Vec<Finding> {
        let mut all = self.0;
        all.sort_by(|a, b| (&a.place, a.severity, a.code, &a.what).cmp(&(&b.place, b.severity, b.code, &b.what)));
        all.dedup_by(|a, b| (&a.place, a.code, &a.what) == (&b.place, b.code, &b.what));
        all
    }
}
