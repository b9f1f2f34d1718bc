//! `banmesh haproxy check` reports every trap at its line, and nothing else.

mod anything;
mod command;
#[path = "../../haproxy_traps/mod.rs"]
mod haproxy_traps;
mod shipped;

use std::collections::BTreeMap;

use banmesh_haproxy::document::{Dialect, Source, parse};
use banmesh_haproxy::proxies::Configuration;
use banmesh_haproxy::spoe::SpoeFile;
use banmesh_haproxy::{Finding, Node, Severity, Version, check};
use haproxy_traps::{CFG, SPOE, TRAPS, spring};

const VERSIONS: [Version; 4] = [Version::OLDEST, Version::new(3, 0), Version::new(3, 2), Version::NEWEST];

fn node() -> Node {
    Node {
        agent: "127.0.0.1:12345".parse().unwrap(),
        enabled: true,
        origin: Some("config.yaml:3".to_owned()),
        bans_table: None,
        report_tables: Vec::new(),
        longest_ban: None,
    }
}

/// The findings in two files, of which the first is `haproxy.cfg`.
fn find(cfg: &str, spoe: &str, version: Version, node: &Node) -> Vec<Finding> {
    let mut environment = BTreeMap::new();
    let source = |name: &str, text: &str| Source { name: name.into(), text: text.to_owned() };
    let document = parse(&source("haproxy.cfg", cfg), Dialect::HaProxy, version, &mut environment);
    let configuration = Configuration::new(vec![document]);
    let spoe = parse(&source("spoe.conf", spoe), Dialect::Spoe, version, &mut environment);
    let files = BTreeMap::from([
        ("@spoe@".to_owned(), SpoeFile::Read(spoe)),
        ("/nowhere/else.conf".to_owned(), SpoeFile::Missing("/nowhere/else.conf".into(), "not there".to_owned())),
    ]);
    check(&configuration, &files, version, node)
}

fn shown(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|f| format!("{}: {} {}: {}", f.place, f.severity, f.code, f.problem));
    lines.collect::<Vec<_>>().join("\n")
}

/// The findings that are more than information.
fn wrong(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| !finding.code.starts_with("fail-")).collect()
}

#[test]
fn a_correct_configuration_has_no_finding() {
    for version in VERSIONS {
        let findings = find(CFG, SPOE, version, &node());
        assert!(wrong(&findings).is_empty(), "{version}:\n{}", shown(&findings));
    }
}

#[test]
fn every_trap_is_reported_at_its_line_only() {
    let mut missed = Vec::new();
    for trap in TRAPS {
        let (cfg, spoe, line) = spring(trap);
        let file = if trap.file == haproxy_traps::File::Cfg { "haproxy.cfg" } else { "spoe.conf" };
        let version = match trap.haproxy {
            haproxy_traps::HaProxy::RefusesFrom(major, minor) if trap.severity == "error" => Version::new(major, minor),
            _ => Version::new(3, 2),
        };
        let findings = find(&cfg, &spoe, version, &node());
        let seen = findings.iter().any(|found| {
            found.code == trap.code
                && found.severity.to_string() == trap.severity
                && (&*found.place.file, found.place.line) == (file, line)
                && !found.fix.is_empty()
        });
        let certain = trap.haproxy != haproxy_traps::HaProxy::Refuses || trap.severity == "error";
        assert!(certain, "{}: what HAProxy refuses is an error", trap.code);
        if !seen {
            missed.push(format!("{} ({}) at {file}:{line} in\n{}\n", trap.code, trap.to, shown(&findings)));
        }
    }
    assert!(missed.is_empty(), "{} of {} traps are missed:\n{}", missed.len(), TRAPS.len(), missed.join("\n"));
}

