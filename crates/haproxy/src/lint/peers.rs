//! Peers sections, and tables that banmesh writes.

use std::time::Duration;

use super::context::Context;
use crate::document::{Line, Section, duration};
use crate::finding::Findings;
use crate::version::Version;

/// The longest ban that HAProxy's tables can hold without being sent again.
const MOST: Duration = Duration::from_secs(24 * 86_400);

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    let configuration = context.configuration;
    let own_name = configuration.global.iter().find(|line| line.begins(&["localpeer"])).map(|line| line.word(1));
    let has_chroot = configuration.global.iter().any(|line| line.begins(&["chroot"]));
    for (at, section) in configuration.peers.iter().enumerate() {
        local_peer(section, own_name, found);
        unix_sockets(section, has_chroot, found);
        same_port(section, configuration.peers.get(..at).unwrap_or_default(), found);
        tables(context, section, found);
    }
    tracked(context, found);
    report_tables(context, found);
}

/// The lines that name a peer.
fn peers(section: &Section) -> impl Iterator<Item = &Line> {
    section.lines.iter().filter(|line| matches!(line.word(0), "server" | "peer"))
}

/// Without a line for the local peer, HAProxy removes the section with a warning, and rules on its tables never match.
fn local_peer(section: &Section, own_name: Option<&str>, found: &mut Findings) {
    // Without `localpeer`, the name is that of the host.
    let Some(own_name) = own_name else { return };
    let is_local = |line: &Line| line.word(1) == own_name || line.word(1).contains("HAPROXY_LOCALPEER");
    if !peers(section).any(is_local) {
        let problem = format!(
            "the section `{}` has no line for `{own_name}`, the name in `localpeer`, so HAProxy removes it and no rule on its tables ever matches",
            section.name()
        );
        found.error(&section.head, "no-local-peer", problem, format!("server {own_name}"));
    }
}

fn unix_sockets(section: &Section, has_chroot: bool, found: &mut Findings) {
    for line in section.lines.iter().filter(|line| matches!(line.word(0), "server" | "peer" | "bind")) {
        let address = if line.word(0) == "bind" { line.word(1) } else { line.word(2) };
        if has_chroot && (address.starts_with('/') || address.starts_with("unix@")) {
            let problem =
                "with `chroot`, HAProxy cannot connect to a Unix socket of a peer, and loses the tables at a reload";
            found.error(line, "peer-socket", problem, format!("{} {} 127.0.0.1:10002", line.word(0), line.word(1)));
        }
    }
}

/// Two sections on one port start without a warning, and a session ends up in either of them.
fn same_port(section: &Section, earlier: &[Section], found: &mut Findings) {
    let binds = |section: &Section| -> Vec<String> {
        section.lines.iter().filter(|line| line.begins(&["bind"])).map(|line| line.word(1).to_owned()).collect()
    };
    for line in section.lines.iter().filter(|line| line.begins(&["bind"])) {
        if let Some(other) = earlier.iter().find(|other| binds(other).iter().any(|bind| bind == line.word(1))) {
            let problem = format!(
                "the section `{}` listens on {} as well, and a session of a peer ends up in either of them",
                other.name(),
                line.word(1)
            );
            found.error(line, "peers-port", problem, "use one peers section, or another port");
        }
    }
}

