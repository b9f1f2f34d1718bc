//! `banmesh haproxy check`: every trap is seen, at its line, and nothing is seen where there is none.
#![expect(clippy::unwrap_used, reason = "a test")]

mod haproxy_traps;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use banmesh::config::haproxy::document::{Dialect, Source, parse};
use banmesh::config::haproxy::generate::{Plan, Traffic, generate};
use banmesh::config::haproxy::proxies::Configuration;
use banmesh::config::haproxy::spoe::SpoeFile;
use banmesh::config::haproxy::{Finding, Node, Severity, Version, check, load};
use haproxy_traps::{CFG, SPOE, TRAPS, spring};
use proptest::prelude::*;

const VERSIONS: [Version; 4] = [Version::OLDEST, Version::new(3, 0), Version::new(3, 2), Version::NEWEST];

fn node() -> Node {
    Node { agent: "127.0.0.1:12345".parse().unwrap(), enabled: true, origin: Some("config.yaml:3".to_owned()) }
}

/// What is found in two files, of which the first is `haproxy.cfg`.
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
    let lines = findings.iter().map(|f| format!("{}: {} {}: {}", f.place, f.severity, f.code, f.what));
    lines.collect::<Vec<_>>().join("\n")
}

/// The findings that are more than a statement of how it is.
fn wrong(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| !finding.code.starts_with("fail-")).collect()
}

#[test]
fn a_good_configuration_has_no_finding() {
    for version in VERSIONS {
        let findings = find(CFG, SPOE, version, &node());
        assert!(wrong(&findings).is_empty(), "{version}:\n{}", shown(&findings));
    }
}

#[test]
fn every_trap_is_seen_at_its_line_and_no_other_is() {
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
                && !found.cure.is_empty()
        });
        let certain = trap.haproxy != haproxy_traps::HaProxy::Refuses || trap.severity == "error";
        assert!(certain, "{}: what HAProxy refuses is an error", trap.code);
        if !seen {
            missed.push(format!("{} ({}) at {file}:{line} in\n{}\n", trap.code, trap.to, shown(&findings)));
        }
    }
    assert!(missed.is_empty(), "{} of {} traps are missed:\n{}", missed.len(), TRAPS.len(), missed.join("\n"));
}