/// A backend in mode tcp is a trap from 3.1 on, and only before the frontend; mode spop is a trap before 3.1.
#[test]
fn the_mode_of_the_agents_is_checked_by_version_and_location() {
    let block = ".if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n";
    let (start, end) = (CFG.find("backend agents").unwrap(), CFG.find("frontend stats").unwrap());
    let backend = CFG[start..end].replace(block, "    mode tcp\n");
    let before = CFG[..start].replace("backend ip-reputation-cache", &format!("{backend}backend ip-reputation-cache"));
    let before = format!("{before}{}", &CFG[end..]);
    let codes = |cfg: &str, version| {
        let findings = find(cfg, SPOE, version, &node());
        wrong(&findings).iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(&before, Version::new(3, 2)), ["tcp-mode"]);
    assert_eq!(codes(&before, Version::new(3, 0)), [""; 0]);
    assert_eq!(codes(&CFG.replace(block, "    mode tcp\n"), Version::new(3, 2)), [""; 0]);
    assert_eq!(codes(&CFG.replace(block, "    mode spop\n"), Version::new(3, 2)), [""; 0]);
    assert_eq!(codes(&CFG.replace(block, "    mode spop\n"), Version::new(3, 0)), ["agent-mode"]);
}

/// An agent that is queried only by rules.
#[test]
fn an_agent_without_events_needs_a_rule_that_queries_it_first() {
    let spoe = SPOE
        .replace("    messages check-ip\n    groups again", "    groups again")
        .replace("spoe-message check-ip\n    args src_ip=src\n    event on-client-session\n", "");
    let again = "    http-request send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n";
    let ask = "    http-request send-spoe-group ip-reputation again\n";
    let deny = "    http-request deny deny_status 403 if { var(txn.ip.banned) -m int eq 1 }\n";
    let errors = |cfg: &str| -> Vec<(&str, usize)> {
        let findings = find(cfg, &spoe, Version::NEWEST, &node());
        findings.iter().filter(|f| f.severity == Severity::Error).map(|f| (f.code, f.place.line)).collect()
    };
    // Only the rule of the second try queries, and the TCP frontend is unchanged.
    let good = CFG.replace(again, ask);
    assert_eq!(errors(&good), []);
    let line = |cfg: &str, text: &str| cfg[..cfg.find(text).unwrap()].lines().count() + 1;
    let late = good.replace(&format!("{ask}{deny}"), &format!("{deny}{ask}"));
    assert_eq!(errors(&late), [("asked-too-late", line(&late, deny))]);
    let never = CFG.replace(again, "");
    assert_eq!(errors(&never), [("never-asked", line(&never, "    filter spoe"))]);
}

#[test]
fn the_agents_are_compared_with_this_node() {
    let codes = |address: &str, enabled: bool, origin: Option<&str>| {
        let node = Node {
            agent: address.parse().unwrap(),
            enabled,
            origin: origin.map(str::to_owned),
            bans_table: None,
            report_tables: Vec::new(),
            longest_ban: None,
        };
        let findings = find(CFG, SPOE, Version::NEWEST, &node);
        wrong(&findings).iter().map(|f| (f.code, f.severity)).collect::<Vec<_>>()
    };
    for good in ["0.0.0.0:12345", "127.0.0.1:12345", "[::]:12345", "127.0.0.1:12346"] {
        assert_eq!(codes(good, true, Some("c:1")), [], "{good}");
    }
    assert_eq!(codes("127.0.0.1:9999", true, Some("c:1")), [("other-port", Severity::Warning)]);
    assert_eq!(codes("192.0.2.1:12345", true, Some("c:1")), [("other-port", Severity::Warning)]);
    assert_eq!(codes("0.0.0.0:9999", true, None), [("other-port", Severity::Note)]);
    assert_eq!(codes("0.0.0.0:12345", false, Some("c:1")), [("agent-off", Severity::Warning)]);
}

