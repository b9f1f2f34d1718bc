//! Errors and warnings about filters. Compilation collects all of them and does not stop at the first.

use std::fmt;

/// An error in one filter or pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct FilterError {
    /// The filter and rule.
    pub place: Place,
    /// What is wrong, and what to do.
    pub problem: Problem,
}

impl FilterError {
    /// All rules together do not fit into one automaton.
    pub(crate) fn too_large(text: String) -> Self {
        Self { place: Place { filter: "*".to_owned(), rule: None }, problem: Problem::Regex(text) }
    }
}

/// A filter that works, but not as well as it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The filter and rule.
    pub place: Place,
    /// The consequence, and what to do.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// The location of an error: a filter, or a rule in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The name of the filter or pattern; `*` for an error of all of them together.
    pub filter: String,
    /// The name of the rule: its own, or its list and number (`failregex-3`). `None` for an error of the whole filter.
    pub rule: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "filter `{}`, rule `{rule}`", self.filter),
            None => write!(f, "filter `{}`", self.filter),
        }
    }
}

/// What is wrong with a filter or rule. The message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The expression has a syntax error, or all rules together are too large for an automaton.
    #[error("the expression is not valid: {0}")]
    Regex(String),
    /// The expression uses look-around or a back-reference.
    #[error(
        "the expression uses {0}, which cannot run in linear time; rewrite it, for example with a rule under `ignoreregex`"
    )]
    NotLinear(&'static str),
    /// The expression is too long.
    #[error("the expression is {length} bytes long; at most {limit} are allowed; split it into several rules")]
    TooLong {
        /// The length in bytes, with all pieces inserted.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The compiled expression is too large.
    #[error(
        "the compiled expression is larger than {limit} bytes; use smaller numbers in repetitions such as `{{n,m}}`"
    )]
    TooBig {
        /// The limit in bytes.
        limit: usize,
    },
    /// The rule does not say where the address is.
    #[error(
        "the expression has no address; write <HOST>, name the group of the address in `ip_group`, or name the session with (?P<session>…)"
    )]
    NoSource,
    /// The rule takes the address from a session, but the filter has no `sessionregex`.
    #[error("the rule takes the address from a session; add a `sessionregex` that assigns sessions to addresses")]
    NoSessions,
    /// A `sessionregex` or `endregex` has no group `session`.
    #[error("the expression does not name the session; write the group (?P<session>…)")]
    NoSessionGroup,
    /// A `sessionregex` or `endregex` has a key that only applies to offences.
    #[error("rules about sessions cannot have `severity`, `mode`, `echo` or `ban`; these belong to `failregex`")]
    SessionOnly,
    /// A rule other than a `failregex` has `unknown`.
    #[error("`unknown` says that no account of that name exists, so it belongs to `failregex` only; remove it")]
    UnknownOnlyFailure,
    /// A rule has `unknown`, but its expression does not name the account.
    #[error(
        "the expression does not name the account that does not exist; write the group (?P<user>…), or remove `unknown`"
    )]
    UnknownWithoutUser,
    /// `ip_group` names a group that the expression does not have.
    #[error("the expression has no group `{0}`")]
    NoSuchGroup(String),
    /// A `<piece>` is not defined.
    #[error("<{0}> is not defined; add it to the `definitions` of the filter")]
    UndefinedPiece(String),
    /// Definitions contain each other, or are nested too deeply.
    #[error("<{0}> is defined in terms of itself, or nested too deeply")]
    CircularPiece(String),
    /// The severity is out of range.
    #[error("severity {0} is out of range; write 1 (harmless) to 6 (grave)")]
    Severity(u8),
    /// Two filters, or two rules of one filter, have the same name.
    #[error("the name is used twice")]
    DuplicateName,
    /// The name of the filter is missing or invalid.
    #[error("the name is missing, or has characters other than letters, digits, `-`, `_` and `.`")]
    Name,
    /// The service name is empty or has more than one `*`.
    #[error("`{0}` is not a valid service name; write the name of a program with at most one `*`")]
    Service(String),
    /// The filter applies to no line.
    #[error("no line reaches the filter; list program names under `services`, or `*` for every program")]
    NoServices,
    /// The filter has no `failregex`.
    #[error("the filter has no failregex")]
    NoRules,
    /// The filter has too many echo classes.
    #[error("the filter has more than {0} echo classes")]
    TooManyEchoes(usize),
    /// A value under `ban` is out of range.
    #[error("{0}")]
    Policy(&'static str),
    /// There are too many rules in all.
    #[error("there are {count} rules; at most {limit} are allowed")]
    TooManyRules {
        /// The number of rules.
        count: usize,
        /// The limit.
        limit: usize,
    },
}
