//! Generates a configuration that makes HAProxy query a node: the SPOE file, the backend of the agents, and a frontend.

use std::fmt::Write as _;
use std::time::Duration;

use banmesh_types::target::Target;

use crate::version::Version;

/// The settings of all agents, after the word `default-server`.
///
/// Health checks decide whether an agent is dead, and an error triggers one at once. If an error alone marked an agent as DOWN, a
/// live agent would be out of service for a second whenever HAProxy is too busy to complete a connection in time.
pub const DEFAULT_SERVER: &str = "check inter 1s fastinter 30ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter \
                                  on-marked-down shutdown-sessions";

/// Kind of traffic in the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// `mode http`
    Http,
    /// `mode tcp`, for IMAP, SMTP and all other protocols.
    Tcp,
}

/// The file name of the page for banned clients.
pub const PAGE_FILE: &str = "banned.html";

/// The options of the generated configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The version of HAProxy. `None` generates a configuration for all versions from 2.6 on.
    pub version: Option<Version>,
    /// Kind of traffic in the frontend.
    pub traffic: Traffic,
    /// Whether all clients are refused while no agent answers.
    pub fail_closed: bool,
    /// Whether a check is repeated once after an error.
    pub retry: bool,
    /// Whether there is one check per connection, repeated after ten seconds, instead of one per request.
    pub per_connection: bool,
    /// Whether clients arrive through a load balancer that uses the PROXY protocol.
    pub proxy_protocol: bool,
    /// The proxies that may name the client: with the PROXY protocol if `proxy_protocol` is set, otherwise with X-Forwarded-For.
    pub trusted_proxies: Vec<Target>,
    /// The agent of this node, `HOST:PORT`.
    pub agent: String,
    /// A second agent, `HOST:PORT`.
    pub backup: Option<String>,
    /// How long the agent keeps answering while it shuts down.
    pub drain: Duration,
    /// The path of the SPOE file. Its file name should be [`Plan::spoe_file`].
    pub spoe_path: String,
    /// The words after `bind`. Default: port 80 for HTTP and 143 for TCP, on all addresses.
    pub bind: Option<String>,
    /// The server behind the frontend, `HOST:PORT`. Default: port 8080 for HTTP and 10143 for TCP, on 127.0.0.1.
    pub server: Option<String>,
    /// An email address or URL for people who are banned by mistake. With it, banned clients get a page that names it.
    pub contact: Option<String>,
    /// The path of that page. Its file name should be [`PAGE_FILE`].
    pub page_path: String,
}

impl Plan {
    /// Whether the address comes from X-Forwarded-For.
    fn is_by_header(&self) -> bool {
        !self.trusted_proxies.is_empty() && !self.proxy_protocol
    }

    /// Whether rules start the checks, because the address must be changed before, or because not every request is checked.
    fn asks_by_rule(&self) -> bool {
        self.is_by_header() || self.per_connection
    }

    /// The file name of the SPOE file. The one for checks that rules start has its own name, so that both can be in one directory.
    pub fn spoe_file(&self) -> &'static str {
        if self.asks_by_rule() { "spoe-ip-reputation-on-demand.conf" } else { "spoe-ip-reputation.conf" }
    }
}

/// The options are invalid or exclude each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The version of HAProxy is below [`Version::OLDEST`].
    #[error("HAProxy {0} is too old; banmesh supports {oldest} and later", oldest = Version::OLDEST)]
    TooOld(Version),
    /// Trusted proxies in a TCP frontend without the PROXY protocol.
    #[error("--trusted-proxy reads X-Forwarded-For, which needs --mode http; for TCP, add --proxy-protocol")]
    HeaderInTcp,
    /// One check per connection in a TCP frontend.
    #[error("--per-connection needs --mode http; a TCP frontend has one check per connection anyway")]
    PerConnectionInTcp,
    /// One check per connection, where a connection can have many clients.
    #[error(
        "--per-connection and --trusted-proxy exclude each other, because a connection from a proxy has many clients"
    )]
    PerConnectionOfProxy,
    /// An option, and its value, which has no valid port.
    #[error("{0}: `{1}` has no port; write for example `{2}`")]
    NoPort(&'static str, String, String),
    /// The page for banned clients in a TCP frontend.
    #[error("--contact writes a page, which needs --mode http; a TCP frontend closes the connection without a word")]
    ContactInTcp,
    /// The contact is neither an email address nor a URL.
    #[error(
        "--contact: `{0}` is not an email address or URL; write for example `abuse@example.org` or `https://example.org/help`"
    )]
    NotAContact(String),
    /// An option, and its value, which is not a plain word.
    #[error("{0}: `{1}` is not a plain address")]
    NotOneWord(&'static str, String),
}

