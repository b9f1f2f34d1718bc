//! Rules with their conditions, and the variables that they read and set.

use crate::document::Line;
use crate::proxies::Proxy;

/// When a rule is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `tcp-request connection`: when the connection is accepted.
    Connection,
    /// `tcp-request session`: before there is a stream, so before any SPOE query.
    Session,
    /// `tcp-request content`
    Content,
    /// `http-request`
    Request,
    /// `http-response`, `http-after-response` or `tcp-response`.
    Response,
}

/// A rule about a connection, a request or a response.
#[derive(Clone, Debug)]
pub struct Rule<'a> {
    /// The line of the rule.
    pub line: &'a Line,
    /// When it is evaluated.
    pub stage: Stage,
    /// The action: `deny`, `set-var(txn.a)`, ….
    pub action: &'a str,
    /// The words between the action and the condition.
    pub arguments: &'a [String],
    /// The condition. Without one, the rule always applies.
    pub condition: Option<Condition<'a>>,
}

/// A condition, after `if` or `unless`.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    /// Whether it is `unless` instead of `if`.
    pub unless: bool,
    /// The words after `if` or `unless`.
    pub words: &'a [String],
}

/// One test of a condition.
#[derive(Clone, Debug)]
pub struct Term<'a> {
    /// Whether the term is negated, by `!` or by `unless`.
    pub negated: bool,
    /// The test in braces, or the tests of all ACLs with this name.
    pub tests: Vec<Test<'a>>,
}

/// The words of a test: a sample and what it is compared with, such as `var(txn.ip.banned) -m int eq 1`.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a>(pub &'a [String]);

impl Rule<'_> {
    /// Whether the rule ends the evaluation, so that later rules do not see the clients it applies to.
    pub fn ends(&self) -> bool {
        let ending = ["deny", "reject", "tarpit", "silent-drop", "allow", "accept", "return", "redirect", "auth"];
        self.stage != Stage::Response && ending.contains(&self.action)
    }

    /// Whether the rule refuses the client.
    pub fn refuses(&self) -> bool {
        let away = ["deny", "reject", "tarpit", "silent-drop", "return", "redirect"];
        self.stage != Stage::Response && away.contains(&self.action)
    }

    /// The engine and the group, if the rule sends an SPOE group.
    pub fn sends(&self) -> Option<(&str, &str)> {
        let [engine, group, ..] = self.arguments else { return None };
        (self.action == "send-spoe-group").then_some((engine, group))
    }

    /// The condition as one string, for comparison.
    pub fn condition_text(&self) -> Option<String> {
        let condition = self.condition.as_ref()?;
        Some(format!("{} {}", if condition.unless { "unless" } else { "if" }, condition.words.join(" ")))
    }
}

impl Proxy {
    /// The rules of this proxy, in the order in which they are written. Inherited rules come first.
    pub fn rules(&self) -> Vec<Rule<'_>> {
        self.lines().filter_map(rule).collect()
    }
}

/// Parses a line as a rule.
fn rule(line: &Line) -> Option<Rule<'_>> {
    let (stage, at) = match (line.word(0), line.word(1)) {
        ("http-request", _) => (Stage::Request, 1),
        ("tcp-request", "connection") => (Stage::Connection, 2),
        ("tcp-request", "session") => (Stage::Session, 2),
        ("tcp-request", "content") => (Stage::Content, 2),
        ("http-response" | "http-after-response", _) => (Stage::Response, 1),
        ("tcp-response", _) => (Stage::Response, 2),
        _ => return None,
    };
    let (arguments, condition) = condition(line.from(at + 1));
    Some(Rule { line, stage, action: line.word(at), arguments, condition })
}

/// Splits words at the first `if` or `unless`.
pub fn condition(words: &[String]) -> (&[String], Option<Condition<'_>>) {
    match words.iter().position(|word| word == "if" || word == "unless") {
        Some(at) => {
            let (before, after) = words.split_at(at);
            let unless = after.first().is_some_and(|word| word == "unless");
            (before, Some(Condition { unless, words: after.get(1..).unwrap_or_default() }))
        }
        None => (words, None),
    }
}

