//! The backend with the agents: whether HAProxy reuses connections, notices a dead agent, and queries the right one.

use std::net::IpAddr;
use std::time::Duration;

use super::context::{Context, Engine};
use crate::document::Line;
use crate::finding::Findings;
use crate::generate::DEFAULT_SERVER;
use crate::proxies::{Kind, Mode, Proxy, Server};
use crate::spoe::Agent;

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    let mut used: Vec<&str> = Vec::new();
    for engine in context.distinct() {
        let Some(agent) = engine.agent() else { continue };
        let Some(line) = agent.backend() else {
            let problem = "the agent has no `use-backend`, so HAProxy does not know which servers to query";
            found.error(&agent.head, "no-backend", problem, "use-backend spoe-ip-reputation");
            continue;
        };
        let name = line.word(1);
        let Some(backend) = context.configuration.backend(name) else {
            let frontend = context.configuration.proxies.iter().any(|proxy| proxy.name == name);
            let kind = if frontend { "a frontend, not a backend" } else { "not a backend of this configuration" };
            let problem = format!("`{name}` is {kind}; HAProxy rejects that");
            found.error(
                line,
                "unknown-backend",
                problem,
                format!("add `backend {name}`, as printed by `banmesh haproxy config`"),
            );
            continue;
        };
        if used.contains(&name) {
            continue;
        }
        used.push(name);
        mode(context, backend, found);
        health(backend, found);
        death(context, backend, found);
        timeouts(backend, agent, found);
        if context.is_ours(engine) {
            this_node(context, backend, found);
        }
    }
    if !context.is_incomplete() {
        unused(context, &used, found);
    }
    names(context, found);
}

fn position(context: &Context<'_>, proxy: &Proxy) -> Option<usize> {
    context.configuration.proxies.iter().position(|other| std::ptr::eq(other, proxy))
}

fn mode(context: &Context<'_>, backend: &Proxy, found: &mut Findings) {
    let line = backend.last(&["mode"]).filter(|line| backend.own.contains(line)).unwrap_or(&backend.head);
    let right = "`.if version_atleast(3.1)`, mode spop, `.else`, mode tcp, `.endif`";
    match backend.mode() {
        Mode::Spop if context.version.has_spop_mode() => {}
        Mode::Spop => {
            let problem = format!("HAProxy {} does not support mode spop, which was added in 3.1", context.version);
            found.error(line, "agent-mode", problem, format!("mode tcp; for every version: {right}"));
        }
        Mode::Tcp if context.version.has_spop_mode() => {
            let of_agent = |engine: &&Engine<'_>| {
                engine.agent().and_then(Agent::backend).is_some_and(|line| line.word(1) == backend.name)
            };
            let first =
                context.engines.iter().filter(of_agent).filter_map(|engine| position(context, engine.proxy)).min();
            if position(context, backend) < first {
                let problem = "from HAProxy 3.1 on, a backend in mode tcp before the frontend opens a new connection for every \
                            check";
                found.warning(line, "tcp-mode", problem, format!("mode spop; for every version: {right}"));
            }
        }
        Mode::Tcp => {}
        Mode::Http | Mode::Other(_) => {
            let wanted = if context.version.has_spop_mode() { "spop" } else { "tcp" };
            let problem = format!("the backend of the agents must be in mode {wanted}; HAProxy rejects any other mode");
            found.error(line, "agent-mode", problem, format!("mode {wanted}; for every version: {right}"));
        }
    }
}

