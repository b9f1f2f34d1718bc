//! Why filters do not compile. Every error is collected, none ends the work.

use std::fmt;

/// One thing that is wrong in one filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct FilterError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

/// A filter, or a rule of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The name of the filter or pattern.
    pub filter: String,
    /// The rule or test within it, as `failregex-3` or its own name.
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

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The expression is none.
    #[error("the expression is not valid: {0}")]
    Regex(String),
    /// Look-around and back-references cannot run in linear time.
    #[error(
        "the expression uses {0}, which cannot run in linear time: write it without, for example with a rule under `ignoreregex`"
    )]
    NotLinear(&'static str),
    /// The expression is too long.
    #[error("the expression is {length} bytes long, at most {limit} are allowed: split it into several rules")]
    TooLong {
        /// Its length after all `<…>` were put in.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The compiled expression is too big.
    #[error(
        "the compiled expression is larger than {limit} bytes: use smaller repetitions than `{{n,m}}` with large numbers"
    )]
    TooBig {
        /// The limit.
        limit: usize,
    },
    /// No group for the address.
    #[error(
        "nothing says where the address is: write <HOST>, name the group that holds it in `ip_group`, or name the session with (?P<session>…)"
    )]
    NoSource,
    /// A rule that takes its address from a session in a filter that never learns one.
    #[error(
        "it takes the address from the session, but the filter has no `sessionregex` that says whose session it is"
    )]
    NoSessions,
    /// A `sessionregex` or `endregex` without the group.
    #[error("nothing says which session it is: write the group (?P<session>…) around its name")]
    NoSessionGroup,
    /// A `sessionregex` or `endregex` that says more than an expression.
    #[error("it is no offence, and in force in every mode: `severity`, `mode`, `echo` and `ban` belong to `failregex`")]
    SessionOnly,
    /// `ip_group` names no group.
    #[error("there is no group `{0}` in the expression")]
    NoSuchGroup(String),
    /// A `<piece>` that is not defined.
    #[error("<{0}> is not defined: `definitions` of the filter must have it")]
    UndefinedPiece(String),
    /// Definitions that contain each other.
    #[error("<{0}> is defined by itself")]
    CircularPiece(String),
    /// A severity out of range.
    #[error("severity {0} is out of range: write 1 (harmless) to 6 (grave)")]
    Severity(u8),
    /// Two filters, or two rules of one, with one name.
    #[error("the name is used twice")]
    DuplicateName,
    /// A filter needs a name.
    #[error("it has no name, or one with other characters than letters, digits, `-`, `_` and `.`")]
    Name,
    /// A service name with more than one `*`.
    #[error("`{0}` is no service name: write a program's name with at most one `*`")]
    Service(String),
    /// A filter that no line reaches.
    #[error("it names no services, so no line would reach it: list the program names, or `*` for every program")]
    NoServices,
    /// A filter without a rule.
    #[error("it has no failregex")]
    NoRules,
    /// Too many echo classes.
    #[error("it has more than {0} echo classes")]
    TooManyEchoes(usize),
    /// A policy value that makes no sense.
    #[error("{0}")]
    Policy(&'static str),
    /// Too many rules.
    #[error("there are {count} rules, at most {limit} are allowed")]
    TooManyRules {
        /// How many there are.
        count: usize,
        /// The limit.
        limit: usize,
    },
}
