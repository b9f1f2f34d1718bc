//! What the facts about a node mean, and what to do about it. No I/O.

use super::check::{Check, Code};
use crate::cli::people::{ago, count, number, span};
use crate::operation::api::views::{ClusterView, MemberState, NodeView, PlaceView, ProxyView, StatusView, WhyView};

/// How long without a line is worth a warning, in seconds.
const QUIET: u64 = 3600;
/// The free share of a file system below which a node warns, in percent.
const LITTLE_SPACE: u64 = 5;

/// What the status of a node means. `own` is the version of this program.
pub fn of_status(status: &StatusView, own: &str) -> Vec<Check> {
    let mut all = Vec::new();
    let running = format!("{} runs version {} for {}", status.shown(), status.version, span(status.uptime_seconds));
    all.push(if status.version == own {
        Check::ok(Code::Version, running)
    } else {
        let todo = format!("this program is version {own}; restart the node after an upgrade");
        Check::warning(Code::Version, running, todo)
    });
    for warning in &status.warnings {
        let check = if warning.severity == "problem" { Check::problem } else { Check::warning };
        all.push(check(Code::Warnings, format!("{}: {}", warning.name, warning.message), warning.fix.clone()));
    }
    all.extend(inputs(status));
    all.extend(filters(status));
    all.extend(status.proxies.iter().map(proxy));
    all.extend(status.places.iter().map(place));
    if status.proxies.is_empty() && status.places.is_empty() {
        let todo = "enable spoa, verdict, haproxy, firewall, crowdsec or lists: see docs/enforcement.md";
        let message = "bans hold nowhere: no proxy asks, and no place follows the table";
        all.push(Check::problem(Code::Enforcement, message, todo));
    }
    all.extend(nodes(&status.nodes));
    all.push(match (&status.disk.error, status.disk.unsaved) {
        (None, 0) => Check::ok(Code::Saved, "all changes are on the disk"),
        (error, unsaved) => {
            let because = error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            let todo = "free or repair the disk of node.data_dir, and do not stop the node before";
            Check::problem(Code::Saved, format!("{} not on the disk{because}", count(unsaved, "change")), todo)
        }
    });
    all
}

fn inputs(status: &StatusView) -> Vec<Check> {
    let inputs = &status.inputs;
    let mut all = Vec::new();
    all.push(match (inputs.lines, inputs.last_age_seconds) {
        (0, _) => {
            let todo = "log a failed login as docs/inputs.md (Is it working?) says; if nothing arrives, send it directly: \
                        `logger --server 127.0.0.1 --port 514 --udp --tag dovecot …`";
            Check::warning(Code::Lines, "no log line has arrived yet", todo)
        }
        (lines, Some(age)) if age > QUIET => {
            let message = format!("{}, the last one {}", count(lines, "line"), ago(age));
            let todo = "check that the log daemon still runs and still sends to this node";
            Check::warning(Code::Lines, message, todo)
        }
        (lines, age) => {
            let message = format!("{}, the last one {}", count(lines, "line"), ago(age.unwrap_or_default()));
            Check::ok(Code::Lines, message)
        }
    });
    for transport in &inputs.transports {
        for dropped in transport.dropped.iter().filter(|dropped| dropped.reason != "empty") {
            let message =
                format!("{} dropped over {} ({})", number(dropped.count), transport.transport, dropped.reason);
            all.push(Check::warning(Code::Dropped, message, dropped.meaning.clone()));
        }
    }
    for (lost, message, todo) in [
        (
            inputs.offences_dropped,
            "not counted because too many were waiting",
            "restrict syslog.allowed_senders; see docs/operations.md, A flood of syslog",
        ),
        (
            inputs.offences_late,
            "not counted because their lines arrived too late",
            "see docs/inputs.md, Lines that arrive late",
        ),
    ] {
        if lost > 0 {
            all.push(Check::warning(Code::Counted, format!("{} {message}", count(lost, "offence")), todo));
        }
    }
    all
}

