//! Everything that needs attention, with what to do about it.

use super::views::{StatusView, WarningView};
use crate::operation::words::count;

/// How long a node may receive nothing after its start before that is worth a warning, in seconds.
const SETTLED: u64 = 600;

/// The warnings of `status`, the problems first.
pub fn warnings(status: &StatusView) -> Vec<WarningView> {
    let problems = status.problems.iter().map(|problem| WarningView {
        name: problem.name.clone(),
        severity: "problem".to_owned(),
        message: problem.message.clone(),
        fix: fix(&problem.name).to_owned(),
        since: Some(problem.since.clone()),
    });
    let mut all: Vec<WarningView> = problems.collect();
    let mut add = |name: &str, message: String, fix: &str, since: Option<String>| {
        let severity = "warning".to_owned();
        all.push(WarningView { name: name.to_owned(), severity, message, fix: fix.to_owned(), since });
    };
    if !status.readiness.ready {
        let waiting = status.readiness.waiting_for.join(", ");
        add("not_ready", format!("the node is not ready: it waits for {waiting}"), "", None);
    }
    if status.dry_run {
        let fix = "set ban.dry_run to false and run `banmesh reload`";
        add("dry_run", "this is a dry run: filters ban nobody".to_owned(), fix, None);
    }
    for part in &status.restarted_parts {
        let message =
            format!("{} failed {} and was restarted: {}", part.part, count(part.restarts, "time"), part.reason);
        add(
            "restarted",
            message,
            "see the log of that time, and report it as a bug if it is a panic",
            Some(part.at.clone()),
        );
    }
    if let Some(step) = &status.clock_step {
        let direction = if step.by_seconds < 0 { "back" } else { "forward" };
        let message = format!("the clock was set {direction} by {} s", step.by_seconds.unsigned_abs());
        add("clock_step", message, "check NTP on this host", Some(step.noticed.clone()));
    }
    if status.early_entries > 0 {
        let message = format!("{} with a time ahead of this node's clock", count(status.early_entries as u64, "entry"));
        add("early", message, "check NTP on all nodes", None);
    }
    if status.dropped_entries > 0 {
        let message = format!("dropped {} early to make room", count(status.dropped_entries, "expired ban"));
        add("dropped", message, "raise ban.max_bans, or shorten ban.max_memory_ttl", None);
    }
    if status.refused_entries > 0 {
        let message =
            format!("a limit of the table refused {} of this or other nodes", count(status.refused_entries, "ban"));
        add("refused", message, "see the log, and raise ban.max_bans if the table is full", None);
    }
    let settled = status.uptime_seconds >= SETTLED;
    if settled && status.inputs.lines == 0 {
        let message = if status.inputs.transports.is_empty() {
            "no input is enabled, so this node recognises no attacks itself"
        } else {
            "no log line has arrived since the start, so this node recognises no attacks itself"
        };
        let fix = "send the logs here (docs/inputs.md), and check syslog.allowed_senders and the firewall; `banmesh doctor` checks both";
        add("no_lines", message.to_owned(), fix, Some(status.started.clone()));
    }
    for proxy in status.proxies.iter().filter(|proxy| settled && proxy.checks == 0) {
        let message = match (proxy.name.as_str(), proxy.connections) {
            ("haproxy", 0) => "HAProxy has not connected since the start, so it refuses nobody because of this node",
            ("haproxy", _) => "HAProxy is connected but has asked nothing since the start",
            _ => "no proxy has asked the verdict endpoint since the start, so it refuses nobody because of this node",
        };
        let fix = match proxy.name.as_str() {
            "haproxy" => {
                "run `banmesh haproxy check`, and see docs/haproxy.md; without HAProxy on this host, set spoa.enabled to false"
            }
            _ => "run `banmesh nginx check`, or `traefik`, `caddy` or `envoy` instead of `nginx`",
        };
        add("unasked_proxy", message.to_owned(), fix, Some(status.started.clone()));
    }
    all
}

/// What to do about a problem, beyond what its message says.
fn fix(problem: &str) -> &'static str {
    match problem {
        "journal" => "free or repair the disk; see docs/operations.md, A node starts without its journal",
        "table" => "raise ban.max_bans and the memory limit; see docs/operations.md, The table is full",
        "breadth" => "see docs/operations.md, A large share of IPv4 is banned",
        "overload" => "see docs/operations.md, A flood of syslog",
        "no_address" => "run `banmesh haproxy check`",
        "late_lines" => "see docs/inputs.md, lines that arrive late",
        "files" => "check the permissions of the files; see docs/inputs.md, Files",
        "allowlist_names" => "correct the name, or the DNS of this host",
        "alone" | "lost" | "udp" | "disagreement" => {
            "run `banmesh cluster status` on both sides, and allow UDP and TCP between them"
        }
        "site" => "see docs/cluster.md, Sites",
        "key" => "see docs/cluster.md, Keys",
        "clock" => "run NTP on all nodes",
        "duplicate" => "give every node its own node.id; see docs/operations.md, Two nodes share an id",
        "place" => "see docs/enforcement.md, When it does not work",
        "unasked" | "unreadable" => "see docs/enforcement.md, When mail servers do not ask",
        "no_client" => "run `banmesh nginx check`, or `traefik`, `caddy` or `envoy` instead of `nginx`",
        _ => "see docs/operations.md, Problems",
    }
}
