//! Generates a configuration with a peers section: bans in a stick-table that banmesh fills, and limits that hold over all HAProxies of
//! a cluster. HAProxy decides by itself; no request waits for a check.

use std::fmt::Write as _;
use std::str::FromStr;

use crate::document::duration;
use crate::generate::{Plan, PlanError, Traffic, head, is_plain, servers, sources};
use crate::version::Version;

/// The name of the peers section in the generated configuration.
pub const SECTION: &str = "mesh";
/// The entry that says that the table of bans is whole and that banmesh lives.
pub const SENTINEL: &str = "ff00::1";

/// A limit on the requests, or connections, of a client over all HAProxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most in a period.
    pub count: u32,
    /// The period as HAProxy writes it, such as `10s`.
    pub period: String,
}

/// The text is not a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a limit; write for example 100/10s, with a period from 1s to 24d")]
pub struct LimitError(String);

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let read = || {
            let (count, period) = text.split_once('/')?;
            let count = count.parse().ok().filter(|count| *count > 0)?;
            let seconds = duration(period).filter(|_| !period.ends_with(|c: char| c.is_ascii_digit()))?.as_secs();
            (1..=24 * 86_400).contains(&seconds).then(|| Self { count, period: period.to_owned() })
        };
        read().ok_or_else(|| LimitError(text.to_owned()))
    }
}

/// What the tables are for.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Where HAProxy reaches banmesh (`haproxy.peers.listen`), `HOST:PORT`.
    pub peer: String,
    /// The table of bans (`haproxy.peers.bans_table`); empty: none.
    pub bans: String,
    /// The map with the bans of networks (`haproxy.map`), if banmesh keeps one.
    pub map: Option<String>,
    /// The limit.
    pub limit: Option<Limit>,
    /// The tables in which HAProxy counts offences (`haproxy.peers.report_tables`).
    pub reports: Vec<String>,
}

/// The generated parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedTables {
    /// The peers section.
    pub peers: String,
    /// The frontend section.
    pub frontend: String,
    /// A complete `haproxy.cfg` that contains both.
    pub complete: String,
}

/// Generates the configuration. Of `plan`, the options about agents are not used.
///
/// # Errors
/// When an option is invalid.
pub fn generate(plan: &Plan, tables: &Tables) -> Result<GeneratedTables, PlanError> {
    if let Some(version) = plan.version.filter(|version| *version < Version::OLDEST) {
        return Err(PlanError::TooOld(version));
    }
    let by_header = !plan.trusted_proxies.is_empty() && !plan.proxy_protocol;
    if by_header && plan.traffic == Traffic::Tcp {
        return Err(PlanError::HeaderInTcp);
    }
    let words = [("haproxy.peers.listen", Some(&tables.peer)), ("--server", plan.server.as_ref())];
    for (option, word) in words {
        if let Some(word) = word.filter(|word| word.is_empty() || word.contains(|c: char| !is_plain(c))) {
            return Err(PlanError::NotOneWord(option, word.clone()));
        }
    }
    if let Some(bind) = plan.bind.as_ref().filter(|bind| bind.contains(|c: char| c != ' ' && !is_plain(c))) {
        return Err(PlanError::NotOneWord("--bind", bind.clone()));
    }
    let peers = peers(plan, tables);
    let frontend = match plan.traffic {
        Traffic::Http => http(plan, tables, by_header),
        Traffic::Tcp => tcp(plan, tables),
    };
    let complete = complete(plan, &peers, &frontend);
    Ok(GeneratedTables { peers, frontend, complete })
}

/// Of the three counters that HAProxy has by default, the first is the limit's.
const MAX_REPORTS: usize = 2;

