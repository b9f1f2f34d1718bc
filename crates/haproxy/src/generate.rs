//! A configuration for HAProxy that asks this node: SPOE file, agents' backend, frontend.

use std::fmt::Write as _;
use std::time::Duration;

use super::version::Version;
use banmesh_types::target::Target;

/// What counts for every agent. Health checks decide whether one is dead, and an error lets them ask at once: taken out by the
/// error itself, an agent that lives would be gone for a second whenever HAProxy is too busy to finish a connection in time.
pub const DEFAULT_SERVER: &str = "check inter 1s fastinter 50ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter \
                                  on-marked-down shutdown-sessions";

/// What the frontend carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// HTTP
    Http,
    /// IMAP, SMTP and everything else
    Tcp,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For which HAProxy; without one the text suits all from 2.6 on.
    pub version: Option<Version>,
    /// What the frontend carries.
    pub traffic: Traffic,
    /// Refuse everybody while no agent answers.
    pub fail_closed: bool,
    /// Ask a second time after an error.
    pub retry: bool,
    /// One check a connection, renewed every ten seconds, instead of one a request.
    pub per_connection: bool,
    /// Clients come through a balancer that speaks the PROXY protocol.
    pub proxy_protocol: bool,
    /// The proxies that are believed: by the PROXY protocol if that is on, else by X-Forwarded-For.
    pub trusted_proxies: Vec<Target>,
    /// The agent of this node, `HOST:PORT`.
    pub agent: String,
    /// A second agent, `HOST:PORT`.
    pub backup: Option<String>,
    /// For how long the agent still answers on its way out.
    pub drain: Duration,
    /// Where the SPOE file will be; [`Plan::spoe_file`] is its name.
    pub spoe_path: String,
    /// What the frontend listens on: the words after `bind`.
    pub bind: Option<String>,
    /// The server behind it, `HOST:PORT`.
    pub server: Option<String>,
}

impl Plan {
    /// Whether X-Forwarded-For names the client.
    fn is_by_header(&self) -> bool {
        !self.trusted_proxies.is_empty() && !self.proxy_protocol
    }

    /// Whether rules ask: where the address changes first, or where not every request is to be asked about.
    fn asks_by_rule(&self) -> bool {
        self.is_by_header() || self.per_connection
    }

    /// The name of the SPOE file: one where HAProxy asks by itself and one where rules ask can lie side by side.
    pub fn spoe_file(&self) -> &'static str {
        if self.asks_by_rule() { "spoe-ip-reputation-on-demand.conf" } else { "spoe-ip-reputation.conf" }
    }
}

/// What does not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// HAProxy is too old.
    #[error("HAProxy {0} is too old: banmesh is made for {oldest} and later", oldest = Version::OLDEST)]
    TooOld(Version),
    /// X-Forwarded-For in a TCP frontend.
    #[error("--trusted-proxy reads X-Forwarded-For, which is HTTP; in TCP frontends use --proxy-protocol, too")]
    HeaderInTcp,
    /// One check a connection, in TCP.
    #[error("--per-connection is for --mode http; a TCP frontend asks once per connection anyway")]
    PerConnectionInTcp,
    /// One check a connection that carries many clients.
    #[error("--per-connection and --trusted-proxy exclude each other: a connection of a proxy carries many clients")]
    PerConnectionOfProxy,
    /// A word of the operator's would be read as something else.
    #[error("{0}: `{1}` must be an address and nothing else")]
    NotOneWord(&'static str, String),
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The SPOE file.
    pub spoe: String,
    /// The backend with the agents.
    pub backend: String,
    /// The frontend.
    pub frontend: String,
    /// A whole `haproxy.cfg` around both.
    pub complete: String,
}

