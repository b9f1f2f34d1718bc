//! A correct configuration of HAProxy, and every trap as a change to it. `tests/node/haproxy_check` tests that banmesh reports them, and
//! `cluster-tests/tests/cluster/haproxy_config.rs` how HAProxy reacts.

/// A correct `haproxy.cfg`; `@spoe@` is the path of the SPOE file.
pub const CFG: &str = "\
global
    log stdout format raw local0
    stats socket /tmp/x.sock level admin
defaults
    log global
    timeout connect 5s
    timeout client  50s
    timeout server  50s
backend ip-reputation-cache
    stick-table type ipv6 size 1k expire 10s store gpt(2),http_req_rate(10s)
frontend web
    mode http
    option httplog
    bind [::1]:18080
    bind 127.0.0.1:18080
    filter spoe engine ip-reputation config @spoe@
    http-request track-sc0 src table ip-reputation-cache
    http-request set-var(txn.since) sc_get_gpt(1,0)
    http-request set-var(txn.age) date,sub(txn.since)
    acl fresh var(txn.age) -m int lt 10
    http-request send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }
    http-request deny deny_status 403 if { var(txn.ip.banned) -m int eq 1 }
    http-request set-header X-IP-Status allowed if { var(txn.ip.banned) -m int eq 0 }
    default_backend web-servers
frontend imap
    mode tcp
    option tcplog
    bind 127.0.0.1:18143
    filter spoe engine ip-reputation config @spoe@
    tcp-request inspect-delay 500ms
    tcp-request content send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }
    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }
    default_backend imap-servers
backend web-servers
    mode http
    server web1 127.0.0.1:18081 check
backend imap-servers
    mode tcp
    server imap1 127.0.0.1:18082 check
backend agents
.if version_atleast(3.1)
    mode spop
.else
    mode tcp
.endif
    option spop-check
    option redispatch 1
    timeout connect 50ms
    timeout server 10m
    default-server check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter on-marked-down shutdown-sessions
    server primary 127.0.0.1:12345
    server second 127.0.0.1:12346 backup
frontend stats
    mode http
    bind 127.0.0.1:18404
    stats enable
    stats uri /stats
    stats auth admin:secret
    stats admin if TRUE
";

/// The SPOE file of [`CFG`].
pub const SPOE: &str = "\
[ip-reputation]
spoe-agent ip-reputation-agent
    messages check-ip
    groups again
    option var-prefix ip
    option set-on-error error
    option continue-on-error
    timeout hello 500ms
    timeout idle 1m
    timeout processing 200ms
    use-backend agents
    log global
spoe-message check-ip
    args src_ip=src
    event on-client-session
spoe-group again
    messages check-ip-again
spoe-message check-ip-again
    args src_ip=src
";

/// How HAProxy reacts to a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaProxy {
    /// It accepts the configuration, which makes it a trap.
    Takes,
    /// It refuses the configuration.
    Refuses,
    /// It refuses the configuration from this version on.
    RefusesFrom(u16, u16),
}

/// A change to the correct configuration, and the expected finding.
#[derive(Debug)]
pub struct Trap {
    /// The code of the finding.
    pub code: &'static str,
    /// `error`, `warning` or `note`
    pub severity: &'static str,
    /// The file to change.
    pub file: File,
    /// The text to replace, at its first occurrence.
    pub from: &'static str,
    /// The replacement. `~` marks the beginning of the line that the finding must name, and is removed.
    pub to: &'static str,
    /// How HAProxy reacts.
    pub haproxy: HaProxy,
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `haproxy.cfg`
    Cfg,
    /// The SPOE file.
    Spoe,
}

/// The two files of a trap, and the line that the finding must name.
pub fn spring(trap: &Trap) -> (String, String, usize) {
    let base = if trap.file == File::Cfg { CFG } else { SPOE };
    assert!(base.contains(trap.from), "{}: {:?} is not there", trap.code, trap.from);
    let marked = base.replacen(trap.from, trap.to, 1);
    assert!(marked.contains('~'), "{}: no ~ in {:?}", trap.code, trap.to);
    let at = marked.find('~').unwrap_or_default();
    let line = marked[..at].lines().count().max(1) + usize::from(marked[..at].ends_with('\n'));
    let text = marked.replacen('~', "", 1);
    match trap.file {
        File::Cfg => (text, SPOE.to_owned(), line),
        File::Spoe => (CFG.to_owned(), text, line),
    }
}

