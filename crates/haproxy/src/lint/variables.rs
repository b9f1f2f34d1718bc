//! Variables that rules read but nothing sets.

use super::context::{Context, Engine, SCOPES, VERDICT, is_nearly_verdict, is_verdict_name};
use crate::document::Line;
use crate::finding::Findings;
use crate::proxies::Kind;
use crate::rules::{reads, writes};
use crate::spoe::Agent;

/// HAProxy truncates names to this many characters.
const NAME_MAX: usize = 63;

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    let incomplete = context.is_incomplete();
    for line in context.configuration.lines() {
        for name in writes(&line.words).into_iter().chain(reads(&line.words)) {
            if name.len() > NAME_MAX {
                let problem = format!(
                    "HAProxy truncates the names of variables to {NAME_MAX} characters; this one has {}",
                    name.len()
                );
                found.warning(line, "long-name", problem, "use a shorter name");
            }
        }
        for name in reads(&line.words) {
            if !context.written.contains_key(name) && !incomplete && !context.engines.is_empty() {
                never_set(context, line, name, found);
            }
        }
    }
    missing_filter(context, found);
}

/// A variable whose name resembles one of an agent, but that no agent sets.
fn never_set(context: &Context<'_>, line: &Line, name: &str, found: &mut Findings) {
    let engines = &context.engines;
    if engines.iter().any(|engine| engine.sets_verdict(name) || engine.sets_error(name)) {
        return;
    }
    let scope = name.split('.').next().filter(|scope| SCOPES.contains(scope)).unwrap_or("txn");
    if is_verdict_name(name) {
        let Some(agent) = engines.iter().find(|engine| context.is_ours(engine)).and_then(Engine::agent) else {
            return;
        };
        let right = agent.variable(scope, VERDICT);
        let problem = format!(
            "`{name}` is never set, so this never matches: the agent's prefix is `{}`, and banmesh sets `banned` in txn and sess",
            agent.prefix()
        );
        return found.error(line, "never-set", problem, format!("var({right})"));
    }
    let misspelt = |engine: &&Engine<'_>| engine.own_name(name).is_some_and(is_nearly_verdict);
    if let Some(engine) = engines.iter().find(misspelt).filter(|engine| context.is_ours(engine))
        && let Some(agent) = engine.agent()
    {
        let problem = format!("`{name}` is never set, so this never matches: banmesh sets `banned`");
        return found.error(line, "never-set", problem, format!("var({})", agent.variable(scope, VERDICT)));
    }
    let mut parts = name.splitn(2, '.');
    let (_, rest) = (parts.next(), parts.next().unwrap_or_default());
    for agent in engines.iter().filter_map(Engine::agent) {
        let short = rest.strip_prefix(agent.prefix()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(rest);
        let prefixed = short != rest;
        match agent.on_error().map(|line| line.word(2)) {
            // `txn.error` or `sess.ip.error`, for example. Errors are set only in scope txn.
            Some(error) if short == error => {
                let problem = format!(
                    "`{name}` is never set, so this never matches: an error sets `{}`",
                    agent.variable("txn", error)
                );
                return found.error(line, "never-set", problem, format!("var({})", agent.variable("txn", error)));
            }
            None if prefixed && short.contains("err") => {
                let problem = format!("`{name}` is never set, because the spoe-agent has no `option set-on-error`");
                return found.error(
                    line,
                    "never-set",
                    problem,
                    format!("option set-on-error {short}, in the spoe-agent"),
                );
            }
            _ => {}
        }
    }
}

/// A frontend that reads the answer without a filter that asks for it, and a filter whose answer no rule reads.
fn missing_filter(context: &Context<'_>, found: &mut Findings) {
    for proxy in context.configuration.proxies.iter().filter(|proxy| proxy.kind != Kind::Backend) {
        for line in proxy.lines() {
            for name in reads(&line.words)
                .into_iter()
                .filter(|name| is_verdict_name(name) && !context.written.contains_key(name))
            {
                if context.engines_of(proxy).any(|engine| engine.agent().is_none() || engine.sets_verdict(name)) {
                    continue;
                }
                let elsewhere = context.engines.iter().find(|engine| engine.sets_verdict(name));
                if elsewhere.is_none() && !context.engines.is_empty() {
                    continue;
                }
                let filter = elsewhere.map_or_else(
                    || "filter spoe engine ip-reputation config /etc/haproxy/spoe-ip-reputation.conf".to_owned(),
                    |engine| engine.line.words.join(" "),
                );
                let problem =
                    format!("`{}` reads `{name}` but has no filter that queries it, so it is never set", proxy.title());
                found.error(line, "no-filter", problem, filter);
            }
        }
    }
    for engine in &context.engines {
        // A misspelt variable has its own finding.
        let read = |line: &Line| reads(&line.words).into_iter().any(is_verdict_name);
        if engine.agent().is_some_and(|agent: &Agent| !agent.messages().is_empty() || !agent.groups().is_empty())
            && !context.is_incomplete()
            && context.is_ours(engine)
            && !context.configuration.lines().any(read)
        {
            let problem =
                format!("`{}` asks whether a client is banned, but no rule reads the answer", engine.proxy.title());
            let fix = engine.agent().map(|agent| match engine.proxy.mode() {
                crate::proxies::Mode::Http => {
                    format!(
                        "http-request deny deny_status 403 if {{ var({}) -m int eq 1 }}",
                        agent.variable("txn", VERDICT)
                    )
                }
                _ => {
                    format!("tcp-request content reject if {{ var({}) -m int eq 1 }}", agent.variable("sess", VERDICT))
                }
            });
            found.warning(engine.line, "not-used", problem, fix.unwrap_or_default());
        }
    }
}
