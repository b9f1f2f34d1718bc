//! A compiled rule.

use std::sync::{Arc, OnceLock};

use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::{Input, meta};

use banmesh_types::address::Address;
use banmesh_types::echo::EchoClass;

use crate::access_line;
use crate::definition::{IpGroup, Mode, Rule};
use crate::error::Problem;
use crate::expand::{FORWARDED_GROUP, HOST_GROUP, Placeholders, expand};
use crate::groups::GroupFinder;
use crate::literal;
use crate::offence::PolicyId;
use crate::session::MAX_SESSION;
use crate::source::{forwarded_source, parse_source};

/// The longest expression in bytes, with all pieces inserted.
const MAX_REGEX_LENGTH: usize = 16 * 1024;
/// The most memory in bytes that the compiled expression may take.
const MAX_NFA_SIZE: usize = 2 << 20;
/// The cache in bytes of the lazy automaton of one expression, per thread that uses it.
pub(super) const HYBRID_CACHE: usize = 1 << 20;

/// A message of this many bytes or more may have been cut by a relay. RFC 5424 §6.1 requires relays to pass lines of 480
/// bytes, including the header. With a user name of the right length, a client could have its line cut within its own
/// address, so that another address is left.
pub(super) const MAY_BE_CUT: usize = 400;

/// The name of the group that holds the session.
const SESSION_GROUP: &str = "session";

/// The name of the group that holds the account. Where it is empty or not part of the match, the groups `alt_user…` are tried,
/// in order, for expressions that read the account in several places. The names are those of fail2ban.
const USER_GROUP: &str = "user";
pub(super) const OTHER_USER_GROUP: &str = "alt_user";

/// What a match of a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    /// Assigns a session to an address.
    SessionStart,
    /// Ends a session.
    SessionEnd,
    /// Skips the rest of the filter.
    Ignore,
    /// A successful login.
    Success,
    /// An offence.
    Failure,
}

impl RuleKind {
    /// Whether the rule changes the sessions, instead of deciding about the line.
    pub(super) const fn is_session(self) -> bool {
        matches!(self, Self::SessionStart | Self::SessionEnd)
    }
}

#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) filter: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: RuleKind,
    pub(super) severity: u8,
    pub(super) policy: Option<PolicyId>,
    pub(super) echo: Option<EchoClass>,
    /// Whether a match says that the account does not exist.
    pub(super) unknown: bool,
    /// The expression with all pieces inserted.
    pub(super) text: String,
    /// Whether every match begins at the beginning of the text.
    pub(super) is_anchored: bool,
    /// Whether the rule reads the request in an access log.
    pub(super) reads_request: bool,
    /// Sets of literals in lower case. Every match contains at least one literal from each set. Empty if none is known.
    pub(super) literals: Vec<Vec<Vec<u8>>>,
    /// Finds the end of a match, and nothing else where [`GroupFinder`] can find the groups.
    regex: meta::Regex,
    /// Whether the expression needs Unicode classes.
    unicode: bool,
    /// Built when the rule matches for the first time. `None` if it cannot be.
    groups: OnceLock<Option<GroupFinder>>,
    sources: Vec<SourceGroup>,
    /// The group that holds the session, if the rule is about one.
    session: Option<usize>,
    /// The groups that may hold the account, in the order in which they are tried.
    users: Vec<usize>,
    slots: usize,
}

#[derive(Clone, Copy, Debug)]
struct SourceGroup {
    group: usize,
    forwarded: bool,
}

/// The result of running a rule on a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The expression does not match.
    NoMatch,
    /// It matches, but without a valid address. The span is that of the invalid text, if any.
    NoAddress(Option<Span>),
    /// It matches. Rules of kind `Ignore` need no address.
    Match(Found),
    /// It matches, and the session name has this span. The address is `None` if the line has none.
    Session(Span, Found),
}

/// The start and the end of a part of the text.
pub(super) type Span = (usize, usize);

/// What a match says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) source: Option<Address>,
    /// The account, which is not empty.
    pub(super) account: Option<Span>,
}

