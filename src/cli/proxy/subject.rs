//! What all checks look at, and their findings.

use std::sync::Arc;

use banmesh_haproxy::document::Place;
use banmesh_haproxy::{Finding, Severity};

/// A file of a proxy's configuration.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub name: Arc<str>,
    pub text: String,
}

/// Collects findings.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub fn error(&mut self, place: Place, code: &'static str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(place, Severity::Error, code, problem.into(), fix.into());
    }

    pub fn warning(&mut self, place: Place, code: &'static str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(place, Severity::Warning, code, problem.into(), fix.into());
    }

    pub fn note(&mut self, place: Place, code: &'static str, problem: impl Into<String>, fix: impl Into<String>) {
        self.add(place, Severity::Note, code, problem.into(), fix.into());
    }

    /// All findings, sorted by file and line, without duplicates.
    pub fn finish(self) -> Vec<Finding> {
        let mut all = self.0;
        all.sort_by(|a, b| (&a.place, a.severity, a.code, &a.problem).cmp(&(&b.place, b.severity, b.code, &b.problem)));
        all.dedup();
        all
    }

    fn add(&mut self, place: Place, severity: Severity, code: &'static str, problem: String, fix: String) {
        self.0.push(Finding { place, severity, code, problem, fix });
    }
}

/// The port at the end of `target`: `http://127.0.0.1:8889/x`, `127.0.0.1:8889`, `:8889`.
pub(super) fn port(target: &str) -> Option<u16> {
    let rest = target.split_once("://").map_or(target, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    authority.rsplit_once(':')?.1.parse().ok()
}

/// The findings that several proxies have in common.
pub(super) mod common {
    use super::{Findings, Place};

    /// There is no check at all.
    pub fn no_check(findings: &mut Findings, place: Place, what: &str, command: &str) {
        findings.warning(
            place,
            "no-check",
            format!("{what}, so no client is ever refused"),
            format!("`banmesh {command} config` prints a complete example"),
        );
    }

    /// The check asks something else.
    pub fn other_port(findings: &mut Findings, place: Place, ports: &[u16]) {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        findings.warning(
            place,
            "other-port",
            "the checks here ask another program: none of them goes to the port of the verdict endpoint",
            format!("use port {}, or name the node's configuration with --config", ports.join(" or ")),
        );
    }

    /// The client chooses its own address.
    pub fn client_chooses(findings: &mut Findings, place: Place, why: &str, fix: &str) {
        findings.error(
            place,
            "client-chooses",
            format!("{why}, so a banned client passes by naming another address"),
            fix,
        );
    }

    /// The proxy names nobody.
    pub fn unnamed(findings: &mut Findings, place: Place, why: &str, fix: &str) {
        findings.error(
            place,
            "unnamed",
            format!("{why}, so banmesh does not know the client and lets everybody pass"),
            fix,
        );
    }

    /// A hanging node delays clients.
    pub fn no_timeout(findings: &mut Findings, place: Place, why: &str, fix: &str) {
        findings.warning(place, "no-timeout", format!("{why}: while a node hangs, clients wait"), fix);
    }

    /// Clients are refused while no node answers.
    pub fn fails_closed(findings: &mut Findings, place: Place, fix: &str) {
        findings.note(place, "fails-closed", "while no node answers, all clients are refused", fix);
    }

    /// There is no second node.
    pub fn one_node(findings: &mut Findings, place: Place, fix: &str) {
        findings.note(place, "one-node", "only one node is asked", fix);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn source(text: &str) -> Source {
        Source { name: "f".into(), text: text.to_owned() }
    }

    /// The findings of a check as `line code`.
    pub fn codes(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|finding| format!("{} {}", finding.place.line, finding.code)).collect()
    }

    #[test]
    fn the_port_of_a_target_is_found() {
        for (target, expected) in [
            ("http://127.0.0.1:8889/api/v1/verdict", Some(8889)),
            ("127.0.0.1:8889", Some(8889)),
            ("http://[::1]:8889", Some(8889)),
            (":8889", Some(8889)),
            ("http://banmesh/a:1", None),
            ("unix:/run/x", None),
            ("", None),
        ] {
            assert_eq!(port(target), expected, "{target}");
        }
    }
}