/// The generated files and parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The SPOE file.
    pub spoe: String,
    /// The backend section with the agents.
    pub backend: String,
    /// The frontend section.
    pub frontend: String,
    /// A complete `haproxy.cfg` that contains both.
    pub complete: String,
    /// The page for banned clients, if there is a contact.
    pub page: Option<String>,
}

/// Generates the configuration.
///
/// # Errors
/// When an option is invalid, or options exclude each other.
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
        if let Some(word) = word.filter(|word| !has_port(word)) {
            let port = if option == "--server" { 8080 } else { 12345 };
            return Err(PlanError::NoPort(option, word.clone(), format!("{}:{port}", host_of(word))));
        }
    }
    if plan.contact.is_some() && !http {
        return Err(PlanError::ContactInTcp);
    }
    if let Some(contact) = plan.contact.as_ref().filter(|contact| !is_contact(contact)) {
        return Err(PlanError::NotAContact(contact.clone()));
    }
    if let Some(bind) = plan.bind.as_ref().filter(|bind| bind.contains(|c: char| c != ' ' && !is_plain(c))) {
        return Err(PlanError::NotOneWord("--bind", bind.clone()));
    }
    let (spoe, backend) = (spoe(plan, plan.asks_by_rule()), backend(plan));
    let frontend = if http { http_frontend(plan, by_header) } else { tcp_frontend(plan) };
    let complete = complete(plan, &frontend, &backend);
    let page = plan.contact.as_deref().map(page);
    Ok(Generated { spoe, backend, frontend, complete, page })
}

/// Whether an address ends with a port. Paths of Unix sockets need none. An IPv6 address must be in brackets, because its last group
/// would otherwise be the port.
fn has_port(address: &str) -> bool {
    if address.contains('/') {
        return true;
    }
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// The host of an address without a valid port, as it is written before one.
fn host_of(address: &str) -> String {
    if address.ends_with(']') {
        return address.to_owned();
    }
    match address.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
    }
}

/// Whether this is an email address or a URL that needs no escapes in HTML and in HAProxy's format strings.
fn is_contact(contact: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#@!$()*+,;=".contains(c);
    let place = contact.strip_prefix("https://").or_else(|| contact.strip_prefix("http://"));
    let named = place.map_or_else(
        || {
            contact
                .split_once('@')
                .is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !host.contains('@'))
        },
        |place| !place.is_empty(),
    );
    contact.len() <= 200 && contact.chars().all(plain) && named
}

/// The page for banned clients. HAProxy reads it as a format string: `%[src]` becomes the client's address.
fn page(contact: &str) -> String {
    let link = if contact.starts_with("http") { contact.to_owned() } else { format!("mailto:{contact}") };
    format!(
        "\
<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"robots\" content=\"noindex\">
<title>Access refused</title>
<style>
body {{ max-width: 34rem; margin: 15vh auto; padding: 0 1.5rem; font: 1.05rem/1.6 system-ui, sans-serif; color-scheme: light dark }}
</style>
</head>
<body>
<h1>Access refused</h1>
<p>Your address <strong>%[src]</strong> is banned here for a while, because of failed logins or attacks that came from it.</p>
<p>If this is a mistake, write to <a href=\"{link}\">{contact}</a>. Name the address above and the time: %[date,utime(\"%Y-%m-%d %H:%M UTC\")].</p>
</body>
</html>
"
    )
}

/// Whether `c` needs no quotes in HAProxy's configuration.
pub(crate) fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:[]/@*%,=".contains(c)
}

