//! Which filters see the lines of a program, and the rule set that holds their rules.
//!
//! A filter sees the lines of every program that one of its service names matches, whatever the other filters name. Most
//! programs meet a rule set that was compiled for exactly their filters. Where service names with a `*` overlap (`*/smtpd`
//! and `postfix/*`), there may be more combinations of filters than one could compile in advance; such a program is asked of
//! one shared rule set, in which only the rules of its filters take part.

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use hashbrown::HashMap;

use super::definition::Filter;
use super::detector::LineView;
use super::rule::CompiledRule;
use super::ruleset::{Only, RuleSet, Working};

/// How many program names one [`Routes`] remembers.
const SLOTS: usize = 128;
/// A program name longer than this is not remembered, so that the memory of [`Routes`] is bounded.
const MAX_REMEMBERED: usize = 64;

/// The rule sets, by program.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    groups: Vec<RuleSet>,
    /// The group of every program name that a filter spells out.
    exact: HashMap<Box<[u8]>, usize>,
    /// Service names with a `*` and more than that.
    globs: GlobSet,
    /// For each of `globs` the filters that have it.
    having: Vec<Vec<u16>>,
    /// The filters that see every program.
    every: Vec<u16>,
    /// The group of a combination of filters, in ascending order.
    combined: HashMap<Box<[u16]>, usize>,
    /// The rules of all filters, for combinations without a group. Empty when there can be none.
    mixed: RuleSet,
    /// Where the rules of each filter stand in `mixed`.
    spans: Vec<Range<usize>>,
    /// The group of lines without a program name.
    bare: usize,
    /// The group of the programs that no filter names.
    other: usize,
    /// Tells this table from the one before a reload.
    identity: Arc<()>,
}

/// What was found out about programs that no filter spells out. Its size is bounded and its memory is used again, because
/// outsiders may write lines of ever new programs.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    /// The table that the slots are about.
    of: Option<Arc<()>>,
    slots: Vec<Slot>,
    matched: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    program: Vec<u8>,
    found: Found,
    /// The filters that see the program.
    filters: Vec<u16>,
    /// Whether a filter names the program, other than by `*`.
    named: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Found {
    /// The slot is empty.
    #[default]
    Nothing,
    /// The rules are in this group.
    Group(usize),
    /// The rules are in the shared set.
    Mixed,
}

/// Where the rules for a line are.
#[derive(Clone, Copy, Debug)]
struct Route<'t, 'r> {
    set: &'t RuleSet,
    /// The filters that take part; `None`: all of the set.
    only: Option<Only<'r>>,
    /// Whether a filter names the program, other than by `*`.
    named: bool,
}

impl Dispatch {
    /// Makes the rule sets of `filters`, which come in the order in which they are asked, with their compiled rules.
    ///
    /// # Errors
    /// When an automaton would be too big.
    pub(super) fn new(filters: &[(&Filter, Vec<Arc<CompiledRule>>)]) -> Result<Self, String> {
        let mut this = Self::default();
        let every = filters.iter().map(|(filter, _)| filter.services.iter().any(|service| service == "*"));
        this.every = numbers(every);
        this.bare = this.group(numbers(filters.iter().map(|(filter, _)| filter.without_program)), filters)?;
        this.other = this.group(this.every.clone(), filters)?;
        let named: BTreeSet<&str> =
            filters.iter().flat_map(|(filter, _)| &filter.services).map(String::as_str).filter(|s| *s != "*").collect();
        let globs: Vec<Glob<'_>> = named.iter().filter_map(|service| Glob::new(service)).collect();
        let mut set = GlobSetBuilder::new();
        for glob in &globs {
            set.add(glob.compile()?);
            let having = |(filter, _): &(&Filter, _)| filter.services.iter().any(|service| service == glob.text);
            this.having.push(numbers(filters.iter().map(having)));
        }
        this.globs = set.build().map_err(|error| error.to_string())?;
        let (mut seen, mut matched) = (Vec::new(), Vec::new());
        for service in &named {
            let literal = !service.contains('*');
            // A program that a `*` name matches is seen by every filter that has this name or a wider one.
            let sample = service.replace('*', "\u{1}");
            this.seen_by(sample.as_bytes(), &mut seen, &mut matched);
            if literal {
                let spelt = filters.iter().map(|(filter, _)| filter.services.iter().any(|known| known == service));
                seen.extend(numbers(spelt));
                seen.sort_unstable();
                seen.dedup();
            }
            let group = this.group(seen.clone(), filters)?;
            if literal {
                this.exact.insert(service.as_bytes().into(), group);
            }
        }
        let having = this.having.iter().zip(&globs);
        let overlap = having.clone().enumerate().any(|(index, (filters, glob))| {
            having.clone().skip(index + 1).any(|(others, other)| filters != others && glob.crosses(*other))
        });
        if overlap {
            let mut rules = Vec::new();
            for (_, of_filter) in filters {
                let start = rules.len();
                rules.extend(of_filter.iter().cloned());
                this.spans.push(start..rules.len());
            }
            this.mixed = RuleSet::new(rules)?;
        }
        Ok(this)
    }

    /// What the rules for `program` say of `text`, and whether a filter names that program.
    pub(super) fn first_match(
        &self,
        program: Option<&[u8]>,
        text: &[u8],
        line: LineView<'_>,
        routes: &mut Routes,
        working: &mut Working,
    ) -> (Option<(&CompiledRule, IpAddr)>, bool) {
        let Some(route) = self.route(program, routes) else { return (None, false) };
        (route.set.first_match(route.only, text, line, working), route.named)
    }

