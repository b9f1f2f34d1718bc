//! Every symptom in the documentation has a check, or a reason why it has none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::check::Code;
use crate::app::alarms::CONDITIONS;

/// The sections that say what to do when something does not work: document, heading, and whether the first cells of their tables are
/// symptoms. Headings inside a section are symptoms. A section without either is one itself.
const SECTIONS: [(&str, &str, bool); 16] = [
    ("haproxy", "Troubleshooting by symptom", true),
    ("operations", "When something is wrong", false),
    ("operations", "`status` shows a problem", true),
    ("inputs", "Lines that arrive late", true),
    ("inputs", "Is it working?", true),
    ("cluster", "What happens when…", true),
    ("enforcement", "When it does not work", true),
    ("enforcement", "When mail servers do not ask", true),
    ("enforcement", "CrowdSec's bouncers", false),
    ("enforcement", "When a proxy does not refuse a banned client", true),
    ("storage", "When the disk fails", true),
    ("storage", "When a node does not start", true),
    ("feeds", "When a feed fails", true),
    ("kubernetes", "The client's address", false),
    ("rate-limits", "When something is wrong", true),
    ("install", "Debian package", false),
];

/// What `banmesh doctor` does about a symptom.
enum Answer {
    /// It makes these checks.
    Checks(&'static [Code]),
    /// The node itself finds it. `doctor` repeats its problem ([`Code::Warnings`]).
    Problems(&'static [&'static str]),
    /// Both.
    Both(&'static [Code], &'static [&'static str]),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

use Answer::{Both, Checks, Nothing, Problems};

const ADDRESS: &str = "it is about one address: `banmesh why ADDRESS`";
const FINE: &str = "it needs no action: the node or the cluster continues by itself";
const START: &str = "the node does not run; its last message says what is wrong, and `doctor` says that none answers";

#[rustfmt::skip]
fn answers() -> Vec<(&'static str, &'static str, Answer)> {
    use Code as C;
    let haproxy = [
        ("Connection refused, server `DOWN`", Checks(&[C::AgentPort, C::HaproxyServers, C::HaproxyLint])),
        ("Variables are not set, nobody is refused", Both(&[C::HaproxyLint, C::HaproxyLog, C::Proxies], &["no_address"])),
        ("Slow requests", Checks(&[C::HaproxyLint, C::HaproxyServers, C::HaproxyLog, C::Answers])),
        ("Bans do not hold", Both(&[C::Enforcement, C::Proxies, C::Places, C::Peers], &["place"])),
        ("connection refused, server `DOWN`", Checks(&[C::AgentPort, C::HaproxyServers])),
        ("variables not set, nobody is refused", Checks(&[C::HaproxyLint])),
        ("all clients are refused when the agent is down", Checks(&[C::HaproxyLint])),
        ("IPv6 clients are not limited", Checks(&[C::HaproxyLint])),
        ("slow requests", Checks(&[C::HaproxyLint, C::HaproxyServers, C::Answers])),
        ("thousands of connections to the agent", Checks(&[C::HaproxyLint, C::Connections])),
        ("one IMAP client in a thousand passes although it is banned", Checks(&[C::HaproxyLint])),
        ("the ban hits the load balancer, or all clients at once", Checks(&[C::Senders])),
        ("mirror mode, and nobody is refused", Both(&[C::Places], &["place"])),
        ("bans do not hold", Nothing(ADDRESS)),
    ];
    let operations = [
        ("We banned ourselves, or a customer", Checks(&[C::Senders])),
        ("An attacker is not banned", Both(&[C::Lines, C::Recognised, C::Proxies, C::Filters], &["dry_run"])),
        ("Half the nodes disagree", Both(&[C::Peers], &["disagreement", "clock", "key", "alone", "udp"])),
        ("Nodes share no wire version", Checks(&[C::WireVersions])),
        ("A node is down", Both(&[C::Peers, C::Node], &["lost"])),
        ("A part of a node breaks", Both(&[C::Panics], &["restarted"])),
        ("A node is not ready", Problems(&["not_ready", "key"])),
        ("Two nodes share an id", Problems(&["duplicate"])),
        ("No node answers (exit code 3)", Checks(&[C::Node])),
        ("A flood of syslog", Both(&[C::Dropped, C::Counted], &["overload"])),
        ("No lines arrive", Both(&[C::Lines, C::LogDaemon, C::Dropped], &["no_lines"])),
        ("HAProxy's frames or connections are refused", Checks(&[C::Refused, C::Proxies])),
        ("Connections are closed in favour of others", Checks(&[C::Evicted])),
        ("The journal fails or is slow", Both(&[C::Journal, C::Saved, C::Space], &["journal"])),
        ("Accounts are under attack", Checks(&[C::Accounts])),
        ("Somebody guesses passwords", Checks(&[C::Passwords])),
        ("A filter in shadow mode would ban", Checks(&[C::Shadow])),
        ("Offenders are not banned", Checks(&[C::Bans])),
        ("The table is full", Problems(&["table", "dropped", "refused"])),
        ("Another node exceeds the limits", Checks(&[C::Limits])),
        ("A large share of IPv4 is banned", Problems(&["breadth"])),
        ("`status` shows a problem", Checks(&[C::Warnings])),
        ("Names in the allowlist", Problems(&["allowlist_names"])),
        ("A node starts without its journal", Problems(&["journal"])),
    ];
    let problems = [
        ("`no_address`", Problems(&["no_address"])),
        ("`udp`", Problems(&["udp"])),
        ("`allowlist_names`", Problems(&["allowlist_names"])),
        ("`site`", Problems(&["site"])),
        ("`lost`", Problems(&["lost"])),
        ("`key`", Problems(&["key"])),
        ("`alone`", Problems(&["alone"])),
        ("`journal`", Problems(&["journal"])),
        ("`table`, `overload`", Problems(&["table", "overload"])),
        ("`breadth`", Problems(&["breadth"])),
        ("`evidence`", Problems(&["evidence"])),
        ("`late_lines`", Both(&[C::Counted], &["late_lines"])),
        ("`files`", Problems(&["files"])),
        ("`disagreement`, `clock`, `duplicate`", Problems(&["disagreement", "clock", "duplicate"])),
        ("`place`", Both(&[C::Places], &["place"])),
        ("`unasked`", Problems(&["unasked"])),
        ("`connections`", Problems(&["connections"])),
        ("`unreadable`", Problems(&["unreadable"])),
        ("`no_client`", Problems(&["no_client"])),
        ("`feeds`", Problems(&["feeds"])),
        ("`geo`", Problems(&["geo"])),
    ];
    let inputs = [
        ("Lines that arrive late", Both(&[C::Counted], &["late_lines"])),
        ("Is it working?", Both(&[C::Lines, C::LogDaemon, C::Dropped, C::Recognised], &["no_lines"])),
    ];
    let cluster = [
        ("a node is stopped", Nothing(FINE)),
        ("a node dies", Both(&[C::Peers], &["lost"])),
        ("a node comes back", Nothing(FINE)),
        ("all nodes are stopped and started", Nothing(FINE)),
        ("the network is split in two", Both(&[C::Peers], &["lost", "alone"])),
        ("the split heals", Nothing(FINE)),
        ("a node starts and finds no other node", Problems(&["alone"])),
        ("a clock is wrong", Problems(&["clock", "early"])),
        ("a table is nearly full", Problems(&["table"])),
        ("a node returns after more than 90 days", Nothing("nobody knows how long a node was away before it returns")),
        ("a member writes too much", Checks(&[C::Limits])),
        ("a clock is set while its node runs", Problems(&["clock_step"])),
        ("versions differ", Checks(&[C::WireVersions, C::Limits])),
        ("the network drops fragments", Nothing(FINE)),
        ("the network drops all datagrams to a node", Problems(&["udp"])),
        ("another site cannot be reached", Problems(&["site"])),
        ("a bridge dies", Both(&[C::Peers], &["lost"])),
        ("somebody floods the port", Checks(&[C::Evicted])),
    ];
    let enforcement = [
        ("`it needs CAP_NET_ADMIN`", Both(&[C::Places, C::Firewall], &["place"])),
        ("`belongs to another process`", Both(&[C::Places], &["place"])),
        ("`connections of banned sources stay open`", Problems(&["connections"])),
        ("`the kernel has no nf_tables`", Both(&[C::Places, C::Firewall], &["place"])),
        ("`somebody removed the table`", Checks(&[C::Firewall, C::Places])),
        ("a banned client still gets through", Nothing(ADDRESS)),
        ("`unasked`: no mail server has queried it since the start", Problems(&["unasked"])),
        ("`unreadable` … `is not in dnsbl.allowed_clients`", Problems(&["unreadable"])),
        ("`unreadable` … `a name outside of the zone`", Problems(&["unreadable"])),
        ("`unreadable` … `no valid client_address`", Problems(&["unreadable"])),
        ("`unreadable` … `sends no or another secret`", Problems(&["unreadable"])),
        ("a banned client still gets in", Nothing(ADDRESS)),
        ("CrowdSec's bouncers", Both(&[C::Places], &["place"])),
        ("`problem: no_client` in `banmesh status`", Problems(&["no_client"])),
        ("`banmesh_verdict_checks_total` does not grow", Both(&[C::Proxies], &["unasked_proxy"])),
        ("`clean` grows, `banned` does not", Nothing(ADDRESS)),
        ("all clients get 500 or 502", Checks(&[C::Node])),
    ];
    let storage = [
        ("the disk is slow", Nothing("the node waits, and ends after 30 s; nothing is lost before")),
        ("a write fails (disk full, I/O error)", Both(&[C::Saved, C::Journal, C::Space], &["journal"])),
        ("the node is stopped meanwhile", Nothing(START)),
        ("the disk does not answer at all", Nothing(START)),
        ("the file is moved or replaced while the node runs", Both(&[C::Journal], &["journal"])),
        ("is in use by another process", Nothing(START)),
        ("cannot be opened (permission denied)", Nothing(START)),
        ("is not a banmesh journal", Nothing(START)),
        ("was written by a newer banmesh", Nothing(START)),
        ("was written by an older banmesh", Nothing(START)),
        ("is damaged", Nothing(START)),
    ];
    let feeds = [
        ("`cannot be reached`", Problems(&["feeds"])),
        ("`the certificate of … is not accepted`", Problems(&["feeds"])),
        ("`answered 403`, `it is a web page`", Problems(&["feeds"])),
        ("`answered 404`", Problems(&["feeds"])),
        ("`answered 429`", Problems(&["feeds"])),
        ("`changed from … to … entries at once`", Problems(&["feeds"])),
        ("`lines are not entries of the format`", Problems(&["feeds"])),
    ];
    let others = [
        ("kubernetes", "The client's address", Nothing("only a request from outside shows which address arrives")),
        ("rate-limits", "`no HAProxy is connected` in `banmesh status`", Both(&[C::Places], &["place"])),
        ("rate-limits", "rules on the tables never match", Checks(&[C::HaproxyLint])),
        ("rate-limits", "`NAME.others` stays empty", Problems(&["udp"])),
        ("rate-limits", "counters of one of two HAProxies on a node are ignored, `banmesh_peers_refused_total{reason=\"superseded\"}` rises", Checks(&[C::Refused])),
        ("rate-limits", "a table lacks entries", Nothing("HAProxy alone knows the size of its tables: `show table`")),
        ("install", "Debian package", Checks(&[C::Configuration])),
    ];
    let named = [
        ("haproxy", haproxy.into_iter().collect::<Vec<_>>()), ("operations", operations.into_iter().chain(problems).collect()),
        ("inputs", inputs.into_iter().collect()), ("cluster", cluster.into_iter().collect()),
        ("enforcement", enforcement.into_iter().collect()), ("storage", storage.into_iter().collect()),
        ("feeds", feeds.into_iter().collect()),
    ];
    let of_documents = named.into_iter().flat_map(|(document, all)| all.into_iter().map(move |(symptom, answer)| (document, symptom, answer)));
    of_documents.chain(others).collect()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{name}.md"))).unwrap()
}

/// The level and text of a heading.
fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    (level > 0).then(|| line.get(level..)?.strip_prefix(' ').map(|text| (level, text)))?
}

/// The symptoms in a section.
fn symptoms(name: &str, section: &str, tables: bool) -> BTreeSet<String> {
    let text = document(name);
    let mut lines = text.lines();
    let level = lines
        .by_ref()
        .find_map(|line| heading(line).filter(|(_, text)| *text == section))
        .unwrap_or_else(|| panic!("docs/{name}.md has no section {section}"))
        .0;
    let mut found = BTreeSet::new();
    let mut nested = false;
    let mut code = false;
    for line in lines {
        code ^= line.trim_start().starts_with("```");
        if code {
            continue;
        }
        if let Some((deeper, text)) = heading(line) {
            if deeper <= level {
                break;
            }
            nested = true;
            found.insert(text.to_owned());
        } else if let Some(row) = line.strip_prefix("| ").filter(|_| tables) {
            found.insert(row.split(" | ").next().unwrap_or_default().trim().to_owned());
        }
    }
    // The titles of columns.
    let titles = [
        "symptom",
        "problem",
        "message",
        "what happens",
        "what you see",
        "the error says that the file",
        "problem or message",
        "| |",
    ];
    found.retain(|text| !titles.contains(&text.as_str()));
    if found.is_empty() || (!tables && !nested) {
        found = BTreeSet::from([section.to_owned()]);
    }
    found
}

#[test]
fn every_symptom_in_the_documentation_has_a_check_or_a_reason() {
    let known: BTreeMap<(&str, &str), Answer> =
        answers().into_iter().map(|(document, symptom, answer)| ((document, symptom), answer)).collect();
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, section, tables) in SECTIONS {
        for symptom in symptoms(name, section, tables) {
            match known.keys().find(|(document, text)| *document == name && *text == symptom) {
                Some(key) => _ = seen.insert(*key),
                None => missing.push(format!("docs/{name}.md, {section}: {symptom}")),
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "symptoms without a check and without a reason");
    let gone: Vec<_> = known.keys().filter(|key| !seen.contains(*key)).collect();
    assert!(gone.is_empty(), "no longer in the documentation: {gone:?}");
}

#[test]
fn the_problems_of_symptoms_exist() {
    let warnings =
        ["not_ready", "dry_run", "restarted", "clock_step", "early", "dropped", "refused", "no_lines", "unasked_proxy"];
    let source = include_str!("../../operation/api/warnings.rs");
    for name in warnings {
        assert!(source.contains(&format!("\"{name}\"")), "{name}");
    }
    let mut named = BTreeSet::new();
    for (_, symptom, answer) in answers() {
        let problems = match answer {
            Problems(problems) => problems,
            Both(codes, problems) => {
                assert!(!codes.is_empty(), "{symptom}");
                problems
            }
            Checks(codes) => {
                assert!(!codes.is_empty(), "{symptom}");
                continue;
            }
            Nothing(reason) => {
                assert!(!reason.is_empty(), "{symptom}");
                continue;
            }
        };
        for problem in problems {
            assert!(CONDITIONS.contains(problem) || warnings.contains(problem), "{symptom}: {problem}");
            named.insert(*problem);
        }
    }
    let unnamed: Vec<_> = CONDITIONS.iter().filter(|name| !named.contains(**name)).collect();
    assert!(unnamed.is_empty(), "no symptom leads to these problems: {unnamed:?}");
}

/// A section about something that does not work must be among `SECTIONS`, or inside one of them.
#[test]
fn no_section_about_failures_is_forgotten() {
    let words = ["wrong", "fails", "does not", "do not", "troubleshooting", "working?", "symptom"];
    // These explain, and are not about a failure.
    let others = ["Bans do not hold", "Variables are not set, nobody is refused", "What is different"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_stem().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if path.extension().is_none_or(|end| end != "md") || name.starts_with("walkthrough") || name == "wrong-inputs" {
            continue;
        }
        let inside: BTreeSet<String> = SECTIONS
            .iter()
            .filter(|(document, _, _)| *document == name)
            .flat_map(|(document, section, tables)| {
                let mut all = symptoms(document, section, *tables);
                all.insert((*section).to_owned());
                all
            })
            .collect();
        for (_, text) in document(&name).lines().filter_map(heading) {
            let about = words.iter().any(|word| text.to_lowercase().contains(word));
            assert!(!about || inside.contains(text) || others.contains(&text), "docs/{name}.md: {text}");
        }
    }
}
