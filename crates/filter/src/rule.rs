//! One rule, compiled.

use std::net::IpAddr;
use std::sync::Arc;

use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::{Input, meta};

use super::definition::{IpGroup, Mode, Rule};
use super::detector::PolicyId;
use super::error::Problem;
use super::expand::{FORWARDED_GROUP, HOST_GROUP, Pieces, expand};
use super::literal;
use super::session::MAX_SESSION;
use super::source::{forwarded_source, parse_source};
use banmesh_types::echo::EchoClass;

/// How long an expression may be, its pieces put in.
const MAX_REGEX_LENGTH: usize = 16 * 1024;
/// How much memory the compiled expression may take.
const MAX_NFA_SIZE: usize = 2 << 20;
/// What the lazy automaton of one expression may keep, per thread that uses it.
const HYBRID_CACHE: usize = 1 << 20;

/// From so many bytes on a message may have been cut by a relay: RFC 5424 §6.1 lets nobody cut a line of less than 480, of
/// which the header takes some. With a user name as long as it takes, a client could have its line cut where its own address
/// becomes another's.
pub(super) const MAY_BE_CUT: usize = 400;

/// The group that names the session.
const SESSION_GROUP: &str = "session";

/// What a match of a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    /// It says whose session it is.
    Open,
    /// It ends a session.
    Close,
    /// The filter has nothing to say of this line.
    Ignore,
    /// A correct login.
    Success,
    /// An offence.
    Failure,
}

impl RuleKind {
    /// Whether it is about what is known of sessions, not about the line.
    pub(super) const fn keeps_sessions(self) -> bool {
        matches!(self, Self::Open | Self::Close)
    }
}

/// A rule that is ready to run.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) filter: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: RuleKind,
    pub(super) severity: u8,
    pub(super) policy: Option<PolicyId>,
    pub(super) echo: Option<EchoClass>,
    /// The expression with every piece put in.
    pub(super) text: String,
    /// Sets of substrings in lower case: one of each set is in every match. Empty when none is known.
    pub(super) literals: Vec<Vec<Vec<u8>>>,
    regex: meta::Regex,
    sources: Vec<SourceGroup>,
    /// The group that names the session, when the rule needs it.
    session: Option<usize>,
    slots: usize,
}

#[derive(Clone, Copy, Debug)]
struct SourceGroup {
    group: usize,
    forwarded: bool,
}

/// How far a rule came on a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The expression does not match.
    NoMatch,
    /// It matches, but what stands where the address should be is none (the span of it, if there is one).
    NoAddress(Option<(usize, usize)>),
    /// It matches.
    Match(Option<IpAddr>),
    /// It matches, and is about the session whose name spans these bytes; with the address, when it names one.
    Session((usize, usize), Option<IpAddr>),
}

/// The parts of a [`CompiledRule`] that the rule's place decides, not its text.
pub(super) struct Standing {
    pub(super) filter: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: RuleKind,
    pub(super) policy: Option<PolicyId>,
    pub(super) echo: Option<EchoClass>,
}

impl CompiledRule {
    /// Whether its address is the one that is remembered of a session.
    pub(super) fn asks_session(&self) -> bool {
        self.session.is_some() && !self.kind.keeps_sessions()
    }

    pub(super) fn compile(rule: &Rule, pieces: Pieces<'_>, standing: Standing) -> Result<Self, Problem> {
        let text = expand(&rule.regex, pieces, MAX_REGEX_LENGTH)?;
        let (hir, unicode) = parse(&text)?;
        let regex = meta::Regex::builder()
            .configure(
                meta::Config::new()
                    .utf8_empty(false)
                    .nfa_size_limit(Some(MAX_NFA_SIZE))
                    .hybrid_cache_capacity(HYBRID_CACHE)
                    .onepass_size_limit(Some(1 << 20)),
            )
            .syntax(syntax(unicode))
            .build(&text)
            .map_err(|error| match error.size_limit() {
                Some(limit) => Problem::TooBig { limit },
                None => Problem::Regex(error.to_string()),
            })?;
        let is_pattern = matches!(pieces, Pieces::Plain);
        let session = session_group(rule, &regex, standing.kind, is_pattern)?;
        let sources = match source_groups(rule, &regex, standing.kind, is_pattern) {
            Err(Problem::NoSource) if session.is_some() && standing.kind != RuleKind::Open => Vec::new(),
            sources => sources?,
        };
        // A rule with an address of its own asks no session.
        let session = session.filter(|_| standing.kind.keeps_sessions() || sources.is_empty());
        let severity = rule.severity.unwrap_or(3);
        if !(1..=6).contains(&severity) {
            return Err(Problem::Severity(severity));
        }
        let slots = sources.iter().map(|source| source.group).chain(session).max().map_or(0, |group| group * 2 + 2);
        let Standing { filter, name, kind, policy, echo } = standing;
        let literals = literal::required(&hir);
        Ok(Self { filter, name, kind, severity, policy, echo, text, literals, regex, sources, session, slots })
    }

    /// Runs the expression over `text`. `slots` is scratch.
    pub(super) fn run(&self, text: &[u8], slots: &mut Vec<Option<NonMaxUsize>>) -> Outcome {
        let input = Input::new(text);
        if self.sources.is_empty() && self.session.is_none() {
            return if self.regex.is_match(input) { Outcome::Match(None) } else { Outcome::NoMatch };
        }
        slots.clear();
        slots.resize(self.slots, None);
        if self.regex.search_slots(&input, slots).is_none() {
            return Outcome::NoMatch;
        }
        let span = |group: usize| {
            let start = slots.get(group * 2).copied().flatten()?;
            let end = slots.get(group * 2 + 1).copied().flatten()?;
            Some((start.get(), end.get()))
        };
        let source = self.source(text, span);
        let Some(session) = self.session else {
            return match source {
                Ok(source) => Outcome::Match(Some(source)),
                Err(wrong) => Outcome::NoAddress(wrong),
            };
        };
        match span(session) {
            Some((start, end)) if start < end && end - start <= MAX_SESSION => {
                Outcome::Session((start, end), source.ok())
            }
            _ => Outcome::NoMatch,
        }
    }