fn filters(status: &StatusView) -> Vec<Check> {
    let mut all = Vec::new();
    if status.filters.is_empty() {
        let todo = "name your services in filters.enabled: `banmesh filter list`";
        all.push(Check::problem(Code::Filters, "no filter is in force", todo));
    }
    if status.inputs.lines > 0 && status.inputs.matched == 0 {
        let message = format!("no filter recognised any of {}", count(status.inputs.lines, "line"));
        let todo =
            "`banmesh filter test --line '…' --explain` shows which rule a line matches, or where each rule stops";
        all.push(Check::warning(Code::Recognised, message, todo));
    }
    for filter in status.filters.iter().filter(|filter| filter.shadow_bans > 0) {
        let message = format!("{} would have made {} in shadow mode", filter.name, count(filter.shadow_bans, "ban"));
        let todo = "look for `would ban (mode: shadow)` in the log; when you trust the filter, remove `mode: shadow`";
        all.push(Check::warning(Code::Shadow, message, todo));
    }
    all
}

fn proxy(proxy: &ProxyView) -> Check {
    let (subject, check) = match proxy.name.as_str() {
        "haproxy" => ("HAProxy", "run `banmesh haproxy check`; see docs/haproxy.md, Troubleshooting by symptom"),
        _ => (
            "the verdict endpoint's proxy",
            "run `banmesh nginx check`, or `traefik`, `caddy` or `envoy` instead of `nginx`",
        ),
    };
    let queries = if proxy.checks == 1 { "query" } else { "queries" };
    let last = ago(proxy.last_age_seconds.unwrap_or_default());
    let asked = format!("{subject}: {} {queries} answered, the last one {last}", number(proxy.checks));
    if proxy.checks == 0 {
        let connected = if proxy.connections == 0 { "is not connected and" } else { "is connected but" };
        return Check::warning(Code::Proxies, format!("{subject} {connected} has asked nothing"), check);
    }
    if proxy.without_address > 0 {
        let message =
            format!("{asked}; {} had no usable address, so these clients pass", number(proxy.without_address));
        return Check::warning(Code::Proxies, message, check);
    }
    if proxy.unanswered > 0 {
        let message = format!("{asked}; {} cut off with queries unanswered", count(proxy.unanswered, "connection"));
        let todo = "see the log for the address; something else than your proxy may connect: see docs/operations.md, HAProxy's frames or connections are refused";
        return Check::warning(Code::Proxies, message, todo);
    }
    Check::ok(Code::Proxies, asked)
}

/// More connections than `spoa.max_clients` mean that HAProxy opens one per query.
pub fn of_connections(status: &StatusView, max_clients: u64) -> Option<Check> {
    let haproxy = status.proxies.iter().find(|proxy| proxy.name == "haproxy")?;
    (haproxy.connections > max_clients).then(|| {
        let message =
            format!("HAProxy has {} open, more than spoa.max_clients", count(haproxy.connections, "connection"));
        Check::warning(
            Code::Connections,
            message,
            "`mode spop` in the agents' backend (HAProxy 3.1 or later), as in `banmesh haproxy config`",
        )
    })
}

fn place(place: &PlaceView) -> Check {
    let PlaceView { name, state, entries, stale_seconds, error, .. } = place;
    if let Some(error) = error {
        return Check::problem(
            Code::Places,
            format!("{name}: {error}"),
            "see docs/enforcement.md, When it does not work",
        );
    }
    match state.as_str() {
        "current" | "polling" => Check::ok(Code::Places, format!("{name} has {}", count(*entries, "entry"))),
        _ if *stale_seconds < 60 => Check::ok(Code::Places, format!("{name} is being filled")),
        _ => Check::warning(
            Code::Places,
            format!("{name} has not had all bans for {}", span(*stale_seconds)),
            "if this node waits for the bans of other nodes: `banmesh cluster status`",
        ),
    }
}

