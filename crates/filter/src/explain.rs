//! Explains, rule by rule, why a line did or did not match. This is for operators, and slow.

use crate::detector::Detector;
use crate::line::{LineView, without_priority};
use crate::rule::{CompiledRule, MAY_BE_CUT, Outcome, RuleKind};
use banmesh_types::address::Address;

/// The results of all rules that apply to a line.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The rules, in the order in which they are tried.
    pub rules: Vec<RuleReport>,
}

/// The result of one rule.
#[derive(Clone, Debug)]
pub struct RuleReport {
    /// The name of the filter or pattern.
    pub filter: String,
    /// The name of the rule within the filter.
    pub rule: String,
    /// `session`, `ignore`, `success`, `failure` or `end`.
    pub kind: &'static str,
    /// Where matching stopped.
    pub stop: Stop,
}

/// Where the matching of a rule stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The line contains none of these literals, and every match contains one of them.
    Literal(Vec<String>),
    /// The expression does not match. The number is how many bytes at the start of the text it can match; `None` if the
    /// expression is not anchored to the start.
    Expression(Option<usize>),
    /// The expression matches, but this text is not a valid address. `None` if the address is missing.
    Address(Option<String>),
    /// The rule matches. `None` for rules that need no address.
    Match(Option<Address>),
    /// The rule matches, and is about this session. The address is `None` if the line does not contain it.
    Session(String, Option<Address>),
}

impl Detector {
    /// Runs every rule that applies to `line`: those of the filters for its program, then the patterns.
    ///
    /// Unlike [`Detector::detect`] it does not stop at the first match, and has no sessions.
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
                let why = if cut { ", at the end of a line that may have been cut," } else { "" };
                Stop::Address(found.map(|found| format!("{found}{why}")))
            }
            Outcome::Match(found) => Stop::Match(found.source),
            Outcome::Session((start, end), found) => {
                let session = text.get(start..end).unwrap_or_default();
                Stop::Session(String::from_utf8_lossy(session).into_owned(), found.source)
            }
        }
    };
    let kind = match rule.kind {
        RuleKind::SessionStart => "session",
        RuleKind::SessionEnd => "end",
        RuleKind::Ignore => "ignore",
        RuleKind::Success => "success",
        RuleKind::Failure => "failure",
    };
    RuleReport { filter: rule.filter.to_string(), rule: rule.name.to_string(), kind, stop }
}

/// Returns how many bytes of `text` can be part of a match, for an expression that starts with `^`.
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
