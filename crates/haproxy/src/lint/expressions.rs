//! Samples and keywords that do not exist, and comparisons that do not mean what they seem to.

use super::context::Context;
use crate::document::Line;
use crate::finding::Findings;
use crate::proxies::{Kind, Proxy};
use crate::rules::{Test, condition, reads};
use crate::version::Version;

/// Converters that are often mistaken for functions of two values.
const ARITHMETIC: [&str; 5] = ["add(", "sub(", "mul(", "div(", "mod("];

pub(super) fn check(context: &Context<'_>, found: &mut Findings) {
    for line in context.configuration.lines() {
        keywords(line, found);
        empty(context, line, found);
        for test in tests(line) {
            comparison(&test, line, found);
            counters(context, &test, line, found);
            age(context, &test, line, found);
        }
    }
    let all = context.configuration;
    let defaults = all.defaults.iter().flat_map(|section| &section.lines);
    let outside = all.stray.iter().chain(defaults).chain(all.proxies.iter().flat_map(|proxy| &proxy.own));
    for line in outside.filter(|line| line.word(0).starts_with("lua-load")) {
        found.error(
            line,
            "lua-outside-global",
            "`lua-load` is only allowed in `global`; HAProxy rejects it here",
            "move it to `global`",
        );
    }
    lua(context, found);
    for proxy in &context.configuration.proxies {
        table(context, proxy, found);
    }
}

/// The tests in a line: an `acl`, or the tests in braces.
fn tests(line: &Line) -> Vec<Test<'_>> {
    if line.word(0) == "acl" {
        return vec![Test(line.from(2))];
    }
    let Some(condition) = condition(&line.words).1 else { return Vec::new() };
    let mut tests = Vec::new();
    let mut rest = condition.words;
    while let Some(start) = rest.iter().position(|word| word.trim_start_matches('!') == "{") {
        let inner = rest.get(start + 1..).unwrap_or_default();
        let end = inner.iter().position(|word| word == "}").unwrap_or(inner.len());
        let (test, after) = inner.split_at(end);
        tests.push(Test(test));
        rest = after;
    }
    tests
}

/// From 3.1 on, HAProxy warns unless the configuration says how Lua sees booleans.
fn lua(context: &Context<'_>, found: &mut Findings) {
    let global = &context.configuration.global;
    let Some(at) = global.iter().position(|line| line.word(0).starts_with("lua-load")) else { return };
    let is_set = global.iter().take(at).any(|line| line.word(0) == "tune.lua.bool-sample-conversion");
    if let (Some(line), false, true) = (global.get(at), is_set, context.version.has_spop_mode()) {
        let problem = "from 3.1 on, HAProxy warns unless `tune.lua.bool-sample-conversion` is set before this line";
        found.warning(line, "lua-booleans", problem, "tune.lua.bool-sample-conversion normal");
    }
}

fn keywords(line: &Line, found: &mut Findings) {
    let (action, arguments) = match line.word(0) {
        "http-request" => (line.word(1), line.from(2)),
        "tcp-request" => (line.word(2), line.from(3)),
        _ => return,
    };
    if line.begins(&["http-request", "accept"]) {
        let mut words = line.words.clone();
        if let Some(place) = words.get_mut(1) {
            "allow".clone_into(place);
        }
        found.error(
            line,
            "no-such-action",
            "`http-request accept` does not exist; HAProxy rejects it",
            words.join(" "),
        );
    }
    if action.starts_with("sc-set-gpc") {
        let problem = format!("`{action}` does not exist: a counter can only be incremented; only a tag can be set");
        let fix = "sc-set-gpt(0,0) int(1), with `store gpt(2)` in the stick-table";
        found.error(line, "no-such-action", problem, fix);
    }
    let sample = arguments.first().map_or("", String::as_str);
    if action.starts_with("set-var(") && ARITHMETIC.iter().any(|name| sample.starts_with(name)) {
        let problem = "this is a converter, which must follow a sample; it is not a sample itself";
        let (name, rest) = sample.split_once('(').unwrap_or((sample, ""));
        let inner = reads(&[rest.to_owned()]).iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let fix = match inner.as_slice() {
            [first, second, ..] => format!("{action} var({first}),{name}({second})"),
            _ => format!("{action} date,{name}(txn.since)"),
        };
        found.error(line, "converter-as-sample", problem, fix);
    }
}

/// An empty word. HAProxy takes it for the end of the line.
fn empty(context: &Context<'_>, line: &Line, found: &mut Findings) {
    let Some(at) = line.words.iter().position(String::is_empty) else { return };
    let more = at + 1 < line.words.len();
    if more || context.version >= Version::new(3, 3) {
        let problem = "HAProxy takes an empty word for the end of the line, and rejects it from 3.3 on";
        found.error(line, "empty-word", problem, "delete it; to match an empty text, use `-m len 0`");
    }
}

