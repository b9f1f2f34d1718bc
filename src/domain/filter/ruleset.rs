//! The rules that apply to one kind of line, and the automaton that says which of them can match.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind, StartKind};

use super::detector::Scratch;
use super::rule::{CompiledRule, Outcome, RuleKind};

/// Rules in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Vec<Arc<CompiledRule>>,
    /// Finds the substrings that rules require; `None` when no rule has one.
    automaton: Option<AhoCorasick>,
    /// For every substring the rules that require it, by their place.
    wanted_by: Vec<Vec<usize>>,
    /// A bit for every rule that requires nothing and so runs on every text.
    always: Vec<u64>,
}

impl RuleSet {
    /// # Errors
    /// When the automaton would be too big.
    pub(super) fn new(rules: Vec<Arc<CompiledRule>>) -> Result<Self, String> {
        let mut always = vec![0_u64; rules.len().div_ceil(64)];
        let mut literals: Vec<&[u8]> = Vec::new();
        let mut wanted_by: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            if rule.literals.is_empty() {
                set(&mut always, place);
            }
            for literal in &rule.literals {
                let id = *known.entry(literal).or_insert_with(|| {
                    literals.push(literal);
                    wanted_by.push(Vec::new());
                    literals.len() - 1
                });
                if let Some(wanted) = wanted_by.get_mut(id) {
                    wanted.push(place);
                }
            }
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
        Ok(Self { rules, automaton, wanted_by, always })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn rules(&self) -> &[Arc<CompiledRule>] {
        &self.rules
    }

    /// The first rule that matches `text` with a valid address.
    pub(super) fn first_match(&self, text: &[u8], scratch: &mut Scratch) -> Option<(&CompiledRule, IpAddr)> {
        let Scratch { candidates, slots } = scratch;
        candidates.clear();
        candidates.extend_from_slice(&self.always);
        if let Some(automaton) = &self.automaton {
            for found in automaton.find_overlapping_iter(text) {
                for &place in self.wanted_by.get(found.pattern().as_usize()).into_iter().flatten() {
                    set(candidates, place);
                }
            }
        }
        let mut ignoring: Option<&Arc<str>> = None;
        for (index, word) in candidates.iter().enumerate() {
            let mut word = *word;
            while word != 0 {
                let place = index * 64 + word.trailing_zeros() as usize;
                word &= word - 1;
                let Some(rule) = self.rules.get(place) else { continue };
                if ignoring.is_some_and(|filter| Arc::ptr_eq(filter, &rule.filter)) {
                    continue;
                }
                match (rule.run(text, slots), rule.kind) {
                    (Outcome::Match(_), RuleKind::Ignore) => ignoring = Some(&rule.filter),
                    (Outcome::Match(Some(source)), _) => return Some((rule, source)),
                    (Outcome::Match(None) | Outcome::NoMatch | Outcome::NoAddress(_), _) => {}
                }
            }
        }
        None
    }
}

fn set(bits: &mut [u64], place: usize) {
    if let Some(word) = bits.get_mut(place / 64) {
        *word |= 1 << (place % 64);
    }
}
