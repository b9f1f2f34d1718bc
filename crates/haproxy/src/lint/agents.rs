//! The backend with the agents: that HAProxy keeps its connections, sees a dead agent, and asks the right one.

use std::net::IpAddr;

use super::{Context, Engine};
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
            let what = "the agent names no backend: HAProxy does not know whom to ask";
            found.error(&agent.head, "no-backend", what, "use-backend spoe-ip-reputation");
            continue;
        };
        let name = line.word(1);
        let Some(backend) = context.configuration.backend(name) else {
            let frontend = context.configuration.proxies.iter().any(|proxy| proxy.name == name);
            let kind = if frontend { "a frontend and no backend" } else { "no backend of this configuration" };
            let what = format!("`{name}` is {kind}; HAProxy refuses that");
            found.error(
                line,
                "unknown-backend",
                what,
                format!("backend {name}, as `banmesh haproxy config` prints it"),
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
            let what = format!("HAProxy {} does not know mode spop; it came with 3.1", context.version);
            found.error(line, "agent-mode", what, format!("mode tcp; for every version: {right}"));
        }
        Mode::Tcp if context.version.has_spop_mode() => {
            let of_agent = |engine: &&Engine<'_>| {
                engine.agent().and_then(Agent::backend).is_some_and(|line| line.word(1) == backend.name)
            };
            let first =
                context.engines.iter().filter(of_agent).filter_map(|engine| position(context, engine.proxy)).min();
            if position(context, backend) < first {
                let what = "from HAProxy 3.1 on, a backend in mode tcp that stands before the frontend opens a connection for \
                            every single check";
                found.warning(line, "tcp-mode", what, format!("mode spop; for every version: {right}"));
            }
        }
        Mode::Tcp => {}
        Mode::Http | Mode::Other(_) => {
            let wanted = if context.version.has_spop_mode() { "spop" } else { "tcp" };
            let what = format!("the agents' backend must be in mode {wanted}; HAProxy refuses another");
            found.error(line, "agent-mode", what, format!("mode {wanted}; for every version: {right}"));
        }
    }
}

fn health(backend: &Proxy, found: &mut Findings) {
    let servers = backend.servers();
    if servers.is_empty() {
        let what = format!("`{}` has no server, so no check is ever answered", backend.title());
        found.error(&backend.head, "no-agent", what, "server primary 127.0.0.1:12345 check");
    }
    let checked = servers.iter().any(|server| server.is("check"));
    for server in &servers {
        let line = server.line;
        if !server.is("check") {
            let what =
                "without `check`, every request waits for the whole `timeout processing` while this agent is gone";
            found.warning(line, "no-check", what, format!("{} check inter 1s fall 2 rise 1", line.words.join(" ")));
        }
        if server.is("send-proxy") || server.is("send-proxy-v2") {
            let what = "the agent speaks SPOP and no PROXY protocol: every connection fails";
            found.error(line, "send-proxy", what, "delete the word");
        }
    }
    if checked && backend.option("spop-check").is_none() {
        let other = ["httpchk", "tcp-check", "ssl-hello-chk"].iter().find_map(|name| backend.option(name));
        let what = "the health check only connects: an agent that hangs, or leaves, still counts as UP";
        found.warning(other.unwrap_or(&backend.head), "no-spop-check", what, "option spop-check");
    }
    if servers.len() > 1 && backend.option("redispatch").is_none() {
        let what = "without redispatch, a check that the first agent refuses is not sent to the other one";
        found.warning(&backend.head, "no-redispatch", what, "option redispatch 1");
    }
}

/// How fast an agent that has died is left alone, and that one that lives is not.
fn death(context: &Context<'_>, backend: &Proxy, found: &mut Findings) {
    let cure = format!("default-server {DEFAULT_SERVER}");
    let servers = backend.servers();
    for server in servers.iter().filter(|server| server.is("check")) {
        let observes = server.value("observe").is_some();
        if observes && matches!(server.value("on-error"), Some("mark-down" | "sudden-death")) {
            let what = "connections that are slow for once take the agent out, and everybody passes: HAProxy's own \
                        `timeout connect` may be over when a thousand clients come at one moment. A health check should decide";
            found.warning(server.line, "hasty-mark-down", what, cure.clone());
        } else if !observes || server.fast_interval().is_none() {
            let what = "a dead agent is noticed only by the next health checks; until then requests pass unchecked";
            found.note(server.line, "slow-mark-down", what, cure.clone());
        }
        let leaves = server.value("on-marked-down") == Some("shutdown-sessions");
        if servers.len() > 1 && !context.version.has_spop_mode() && !leaves && !server.is_backup() {
            let what = "when this agent hangs or its host is lost, HAProxy up to 3.0 goes on asking it over the connections that are \
                        open, although it counts as DOWN: every request passes unchecked";
            found.warning(server.line, "hung-agent", what, cure.clone());
        }
    }
}