fn spoe(plan: &Plan, on_demand: bool) -> String {
    let (asks, group) = match (on_demand, plan.retry) {
        (true, _) => (
            "    # No message has an event. Rules in the frontend send this group.\n    groups   check\n",
            Some("check"),
        ),
        (false, true) => (
            "    messages check-ip\n    # The second try. A rule in the frontend sends it.\n    groups   again\n",
            Some("again"),
        ),
        (false, false) => ("    messages check-ip\n", None),
    };
    let mut text = format!(
        "\
# {path}: how HAProxy asks banmesh about a client. \"filter spoe engine ip-reputation\" uses it.
#
# banmesh sets the integer \"banned\" (1 or 0) in the scopes txn and sess. With the prefix below, the variables are
#     txn.ip.banned    for HTTP frontends: empty at the start of every request, so never stale
#     sess.ip.banned   for TCP frontends, and for rules that span the requests of one connection
#     txn.ip.error     set only when no answer came (1: a timeout, 256 and above: a protocol error)
[ip-reputation]

spoe-agent ip-reputation-agent
{asks}    # The prefix of the variables. The default is the name of the agent, which HAProxy rejects here because of its \"-\".
    option   var-prefix ip
    # Do not call this variable \"banned\", or an error would read as a ban.
    option   set-on-error error
    # Keep checking later requests of a connection after one check failed, and allow a second try.
    option   continue-on-error
    # The longest that a client waits when the agent hangs. An answer takes well under a millisecond.
    timeout  processing 200ms
",
        path = plan.spoe_path,
    );
    if plan.version.is_none_or(|version| !version.has_spop_mode()) {
        text.push_str("    # HAProxy up to 3.0 needs these two. Later versions accept them but do not use them.\n");
        text.push_str("    timeout  hello      500ms\n    timeout  idle       1m\n");
    }
    text.push_str("    use-backend spoe-ip-reputation\n");
    text.push_str("    # Log errors, with their code. Without the second line HAProxy logs every check.\n");
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
            "    # With \"mode tcp\", HAProxy from 3.1 on may open a new connection for every check.\n    mode spop\n"
        }
        Some(_) => "    # Change this to \"mode spop\" for HAProxy 3.1 and later.\n    mode tcp\n",
        None => {
            "# From HAProxy 3.1 on, \"mode tcp\" may open a new connection for every check.\n\
             .if version_atleast(3.1)\n    mode spop\n.else\n    mode tcp\n.endif\n"
        }
    });
    let _ = write!(
        text,
        "    \
    # This health check speaks SPOP, so it also notices an agent that hangs or shuts down.
    option spop-check
    # If one agent refuses the connection, query another one.
    option redispatch 1
    retries 3
    timeout connect 50ms
    timeout check   500ms
    timeout server  10m
    # \"fastinter\": after a refused connection HAProxy checks the agent at once, not only in the next second. Do not use
    # \"mark-down\": an agent that is only slow, with a thousand clients at once, would count as dead, and all would pass.
    # \"shutdown-sessions\": without it, HAProxy up to 3.0 keeps querying an agent that hangs. It also ends a retry that coincides
    # with the last failed check. Retries come every \"timeout connect\", so \"fastinter\" must not divide it.
    # {drain}
    default-server {default_server}
    server primary {agent}
",
        default_server = DEFAULT_SERVER.replace("inter 1s", &format!("inter {}", interval(plan.drain))),
        drain = if plan.drain.is_zero() {
            "This agent stops at once when it shuts down (spoa.drain is 0).".to_owned()
        } else {
            format!("An agent that shuts down still answers for {} ms (spoa.drain).", plan.drain.as_millis())
        },
        agent = plan.agent,
    );
    if let Some(backup) = &plan.backup {
        text.push_str(
            "    # Queried while the first is down. Let both nodes form a cluster, so that they have the same bans.\n",
        );
        let _ = writeln!(text, "    server backup  {backup} backup");
    }
    text
}

/// The interval between health checks. Two of them must fit into the time in which the agent still answers.
fn interval(drain: Duration) -> String {
    match drain.as_millis() {
        0 | 2000.. => "1s".to_owned(),
        millis => format!("{}ms", (millis / 3).max(50)),
    }
}

const FILTER_COMMENT: &str = "    # Ask banmesh about \"src\"";
const ERROR: &str = "{ var(txn.ip.error) -m int gt 0 }";

pub(crate) fn head(plan: &Plan, name: &str, mode: &str, port: u16) -> String {
    let mut text = format!("frontend {name}\n    mode {mode}\n    option {mode}log\n");
    let bind = plan.bind.clone().unwrap_or_else(|| format!(":::{port} v4v6"));
    if plan.proxy_protocol && plan.trusted_proxies.is_empty() {
        text.push_str(
            "    # Every connection must begin with the PROXY protocol. Only the load balancer may be able to reach this port.\n",
        );
        let _ = writeln!(text, "    bind {bind} accept-proxy");
        return text;
    }
    let _ = writeln!(text, "    bind {bind}");
    if plan.proxy_protocol {
        text.push_str("    # Only these may name the client, with the PROXY protocol (version 1 or 2).\n");
        let _ = writeln!(text, "    tcp-request connection expect-proxy layer4 if {{ src {} }}", sources(plan));
    }
    text
}