/// Writes the configuration.
///
/// # Errors
/// When options exclude each other.
pub fn generate(plan: &Plan) -> Result<Generated, PlanError> {
    if let Some(version) = plan.version.filter(|version| *version < Version::OLDEST) {
        return Err(PlanError::TooOld(version));
    }
    let http = plan.traffic == Traffic::Http;
    let by_header = plan.is_by_header();
    if by_header && !http {
        return Err(PlanError::HeaderInTcp);
    }
    if plan.per_connection && !http {
        return Err(PlanError::PerConnectionInTcp);
    }
    if plan.per_connection && by_header {
        return Err(PlanError::PerConnectionOfProxy);
    }
    let words =
        [("--agent", Some(&plan.agent)), ("--backup", plan.backup.as_ref()), ("--server", plan.server.as_ref())];
    for (option, word) in words {
        if let Some(word) = word.filter(|word| word.is_empty() || word.contains(|c: char| !is_plain(c))) {
            return Err(PlanError::NotOneWord(option, word.clone()));
        }
    }
    if let Some(bind) = plan.bind.as_ref().filter(|bind| bind.contains(|c: char| c != ' ' && !is_plain(c))) {
        return Err(PlanError::NotOneWord("--bind", bind.clone()));
    }
    let (spoe, backend) = (spoe(plan, plan.asks_by_rule()), backend(plan));
    let frontend = if http { http_frontend(plan, by_header) } else { tcp_frontend(plan) };
    let complete = complete(plan, &frontend, &backend);
    Ok(Generated { spoe, backend, frontend, complete })
}

/// What HAProxy takes as a part of a word without quotes.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:[]/@*%,=".contains(c)
}

fn spoe(plan: &Plan, on_demand: bool) -> String {
    let (asks, group) = match (on_demand, plan.retry) {
        (true, _) => (
            "    # Nothing is asked by itself: rules of the frontend send this group.\n    groups   check\n",
            Some("check"),
        ),
        (false, true) => (
            "    messages check-ip\n    # The second try, which a rule of the frontend sends.\n    groups   again\n",
            Some("again"),
        ),
        (false, false) => ("    messages check-ip\n", None),
    };
    let mut text = format!(
        "\
# {path}: how HAProxy asks banmesh about a client. Read by \"filter spoe engine ip-reputation\".
#
# banmesh sets the integer \"banned\" (1 or 0) in the scopes txn and sess. With the prefix below the variables are
#     txn.ip.banned    for HTTP: empty at the start of every request, so never stale
#     sess.ip.banned   for TCP, and for rules that span the requests of one connection
#     txn.ip.error     set only when no answer came (1 is a timeout, 256 and more an error of the protocol)
[ip-reputation]

spoe-agent ip-reputation-agent
{asks}    # What stands before the names of the variables: without it HAProxy refuses the agent's name, which has a \"-\".
    option   var-prefix ip
    # A name of its own. Called \"banned\", the code of an error would read as a ban.
    option   set-on-error error
    # Keep checking later requests of a connection after one check failed, and allow a second try.
    option   continue-on-error
    # How long a client waits at most when the agent hangs. An answer takes well under a millisecond.
    timeout  processing 200ms
",
        path = plan.spoe_path,
    );
    if plan.version.is_none_or(|version| !version.has_spop_mode()) {
        text.push_str("    # HAProxy up to 3.0 needs these two; later ones do without.\n");
        text.push_str("    timeout  hello      500ms\n    timeout  idle       1m\n");
    }
    text.push_str("    use-backend spoe-ip-reputation\n");
    text.push_str("    # Errors are logged, with their code. Without the second line every single check is.\n");
    text.push_str("    log global\n    option   dontlog-normal\n");
    if !on_demand {
        text.push_str("\n# Sent once per TCP connection in TCP frontends, and once per request in HTTP frontends.\n");
        text.push_str("spoe-message check-ip\n    args  src_ip=src\n    event on-client-session\n");
    }
    if let Some(group) = group {
        let message = if on_demand { "check-ip" } else { "check-ip-again" };
        let _ = write!(
            text,
            "\nspoe-group {group}\n    messages {message}\n\nspoe-message {message}\n    args  src_ip=src\n"
        );
    }
    text
}

