//! The compiled rule set.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::definition::{Filter, Mode, Overrides, Pattern, Rule};
use super::dispatch::{Dispatch, Routes};
use super::error::{FilterError, Place, Problem};
use super::expand::Pieces;
use super::rule::{CompiledRule, RuleKind, Standing};
use super::ruleset::{RuleSet, Working};
use super::session::Writer;
use banmesh_types::echo::EchoClass;

/// How many rules one detector may have.
const MAX_RULES: usize = 20_000;

/// A line, taken apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineView<'a> {
    /// The program that wrote it (the tag without the pid), where the line says so.
    pub program: Option<&'a [u8]>,
    /// What follows the tag; the whole line when it is no syslog.
    pub message: &'a [u8],
    /// The line as it was received; a priority (`<134>`) at its start is skipped here.
    pub raw: &'a [u8],
    /// Who wrote it: the sessions of different writers are different ones.
    pub writer: Writer<'a>,
}

impl<'a> LineView<'a> {
    /// A message of `program`, without a header.
    pub const fn message(program: &'a [u8], message: &'a [u8]) -> Self {
        let writer = Writer { sender: None, hostname: None, pid: None };
        Self { program: Some(program), message, raw: message, writer }
    }
}

/// Whose failed (or correct) login a line tells of.
#[derive(Clone, Copy, Debug)]
pub struct Offence<'a> {
    /// The source, in canonical form.
    pub source: IpAddr,
    /// The name of the filter or pattern.
    pub filter: &'a Arc<str>,
    /// The name of the rule within it.
    pub rule: &'a Arc<str>,
    /// From 1 (harmless) to 6 (grave).
    pub severity: u8,
    /// What it changes in the ban policy: see [`Detector::overrides`].
    pub policy: Option<PolicyId>,
    /// A failure or a correct login.
    pub kind: OffenceKind,
    /// What [`super::Repeats::admits`] needs.
    pub echo: Option<EchoClass>,
}

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffenceKind {
    /// An offence.
    Failure,
    /// A correct login: with `ban.success_clears` it clears the source's count.
    Success,
}

/// Which [`Overrides`] of a detector apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(u16);

impl PolicyId {
    /// The place in [`Detector::policies`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Something that works, but not as well as it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub place: Place,
    /// What.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Working memory of [`Detector::detect`], and the sessions that it knows; keep one for each way in by which the lines of a
/// host come in order. It outlives a change of the detector.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    routes: Routes,
    working: Working,
}

impl Scratch {
    /// Empty working memory; it grows to what the detector needs.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(super) fn programs_memory(&self) -> usize {
        self.routes.memory()
    }
}

/// Says whose address a line accuses. Immutable; share it in an `Arc` and replace it when the configuration changes.
/// The default one has no rules.
#[derive(Debug, Default)]
pub struct Detector {
    /// The rules of the filters.
    dispatch: Dispatch,
    /// The patterns, which are searched in the whole line.
    patterns: RuleSet,
    policies: Vec<Overrides>,
    warnings: Vec<Warning>,
    rules: usize,
}

impl Detector {
    /// Compiles `filters`, each with the rules that are in force in its mode, and `patterns`.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    pub fn compile<'a>(
        filters: impl IntoIterator<Item = (&'a Filter, Mode)>,
        patterns: &[Pattern],
    ) -> Result<Self, Vec<FilterError>> {
        let mut compiler = Compiler::default();
        let mut compiled = Vec::new();
        for (filter, mode) in filters {
            compiled.push((filter, compiler.filter(filter, mode)));
        }
        let patterns = compiler.patterns(patterns);
        if compiler.rules > MAX_RULES {
            compiler.error("*", None, Problem::TooManyRules { count: compiler.rules, limit: MAX_RULES });
        }
        if !compiler.errors.is_empty() {
            return Err(compiler.errors);
        }
        let Compiler { policies, warnings, rules, .. } = compiler;
        let build = Dispatch::new(&compiled).and_then(|dispatch| Ok((dispatch, RuleSet::new(patterns)?)));
        let (dispatch, patterns) = build.map_err(|text| {
            vec![FilterError { place: Place { filter: "*".to_owned(), rule: None }, problem: Problem::Regex(text) }]
        })?;
        Ok(Self { dispatch, patterns, policies, warnings, rules })
    }

