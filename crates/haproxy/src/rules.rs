//! Rules with their conditions, and the variables that they read and write.

use super::document::Line;
use super::proxies::Proxy;

/// When a rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `tcp-request connection`: before anything is known.
    Connection,
    /// `tcp-request session`: before a stream, and so before SPOE.
    Session,
    /// `tcp-request content`
    Content,
    /// `http-request`
    Request,
    /// Later.
    Response,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule<'a> {
    /// Its line.
    pub line: &'a Line,
    /// When it is asked.
    pub stage: Stage,
    /// What it does: `deny`, `set-var(txn.a)`.
    pub action: &'a str,
    /// What stands after that, before the condition.
    pub arguments: &'a [String],
    /// When it applies; nothing means always.
    pub condition: Option<Condition<'a>>,
}

/// What stands after `if` or `unless`.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    /// It is `unless`.
    pub unless: bool,
    /// The words after that.
    pub words: &'a [String],
}

/// One test of a condition.
#[derive(Clone, Debug)]
pub struct Term<'a> {
    /// With a `!` before it.
    pub negated: bool,
    /// What is tested: the words in braces, or those of every ACL of the name.
    pub tests: Vec<Test<'a>>,
}

/// A sample and what it is compared with: `var(txn.ip.banned) -m int eq 1`.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a>(pub &'a [String]);

impl Rule<'_> {
    /// Whether nothing after this rule is reached by whom it applies to.
    pub fn ends(&self) -> bool {
        let ending = ["deny", "reject", "tarpit", "silent-drop", "allow", "accept", "return", "redirect", "auth"];
        self.stage != Stage::Response && ending.contains(&self.action)
    }

    /// Whether it turns the client away.
    pub fn refuses(&self) -> bool {
        let away = ["deny", "reject", "tarpit", "silent-drop", "return", "redirect"];
        self.stage != Stage::Response && away.contains(&self.action)
    }

    /// Engine and group, if it sends an SPOE group.
    pub fn sends(&self) -> Option<(&str, &str)> {
        let [engine, group, ..] = self.arguments else { return None };
        (self.action == "send-spoe-group").then_some((engine, group))
    }

    /// The condition as one text, to compare it.
    pub fn condition_text(&self) -> Option<String> {
        let condition = self.condition.as_ref()?;
        Some(format!("{} {}", if condition.unless { "unless" } else { "if" }, condition.words.join(" ")))
    }
}

impl Proxy {
    /// Its rules about requests and connections, in the order in which they are written.
    pub fn rules(&self) -> Vec<Rule<'_>> {
        self.lines().filter_map(rule).collect()
    }
}

/// The rule that a line is.
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

/// Parts words at `if` or `unless`.
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

/// The tests of a condition; those of named ACLs are looked up in `proxy`.
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
    /// The variable that is tested, if it is one and nothing is done to it before.
    pub fn variable(&self) -> Option<&'a str> {
        let sample = self.0.first()?;
        sample.strip_prefix("var(")?.strip_suffix(')').filter(|name| !name.contains([')', '(', ',']))
    }

    /// Whether it asks only whether there is a value.
    pub fn asks_whether_found(&self) -> bool {
        self.method() == Some("found")
    }

    /// What stands after `-m`.
    pub fn method(&self) -> Option<&'a str> {
        let at = self.0.iter().position(|word| word == "-m")?;
        self.0.get(at + 1).map(String::as_str)
    }
}

/// The variables that words read by `var(NAME)`, wherever that stands.
pub fn reads(words: &[String]) -> Vec<&str> {
    calls(words, "var(", |before| !before.ends_with("set-"))
}

/// The variables that words write by `set-var(NAME)` or `set-var-fmt(NAME)`.
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
    use super::super::document::Place;
    use super::super::proxies::Kind;
    use super::*;

    fn line(text: &str) -> Line {
        let words = text.split_whitespace().map(str::to_owned).collect();
        Line { place: Place { file: "x".into(), line: 1 }, words }
    }

    #[test]
    fn a_rule_has_action_arguments_and_condition() {
        let written = line("http-request deny deny_status 403 if !{ var(txn.a) -m found } || !! known");
        let rule = rule(&written).unwrap_or_else(|| panic!("a rule"));
        assert_eq!((rule.action, rule.arguments.len(), rule.stage), ("deny", 2, Stage::Request));
        let acl = vec![line("acl known var(sess.b) -m int eq 1"), line("acl known src 192.0.2.1")];
        let head = line("frontend f");
        let proxy = Proxy { kind: Kind::Frontend, name: "f".into(), head, own: acl, inherited: vec![] };
        let terms = terms(rule.condition.as_ref().unwrap_or_else(|| panic!("a condition")), &proxy);
        let seen: Vec<_> = terms.iter().map(|term| (term.negated, term.tests.len())).collect();
        assert_eq!(seen, [(true, 1), (false, 2)]);
        assert!(terms[0].tests[0].asks_whether_found());
        assert_eq!(terms[1].tests[0].variable(), Some("sess.b"));
        assert_eq!(terms[1].tests[1].variable(), None);
    }

    #[test]
    fn variables_are_found_wherever_they_stand() {
        let words =
            line("x set-var(txn.a) %[var(txn.b),upper] unset-var(txn.c) set-var-fmt(txn.d) var(e) lua.var(f) var(g")
                .words;
        assert_eq!(reads(&words), ["txn.b", "e"]);
        assert_eq!(writes(&words), ["txn.a", "txn.d"]);
    }
}
