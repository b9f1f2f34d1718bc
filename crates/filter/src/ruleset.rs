//! The rules that apply to one kind of line, and the automaton that says which of them can match.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind, StartKind};

use regex_automata::util::primitives::NonMaxUsize;

use super::detector::LineView;
use super::literal::MAX_SETS;
use super::rule::{CompiledRule, Outcome, RuleKind};
use super::session::{SessionName, Sessions};

/// A bit that no required substring clears: the rule does not take part.
const BARRED: u8 = 1 << MAX_SETS;

/// Rules in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Vec<Arc<CompiledRule>>,
    /// Finds the substrings that rules require; `None` when no rule has one.
    automaton: Option<AhoCorasick>,
    /// For every substring the rules that require it, by their place, and the bit of the set that it is in.
    wanted_by: Vec<Vec<(usize, u8)>>,
    /// For every rule the bits of its sets that are still to be found at the start: none for a rule that requires nothing.
    missing: Vec<u8>,
    /// Whether any rule remembers sessions: such rules are asked even when another has decided.
    keeps_sessions: bool,
}

/// Working memory of [`RuleSet::first_match`], and the sessions that it knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Working {
    missing: Vec<u8>,
    seen: Vec<u64>,
    slots: Vec<Option<NonMaxUsize>>,
    sessions: Sessions,
}

/// The filters of a rule set that take part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Only<'a> {
    /// Their numbers.
    pub(super) filters: &'a [u16],
    /// For every number where the rules of that filter stand in the set.
    pub(super) spans: &'a [Range<usize>],
}

impl Only<'_> {
    /// Bars the rules of all other filters: `missing` has the bits of all rules.
    fn bar(self, missing: &mut [u8], all: &[u8]) {
        missing.fill(BARRED);
        for span in self.filters.iter().filter_map(|&filter| self.spans.get(usize::from(filter))) {
            if let (Some(missing), Some(all)) = (missing.get_mut(span.clone()), all.get(span.clone())) {
                missing.copy_from_slice(all);
            }
        }
    }
}

impl RuleSet {
    /// # Errors
    /// When the automaton would be too big.
    pub(super) fn new(rules: Vec<Arc<CompiledRule>>) -> Result<Self, String> {
        let mut literals: Vec<&[u8]> = Vec::new();
        let mut wanted_by: Vec<Vec<(usize, u8)>> = Vec::new();
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        let mut missing = Vec::with_capacity(rules.len());
        for (place, rule) in rules.iter().enumerate() {
            let mut bits = 0_u8;
            for (index, set) in rule.literals.iter().take(MAX_SETS).enumerate() {
                let bit = 1_u8 << index;
                bits |= bit;
                for literal in set {
                    let id = *known.entry(literal).or_insert_with(|| {
                        literals.push(literal);
                        wanted_by.push(Vec::new());
                        literals.len() - 1
                    });
                    if let Some(wanted) = wanted_by.get_mut(id) {
                        wanted.push((place, bit));
                    }
                }
            }
            missing.push(bits);
        }
        let automaton = if literals.is_empty() {
            None
        } else {
            let build = |kind| {
                AhoCorasickBuilder::new()
                    .ascii_case_insensitive(true)
                    .match_kind(MatchKind::Standard)
                    .start_kind(StartKind::Unanchored)
                    .kind(Some(kind))
                    .build(&literals)
            };
            // The dense automaton is the fastest; past a few thousand substrings it would not fit the caches anyway.
            let kind = if literals.len() <= 4096 { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
            Some(build(kind).map_err(|error| error.to_string())?)
        };
        let keeps_sessions = rules.iter().any(|rule| rule.kind.keeps_sessions());
        Ok(Self { rules, automaton, wanted_by, missing, keeps_sessions })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn rules(&self) -> &[Arc<CompiledRule>] {
        &self.rules
    }

    /// The first rule that matches `text`, which is the message of `line` or all of it, with a valid address. `only` names the
    /// filters that take part; without it all do.
    pub(super) fn first_match(
        &self,
        only: Option<Only<'_>>,
        text: &[u8],
        line: LineView<'_>,
        working: &mut Working,
    ) -> Option<(&CompiledRule, IpAddr)> {
        let Working { missing, seen, slots, sessions } = working;
        missing.clear();
        missing.extend_from_slice(&self.missing);
        if let Some(only) = only {
            only.bar(missing, &self.missing);
        }
        if let Some(automaton) = &self.automaton {
            seen.clear();
            seen.resize(self.wanted_by.len().div_ceil(64), 0);
            for found in automaton.find_overlapping_iter(text) {
                let id = found.pattern().as_usize();
                // What stands in the text again says nothing new.
                let Some(word) = seen.get_mut(id / 64) else { continue };
                let bit = 1_u64 << (id % 64);
                if *word & bit != 0 {
                    continue;
                }
                *word |= bit;
                for &(place, bit) in self.wanted_by.get(id).into_iter().flatten() {
                    if let Some(bits) = missing.get_mut(place) {
                        *bits &= !bit;
                    }
                }
            }
        }
        let mut ignoring: Option<&Arc<str>> = None;
        let mut decided = None;
        for (rule, _) in self.rules.iter().zip(missing.iter()).filter(|(_, missing)| **missing == 0) {
            let silent = decided.is_some() || ignoring.is_some_and(|filter| Arc::ptr_eq(filter, &rule.filter));
            if silent && !rule.kind.keeps_sessions() {
                continue;
            }
            let source = match (rule.run(text, slots), rule.kind) {
                (Outcome::Match(_), RuleKind::Ignore) => {
                    ignoring = Some(&rule.filter);
                    None
                }
                (Outcome::Match(source), _) => source,
                (Outcome::Session((start, end), source), kind) => {
                    let session = text.get(start..end).unwrap_or_default();
                    let name =
                        SessionName { filter: &rule.filter, program: line.program, writer: line.writer, session };
                    match (kind, source) {
                        (RuleKind::Open, Some(source)) => sessions.open(name, source),
                        // A session that begins anew without an address is no longer that of the former one.
                        (RuleKind::Open, None) | (RuleKind::Close, _) => sessions.close(name),
                        _ => {}
                    }
                    if kind.keeps_sessions() { None } else { sessions.source(name) }
                }
                (Outcome::NoMatch | Outcome::NoAddress(_), _) => None,
            };
            if let Some(source) = source {
                decided = Some((&**rule, source));
                if !self.keeps_sessions {
                    break;
                }
            }
        }
        decided
    }
}