/// `var()` has no type, so the test must name a match method.
fn comparison(test: &Test<'_>, line: &Line, found: &mut Findings) {
    let (Some(_), None) = (test.variable(), test.method()) else { return };
    let mut words: Vec<&str> = test.0.iter().map(String::as_str).collect();
    let operators = ["eq", "ne", "lt", "le", "gt", "ge"];
    let next = words.get(1).copied().unwrap_or_default();
    let method = match next {
        "" => "-m bool",
        next if operators.contains(&next) || next.parse::<i64>().is_ok() => "-m int",
        _ => "-m str",
    };
    words.insert(1, method);
    let problem = "a variable has no type, so from 2.6 on HAProxy rejects a comparison without `-m`";
    found.error(line, "no-match-method", problem, format!("{{ {} }}", words.join(" ")));
}

/// The values of a variable, from every rule that sets it.
fn settings<'a>(context: &Context<'a>, variable: &str) -> Vec<&'a [String]> {
    let lines = context.written.get(variable).map(Vec::as_slice).unwrap_or_default();
    lines.iter().map(|line| condition(&line.words).0).collect()
}

/// A counter always has a value, so `-m found` matches every tracked client.
fn counters(context: &Context<'_>, test: &Test<'_>, line: &Line, found: &mut Findings) {
    let (Some(variable), true) = (test.variable(), test.is_found_test()) else { return };
    let is_counter = |word: &String| {
        ["sc_get_gp", "sc0_get_gp", "sc1_get_gp", "sc2_get_gp", "src_get_gp"].iter().any(|name| word.starts_with(name))
    };
    if settings(context, variable).iter().any(|words| words.iter().any(is_counter)) {
        let problem =
            format!("`{variable}` is a counter, which is 0 for unknown clients, so `-m found` matches every client");
        found.warning(
            line,
            "always-found",
            problem,
            format!("var({variable}) -m int gt 0, with a different value for each answer"),
        );
    }
}

/// A comparison of seconds with a number of milliseconds.
fn age(context: &Context<'_>, test: &Test<'_>, line: &Line, found: &mut Findings) {
    let Some(sample) = test.0.first() else { return };
    let mut words = test.0.iter().skip_while(|word| !["lt", "le", "gt", "ge"].contains(&word.as_str()));
    let Some(number) = words.nth(1).and_then(|number| number.parse::<u64>().ok()).filter(|number| *number >= 10_000)
    else {
        return;
    };
    // `date(0,ms)` and `date(0,us)` have other units.
    let is_age = |word: &str| {
        word.strip_prefix("date").is_some_and(|rest| {
            rest.is_empty() || rest.starts_with([',', '(']) && !rest.contains("ms)") && !rest.contains("us)")
        })
    };
    let made_of_date = |variable: &str| {
        settings(context, variable).iter().any(|words| {
            words.iter().any(|word| {
                is_age(word)
                    || reads(std::slice::from_ref(word))
                        .iter()
                        .any(|inner| settings(context, inner).iter().any(|words| words.iter().any(|word| is_age(word))))
            })
        })
    };
    if is_age(sample) || test.variable().is_some_and(made_of_date) {
        let problem = format!("`date` is in seconds, and {number} seconds are {} hours", number / 3600);
        found.warning(line, "age-in-seconds", problem, (number / 1000).to_string());
    }
}

/// A stick table without room for IPv6 addresses, in a frontend that tracks clients.
fn table(context: &Context<'_>, proxy: &Proxy, found: &mut Findings) {
    let Some(line) = proxy.own.iter().find(|line| line.begins(&["stick-table", "type", "ip"])) else { return };
    let tracks = |other: &&Proxy| {
        other.rules().iter().any(|rule| {
            rule.action.starts_with("track-sc")
                && rule.arguments.first().is_some_and(|key| key == "src")
                && match rule.arguments.iter().position(|word| word == "table") {
                    Some(at) => rule.arguments.get(at + 1) == Some(&proxy.name),
                    None => std::ptr::eq(*other, proxy),
                }
        })
    };
    let trackers: Vec<&Proxy> =
        context.configuration.proxies.iter().filter(|other| other.kind != Kind::Backend).filter(tracks).collect();
    if trackers.is_empty() {
        return;
    }
    let is_v6 = |bind: &Line| {
        bind.word(1).starts_with(['[', ':']) && bind.word(1).contains("::") || bind.word(1).contains("ipv6@")
    };
    let problem = "a stick table of `type ip` cannot hold IPv6 addresses";
    let fix = line.words.join(" ").replace("type ip", "type ipv6");
    if trackers.iter().any(|proxy| proxy.binds().any(is_v6)) {
        found.warning(line, "table-ipv4", format!("{problem}, so IPv6 clients are not tracked"), fix);
    } else {
        found.note(line, "table-ipv4", format!("{problem}; `type ipv6` can hold both"), fix);
    }
}
