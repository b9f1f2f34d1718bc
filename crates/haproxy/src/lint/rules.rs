//! What frontends do with the answer, and the order of their rules.

use super::context::{Context, Engine, VERDICT, is_verdict_name};
use crate::finding::Findings;
use crate::proxies::{Mode, Proxy};
use crate::rules::{Rule, Stage, reads, terms};

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    for proxy in &context.configuration.proxies {
        let rules = proxy.rules();
        groups(context, proxy, &rules, found);
        stages(context, proxy, &rules, found);
        dead(&rules, found);
        if !proxy.takes_clients() {
            continue;
        }
        for engine in context.engines_of(proxy).filter(|engine| engine.agent().is_some()) {
            order(engine, &rules, found);
            if context.is_ours(engine) {
                source(engine, &rules, found);
                stale(engine, &rules, found);
                when_no_agent_answers(engine, proxy, &rules, found);
            }
        }
        believed_headers(proxy, &rules, found);
        logs(proxy, found);
        redirect(proxy, found);
    }
}

/// The variables of a rule's condition, named ACLs included.
fn asked<'a>(rule: &Rule<'a>, proxy: &'a Proxy) -> Vec<&'a str> {
    let Some(condition) = &rule.condition else { return Vec::new() };
    terms(condition, proxy).iter().flat_map(|term| &term.tests).flat_map(|test| reads(test.0)).collect()
}

/// Rules that send a group: whether the group exists, and whether the frontend waits for the answer.
fn groups(context: &Context<'_>, proxy: &Proxy, rules: &[Rule<'_>], found: &mut Findings) {
    for rule in rules {
        let Some((name, group)) = rule.sends() else { continue };
        let Some(engine) = context.engines_of(proxy).find(|engine| engine.name == Some(name)) else {
            let problem =
                format!("`{}` has no filter with the engine `{name}`; HAProxy rejects the rule", proxy.title());
            found.error(rule.line, "unknown-engine", problem, format!("filter spoe engine {name} config FILE"));
            continue;
        };
        if let Some(agent) = engine.agent()
            && !agent.groups().iter().any(|named| named.name == group)
        {
            let exists = engine.scope.groups.iter().any(|known| known.name == group);
            let problem = if exists {
                format!("the spoe-agent does not list the group `{group}`; HAProxy rejects the rule")
            } else {
                format!("the SPOE file has no spoe-group `{group}`; HAProxy rejects the rule")
            };
            let fix = format!("groups {group}, in the spoe-agent, and a section `spoe-group {group}`");
            found.error(rule.line, "unknown-group", problem, fix);
        }
        if rule.stage == Stage::Content && proxy.last(&["tcp-request", "inspect-delay"]).is_none() {
            let problem = "without `inspect-delay`, HAProxy does not wait for the answer to this rule, so a banned client sometimes passes";
            found.warning(rule.line, "no-inspect-delay", problem, "tcp-request inspect-delay 500ms");
        }
    }
}

/// Rules that run before the answer arrives, or never.
fn stages(context: &Context<'_>, proxy: &Proxy, rules: &[Rule<'_>], found: &mut Findings) {
    let answers = |name: &str| {
        is_verdict_name(name)
            || context.engines.iter().any(|engine| engine.sets_verdict(name) || engine.sets_error(name))
    };
    for rule in rules {
        let about = rule.sends().is_some() || asked(rule, proxy).into_iter().any(answers);
        if !about {
            continue;
        }
        if matches!(rule.stage, Stage::Connection | Stage::Session) {
            let word = rule.line.word(1);
            let problem = format!(
                "`tcp-request {word}` runs before the check, when the variable is not set, so it never matches"
            );
            let mut words = rule.line.words.clone();
            if let Some(place) = words.get_mut(1) {
                "content".clone_into(place);
            }
            found.error(rule.line, "too-early", problem, words.join(" "));
        }
        if rule.stage == Stage::Request && proxy.mode() == Mode::Tcp {
            let problem = format!("HAProxy ignores `http-request` in `{}`, which is in mode tcp", proxy.title());
            let translates = matches!(rule.action, "deny" | "send-spoe-group") && proxy.last(&["mode"]).is_some();
            let fix = if translates {
                let text = rule.line.words.join(" ").replacen("http-request", "tcp-request content", 1);
                text.replacen("content deny", "content reject", 1)
            } else {
                "mode http, in this frontend".to_owned()
            };
            found.error(rule.line, "needs-http", problem, fix);
        }
    }
}

