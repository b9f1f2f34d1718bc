//! Selects the filters for a program, and the rule set with their rules.
//!
//! A filter applies to every program that one of its service names matches, even if other filters match it too. For most
//! programs there is a rule set with exactly the rules of their filters. Where service names with a `*` overlap (`*/smtpd`
//! and `postfix/*`), there may be too many combinations of filters to compile them all in advance. Such programs use one
//! shared rule set, restricted to the rules of their filters.

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;
use std::ops::Range;
use std::sync::Arc;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use hashbrown::HashMap;

use crate::definition::Filter;
use crate::line::LineView;
use crate::rule::CompiledRule;
use crate::ruleset::{FilterSubset, Hit, MatchState, RuleSet};

/// The number of program names that one [`RouteCache`] can hold.
const SLOTS: usize = 128;
/// The longest program name in bytes that is cached, so that the memory of [`RouteCache`] is bounded.
const MAX_CACHED: usize = 64;

/// The rule sets, by program.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    groups: Vec<RuleSet>,
    /// The group of each service name without a `*`.
    exact: HashMap<Box<[u8]>, usize>,
    /// Service names with a `*`, other than `*` alone.
    globs: GlobSet,
    /// By glob: the filters that have it.
    glob_filters: Vec<Vec<u16>>,
    /// The filters for every program.
    wildcard: Vec<u16>,
    /// The group of each combination of filters. The numbers are in ascending order.
    combined: HashMap<Box<[u16]>, usize>,
    /// The rules of all filters, for combinations without a group. Empty if every combination has a group.
    shared: RuleSet,
    /// By filter: the indices of its rules in `shared`.
    spans: Vec<Range<usize>>,
    /// The group for lines without a program name.
    no_program: usize,
    /// The group for programs that no filter names.
    unnamed: usize,
    /// Distinguishes this table from the one before a reload.
    identity: Arc<()>,
}

/// Caches the filters for programs whose exact name no filter lists. Its size is bounded, because outsiders may send lines of ever
/// new programs.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteCache {
    /// The table that the slots belong to.
    table: Option<Arc<()>>,
    slots: Vec<Slot>,
    matched: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    program: Vec<u8>,
    rules: SlotRules,
    /// The filters for the program.
    filters: Vec<u16>,
    /// Whether a service name other than `*` matches the program.
    named: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum SlotRules {
    #[default]
    Empty,
    /// The rules of this group.
    Group(usize),
    /// A part of the shared rule set.
    Shared,
}

/// The rules for a line.
#[derive(Clone, Copy, Debug)]
struct Route<'t, 'r> {
    set: &'t RuleSet,
    /// The filters in the set that are tried. `None` means all.
    only: Option<FilterSubset<'r>>,
    /// Whether a service name other than `*` matches the program.
    named: bool,
}

impl Dispatch {
    /// Builds the rule sets. `filters` are in the order in which they are tried, each with its compiled rules.
    ///
    /// # Errors
    /// Fails if an automaton would be too large.
    pub(super) fn new(filters: &[(&Filter, Vec<Arc<CompiledRule>>)]) -> Result<Self, String> {
        let mut this = Self::default();
        let wildcard = filters.iter().map(|(filter, _)| filter.services.iter().any(|service| service == "*"));
        this.wildcard = numbers(wildcard);
        this.no_program = this.group(numbers(filters.iter().map(|(filter, _)| filter.without_program)), filters)?;
        this.unnamed = this.group(this.wildcard.clone(), filters)?;
        let named: BTreeSet<&str> =
            filters.iter().flat_map(|(filter, _)| &filter.services).map(String::as_str).filter(|s| *s != "*").collect();
        let globs: Vec<Glob<'_>> = named.iter().filter_map(|service| Glob::new(service)).collect();
        let mut set = GlobSetBuilder::new();
        for glob in &globs {
            set.add(glob.compile()?);
            let having = |(filter, _): &(&Filter, _)| filter.services.iter().any(|service| service == glob.text);
            this.glob_filters.push(numbers(filters.iter().map(having)));
        }
        this.globs = set.build().map_err(|error| error.to_string())?;
        let (mut selected, mut matched) = (Vec::new(), Vec::new());
        for service in &named {
            let literal = !service.contains('*');
            // A sample that only this glob and wider ones match: it gets every filter that has one of them.
            let sample = service.replace('*', "\u{1}");
            this.select(sample.as_bytes(), &mut selected, &mut matched);
            if literal {
                let exact = filters.iter().map(|(filter, _)| filter.services.iter().any(|known| known == service));
                selected.extend(numbers(exact));
                selected.sort_unstable();
                selected.dedup();
            }
            let group = this.group(selected.clone(), filters)?;
            if literal {
                this.exact.insert(service.as_bytes().into(), group);
            }
        }
        let having = this.glob_filters.iter().zip(&globs);
        let overlap = having.clone().enumerate().any(|(index, (filters, glob))| {
            having.clone().skip(index + 1).any(|(others, other)| filters != others && glob.overlaps(*other))
        });
        if overlap {
            let mut rules = Vec::new();
            for (_, of_filter) in filters {
                let start = rules.len();
                rules.extend(of_filter.iter().cloned());
                this.spans.push(start..rules.len());
            }
            this.shared = RuleSet::new(rules)?;
        }
        Ok(this)
    }