    /// What `line` tells of, if it tells of anything. See the module's documentation for the order of the rules.
    pub fn detect<'d>(&'d self, line: LineView<'_>, scratch: &mut Scratch) -> Option<Offence<'d>> {
        let Scratch { routes, working } = scratch;
        let (by_filter, named) = self.dispatch.first_match(line.program, line.message, line, routes, working);
        let found = match by_filter.or_else(|| self.as_a_whole(line, named, scratch)) {
            Some(found) => Some(found),
            None if self.patterns.is_empty() => None,
            None => self.patterns.first_match(None, without_priority(line.raw), line, &mut scratch.working),
        };
        let (rule, source) = found?;
        Some(Offence {
            source,
            filter: &rule.filter,
            rule: &rule.name,
            severity: rule.severity,
            policy: rule.policy,
            kind: if rule.kind == RuleKind::Success { OffenceKind::Success } else { OffenceKind::Failure },
            echo: rule.echo,
        })
    }

    /// What the line says if it is no syslog. `named`: whether a filter names its program.
    fn as_a_whole(&self, line: LineView<'_>, named: bool, scratch: &mut Scratch) -> Option<(&CompiledRule, IpAddr)> {
        let whole = Self::whole(line, named)?;
        let Scratch { routes, working } = scratch;
        self.dispatch.first_match(None, whole.message, whole, routes, working).0
    }

    /// The line as one that is no syslog, where it may be none: a time at its beginning, and what looks like a host and a
    /// program behind it, can be a part of what a service writes. A priority proves that a program is one.
    fn whole(line: LineView<'_>, named: bool) -> Option<LineView<'_>> {
        let message = without_priority(line.raw);
        let bare = line.program.is_none() || message.len() == line.raw.len() && !named;
        (bare && message.len() > line.message.len()).then_some(LineView { program: None, message, ..line })
    }

    /// The line as [`Detector::detect`] judges it: as it is given, or as a whole where that alone says something.
    pub fn as_judged<'a>(&self, line: LineView<'a>) -> LineView<'a> {
        let mut scratch = Scratch::new();
        let Scratch { routes, working } = &mut scratch;
        let (said, named) = self.dispatch.first_match(line.program, line.message, line, routes, working);
        match Self::whole(line, named) {
            Some(whole) if said.is_none() && self.as_a_whole(line, named, &mut scratch).is_some() => whole,
            _ => line,
        }
    }

    /// What an offence with this id changes in the ban policy.
    pub fn overrides(&self, policy: PolicyId) -> Option<&Overrides> {
        self.policies.get(usize::from(policy.0))
    }

    /// All that offences change in the ban policy; a [`PolicyId`]'s index is the place in it.
    pub fn policies(&self) -> &[Overrides] {
        &self.policies
    }

    /// What the operator should know about the rules.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// How many rules are in force.
    pub const fn rules(&self) -> usize {
        self.rules
    }

    /// Whether any filter looks at lines of this program.
    pub fn knows(&self, program: Option<&[u8]>) -> bool {
        self.dispatch.knows(program)
    }

    pub(super) fn rules_for(&self, program: Option<&[u8]>) -> Vec<&Arc<CompiledRule>> {
        self.dispatch.rules(program)
    }

    pub(super) fn pattern_rules(&self) -> &[Arc<CompiledRule>] {
        self.patterns.rules()
    }
}

/// `line` without the `<n>` at its start.
pub(super) fn without_priority(line: &[u8]) -> &[u8] {
    let Some(rest) = line.strip_prefix(b"<") else { return line };
    let digits = rest.iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        Some(b'>') if digits > 0 => rest.get(digits + 1..).unwrap_or_default(),
        _ => line,
    }
}

#[derive(Default)]
struct Compiler {
    errors: Vec<FilterError>,
    warnings: Vec<Warning>,
    policies: Vec<Overrides>,
    names: HashSet<String>,
    rules: usize,
    filters: u16,
}

impl Compiler {
    fn error(&mut self, filter: &str, rule: Option<&str>, problem: Problem) {
        let place = Place { filter: filter.to_owned(), rule: rule.map(str::to_owned) };
        self.errors.push(FilterError { place, problem });
    }