/// The parts of a [`CompiledRule`] that come from the filter around it.
pub(super) struct RuleContext {
    pub(super) filter: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) kind: RuleKind,
    pub(super) policy: Option<PolicyId>,
    pub(super) echo: Option<EchoClass>,
}

impl CompiledRule {
    /// Whether the rule takes the address from a session.
    pub(super) fn needs_session(&self) -> bool {
        self.session.is_some() && !self.kind.is_session()
    }

    /// Whether the expression has a group for the account.
    pub(super) fn reads_account(&self) -> bool {
        !self.users.is_empty()
    }

    pub(super) fn compile(rule: &Rule, placeholders: Placeholders<'_>, context: RuleContext) -> Result<Self, Problem> {
        let text = expand(&rule.regex, placeholders, MAX_REGEX_LENGTH)?;
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
        let is_pattern = matches!(placeholders, Placeholders::AddressOnly);
        let session = session_group(rule, &regex, context.kind, is_pattern)?;
        let sources = match source_groups(rule, &regex, context.kind, is_pattern) {
            Err(Problem::NoSource) if session.is_some() && context.kind != RuleKind::SessionStart => Vec::new(),
            sources => sources?,
        };
        // An address in the line takes precedence over that of the session.
        let session = session.filter(|_| context.kind.is_session() || sources.is_empty());
        let severity = rule.severity.unwrap_or(3);
        if !(1..=6).contains(&severity) {
            return Err(Problem::Severity(severity));
        }
        let users = if matches!(context.kind, RuleKind::Success | RuleKind::Failure) && !is_pattern {
            user_groups(&regex)
        } else {
            Vec::new()
        };
        if rule.unknown && context.kind != RuleKind::Failure {
            return Err(Problem::UnknownOnlyFailure);
        }
        if rule.unknown && users.is_empty() {
            return Err(Problem::UnknownWithoutUser);
        }
        let groups = sources.iter().map(|source| source.group).chain(session).chain(users.iter().copied());
        let slots = groups.max().map_or(0, |group| group * 2 + 2);
        let RuleContext { filter, name, kind, policy, echo } = context;
        let literals = literal::required(&hir);
        let is_anchored = hir.properties().look_set_prefix().contains(regex_syntax::hir::Look::Start);
        let groups = OnceLock::new();
        let reads_request = access_line::reads_request(&text);
        Ok(Self {
            filter,
            name,
            kind,
            severity,
            policy,
            echo,
            unknown: rule.unknown,
            text,
            is_anchored,
            reads_request,
            literals,
            regex,
            unicode,
            groups,
            sources,
            session,
            users,
            slots,
        })
    }

    /// Runs the expression on `text`. `slots` is a buffer.
    pub(super) fn run(&self, text: &[u8], slots: &mut Vec<Option<NonMaxUsize>>) -> Outcome {
        let input = Input::new(text);
        if self.sources.is_empty() && self.session.is_none() {
            return if self.regex.is_match(input) { Outcome::Match(Found::default()) } else { Outcome::NoMatch };
        }
        let Some(end) = self.regex.search_half(&input) else { return Outcome::NoMatch };
        slots.clear();
        slots.resize(self.slots, None);
        if !self.find_groups(text, end.offset(), slots) {
            slots.fill(None);
            self.regex.search_slots(&input, slots);
        }
        let span = |group: usize| {
            let start = slots.get(group * 2).copied().flatten()?;
            let end = slots.get(group * 2 + 1).copied().flatten()?;
            Some((start.get(), end.get()))
        };
        let source = self.source(text, span);
        let Some(session) = self.session else {
            return match source {
                Ok(source) => Outcome::Match(Found { source: Some(source), account: self.account(text, span) }),
                Err(span) => Outcome::NoAddress(span),
            };
        };
        match span(session) {
            Some((start, end)) if start < end && end - start <= MAX_SESSION => {
                Outcome::Session((start, end), Found { source: source.ok(), account: self.account(text, span) })
            }
            _ => Outcome::NoMatch,
        }
    }