pub(crate) fn sources(plan: &Plan) -> String {
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
            "    # The last address in the header was added by the trusted proxy. Those before it came from the client.",
        );
        add(&format!("    acl trusted-proxy src {}", sources(plan)));
        add("    http-request set-src req.hdr_ip(x-forwarded-for,-1) if trusted-proxy");
        add("    # This must come after the address has changed.");
        add("    http-request send-spoe-group ip-reputation check");
        if plan.retry {
            add("    # Ask a second time if no answer came.");
            add(&format!("    http-request send-spoe-group ip-reputation check if {ERROR}"));
        }
    } else if plan.per_connection {
        add(
            "    # The answer stays with the connection (scope \"sess\") for 10 seconds. A ban reaches connections that are already",
        );
        add("    # open after at most that time.");
        add("    acl checked var(sess.asked) -m found");
        add("    acl old     date,sub(sess.asked) -m int ge 10");
        add("    http-request set-var(txn.ask) bool(true) if !checked || old");
        add("    http-request send-spoe-group ip-reputation check if { var(txn.ask) -m bool }");
        if plan.retry {
            add("    # Ask a second time if no answer came.");
            add(&format!("    http-request send-spoe-group ip-reputation check if {{ var(txn.ask) -m bool }} {ERROR}"));
        }
        add("    # Only after an answer. After an error, the next request asks again.");
        add("    http-request set-var(sess.asked) date if { var(txn.ask) -m bool } { var(txn.ip.banned) -m found }");
    } else if plan.retry {
        add("    # Ask a second time if no answer came.");
        add(&format!("    http-request send-spoe-group ip-reputation again if {ERROR}"));
    }
    let verdict = if plan.per_connection { "sess.ip.banned" } else { "txn.ip.banned" };
    add("    # Banned: 403. The header shows that the ban did this and not the application.");
    let shown = if plan.contact.is_some() {
        add("    # The page names the contact. HAProxy reads it when it starts.");
        format!("content-type \"text/html; charset=utf-8\" lf-file {} hdr Cache-Control no-store ", plan.page_path)
    } else {
        String::new()
    };
    add(&format!(
        "    http-request deny deny_status 403 {shown}hdr X-IP-Status banned if {{ var({verdict}) -m int eq 1 }}"
    ));
    if plan.fail_closed {
        add("    # Fail closed: without an answer no client passes. Delete this line to let clients pass instead.");
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
    let _ = writeln!(text, "{FILTER_COMMENT} once per connection, before HAProxy connects to the server.");
    let _ = writeln!(text, "    filter spoe engine ip-reputation config {}", plan.spoe_path);
    if plan.retry {
        text.push_str("    # Ask a second time if no answer came. Without inspect-delay, HAProxy would not wait for that answer.\n");
        text.push_str("    tcp-request inspect-delay 500ms\n");
        let _ = writeln!(text, "    tcp-request content send-spoe-group ip-reputation again if {ERROR}");
    }
    text.push_str("    # Banned: close the connection before the banner. \"tcp-request connection\" would run before the check.\n");
    text.push_str("    tcp-request content reject if { var(sess.ip.banned) -m int eq 1 }\n");
    if plan.fail_closed {
        text.push_str(
            "    # Fail closed: without an answer no client passes. Delete this line to let clients pass instead.\n",
        );
        text.push_str("    tcp-request content reject if !{ var(sess.ip.banned) -m found }\n");
    } else {
        text.push_str("    # Fail open: while no agent answers, clients pass (--fail-closed refuses them).\n");
    }
    text.push_str("    default_backend mail-backend\n");
    text
}

fn complete(plan: &Plan, frontend: &str, backend: &str) -> String {
    let supported =
        plan.version.map_or_else(|| format!("{} and later", Version::OLDEST), |version| version.to_string());
    format!(
        "\
# HAProxy {supported} with banmesh: refuses banned clients. Needs {spoe}.
global
    log /dev/log local0
    # For `show stat` and similar commands. Anyone who can write to this socket has full control of HAProxy.
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
{servers}
{backend}",
        spoe = plan.spoe_path,
        servers = servers(plan),
    )
}

/// The backend with the servers behind the frontend.
pub(crate) fn servers(plan: &Plan) -> String {
    let (name, mode, server, default) = match plan.traffic {
        Traffic::Http => ("web-backend", "http", "web1", "127.0.0.1:8080"),
        Traffic::Tcp => ("mail-backend", "tcp", "mail1", "127.0.0.1:10143"),
    };
    let address = plan.server.as_deref().unwrap_or(default);
    format!("# Your servers.\nbackend {name}\n    mode {mode}\n    server {server} {address} check\n")
}