fn backend(plan: &Plan) -> String {
    let mut text = String::from("# The agents: banmesh.\nbackend spoe-ip-reputation\n");
    text.push_str(match plan.version {
        Some(version) if version.has_spop_mode() => {
            "    # With \"mode tcp\", HAProxy from 3.1 on may open a connection for every single check.\n    mode spop\n"
        }
        Some(_) => "    # From HAProxy 3.1 on this must become \"mode spop\".\n    mode tcp\n",
        None => {
            "# From HAProxy 3.1 on, \"mode tcp\" may open a connection for every single check.\n\
             .if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n"
        }
    });
    let _ = write!(
        text,
        "    \
    # The health check asks in the agent's own protocol, so that one that hangs or leaves is seen.
    option spop-check
    # What one agent refuses, another is asked.
    option redispatch 1
    retries 3
    timeout connect 50ms
    timeout check   500ms
    timeout server  10m
    # A refused connection makes HAProxy look after the agent at once (\"fastinter\") and not only in the next second. Not
    # \"mark-down\": one that is only slow, with a thousand clients at a moment, would be taken for dead, and all would pass.
    # \"shutdown-sessions\": without it, HAProxy up to 3.0 goes on asking an agent that hangs.
    # {drain}
    default-server {default_server}
    server primary {agent}
",
        default_server = DEFAULT_SERVER.replace("inter 1s", &format!("inter {}", interval(plan.drain))),
        drain = if plan.drain.is_zero() {
            "This agent leaves at once (spoa.drain is 0).".to_owned()
        } else {
            format!("A leaving agent still answers for {} ms (spoa.drain).", plan.drain.as_millis())
        },
        agent = plan.agent,
    );
    if let Some(backup) = &plan.backup {
        text.push_str(
            "    # Asked when the first is gone. Let the two form a cluster, so that both know the same bans.\n",
        );
        let _ = writeln!(text, "    server backup  {backup} backup");
    }
    text
}

/// Two checks must notice that the agent leaves while it still answers.
fn interval(drain: Duration) -> String {
    match drain.as_millis() {
        0 | 2000.. => "1s".to_owned(),
        millis => format!("{}ms", (millis / 3).max(50)),
    }
}

const FILTER_COMMENT: &str = "    # Asks banmesh about \"src\"";
const ERROR: &str = "{ var(txn.ip.error) -m int gt 0 }";

fn head(plan: &Plan, name: &str, mode: &str, port: u16) -> String {
    let mut text = format!("frontend {name}\n    mode {mode}\n    option {mode}log\n");
    let bind = plan.bind.clone().unwrap_or_else(|| format!(":::{port} v4v6"));
    if plan.proxy_protocol && plan.trusted_proxies.is_empty() {
        text.push_str(
            "    # Every connection must begin with the PROXY protocol: let nobody but the balancer reach this port.\n",
        );
        let _ = writeln!(text, "    bind {bind} accept-proxy");
        return text;
    }
    let _ = writeln!(text, "    bind {bind}");
    if plan.proxy_protocol {
        text.push_str("    # Only these may name the client, by the PROXY protocol (versions 1 and 2).\n");
        let _ = writeln!(text, "    tcp-request connection expect-proxy layer4 if {{ src {} }}", sources(plan));
    }
    text
}