    /// Finds the groups of the match that ends at `end`. Returns false if that is not possible.
    fn find_groups(&self, text: &[u8], end: usize, slots: &mut [Option<NonMaxUsize>]) -> bool {
        let groups = self.groups.get_or_init(|| {
            let sources = self.sources.iter().map(|source| source.group);
            let wanted = sources.chain(self.session).chain(self.users.iter().copied());
            let wanted: Vec<usize> = wanted.flat_map(|group| [group * 2, group * 2 + 1]).collect();
            GroupFinder::new(&self.text, syntax(self.unicode), &wanted)
        });
        groups.as_ref().is_some_and(|groups| groups.find(text, end, slots).is_ok())
    }

    /// Returns the first valid address, or the span of the last invalid one.
    fn source(&self, text: &[u8], span: impl Fn(usize) -> Option<Span>) -> Result<Address, Option<Span>> {
        let mut invalid = None;
        for source in &self.sources {
            let Some((start, end)) = span(source.group) else { continue };
            let Some(found) = text.get(start..end) else { continue };
            if end == text.len() && end >= MAY_BE_CUT {
                invalid = Some((start, end));
                continue;
            }
            match if source.forwarded { forwarded_source(found) } else { parse_source(found) } {
                Some(address) => return Ok(address),
                None => invalid = Some((start, end)),
            }
        }
        Err(invalid)
    }

    /// Returns the account. `None` for one at the end of a line that may have been cut: it may be a part of another name.
    fn account(&self, text: &[u8], span: impl Fn(usize) -> Option<Span>) -> Option<Span> {
        let (start, end) = self.users.iter().filter_map(|&group| span(group)).find(|(start, end)| start < end)?;
        (end < text.len() || end < MAY_BE_CUT).then_some((start, end))
    }
}

#[cfg(test)]
impl CompiledRule {
    /// Whether the groups of a match had to be found by the slow engine at least once.
    pub(super) fn groups_given_up(&self) -> bool {
        self.groups.get().is_some_and(|groups| groups.as_ref().is_none_or(GroupFinder::has_given_up))
    }
}

/// Returns the group that holds the session, for kinds of rules that may have one.
fn session_group(rule: &Rule, regex: &meta::Regex, kind: RuleKind, is_pattern: bool) -> Result<Option<usize>, Problem> {
    let group = regex.group_info().to_index(regex_automata::PatternID::ZERO, SESSION_GROUP);
    if kind.is_session() {
        let plain = rule.severity.is_none() && rule.mode == Mode::Normal && rule.echo.is_none() && rule.ban.is_empty();
        if !plain {
            return Err(Problem::SessionOnly);
        }
        return group.map(Some).ok_or(Problem::NoSessionGroup);
    }
    Ok(group.filter(|_| kind != RuleKind::Ignore && !is_pattern))
}

/// Returns the groups that may hold the account, in the order in which they are tried.
fn user_groups(regex: &meta::Regex) -> Vec<usize> {
    let names = || regex.group_info().pattern_names(regex_automata::PatternID::ZERO).enumerate();
    let having = |is_wanted: fn(&str) -> bool| {
        names().filter_map(move |(group, name)| name.is_some_and(is_wanted).then_some(group))
    };
    having(|name| name == USER_GROUP).chain(having(|name| name.starts_with(OTHER_USER_GROUP))).collect()
}

/// Returns the groups that may hold the address, in the order in which they are tried.
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
    if !marked.is_empty() || matches!(kind, RuleKind::Ignore | RuleKind::SessionEnd) {
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

pub(super) fn syntax(unicode: bool) -> regex_automata::util::syntax::Config {
    regex_automata::util::syntax::Config::new()
        .unicode(unicode)
        .utf8(false)
        // A line break in a field must not hide the line from a rule.
        .dot_matches_new_line(true)
        .nest_limit(96)
}

/// Parses with ASCII classes, because they are faster. Falls back to Unicode classes if the expression needs them.
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