const fn cfg(
    code: &'static str,
    severity: &'static str,
    from: &'static str,
    to: &'static str,
    haproxy: HaProxy,
) -> Trap {
    Trap { code, severity, file: File::Cfg, from, to, haproxy }
}

const fn spoe(
    code: &'static str,
    severity: &'static str,
    from: &'static str,
    to: &'static str,
    haproxy: HaProxy,
) -> Trap {
    Trap { code, severity, file: File::Spoe, from, to, haproxy }
}

use HaProxy::{Refuses, RefusesFrom, Takes};

const DENY: &str = "    http-request deny deny_status 403 if { var(txn.ip.banned) -m int eq 1 }\n";
const AGAIN: &str = "    http-request send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n";
const REJECT: &str = "    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n";
const FILTER: &str = "    filter spoe engine ip-reputation config @spoe@\n";
const MODE: &str = ".if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n";

/// Every trap.
#[rustfmt::skip]
pub const TRAPS: &[Trap] = &[
    // The SPOE file.
    spoe("option-argument", "error", "option set-on-error error", "~option set-on-error error 0", Refuses),
    spoe("option-name", "error", "option set-on-error error", "~option set-on-error my-error", Refuses),
    spoe("option-name", "error", "option var-prefix ip", "~option var-prefix i-p", Refuses),
    spoe("option-no", "error", "option continue-on-error", "option continue-on-error\n    ~option no async", Refuses),
    spoe("error-as-verdict", "error", "option set-on-error error", "~option set-on-error banned", Takes),
    spoe("no-prefix", "error", "spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n", "~spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n", Refuses),
    spoe("no-event", "error", "spoe-message check-ip\n    args src_ip=src\n    event on-client-session\n", "~spoe-message check-ip\n    args src_ip=src\n", Takes),
    spoe("unknown-event", "error", "event on-client-session", "~event on-session", Refuses),
    spoe("event-never", "error", "event on-client-session", "~event on-frontend-http-request", Takes),
    spoe("no-address", "error", "spoe-message check-ip\n    args src_ip=src", "~spoe-message check-ip\n    args port=src_port", Takes),
    spoe("unknown-message", "error", "messages check-ip\n", "~messages check-ip nothing\n", Refuses),
    spoe("unknown-message", "error", "spoe-group again\n    messages check-ip-again", "spoe-group again\n    ~messages nothing", Refuses),
    spoe("unknown-group", "error", "groups again", "~groups again nothing", Refuses),
    spoe("never-sent", "warning", "spoe-group again\n", "~spoe-message forgotten\n    args src_ip=src\nspoe-group again\n", Takes),
    spoe("two-agents", "error", "spoe-group again\n", "~spoe-agent second\n    use-backend agents\nspoe-group again\n", Refuses),
    spoe("no-processing-timeout", "warning", "spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n    timeout processing 200ms\n", "~spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n", Takes),
    spoe("long-processing-timeout", "warning", "timeout processing 200ms", "~timeout processing 5s", Takes),
    spoe("long-processing-timeout", "note", "timeout processing 200ms", "~timeout processing 1s", Takes),
    spoe("no-backend", "error", "spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n    timeout processing 200ms\n    use-backend agents\n", "~spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n    timeout processing 200ms\n", Refuses),
    spoe("unknown-backend", "error", "use-backend agents", "~use-backend nowhere", Refuses),
    spoe("unknown-backend", "error", "use-backend agents", "~use-backend web", Refuses),
    spoe("no-continue-on-error", "warning", "spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n", "~spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n", Takes),
    spoe("frame-size", "error", "option continue-on-error", "option continue-on-error\n    ~max-frame-size 100", Refuses),
    spoe("frame-size", "error", "option continue-on-error", "option continue-on-error\n    ~max-frame-size 16384", Refuses),
    spoe("no-effect", "note", "option continue-on-error", "option continue-on-error\n    ~option async", Takes),
    spoe("no-spoe-log", "note", "spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n    timeout processing 200ms\n    use-backend agents\n    log global\n", "~spoe-agent ip-reputation-agent\n    messages check-ip\n    groups again\n    option var-prefix ip\n    option set-on-error error\n    option continue-on-error\n    timeout hello 500ms\n    timeout idle 1m\n    timeout processing 200ms\n    use-backend agents\n", Takes),
    spoe("unreadable-line", "error", "spoe-message check-ip-again\n    args src_ip=src\n", "spoe-message check-ip-again\n    ~args src_ip=src", Refuses),
    // Filters.
    cfg("filter-condition", "error", FILTER, "    ~filter spoe engine ip-reputation config @spoe@ if TRUE\n", Refuses),
    cfg("engine-scope", "error", FILTER, "    ~filter spoe engine ip-reputations config @spoe@\n", Refuses),
    cfg("engine-scope", "error", FILTER, "    ~filter spoe config @spoe@\n", Refuses),
    cfg("no-spoe-file", "error", FILTER, "    ~filter spoe engine ip-reputation config /nowhere/else.conf\n", Refuses),
    cfg("duplicate-engine", "error", FILTER, "    filter spoe engine ip-reputation config @spoe@\n    ~filter spoe engine ip-reputation config @spoe@\n", Refuses),
    cfg("no-filter", "error", "    filter spoe engine ip-reputation config @spoe@\n    tcp-request inspect-delay 500ms\n    tcp-request content send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n    tcp-request content reject", "    ~tcp-request content reject", Takes),
    // Names.
    cfg("never-set", "error", DENY, "    ~http-request deny if { var(txn.banned) -m int eq 1 }\n", Takes),
    cfg("never-set", "error", DENY, "    ~http-request deny if { var(txn.reputation.banned) -m int eq 1 }\n", Takes),
    cfg("never-set", "error", DENY, "    ~http-request deny if { var(req.ip.banned) -m int eq 1 }\n", Takes),
    cfg("never-set", "error", DENY, "    ~http-request deny if { var(txn.ip.baned) -m int eq 1 }\n", Takes),
    cfg("never-set", "error", DENY, "    ~http-request deny if { var(txn.ip.is_banned) -m int eq 1 }\n", Takes),
    cfg("never-set", "error", AGAIN, "    ~http-request send-spoe-group ip-reputation again if { var(txn.error) -m int gt 0 }\n", Takes),
    cfg("never-set", "error", AGAIN, "    ~http-request send-spoe-group ip-reputation again if { var(sess.ip.error) -m int gt 0 }\n", Takes),
    cfg("never-set", "error", AGAIN, "    ~acl is-banned var(txn.banned) -m int eq 1\n", Takes),
    cfg("never-set", "error", AGAIN, "    ~http-request set-header X-Banned %[var(txn.banned)]\n", Takes),
    cfg("long-name", "warning", AGAIN, "    ~http-request set-var(txn.a_name_that_is_so_long_that_haproxy_cuts_it_somewhere_near_its_end) int(1)\n", Takes),
    // Rules.
    cfg("unknown-engine", "error", AGAIN, "    ~http-request send-spoe-group reputation again\n", Refuses),
    cfg("unknown-group", "error", AGAIN, "    ~http-request send-spoe-group ip-reputation agian\n", Refuses),
    cfg("no-inspect-delay", "warning", "    tcp-request inspect-delay 500ms\n    tcp-request content send", "    ~tcp-request content send", Takes),
    cfg("too-early", "error", REJECT, "    ~tcp-request connection reject if { var(sess.ip.banned) -m int eq 1 }\n    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n", Takes),
    cfg("too-early", "error", REJECT, "    acl banned var(sess.ip.banned) -m int eq 1\n    ~tcp-request session reject if banned\n    tcp-request content reject if banned\n", Takes),
    cfg("needs-http", "error", REJECT, "    ~http-request deny if { var(sess.ip.banned) -m int eq 1 }\n", Takes),
    cfg("dead-rule", "warning", DENY, "    http-request deny if { var(txn.ip.banned) -m int eq 1 }\n    ~http-request set-header X-IP-Status banned if { var(txn.ip.banned) -m int eq 1 }\n", Takes),
    cfg("dead-rule", "warning", DENY, "    http-request allow\n    ~http-request deny if { var(txn.ip.banned) -m int eq 1 }\n", Takes),
    cfg("set-src-too-late", "error", AGAIN, "    ~http-request set-src req.hdr_ip(x-forwarded-for,-1) if { src 127.0.0.1 }\n", Takes),
    cfg("spoofable", "warning", AGAIN, "    ~http-request set-src req.hdr_ip(x-forwarded-for,-1)\n    http-request send-spoe-group ip-reputation again\n", Takes),
    cfg("spoofable", "warning", AGAIN, "    ~http-request set-src req.hdr_ip(x-forwarded-for,1) if { src 127.0.0.1 }\n    http-request send-spoe-group ip-reputation again\n", Takes),
    cfg("spoofable", "warning", AGAIN, "    ~http-request set-src hdr_ip(x-real-ip) if { req.hdr(x-real-ip) -m found }\n    http-request send-spoe-group ip-reputation again\n", Takes),
    spoe("header-too-early", "error", "spoe-message check-ip\n    args src_ip=src", "~spoe-message check-ip\n    args src_ip=req.hdr_ip(x-forwarded-for)", Refuses),
    spoe("spoofable", "warning", "spoe-message check-ip-again\n    args src_ip=src", "~spoe-message check-ip-again\n    args src_ip=req.hdr_ip(x-forwarded-for)", Takes),
    cfg("stale", "note", DENY, "    ~http-request deny if { var(sess.ip.banned) -m int eq 1 }\n", Takes),
    cfg("httplog", "warning", "    option tcplog\n", "    ~option httplog\n", Takes),
    cfg("redirect-never", "warning", "    bind [::1]:18080\n    bind 127.0.0.1:18080\n", "    bind 127.0.0.1:18080 ssl crt @pem@\n    ~http-request redirect scheme https if !{ ssl_fc }\n", Takes),
    cfg("fail-open", "note", DENY, "    ~http-request deny if { var(txn.ip.banned) -m int eq 1 }\n", Takes),
    cfg("fail-closed", "note", DENY, "    http-request deny if { var(txn.ip.banned) -m int eq 1 }\n    ~http-request deny deny_status 503 if !{ var(txn.ip.banned) -m found }\n", Takes),
    cfg("fail-closed", "note", REJECT, "    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n    ~tcp-request content reject if { var(txn.ip.error) -m int gt 0 }\n", Takes),
    cfg("not-used", "warning", "    filter spoe engine ip-reputation config @spoe@\n    http-request track-sc0 src table ip-reputation-cache\n    http-request set-var(txn.since) sc_get_gpt(1,0)\n    http-request set-var(txn.age) date,sub(txn.since)\n    acl fresh var(txn.age) -m int lt 10\n    http-request send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n    http-request deny deny_status 403 if { var(txn.ip.banned) -m int eq 1 }\n    http-request set-header X-IP-Status allowed if { var(txn.ip.banned) -m int eq 0 }\n    default_backend web-servers\nfrontend imap\n    mode tcp\n    option tcplog\n    bind 127.0.0.1:18143\n    filter spoe engine ip-reputation config @spoe@\n    tcp-request inspect-delay 500ms\n    tcp-request content send-spoe-group ip-reputation again if { var(txn.ip.error) -m int gt 0 }\n    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n", "    ~filter spoe engine ip-reputation config @spoe@\n    default_backend web-servers\nfrontend imap\n    mode tcp\n    bind 127.0.0.1:18143\n", Takes),
    // Expressions.
    cfg("no-match-method", "error", DENY, "    ~http-request deny if { var(txn.ip.banned) eq 1 }\n", Refuses),
    cfg("no-match-method", "error", "acl fresh var(txn.age) -m int lt 10", "~acl fresh var(txn.age) lt 10", Refuses),
    cfg("no-match-method", "error", DENY, "    ~http-request deny if { var(txn.ip.banned) }\n", Refuses),
    cfg("no-such-action", "error", AGAIN, "    ~http-request accept if { var(txn.ip.banned) -m int eq 0 }\n", Refuses),
    cfg("no-such-action", "error", AGAIN, "    ~http-request sc-set-gpc0(0) 1\n", Refuses),
    cfg("converter-as-sample", "error", "http-request set-var(txn.age) date,sub(txn.since)", "~http-request set-var(txn.age) sub(%[var(txn.now)],%[var(txn.since)])", Refuses),
    cfg("always-found", "warning", "acl fresh var(txn.age) -m int lt 10", "~acl known var(txn.since) -m found", Takes),
    cfg("age-in-seconds", "warning", "acl fresh var(txn.age) -m int lt 10", "~acl fresh var(txn.age) -m int lt 60000", Takes),
    cfg("table-ipv4", "warning", "stick-table type ipv6", "~stick-table type ip", Takes),
    cfg("lua-outside-global", "error", "frontend stats\n", "frontend stats\n    ~lua-load /nowhere.lua\n", Refuses),
    cfg("lua-booleans", "warning", "    log stdout format raw local0\n", "    log stdout format raw local0\n    ~lua-load @lua@\n", Takes),
    cfg("unreadable-line", "error", "    stats uri /stats\n", "    ~stats uri \"/stats\n", Refuses),
    cfg("unreadable-line", "error", "    stats uri /stats\n", "    ~stats uri \"/stats$\"\n", Refuses),
    cfg("unreadable-line", "error", "    stats admin if TRUE\n", "    ~stats admin if TRUE", Refuses),
    cfg("empty-word", "error", AGAIN, "    ~acl empty path -m str \"\"\n", RefusesFrom(3, 3)),
    cfg("empty-word", "error", AGAIN, "    ~http-request set-var(txn.x) str(a) if { path -m str \"\" }\n", Refuses),
    // The agents' backend.
    cfg("agent-mode", "error", MODE, "    ~mode http\n", Refuses),
    cfg("no-check", "warning", "    server primary 127.0.0.1:12345\n", "    ~server primary 127.0.0.1:12345 no-check\n", Takes),
    cfg("no-spop-check", "warning", "backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n    option spop-check\n", "~backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n", Takes),
    cfg("slow-mark-down", "note", "    default-server check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter on-marked-down shutdown-sessions\n    server primary", "    default-server check inter 1s\n    ~server primary", Takes),
    cfg("hasty-mark-down", "warning", "    server primary 127.0.0.1:12345\n", "    ~server primary 127.0.0.1:12345 on-error mark-down\n", Takes),
    cfg("retry-ended", "warning", "    timeout connect 50ms\n    timeout server 10m\n    default-server check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter on-marked-down shutdown-sessions\n    server primary 127.0.0.1:12345\n    server second 127.0.0.1:12346 backup\n", "    timeout connect 50ms\n    timeout server 10m\n    default-server check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter on-marked-down shutdown-sessions\n    ~server primary 127.0.0.1:12345 fastinter 25ms\n    server second 127.0.0.1:12346 backup\n", Takes),
    cfg("send-proxy", "error", "    server primary 127.0.0.1:12345\n", "    ~server primary 127.0.0.1:12345 send-proxy\n", Takes),
    cfg("no-redispatch", "warning", "backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n    option spop-check\n    option redispatch 1\n", "~backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n    option spop-check\n", Takes),
    cfg("slow-connect", "warning", "    timeout connect 50ms\n", "    ~timeout connect 5s\n", Takes),
    cfg("no-agent", "error", "backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n    option spop-check\n    option redispatch 1\n    timeout connect 50ms\n    timeout server 10m\n    default-server check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter on-marked-down shutdown-sessions\n    server primary 127.0.0.1:12345\n    server second 127.0.0.1:12346 backup\n", "~backend agents\n.if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n", Takes),
    cfg("other-port", "warning", "    server primary 127.0.0.1:12345\n", "    ~server primary 127.0.0.1:12349\n", Takes),
    cfg("unused-backend", "warning", "frontend stats\n", "~backend spoe-second\n    server third 127.0.0.1:12347 check backup\nfrontend stats\n", Takes),
    cfg("same-name", "warning", "backend web-servers\n    mode http\n", "frontend web-servers\n    mode http\n~backend web-servers\n    mode http\n", RefusesFrom(3, 3)),
    // Ports that others can reach.
    cfg("open-admin", "warning", "    stats auth admin:secret\n    stats admin", "    ~stats admin", Takes),
    cfg("open-admin", "error", "    stats socket /tmp/x.sock level admin\n", "    ~stats socket ipv4@0.0.0.0:18999 level admin\n", Takes),
];