fn peers(plan: &Plan, tables: &Tables) -> String {
    let mut text = format!(
        "\
# banmesh as a peer. HAProxy connects to it; HAProxy itself listens nowhere for peers.
peers {SECTION}
    # This HAProxy, by the name in `localpeer`. Without this line HAProxy removes the whole section, and no rule below ever matches.
    server lb1
    # haproxy.peers.listen of the node. Do not use a Unix socket here: with `chroot`, HAProxy could not reach it.
    server banmesh {}
",
        tables.peer
    );
    if !tables.bans.is_empty() {
        let _ = write!(
            text,
            "    # The bans: the value is the second at which a ban ends. `expire` must be at least as long as the longest ban, and is at most\n    \
             # 24d; banmesh sends longer bans again. `size` should be twice the number of bans that you expect. Never track this table.\n    \
             table {} type ipv6 size 1m expire 24d store gpt0\n",
            tables.bans
        );
    }
    if let Some(limit) = &tables.limit {
        let (column, what) = column(plan.traffic);
        let period = &limit.period;
        let _ = write!(
            text,
            "    # The {what} that this HAProxy counts, and those that all others count. banmesh writes the second table, so never track it.\n    \
             table req        type ipv6 size 1m expire {expire} store {column}({period}),conn_cur\n    \
             table req.others type ipv6 size 1m expire {expire} store {column}({period}),gpc0\n",
            expire = expire(period),
        );
    }
    let (counted, left_out) = reports(plan, tables);
    for name in counted {
        let _ = write!(
            text,
            "    # Each time HAProxy raises gpc0 here, the client has one offence more (haproxy.peers.report_tables).\n    \
             table {name} type ipv6 size 100k expire 1h store gpc0\n",
        );
    }
    if !left_out.is_empty() {
        let _ = writeln!(
            text,
            "    # Left out of haproxy.peers.report_tables: {}. Only frontends in mode http get rules here, and for at most {MAX_REPORTS} tables.",
            left_out.join(", ")
        );
    }
    text
}

/// The report tables that get rules, and those that do not.
fn reports<'a>(plan: &Plan, tables: &'a Tables) -> (&'a [String], &'a [String]) {
    let count = if plan.traffic == Traffic::Http { MAX_REPORTS.min(tables.reports.len()) } else { 0 };
    tables.reports.split_at(count)
}

/// What is counted, as a column and in words.
const fn column(traffic: Traffic) -> (&'static str, &'static str) {
    match traffic {
        Traffic::Http => ("http_req_rate", "requests"),
        Traffic::Tcp => ("conn_rate", "connections"),
    }
}

/// An entry must live until its rate has fallen to 0.
fn expire(period: &str) -> String {
    let seconds = duration(period).map_or(60, |period| period.as_secs()).saturating_mul(2).clamp(60, 24 * 86_400);
    format!("{seconds}s")
}

fn http(plan: &Plan, tables: &Tables, by_header: bool) -> String {
    let mut text = head(plan, "http-frontend", "http", 80);
    let mut add = |line: &str| {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    };
    if by_header {
        add("# The last address in the header was added by the trusted proxy. Those before it came from the client.");
        add(&format!("acl trusted-proxy src {}", sources(plan)));
        add("http-request set-src req.hdr_ip(x-forwarded-for,-1) if trusted-proxy");
    }
    if !tables.bans.is_empty() {
        add("http-request set-var(txn.now) date");
        if plan.fail_closed {
            add("# Fail closed: until the table has all bans, and while banmesh is down, no client passes.");
            add(&format!("http-request deny deny_status 503 hdr X-IP-Status unknown if !{}", live(tables, "txn")));
        } else {
            add(
                "# Fail open: for a fraction of a second after a start or reload the table lacks bans (--fail-closed refuses clients then).",
            );
        }
        add("# Banned: 403. Single IPv4 addresses and IPv6 networks of /64; other networks need the map.");
        add(&format!("http-request deny deny_status 403 hdr X-IP-Status banned if {}", banned(tables, "txn")));
        if let Some(map) = &tables.map {
            add("# The bans of other networks, from the map that banmesh keeps (haproxy.map).");
            add(&format!("http-request set-var(txn.banned_until) src,map_ip_int({map},0)"));
            add(
                "http-request deny deny_status 403 hdr X-IP-Status banned if { date,sub(txn.banned_until) -m int lt 0 }",
            );
        }
    }
    if let Some(limit) = &tables.limit {
        add(&format!(
            "# At most {} requests in {} over all HAProxies: those counted here and those of the others.",
            limit.count, limit.period
        ));
        add("http-request track-sc0 src,ipmask(32,64) table mesh/req");
        add("http-request set-var(txn.others) src,ipmask(32,64),table_http_req_rate(mesh/req.others)");
        add(&format!(
            "http-request deny deny_status 429 if {{ sc_http_req_rate(0),add(txn.others) gt {} }}",
            limit.count
        ));
    }
    // More counters than these need `tune.stick-counters`.
    for (name, number) in reports(plan, tables).0.iter().zip(1..) {
        add(
            "# Count offences: here failed logins, which the server answers with 401. Change the condition to what is an offence for you.",
        );
        add(&format!("http-response track-sc{number} src,ipmask(32,64) table {SECTION}/{name} if {{ status 401 }}"));
        add(&format!("http-response sc-inc-gpc0({number}) if {{ status 401 }}"));
    }
    add("default_backend web-backend");
    text
}