fn sources(plan: &Plan) -> String {
    plan.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn http_frontend(plan: &Plan, by_header: bool) -> String {
    let mut text = head(plan, "http-frontend", "http", 80);
    let mut add = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let when =
        if by_header || plan.per_connection { " when a rule says so." } else { " at the start of every request." };
    add(&format!("{FILTER_COMMENT}{when}"));
    add(&format!("    filter spoe engine ip-reputation config {}", plan.spoe_path));
    if by_header {
        add(
            "    # The last address in the header is the one that the trusted proxy saw. Those before it came from the client.",
        );
        add(&format!("    acl trusted-proxy src {}", sources(plan)));
        add("    http-request set-src req.hdr_ip(x-forwarded-for,-1) if trusted-proxy");
        add("    # After the address has changed, not before.");
        add("    http-request send-spoe-group ip-reputation check");
        if plan.retry {
            add("    # A second time if the first brought no answer.");
            add(&format!("    http-request send-spoe-group ip-reputation check if {ERROR}"));
        }
    } else if plan.per_connection {
        add(
            "    # The answer stays with the connection (scope \"sess\") for 10 seconds: so much later at most, a ban reaches",
        );
        add("    # connections that are already open.");
        add("    acl checked var(sess.asked) -m found");
        add("    acl old     date,sub(sess.asked) -m int ge 10");
        add("    http-request set-var(txn.ask) bool(true) if !checked || old");
        add("    http-request send-spoe-group ip-reputation check if { var(txn.ask) -m bool }");
        if plan.retry {
            add("    # A second time if the first brought no answer.");
            add(&format!("    http-request send-spoe-group ip-reputation check if {{ var(txn.ask) -m bool }} {ERROR}"));
        }
        add("    # Only an answer counts. After an error the next request asks again.");
        add("    http-request set-var(sess.asked) date if { var(txn.ask) -m bool } { var(txn.ip.banned) -m found }");
    } else if plan.retry {
        add("    # A second time if the first brought no answer.");
        add(&format!("    http-request send-spoe-group ip-reputation again if {ERROR}"));
    }
    let verdict = if plan.per_connection { "sess.ip.banned" } else { "txn.ip.banned" };
    add("    # Banned: 403. The header tells who looks at it that the ban did this, and not the application.");
    add(&format!("    http-request deny deny_status 403 hdr X-IP-Status banned if {{ var({verdict}) -m int eq 1 }}"));
    if plan.fail_closed {
        add("    # Fail closed: without an answer nobody passes. Delete this line to let clients pass instead.");
        add(&format!(
            "    http-request deny deny_status 503 hdr X-IP-Status unknown if !{{ var({verdict}) -m found }}"
        ));
    } else {
        add("    # Fail open: while no agent answers, clients pass (--fail-closed refuses them).");
    }
    add("    default_backend web-backend");
    text
}

fn tcp_frontend(plan: &Plan) -> String {
    let mut text = head(plan, "mail-frontend", "tcp", 143);
    let _ = writeln!(text, "{FILTER_COMMENT} once per connection, before the server is connected to.");
    let _ = writeln!(text, "    filter spoe engine ip-reputation config {}", plan.spoe_path);
    if plan.retry {
        text.push_str("    # A second time if the first brought no answer. Without inspect-delay nobody would wait for that one.\n");
        text.push_str("    tcp-request inspect-delay 500ms\n");
        let _ = writeln!(text, "    tcp-request content send-spoe-group ip-reputation again if {ERROR}");
    }
    text.push_str("    # Banned: the connection ends before the banner. (\"tcp-request connection\" comes before the check: never fires.)\n");
    text.push_str("    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n");
    if plan.fail_closed {
        text.push_str(
            "    # Fail closed: without an answer nobody passes. Delete this line to let clients pass instead.\n",
        );
        text.push_str("    tcp-request content reject if !{ var(sess.ip.banned) -m found }\n");
    } else {
        text.push_str("    # Fail open: while no agent answers, clients pass (--fail-closed refuses them).\n");
    }
    text.push_str("    default_backend mail-backend\n");
    text
}

fn complete(plan: &Plan, frontend: &str, backend: &str) -> String {
    let made_for = plan.version.map_or_else(|| format!("{} and later", Version::OLDEST), |version| version.to_string());
    let (name, mode, server, default) = match plan.traffic {
        Traffic::Http => ("web-backend", "http", "web1", "127.0.0.1:8080"),
        Traffic::Tcp => ("mail-backend", "tcp", "mail1", "127.0.0.1:10143"),
    };
    let address = plan.server.as_deref().unwrap_or(default);
    format!(
        "\
# HAProxy ({made_for}) with banmesh: banned clients are refused. Needs {spoe}.
global
    log /dev/log local0
    # For `show stat` and the like; who may write to it may do everything.
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

{frontend}
# Your servers.
backend {name}
    mode {mode}
    server {server} {address} check

{backend}",
        spoe = plan.spoe_path,
    )
}