/// A backend in mode tcp is a trap from 3.1 on, and only where it stands before the frontend; mode spop is one before.
#[test]
fn the_mode_of_the_agents_is_judged_by_version_and_place() {
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

/// An agent that answers only when it is asked.
#[test]
fn an_agent_without_events_must_be_asked_in_time() {
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
    // Only the rule of the second try asks, and the TCP frontend is as it was.
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
        let node = Node { agent: address.parse().unwrap(), enabled, origin: origin.map(str::to_owned) };
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

/// Up to 3.0 HAProxy asks over connections that are open, wherever its servers are.
#[test]
fn an_agent_that_hangs_is_left_alone_only_when_its_connections_are_closed() {
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

/// Where a rule asks, the address must have changed before it.
#[test]
fn a_rule_that_asks_comes_after_the_one_that_changes_the_address() {
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
        late.map(|found| (found.place.line, found.cure))
    };
    let line = CFG[..CFG.find(again).unwrap()].lines().count() + 1;
    assert_eq!(found(&format!("{set}{ask}{again}")), None);
    assert_eq!(found(&format!("{ask}{set}")), Some((line + 1, format!("move it before line {line}"))));
    assert!(found(&format!("{ask}{set}{again}")).is_some(), "the second try does not ask anew");
    assert_eq!(found(&format!("{ask}{set}{ask}")), None);
    // What is told of the response is told later.
    let reports = SPOE.replace(
        "spoe-message check-ip\n    args src_ip=src\n    event on-client-session",
        "spoe-message check-ip\n    args src_ip=src\n    event on-http-response",
    );
    let findings = find(&CFG.replace(again, set), &reports, Version::NEWEST, &node());
    assert!(!findings.iter().any(|found| found.code == "set-src-too-late"), "{}", shown(&findings));
}

/// A byte order mark, as some editors write it, and CRLF, which HAProxy bears.
#[test]
fn files_of_other_systems_are_read() {
    let findings = find(&format!("\u{feff}{CFG}"), SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings).iter().map(|f| (f.code, f.place.line)).collect::<Vec<_>>(), [("unreadable-line", 1)]);
    let findings = find(&CFG.replace('\n', "\r\n"), &SPOE.replace('\n', "\r\n"), Version::NEWEST, &node());
    assert_eq!(wrong(&findings), [] as [&Finding; 0]);
}

/// Agents of others, as they are shipped, also those on the port that is everybody's. That they are not banmesh is all there is to
/// say of them, beside what holds for every agent.
#[test]
fn agents_of_others_are_not_taken_for_banmesh() {
    for (messages, reads, port) in [
        // A web application firewall, asked by a rule.
        ("    groups check\nGROUP", "http-request deny if { var(txn.their.action) -m str deny }", 9000),
        // The same on port 12345, asked at an event.
        ("    messages check\n", "http-request deny if { var(txn.their.code) -m int gt 0 }", 12345),
        // A score for an address, as in HAProxy's own example.
        ("    messages score\n", "tcp-request content reject if { var(sess.their.ip_score) -m int lt 20 }", 12345),
        // Copies of requests, on which nothing depends.
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

/// The backend is in the configuration, the filter not yet: as one is who follows the guide.
#[test]
fn half_of_the_way_is_named_once() {
    let cfg = format!("{}{}", "defaults\n    timeout connect 5s\n", &CFG[CFG.find("backend agents").unwrap()..]);
    let findings = find(&cfg, SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings).iter().map(|f| f.code).collect::<Vec<_>>(), ["no-filter"], "{}", shown(&findings));
    // Of two backends for one purpose it is said at once that there must be one.
    let two = format!("{cfg}backend spoe-second\n    server a 127.0.0.1:12346 check\n");
    let findings = find(&two, SPOE, Version::NEWEST, &node());
    assert_eq!(findings.iter().filter(|f| f.code == "unused-backend").count(), 2, "{}", shown(&findings));
}

/// Other agents set other variables from other arguments; what is not banmesh's is not judged.
#[test]
fn another_agent_beside_banmesh_is_left_alone() {
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

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Everything that the repository ships, with SPOE files beside it.
#[test]
fn what_is_shipped_has_no_finding() {
    let folder = |path: &str, end: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(repository(path)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == end)).collect()
    };
    let spoe = folder("deploy/haproxy", "conf");
    let mut shipped = folder("deploy/haproxy/recipes", "cfg");
    shipped.extend(["deploy/haproxy/haproxy.cfg", "demo/haproxy.cfg"].map(repository));
    assert!(shipped.len() > 10, "{shipped:?}");
    for file in shipped {
        for version in VERSIONS {
            let files = std::slice::from_ref(&file);
            let loaded = load::load(files, &spoe, version, BTreeMap::new()).unwrap();
            let findings = check(&loaded.configuration, &loaded.spoe, version, &node());
            assert!(wrong(&findings).is_empty(), "{} on {version}:\n{}", file.display(), shown(&findings));
        }
    }
}

/// HAProxy can be kept in step over its runtime API instead, and then asks nobody.
#[test]
fn a_map_in_the_place_of_a_filter_is_fine() {
    let rule = "http-request deny if { src,map_ip_int(/etc/haproxy/banmesh.map,0) -m int gt 0 }";
    let cfg = format!("frontend web\n mode http\n bind 127.0.0.1:80\n {rule}\n");
    assert_eq!(wrong(&find(&cfg, "", Version::NEWEST, &node())), [] as [&Finding; 0]);
    let none = cfg.replace(rule, "");
    assert_eq!(wrong(&find(&none, "", Version::NEWEST, &node()))[0].code, "no-filter");
}

/// What banmesh writes, it finds good, whatever was chosen.
#[test]
fn what_is_generated_has_no_finding() {
    let mut made = 0;
    for choice in 0..1_u32 << 8 {
        let on = |bit: u32| choice & (1 << bit) != 0;
        for version in [None, Some(Version::OLDEST), Some(Version::new(3, 0)), Some(Version::NEWEST)] {
            let plan = Plan {
                version,
                traffic: if on(0) { Traffic::Tcp } else { Traffic::Http },
                fail_closed: on(1),
                retry: on(2),
                per_connection: on(3),
                proxy_protocol: on(4),
                trusted_proxies: if on(5) { vec!["10.0.0.0/8".parse().unwrap()] } else { vec![] },
                agent: "127.0.0.1:12345".to_owned(),
                backup: on(6).then(|| "192.0.2.1:12345".to_owned()),
                drain: std::time::Duration::from_millis(if on(7) { 3000 } else { 0 }),
                spoe_path: "@spoe@".to_owned(),
                bind: None,
                server: None,
            };
            let Ok(text) = generate(&plan) else { continue };
            made += 1;
            for version in version.map_or_else(|| VERSIONS.to_vec(), |version| vec![version]) {
                let findings = find(&text.complete, &text.spoe, version, &node());
                assert!(wrong(&findings).is_empty(), "{version} {plan:?}:\n{}\n{}", shown(&findings), text.complete);
                let stated = if plan.fail_closed { "fail-closed" } else { "fail-open" };
                assert!(findings.iter().any(|finding| finding.code == stated), "{plan:?}");
            }
        }
    }
    assert!(made > 400, "{made}");
}

const GUIDE: &str = "\
global
    stats socket /var/run/haproxy/admin.sock mode 660 level admin
defaults
    mode http
    timeout connect 5000ms
    timeout client 50000ms
    timeout server 50000ms
    option httplog
backend spoe-ip-reputation
    mode tcp
    server ip-reputation 127.0.0.1:12345 check inter 5s
frontend http-frontend
    bind *:80
    mode http
    filter spoe engine ip-reputation config @spoe@
    http-request deny if { var(txn.banned) -m int eq 1 }
    http-request set-header X-IP-Status allowed if { var(txn.banned) -m int eq 0 }
    http-request set-header X-IP-Status banned if { var(txn.banned) -m int eq 1 }
frontend imap-frontend
    bind *:143
    mode tcp
    filter spoe engine ip-reputation config @spoe@
    tcp-request content reject if { var(sess.banned) -m int eq 1 }
listen stats
    bind *:8404
    stats enable
    stats uri /stats
    stats admin if TRUE
";

const GUIDE_SPOE: &str = "\
[ip-reputation]
spoe-agent ip-reputation-agent
    messages check-ip
    option var-prefix ip
    option set-on-error banned 0
    timeout hello      5s
    timeout idle       30s
    timeout processing 5s
    use-backend spoe-ip-reputation
    log global
spoe-message check-ip
    args src_ip=src
    event on-client-session if TRUE
";

/// The guide that is copied everywhere, as it is copied.
#[test]
fn the_traps_of_the_common_guide_are_named() {
    let findings = find(GUIDE, GUIDE_SPOE, Version::new(3, 2), &node());
    let seen: Vec<_> = findings
        .iter()
        .filter(|found| found.severity < Severity::Note)
        .map(|found| (&*found.place.file, found.place.line, found.code))
        .collect();
    assert_eq!(
        seen,
        [
            ("haproxy.cfg", 9, "no-spop-check"),
            ("haproxy.cfg", 10, "tcp-mode"),
            ("haproxy.cfg", 16, "never-set"),
            ("haproxy.cfg", 17, "never-set"),
            ("haproxy.cfg", 18, "never-set"),
            ("haproxy.cfg", 18, "dead-rule"),
            ("haproxy.cfg", 23, "never-set"),
            ("haproxy.cfg", 28, "open-admin"),
            ("spoe.conf", 5, "error-as-verdict"),
            ("spoe.conf", 5, "option-argument"),
            ("spoe.conf", 8, "long-processing-timeout"),
        ],
        "{}",
        shown(&findings)
    );
}

/// As large as controllers write them: a thousand frontends.
#[test]
fn a_large_configuration_is_read_as_a_small_one() {
    let (start, end) = (CFG.find("frontend web").unwrap(), CFG.find("frontend imap").unwrap());
    let many: String =
        (0..1000).map(|n| CFG[start..end].replace("frontend web", &format!("frontend web{n}"))).collect();
    let findings = find(&format!("{}{many}{}", &CFG[..start], &CFG[end..]), SPOE, Version::NEWEST, &node());
    assert_eq!(wrong(&findings), [] as [&Finding; 0]);
    assert_eq!(findings.len(), 1001, "fail-open, once a frontend");
}

/// What the guide says of caches and Redis.
#[test]
fn the_traps_of_the_guide_s_caches_are_named() {
    let front = |lines: &str| {
        format!(
            "backend t\n stick-table type ip size 1k store gpc0\nfrontend f\n bind *:80\n mode http\n \
             http-request track-sc0 src table t\n{lines}"
        )
    };
    for (lines, codes) in [
        (
            " http-request set-var(txn.c) sc_get_gpc0(0) if { sc_tracked(0) }\n filter spoe engine ip-reputation config @spoe@ if !{ var(txn.c) -m found }\n",
            vec!["filter-condition", "always-found"],
        ),
        (" http-request deny if { var(txn.c) eq 1 }\n", vec!["no-match-method"]),
        (" http-request sc-set-gpc1(0) int(%[date()]) if TRUE\n", vec!["no-such-action"]),
        (
            " http-request set-var(txn.now) date()\n http-request set-var(txn.age) sub(%[var(txn.now)],%[var(txn.t)])\n \
             http-request set-var(txn.use) bool(1) if { var(txn.age) lt 60000 }\n",
            vec!["converter-as-sample", "no-match-method", "age-in-seconds"],
        ),
        (
            " lua-load /etc/haproxy/redis-cache.lua\n http-request accept if TRUE\n",
            vec!["lua-outside-global", "no-such-action"],
        ),
    ] {
        let findings = find(&front(lines), SPOE, Version::NEWEST, &node());
        for code in codes.iter().chain(&["table-ipv4"]) {
            assert!(findings.iter().any(|found| found.code == *code), "{code} in\n{lines}\n{}", shown(&findings));
        }
    }
}

// --- The command ----------------------------------------------------------------------------------------------------

fn banmesh(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banmesh"));
    command.args(["haproxy"]).args(arguments).current_dir(folder).env("NO_COLOR", "1");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FAIL2BAN_")) {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output: Output = banmesh(folder, arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// A folder with the good configuration, and a configuration of banmesh.
fn site() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("haproxy.cfg"), CFG.replace("@spoe@", "spoe.conf")).unwrap();
    std::fs::write(folder.path().join("spoe.conf"), SPOE).unwrap();
    std::fs::write(folder.path().join("config.yaml"), "spoa:\n  address: 127.0.0.1\n").unwrap();
    folder
}

