//! Shipped configurations, generated configurations, and the guide that is often copied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use banmesh::cli::haproxy::load::load;
use banmesh_haproxy::generate::{Plan, Traffic, generate};
use banmesh_haproxy::{Finding, Severity, Version, check};

use crate::haproxy_check::haproxy_traps::SPOE;
use crate::haproxy_check::{VERSIONS, find, node, shown, wrong};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// All configurations that the repository ships, with their SPOE files.
#[test]
fn shipped_configurations_have_no_finding() {
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
            let loaded = load(files, &spoe, version, BTreeMap::new()).unwrap();
            let findings = check(&loaded.configuration, &loaded.spoe, version, &node());
            assert!(wrong(&findings).is_empty(), "{} on {version}:\n{}", file.display(), shown(&findings));
        }
    }
}

/// In mirror mode, HAProxy uses a map and queries no agent.
#[test]
fn mirror_mode_without_a_filter_has_no_finding() {
    let rule = "http-request deny if { src,map_ip_int(/etc/haproxy/banmesh.map,0) -m int gt 0 }";
    let cfg = format!("frontend web\n mode http\n bind 127.0.0.1:80\n {rule}\n");
    assert_eq!(wrong(&find(&cfg, "", Version::NEWEST, &node())), [] as [&Finding; 0]);
    let none = cfg.replace(rule, "");
    assert_eq!(wrong(&find(&none, "", Version::NEWEST, &node()))[0].code, "no-filter");
}

/// banmesh finds nothing wrong with its own output, for any options.
#[test]
fn generated_configurations_have_no_finding() {
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
                contact: (on(7) && !on(0)).then(|| "abuse@example.org".to_owned()),
                page_path: "/etc/haproxy/banned.html".to_owned(),
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

/// Its parts are added to a configuration whose defaults have their own log format.
#[test]
fn generated_parts_have_no_finding_below_other_log_formats() {
    for (traffic, format) in [(Traffic::Tcp, "httplog"), (Traffic::Http, "tcplog")] {
        for version in VERSIONS {
            let plan = Plan {
                version: Some(version),
                traffic,
                fail_closed: false,
                retry: true,
                per_connection: false,
                proxy_protocol: false,
                trusted_proxies: vec![],
                agent: "127.0.0.1:12345".to_owned(),
                backup: None,
                drain: std::time::Duration::from_secs(3),
                spoe_path: "@spoe@".to_owned(),
                bind: None,
                server: None,
                contact: None,
                page_path: String::new(),
            };
            let made = generate(&plan).unwrap();
            let (head, parts) = made.complete.split_once("defaults\n").unwrap();
            let complete = format!("{head}defaults\n    option {format}\n{parts}");
            let findings = find(&complete, &made.spoe, version, &node());
            assert!(wrong(&findings).is_empty(), "{version} {format}:\n{}\n{complete}", shown(&findings));
            assert!(findings.iter().all(|finding| finding.code != "httplog"), "{version}: {}", shown(&findings));
        }
    }
    // HAProxy warns of this one.
    let wrong = "defaults\n option httplog\nfrontend f\n mode tcp\n bind :1\n";
    assert!(find(wrong, "", Version::NEWEST, &node()).iter().any(|finding| finding.code == "httplog"));
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

/// The guide that is often copied, unchanged.
#[test]
fn the_traps_of_the_common_guide_are_reported() {
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

/// The guide's section about caches and Redis.
#[test]
fn the_traps_of_the_guide_s_caches_are_reported() {
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
