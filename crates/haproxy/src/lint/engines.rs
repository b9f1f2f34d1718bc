//! Filters, and the SPOE files that they name.

use std::time::Duration;

use super::{ADDRESS_ARGUMENTS, Context, Engine, VERDICT, is_about_somebody};
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
            let what = format!("`{}` has two filters of this engine; HAProxy refuses that", engine.proxy.title());
            found.error(engine.line, "duplicate-engine", what, "delete one of them, or give it an engine of its own");
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

/// The line `filter spoe`, and whether it leads to an agent.
fn filter(engine: &Engine<'_>, found: &mut Findings) {
    let line = engine.line;
    if line.words.iter().any(|word| word == "if" || word == "unless") {
        let name = engine.name.unwrap_or("ENGINE");
        let what = "a `filter` line takes no condition; HAProxy says: unknown keyword 'if'";
        let cure = format!("delete the condition, and let a rule ask: http-request send-spoe-group {name} GROUP if …");
        found.error(line, "filter-condition", what, cure);
    }
    let Some(file) = engine.file else {
        let what = "the filter names no SPOE file";
        return found.error(
            line,
            "no-spoe-file",
            what,
            "filter spoe engine ip-reputation config /etc/haproxy/spoe-ip-reputation.conf",
        );
    };
    if let SpoeFile::Beside(_, name) = file {
        let what = format!("there is no such file on this machine; {name} was read in its place");
        found.note(line, "spoe-elsewhere", what, "put it there before HAProxy starts");
    }
    match file {
        SpoeFile::Missing(name, reason) => {
            let what = format!("{name} cannot be read: {reason}");
            let cure =
                "`banmesh haproxy config --part spoe` prints the file; --spoe FILE names it where it lies elsewhere";
            found.error(line, "no-spoe-file", what, cure);
        }
        SpoeFile::Read(document) | SpoeFile::Beside(document, _) if engine.scope.agents.is_empty() => {
            let scopes = spoe::scopes(document);
            let names: Vec<String> =
                scopes.iter().map(|name| name.map_or("no scope".into(), |n| format!("[{n}]"))).collect();
            let what = match engine.name {
                Some(name) => format!("the SPOE file has no agent in the scope [{name}]; it has: {}", names.join(", ")),
                None => format!(
                    "the filter names no engine, and the SPOE file has no agent outside of a scope; it has: {}",
                    names.join(", ")
                ),
            };
            let cure = match scopes.iter().flatten().next() {
                Some(name) => format!("filter spoe engine {name} config {}", line.after("config").unwrap_or_default()),
                None => format!("begin the SPOE file with [{}]", engine.name.unwrap_or("ip-reputation")),
            };
            found.error(line, "engine-scope", what, cure);
        }
        SpoeFile::Read(_) | SpoeFile::Beside(..) => {
            if let Some(second) = engine.scope.agents.get(1) {
                let what = "a second spoe-agent in one scope; HAProxy refuses that";
                found.error(
                    &second.head,
                    "two-agents",
                    what,
                    "two servers in ONE backend: the second with the word `backup`",
                );
            }
        }
    }
}

/// Whether an event can come in the proxy that has the filter.
fn event_fires(engine: &Engine<'_>, message: &Message, event: &str, found: &mut Findings) {
    let Some(line) = &message.event else { return };
    let title = engine.proxy.title();
    if !EVENTS.contains(&event) {
        let what = format!("`{event}` is no event of SPOE; HAProxy refuses it");
        return found.error(line, "unknown-event", what, "event on-client-session");
    }
    let needs_http = event.contains("http");
    if needs_http && engine.proxy.mode() == Mode::Tcp {
        let what = format!("`{event}` never comes in `{title}`, which is in mode tcp: nothing is asked there");
        return found.error(line, "event-never", what, "event on-client-session");
    }
    if engine.proxy.kind == Kind::Backend && (event.starts_with("on-client") || event.starts_with("on-frontend")) {
        let what = format!("`{event}` never comes in a backend, and the filter stands in `{title}`: nothing is asked");
        found.error(line, "event-never", what, "move the line `filter spoe` to the frontend");
    }
}