fn tables(context: &Context<'_>, section: &Section, found: &mut Findings) {
    for line in section.lines.iter().filter(|line| line.begins(&["table"])) {
        let name = line.word(1);
        let is_bans = name == context.node.bans_table.as_deref().unwrap_or("bans")
            && line.after("store").is_some_and(|store| store.contains("gpt"));
        match (line.after("type"), is_bans || is_sum(name)) {
            (Some("ip" | "ipv4"), true) => {
                let problem = format!(
                    "the table `{name}` has no IPv6 clients, and `type ip` may change its meaning in a later HAProxy"
                );
                found.warning(line, "table-type", problem, "type ipv6, which finds IPv4 clients too");
            }
            (Some(other), _) if is_bans && other != "ipv6" => {
                let problem = format!("banmesh cannot write bans into a table with keys of type {other}");
                found.error(line, "table-type", problem, "type ipv6");
            }
            _ => {}
        }
        let expire = line.after("expire").and_then(duration);
        match expire {
            Some(expire) if expire > MOST => {
                found.error(line, "table-expire", "HAProxy refuses an `expire` of more than 24 days", "expire 24d");
            }
            Some(expire) if is_bans && context.node.longest_ban.is_some_and(|longest| expire < longest.min(MOST)) => {
                let problem = format!(
                    "`expire {}` is shorter than the longest ban (ban.max_ban_time), so HAProxy may remove an entry before its ban ends",
                    line.after("expire").unwrap_or_default()
                );
                found.warning(line, "table-expire", problem, "expire 24d");
            }
            None if is_bans || is_sum(name) => {
                let problem = "without `expire`, entries stay until the table is full, and then other ones are removed";
                found.warning(line, "table-expire", problem, "expire 24d");
            }
            _ => {}
        }
        if is_bans && line.words.iter().any(|word| word == "nopurge") {
            let problem = "with `nopurge`, a full table takes no new bans, and HAProxy acknowledges them anyway";
            found.error(
                line,
                "table-nopurge",
                problem,
                "delete nopurge, and make `size` twice the number of bans that you expect",
            );
        }
        for word in ["recv-only", "write-to"] {
            let since = if word == "recv-only" { Version::new(3, 2) } else { Version::new(3, 0) };
            if context.version < since && line.words.iter().any(|other| other == word) {
                found.error(
                    line,
                    "table-option",
                    format!("HAProxy {} has no `{word}`", context.version),
                    format!("delete {word}"),
                );
            }
        }
    }
}

/// Rules that track a table which banmesh writes: the entry then becomes local, and overwrites the sum.
fn tracked(context: &Context<'_>, found: &mut Findings) {
    let bans = context.node.bans_table.as_deref().unwrap_or("bans");
    for line in context.configuration.lines() {
        let Some(at) = line.words.iter().position(|word| word.starts_with("track-sc")) else { continue };
        let Some(table) = line.from(at).iter().skip_while(|word| *word != "table").nth(1) else { continue };
        let Some((section, name)) = table.split_once('/') else { continue };
        let is_ours = context.configuration.peers.iter().any(|peers| peers.name() == section);
        if is_ours && (is_sum(name) || name == bans) {
            let problem = format!(
                "`{table}` is written by banmesh; tracking it makes its entries local, and what banmesh writes and what HAProxy counts \
                 overwrite each other"
            );
            let base = name.strip_suffix(".others").or_else(|| name.strip_suffix(".agg")).unwrap_or("req");
            found.error(line, "tracked-table", problem, format!("track {section}/{base}, and only look {table} up"));
        }
    }
}

/// Tables in which HAProxy counts offences. They need addresses as keys and a counter, and a rule that raises it.
fn report_tables(context: &Context<'_>, found: &mut Findings) {
    for name in &context.node.report_tables {
        for section in &context.configuration.peers {
            let is_it = |line: &&Line| line.begins(&["table"]) && line.word(1) == name;
            let Some(line) = section.lines.iter().find(is_it) else { continue };
            if !matches!(line.after("type"), Some("ip" | "ipv4" | "ipv6")) {
                let problem = format!(
                    "the table `{name}` counts offences (haproxy.peers.report_tables), but its keys are not addresses"
                );
                found.error(line, "report-table", problem, "type ipv6");
            }
            let stores = |column: &str| column == "gpc0" || column.starts_with("gpc(");
            if !line.after("store").is_some_and(|store| store.split(',').any(stores)) {
                let problem = format!(
                    "the table `{name}` counts offences (haproxy.peers.report_tables), but does not store gpc0"
                );
                found.error(line, "report-table", problem, "store gpc0");
            }
            let full = format!("{}/{name}", section.name());
            if !context.configuration.lines().any(|line| line.words.contains(&full)) {
                let problem = format!("no rule tracks `{full}`, so no offence is counted in it");
                let rules = format!(
                    "http-response track-sc1 src,ipmask(32,64) table {full}, and http-response sc-inc-gpc0(1), each with a condition"
                );
                found.warning(line, "report-table", problem, rules);
            }
        }
    }
}

