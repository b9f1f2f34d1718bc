//! The findings of a check.

use std::fmt;

use serde::Serialize;

use crate::document::{Line, Place};

/// How serious a finding is, from the most to the least serious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// HAProxy rejects the configuration, or the ban check does not work.
    Error,
    /// It works until something fails, or it is open to others.
    Warning,
    /// Informational.
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

/// A mistake, or a fact worth knowing, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The line that needs the fix.
    pub place: Place,
    /// How serious it is.
    pub severity: Severity,
    /// Stable identifier for programs, such as `never-set`.
    pub code: &'static str,
    /// The problem and its consequence.
    pub problem: String,
    /// What to write instead, or what to do.
    pub fix: String,
}

/// Collects findings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// Adds an error.
    pub(crate) fn error(
        &mut self,
        line: &Line,
        code: &'static str,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(line.place.clone(), Severity::Error, code, problem.into(), fix.into());
    }

    /// Adds a warning.
    pub(crate) fn warning(
        &mut self,
        line: &Line,
        code: &'static str,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(line.place.clone(), Severity::Warning, code, problem.into(), fix.into());
    }

    /// Adds a note.
    pub(crate) fn note(&mut self, line: &Line, code: &'static str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(line.place.clone(), Severity::Note, code, problem.into(), fix.into());
    }

    /// Adds a finding at a place that need not be a line.
    pub(crate) fn add(&mut self, place: Place, severity: Severity, code: &'static str, problem: String, fix: String) {
        self.0.push(Finding { place, severity, code, problem, fix });
    }

    /// All findings, sorted by file and line, without duplicates from lines that several proxies inherit.
    pub(crate) fn finish(self) -> Vec<Finding> {
        let mut all = self.0;
        all.sort_by(|a, b| (&a.place, a.severity, a.code, &a.problem).cmp(&(&b.place, b.severity, b.code, &b.problem)));
        all.dedup_by(|a, b| (&a.place, a.code, &a.problem) == (&b.place, b.code, &b.problem));
        all
    }
}