#[test]
fn the_exit_code_tells_errors_warnings_and_unreadable_files_apart() {
    let folder = site();
    let path = folder.path();
    let check = |arguments: &[&str]| run(path, &[&["check", "--haproxy", "3.2"], arguments].concat());
    let (code, said) = check(&["haproxy.cfg"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("0 errors, 0 warnings, 2 notes (HAProxy 3.2)"), "{said}");

    let cfg = CFG.replace("@spoe@", "spoe.conf");
    std::fs::write(path.join("warned.cfg"), cfg.replace("    option spop-check\n", "")).unwrap();
    assert_eq!(check(&["warned.cfg"]).0, 0);
    assert_eq!(check(&["--strict", "warned.cfg"]).0, 1);

    std::fs::write(path.join("wrong.cfg"), cfg.replace("txn.ip.banned", "txn.banned")).unwrap();
    let (code, said) = check(&["wrong.cfg"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("wrong.cfg:22: error: `txn.banned` is never set"), "{said}");
    assert!(said.contains("cure: var(txn.ip.banned)"), "{said}");

    for unreadable in [
        vec!["missing.cfg"],
        vec!["haproxy.cfg", "--spoe", "missing.conf"],
        vec!["--config", "missing.yaml", "haproxy.cfg"],
    ] {
        assert_eq!(check(&unreadable).0, 2, "{unreadable:?}");
    }
    assert_eq!(run(path, &["check", "--haproxy", "new", "haproxy.cfg"]).0, 2);
}

#[test]
fn json_holds_the_same_as_the_text() {
    let folder = site();
    let (code, said) = run(folder.path(), &["check", "--haproxy", "2.6", "--json", "haproxy.cfg"]);
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &answer["ok"], &answer["haproxy"]), (0, &true.into(), &"2.6".into()));
    let first = &answer["findings"][0];
    assert_eq!((&first["code"], &first["severity"], &first["line"]), (&"fail-open".into(), &"note".into(), &22.into()));
}