fn options(context: &Context<'_>, agent: &Agent, found: &mut Findings) {
    if agent.last(&["option", "var-prefix"]).is_none() && !is_variable_name(&agent.name) {
        let what = format!(
            "without `option var-prefix` the agent's name, `{}`, begins its variables, and HAProxy refuses the `-` in it",
            agent.name
        );
        found.error(&agent.head, "no-prefix", what, "option var-prefix ip");
    }
    for line in agent.lines.iter().filter(|line| line.word(0) == "option") {
        let (option, name) = (line.word(1), line.word(2));
        let takes = match option {
            "var-prefix" | "set-on-error" | "set-process-time" | "set-total-time" => 1,
            "no" => {
                let what = "HAProxy does not know `option no …`";
                found.error(line, "option-no", what, format!("no option {name}"));
                continue;
            }
            _ => 0,
        };
        if let (1, Some(extra)) = (takes, line.words.get(3)) {
            let what =
                format!("`option {option}` takes a name and nothing else: cannot handle unexpected argument '{extra}'");
            let cure = if option == "set-on-error" {
                "option set-on-error error".into()
            } else {
                format!("option {option} {name}")
            };
            found.error(line, "option-argument", what, cure);
        }
        if takes == 1 && !is_variable_name(name) {
            let what = format!("`option {option}` takes letters, digits, `_` and `.` only");
            found.error(line, "option-name", what, format!("option {option} ip"));
        }
        if option == "set-on-error" && name == VERDICT {
            let what = "an error sets this variable to its code, and a timeout is code 1: when the agent is slow or gone, every \
                        client counts as banned";
            found.error(line, "error-as-verdict", what, "option set-on-error error");
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
        let what = format!("`{}` does nothing from HAProxy 3.1 on", line.words.join(" "));
        found.note(line, "no-effect", what, "delete the line");
    }
}

fn timeouts(context: &Context<'_>, agent: &Agent, found: &mut Findings) {
    match agent.timeout("processing") {
        None => {
            let what = "there is no `timeout processing`: a client waits for as long as the agent hangs";
            found.warning(&agent.head, "no-processing-timeout", what, "timeout processing 200ms");
        }
        Some((line, Some(time))) if time.is_zero() || time > Duration::from_secs(1) => {
            let what = format!(
                "with an agent that hangs, every request waits this long ({}) and then passes unchecked",
                line.word(2)
            );
            found.warning(line, "long-processing-timeout", what, "timeout processing 200ms");
        }
        Some((line, Some(time))) if time > Duration::from_millis(500) => {
            let what = "100 to 500 ms is plenty: an answer takes well under a millisecond, and a hanging agent costs this \
                        much a request";
            found.note(line, "long-processing-timeout", what, "timeout processing 200ms");
        }
        Some(_) => {}
    }
    for (name, cure) in [("hello", "timeout hello 500ms"), ("idle", "timeout idle 1m")] {
        if !context.version.has_spop_mode() && agent.timeout(name).is_none() {
            let what = format!("there is no `timeout {name}`, which HAProxy up to 3.0 needs");
            found.warning(&agent.head, "no-spoe-timeout", what, cure);
        }
    }
    if agent.last(&["log"]).is_none() {
        let what = "the agent has no `log`: nobody learns of checks that fail";
        found.note(&agent.head, "no-spoe-log", what, "log global, and option dontlog-normal");
    }
    if let Some(line) = agent.last(&["max-frame-size"])
        && line.word(1).parse::<u32>().is_ok_and(|size| size < 256 || (size > 16_380 && !has_large_buffers(context)))
    {
        let what = "max-frame-size is refused outside of 256 to 16380 (tune.bufsize less 4)";
        found.error(line, "frame-size", what, "delete the line");
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
                let what = format!("there is no message `{}` in this scope; there are: {}", named.name, messages());
                found.error(&named.line, "unknown-message", what, format!("spoe-message {}", named.name));
            }
            Some(message) if message.event.is_none() => {
                let what = format!("`{}` waits for no event, so HAProxy ignores it: it is never sent", message.name);
                let cure = "event on-client-session (or name it in a spoe-group, and not in `messages`)";
                found.error(&message.head, "no-event", what, cure);
            }
            Some(_) => {}
        }
    }
    for named in agent.groups() {
        let Some(group) = scope.groups.iter().find(|group| group.name == named.name) else {
            let groups = names(scope.groups.iter().map(|group| group.name.as_str()).collect());
            let what = format!("there is no group `{}` in this scope; there are: {groups}", named.name);
            found.error(&named.line, "unknown-group", what, format!("spoe-group {}", named.name));
            continue;
        };
        for message in &group.messages {
            sent.push(message.name.clone());
            if !known(&message.name) {
                let what = format!("there is no message `{}` in this scope; there are: {}", message.name, messages());
                found.error(&message.line, "unknown-message", what, format!("spoe-message {}", message.name));
            }
        }
    }
    for message in &scope.messages {
        let ours = context.is_ours(engine);
        if !sent.contains(&message.name) && ours {
            let what =
                format!("the agent names `{}` neither in `messages` nor in a group: it is never sent", message.name);
            found.warning(&message.head, "never-sent", what, format!("messages {} (in the spoe-agent)", message.name));
        }
        // A message that tells of an offence names whom it is about in its own way.
        let reports = message.name.contains("report");
        if !is_about_somebody(message) && !reports && sent.contains(&message.name) && ours {
            let what = format!("`{}` does not say whom it is about, so banmesh answers nothing", message.name);
            found.error(&message.head, "no-address", what, "args src_ip=src");
        }
        if ours && sent.contains(&message.name) {
            header(message, found);
        }
    }
}

/// An address that is taken from a header: not there yet at the start of a session, and whatever the client wrote.
fn header(message: &Message, found: &mut Findings) {
    let address = message.arguments.iter().find(|(key, _)| ADDRESS_ARGUMENTS.contains(&key.as_str()));
    let Some((key, _)) = address.filter(|(_, sample)| sample.contains("hdr")) else { return };
    let cure = format!("args {key}=src, and in the frontend `banmesh haproxy config --trusted-proxy CIDR` shows how");
    let early = message.event.as_ref().map(|event| event.word(1)).filter(|event| !event.contains("http"));
    if let Some(event) = early {
        let what = format!("`{event}` comes before the request has been read; HAProxy refuses a header there");
        found.error(&message.head, "header-too-early", what, cure);
    } else {
        let what = "every client can write this header, and so choose the address that is checked";
        found.warning(&message.head, "spoofable", what, cure);
    }
}

/// A second try is made only where the first error does not end the checks of the stream.
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
        let what =
            "a rule tries again after an error, but without this option the first error ends all checks of the stream";
        found.warning(&agent.head, "no-continue-on-error", what, "option continue-on-error");
    }
}