/// Up to 3.0, HAProxy keeps using open connections to a server that is down.
#[test]
fn a_hanging_agent_requires_that_its_connections_are_closed() {
    let codes = |cfg: &str, version| {
        let findings = find(cfg, SPOE, version, &node());
        wrong(&findings).iter().map(|finding| (finding.code, finding.place.line)).collect::<Vec<_>>()
    };
    let kept = CFG.replace(" on-marked-down shutdown-sessions", "");
    let line = kept[..kept.find("    server primary").unwrap()].lines().count() + 1;
    assert_eq!(codes(&kept, Version::new(3, 0)), [("hung-agent", line)]);
    assert_eq!(codes(&kept, Version::new(3, 2)), []);
    let alone = kept.replace("    server second 127.0.0.1:12346 backup\n", "");
    assert_eq!(codes(&alone, Version::new(3, 0)), [], "there is no other to go to");
}

/// A rule that queries must come after the rule that changes the address.
#[test]
fn the_rule_that_queries_must_follow_the_one_that_sets_the_address() {
    let spoe = SPOE
        .replace("    messages check-ip\n    groups again", "    groups again")
        .replace("spoe-message check-ip\n    args src_ip=src\n    event on-client-session\n", "");
    let again = "    http-request send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n";
    let (ask, set) = (
        "    http-request send-spoe-group ip-reputation again\n",
        "    http-request set-src req.hdr_ip(x-forwarded-for,-1) if { src 192.0.2.1 }\n",
    );
    let found = |rules: &str| {
        let cfg = CFG.replace(again, rules);
        let findings = find(&cfg, &spoe, Version::NEWEST, &node());
        let late = findings.iter().find(|found| found.code == "set-src-too-late").cloned();
        late.map(|found| (found.place.line, found.fix))
    };
    let line = CFG[..CFG.find(again).unwrap()].lines().count() + 1;
    assert_eq!(found(&format!("{set}{ask}{again}")), None);
    assert_eq!(found(&format!("{ask}{set}")), Some((line + 1, format!("move it before line {line}"))));
    assert!(found(&format!("{ask}{set}{again}")).is_some(), "the second try does not ask anew");
    assert_eq!(found(&format!("{ask}{set}{ask}")), None);
    // Rules for the response run later.
    let reports = SPOE.replace(
        "spoe-message check-ip\n    args src_ip=src\n    event on-client-session",
        "spoe-message check-ip\n    args src_ip=src\n    event on-http-response",
    );
    let findings = find(&CFG.replace(again, set), &reports, Version::NEWEST, &node());
    assert!(!findings.iter().any(|found| found.code == "set-src-too-late"), "{}", shown(&findings));
}

/// A byte order mark, as some editors write it, is an error; CRLF is accepted by HAProxy.
#[test]
fn files_with_other_line_ends_are_read() {
    let findings = find(&format!("\u{feff}{CFG}"), SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings).iter().map(|f| (f.code, f.place.line)).collect::<Vec<_>>(), [("unreadable-line", 1)]);
    let findings = find(&CFG.replace('\n', "\r\n"), &SPOE.replace('\n', "\r\n"), Version::NEWEST, &node());
    assert_eq!(wrong(&findings), [] as [&Finding; 0]);
}

/// Agents of other programs, as shipped, including those on the common port. The only findings are that they are not banmesh, and
/// those for any agent.
#[test]
fn agents_of_other_programs_are_not_taken_for_banmesh() {
    for (messages, reads, port) in [
        // A web application firewall, queried by a rule.
        ("    groups check\nGROUP", "http-request deny if { var(txn.their.action) -m str deny }", 9000),
        // The same on port 12345, queried at an event.
        ("    messages check\n", "http-request deny if { var(txn.their.code) -m int gt 0 }", 12345),
        // A score for an address, as in HAProxy's own example.
        ("    messages score\n", "tcp-request content reject if { var(sess.their.ip_score) -m int lt 20 }", 12345),
        // Copies of requests, without an answer.
        ("    messages check\n", "http-request capture var(txn.their.took) len 20", 12345),
    ] {
        let (messages, group) = messages
            .split_once("GROUP")
            .map_or((messages, ""), |(messages, _)| (messages, "    http-request send-spoe-group their check\n"));
        let event = if group.is_empty() { "    event on-frontend-http-request\n" } else { "" };
        let cfg = format!(
            "defaults\n    mode http\n    timeout connect 5s\n    timeout client 50s\n    timeout server 50s\nfrontend web\n    \
             bind :80\n    filter spoe engine their config @spoe@\n{group}    {reads}\n    default_backend w\nbackend w\n    \
             server a 127.0.0.1:1\nbackend agents\n    mode tcp\n    option spop-check\n    timeout connect 100ms\n    \
             server x 127.0.0.1:{port} check\n"
        );
        let spoe = format!(
            "[their]\nspoe-agent their-agent\n{messages}    option var-prefix their\n    option set-process-time took\n    \
             timeout hello 2s\n    timeout idle 2m\n    timeout processing 500ms\n    use-backend agents\n    log global\n\
             spoe-message check\n    args app=str(x) method=method path=path headers=req.hdrs body=req.body\n{event}\
             spoe-message score\n    args ip=src\n    event on-client-session\nspoe-group check\n    messages check\n"
        );
        for version in VERSIONS {
            let findings = find(&cfg, &spoe, version, &node());
            let codes: Vec<_> = findings.iter().filter(|f| f.severity < Severity::Note).map(|f| f.code).collect();
            assert_eq!(codes, ["no-filter"], "{version}\n{cfg}{spoe}\n{}", shown(&findings));
        }
    }
}