    /// Whether any rule is for lines of this program.
    pub(super) fn knows(&self, program: Option<&[u8]>) -> bool {
        !self.rules(program).is_empty()
    }

    /// The rules for lines of this program, in the order in which they are asked.
    pub(super) fn rules(&self, program: Option<&[u8]>) -> Vec<&Arc<CompiledRule>> {
        let Some(program) = program else { return self.rules_of(self.bare) };
        if let Some(&group) = self.exact.get(program) {
            return self.rules_of(group);
        }
        let mut slot = Slot::default();
        self.resolve(program, &mut slot, &mut Vec::new());
        match slot.found {
            Found::Group(group) => self.rules_of(group),
            Found::Nothing | Found::Mixed => {
                let spans = slot.filters.iter().filter_map(|filter| self.spans.get(usize::from(*filter)));
                spans.filter_map(|span| self.mixed.rules().get(span.clone())).flatten().collect()
            }
        }
    }

    fn rules_of(&self, group: usize) -> Vec<&Arc<CompiledRule>> {
        self.groups.get(group).map(RuleSet::rules).unwrap_or_default().iter().collect()
    }

    fn route<'t: 'r, 'r>(&'t self, program: Option<&[u8]>, routes: &'r mut Routes) -> Option<Route<'t, 'r>> {
        let whole = |group: usize, named| Some(Route { set: self.groups.get(group)?, only: None, named });
        let Some(program) = program else { return whole(self.bare, false) };
        if let Some(&group) = self.exact.get(program) {
            return whole(group, true);
        }
        if self.having.is_empty() {
            return whole(self.other, false);
        }
        let slot = routes.find(self, program)?;
        match slot.found {
            Found::Group(group) => whole(group, slot.named),
            Found::Mixed => {
                let only = Only { filters: &slot.filters, spans: &self.spans };
                Some(Route { set: &self.mixed, only: Some(only), named: true })
            }
            Found::Nothing => None,
        }
    }

    /// Finds out who sees the lines of `program`, which no filter spells out.
    fn resolve(&self, program: &[u8], slot: &mut Slot, matched: &mut Vec<usize>) {
        self.seen_by(program, &mut slot.filters, matched);
        slot.named = !matched.is_empty();
        let group = self.combined.get(slot.filters.as_slice());
        slot.found = group.map_or(Found::Mixed, |&group| Found::Group(group));
    }

    /// The filters with a `*` name that matches `program`, in ascending order.
    fn seen_by(&self, program: &[u8], seen: &mut Vec<u16>, matched: &mut Vec<usize>) {
        seen.clear();
        seen.extend_from_slice(&self.every);
        matched.clear();
        self.globs.matches_candidate_into(&Candidate::from_bytes(program), matched);
        seen.extend(matched.iter().filter_map(|&glob| self.having.get(glob)).flatten());
        seen.sort_unstable();
        seen.dedup();
    }

    /// The group of this combination of filters, made if there is none yet.
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

impl Routes {
    /// What is known of `program`, or is found out now.
    fn find(&mut self, table: &Dispatch, program: &[u8]) -> Option<&Slot> {
        if self.of.as_ref().is_none_or(|of| !Arc::ptr_eq(of, &table.identity)) {
            self.of = Some(Arc::clone(&table.identity));
            self.slots.clear();
            self.slots.resize_with(SLOTS + 1, Slot::default);
        }
        let remembered = program.len() <= MAX_REMEMBERED;
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let place = if remembered { table.exact.hasher().hash_one(program) as usize % SLOTS } else { SLOTS };
        let slot = self.slots.get_mut(place)?;
        if !remembered || matches!(slot.found, Found::Nothing) || slot.program != program {
            table.resolve(program, slot, &mut self.matched);
            if remembered {
                slot.program.clear();
                slot.program.extend_from_slice(program);
            }
        }
        Some(slot)
    }
}

/// A service name with a `*`, taken apart.
#[derive(Clone, Copy, Debug)]
struct Glob<'a> {
    text: &'a str,
    before: &'a str,
    after: &'a str,
}

impl<'a> Glob<'a> {
    /// `None`: a literal name.
    fn new(text: &'a str) -> Option<Self> {
        text.split_once('*').map(|(before, after)| Self { text, before, after })
    }

    fn compile(self) -> Result<globset::Glob, String> {
        // Every other character means itself. A dot at the end is written as a class, because a path that ends with a dot has
        // no file name, and a program name is no path.
        let after = match self.after.strip_suffix('.') {
            Some(start) => format!("{}[.]", globset::escape(start)),
            None => globset::escape(self.after),
        };
        let glob = format!("{}*{after}", globset::escape(self.before));
        GlobBuilder::new(&glob).backslash_escape(false).build().map_err(|error| error.to_string())
    }

    /// Whether a program can match both names although neither is a special case of the other.
    fn crosses(self, other: Self) -> bool {
        let start = (self.before.starts_with(other.before), other.before.starts_with(self.before));
        let end = (self.after.ends_with(other.after), other.after.ends_with(self.after));
        let narrower = start.0 && end.0 || start.1 && end.1;
        (start.0 || start.1) && (end.0 || end.1) && !narrower
    }
}

/// The places at which `wanted` says yes.
fn numbers(wanted: impl Iterator<Item = bool>) -> Vec<u16> {
    wanted.zip(0..=u16::MAX).filter_map(|(wanted, number)| wanted.then_some(number)).collect()
}

#[cfg(test)]
impl Routes {
    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        let of_slot = |slot: &Slot| slot.program.capacity() + 2 * slot.filters.capacity();
        self.slots.capacity() * size_of::<Slot>() + self.slots.iter().map(of_slot).sum::<usize>()
    }
}
