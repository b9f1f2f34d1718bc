//! Why a line did or did not match, rule by rule. For the operator, not for the hot path.

use std::net::IpAddr;

use super::detector::{Detector, LineView, without_priority};
use super::rule::{CompiledRule, MAY_BE_CUT, Outcome, RuleKind};

/// What every rule that looks at a line says of it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The rules in the order in which they are asked.
    pub rules: Vec<RuleReport>,
}

/// What one rule says.
#[derive(Clone, Debug)]
pub struct RuleReport {
    /// The filter or pattern.
    pub filter: String,
    /// The rule within it.
    pub rule: String,
    /// `session`, `ignore`, `success`, `failure` or `end`.
    pub kind: &'static str,
    /// How far it came.
    pub stop: Stop,
}

/// Where a rule stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// None of the texts that it requires is in the line.
    Literal(Vec<String>),
    /// The expression matches only the first so many bytes of the text; none, when it is not tied to the beginning.
    Expression(Option<usize>),
    /// The expression matches, but what stands in the place of the address is none.
    Address(Option<String>),
    /// It matches.
    Match(Option<IpAddr>),
    /// It matches, and is about this session; with the address, when the line names it.
    Session(String, Option<IpAddr>),
}

impl Detector {
    /// What every rule says of `line`: the filters' rules for its program, then the patterns.
    pub fn explain(&self, line: LineView<'_>) -> Explanation {
        let mut rules: Vec<_> =
            self.rules_for(line.program).into_iter().map(|rule| report(rule, line.message)).collect();
        rules.extend(self.pattern_rules().iter().map(|rule| report(rule, without_priority(line.raw))));
        Explanation { rules }
    }
}

fn report(rule: &CompiledRule, text: &[u8]) -> RuleReport {
    let lower = text.to_ascii_lowercase();
    let has = |literal: &Vec<u8>| memchr::memmem::find(&lower, literal).is_some();
    let stop = if let Some(set) = rule.literals.iter().find(|set| !set.iter().any(has)) {
        Stop::Literal(set.iter().map(|literal| String::from_utf8_lossy(literal).into_owned()).collect())
    } else {
        match rule.run(text, &mut Vec::new()) {
            Outcome::NoMatch => Stop::Expression(reach(&rule.text, text)),
            Outcome::NoAddress(span) => {
                let found = span.and_then(|(start, end)| text.get(start..end)).map(String::from_utf8_lossy);
                let cut = span.is_some_and(|(_, end)| end == text.len() && end >= MAY_BE_CUT);
                let why = if cut { ", at the end of a line that may be cut there," } else { "" };
                Stop::Address(found.map(|found| format!("{found}{why}")))
            }
            Outcome::Match(source) => Stop::Match(source),
            Outcome::Session((start, end), source) => {
                let session = text.get(start..end).unwrap_or_default();
                Stop::Session(String::from_utf8_lossy(session).into_owned(), source)
            }
        }
    };
    let kind = match rule.kind {
        RuleKind::Open => "session",
        RuleKind::Close => "end",
        RuleKind::Ignore => "ignore",
        RuleKind::Success => "success",
        RuleKind::Failure => "failure",
    };
    RuleReport { filter: rule.filter.to_string(), rule: rule.name.to_string(), kind, stop }
}

/// How many bytes of `text` an expression that begins with `^` can take before no match is possible any more.
fn reach(expression: &str, text: &[u8]) -> Option<usize> {
    use regex_automata::hybrid::dfa::DFA;
    use regex_automata::{Anchored, Input};

    if !expression.trim_start_matches("(?:").starts_with('^') {
        return None;
    }
    let syntax = regex_automata::util::syntax::Config::new().unicode(false).utf8(false).dot_matches_new_line(true);
    let dfa = DFA::builder().syntax(syntax).build(expression).ok()?;
    let mut cache = dfa.create_cache();
    let mut state = dfa.start_state_forward(&mut cache, &Input::new(text).anchored(Anchored::Yes)).ok()?;
    for (position, &byte) in text.iter().enumerate() {
        state = dfa.next_state(&mut cache, state, byte).ok()?;
        if state.is_dead() || state.is_quit() {
            return Some(position);
        }
    }
    Some(text.len())
}