fn tcp(plan: &Plan, tables: &Tables) -> String {
    let mut text = head(plan, "mail-frontend", "tcp", 143);
    // With the PROXY protocol or TLS, `connection` would see the address of the proxy.
    let rule = if plan.proxy_protocol { "tcp-request session" } else { "tcp-request connection" };
    let mut add = |line: &str| {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    };
    if !tables.bans.is_empty() {
        add(&format!("{rule} set-var(sess.now) date"));
        if plan.fail_closed {
            add("# Fail closed: until the table has all bans, and while banmesh is down, no client passes.");
            add(&format!("{rule} reject if !{}", live(tables, "sess")));
        } else {
            add(
                "# Fail open: for a fraction of a second after a start or reload the table lacks bans (--fail-closed refuses clients then).",
            );
        }
        add("# Banned: the connection is closed before the server says anything.");
        add(&format!("{rule} reject if {}", banned(tables, "sess")));
        if let Some(map) = &tables.map {
            add("# The bans of other networks, from the map that banmesh keeps (haproxy.map).");
            add(&format!("{rule} set-var(sess.banned_until) src,map_ip_int({map},0)"));
            add(&format!("{rule} reject if {{ date,sub(sess.banned_until) -m int lt 0 }}"));
        }
    }
    if let Some(limit) = &tables.limit {
        add(&format!(
            "# At most {} connections in {} over all HAProxies: those counted here and those of the others.",
            limit.count, limit.period
        ));
        add(&format!("{rule} track-sc0 src,ipmask(32,64) table mesh/req"));
        add(&format!("{rule} set-var(sess.others) src,ipmask(32,64),table_conn_rate(mesh/req.others)"));
        add(&format!("{rule} reject if {{ sc_conn_rate(0),add(sess.others) gt {} }}", limit.count));
    }
    add("default_backend mail-backend");
    text
}

fn banned(tables: &Tables, scope: &str) -> String {
    format!("{{ src,ipmask(32,64),table_gpt0({SECTION}/{}),sub({scope}.now) -m int gt 0 }}", tables.bans)
}

fn live(tables: &Tables, scope: &str) -> String {
    format!("{{ str({SENTINEL}),table_gpt0({SECTION}/{}),sub({scope}.now) -m int gt 0 }}", tables.bans)
}

fn complete(plan: &Plan, peers: &str, frontend: &str) -> String {
    let supported =
        plan.version.map_or_else(|| format!("{} and later", Version::OLDEST), |version| version.to_string());
    format!(
        "\
# HAProxy {supported} with banmesh as a peer (haproxy.peers.listen).
global
    # The name of this HAProxy among its peers. It may be the same on every node, because every node has its own banmesh.
    localpeer lb1
    log /dev/log local0
    # For `show table`, `show peers` and similar commands. Anyone who can write to this socket has full control of HAProxy.
    stats socket /run/haproxy/admin.sock mode 660 level admin
    stats timeout 30s
    user haproxy
    group haproxy

defaults
    log global
    option dontlognull
    timeout connect 5s
    timeout client  50s
    timeout server  50s

{peers}
{frontend}
{servers}",
        servers = servers(plan),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_or_refused() {
        assert_eq!("100/10s".parse(), Ok(Limit { count: 100, period: "10s".to_owned() }));
        for text in ["100", "0/10s", "100/10", "100/10 parsecs", "-1/10s", "100/500ms", "100/25d"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