/// Rules that are never reached, because an earlier rule ends the request.
fn dead(rules: &[Rule<'_>], found: &mut Findings) {
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.ends()) {
        let later = rules.iter().skip(index + 1).filter(|later| later.stage == rule.stage);
        let at = rule.line.place.line;
        for later in later {
            let about_verdict = reads(&later.line.words).into_iter().any(is_verdict_name);
            match rule.condition_text() {
                Some(text) if about_verdict && later.condition_text().as_ref() == Some(&text) => {
                    let problem = format!(
                        "this is never reached: line {at} ends the request for the same clients ({})",
                        rule.action
                    );
                    let fix = "delete it; `http-request deny … hdr X-IP-Status banned` adds a header to the refusal";
                    found.warning(later.line, "dead-rule", problem, fix);
                }
                None if about_verdict => {
                    let problem =
                        format!("this is never reached: line {at} ends every request before it ({})", rule.action);
                    found.warning(later.line, "dead-rule", problem, format!("move it before line {at}"));
                }
                _ => {}
            }
        }
    }
}

/// For an agent without events: whether a rule sends a group, and before the first rule that reads the answer.
fn order(engine: &Engine<'_>, rules: &[Rule<'_>], found: &mut Findings) {
    let (Some(name), true) = (engine.name, engine.at_events().is_empty()) else { return };
    let Some(agent) = engine.agent() else { return };
    let first = rules.iter().position(|rule| rule.sends().is_some_and(|(to, _)| to == name));
    let Some(first) = first else {
        // Messages without an event have their own finding.
        if agent.messages().is_empty() {
            let problem = "no message has an event, and no rule sends a group, so HAProxy queries nothing";
            let verb = if engine.proxy.mode() == Mode::Http { "http-request" } else { "tcp-request content" };
            let group = agent.groups().first().map_or_else(|| "GROUP".to_owned(), |group| group.name.clone());
            found.error(engine.line, "never-asked", problem, format!("{verb} send-spoe-group {name} {group}"));
        }
        return;
    };
    let asked_at = rules.get(first).map_or(0, |rule| rule.line.place.line);
    let stage = rules.get(first).map(|rule| rule.stage);
    for rule in rules.iter().take(first).filter(|rule| Some(rule.stage) == stage && rule.refuses()) {
        let early =
            asked(rule, engine.proxy).into_iter().find(|name| name.starts_with("txn.") && engine.sets_verdict(name));
        if let Some(variable) = early {
            let problem =
                format!("`{variable}` is set only in line {asked_at}, after this rule, so this never matches");
            found.error(rule.line, "asked-too-late", problem, format!("move it after line {asked_at}"));
        }
    }
}

/// The events that occur before the rules about requests.
const EARLY_EVENTS: [&str; 3] = ["on-client-session", "on-frontend-tcp-request", "on-frontend-http-request"];

/// A rule that changes the address after the check was sent.
fn source(engine: &Engine<'_>, rules: &[Rule<'_>], found: &mut Findings) {
    let changes = |rule: &Rule<'_>| rule.action == "set-src" && matches!(rule.stage, Stage::Request | Stage::Content);
    let asks = |rule: &&Rule<'_>| {
        rule.sends().is_some_and(|(name, _)| Some(name) == engine.name)
            && !asked(rule, engine.proxy).into_iter().any(|name| engine.sets_error(name))
    };
    let Some(at) = rules.iter().position(changes) else { return };
    let event = engine.at_events().into_iter().map(|(_, event)| event).find(|event| EARLY_EVENTS.contains(event));
    let early = event
        .map(str::to_owned)
        .or_else(|| rules.iter().take(at).find(asks).map(|rule| format!("line {}", rule.line.place.line)));
    let asks_again = rules.iter().skip(at).any(|rule| asks(&rule));
    if let (Some(rule), Some(early), false) = (rules.get(at), early, asks_again) {
        let problem =
            format!("the check is sent before this rule ({early}), so it asks about the address of the proxy");
        let engine = engine.name.unwrap_or("ENGINE");
        let fix = if event.is_some() {
            format!(
                "remove the event from the message, add the message to an spoe-group, and after this line: http-request \
                 send-spoe-group {engine} GROUP (`banmesh haproxy config --trusted-proxy CIDR` prints all of this)"
            )
        } else {
            format!("move it before {early}")
        };
        found.error(rule.line, "set-src-too-late", problem, fix);
    }
}