    /// The first valid address; otherwise where one should be and is none.
    fn source(
        &self,
        text: &[u8],
        span: impl Fn(usize) -> Option<(usize, usize)>,
    ) -> Result<IpAddr, Option<(usize, usize)>> {
        let mut wrong = None;
        for source in &self.sources {
            let Some((start, end)) = span(source.group) else { continue };
            let Some(found) = text.get(start..end) else { continue };
            if end == text.len() && end >= MAY_BE_CUT {
                wrong = Some((start, end));
                continue;
            }
            match if source.forwarded { forwarded_source(found) } else { parse_source(found) } {
                Some(address) => return Ok(address),
                None => wrong = Some((start, end)),
            }
        }
        Err(wrong)
    }
}

/// Which group names the session, where there may be one.
fn session_group(rule: &Rule, regex: &meta::Regex, kind: RuleKind, is_pattern: bool) -> Result<Option<usize>, Problem> {
    let group = regex.group_info().to_index(regex_automata::PatternID::ZERO, SESSION_GROUP);
    if kind.keeps_sessions() {
        let plain = rule.severity.is_none() && rule.mode == Mode::Normal && rule.echo.is_none() && rule.ban.is_empty();
        if !plain {
            return Err(Problem::SessionOnly);
        }
        return group.map(Some).ok_or(Problem::NoSessionGroup);
    }
    Ok(group.filter(|_| kind != RuleKind::Ignore && !is_pattern))
}

/// Which groups hold the address, in the order in which they are asked.
fn source_groups(
    rule: &Rule,
    regex: &meta::Regex,
    kind: RuleKind,
    is_pattern: bool,
) -> Result<Vec<SourceGroup>, Problem> {
    let names = regex.group_info();
    let pid = regex_automata::PatternID::ZERO;
    if let Some(group) = &rule.ip_group {
        let index = match group {
            IpGroup::Number(number) => (*number < names.group_len(pid)).then_some(*number),
            IpGroup::Name(name) => names.to_index(pid, name),
        };
        let shown = || match group {
            IpGroup::Number(number) => number.to_string(),
            IpGroup::Name(name) => name.clone(),
        };
        let group = index.ok_or_else(|| Problem::NoSuchGroup(shown()))?;
        return Ok(vec![SourceGroup { group, forwarded: false }]);
    }
    let marked: Vec<SourceGroup> = names
        .pattern_names(pid)
        .enumerate()
        .filter_map(|(group, name)| {
            let name = name?;
            let forwarded = name.starts_with(FORWARDED_GROUP);
            (forwarded || name.starts_with(HOST_GROUP)).then_some(SourceGroup { group, forwarded })
        })
        .collect();
    if !marked.is_empty() || matches!(kind, RuleKind::Ignore | RuleKind::Close) {
        return Ok(marked);
    }
    for name in ["ip", "host", "HOST", "rip", "source", "src", "client"] {
        if let Some(group) = names.to_index(pid, name) {
            return Ok(vec![SourceGroup { group, forwarded: false }]);
        }
    }
    if is_pattern && names.group_len(pid) > 1 {
        return Ok(vec![SourceGroup { group: 1, forwarded: false }]);
    }
    Err(Problem::NoSource)
}

fn syntax(unicode: bool) -> regex_automata::util::syntax::Config {
    regex_automata::util::syntax::Config::new()
        .unicode(unicode)
        .utf8(false)
        // A message with a line break in it must not slip through.
        .dot_matches_new_line(true)
        .nest_limit(96)
}

/// Parses with ASCII classes, which are what keeps matching fast; an expression that needs Unicode gets it.
fn parse(text: &str) -> Result<(regex_syntax::hir::Hir, bool), Problem> {
    let parse = |unicode| {
        regex_syntax::ParserBuilder::new()
            .unicode(unicode)
            .utf8(false)
            .dot_matches_new_line(true)
            .nest_limit(96)
            .build()
            .parse(text)
            .map_err(Box::new)
    };
    let error = match parse(false) {
        Ok(hir) => return Ok((hir, false)),
        Err(error) => error,
    };
    if let Ok(hir) = parse(true) {
        return Ok((hir, true));
    }
    Err(not_linear(&error).map_or_else(|| Problem::Regex(in_one_line(&error)), Problem::NotLinear))
}

fn not_linear(error: &regex_syntax::Error) -> Option<&'static str> {
    let regex_syntax::Error::Parse(error) = error else { return None };
    match error.kind() {
        regex_syntax::ast::ErrorKind::UnsupportedLookAround => Some("look-ahead or look-behind"),
        regex_syntax::ast::ErrorKind::UnsupportedBackreference => Some("a back-reference"),
        _ => None,
    }
}

fn in_one_line(error: &regex_syntax::Error) -> String {
    match error {
        regex_syntax::Error::Parse(error) => at(&error.kind().to_string(), error.span().start.offset),
        regex_syntax::Error::Translate(error) => at(&error.kind().to_string(), error.span().start.offset),
        _ => error.to_string(),
    }
}

fn at(what: &str, offset: usize) -> String {
    format!("{what} (at byte {offset})")
}
