//! The compiled filters and patterns.

use std::sync::Arc;

use crate::access_line;
use crate::compiler::{Compiled, Compiler};
use crate::definition::{Filter, Mode, Overrides, Pattern};
use crate::dispatch::Dispatch;
use crate::error::{FilterError, Warning};
use crate::line::{LineView, without_priority};
use crate::offence::{Offence, OffenceKind, PolicyId};
use crate::rule::{CompiledRule, RuleKind};
use crate::ruleset::{Hit, RuleSet};
use crate::scratch::Scratch;

/// Finds the source address of failed and successful logins in log lines.
///
/// A detector is immutable. Share it in an [`Arc`], and replace it when the configuration changes. The default detector
/// has no rules.
#[derive(Debug, Default)]
pub struct Detector {
    dispatch: Dispatch,
    /// The patterns, which are searched in the whole line.
    patterns: RuleSet,
    policies: Vec<Overrides>,
    warnings: Vec<Warning>,
    rules: usize,
    sessions: bool,
}

impl Detector {
    /// Compiles `filters` and `patterns`. Of each filter, the rules that are in force in the given mode are used.
    ///
    /// # Errors
    /// Returns every error in the filters and patterns, not only the first.
    pub fn compile<'a>(
        filters: impl IntoIterator<Item = (&'a Filter, Mode)>,
        patterns: &[Pattern],
    ) -> Result<Self, Vec<FilterError>> {
        let mut compiler = Compiler::default();
        let mut compiled = Vec::new();
        let mut sessions = false;
        for (filter, mode) in filters {
            sessions |= !filter.sessionregex.is_empty();
            compiled.push((filter, compiler.filter(filter, mode)));
        }
        let patterns = compiler.patterns(patterns);
        let Compiled { policies, warnings, rules } = compiler.finish()?;
        let dispatch = Dispatch::new(&compiled).map_err(|text| vec![FilterError::too_large(text)])?;
        let patterns = RuleSet::new(patterns).map_err(|text| vec![FilterError::too_large(text)])?;
        Ok(Self { dispatch, patterns, policies, warnings, rules, sessions })
    }

    /// Returns the first rule that matches `line` and has a valid address. The [crate documentation](crate#order)
    /// defines the order of the rules.
    pub fn detect<'a>(&'a self, line: LineView<'a>, scratch: &mut Scratch) -> Option<Offence<'a>> {
        let Scratch { routes, matching } = scratch;
        let (by_filter, named) = self.dispatch.first_match(line.program, line.message, line, routes, matching);
        let by_filter = by_filter.filter(|hit| is_believable(hit.rule, line.message));
        let found = match by_filter.or_else(|| self.match_without_header(line, named, scratch)) {
            Some(found) => Some(found),
            None if self.patterns.is_empty() => None,
            None => self.patterns.first_match(None, without_priority(line.raw), line, &mut scratch.matching),
        };
        let Hit { rule, source, account } = found?;
        Some(Offence {
            source,
            filter: &rule.filter,
            rule: &rule.name,
            severity: rule.severity,
            policy: rule.policy,
            kind: if rule.kind == RuleKind::Success { OffenceKind::Success } else { OffenceKind::Failure },
            echo: rule.echo,
            account,
            unknown: rule.unknown,
        })
    }

    /// Matches the line as one without a syslog header, if it may be one. `named`: whether a filter names its program.
    fn match_without_header<'a>(&'a self, line: LineView<'a>, named: bool, scratch: &mut Scratch) -> Option<Hit<'a>> {
        let whole = line.without_header(named)?;
        let Scratch { routes, matching } = scratch;
        let found = self.dispatch.first_match(None, whole.message, whole, routes, matching).0;
        found.filter(|hit| is_believable(hit.rule, whole.message))
    }

    /// Returns the view of `line` that decides in [`Detector::detect`]: the view as given, or the whole line without a
    /// program if only that matches.
    pub fn as_judged<'a>(&self, line: LineView<'a>) -> LineView<'a> {
        let mut scratch = Scratch::new();
        let Scratch { routes, matching } = &mut scratch;
        let (found, named) = self.dispatch.first_match(line.program, line.message, line, routes, matching);
        match line.without_header(named) {
            Some(whole) if found.is_none() && self.match_without_header(line, named, &mut scratch).is_some() => whole,
            _ => line,
        }
    }

    /// Returns the overrides with this id. `None` if the id comes from another detector.
    pub fn overrides(&self, policy: PolicyId) -> Option<&Overrides> {
        self.policies.get(policy.index())
    }

    /// Returns the distinct overrides of all rules, indexed by [`PolicyId::index`].
    pub fn policies(&self) -> &[Overrides] {
        &self.policies
    }

    /// Returns what could be improved in the filters, for the operator.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns `true` if a filter combines lines (`sessionregex`). Without such a filter, each line is judged separately, so lines may be
    /// examined in any order.
    pub const fn has_sessions(&self) -> bool {
        self.sessions
    }

    /// Returns the number of rules in force, of every kind.
    pub const fn rules(&self) -> usize {
        self.rules
    }

    /// Whether any filter has rules for lines of this program; `None` stands for lines without a program.
    pub fn knows(&self, program: Option<&[u8]>) -> bool {
        self.dispatch.knows(program)
    }

    /// Whether the rule that made `offence` has a group for the account.
    pub(crate) fn reads_account(&self, offence: &Offence<'_>, program: Option<&[u8]>) -> bool {
        let all = self.rules_for(program).into_iter().chain(self.rules_for(None));
        let mut own = all.filter(|rule| Arc::ptr_eq(&rule.name, offence.rule));
        own.next().is_some_and(|rule| rule.reads_account())
    }

    pub(crate) fn rules_for(&self, program: Option<&[u8]>) -> Vec<&Arc<CompiledRule>> {
        self.dispatch.rules(program)
    }

    pub(crate) fn pattern_rules(&self) -> &[Arc<CompiledRule>] {
        self.patterns.rules()
    }
}

/// Whether the service wrote what `rule` found in `text`, and not a client whose header begins a line of an access log.
fn is_believable(rule: &CompiledRule, text: &[u8]) -> bool {
    rule.reads_request || !access_line::begins_with_a_header(text)
}
