//! Filters, and the SPOE files that they name.

use std::time::Duration;

use super::context::{Context, Engine, VERDICT, has_address_argument, is_address_name};
use crate::document::Line;
use crate::finding::Findings;
use crate::proxies::{Kind, Mode};
use crate::rules::reads;
use crate::spoe::{self, Agent, EVENTS, Message, SpoeFile, is_variable_name};

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    for (index, engine) in context.engines.iter().enumerate() {
        filter(engine, found);
        let earlier = context.engines.get(..index).unwrap_or_default();
        if earlier.iter().any(|other| std::ptr::eq(other.proxy, engine.proxy) && other.name == engine.name) {
            let problem = format!("`{}` has two filters with this engine; HAProxy rejects that", engine.proxy.title());
            found.error(engine.line, "duplicate-engine", problem, "delete one of them, or give it another engine");
        }
        for (message, event) in engine.at_events() {
            event_fires(engine, message, event, found);
        }
    }
    for engine in context.distinct() {
        if let Some(agent) = engine.agent() {
            options(context, agent, found);
            timeouts(context, agent, found);
            messages(context, engine, agent, found);
            retry(context, engine, agent, found);
        }
    }
}

/// The line `filter spoe`: its words, its file, and whether the file has an agent for its engine.
fn filter(engine: &Engine<'_>, found: &mut Findings) {
    let line = engine.line;
    if line.words.iter().any(|word| word == "if" || word == "unless") {
        let name = engine.name.unwrap_or("ENGINE");
        let problem = "a `filter` line cannot have a condition; HAProxy reports: unknown keyword 'if'";
        let fix = format!("delete the condition and use a rule: http-request send-spoe-group {name} GROUP if …");
        found.error(line, "filter-condition", problem, fix);
    }
    let Some(file) = engine.file else {
        let problem = "the filter has no `config FILE`";
        return found.error(
            line,
            "no-spoe-file",
            problem,
            "filter spoe engine ip-reputation config /etc/haproxy/spoe-ip-reputation.conf",
        );
    };
    if let SpoeFile::Elsewhere(_, name) = file {
        let problem = format!("this file does not exist on this machine; {name} was read instead");
        found.note(line, "spoe-elsewhere", problem, "create the file before HAProxy starts");
    }
    match file {
        SpoeFile::Missing(name, reason) => {
            let problem = format!("cannot read {name}: {reason}");
            let fix =
                "`banmesh haproxy config --part spoe` prints the file; if it is elsewhere, give it with --spoe FILE";
            found.error(line, "no-spoe-file", problem, fix);
        }
        SpoeFile::Read(document) | SpoeFile::Elsewhere(document, _) if engine.scope.agents.is_empty() => {
            let scopes = spoe::scopes(document);
            let names: Vec<String> =
                scopes.iter().map(|name| name.map_or("no scope".into(), |n| format!("[{n}]"))).collect();
            let problem = match engine.name {
                Some(name) => {
                    format!("the SPOE file has no spoe-agent in the scope [{name}]; it has: {}", names.join(", "))
                }
                None => format!(
                    "the filter has no `engine`, and the SPOE file has no spoe-agent outside of a scope; it has: {}",
                    names.join(", ")
                ),
            };
            let fix = match scopes.iter().flatten().next() {
                Some(name) => format!("filter spoe engine {name} config {}", line.after("config").unwrap_or_default()),
                None => format!("begin the SPOE file with [{}]", engine.name.unwrap_or("ip-reputation")),
            };
            found.error(line, "engine-scope", problem, fix);
        }
        SpoeFile::Read(_) | SpoeFile::Elsewhere(..) => {
            if let Some(second) = engine.scope.agents.get(1) {
                let problem = "this is a second spoe-agent in the same scope; HAProxy rejects that";
                found.error(
                    &second.head,
                    "two-agents",
                    problem,
                    "put two servers into ONE backend, the second with the word `backup`",
                );
            }
        }
    }
}

/// Whether an event can occur in the proxy that has the filter.
fn event_fires(engine: &Engine<'_>, message: &Message, event: &str, found: &mut Findings) {
    let Some(line) = &message.event else { return };
    let title = engine.proxy.title();
    if !EVENTS.contains(&event) {
        let problem = format!("`{event}` is not an SPOE event; HAProxy rejects it");
        return found.error(line, "unknown-event", problem, "event on-client-session");
    }
    let needs_http = event.contains("http");
    if needs_http && engine.proxy.mode() == Mode::Tcp {
        let problem =
            format!("`{event}` never occurs in `{title}`, which is in mode tcp, so HAProxy queries nothing there");
        return found.error(line, "event-never", problem, "event on-client-session");
    }
    if engine.proxy.kind == Kind::Backend && (event.starts_with("on-client") || event.starts_with("on-frontend")) {
        let problem =
            format!("`{event}` never occurs in a backend, and the filter is in `{title}`, so HAProxy queries nothing");
        found.error(line, "event-never", problem, "move the line `filter spoe` to the frontend");
    }
}

