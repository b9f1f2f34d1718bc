//! Prints the findings of a check of another program's configuration.

use std::io;

use super::output::{Output, Tone};
use banmesh_haproxy::{Finding, Severity};

/// The number of findings of this severity.
pub fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

/// The findings for JSON.
pub fn rows(findings: &[Finding]) -> Vec<serde_json::Value> {
    let row = |finding: &Finding| {
        serde_json::json!({
            "file": &*finding.place.file, "line": finding.place.line, "severity": finding.severity,
            "code": finding.code, "message": finding.problem, "fix": finding.fix,
        })
    };
    findings.iter().map(row).collect()
}

/// Prints the findings and how many there are. `of` says in parentheses what was checked.
///
/// # Errors
/// When the output cannot be written.
pub fn print(findings: &[Finding], of: &str, out: &mut Output) -> io::Result<()> {
    for finding in findings {
        let Finding { place, severity, code, problem, fix } = finding;
        let text = format!("{place}: {severity}: {problem} [{code}]");
        match severity {
            Severity::Error | Severity::Warning => out.colored(Tone::Bad, &text)?,
            Severity::Note => out.line(&text)?,
        }
        out.line(&format!("    fix: {fix}"))?;
    }
    let plural = |number: usize, name: &str| format!("{number} {name}{}", if number == 1 { "" } else { "s" });
    let count = |severity| count(findings, severity);
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    let counts = [plural(errors, "error"), plural(warnings, "warning"), plural(notes, "note")].join(", ");
    let tone = if errors + warnings == 0 { Tone::Good } else { Tone::Bad };
    out.colored(tone, &format!("{counts} ({of})"))
}
