//! The errors and warnings about a configuration, as the operator reads them.

use std::fmt;

use super::origin::Origin;

/// The maximum number of errors that are collected, as a bound for hostile files.
const MAX_PROBLEMS: usize = 100;

/// An error or a warning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// Where the value was written.
    pub origin: Origin,
    /// The key, with dots; empty if the problem is not about a key.
    pub key: String,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// The kinds of problems, with the text for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file is not valid YAML, or uses a feature of YAML that is not supported.
    #[error("{0}")]
    Syntax(String),
    /// There is no such key.
    #[error("unknown key{}", suggestion(.nearest))]
    UnknownKey {
        /// The valid name with the most similar spelling, if any is similar.
        nearest: Option<String>,
    },
    /// It is a word of fail2ban's configuration.
    #[error("unknown key; fail2ban's `{word}` is {ours}")]
    Fail2banWord {
        /// The word.
        word: &'static str,
        /// What banmesh has in its place.
        ours: &'static str,
    },
    /// There is no key for this variable.
    #[error("unknown variable{}", suggestion(.nearest))]
    UnknownVariable {
        /// The valid name with the most similar spelling, if any is similar.
        nearest: Option<String>,
    },
    /// The key was already set.
    #[error("duplicate key; it is already set in line {first}")]
    DuplicateKey {
        /// The line where it was set first.
        first: usize,
    },
    /// The value is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The value contradicts another one.
    #[error("{0}")]
    Inconsistent(String),
    /// Kubernetes set the variable for a Service, so it is not a setting.
    #[error(
        "ignored, because Kubernetes sets it for a Service of this name; set `enableServiceLinks: false` in the pod to \
         remove it"
    )]
    ServiceLink,
    /// There are more problems than are listed.
    #[error("too many errors; the rest is not shown")]
    TooMany,
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.kind.fmt(f)
    }
}

/// Why a configuration is refused: all errors at once, and the warnings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The errors; never empty.
    pub errors: Vec<Problem>,
    /// The warnings.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    /// One error per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Collects the problems of one source, and keeps track of the key that is being read.
#[derive(Debug)]
pub struct Faults<'a> {
    problems: &'a mut Vec<Problem>,
    origin: Origin,
    key: String,
}

impl<'a> Faults<'a> {
    /// Collects into `problems`, for the source `origin`, beginning at `key`.
    pub(super) fn new(problems: &'a mut Vec<Problem>, origin: Origin, key: &str) -> Self {
        Self { problems, origin, key: key.to_owned() }
    }

    /// Runs `read` with `suffix` appended to the key.
    pub(super) fn within<R>(&mut self, suffix: &str, read: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.key.len();
        self.key.push_str(suffix);
        let result = read(self);
        self.key.truncate(length);
        result
    }

    /// Whether the list is full, so that further checks are useless.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS
    }

    /// Adds that the value in `line` (ignored for a variable) is invalid.
    pub(super) fn invalid(&mut self, line: usize, message: String) {
        self.add(line, ProblemKind::Invalid(message));
    }

    /// Adds a problem in `line`.
    pub(super) fn add(&mut self, line: usize, kind: ProblemKind) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let last = self.problems.len() + 1 == MAX_PROBLEMS;
        let origin = self.origin.in_line(line);
        let (key, kind) = match kind {
            _ if last => (String::new(), ProblemKind::TooMany),
            ProblemKind::Invalid(message) => (printable(&self.key), ProblemKind::Invalid(printable(&message))),
            ProblemKind::Syntax(message) => (printable(&self.key), ProblemKind::Syntax(printable(&message))),
            kind => (printable(&self.key), kind),
        };
        self.problems.push(Problem { origin, key, kind });
    }
}

/// `text` on one line of at most 400 characters, with control characters escaped so that they cannot act on a terminal.
fn printable(text: &str) -> String {
    const MOST: usize = 400;
    let mut shown = String::with_capacity(text.len().min(MOST));
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count >= MOST => {
                shown.push('…');
                break;
            }
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// The name among `candidates` whose spelling is most similar to `wrong`; `None` if none is similar.
pub(super) fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // The cost is quadratic in the length, and a misspelled name is not this long.
    if wrong.len() > 120 {
        return None;
    }
    let wrong = wrong.to_lowercase();
    candidates
        .into_iter()
        .filter_map(|candidate| distance(&wrong, &candidate.to_lowercase()).map(|distance| (distance, candidate)))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// The number of characters to change; `None` if the names have too little in common.
fn distance(wrong: &str, candidate: &str) -> Option<usize> {
    // Equal words at the beginning do not count: in a long name, a short word would else be similar to any other.
    let common = wrong.bytes().zip(candidate.bytes()).take_while(|(a, b)| a == b).count();
    let words = wrong.as_bytes()[..common].iter().rposition(|byte| b"._".contains(byte)).map_or(0, |at| at + 1);
    // An ASCII character precedes it in both, so it is a boundary in both.
    let (wrong, candidate) = (&wrong[words..], &candidate[words..]);
    if wrong.len() >= 4 && candidate.strip_prefix(wrong).is_some_and(|rest| rest.starts_with(['_', '.'])) {
        // Left unfinished: `secret` of `secret_file`.
        return Some(1);
    }
    if candidate.strip_prefix("in") == Some(wrong) {
        // The opposite: `secure` is not meant to be `insecure`.
        return None;
    }
    let distance = strsim::damerau_levenshtein(wrong, candidate);
    let most = (wrong.chars().count().max(candidate.chars().count()) / 3).clamp(1, 4);
    (distance <= most).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_misspellings_of_the_key() {
        let keys = [
            "cluster.secret_file",
            "cluster.insecure",
            "cluster.name",
            "ban.max_attempts",
            "ban",
            "spoa.port",
            "FAIL2BAN_CLUSTER_SECRET_FILE",
            "FAIL2BAN_CLUSTER_INSECURE",
        ];
        for (wrong, meant) in [
            ("cluster.secret", Some("cluster.secret_file")),
            ("cluster.secrets", None),
            ("cluster.secret_key", None),
            ("cluster.insecur", Some("cluster.insecure")),
            ("cluster.secure", None),
            ("cluster.nmae", Some("cluster.name")),
            ("cluster.mode", None),
            ("ban.max_atempts", Some("ban.max_attempts")),
            ("ban.maxattempts", Some("ban.max_attempts")),
            ("bam.max_attempts", Some("ban.max_attempts")),
            ("spoa.pot", Some("spoa.port")),
            ("bans", Some("ban")),
            ("FAIL2BAN_CLUSTER_SECRT", None),
            ("FAIL2BAN_CLUSTER_SECRET", Some("FAIL2BAN_CLUSTER_SECRET_FILE")),
            ("é.é", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, keys).as_deref(), meant, "{wrong}");
        }
    }
}