    /// Returns the first rule for `program` that matches `text`, and whether a filter names that program.
    pub(super) fn first_match<'a>(
        &'a self,
        program: Option<&[u8]>,
        text: &'a [u8],
        line: LineView<'_>,
        routes: &mut RouteCache,
        state: &mut MatchState,
    ) -> (Option<Hit<'a>>, bool) {
        let Some(route) = self.route(program, routes) else { return (None, false) };
        (route.set.first_match(route.only, text, line, state), route.named)
    }

    /// Whether there is a rule for lines of this program.
    pub(super) fn knows(&self, program: Option<&[u8]>) -> bool {
        !self.rules(program).is_empty()
    }

    /// Returns the rules for lines of this program, in the order in which they are tried.
    pub(super) fn rules(&self, program: Option<&[u8]>) -> Vec<&Arc<CompiledRule>> {
        let Some(program) = program else { return self.rules_of(self.no_program) };
        if let Some(&group) = self.exact.get(program) {
            return self.rules_of(group);
        }
        let mut slot = Slot::default();
        self.resolve(program, &mut slot, &mut Vec::new());
        match slot.rules {
            SlotRules::Group(group) => self.rules_of(group),
            SlotRules::Empty | SlotRules::Shared => {
                let spans = slot.filters.iter().filter_map(|filter| self.spans.get(usize::from(*filter)));
                spans.filter_map(|span| self.shared.rules().get(span.clone())).flatten().collect()
            }
        }
    }

    fn rules_of(&self, group: usize) -> Vec<&Arc<CompiledRule>> {
        self.groups.get(group).map(RuleSet::rules).unwrap_or_default().iter().collect()
    }

    fn route<'t: 'r, 'r>(&'t self, program: Option<&[u8]>, routes: &'r mut RouteCache) -> Option<Route<'t, 'r>> {
        let whole = |group: usize, named| Some(Route { set: self.groups.get(group)?, only: None, named });
        let Some(program) = program else { return whole(self.no_program, false) };
        if let Some(&group) = self.exact.get(program) {
            return whole(group, true);
        }
        if self.glob_filters.is_empty() {
            return whole(self.unnamed, false);
        }
        let slot = routes.find(self, program)?;
        match slot.rules {
            SlotRules::Group(group) => whole(group, slot.named),
            SlotRules::Shared => {
                let only = FilterSubset { filters: &slot.filters, spans: &self.spans };
                Some(Route { set: &self.shared, only: Some(only), named: true })
            }
            SlotRules::Empty => None,
        }
    }

    /// Fills `slot` for `program`, whose exact name no filter lists.
    fn resolve(&self, program: &[u8], slot: &mut Slot, matched: &mut Vec<usize>) {
        self.select(program, &mut slot.filters, matched);
        slot.named = !matched.is_empty();
        let group = self.combined.get(slot.filters.as_slice());
        slot.rules = group.map_or(SlotRules::Shared, |&group| SlotRules::Group(group));
    }

    /// Selects the filters with a `*` name that matches `program`, in ascending order.
    fn select(&self, program: &[u8], selected: &mut Vec<u16>, matched: &mut Vec<usize>) {
        selected.clear();
        selected.extend_from_slice(&self.wildcard);
        matched.clear();
        self.globs.matches_candidate_into(&Candidate::from_bytes(program), matched);
        selected.extend(matched.iter().filter_map(|&glob| self.glob_filters.get(glob)).flatten());
        selected.sort_unstable();
        selected.dedup();
    }

    /// Returns the group of this combination of filters, and creates it if necessary.
    fn group(&mut self, of: Vec<u16>, filters: &[(&Filter, Vec<Arc<CompiledRule>>)]) -> Result<usize, String> {
        if let Some(&group) = self.combined.get(of.as_slice()) {
            return Ok(group);
        }
        let chosen = of.iter().filter_map(|&filter| filters.get(usize::from(filter)));
        self.groups.push(RuleSet::new(chosen.flat_map(|(_, rules)| rules.iter().cloned()).collect())?);
        let group = self.groups.len() - 1;
        self.combined.insert(of.into(), group);
        Ok(group)
    }
}