fn nodes(nodes: &[NodeView]) -> Vec<Check> {
    let others: Vec<&NodeView> = nodes.iter().filter(|node| !node.this_node && !node.left).collect();
    let mut all = Vec::new();
    for node in &others {
        if node.state == MemberState::Dead {
            let message = format!("{} is lost for {}", node.shown(), span(node.silent_seconds.unwrap_or_default()));
            let todo = "start it, or let UDP and TCP on the cluster's port through in both directions: `banmesh cluster status`";
            all.push(Check::problem(Code::Peers, message, todo));
        } else if node.agrees == Some(false) {
            let message = format!("{} has another ban table", node.shown());
            let todo = "if it lasts for a minute: docs/operations.md, Half the nodes disagree";
            all.push(Check::warning(Code::Peers, message, todo));
        }
        let problems = node.report.iter().flat_map(|report| &report.problems).cloned().collect::<Vec<_>>().join(", ");
        if !problems.is_empty() {
            let todo = format!("run `banmesh doctor` on {}", node.shown());
            all.push(Check::warning(Code::Peers, format!("{} has problems: {problems}", node.shown()), todo));
        }
    }
    if all.is_empty() && !others.is_empty() {
        let alive = count(others.len() as u64 + 1, "node");
        all.push(Check::ok(Code::Peers, format!("{alive} alive, with the same table")));
    }
    all
}

/// Members that cannot exchange bans with this node.
pub fn of_cluster(cluster: &ClusterView) -> Vec<Check> {
    let strange = cluster.members.iter().filter(|member| member.shares_wire_version == Some(false));
    strange
        .map(|member| {
            let version = member.version.as_deref().unwrap_or("unknown");
            let message =
                format!("{} (version {version}) has no wire version in common, so no ban replicates to it", member.id);
            Check::problem(Code::WireVersions, message, "upgrade the node with the older build: docs/upgrade.md")
        })
        .collect()
}

/// A sender of log lines that is banned. Then the logs most likely name the proxy instead of the client.
pub fn of_sender(sender: &str, why: &WhyView) -> Option<Check> {
    why.banned.then(|| {
        let message = format!("{sender}, which sends log lines to this node, is banned");
        let todo = format!(
            "`banmesh why {sender}`; if the lines name your proxy instead of the client, let the service log the real client \
             (docs/haproxy.md, Troubleshooting by symptom), and allow your own hosts"
        );
        Check::problem(Code::Senders, message, todo)
    })
}

/// Whether a log daemon's configuration, given as paths with texts, sends to one of `ports` of this node.
pub fn of_log_daemon(files: &[(String, String)], ports: &[u16]) -> Check {
    let sends = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let text: String = lines.collect::<Vec<_>>().join("\n");
        let forwards = ["omfwd", "@", "network(", "udp(", "tcp(", "syslog("].iter().any(|word| text.contains(word));
        let to = |port: &u16| {
            text.match_indices(&port.to_string()).any(|(at, found)| {
                let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
                let bytes = text.as_bytes();
                !is_digit(at.checked_sub(1).and_then(|at| bytes.get(at))) && !is_digit(bytes.get(at + found.len()))
            })
        };
        // Without a port, it is 514.
        forwards && (ports.iter().any(to) || (ports.contains(&514) && !text.contains("port")))
    };
    if let Some((path, _)) = files.iter().find(|(_, text)| sends(text)) {
        return Check::ok(Code::LogDaemon, format!("{path} sends to a port of this node"));
    }
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
    Check::warning(
        Code::LogDaemon,
        format!("no file of this host's log daemon sends to port {ports}"),
        "write /etc/rsyslog.d/60-banmesh.conf as in docs/inputs.md, and restart rsyslog",
    )
}

/// Whether a connection to the agent's port succeeded.
pub fn of_agent_port(address: &str, error: Option<&str>) -> Check {
    match error {
        None => Check::ok(Code::AgentPort, format!("{address} accepts connections")),
        Some(error) => Check::problem(
            Code::AgentPort,
            format!("the agent does not accept connections at {address}: {error}"),
            "compare spoa.address and spoa.port with the running node: `banmesh check --print | grep ^spoa`, then restart it",
        ),
    }
}

/// Whether this process may change the firewall, for `firewall.enabled`.
pub fn of_firewall(error: Option<&str>) -> Check {
    match error {
        None => Check::ok(Code::Firewall, "the table of bans is in the kernel's firewall"),
        Some(error) => Check::problem(Code::Firewall, error, "see docs/enforcement.md, When it does not work"),
    }
}