fn options(context: &Context<'_>, agent: &Agent, found: &mut Findings) {
    if agent.last(&["option", "var-prefix"]).is_none() && !is_variable_name(&agent.name) {
        let problem = format!(
            "without `option var-prefix`, variables begin with the agent's name, `{}`, which is not valid in the name of a variable",
            agent.name
        );
        found.error(&agent.head, "no-prefix", problem, "option var-prefix ip");
    }
    for line in agent.lines.iter().filter(|line| line.word(0) == "option") {
        let (option, name) = (line.word(1), line.word(2));
        let takes = match option {
            "var-prefix" | "set-on-error" | "set-process-time" | "set-total-time" => 1,
            "no" => {
                let problem = "`option no …` does not exist in HAProxy";
                found.error(line, "option-no", problem, format!("no option {name}"));
                continue;
            }
            _ => 0,
        };
        if let (1, Some(extra)) = (takes, line.words.get(3)) {
            let problem = format!(
                "`option {option}` takes only a name; HAProxy reports: cannot handle unexpected argument '{extra}'"
            );
            let fix = if option == "set-on-error" {
                "option set-on-error error".into()
            } else {
                format!("option {option} {name}")
            };
            found.error(line, "option-argument", problem, fix);
        }
        if takes == 1 && !is_variable_name(name) {
            let problem = format!("the name after `option {option}` may have only letters, digits, `_` and `.`");
            found.error(line, "option-name", problem, format!("option {option} ip"));
        }
        if option == "set-on-error" && name == VERDICT {
            let problem = "an error sets this variable to its code, and a timeout is code 1: when the agent is slow or gone, every \
                        client counts as banned";
            found.error(line, "error-as-verdict", problem, "option set-on-error error");
        }
    }
    if !context.version.has_spop_mode() {
        return;
    }
    let idle = |line: &&Line| match line.word(0) {
        "maxconnrate" | "maxerrrate" | "max-waiting-frames" => true,
        "option" => matches!(line.word(1), "async" | "send-frag-payload"),
        _ => false,
    };
    for line in agent.lines.iter().filter(idle) {
        let problem = format!("`{}` has no effect from HAProxy 3.1 on", line.words.join(" "));
        found.note(line, "no-effect", problem, "delete the line");
    }
}

fn timeouts(context: &Context<'_>, agent: &Agent, found: &mut Findings) {
    match agent.timeout("processing") {
        None => {
            let problem = "there is no `timeout processing`, so clients wait for as long as the agent hangs";
            found.warning(&agent.head, "no-processing-timeout", problem, "timeout processing 200ms");
        }
        Some((line, Some(time))) if time.is_zero() || time > Duration::from_secs(1) => {
            let problem = format!(
                "when the agent hangs, every request waits this long ({}) and then passes unchecked",
                line.word(2)
            );
            found.warning(line, "long-processing-timeout", problem, "timeout processing 200ms");
        }
        Some((line, Some(time))) if time > Duration::from_millis(500) => {
            let problem = "100 to 500 ms is enough: an answer takes well under a millisecond, and when the agent hangs, every request \
                        waits this long";
            found.note(line, "long-processing-timeout", problem, "timeout processing 200ms");
        }
        Some(_) => {}
    }
    for (name, fix) in [("hello", "timeout hello 500ms"), ("idle", "timeout idle 1m")] {
        if !context.version.has_spop_mode() && agent.timeout(name).is_none() {
            let problem = format!("there is no `timeout {name}`, which HAProxy up to 3.0 needs");
            found.warning(&agent.head, "no-spoe-timeout", problem, fix);
        }
    }
    if agent.last(&["log"]).is_none() {
        let problem = "the spoe-agent has no `log`, so checks that fail are not logged";
        found.note(&agent.head, "no-spoe-log", problem, "log global, with option dontlog-normal");
    }
    if let Some(line) = agent.last(&["max-frame-size"])
        && line.word(1).parse::<u32>().is_ok_and(|size| size < 256 || (size > 16_380 && !has_large_buffers(context)))
    {
        let problem = "max-frame-size must be from 256 to 16380 (tune.bufsize minus 4)";
        found.error(line, "frame-size", problem, "delete the line");
    }
}