impl RouteCache {
    /// Returns the slot of `program`, and fills it if necessary.
    fn find(&mut self, table: &Dispatch, program: &[u8]) -> Option<&Slot> {
        if self.table.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &table.identity)) {
            self.table = Some(Arc::clone(&table.identity));
            self.slots.clear();
            self.slots.resize_with(SLOTS + 1, Slot::default);
        }
        let cacheable = program.len() <= MAX_CACHED;
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let place = if cacheable { table.exact.hasher().hash_one(program) as usize % SLOTS } else { SLOTS };
        let slot = self.slots.get_mut(place)?;
        if !cacheable || matches!(slot.rules, SlotRules::Empty) || slot.program != program {
            table.resolve(program, slot, &mut self.matched);
            if cacheable {
                slot.program.clear();
                slot.program.extend_from_slice(program);
            }
        }
        Some(slot)
    }
}

/// A service name with a `*`, split at it.
#[derive(Clone, Copy, Debug)]
struct Glob<'a> {
    text: &'a str,
    before: &'a str,
    after: &'a str,
}

impl<'a> Glob<'a> {
    /// `None` if the name has no `*`.
    fn new(text: &'a str) -> Option<Self> {
        text.split_once('*').map(|(before, after)| Self { text, before, after })
    }

    fn compile(self) -> Result<globset::Glob, String> {
        // All other characters are literal. A dot at the end is written as a class: globset matches paths, and treats a path that
        // ends with a dot as one without a file name.
        let after = match self.after.strip_suffix('.') {
            Some(start) => format!("{}[.]", globset::escape(start)),
            None => globset::escape(self.after),
        };
        let glob = format!("{}*{after}", globset::escape(self.before));
        GlobBuilder::new(&glob).backslash_escape(false).build().map_err(|error| error.to_string())
    }

    /// Whether a program can match both names although neither is a special case of the other.
    fn overlaps(self, other: Self) -> bool {
        let start = (self.before.starts_with(other.before), other.before.starts_with(self.before));
        let end = (self.after.ends_with(other.after), other.after.ends_with(self.after));
        let narrower = start.0 && end.0 || start.1 && end.1;
        (start.0 || start.1) && (end.0 || end.1) && !narrower
    }
}

/// Returns the positions of `true` in `wanted`.
fn numbers(wanted: impl Iterator<Item = bool>) -> Vec<u16> {
    wanted.zip(0..=u16::MAX).filter_map(|(wanted, number)| wanted.then_some(number)).collect()
}

#[cfg(test)]
impl RouteCache {
    /// Returns the bytes in use.
    pub(super) fn memory(&self) -> usize {
        let of_slot = |slot: &Slot| slot.program.capacity() + 2 * slot.filters.capacity();
        self.slots.capacity() * size_of::<Slot>() + self.slots.iter().map(of_slot).sum::<usize>()
    }
}