fn health(backend: &Proxy, found: &mut Findings) {
    let servers = backend.servers();
    if servers.is_empty() {
        let problem = format!("`{}` has no server, so no check is ever answered", backend.title());
        found.error(&backend.head, "no-agent", problem, "server primary 127.0.0.1:12345 check");
    }
    let checked = servers.iter().any(|server| server.is("check"));
    for server in &servers {
        let line = server.line;
        if !server.is("check") {
            let problem =
                "without `check`, every request waits for the full `timeout processing` while this agent is down";
            found.warning(line, "no-check", problem, format!("{} check inter 1s fall 2 rise 1", line.words.join(" ")));
        }
        if server.is("send-proxy") || server.is("send-proxy-v2") {
            let problem = "the agent does not support the PROXY protocol, so every connection fails";
            found.error(line, "send-proxy", problem, "delete send-proxy");
        }
    }
    if checked && backend.option("spop-check").is_none() {
        let other = ["httpchk", "tcp-check", "ssl-hello-chk"].iter().find_map(|name| backend.option(name));
        let problem = "the health check only connects, so an agent that hangs or shuts down still counts as UP";
        found.warning(other.unwrap_or(&backend.head), "no-spop-check", problem, "option spop-check");
    }
    if servers.len() > 1 && backend.option("redispatch").is_none() {
        let problem =
            "without `option redispatch`, a check is not sent to the other agent when the first refuses the connection";
        found.warning(&backend.head, "no-redispatch", problem, "option redispatch 1");
    }
}

/// Whether HAProxy quickly stops querying a dead agent, and keeps querying a live one.
fn death(context: &Context<'_>, backend: &Proxy, found: &mut Findings) {
    let fix = format!("default-server {DEFAULT_SERVER}");
    let servers = backend.servers();
    for server in servers.iter().filter(|server| server.is("check")) {
        let observes = server.value("observe").is_some();
        if observes && matches!(server.value("on-error"), Some("mark-down" | "sudden-death")) {
            let problem = "one slow connection marks the agent as DOWN, and then every client passes. When a thousand \
                        clients arrive at once, even `timeout connect` can expire. Let a health check decide";
            found.warning(server.line, "hasty-mark-down", problem, fix.clone());
        } else if !observes || server.fast_interval().is_none() {
            let problem = "only the next health checks notice a dead agent; until then requests pass unchecked";
            found.note(server.line, "slow-mark-down", problem, fix.clone());
        }
        let leaves = server.value("on-marked-down") == Some("shutdown-sessions");
        if servers.len() > 1 && !context.version.has_spop_mode() && !leaves && !server.is_backup() {
            let problem = "when this agent hangs or its host is lost, HAProxy up to 3.0 keeps querying it over open \
                        connections although it counts as DOWN, so every request passes unchecked";
            found.warning(server.line, "hung-agent", problem, fix.clone());
        }
        let retry = backend.timeout("connect").and_then(|(_, time)| time);
        if servers.len() > 1 && leaves && coincide(retry, server.fast_interval()) {
            let problem = "`timeout connect` is a multiple of `fastinter`, so a query that is repeated after a refused \
                        connection can coincide with the health check that marks this agent as DOWN. \
                        `shutdown-sessions` ends it then, and the request passes unchecked";
            found.warning(server.line, "retry-ended", problem, fix.clone());
        }
    }
}

/// Whether HAProxy's retries, one per `timeout connect`, come in the same milliseconds as the health checks.
fn coincide(retry: Option<Duration>, check: Option<Duration>) -> bool {
    let (Some(retry), Some(check)) = (retry, check) else { return false };
    retry.as_millis() > 0 && check.as_millis() > 0 && retry.as_millis().is_multiple_of(check.as_millis())
}

fn timeouts(backend: &Proxy, agent: &Agent, found: &mut Findings) {
    let own = |line: &Line| backend.own.contains(line);
    for (name, fix) in [("connect", "timeout connect 50ms"), ("server", "timeout server 10m")] {
        match backend.timeout(name) {
            None => {
                let problem = format!("`{}` has no `timeout {name}`", backend.title());
                found.warning(&backend.head, "no-agent-timeout", problem, fix);
            }
            Some((line, Some(connect))) if name == "connect" && backend.servers().len() > 1 => {
                let processing = agent.timeout("processing").and_then(|(_, time)| time);
                if processing.is_some_and(|processing| connect > processing) {
                    let place = if own(line) { line } else { &backend.head };
                    let problem = format!(
                        "`timeout connect` ({}) is longer than the agent's `timeout processing`, so the other agent is never \
                         tried in time",
                        line.word(2)
                    );
                    found.warning(place, "slow-connect", problem, fix);
                }
            }
            Some(_) => {}
        }
    }
}