fn is_sum(name: &str) -> bool {
    name.ends_with(".others") || name.ends_with(".agg")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use crate::document::{Dialect, Source, parse};
    use crate::lint::{Node, check};
    use crate::proxies::Configuration;
    use crate::version::Version;

    fn codes(text: &str, version: Version) -> Vec<&'static str> {
        let source = Source { name: "haproxy.cfg".into(), text: text.to_owned() };
        let configuration = Configuration::new(vec![parse(&source, Dialect::HaProxy, version, &mut BTreeMap::new())]);
        let node = Node {
            agent: ([127, 0, 0, 1], 12345).into(),
            enabled: true,
            origin: None,
            bans_table: None,
            report_tables: vec!["failed".to_owned()],
            longest_ban: Some(Duration::from_secs(86_400)),
        };
        let mut codes: Vec<&str> =
            check(&configuration, &BTreeMap::new(), version, &node).into_iter().map(|finding| finding.code).collect();
        codes.dedup();
        codes
    }

    const GOOD: &str = "global
    localpeer lb1
peers mesh
    server lb1
    server banmesh 127.0.0.1:10002
    table bans type ipv6 size 1m expire 24d store gpt0
    table req type ipv6 size 1m expire 60s store http_req_rate(10s)
    table req.others type ipv6 size 1m expire 60s store http_req_rate(10s)
    table failed type ipv6 size 1m expire 10m store gpc0
frontend site
    mode http
    bind :80
    http-request set-var(txn.now) date
    http-request deny if { src,ipmask(32,64),table_gpt0(mesh/bans),sub(txn.now) -m int gt 0 }
    http-request track-sc0 src table mesh/req
    http-response track-sc1 src table mesh/failed if { status 401 }
    http-response sc-inc-gpc0(1) if { status 401 }
";

    #[test]
    fn the_traps_of_peers_sections_are_found() {
        let found = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            codes(&GOOD.replace(from, to), Version::OLDEST)
        };
        assert!(codes(GOOD, Version::OLDEST).is_empty(), "{:?}", codes(GOOD, Version::OLDEST));
        for (from, to, code) in [
            ("    server lb1\n", "", "no-local-peer"),
            ("table mesh/req\n", "table mesh/req.others\n", "tracked-table"),
            ("table mesh/req\n", "table mesh/bans\n", "tracked-table"),
            ("table failed type ipv6", "table failed type string", "report-table"),
            ("store gpc0", "store gpt0", "report-table"),
            ("table mesh/failed if", "table mesh/req if", "report-table"),
            ("expire 24d", "expire 1h", "table-expire"),
            ("expire 24d", "expire 25d", "table-expire"),
            (" expire 24d", "", "table-expire"),
            ("bans type ipv6", "bans type ip", "table-type"),
            ("bans type ipv6", "bans type string", "table-type"),
            ("size 1m expire 24d", "size 1m nopurge expire 24d", "table-nopurge"),
            ("expire 24d store", "expire 24d recv-only store", "table-option"),
            ("127.0.0.1:10002", "/run/banmesh.sock\nglobal\n    chroot /var/lib/haproxy", "peer-socket"),
            (
                "    server lb1\n",
                "    bind :1\n    server lb1\npeers more\n    bind :1\n    server lb1\n",
                "peers-port",
            ),
        ] {
            assert!(found(from, to).contains(&code), "{from:?} -> {to:?}: {:?}", found(from, to));
        }
        assert!(codes(&GOOD.replace("expire 24d store", "expire 24d recv-only store"), Version::new(3, 2)).is_empty());
    }
}