fn timeouts(backend: &Proxy, agent: &Agent, found: &mut Findings) {
    let own = |line: &Line| backend.own.contains(line);
    for (name, cure) in [("connect", "timeout connect 50ms"), ("server", "timeout server 10m")] {
        match backend.timeout(name) {
            None => {
                let what = format!("`{}` has no `timeout {name}`", backend.title());
                found.warning(&backend.head, "no-agent-timeout", what, cure);
            }
            Some((line, Some(connect))) if name == "connect" && backend.servers().len() > 1 => {
                let processing = agent.timeout("processing").and_then(|(_, time)| time);
                if processing.is_some_and(|processing| connect > processing) {
                    let place = if own(line) { line } else { &backend.head };
                    let what = format!(
                        "`timeout connect` ({}) is longer than the agent's `timeout processing`: the other agent is never tried \
                         in time",
                        line.word(2)
                    );
                    found.warning(place, "slow-connect", what, cure);
                }
            }
            Some(_) => {}
        }
    }
}

/// Whether one of the servers is the node whose configuration was read.
fn this_node(context: &Context<'_>, backend: &Proxy, found: &mut Findings) {
    let node = context.node;
    let servers = backend.servers();
    let Some(first) = servers.first() else { return };
    let origin = node.origin.as_deref();
    if !node.enabled {
        let what = format!("this node answers nobody: `spoa.enabled` is false ({})", origin.unwrap_or("the default"));
        return found.warning(first.line, "agent-off", what, "spoa.enabled: true, in banmesh's configuration");
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
    let place = origin.map_or_else(|| "by default".to_owned(), |origin| format!("as {origin} has it"));
    let what = format!("no server of this backend is this node, which answers at {} ({place})", node.agent);
    let host = if node.agent.ip().is_unspecified() { "127.0.0.1".to_owned() } else { host_text(node.agent.ip()) };
    let cure = format!("server primary {host}:{}", node.agent.port());
    if origin.is_some() {
        found.warning(wrong.line, "other-port", what, cure);
    } else {
        found.note(wrong.line, "other-port", what, format!("{cure}, or name banmesh's configuration with --config"));
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

/// Backends that look like agents, and that no agent names.
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
    // That there is no filter yet is said already.
    if !context.engines.is_empty() || unused.len() > 1 {
        for backend in unused {
            let what = "no agent asks this backend: an spoe-agent has a single `use-backend`, and two backends cannot be used \
                        at once";
            let cure =
                "put all agents into ONE backend, the second with the word `backup`; or name it in `use-backend`";
            found.warning(&backend.head, "unused-backend", what, cure);
        }
    }
}

/// A frontend and a backend of one name: fatal from HAProxy 3.3 on.
fn names(context: &Context<'_>, found: &mut Findings) {
    let proxies = &context.configuration.proxies;
    for (index, proxy) in proxies.iter().enumerate() {
        let earlier = proxies.get(..index).unwrap_or_default();
        let Some(first) = earlier.iter().find(|other| other.name == proxy.name && !proxy.name.is_empty()) else {
            continue;
        };
        let what = format!("it has the same name as `{}` in line {}", first.title(), first.head.place.line);
        let cure = format!("{} {}-backend", proxy.head.word(0), proxy.name);
        if context.version >= crate::version::Version::new(3, 3) || first.kind == proxy.kind {
            found.error(&proxy.head, "same-name", format!("{what}; HAProxy refuses that"), cure);
        } else {
            found.warning(&proxy.head, "same-name", format!("{what}; HAProxy refuses that from 3.3 on"), cure);
        }
    }
}