/// The terms of a condition. Named ACLs are looked up in `proxy`.
pub fn terms<'a>(condition: &Condition<'a>, proxy: &'a Proxy) -> Vec<Term<'a>> {
    let mut terms = Vec::new();
    let mut rest = condition.words;
    let mut negated = condition.unless;
    while let Some((word, after)) = rest.split_first() {
        rest = after;
        if word == "||" || word == "or" {
            continue;
        }
        let name = word.trim_start_matches('!');
        if (word.len() - name.len()) % 2 == 1 {
            negated = !negated;
        }
        let tests = match name {
            "" => continue,
            "{" => {
                let end = rest.iter().position(|word| word == "}").unwrap_or(rest.len());
                let (inner, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                vec![Test(inner)]
            }
            name => proxy.all(&["acl"]).filter(|line| line.word(1) == name).map(|line| Test(line.from(2))).collect(),
        };
        terms.push(Term { negated, tests });
        negated = condition.unless;
    }
    terms
}

impl<'a> Test<'a> {
    /// The variable that is tested, if the sample is a variable without converters.
    pub fn variable(&self) -> Option<&'a str> {
        let sample = self.0.first()?;
        sample.strip_prefix("var(")?.strip_suffix(')').filter(|name| !name.contains([')', '(', ',']))
    }

    /// Whether the test is `-m found`.
    pub fn is_found_test(&self) -> bool {
        self.method() == Some("found")
    }

    /// The match method: the word after `-m`.
    pub fn method(&self) -> Option<&'a str> {
        let at = self.0.iter().position(|word| word == "-m")?;
        self.0.get(at + 1).map(String::as_str)
    }
}

/// The variables that words read with `var(NAME)`, anywhere in a word.
pub fn reads(words: &[String]) -> Vec<&str> {
    calls(words, "var(", |before| !before.ends_with("set-"))
}

/// The variables that words set with `set-var(NAME)` or `set-var-fmt(NAME)`.
pub fn writes(words: &[String]) -> Vec<&str> {
    let mut written = calls(words, "set-var(", |before| !before.ends_with("un"));
    written.extend(calls(words, "set-var-fmt(", |_| true));
    written
}

fn calls<'a>(words: &'a [String], call: &str, fits: impl Fn(&str) -> bool) -> Vec<&'a str> {
    let mut found = Vec::new();
    for word in words {
        for (at, _) in word.match_indices(call) {
            let before = word.get(..at).unwrap_or_default();
            let glued = before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            let after = word.get(at + call.len()..).unwrap_or_default();
            let Some(end) = after.find([')', ',']) else { continue };
            let name = after.get(..end).unwrap_or_default().trim();
            if !glued && fits(before) && !name.is_empty() {
                found.push(name);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Place;
    use crate::proxies::Kind;

    fn line(text: &str) -> Line {
        let words = text.split_whitespace().map(str::to_owned).collect();
        Line { place: Place { file: "x".into(), line: 1 }, words }
    }

    #[test]
    fn a_rule_has_an_action_arguments_and_a_condition() {
        let written = line("http-request deny deny_status 403 if !{ var(txn.a) -m found } || !! known");
        let rule = rule(&written).unwrap_or_else(|| panic!("a rule"));
        assert_eq!((rule.action, rule.arguments.len(), rule.stage), ("deny", 2, Stage::Request));
        let acl = vec![line("acl known var(sess.b) -m int eq 1"), line("acl known src 192.0.2.1")];
        let head = line("frontend f");
        let proxy = Proxy { kind: Kind::Frontend, name: "f".into(), head, own: acl, inherited: vec![] };
        let terms = terms(rule.condition.as_ref().unwrap_or_else(|| panic!("a condition")), &proxy);
        let seen: Vec<_> = terms.iter().map(|term| (term.negated, term.tests.len())).collect();
        assert_eq!(seen, [(true, 1), (false, 2)]);
        assert!(terms[0].tests[0].is_found_test());
        assert_eq!(terms[1].tests[0].variable(), Some("sess.b"));
        assert_eq!(terms[1].tests[1].variable(), None);
    }

    #[test]
    fn variables_are_found_anywhere_in_a_word() {
        let words =
            line("x set-var(txn.a) %[var(txn.b),upper] unset-var(txn.c) set-var-fmt(txn.d) var(e) lua.var(f) var(g")
                .words;
        assert_eq!(reads(&words), ["txn.b", "e"]);
        assert_eq!(writes(&words), ["txn.a", "txn.d"]);
    }
}