    fn filter(&mut self, filter: &Filter, mode: Mode) -> Vec<Arc<CompiledRule>> {
        let number = self.filters;
        self.filters = self.filters.saturating_add(1);
        self.check_name(&filter.name);
        if filter.failregex.is_empty() {
            self.error(&filter.name, None, Problem::NoRules);
        }
        if filter.services.is_empty() && !filter.without_program {
            self.error(&filter.name, None, Problem::NoServices);
        }
        for service in &filter.services {
            if service.is_empty() || service.matches('*').count() > 1 {
                self.error(&filter.name, None, Problem::Service(service.clone()));
            }
        }
        let filter_name: Arc<str> = filter.name.as_str().into();
        let mut classes: Vec<&str> = Vec::new();
        let mut names = HashSet::new();
        let mut compiled = Vec::new();
        let lists = [
            ("sessionregex", RuleKind::Open, &filter.sessionregex),
            ("ignoreregex", RuleKind::Ignore, &filter.ignoreregex),
            ("successregex", RuleKind::Success, &filter.successregex),
            ("failregex", RuleKind::Failure, &filter.failregex),
            ("endregex", RuleKind::Close, &filter.endregex),
        ];
        for (list, kind, rules) in lists {
            for (index, rule) in rules.iter().enumerate() {
                let name = rule.name.clone().unwrap_or_else(|| format!("{list}-{}", index + 1));
                if !names.insert(name.clone()) {
                    self.error(&filter.name, Some(&name), Problem::DuplicateName);
                }
                let echo = rule.echo.as_deref().and_then(|echo| {
                    let class = classes.iter().position(|known| *known == echo).unwrap_or_else(|| {
                        classes.push(echo);
                        classes.len() - 1
                    });
                    u8::try_from(class).ok().map(|class| EchoClass { filter: number, class })
                });
                let policy = self.policy(&filter.name, &name, rule, &filter.ban);
                let standing =
                    Standing { filter: Arc::clone(&filter_name), name: name.as_str().into(), kind, policy, echo };
                let rule = self.rule(rule, Pieces::Defined(&filter.definitions), standing, mode);
                if rule.as_ref().is_some_and(CompiledRule::asks_session) && filter.sessionregex.is_empty() {
                    self.error(&filter.name, Some(&name), Problem::NoSessions);
                }
                compiled.extend(rule.map(Arc::new));
            }
        }
        if classes.len() > EchoClass::PER_FILTER {
            self.error(&filter.name, None, Problem::TooManyEchoes(EchoClass::PER_FILTER));
        }
        compiled
    }

    fn patterns(&mut self, patterns: &[Pattern]) -> Vec<Arc<CompiledRule>> {
        let mut names = HashSet::new();
        let mut compiled = Vec::new();
        for pattern in patterns {
            if pattern.name.is_empty() {
                self.error(&pattern.name, None, Problem::Name);
            } else if !names.insert(&pattern.name) {
                self.error(&pattern.name, None, Problem::DuplicateName);
            }
            let rule = Rule {
                regex: pattern.regex.clone(),
                ip_group: pattern.ip_group.clone(),
                severity: pattern.severity,
                ..Rule::default()
            };
            let standing = Standing {
                filter: pattern.name.as_str().into(),
                name: "pattern".into(),
                kind: RuleKind::Failure,
                policy: None,
                echo: None,
            };
            compiled.extend(self.rule(&rule, Pieces::Plain, standing, Mode::Normal).map(Arc::new));
        }
        compiled
    }

    /// Compiles the rule even when `mode` leaves it out, so that its errors show in every mode.
    fn rule(&mut self, rule: &Rule, pieces: Pieces<'_>, standing: Standing, mode: Mode) -> Option<CompiledRule> {
        let (filter, name) = (Arc::clone(&standing.filter), Arc::clone(&standing.name));
        match CompiledRule::compile(rule, pieces, standing) {
            Err(problem) => {
                self.error(&filter, Some(&name), problem);
                None
            }
            Ok(_) if !mode.includes(rule.mode) => None,
            Ok(compiled) => {
                self.rules += 1;
                if compiled.literals.is_empty() {
                    let place = Place { filter: filter.to_string(), rule: Some(name.to_string()) };
                    let text = "no text of three letters or more is part of every match, so the expression runs on every \
                                line: add such a text, to keep the cost per line flat";
                    self.warnings.push(Warning { place, text: text.to_owned() });
                }
                Some(compiled)
            }
        }
    }

    fn policy(&mut self, filter: &str, name: &str, rule: &Rule, base: &Overrides) -> Option<PolicyId> {
        let overrides = rule.ban.over(base);
        if overrides.is_empty() {
            return None;
        }
        let wrong = if overrides.max_attempts == Some(0) {
            Some("max_attempts must be at least 1")
        } else if overrides.escalation_factor.is_some_and(|factor| !(factor.is_finite() && factor >= 1.0)) {
            Some("escalation_factor must be at least 1.0")
        } else if [overrides.time_window, overrides.initial_ban_time, overrides.max_ban_time]
            .into_iter()
            .flatten()
            .any(|span| span.is_zero())
        {
            Some("a duration of zero makes no sense here")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.error(filter, Some(name), Problem::Policy(wrong));
        }
        let index = self.policies.iter().position(|known| *known == overrides).unwrap_or_else(|| {
            self.policies.push(overrides);
            self.policies.len() - 1
        });
        u16::try_from(index).ok().map(PolicyId)
    }

    fn check_name(&mut self, name: &str) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(allowed) {
            self.error(name, None, Problem::Name);
        } else if !self.names.insert(name.to_owned()) {
            self.error(name, None, Problem::DuplicateName);
        }
    }
}