/// The backend is in the configuration but the filter is not, as in the middle of the guide.
#[test]
fn an_incomplete_setup_is_reported_once() {
    let cfg = format!("{}{}", "defaults\n    timeout connect 5s\n", &CFG[CFG.find("backend agents").unwrap()..]);
    let findings = find(&cfg, SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings).iter().map(|f| f.code).collect::<Vec<_>>(), ["no-filter"], "{}", shown(&findings));
    // Two unused backends are two findings.
    let two = format!("{cfg}backend spoe-second\n    server a 127.0.0.1:12346 check\n");
    let findings = find(&two, SPOE, Version::NEWEST, &node());
    assert_eq!(findings.iter().filter(|f| f.code == "unused-backend").count(), 2, "{}", shown(&findings));
}

/// Other agents set other variables from other arguments, and are not checked.
#[test]
fn another_agent_in_addition_to_banmesh_has_no_finding() {
    let cfg = CFG.replacen(
        "    filter spoe engine ip-reputation config @spoe@\n",
        "    filter spoe engine waf config @spoe@\n    filter spoe engine ip-reputation config @spoe@\n    \
         http-request deny if { var(txn.waf.action) -m str deny }\n",
        1,
    ) + "backend waf\n    mode tcp\n    option spop-check\n    timeout connect 1s\n    timeout server 1m\n    \
         server waf 127.0.0.1:9000 check fastinter 100ms observe layer4\n";
    let spoe = format!(
        "{SPOE}[waf]\nspoe-agent waf\n    messages req\n    option var-prefix waf\n    option set-on-error error\n    \
         timeout hello 100ms\n    timeout idle 1m\n    timeout processing 500ms\n    use-backend waf\n    log global\n\
         spoe-message req\n    args id=unique-id method=method\n    event on-frontend-http-request\n"
    );
    let findings = find(&cfg, &spoe, Version::new(3, 0), &node());
    assert!(wrong(&findings).is_empty(), "{}", shown(&findings));
}

/// As large as ingress controllers generate: a thousand frontends.
#[test]
fn a_large_configuration_is_checked_like_a_small_one() {
    let (start, end) = (CFG.find("frontend web").unwrap(), CFG.find("frontend imap").unwrap());
    let many: String =
        (0..1000).map(|n| CFG[start..end].replace("frontend web", &format!("frontend web{n}"))).collect();
    let findings = find(&format!("{}{many}{}", &CFG[..start], &CFG[end..]), SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings), [] as [&Finding; 0]);
    assert_eq!(findings.len(), 1001, "fail-open, once a frontend");
}

#[test]
fn the_check_knows_the_names_under_which_the_agent_finds_an_address() {
    assert_eq!(banmesh_haproxy::lint::ADDRESS_ARGUMENTS, banmesh_spop::message::ADDRESS_NAMES);
}