#[test]
fn standard_input_directories_and_several_files_are_read() {
    let folder = site();
    let path = folder.path();
    let mut child = banmesh(path, &["check", "--haproxy", "3.0", "-", "--spoe", "spoe.conf"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(CFG.replace("txn.ip.banned", "txn.banned").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("<stdin>:22: error"), "{}", text(&output.stdout));

    // The same configuration over two files of a directory, which HAProxy reads in their order.
    let parts = path.join("parts");
    std::fs::create_dir(&parts).unwrap();
    let cfg = CFG.replace("@spoe@", "spoe.conf");
    let at = cfg.find("backend agents").unwrap();
    std::fs::write(parts.join("10-front.cfg"), &cfg[..at]).unwrap();
    std::fs::write(parts.join("20-agents.cfg"), &cfg[at..]).unwrap();
    std::fs::write(parts.join("30-no.txt"), "frontend web\n").unwrap();
    for arguments in [vec!["parts"], vec!["-f", "parts/10-front.cfg", "-f", "parts/20-agents.cfg"]] {
        let (code, said) = run(path, &[vec!["check", "--haproxy", "3.2", "--strict"], arguments].concat());
        assert_eq!(code, 0, "{said}");
    }
    let (code, said) = run(path, &["check", "--haproxy", "3.2", "parts/10-front.cfg"]);
    assert_eq!(code, 1);
    assert!(said.contains("unknown-backend"), "{said}");
}

/// Relative names are read from where the command runs, from `default-path`, else from beside the configuration.
#[test]
fn spoe_files_are_found_where_haproxy_finds_them() {
    let folder = site();
    let path = folder.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = path.join("haproxy.cfg").display().to_string();
    let (code, said) = run(elsewhere.path(), &["check", "--haproxy", "3.2", &file]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("spoe-elsewhere"), "{said}");
    let cfg = CFG.replace("@spoe@", "spoe.conf").replace("global\n", "global\n    default-path config\n");
    std::fs::write(&file, &cfg).unwrap();
    let (code, said) = run(elsewhere.path(), &["check", "--haproxy", "3.2", &file]);
    assert!(code == 0 && !said.contains("spoe-elsewhere"), "{said}");
    std::fs::remove_file(path.join("spoe.conf")).unwrap();
    let (code, said) = run(path, &["check", "--haproxy", "3.2", &file]);
    assert!(code == 1 && said.contains("no-spoe-file"), "{said}");
}

#[test]
fn the_port_of_this_node_s_configuration_counts() {
    let folder = site();
    std::fs::write(folder.path().join("config.yaml"), "spoa:\n  port: 4711\n").unwrap();
    let (_, said) = run(folder.path(), &["check", "--haproxy", "3.2", "haproxy.cfg"]);
    assert!(said.contains("answers at 0.0.0.0:4711") && said.contains("config.yaml:2"), "{said}");
    assert!(said.contains("cure: server primary 127.0.0.1:4711"), "{said}");
}

#[test]
fn an_spoe_file_in_the_place_of_the_configuration_is_noticed() {
    let folder = site();
    let (code, said) = run(folder.path(), &["check", "--haproxy", "3.2", "spoe.conf"]);
    assert!(code == 1 && said.contains("[spoe-file]"), "{said}");
}

#[test]
fn files_are_written_once_and_are_found_good() {
    let folder = site();
    let path = folder.path();
    std::fs::write(path.join("config.yaml"), "spoa:\n  address: 127.0.0.1\n  port: 4711\n").unwrap();
    let make =
        |more: &[&str]| run(path, &[&["config", "--haproxy", "3.0", "--output", "made", "--retry"], more].concat());
    let (code, said) = make(&[]);
    assert_eq!(code, 0, "{said}");
    let cfg = std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap();
    let spoe_path = path.canonicalize().unwrap().join("made/spoe-ip-reputation.conf");
    assert!(cfg.contains(&format!("config {}", spoe_path.display())), "{cfg}");
    assert!(cfg.contains("server primary 127.0.0.1:4711") && cfg.contains("mode tcp"), "{cfg}");
    let (code, said) = run(path, &["check", "--haproxy", "3.0", "--strict", "made/haproxy.cfg"]);
    assert_eq!(code, 0, "{said}");

    std::fs::write(path.join("made/haproxy.cfg"), "mine").unwrap();
    std::fs::remove_file(&spoe_path).unwrap();
    let (code, said) = make(&[]);
    assert!(code == 1 && said.contains("--force"), "{said}");
    assert!(!spoe_path.exists(), "nothing is written where something is in the way");
    assert_eq!(std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap(), "mine");
    assert_eq!(make(&["--force"]).0, 0);
    assert_eq!(std::fs::read_to_string(path.join("made/haproxy.cfg")).unwrap(), cfg);
}

/// Frontends that ask by themselves and those where rules ask go into one haproxy.cfg.
#[test]
fn what_is_made_with_other_options_lies_beside_it() {
    let folder = site();
    let config = |part: &str, more: &[&str]| {
        run(folder.path(), &[&["config", "--haproxy", "3.2", "--retry", "--part", part], more].concat()).1
    };
    let etc = |text: &str| text.replace("/etc/haproxy/", &format!("{}/", folder.path().display()));
    let mail = config("frontend", &["--mode", "tcp"]).replace("mail-backend", "web-backend");
    let cfg = config("complete", &["--per-connection"]) + &mail;
    std::fs::write(folder.path().join("both.cfg"), etc(&cfg)).unwrap();
    for (name, options) in [
        ("spoe-ip-reputation-on-demand.conf", vec!["--per-connection"]),
        ("spoe-ip-reputation.conf", vec!["--mode", "tcp"]),
    ] {
        assert!(cfg.contains(name), "{cfg}");
        std::fs::write(folder.path().join(name), config("spoe", &options)).unwrap();
    }
    let (code, said) = run(folder.path(), &["check", "--haproxy", "3.2", "--strict", "both.cfg"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let folder = site();
    for (arguments, word) in [
        (vec!["--mode", "tcp", "--per-connection"], "--mode http"),
        (vec!["--mode", "tcp", "--trusted-proxy", "10.0.0.0/8"], "--proxy-protocol"),
        (vec!["--per-connection", "--trusted-proxy", "10.0.0.0/8"], "many clients"),
        (vec!["--haproxy", "2.2"], "too old"),
        (vec!["--backup", "a b"], "--backup"),
        (vec!["--bind", ":80\nevil"], "--bind"),
    ] {
        let (code, said) = run(folder.path(), &[vec!["config"], arguments.clone()].concat());
        assert!(code == 1 && said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn parts_and_json_hold_what_the_whole_does() {
    let folder = site();
    let part = |name: &str| run(folder.path(), &["config", "--part", name]).1;
    let whole = run(folder.path(), &["config"]).1;
    for name in ["spoe", "backend", "frontend", "complete"] {
        assert!(!part(name).is_empty() && whole.contains(&part(name)), "{name}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&run(folder.path(), &["config", "--json", "--haproxy", "3.4"]).1).unwrap();
    assert_eq!((&json["haproxy"], &json["written"]), (&"3.4".into(), &false.into()));
    assert_eq!(json["files"][0]["path"], "/etc/haproxy/spoe-ip-reputation.conf");
    assert!(json["files"][1]["text"].as_str().unwrap().contains("mode spop"), "{json:#}");
}

// --- Anything at all ------------------------------------------------------------------------------------------------

/// Pieces from which something like a configuration comes about.
fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "global",
        "defaults",
        "frontend f",
        "backend b",
        "listen l",
        "from",
        "filter spoe engine e config @spoe@",
        "http-request",
        "tcp-request content",
        "deny",
        "send-spoe-group e g",
        "if",
        "unless",
        "{",
        "}",
        "!{",
        "!",
        "||",
        "var(txn.ip.banned)",
        "-m",
        "int",
        "found",
        "eq",
        "lt",
        "99999",
        "acl a",
        "a",
        "set-var(txn.x)",
        "date,sub(txn.x)",
        "\"",
        "'",
        "\\",
        "#",
        "$",
        "\"${A-b}\"",
        ".if version_atleast(3.1)",
        ".else",
        ".endif",
        "spoe-agent x",
        "spoe-message m",
        "spoe-group g",
        "[e]",
        "messages m",
        "groups g",
        "option",
        "var-prefix",
        "ip",
        "timeout processing",
        "event",
        "use-backend b",
        "server s",
        "127.0.0.1:1",
        "check",
        "stats admin",
        "bind",
        ":::80",
        "ssl",
        "stick-table type ip",
        "mode",
        "tcp",
        "http",
        "spop",
        "set-src",
        "hdr_ip(x,1)",
        "\n",
        "\n",
        "\n",
        "\n ",
        " ",
    ]);
    let any = prop_oneof![9 => words.prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(any, 0..80).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_configuration_is_too_strange(cfg in pieces(), spoe in pieces()) {
        for version in [Version::OLDEST, Version::NEWEST] {
            let findings = find(&cfg, &spoe, version, &node());
            let lines = cfg.lines().count().max(spoe.lines().count()).max(1);
            prop_assert!(findings.iter().all(|found| (1..=lines).contains(&found.place.line)), "{}", shown(&findings));
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let findings = find(&text, &text, Version::NEWEST, &node());
        prop_assert!(!findings.is_empty(), "nobody is asked, and that is said");
    }

    /// A trap is seen whatever else stands there: sections that mean nothing here change nothing.
    #[test]
    fn other_sections_hide_nothing(index in 0..TRAPS.len(), name in "[a-z]{1,8}") {
        let trap = &TRAPS[index];
        let (cfg, spoe, line) = spring(trap);
        let line = if trap.file == haproxy_traps::File::Cfg { line + 2 } else { line };
        let findings = find(&format!("resolvers {name}\n  nameserver a 192.0.2.1:53\n{cfg}"), &spoe, Version::NEWEST, &node());
        prop_assert!(findings.iter().any(|found| found.code == trap.code && found.place.line == line));
    }
}