fn has_large_buffers(context: &Context<'_>) -> bool {
    context.configuration.global.iter().any(|line| line.word(0) == "tune.bufsize")
}

fn messages(context: &Context<'_>, engine: &Engine<'_>, agent: &Agent, found: &mut Findings) {
    let scope = &engine.scope;
    let known = |name: &str| scope.messages.iter().any(|message| message.name == name);
    let names = |all: Vec<&str>| if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    let messages = || names(scope.messages.iter().map(|message| message.name.as_str()).collect());
    let mut sent: Vec<String> = Vec::new();
    for named in agent.messages() {
        sent.push(named.name.clone());
        match scope.messages.iter().find(|message| message.name == named.name) {
            None => {
                let problem =
                    format!("there is no spoe-message `{}` in this scope; it has: {}", named.name, messages());
                found.error(&named.line, "unknown-message", problem, format!("spoe-message {}", named.name));
            }
            Some(message) if message.event.is_none() => {
                let problem = format!("`{}` has no event, so HAProxy never sends it", message.name);
                let fix = "event on-client-session (or move it from `messages` to an spoe-group)";
                found.error(&message.head, "no-event", problem, fix);
            }
            Some(_) => {}
        }
    }
    for named in agent.groups() {
        let Some(group) = scope.groups.iter().find(|group| group.name == named.name) else {
            let groups = names(scope.groups.iter().map(|group| group.name.as_str()).collect());
            let problem = format!("there is no spoe-group `{}` in this scope; it has: {groups}", named.name);
            found.error(&named.line, "unknown-group", problem, format!("spoe-group {}", named.name));
            continue;
        };
        for message in &group.messages {
            sent.push(message.name.clone());
            if !known(&message.name) {
                let problem =
                    format!("there is no spoe-message `{}` in this scope; it has: {}", message.name, messages());
                found.error(&message.line, "unknown-message", problem, format!("spoe-message {}", message.name));
            }
        }
    }
    for message in &scope.messages {
        let ours = context.is_ours(engine);
        if !sent.contains(&message.name) && ours {
            let problem = format!(
                "`{}` is neither in `messages` of the spoe-agent nor in a group, so it is never sent",
                message.name
            );
            found.warning(
                &message.head,
                "never-sent",
                problem,
                format!("messages {} (in the spoe-agent)", message.name),
            );
        }
        // A report of an offence may name its source in other ways.
        let reports = message.name.contains("report");
        if !has_address_argument(message) && !reports && sent.contains(&message.name) && ours {
            let problem = format!(
                "`{}` has no argument with the client's address, so banmesh never finds a banned address in it",
                message.name
            );
            found.error(&message.head, "no-address", problem, "args src_ip=src");
        }
        if ours && sent.contains(&message.name) {
            header(message, found);
        }
    }
}

/// An address from a header. Before the request is read there is no header, and a client can write anything into it.
fn header(message: &Message, found: &mut Findings) {
    let address = message.arguments.iter().find(|(key, _)| is_address_name(key));
    let Some((key, _)) = address.filter(|(_, sample)| sample.contains("hdr")) else { return };
    let fix =
        format!("args {key}=src; `banmesh haproxy config --trusted-proxy CIDR` prints the rules for the frontend");
    let early = message.event.as_ref().map(|event| event.word(1)).filter(|event| !event.contains("http"));
    if let Some(event) = early {
        let problem = format!("`{event}` occurs before the request is read; HAProxy rejects a header there");
        found.error(&message.head, "header-too-early", problem, fix);
    } else {
        let problem = "any client can send this header, and so choose the address that is checked";
        found.warning(&message.head, "spoofable", problem, fix);
    }
}

/// A second attempt needs `option continue-on-error`, because without it the first error ends all checks of the stream.
fn retry(context: &Context<'_>, engine: &Engine<'_>, agent: &Agent, found: &mut Findings) {
    if agent.last(&["option", "continue-on-error"]).is_some() {
        return;
    }
    let tries_again = context.configuration.proxies.iter().any(|proxy| {
        proxy.rules().iter().any(|rule| {
            rule.sends().is_some_and(|(name, _)| Some(name) == engine.name)
                && rule
                    .condition
                    .as_ref()
                    .is_some_and(|condition| reads(condition.words).iter().any(|variable| engine.sets_error(variable)))
        })
    });
    if tries_again {
        let problem = "a rule retries after an error, but without `option continue-on-error` the first error ends all checks of the stream";
        found.warning(&agent.head, "no-continue-on-error", problem, "option continue-on-error");
    }
}
