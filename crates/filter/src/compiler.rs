//! Compiles filters and patterns into rules, and collects every error on the way.

use std::collections::HashSet;
use std::sync::Arc;

use banmesh_types::echo::EchoClass;

use crate::definition::{Filter, Mode, Overrides, Pattern, Rule};
use crate::error::{FilterError, Place, Problem, Warning};
use crate::expand::Placeholders;
use crate::offence::PolicyId;
use crate::rule::{CompiledRule, RuleContext, RuleKind};

/// The most rules that one detector may have.
const MAX_RULES: usize = 20_000;

#[derive(Default)]
pub(crate) struct Compiler {
    errors: Vec<FilterError>,
    warnings: Vec<Warning>,
    policies: Vec<Overrides>,
    names: HashSet<String>,
    rules: usize,
    filters: u16,
}

/// What a compiler has collected besides the rules.
pub(crate) struct Compiled {
    pub(crate) policies: Vec<Overrides>,
    pub(crate) warnings: Vec<Warning>,
    /// The number of rules in force.
    pub(crate) rules: usize,
}

impl Compiler {
    /// # Errors
    /// Returns the errors of all filters and patterns compiled so far.
    pub(crate) fn finish(mut self) -> Result<Compiled, Vec<FilterError>> {
        if self.rules > MAX_RULES {
            self.error("*", None, Problem::TooManyRules { count: self.rules, limit: MAX_RULES });
        }
        let Self { errors, policies, warnings, rules, .. } = self;
        if errors.is_empty() { Ok(Compiled { policies, warnings, rules }) } else { Err(errors) }
    }

    fn error(&mut self, filter: &str, rule: Option<&str>, problem: Problem) {
        let place = Place { filter: filter.to_owned(), rule: rule.map(str::to_owned) };
        self.errors.push(FilterError { place, problem });
    }

    /// Returns the rules of `filter` that are in force in `mode`, in the order in which they are tried.
    pub(crate) fn filter(&mut self, filter: &Filter, mode: Mode) -> Vec<Arc<CompiledRule>> {
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
            ("sessionregex", RuleKind::SessionStart, &filter.sessionregex),
            ("ignoreregex", RuleKind::Ignore, &filter.ignoreregex),
            ("successregex", RuleKind::Success, &filter.successregex),
            ("failregex", RuleKind::Failure, &filter.failregex),
            ("endregex", RuleKind::SessionEnd, &filter.endregex),
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
                let context =
                    RuleContext { filter: Arc::clone(&filter_name), name: name.as_str().into(), kind, policy, echo };
                let rule = self.rule(rule, Placeholders::Defined(&filter.definitions), context, mode);
                if rule.as_ref().is_some_and(CompiledRule::needs_session) && filter.sessionregex.is_empty() {
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

    /// Returns one rule per pattern.
    pub(crate) fn patterns(&mut self, patterns: &[Pattern]) -> Vec<Arc<CompiledRule>> {
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
            let context = RuleContext {
                filter: pattern.name.as_str().into(),
                name: "pattern".into(),
                kind: RuleKind::Failure,
                policy: None,
                echo: None,
            };
            compiled.extend(self.rule(&rule, Placeholders::AddressOnly, context, Mode::Normal).map(Arc::new));
        }
        compiled
    }

    /// Compiles the rule even if it is not in force in `mode`, so that its errors show in every mode.
    fn rule(
        &mut self,
        rule: &Rule,
        placeholders: Placeholders<'_>,
        context: RuleContext,
        mode: Mode,
    ) -> Option<CompiledRule> {
        let (filter, name) = (Arc::clone(&context.filter), Arc::clone(&context.name));
        match CompiledRule::compile(rule, placeholders, context) {
            Err(problem) => {
                self.error(&filter, Some(&name), problem);
                None
            }
            Ok(_) if !mode.includes(rule.mode) => None,
            Ok(compiled) => {
                self.rules += 1;
                let mut warn = |text: &str| {
                    let place = Place { filter: filter.to_string(), rule: Some(name.to_string()) };
                    self.warnings.push(Warning { place, text: text.to_owned() });
                };
                if compiled.literals.is_empty() {
                    warn(
                        "no literal of three letters or more is part of every match, so the expression runs on every line; \
                         add such a literal",
                    );
                }
                // Patterns are meant to be searched in the whole line.
                if !compiled.is_anchored && matches!(placeholders, Placeholders::Defined(_)) {
                    warn(
                        "the expression does not begin with ^, so it also matches text in the middle of a message, which a \
                         client may have written; begin it with ^",
                    );
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
        let invalid = if overrides.max_attempts == Some(0) {
            Some("`ban`: max_attempts must be at least 1")
        } else if overrides.escalation_factor.is_some_and(|factor| !(factor.is_finite() && factor >= 1.0)) {
            Some("`ban`: escalation_factor must be at least 1.0")
        } else if [overrides.time_window, overrides.initial_ban_time, overrides.max_ban_time]
            .into_iter()
            .flatten()
            .any(|span| span.is_zero())
        {
            Some("`ban`: a duration must be longer than zero")
        } else {
            None
        };
        if let Some(invalid) = invalid {
            self.error(filter, Some(name), Problem::Policy(invalid));
        }
        let index = self.policies.iter().position(|known| *known == overrides).unwrap_or_else(|| {
            self.policies.push(overrides);
            self.policies.len() - 1
        });
        PolicyId::new(index)
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
