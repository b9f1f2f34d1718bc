//! An ordered set of rules, and the automaton that finds out which of them can match a text.

use banmesh_types::address::Address;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind, StartKind};
use regex_automata::util::primitives::NonMaxUsize;

use crate::line::LineView;
use crate::literal::MAX_SETS;
use crate::rule::{CompiledRule, Found, Outcome, RuleKind};
use crate::session::{SessionKey, Sessions};

/// A bit that no literal clears, for rules that are excluded.
const EXCLUDED: u8 = 1 << MAX_SETS;

/// Rules in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Vec<Arc<CompiledRule>>,
    /// Finds the literals of all rules. `None` if there are none.
    automaton: Option<AhoCorasick>,
    /// By literal: the indices of the rules that have it, and the bit of the set that it is in.
    required_by: Vec<Vec<(usize, u8)>>,
    /// By rule: a bit for each of its sets of literals. 0 for a rule without literals.
    required: Vec<u8>,
    /// Whether any rule is about sessions. Such rules run even after another rule has decided.
    has_session_rules: bool,
}

/// The buffers of [`RuleSet::first_match`], and the open sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct MatchState {
    missing: Vec<u8>,
    seen: Vec<u64>,
    slots: Vec<Option<NonMaxUsize>>,
    sessions: Sessions,
}

/// The rule that decides about a line, and what it finds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit<'a> {
    pub(super) rule: &'a CompiledRule,
    pub(super) source: Address,
    /// The account, if the line names one.
    pub(super) account: Option<&'a [u8]>,
}

/// Some of the filters in a rule set.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilterSubset<'a> {
    /// The numbers of the filters.
    pub(super) filters: &'a [u16],
    /// By filter number: the indices of its rules in the set.
    pub(super) spans: &'a [Range<usize>],
}

impl FilterSubset<'_> {
    /// Sets `missing` to the bits in `all` for these filters, and excludes the rules of all others.
    fn select(self, missing: &mut [u8], all: &[u8]) {
        missing.fill(EXCLUDED);
        for span in self.filters.iter().filter_map(|&filter| self.spans.get(usize::from(filter))) {
            if let (Some(missing), Some(all)) = (missing.get_mut(span.clone()), all.get(span.clone())) {
                missing.copy_from_slice(all);
            }
        }
    }
}

impl RuleSet {
    /// # Errors
    /// Fails if the automaton would be too large.
    pub(super) fn new(rules: Vec<Arc<CompiledRule>>) -> Result<Self, String> {
        let mut literals: Vec<&[u8]> = Vec::new();
        let mut required_by: Vec<Vec<(usize, u8)>> = Vec::new();
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        let mut required = Vec::with_capacity(rules.len());
        for (place, rule) in rules.iter().enumerate() {
            let mut bits = 0_u8;
            for (index, set) in rule.literals.iter().take(MAX_SETS).enumerate() {
                let bit = 1_u8 << index;
                bits |= bit;
                for literal in set {
                    let id = *known.entry(literal).or_insert_with(|| {
                        literals.push(literal);
                        required_by.push(Vec::new());
                        literals.len() - 1
                    });
                    if let Some(requiring) = required_by.get_mut(id) {
                        requiring.push((place, bit));
                    }
                }
            }
            required.push(bits);
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
            // The dense automaton is the fastest. With more than a few thousand literals it would not fit the CPU's caches.
            let kind = if literals.len() <= 4096 { AhoCorasickKind::DFA } else { AhoCorasickKind::ContiguousNFA };
            Some(build(kind).map_err(|error| error.to_string())?)
        };
        let has_session_rules = rules.iter().any(|rule| rule.kind.is_session());
        Ok(Self { rules, automaton, required_by, required, has_session_rules })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn rules(&self) -> &[Arc<CompiledRule>] {
        &self.rules
    }

    /// Returns the first rule that matches `text` with a valid address. `text` is the message of `line` or all of it. `only`
    /// restricts the filters that are tried.
    pub(super) fn first_match<'a>(
        &'a self,
        only: Option<FilterSubset<'_>>,
        text: &'a [u8],
        line: LineView<'_>,
        state: &mut MatchState,
    ) -> Option<Hit<'a>> {
        let MatchState { missing, seen, slots, sessions } = state;
        missing.clear();
        missing.extend_from_slice(&self.required);
        if let Some(only) = only {
            only.select(missing, &self.required);
        }
        if let Some(automaton) = &self.automaton {
            seen.clear();
            seen.resize(self.required_by.len().div_ceil(64), 0);
            for found in automaton.find_overlapping_iter(text) {
                let id = found.pattern().as_usize();
                // Each literal is processed once, however often it occurs.
                let Some(word) = seen.get_mut(id / 64) else { continue };
                let bit = 1_u64 << (id % 64);
                if *word & bit != 0 {
                    continue;
                }
                *word |= bit;
                for &(place, bit) in self.required_by.get(id).into_iter().flatten() {
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
            if silent && !rule.kind.is_session() {
                continue;
            }
            let found = match (rule.run(text, slots), rule.kind) {
                (Outcome::Match(_), RuleKind::Ignore) => {
                    ignoring = Some(&rule.filter);
                    Found::default()
                }
                (Outcome::Match(found), _) => found,
                (Outcome::Session((start, end), found), kind) => {
                    let session = text.get(start..end).unwrap_or_default();
                    let key = SessionKey { filter: &rule.filter, program: line.program, writer: line.writer, session };
                    match (kind, found.source) {
                        (RuleKind::SessionStart, Some(source)) => sessions.open(key, source),
                        // A session that starts again without an address no longer belongs to the previous one.
                        (RuleKind::SessionStart, None) | (RuleKind::SessionEnd, _) => sessions.close(key),
                        _ => {}
                    }
                    if kind.is_session() { Found::default() } else { Found { source: sessions.source(key), ..found } }
                }
                (Outcome::NoMatch | Outcome::NoAddress(_), _) => Found::default(),
            };
            if let Some(source) = found.source {
                let account = found.account.and_then(|(start, end)| text.get(start..end));
                decided = Some(Hit { rule, source, account });
                if !self.has_session_rules {
                    break;
                }
            }
        }
        decided
    }
}