/// Addresses from headers that any client can send.
fn believed_headers(proxy: &Proxy, rules: &[Rule<'_>], found: &mut Findings) {
    for rule in rules.iter().filter(|rule| rule.action == "set-src") {
        let sample = rule.arguments.join(" ");
        if !sample.contains("hdr") {
            continue;
        }
        // A condition on the header itself does not restrict who can send it.
        let tests = rule.condition.as_ref().map(|condition| terms(condition, proxy)).unwrap_or_default();
        let mut samples = tests.iter().flat_map(|term| &term.tests).filter_map(|test| test.0.first());
        if samples.all(|sample| sample.contains("hdr")) && tests.iter().all(|term| !term.tests.is_empty()) {
            let problem = "any client can send this header, and so choose the address that is checked";
            found.warning(
                rule.line,
                "spoofable",
                problem,
                format!("{} if {{ src TRUSTED_PROXIES }}", rule.line.words.join(" ")),
            );
        }
        let position =
            sample.rsplit_once(',').and_then(|(_, rest)| rest.trim_end_matches(')').trim().parse::<i32>().ok());
        if position.is_some_and(|position| position > 0) {
            let problem =
                "the first addresses in this header come from the client; only the last one was added by the proxy";
            found.warning(rule.line, "spoofable", problem, "req.hdr_ip(x-forwarded-for,-1)");
        }
    }
}

/// Variables in scope `sess` outlive a request. After an error they have the answer of an earlier request.
fn stale(engine: &Engine<'_>, rules: &[Rule<'_>], found: &mut Findings) {
    if engine.proxy.mode() != Mode::Http || engine.at_events().is_empty() {
        return;
    }
    for rule in rules.iter().filter(|rule| rule.stage == Stage::Request && rule.refuses()) {
        let old =
            asked(rule, engine.proxy).into_iter().find(|name| name.starts_with("sess.") && engine.sets_verdict(name));
        if let (Some(name), Some(agent)) = (old, engine.agent()) {
            let right = agent.variable("txn", VERDICT);
            let problem = format!(
                "`{name}` lasts as long as the connection: when a check fails, it has the answer to an earlier request"
            );
            found.note(rule.line, "stale", problem, format!("var({right})"));
        }
    }
}

/// Whether clients pass while no agent answers. Both choices are valid, but the operator should know.
fn when_no_agent_answers(engine: &Engine<'_>, proxy: &Proxy, rules: &[Rule<'_>], found: &mut Findings) {
    let refusals = || rules.iter().filter(|rule| rule.refuses());
    let closed = refusals().find(|rule| {
        rule.condition.as_ref().is_some_and(|condition| {
            terms(condition, proxy).iter().any(|term| {
                term.tests.iter().any(|test| {
                    let names = reads(test.0);
                    let verdict = names.iter().any(|name| engine.sets_verdict(name));
                    (verdict && term.negated && test.is_found_test())
                        || (!term.negated && names.iter().any(|name| engine.sets_error(name)))
                })
            })
        })
    });
    if let Some(rule) = closed {
        let problem = format!("fail closed: `{}` refuses all clients while no agent answers", proxy.title());
        return found.note(rule.line, "fail-closed", problem, "delete this rule to let clients pass instead");
    }
    let judged = refusals().find(|rule| asked(rule, proxy).iter().any(|name| engine.sets_verdict(name)));
    if let (Some(rule), Some(agent)) = (judged, engine.agent()) {
        let problem = format!("fail open: `{}` lets all clients pass while no agent answers", proxy.title());
        let fix = match proxy.mode() {
            Mode::Http => {
                let name = agent.variable("txn", VERDICT);
                format!("to refuse instead: http-request deny deny_status 503 if !{{ var({name}) -m found }}")
            }
            _ => {
                let name = agent.variable("sess", VERDICT);
                format!("to refuse instead: tcp-request content reject if !{{ var({name}) -m found }}")
            }
        };
        found.note(rule.line, "fail-open", problem, fix);
    }
}

fn logs(proxy: &Proxy, found: &mut Findings) {
    // The last of the two applies. HAProxy warns of proxies that take clients only, because a backend writes no log lines.
    let formats = [&["option", "httplog"][..], &["option", "tcplog"]];
    let applies = proxy.lines().rev().find(|line| formats.iter().any(|words| line.begins(words)));
    let http = applies.filter(|line| line.word(1) == "httplog" && proxy.takes_clients());
    if let (Mode::Tcp, Some(line)) = (proxy.mode(), http) {
        let problem = format!(
            "`option httplog` needs mode http, but `{}` is in mode tcp; HAProxy warns and uses tcplog",
            proxy.title()
        );
        if proxy.own.contains(line) {
            found.warning(line, "httplog", problem, "option tcplog");
        } else {
            found.note(&proxy.head, "httplog", problem, "option tcplog");
        }
    }
}

/// A redirect to HTTPS in a frontend that accepts only HTTPS.
fn redirect(proxy: &Proxy, found: &mut Findings) {
    let mut binds = proxy.binds().peekable();
    if binds.peek().is_none() || !binds.all(|line| line.words.iter().any(|word| word == "ssl")) {
        return;
    }
    for line in &proxy.own {
        let text = line.words.join("");
        if text.contains("redirectscheme") && (text.ends_with("if!{ssl_fc}") || text.ends_with("unless{ssl_fc}")) {
            let problem = "every `bind` here uses TLS, so this never matches, and nothing answers on port 80";
            let fix = "in another frontend: bind :80, and http-request redirect scheme https code 301";
            found.warning(line, "redirect-never", problem, fix);
        }
    }
}