/// What the free space of the file system of `path` means.
pub fn of_space(path: &str, free: u64, all: u64) -> Check {
    let share = free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let message = format!("{share} % of the file system of {path} are free");
    if share < LITTLE_SPACE {
        Check::warning(Code::Space, message, "free some, before the journal cannot be written")
    } else {
        Check::ok(Code::Space, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::check::Outcome;

    fn status() -> StatusView {
        serde_json::from_value(serde_json::json!({
            "node": "edge-1", "version": "0.1.0", "pid": 1, "started": "2027-01-15T08:00:00Z", "uptime_seconds": 378,
            "readiness": {"ready": true, "waiting_for": []}, "active_bans": 1, "entries": 1, "early_entries": 0,
            "table_bytes": 1, "digest": "0", "dry_run": false, "cluster": "ready", "members": 2,
            "filters": [{"name": "sshd", "mode": "normal", "rules": 1, "lines": 1, "offences": 1, "successes": 0, "bans": 0}],
            "inputs": {"lines": 5, "last_age_seconds": 2, "matched": 1, "dropped": 0, "offences_dropped": 0, "offences_late": 0,
                       "transports": [{"transport": "udp", "lines": 5, "dropped": []}], "senders": [], "senders_known": 0,
                       "unlisted_lines": 0},
            "proxies": [{"name": "haproxy", "connections": 1, "checks": 7, "refused": 1, "checks_per_second": 0.5,
                         "without_address": 0, "unanswered": 0, "last_age_seconds": 1}],
            "nodes": [{"id": "edge-1", "this_node": true, "state": "ready", "left": false},
                      {"id": "edge-2", "this_node": false, "state": "ready", "left": false, "agrees": true}],
        }))
        .unwrap()
    }

    fn found(status: &StatusView) -> Vec<(Outcome, String)> {
        let bad = of_status(status, "0.1.0").into_iter().filter(|check| check.outcome > Outcome::Ok);
        bad.map(|check| (check.outcome, format!("{}: {} → {}", check.subject, check.message, check.todo))).collect()
    }

    fn place(state: &str, stale_seconds: u64, error: Option<&str>) -> PlaceView {
        let (name, state, error) = ("haproxy /run/x".to_owned(), state.to_owned(), error.map(str::to_owned));
        PlaceView { name, state, entries: 1, waiting: 0, lag_ms: 0, stale_seconds, error }
    }

    #[test]
    fn a_node_that_works_has_nothing_to_do() {
        assert_eq!(found(&status()), []);
        let messages: Vec<String> = of_status(&status(), "0.1.0").into_iter().map(|check| check.message).collect();
        assert!(messages.contains(&"5 lines, the last one 2 s ago".to_owned()), "{messages:?}");
    }

    #[test]
    fn each_fault_is_found_with_what_to_do() {
        type Break = fn(&mut StatusView);
        let faults: [(Break, Outcome, &str); 15] = [
            (|status| status.version = "0.0.9".into(), Outcome::Warning, "restart the node"),
            (|status| status.filters.clear(), Outcome::Problem, "filters.enabled"),
            (|status| status.inputs.lines = 0, Outcome::Warning, "logger"),
            (|status| status.inputs.last_age_seconds = Some(9000), Outcome::Warning, "2 h ago"),
            (|status| status.inputs.matched = 0, Outcome::Warning, "filter test"),
            (|status| status.inputs.offences_late = 3, Outcome::Warning, "3 offences"),
            (|status| status.proxies[0].checks = 0, Outcome::Warning, "haproxy check"),
            (|status| status.proxies[0].without_address = 2, Outcome::Warning, "no usable address"),
            (|status| status.nodes[1].state = MemberState::Dead, Outcome::Problem, "edge-2 is lost"),
            (|status| status.nodes[1].agrees = Some(false), Outcome::Warning, "another ban table"),
            (|status| status.disk.unsaved = 1, Outcome::Problem, "1 change not on the disk"),
            (|status| status.filters[0].shadow_bans = 2, Outcome::Warning, "2 bans in shadow mode"),
            (|status| status.places = vec![place("failing", 9, Some("no such map"))], Outcome::Problem, "no such map"),
            (|status| status.places = vec![place("filling", 90, None)], Outcome::Warning, "all bans for 1 min"),
            (|status| (status.proxies, status.places) = Default::default(), Outcome::Problem, "hold nowhere"),
        ];
        for (fault, outcome, part) in faults {
            let mut broken = status();
            fault(&mut broken);
            let found = found(&broken);
            assert!(found.iter().any(|(how, text)| *how == outcome && text.contains(part)), "{part}: {found:?}");
        }
    }

    #[test]
    fn little_space_is_a_warning() {
        assert_eq!(of_space("/var", 4, 100).outcome, Outcome::Warning);
        assert_eq!(of_space("/var", 50, 100).outcome, Outcome::Ok);
        assert_eq!(of_space("/var", 0, 0).outcome, Outcome::Ok);
    }

    #[test]
    fn hosts_that_send_lines_and_are_banned_are_a_problem() {
        let why = |banned: bool| -> WhyView {
            serde_json::from_value(serde_json::json!({
                "address": "192.0.2.5", "node": "edge-1", "banned": banned, "until": null, "by_target": null,
                "allowlisted_by": null, "allowlisted_in": null, "dry_run": false, "entries": [], "attempts": [], "echoes": 0,
                "members": [], "history": {"node": "edge-1", "elsewhere": [], "offences": [], "decisions": []},
            }))
            .unwrap()
        };
        assert_eq!(of_sender("192.0.2.5", &why(true)).map(|check| check.outcome), Some(Outcome::Problem));
        assert_eq!(of_sender("192.0.2.5", &why(false)), None);
    }

    #[test]
    fn a_log_daemon_sends_if_a_line_that_is_no_comment_says_so() {
        let outcome = |text: &str| of_log_daemon(&[("rsyslog.conf".to_owned(), text.to_owned())], &[514]).outcome;
        for sends in [
            "action(type=\"omfwd\" target=\"127.0.0.1\" port=\"514\" protocol=\"udp\")",
            "*.* @192.0.2.11",
            "*.* @@edge:514",
        ] {
            assert_eq!(outcome(sends), Outcome::Ok, "{sends}");
        }
        for silent in
            ["", "# *.* @edge:514", "action(type=\"omfwd\" target=\"x\" port=\"5140\")", "mail.* /var/log/mail.log"]
        {
            assert_eq!(outcome(silent), Outcome::Warning, "{silent}");
        }
    }

    #[test]
    fn a_port_that_refuses_and_a_firewall_without_the_table_are_problems() {
        assert_eq!(of_agent_port("127.0.0.1:12345", Some("Connection refused")).outcome, Outcome::Problem);
        assert_eq!(of_agent_port("127.0.0.1:12345", None).outcome, Outcome::Ok);
        assert_eq!(of_firewall(Some("it needs CAP_NET_ADMIN")).outcome, Outcome::Problem);
        assert_eq!(of_firewall(None).outcome, Outcome::Ok);
    }

    #[test]
    fn members_without_a_common_wire_version_are_a_problem() {
        let member = |id: &str, shares: Option<bool>| {
            serde_json::json!({
                "id": id, "address": "192.0.2.1:1", "this_node": false, "state": "ready", "version": "0.0.1", "wire_version": 1,
                "shares_wire_version": shares, "heartbeat_age_ms": 1, "clock_offset_ms": 0, "lag_ms": 1, "agrees": true,
                "entries": 0, "last_repair_age_seconds": 1, "key": null,
            })
        };
        let cluster: ClusterView = serde_json::from_value(serde_json::json!({
            "state": "ready", "name": "x", "encrypted": true, "keys": [], "wire_version": 2,
            "members": [member("edge-1", None), member("edge-2", Some(true)), member("edge-3", Some(false))],
        }))
        .unwrap();
        let found = of_cluster(&cluster);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("edge-3 (version 0.0.1)"), "{}", found[0].message);
    }

    #[test]
    fn more_connections_than_clients_are_a_warning() {
        assert_eq!(of_connections(&status(), 100), None);
        let mut many = status();
        many.proxies[0].connections = 500;
        assert_eq!(of_connections(&many, 100).map(|check| check.outcome), Some(Outcome::Warning));
    }
}