/// Whether one of the servers is the agent described by [`Node`](super::context::Node).
fn this_node(context: &Context<'_>, backend: &Proxy, found: &mut Findings) {
    let node = context.node;
    let servers = backend.servers();
    let Some(first) = servers.first() else { return };
    let origin = node.origin.as_deref();
    if !node.enabled {
        let problem =
            format!("the agent of this node is off: `spoa.enabled` is false ({})", origin.unwrap_or("the default"));
        return found.warning(first.line, "agent-off", problem, "set `spoa.enabled: true` in banmesh's configuration");
    }
    if servers.iter().any(|server| server.host_port().is_none() || is_node(server, node.agent.ip(), node.agent.port()))
    {
        return;
    }
    // Servers on other hosts may well be other nodes.
    let Some(wrong) = servers.iter().find(|server| {
        server.host_port().is_some_and(|(host, _)| is_here(host) || host.parse() == Ok(node.agent.ip()))
    }) else {
        return;
    };
    let place = origin.map_or_else(|| "by default".to_owned(), |origin| format!("set in {origin}"));
    let problem = format!("no server of this backend is this node, which answers at {} ({place})", node.agent);
    let host = if node.agent.ip().is_unspecified() { "127.0.0.1".to_owned() } else { host_text(node.agent.ip()) };
    let fix = format!("server primary {host}:{}", node.agent.port());
    if origin.is_some() {
        found.warning(wrong.line, "other-port", problem, fix);
    } else {
        found.note(wrong.line, "other-port", problem, format!("{fix}, or give banmesh's configuration with --config"));
    }
}

fn host_text(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

fn is_node(server: &Server<'_>, address: IpAddr, port: u16) -> bool {
    server.host_port().is_some_and(|(host, at)| {
        let reached = match host.parse::<IpAddr>() {
            Ok(host) if address.is_unspecified() || host == address => true,
            Ok(host) => (host.is_loopback() || host.is_unspecified()) && address.is_loopback(),
            Err(_) => true,
        };
        reached && at == port
    })
}

/// Backends that seem to be for agents, but that no `use-backend` names.
fn unused(context: &Context<'_>, used: &[&str], found: &mut Findings) {
    let routes: Vec<&str> = context
        .configuration
        .lines()
        .filter(|line| matches!(line.word(0), "use_backend" | "default_backend"))
        .map(|line| line.word(1))
        .collect();
    if routes.iter().any(|name| name.contains('%')) {
        return;
    }
    let port = context.node.agent.port();
    let is_unused = |backend: &&Proxy| {
        let name = backend.name.as_str();
        let is_agent = backend.mode() == Mode::Spop
            || name.starts_with("spoe")
            || backend.servers().iter().any(|server| server.host_port().is_some_and(|(_, at)| at == port));
        backend.kind == Kind::Backend && is_agent && !used.contains(&name) && !routes.contains(&name)
    };
    let unused: Vec<&Proxy> = context.configuration.proxies.iter().filter(is_unused).collect();
    // If there is no filter, another finding already says so.
    if !context.engines.is_empty() || unused.len() > 1 {
        for backend in unused {
            let problem = "no spoe-agent uses this backend; an spoe-agent has a single `use-backend` and cannot use two backends \
                        at once";
            let fix = "put all servers into ONE backend, the second with the word `backup`; or name this backend in `use-backend`";
            found.warning(&backend.head, "unused-backend", problem, fix);
        }
    }
}

/// Proxies with the same name. From HAProxy 3.3 on, even a frontend and a backend must have different names.
fn names(context: &Context<'_>, found: &mut Findings) {
    let proxies = &context.configuration.proxies;
    for (index, proxy) in proxies.iter().enumerate() {
        let earlier = proxies.get(..index).unwrap_or_default();
        let Some(first) = earlier.iter().find(|other| other.name == proxy.name && !proxy.name.is_empty()) else {
            continue;
        };
        let problem = format!("this has the same name as `{}` in line {}", first.title(), first.head.place.line);
        let fix = format!("{} {}-backend", proxy.head.word(0), proxy.name);
        if context.version >= crate::version::Version::new(3, 3) || first.kind == proxy.kind {
            found.error(&proxy.head, "same-name", format!("{problem}; HAProxy rejects that"), fix);
        } else {
            found.warning(&proxy.head, "same-name", format!("{problem}; HAProxy rejects that from 3.3 on"), fix);
        }
    }
}
